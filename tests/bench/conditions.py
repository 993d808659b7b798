"""Conditions that are not those of a quiet machine with everything in memory: a cold disk, a source
that is far away, little memory and one core, no privilege, many readers, large files."""
import contextlib
import os
import shutil
import tempfile
import threading

from measure import MIB, Missing, Models, cpu_of, kvfstest

USER = 33  # one that /etc/passwd knows: fusermount3 asks
IN_MEMORY = ("tmpfs", "ramfs")
LATENCY_MS, MIB_PER_SECOND = 10, 1000
SMALL = 256 * MIB
STREAMS = 8


class Conditions:
    """Cases of their own; `mount` and `tools` are those of the others."""

    def __init__(self, cases, where):
        self.models, self.tools, self.mount = cases.models, cases.tools, cases.mount
        self.where = where
        cases.trying("cold disk", lambda: self.disk(cases))
        cases["far source, 16 copiers"] = self.copiers
        cases["far source"] = self.far
        for readers in 8, 32:
            cases[f"page pread {readers}"] = lambda n=readers: self.tools.through(
                self.mount("page"), "pread", n)
        self.sizes(cases)
        for name, command in (("one core", ()), ("one core, 256 MiB", ("memory",))):
            cases[name] = lambda c=command: self.small(bool(c))
        cases["read-ahead of 128 KiB"] = lambda: self.tools.through(
            self.models.mount("v2", "cache=page", "readahead=128"), "pread")
        cases.trying("rootless", lambda: self.rootless(cases))
        cases["8 streams, 8 files"] = self.streams
        for mode in "blocks", "slices":
            cases[f"page {mode} 8"] = lambda m=mode: self.pattern(m)

    def pattern(self, mode):
        """8 readers as vLLM has them; and how often each byte was decrypted."""
        with self.mount("page") as m:
            path = os.path.join(m.path, Models.NAME)
            result = self.tools.read(mode, path, 8, list(m.pids.values()))
            result["decrypted"] = m.status()["counters"]["bytes_decrypted"] / os.stat(path).st_size
        return result

    # ---- a cold disk ----

    def disk(self, cases):
        kind = kvfstest.run("stat", "-f", "-c", "%T", self.where, check=True).stdout.strip()
        if kind in IN_MEMORY:
            raise Missing(f"{self.where} is a {kind}, no disk: see --disk")
        cases["cold disk, ciphertext"] = lambda: self.cold(
            lambda path: self.tools.read("pread", os.path.join(path, Models.NAME)))
        for cache in cases.caches:
            cases[f"cold disk, {cache}"] = lambda c=cache: self.cold(lambda path: self.tools.through(
                kvfstest.Mount(path, keys=[self.models.reader], options=[f"cache={c}"]), "pread"))

    def cold(self, measured):
        """With the encrypted file on a disk, none of it in this machine's memory."""
        with tempfile.TemporaryDirectory(dir=self.where, prefix="kvfs-bench.") as path:
            os.chmod(path, 0o755)
            shutil.copytree(self.models.path("v2"), path, dirs_exist_ok=True)
            with open(os.path.join(path, Models.NAME), "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                left = int(kvfstest.run("fincore", "-nbo", "RES", file.name, check=True).stdout)
            assert left < MIB, f"{left} bytes stay in memory"
            return measured(path)

    # ---- no privilege ----

    def rootless(self, cases):
        if os.geteuid():
            raise Missing("who is not root measures nothing else")
        kvfstest.open_device()
        home = self.models.path("user")
        os.mkdir(home)
        shutil.copy(self.models.reader, home)
        os.mkdir(os.path.join(home, "mnt"))
        for path in home, os.path.join(home, "reader.jwks"), os.path.join(home, "mnt"):
            os.chown(path, USER, USER)
        mount = kvfstest.Mount(self.models.path("v2"), keys=[os.path.join(home, "reader.jwks")],
                               path=os.path.join(home, "mnt"), prefix=kvfstest.as_user(USER))
        for mode in "pread", "mmap":
            cases[f"rootless {mode}"] = lambda m=mode: self.tools.through(
                mount, m, prefix=kvfstest.as_user(USER))

    # ---- a source that is far away ----

    @contextlib.contextmanager
    def source(self):
        """The encrypted model behind a latency; nothing of it is cached."""
        path = self.models.path("far")
        os.makedirs(path, exist_ok=True)
        kvfstest.run(os.path.join(self.tools.programs, "slow_source"), self.models.path("v2"), path,
                     LATENCY_MS, MIB_PER_SECOND, check=True)
        try:
            yield path
        finally:
            kvfstest.run("umount", path, check=True)

    def copiers(self):
        with self.source() as path:
            return self.tools.read("pread", os.path.join(path, Models.NAME), 16)

    def far(self):
        with self.source() as path:
            mount = kvfstest.Mount(path, keys=[self.models.reader], options=["cache=page"])
            return self.tools.through(mount, "pread")

    # ---- little memory, one core ----

    def small(self, limited):
        """Everything on one core; with a limit, kvfs in a cgroup of 256 MiB."""
        enter = ["taskset", "-c", "0"]
        with contextlib.ExitStack() as stack:
            if limited:
                group = stack.enter_context(kvfstest.memory_group(SMALL))
                enter = kvfstest.in_group(group) + enter
            mount = kvfstest.Mount(self.models.path("v2"), keys=[self.models.reader],
                                   options=["cache=page"], prefix=enter)
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, {0})
            try:
                result = self.tools.through(mount, "pread")
            finally:
                os.sched_setaffinity(0, before)
            if limited:
                result["killed"] = kvfstest.oom_kills(group)
        return result

    # ---- memory, many files ----

    def streams(self):
        """The worker's own memory while 8 readers read 8 files, as a share of its bound."""
        directory = self.models.path("streams")
        os.mkdir(directory)
        try:
            for i in range(STREAMS):  # copies: links would be one file
                kvfstest.run("cp", self.models.file("v2" if self.models.small else "part"),
                             os.path.join(directory, f"model-{i}.safetensors"), check=True)
            return self.streams_of(directory)
        finally:
            shutil.rmtree(directory)

    def streams_of(self, directory):
        bound = 128 * MIB
        mount = kvfstest.Mount(directory, keys=[self.models.reader],
                               options=["cache=page", f"memory={bound >> 20}M"])
        with mount as m:
            before = resident_of(m.worker)
            threads = [threading.Thread(target=self.tools.read, args=(
                "pread", os.path.join(m.path, f"model-{i}.safetensors"))) for i in range(STREAMS)]
            used = cpu_of(m.pids.values())
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return {"share": (resident_of(m.worker) - before) / bound,
                    "cpu": cpu_of(m.pids.values()) - used}

    def sizes(self, cases):
        """A quarter of the model, and all of it twice over."""
        if self.models.small:
            return
        for name, model in (("quarter", "part"), ("double", "large")):
            cases[f"page pread, {name} size"] = lambda m=model: self.tools.through(
                self.mount("page", m), "pread")


def resident_of(pid):
    """The highest it was, bytes."""
    return int(kvfstest.proc_status(pid)["VmHWM"].split()[0]) * 1024
