"""Models whose keys a real key server has, for pods (podtest.py)."""
import json
import os
import shutil
import subprocess

from ksclient import Publisher, encrypt, header_of, write_plain
from kvfstest import read_all, run, wait_for, workdir
from podtest import MEMLOCK, Container, bundle, daemon_rootfs


class World:
    """alice publishes; bob, whose deploy key is in a file, subscribes."""

    def __init__(self, server):
        self.server = server
        publish, = server.user("alice", "publish")
        self.bob, = server.user("bob", "deploy")
        self.alice = Publisher(server, publish)
        self.network = f"/proc/{os.getpid()}/ns/net"

    def audit(self, lease):
        """What the server has of a lease: records, parsed."""
        rows = self.server.admin("audit", "records", lease) or []
        return [json.loads(row["record"]) for row in rows]

    def lease(self, lease):
        return next(row for row in self.server.admin("lease", "list", "--all") if row["id"] == lease)


class Published:
    """A model of two shards at the server, and a directory of keys (`reader` is in it) with what it
    takes to get them; `profiles`: {file name: text}, which come to lie beside. A pod has it as it has
    a kvfstest.Model."""

    def __init__(self, world, name, mib=16, profiles=()):
        self.world, self.name = world, name
        self.plain, self.encrypted, self.keys = (os.path.join(workdir(), f"{name}-{part}")
                                                 for part in ("plain", "encrypted", "keys"))
        self.reader = self.keys + "/bob.key"
        self.shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        self.shard = self.shards[0]
        os.makedirs(self.keys)
        os.makedirs(self.plain)
        for shard in self.shards:
            write_plain(os.path.join(self.plain, shard), {"w": os.urandom(mib << 19)})
        world.alice.create(name)
        encrypt(self.plain, self.encrypted, world.alice.keys(name), "--generation", "1")
        world.alice.publish(name, {s: header_of(os.path.join(self.encrypted, s))
                                   for s in self.shards},
                            read_all(os.path.join(self.encrypted, "kvfs.manifest")).decode())
        world.server.admin("subscription", "add", f"alice/{name}", "bob")
        shutil.copy(os.path.join(world.server.dir, "tls.crt"), self.keys)
        for file, text in {**dict(profiles), "bob.key": world.bob}.items():
            with open(os.path.join(self.keys, file), "w", encoding="ascii") as out:
                os.fchmod(out.fileno(), 0o600)
                out.write(text)
        run("chown", "-R", "1000:1000", self.encrypted, self.keys, check=True)

    def plain_bytes(self, number=0):
        return read_all(os.path.join(self.plain, self.shards[number]))

    def options(self):
        """Of kvfs mount, in a pod."""
        return [f"--server=https://localhost:{self.world.server.port}",
                f"--server-key={self.world.server.thumbprint}", "--ca=/keys/tls.crt",
                "--deploy-key=/keys/bob.key", f"--model=alice/{self.name}"]

    def measure(self, guard):
        """As the owner does: in a container of the same image."""
        bundle(daemon_rootfs(), "measure", "daemon",
               {"SOURCE": self.encrypted, "KEYS": self.keys, "RUN": workdir(), "MEMLOCK": MEMLOCK},
               "/usr/bin/kvfs", "measure", f"--guard={guard}")
        container = Container("measure", stdout=subprocess.PIPE)
        digest = container.process.stdout.read().decode().strip()
        container.wait()
        container.end()
        assert len(digest) == 64, container.said()
        return digest

    def allow(self, guard, profile):
        """Containers like this one may have it."""
        self.world.server.admin("model", "set", f"alice/{self.name}", f"--profiles={profile}")
        self.world.server.admin("baseline", "add", f"alice/{self.name}", self.measure(guard))

    def ended(self, lease, timeout=5):
        """Waits until the server has ended a lease; its row."""
        def over():
            row = self.world.lease(lease)
            return row if row["ended"] else None
        return wait_for(over, timeout, f"the end of lease {lease}")
