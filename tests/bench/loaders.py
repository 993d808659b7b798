"""The loaders that users have, through load.py; and the whole way, from encrypted files to tensors."""
import json
import os
import subprocess

from measure import ROOT, MemoryGroup, Missing, Models, expect_resident, kvfstest


class Loaders:
    """The server of load.py."""

    def __init__(self, models):
        self.models = models
        with open(models.reader, encoding="utf-8") as keys:
            environment = dict(os.environ, CRYPTOTENSOR_KEYS=keys.read())
        here = os.path.dirname(os.path.abspath(__file__))
        self.server = subprocess.Popen(
            [os.path.join(ROOT, "tests/with-venv"), os.path.join(here, "load.py")],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if '"ready"' not in (self.server.stdout.readline() or ""):
            self.server.wait()
            raise Missing("the packages of tests/requirements.txt are not to be had")

    def close(self):
        self.server.stdin.close()
        self.server.wait()

    def ask(self, **job):
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        result = json.loads(self.server.stdout.readline())
        if "error" in result:
            raise RuntimeError(result["error"].strip().splitlines()[-1])
        result["bytes"] = os.stat(self.models.file("plain")).st_size
        return result

    def plain(self):
        return self.ask(how="load", file=self.models.file("plain"), **{"with": "safetensors"})

    def reference(self, version):
        return self.ask(how="load", file=self.models.file(f"v{version}"), times=1,
                        **{"with": "cryptotensors"})

    def through(self, mount):
        """Cold, and once more."""
        with mount:
            result = self.ask(how="load", file=os.path.join(mount.path, Models.NAME),
                              **{"with": "safetensors"})
            expect_resident(mount)
            return result

    # ---- from encrypted files to tensors ----

    def in_group(self, **job):
        with MemoryGroup() as group:
            result = self.ask(group=group.directory, **job)
            if group.peak():
                result["memory"] = group.peak()
        return result

    def mounting(self, options, warm=False):
        """Mount, warm if there is such a thing, load."""
        path = self.models.path("whole-way")
        os.makedirs(path, exist_ok=True)
        before = [[kvfstest.KVFS, "mount", self.models.path("v2"), path, "--key",
                   self.models.reader, "-o", options]]
        if warm:
            before.append([kvfstest.KVFS, "warm", path, "--wait"])
        return self.in_group(how="mount_and_load", before=before,
                             after=[kvfstest.KVFS, "umount", path],
                             file=os.path.join(path, Models.NAME))

    def decrypting(self):
        """Decrypt to a tmpfs with the reference, load from there."""
        return self.in_group(how="decrypt_and_load", file=self.models.file("v2"),
                             to=self.models.path("decrypted.safetensors"))


def has_warm():
    return any(line.split()[:1] == ["warm"]
               for line in kvfstest.kvfs("--help").stdout.splitlines())
