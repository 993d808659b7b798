#!/usr/bin/env python3
"""kvfs mount --server against a real key server over TLS: a subscriber with nothing but a deploy key,
a URL, a thumbprint and a model's name; and everything that ends a lease."""
import contextlib
import errno
import fcntl
import json
import mmap
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import kspostgres
from ksclient import Publisher, Server, encrypt, header_of, sha, unb64, write_plain
from kvfstest import (KVFS, Checks, HungSource, Mount, Skip, alive, found_in, kvfs, memory_of, proc_status,
                      processes, run, sanitized, wait_for, workdir)

checks = Checks()
check = checks.check
WORK = workdir()
NOWHERE = os.path.join(WORK, "nowhere")
os.mkdir(NOWHERE)
SHARDS = ["model-00001-of-00002.safetensors", "sub/model-00002-of-00002.safetensors"]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def same(view, plain):
    """Whether two files have the same content: of safetensors, whose headers may be spelled
    differently, the body."""
    if not plain.endswith(".safetensors"):
        return read(view) == read(plain)
    return read(view)[len(header_of(view)):] == read(plain)[len(header_of(plain)):]


def refused(path, number):
    try:
        read(path)
    except OSError as error:
        assert error.errno == number, error
        return
    raise AssertionError(f"{path} was read")


class World:
    """alice publishes m; bob subscribes to it."""

    def __init__(self, server):
        self.server = server
        publish, self.alice_key = server.user("alice", "publish", "deploy")
        self.bob, = server.user("bob", "deploy")
        self.alice = Publisher(server, publish)
        self.digest = kvfs("measure").stdout.strip()
        self.key = os.path.join(WORK, "bob.key")
        write(self.key, self.bob.encode() + b"\n")
        self.plain, self.source, self.manifest = {}, {}, {}
        for name in ("m", "n"):
            self.publish(name)
        self.subscription = server.admin("subscription", "add", "alice/m", "bob")

    def publish(self, name, generation=1, size=200000):
        if generation == 1:
            self.alice.create(name)
            self.server.admin("model", "set", f"alice/{name}", "--profiles=drift")
            self.server.admin("baseline", "add", f"alice/{name}", self.digest)
        plain = os.path.join(WORK, f"plain-{name}-{generation}")
        os.makedirs(os.path.join(plain, "sub"))
        for shard in SHARDS:
            write_plain(os.path.join(plain, shard),
                        {f"w{k}": os.urandom(size + k) for k in range(4)})
        write(os.path.join(plain, "config.json"), b'{"model_type": "test"}')
        source = encrypt(plain, os.path.join(WORK, f"enc-{name}-{generation}"),
                         self.alice.keys(name), "--generation", str(generation))
        self.manifest[name] = read(os.path.join(source, "kvfs.manifest"))
        self.alice.publish(name, {s: header_of(os.path.join(source, s)) for s in SHARDS},
                           self.manifest[name].decode())
        self.plain[name], self.source[name] = plain, source

    def arguments(self, *more, model="alice/m", key=None, pin=None, url=None):
        all_ = ["--server", url or f"https://localhost:{self.server.port}", "--server-key",
                pin or self.server.thumbprint, "--ca", os.path.join(self.server.dir, "tls.crt"),
                "--deploy-key", key or self.key]
        return all_ + (["--model", model] if model else []) + list(more)

    def mount(self, *more, name="m", source=None, options=(), **how):
        return Mount(source or self.source[name], arguments=self.arguments(*more, **how),
                     options=options)

    def fails(self, words, *more, name="m", source=None, **how):
        mount = self.mount(*more, "--wait", "1", name=name, source=source, **how)
        try:
            mount.mount()
        except AssertionError as error:
            assert words in str(error), error
            return
        mount.umount()
        raise AssertionError("it was mounted")


def test_release(world):
    with check("mounted with a deploy key, a URL, a thumbprint and a name: everything is as it was"):
        with world.mount() as m:
            for shard in SHARDS + ["config.json"]:
                assert same(f"{m.path}/{shard}", f"{world.plain['m']}/{shard}"), shard
            status = m.status()
            assert status["keys"]["source"] == "server", status["keys"]
            lease, = status["leases"]
            assert lease["state"] == "held" and lease["model"] == "alice/m", lease
            assert lease["generation"] == 1 and lease["assurance"] == "self-reported", lease
            assert 0 < lease["renew"] < lease["seconds"] <= 900, lease
            file = next(f for f in status["files"] if f.get("header_sha256")
                        and f["paths"] == [SHARDS[0]])
            assert file["header_sha256"] != sha(header_of(f"{world.source['m']}/{SHARDS[0]}"))
            text = kvfs("status", m.path).stdout
            assert "alice/m" in text and "self-reported" in text, text
            rows = world.server.admin("lease", "list")
            assert [row["id"] for row in rows] == [lease["lease"]], rows
    with check("unmounting gives the lease back"):
        wait_for(lambda: world.server.admin("lease", "list") == [], 3, "the end of the lease")
    with check("the deploy key is in no command line, environment or log"):
        with world.mount() as m:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "environ"):
                    try:
                        text = read(f"/proc/{pid}/{name}")
                    except OSError:
                        continue
                    assert world.bob.encode() not in text, (pid, name)
            assert world.bob not in read(f"{m.path}/.kvfs/log").decode()
            assert world.bob not in world.server.log()


def test_refusals(world):
    server = world.server
    with check("options: what goes together, and what does not"):
        for words, arguments in (
                ("https", world.arguments(url="http://localhost:1")),
                ("https", world.arguments(url="https://me:secret@localhost:1")),
                ("server-key", ["--server", "https://localhost:1"]),
                ("server=URL", ["--model", "alice/m"]),
                ("never from both", world.arguments("--key", world.source["m"] + ".jwks")),
                ("OWNER/NAME", world.arguments(model="alice"))):
            ran = kvfs("mount", world.source["m"], NOWHERE, *arguments, check=False)
            assert ran.returncode == 2 and words in ran.stderr, ran
        ran = kvfs("mount", world.source["m"], NOWHERE, *world.arguments(),
                   check=False, env={**os.environ, "CRYPTOTENSOR_KEYS": "{}"})
        assert ran.returncode == 2 and "CRYPTOTENSOR_KEYS" in ran.stderr, ran
    with check("another thumbprint, another key, a model that is not subscribed, none of this name"):
        world.fails("identity", pin="A" * 43)
        write(os.path.join(WORK, "wrong.key"), b"kvfs_deploy_x")
        world.fails("(denied", key=os.path.join(WORK, "wrong.key"))
        world.fails("(denied", name="n", model="alice/n")
        world.fails("(denied", model="alice/nothing")
    with check("nobody there, another certificate, another name"):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        world.fails("no answer from the key server", url=f"https://localhost:{port}")
        other = Server().init()
        arguments = world.arguments("--wait=0")
        arguments[arguments.index("--ca") + 1] = os.path.join(other.dir, "tls.crt")
        ran = kvfs("mount", world.source["m"], NOWHERE, *arguments, check=False)
        assert ran.returncode == 1 and "certificate" in ran.stderr, ran
        shutil.rmtree(other.dir)
        other.thumbprint = other.admin("init", "--name=other.example")["thumbprint"]
        other.start()
        arguments = world.arguments("--wait=0", url=f"https://localhost:{other.port}")
        arguments[arguments.index("--ca") + 1] = os.path.join(other.dir, "tls.crt")
        ran = kvfs("mount", world.source["m"], NOWHERE, *arguments, check=False)
        other.stop()
        assert ran.returncode == 1 and "no alternative certificate" in ran.stderr, ran
    with check("a baseline that was withdrawn, a profile that is not allowed"):
        server.admin("baseline", "withdraw", "alice/m", world.digest)
        world.fails("baseline_withdrawn")
        server.admin("baseline", "add", "alice/m", world.digest)
        server.admin("model", "set", "alice/m", "--profiles=strict")
        world.fails("profile_refused")
        server.admin("model", "set", "alice/m", "--profiles=drift")
    with check("a shard that is missing, one of another model"):
        for name, change in (("missing", None), ("other", world.source["n"])):
            copy = os.path.join(WORK, name)
            shutil.copytree(world.source["m"], copy)
            os.unlink(f"{copy}/{SHARDS[1]}")
            if change:
                shutil.copy(f"{change}/{SHARDS[1]}", f"{copy}/{SHARDS[1]}")
            world.fails("body_outdated", source=copy)


def test_deploy_key(world):
    with check("the deploy key from the environment, a descriptor, systemd's credential"):
        plain = [a for a in world.arguments() if a not in ("--deploy-key", world.key)]
        credentials = os.path.join(WORK, "credentials")
        os.mkdir(credentials)
        write(f"{credentials}/kvfs-deploy-key", world.bob.encode())
        for env, more in (({"KVFS_DEPLOY_KEY": world.bob}, []),
                          ({"CREDENTIALS_DIRECTORY": credentials}, []),
                          ({}, ["--deploy-key=fd:9"])):
            path = os.path.join(WORK, "by-hand")
            os.makedirs(path, exist_ok=True)
            command = " ".join(map(shlex.quote, [KVFS, "mount", world.source["m"], path, *plain,
                                                 *more]))
            ran = run("bash", "-c", f"{command} 9<{world.key}", env={**os.environ, **env})
            assert ran.returncode == 0, ran
            assert same(f"{path}/{SHARDS[0]}", f"{world.plain['m']}/{SHARDS[0]}")
            for pid in processes(path).values():
                assert world.bob.encode() not in read(f"/proc/{pid}/environ")
            kvfs("umount", path)
        ran = kvfs("mount", world.source["m"], path, *plain, check=False)
        assert ran.returncode == 1 and "--deploy-key" in ran.stderr, ran


def test_changes(world):
    """What lies on the disk changes after the release."""
    def copied(name):
        copy = os.path.join(WORK, name)
        shutil.copytree(world.source["m"], copy)
        return copy

    with check("a header that changes after the release, a file put in another's place: EKEYREJECTED"):
        copy = copied("changed")
        with world.mount(source=copy) as m:
            path = f"{copy}/{SHARDS[0]}"
            whole = read(path)
            with open(path, "r+b") as file:  # the same file: one blank less, one more
                end = whole.index(b"}", 8 + struct.unpack("<Q", whole[:8])[0] - 64)
                file.seek(whole.index(b",", 8) + 1)
                del end
                file.write(b" ")
            refused(f"{m.path}/{SHARDS[0]}", errno.EKEYREJECTED)
            write(path + ".new", read(f"{world.source['m']}/{SHARDS[0]}"))
            os.rename(path + ".new", path)
            kvfs("reload", m.path)
            refused(f"{m.path}/{SHARDS[0]}", errno.EKEYREJECTED)
            assert same(f"{m.path}/{SHARDS[1]}", f"{world.plain['m']}/{SHARDS[1]}")
    with check("the manifest that the release names is gone, or another one: nothing is shown"):
        copy = copied("bare")
        os.unlink(f"{copy}/kvfs.manifest")
        with world.mount(source=copy) as m:
            for name in (SHARDS[0], "config.json"):
                refused(f"{m.path}/{name}", errno.EKEYREJECTED)
        shutil.copy(f"{world.source['n']}/kvfs.manifest", copy)
        with world.mount(source=copy) as m:
            refused(f"{m.path}/config.json", errno.EKEYREJECTED)


class Reader:
    """A process with a file mapped and open, that is told what to do: "map" and "read" give a byte of
    the file, or an errno (SIGBUS as EFAULT: the kernel writes the byte to a pipe)."""

    def __init__(self, path, offset):
        self.ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.ours.close()
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                theirs.send(mapped[offset:offset + 1])
                while theirs.recv(1):
                    answer = []
                    for way in (lambda: os.preadv(file.fileno(), [bytearray(1)], offset),
                                lambda: self.through_pipe(mapped, offset)):
                        try:
                            answer.append(0 if way() == 1 else -1)
                        except OSError as error:
                            answer.append(error.errno)
                    theirs.send(struct.pack("ii", *answer))
            os._exit(0)
        theirs.close()
        assert len(self.ours.recv(1)) == 1

    @staticmethod
    def through_pipe(mapped, offset):
        reading, writing = os.pipe()
        try:
            return os.write(writing, memoryview(mapped)[offset:offset + 1])
        finally:
            os.close(reading)
            os.close(writing)

    def ask(self):
        """(errno of a read, errno of a touch of the mapping); 0: it could be read."""
        self.ours.send(b"?")
        return struct.unpack("ii", self.ours.recv(8))

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.ours.close()


def ends(m, code, within):
    """The seconds until new opens, an old descriptor and an old mapping are refused."""
    name = f"{m.path}/{SHARDS[0]}"
    reader = Reader(name, os.path.getsize(name) - 1)
    begin = time.monotonic()
    yield
    wait_for(lambda: 0 not in reader.ask(), within, "the end of a mapping")
    took = time.monotonic() - begin
    got = reader.ask()
    assert got[0] in (code, -1) and got[1] == errno.EFAULT, got  # -1: end of a resident file
    refused(name, code)
    reader.end()
    checks.note(f"{errno.errorcode[code]} after {took:.2f} s")


@contextlib.contextmanager
def lease_ends(m, code, within):
    yield from ends(m, code, within)


def lease_of(m):
    return m.status()["leases"][0]


def test_revocation(world):
    server = world.server
    for cache in ("page", "resident"):
        with check(f"revoked with the file mapped: gone within a second (cache={cache})"):
            with world.mount(options=[f"cache={cache}"]) as m:
                if cache == "resident" and not is_resident(m):
                    raise Skip("no resident mode here")
                with lease_ends(m, errno.EKEYREVOKED, 1.5):
                    server.admin("revoke", "lease", lease_of(m)["lease"])
                wait_for(lambda: m.status()["state"] == "sealed", 5, "the seal")
                assert "revoked" in m.status()["sealed"], m.status()
                assert "sealed" in kvfs("status", m.path).stdout
                assert "sealed: the key server revoked" in read(f"{m.path}/.kvfs/log").decode()
                assert server.audit("admin.revoke.lease")
                refused(f"{m.path}/config.json", errno.EKEYREVOKED)


def ended_because(world, lease, words):
    """Whether the server knows of a lease that it was ended, and why."""
    ends = wait_for(lambda: [row for row in world.server.audit("lease-ended")
                             if row["lease"] == lease], 3, "the end of the lease")
    assert words in (ends[0]["detail"] or ""), ends
    assert lease not in [row["id"] for row in world.server.admin("lease", "list")]


def test_sealed(world):
    """What seals a mount ends its lease: told by the runtime, after it took everything back."""
    with check("kvfs seal: the server knows, and why"):
        with world.mount() as m:
            read(f"{m.path}/{SHARDS[0]}")
            lease = lease_of(m)["lease"]
            kvfs("seal", m.path)
            ended_because(world, lease, "kvfs seal")
            assert lease_of(m)["state"] == "over", lease_of(m)
    top = os.path.join(WORK, "above")
    os.mkdir(top)
    for more in ([], ["exit-on-seal=42"]):
        with check(f"a drift: the server knows, and which ({more or 'the mount stays'})"):
            source = f"{top}/m{len(more)}"
            shutil.copytree(world.source["m"], source)
            mount = world.mount(source=source, options=more)
            with mount as m:
                lease = lease_of(m)["lease"]
                run("mount", "-t", "tmpfs", "none", source, check=True)
                try:
                    ended_because(world, lease, "guard: mount-path")
                finally:
                    run("umount", source, check=True)
                if more:
                    m.wait_gone()
    with check("who gets no lease: another profile, another policy of the same name"):
        hard = os.path.join(WORK, "hard")
        world.server.admin("model", "set", "alice/m", "--profiles=drift hard")
        for period in (900, 800):
            write(hard, f"profile hard\nbase drift\nperiod {period}\n".encode())
            world.fails("baseline_unknown", "-o", f"guard={hard}")
            digest = kvfs("measure", "--guard", hard).stdout.strip()
            world.server.admin("baseline", "add", "alice/m", digest)
            with world.mount("-o", f"guard={hard}") as m:
                assert lease_of(m)["state"] == "held"
        world.server.admin("model", "set", "alice/m", "--profiles=drift")
        for profile in ("off", hard):
            world.fails("profile_refused", "-o", f"guard={profile}")
        refusals = {row["code"] for row in world.server.audit("attest")}
        assert {"baseline_unknown", "profile_refused"} <= refusals, refusals


def is_resident(m, name=SHARDS[0]):
    with open(f"{m.path}/{name}", "rb") as file:
        file.read()
        files = m.status()["files"]
    return any(f["cache"] == "resident" for f in files)


def test_lease_end(world):
    server = world.server
    server.sql("UPDATE models SET lease_seconds = 5")
    try:
        with check("renewed in the background, over a restart of the server too"):
            with world.mount() as m:
                first = lease_of(m)
                server.stop(signal.SIGKILL)
                time.sleep(2)
                server.start()
                time.sleep(4)
                assert lease_of(m)["lease"] == first["lease"] and lease_of(m)["state"] == "held"
                assert same(f"{m.path}/{SHARDS[0]}", f"{world.plain['m']}/{SHARDS[0]}")
        seconds = 6 if sanitized() else 3  # then it starts slowly
        server.sql(f"UPDATE models SET lease_seconds = {seconds}")
        with check("a courier that is killed is replaced"):
            with world.mount() as m:
                for pid in couriers():
                    os.kill(pid, signal.SIGKILL)
                time.sleep(seconds + 1)
                assert lease_of(m)["state"] == "held" and couriers()
                with lease_ends(m, errno.EKEYREVOKED, 2):
                    server.admin("revoke", "lease", lease_of(m)["lease"])
        server.sql("UPDATE models SET lease_seconds = 3")
        with check("the server is gone: reads go on to the lease's end, and no second longer"):
            with world.mount() as m:
                begin = time.monotonic()
                server.stop(signal.SIGKILL)
                with lease_ends(m, errno.EKEYEXPIRED, 4.5):
                    pass
                assert time.monotonic() - begin > 1.5
                assert "could not be renewed" in m.status()["sealed"], m.status()["sealed"]
            server.start()
        with check("the clock set back: a lease ends all the same"):
            if not os.environ.get("KVFS_SOAK"):
                raise Skip("it is everybody's clock: only in tests/soak")
            with world.mount() as m:
                server.stop(signal.SIGKILL)
                wall, since = time.time(), time.monotonic()
                time.clock_settime(time.CLOCK_REALTIME, wall - 86400)
                try:
                    with lease_ends(m, errno.EKEYEXPIRED, 4.5):
                        pass
                finally:
                    time.clock_settime(time.CLOCK_REALTIME, wall + time.monotonic() - since)
            server.start()
        with check("an outage grace is for a server that cannot be reached"):
            server.sql("UPDATE models SET lease_grace = 9")
            with world.mount() as m:
                server.stop(signal.SIGKILL)
                time.sleep(4.2)
                assert same(f"{m.path}/{SHARDS[0]}", f"{world.plain['m']}/{SHARDS[0]}")
                server.start()
                wait_for(lambda: lease_of(m)["seconds"] > 0, 4, "a renewal")
                assert lease_of(m)["state"] == "held"
    finally:
        server.start() if not server.process else None
        server.sql("UPDATE models SET lease_seconds = 900, lease_grace = 0")
    with check("--wait: the server comes up while the mount waits for it"):
        server.stop()
        path = os.path.join(WORK, "patient")
        os.makedirs(path, exist_ok=True)
        with subprocess.Popen([KVFS, "mount", world.source["m"], path, *world.arguments("--wait=60")],
                              stderr=subprocess.PIPE) as waiting:
            time.sleep(1)
            assert waiting.poll() is None, waiting.stderr.read()
            server.start()
            assert waiting.wait(20) == 0, waiting.stderr.read()
        assert same(f"{path}/{SHARDS[0]}", f"{world.plain['m']}/{SHARDS[0]}")
        kvfs("umount", path)


def couriers():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if read(f"/proc/{pid}/comm") == b"kvfs-courier\n" and alive(pid):
                found.append(int(pid))
        except OSError:
            continue
    return found


def test_processes(world):
    with check("the worker has no network; couriers have no secret and no privilege"):
        with world.mount() as m:
            assert couriers()
            inodes = {os.readlink(f"/proc/{m.worker}/fd/{fd}")
                      for fd in os.listdir(f"/proc/{m.worker}/fd")}
            sockets = {name[8:-1] for name in inodes if name.startswith("socket:")}
            for table in ("tcp", "tcp6", "udp", "udp6"):
                for line in read(f"/proc/net/{table}").decode().splitlines()[1:]:
                    assert line.split()[9] not in sockets, line
            key = world.bob.encode()
            if not sanitized():
                assert any(key in part for part in memory_of(m.worker)), "the search finds nothing"
            for pid in couriers():
                assert not any(key in part for part in memory_of(pid))
                status = proc_status(pid)
                assert status["Uid"].split() == ["65534"] * 4 and status["CapEff"].strip("0") == ""
                assert status["NoNewPrivs"] == "1", status
    with check("when a mount ends, so do its couriers"):
        wait_for(lambda: not couriers(), 3, "the end of the couriers")


def deks(world, name):
    """The DEKs of a file that was published, unwrapped with the model's master key."""
    master, _ = world.alice.keys(name)
    fields = json.loads(header_of(f"{world.source[name]}/{SHARDS[0]}")[8:])["__metadata__"]
    cipher = AESGCM(unb64(master["k"]))
    return [cipher.decrypt(unb64(e["key_iv"]), unb64(e["wrapped_key"]) + unb64(e["key_tag"]), None)
            for e in json.loads(fields["__encryption__"]).values()]


def secrets_of(world):
    """With tensors of different content, each value is found nowhere else."""
    return {"API key": world.bob.encode(),
            "plaintext": read(f"{world.plain['m']}/{SHARDS[0]}")[-100000:-99968],
            **{f"DEK {i}": dek for i, dek in enumerate(deks(world, "m"))}}


def test_memory(world):
    if sanitized():
        checks.skip("memory after sealing", "a sanitizer keeps what was freed")
        return
    known = secrets_of(world)
    world.server.sql("UPDATE models SET lease_seconds = 3")
    for how, cache in (("seal", "page"), ("revoke", "resident")):
        with check(f"{how}: key, DEKs and plaintext are in the worker before, and in no process "
                   f"afterwards (cache={cache})"):
            with world.mount(options=[f"cache={cache}"]) as m:
                with open(f"{m.path}/{SHARDS[0]}", "rb") as file:
                    file.read()
                    want = set(known) - ({"plaintext"} if cache == "resident" else set())
                    assert want <= found_in(m.worker, known), found_in(m.worker, known)
                    others = [m.supervisor, m.keeper, *couriers()]
                    assert not any(found_in(pid, known) for pid in others)
                    if how == "seal":
                        kvfs("seal", m.path)
                        time.sleep(2)  # when it would be renewed
                        # One may have been on its way.
                        assert read(f"{m.path}/.kvfs/log").count(b"not renewed") <= 1
                    else:
                        world.server.admin("revoke", "lease", lease_of(m)["lease"])
                        wait_for(lambda: m.status()["state"] == "sealed", 3, "the seal")
                    assert not found_in(m.worker, known), found_in(m.worker, known)
    world.server.sql("UPDATE models SET lease_seconds = 900")


def test_many(world):
    with check("without --model: a lease a model, and one that ends disturbs no other"):
        both = os.path.join(WORK, "both")
        for name in ("m", "n"):
            shutil.copytree(world.source[name], f"{both}/{name}")
        with world.mount(source=both, model=None) as m:
            assert "n/" in m.output and "refused" in m.output, m.output
            assert same(f"{m.path}/m/{SHARDS[0]}", f"{world.plain['m']}/{SHARDS[0]}")
            refused(f"{m.path}/n/{SHARDS[0]}", errno.EACCES)
        second = world.server.admin("subscription", "add", "alice/n", "bob")
        with world.mount(source=both, model=None) as m:
            names = {l["directory"]: l for l in m.status()["leases"]}
            assert {l["model"] for l in names.values()} == {"alice/m", "alice/n"}
            paths = {n: f"{m.path}/{n}/{SHARDS[0]}" for n in names}
            readers = {n: Reader(path, os.path.getsize(path) - 1) for n, path in paths.items()}
            world.server.admin("revoke", "subscription", second["id"])
            wait_for(lambda: 0 not in readers["n"].ask(), 1.5, "the end of n")
            assert readers["n"].ask() == (errno.EKEYREVOKED, errno.EFAULT)
            assert readers["m"].ask() == (0, 0)
            refused(paths["n"], errno.EKEYREVOKED)
            assert same(paths["m"], f"{world.plain['m']}/{SHARDS[0]}")
            status = m.status()
            assert status["state"] == "serving"
            assert {l["directory"]: l["state"] for l in status["leases"]} == {"m": "held", "n": "over"}
            for reader in readers.values():
                reader.end()


@contextlib.contextmanager
def slow_source(pid, seconds):
    """Every read of the source takes that much longer."""
    with subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-e",
                           f"inject=pread64:delay_enter={int(seconds * 1e6)}", "-p", str(pid)],
                          stderr=subprocess.DEVNULL) as strace:
        wait_for(lambda: proc_status(pid)["TracerPid"] == str(strace.pid), 5, "the tracer")
        try:
            yield
        finally:
            strace.terminate()


def touched(path):
    """A process that has the last byte of a file mapped."""
    return Reader(path, os.path.getsize(path) - 1)


def test_slow_source(world):
    """Three models in one mount, whose source is slow or hangs."""
    if sanitized() or world.server.postgres:
        return  # it has nothing to do with either, and takes time
    all_, profile = os.path.join(WORK, "slow"), os.path.join(WORK, "traced")
    write(profile, b"profile traced\nbase drift\ntracer ignore\nstopped ignore\ngap 60000\n")
    digest = kvfs("measure", f"--guard={profile}").stdout.strip()
    world.publish("o", size=3 << 22)
    for name in "mno":
        shutil.copytree(world.source[name], f"{all_}/{name}")
        world.server.admin("model", "set", f"alice/{name}", "--profiles=drift traced")
        world.server.admin("baseline", "add", f"alice/{name}", digest)
    added = [world.server.admin("subscription", "add", f"alice/{name}", "bob")["id"] for name in "no"]
    with check("revoked while a file is populated: what else was given out does not wait for it"):
        with world.mount(source=all_, model=None,
                         options=["cache=resident", f"guard={profile}", "threads=1"]) as m:
            if not is_resident(m, f"m/{SHARDS[0]}"):
                raise Skip("no resident mode here")
            reader = touched(f"{m.path}/o/{SHARDS[1]}")
            lease = next(l for l in m.status()["leases"] if l["model"] == "alice/o")
            with slow_source(m.worker, 0.5):
                with subprocess.Popen(["sha256sum", f"{m.path}/o/{SHARDS[0]}"], stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL) as opener:
                    wait_for(lambda: any(f["cache"] == "populating" for f in m.status()["files"]), 9,
                             "the beginning")
                    world.server.admin("revoke", "lease", lease["lease"])
                    begin = time.monotonic()
                    wait_for(lambda: 0 not in reader.ask(), 20, "the end of a mapping")
                    took = time.monotonic() - begin
                    assert opener.wait(10) == 1
            reader.end()
            assert took < 1.5, took
    with check("leases end while the source hangs: what was given out is taken back, in time"):
        world.server.sql("UPDATE models SET lease_seconds = CASE name WHEN 'm' THEN 4 ELSE 6 END "
                         "WHERE name IN ('m', 'n')")
        source = HungSource(all_, os.path.join(WORK, "far"))
        try:
            with world.mount(source=source.path, model=None, options=["cache=page", "threads=1"]) as m:
                begin = time.monotonic()
                readers = [touched(f"{m.path}/{name}/{SHARDS[0]}") for name in "mn"]
                with open(f"{m.path}/m/{SHARDS[1]}", "rb") as hangs:
                    source.hang()
                    world.server.stop(signal.SIGKILL)
                    with subprocess.Popen(["cat"], stdin=hangs, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL) as waiting:
                        for reader, seconds in zip(readers, (4, 6)):
                            wait_for(lambda who=reader: 0 not in who.ask(), 12, "the end of a mapping")
                            assert time.monotonic() - begin < seconds + 1, time.monotonic() - begin
                            reader.end()
                        assert waiting.wait(1) == 1
                assert m.status()["state"] == "serving"
                source.go_on()
        finally:
            source.end()
        world.server.start()
    with check("a worker that was stopped, and nobody watches it: its lease ends from outside"):
        world.server.sql("UPDATE models SET lease_seconds = 900")
        world.server.admin("model", "set", "alice/m", "--profiles=none drift")
        world.server.sql("UPDATE models SET lease_seconds = 4 WHERE name = 'm'")
        world.server.admin("baseline", "add", "alice/m", kvfs("measure", "--guard=off").stdout.strip())
        with world.mount(options=["guard=off", "cache=page"]) as m:
            begin = time.monotonic()
            reader = touched(f"{m.path}/{SHARDS[0]}")
            os.kill(m.worker, signal.SIGSTOP)
            wait_for(lambda: 0 not in reader.ask(), 12, "the end of a mapping")
            took = time.monotonic() - begin
            m.wait_gone(5)
            reader.end()
        checks.note(f"a stopped worker's lease of 4 s ended {took:.1f} s after the mount")
        assert took < 4 + 3.5, took
    world.server.sql("UPDATE models SET lease_seconds = 900")
    for id_ in added:
        world.server.admin("revoke", "subscription", id_)


def test_generations(world):
    state = os.path.join(WORK, "state")
    os.mkdir(state)
    old = world.source["m"]
    with check("a generation is remembered; a new one is told; an older one is refused"):
        listed = os.open(state, os.O_RDONLY)
        fcntl.flock(listed, fcntl.LOCK_EX)  # as anybody may who can list it
        with world.mount("--state-dir", state) as m:
            os.close(listed)
            seen = json.loads(read(f"{state}/seen.json"))
            assert seen == {world.server.thumbprint: {"alice/m": 1}}, seen
            world.publish("m", 2)
            wait_for(lambda: lease_of(m)["newest"] == 2, 3, "news of generation 2")
            assert lease_of(m)["generation"] == 1 and lease_of(m)["state"] == "held"
            assert same(f"{m.path}/config.json", f"{old}/config.json")
        world.fails("body_outdated", source=old)
        with world.mount("--state-dir", state) as m:
            assert lease_of(m)["generation"] == 2
            assert same(f"{m.path}/{SHARDS[0]}", f"{world.plain['m']}/{SHARDS[0]}")
        write(f"{state}/seen.json",
              json.dumps({world.server.thumbprint: {"alice/m": 3}}).encode())
        world.fails("seen already", "--state-dir", state)
    with check("a state file that makes no sense, a state directory that is not there: no mount"):
        write(f"{state}/seen.json", b"[]")
        world.fails("seen.json", "--state-dir", state)
        world.fails("nowhere", "--state-dir", f"{state}/nowhere")


def test_system_calls(world):
    """What the processes ask of the kernel."""
    if sanitized():
        checks.skip("system calls under strace", "a sanitizer makes some of its own")
        return
    where = os.path.join(WORK, "under-strace")
    world.server.admin("model", "set", "alice/m", "--profiles=none drift")
    digest = kvfs("measure", "--guard=off").stdout.strip()
    world.server.admin("baseline", "add", "alice/m", digest)
    os.makedirs(where, exist_ok=True)
    trace = os.path.join(WORK, "trace")
    with subprocess.Popen(["strace", "-ff", "-qq", "-e", "trace=%file,%network,seccomp,prctl,execve",
                           "-o", trace, KVFS, "mount", world.source["m"], where, "-f",
                           *world.arguments("--guard=off")], stderr=subprocess.DEVNULL) as mount:
        wait_for(lambda: os.path.exists(f"{where}/{SHARDS[0]}"), 30, "the mount")
        for shard in SHARDS + ["config.json"]:
            read(f"{where}/{shard}")
        names = {name: pid for name, pid in processes(where).items()}
        tasks = {name: os.listdir(f"/proc/{pid}/task") for name, pid in names.items()}
        kvfs("umount", where)
        mount.wait(20)
    traces = {int(name[len("trace."):]): read(os.path.join(WORK, name)).decode(errors="replace")
              for name in os.listdir(WORK) if name.startswith("trace.")}
    with check("strace: the worker opens no socket, and no file once its sandbox is closed"):
        worker = "".join(traces.get(int(t), "") for t in tasks["worker"])
        assert "socket(" not in worker and "connect(" not in worker, worker
        main = traces[names["worker"]]
        before, _, after = main.rpartition("SECCOMP_SET_MODE_FILTER")
        assert before, main[-2000:]
        opened = [line for line in after.splitlines() if "open" in line and "= -1" not in line]
        others = [line for t in tasks["worker"] if int(t) != names["worker"]
                  for line in traces.get(int(t), "").splitlines()
                  if "open" in line and "= -1" not in line]
        assert not opened and not others, (opened, others)
    with check("strace: the supervisor opens nothing but programs, keys, SRC, /proc and devices"):
        allowed = ("/proc/", "/dev/", "/sys/", "/usr/", "/lib", "/etc/", "/run/", "/", WORK)
        opens = re.findall(r'open(?:at2?)?\((?:AT_FDCWD|\d+)[^"]*"([^"]*)".*\) = \d+',
                           traces[names["supervisor"]])
        odd = [path for path in opens
               if path.startswith("/") and not path.startswith(allowed[:-2] + (WORK,))]
        assert opens and not odd, odd
        assert "socket(AF_INET" not in traces[names["supervisor"]]


def main():
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        world = World(server)
        test_release(world)
        test_refusals(world)
        test_deploy_key(world)
        test_changes(world)
        test_processes(world)
        test_system_calls(world)
        test_revocation(world)
        test_sealed(world)
        test_lease_end(world)
        test_memory(world)
        test_many(world)
        test_slow_source(world)
        test_generations(world)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
