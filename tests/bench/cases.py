"""What is measured: {name: function}, in the order of a round. A result has "seconds" and mostly
"bytes"; "cpu": seconds of all processes; "warm": seconds of a second time; "memory": bytes."""
import os
import shutil
import time

from conditions import Conditions
from loaders import Loaders, has_warm
from measure import CORES, GoCryptFS, Missing, Models, Tools, copy, kvfstest
from revoking import Revoking

MODES = ("pread", "mmap")


class Cases(dict):
    """All that can be measured here. `left_out` says what can't, and why."""

    def __init__(self, args):
        super().__init__()
        self.left_out = []
        self.loaders = None
        self.quick = args.quick
        self.models = Models(args.mib, args.quick)
        self.tools = Tools(args.build, self.models)
        self.caches = ["page"]
        if self.resident_works():
            self.caches.append("resident")
        self.reading()
        self.trying("gocryptfs", self.gocryptfs)
        if args.no_loaders:
            self.left_out.append("loaders: as asked")
        else:
            self.trying("loaders", self.loading)
        self.writing()
        self["many shards"] = self.many_shards
        Conditions(self, args.disk)
        Revoking(self)

    def close(self):
        if self.loaders:
            self.loaders.close()

    def trying(self, what, function):
        try:
            function()
        except Missing as why:
            self.left_out.append(f"{what}: {why}")

    def mount(self, cache, model="v2"):
        return self.models.mount(model, self.models.options(cache))

    def resident_works(self):
        with self.mount("resident") as m, open(os.path.join(m.path, Models.NAME), "rb") as file:
            file.read(1)
            mode = next(f["cache"] for f in m.status()["files"]
                        if f["paths"][0].endswith(Models.NAME))
        if mode != "resident":
            self.left_out.append("resident mode: root, and a kernel with FUSE passthrough, are "
                                 "needed")
        return mode == "resident"

    def reading(self):
        tools, plain = self.tools, self.models.file("plain")
        for threads in 1, 2:
            self[f"own {threads}"] = lambda n=threads: tools.own("extents", n)
            self[f"own by OpenSSL {threads}"] = lambda n=threads: tools.own("extents", n, "openssl")
            for mode in MODES:
                self[f"plain {mode} {threads}"] = lambda m=mode, n=threads: tools.read(m, plain, n)
                for cache in self.caches:
                    self[f"{cache} {mode} {threads}"] = lambda c=cache, m=mode, n=threads: \
                        tools.through(self.mount(c), m, n)
            self[f"page direct {threads}"] = lambda n=threads: \
                tools.through(self.mount("page"), "direct", n)
        for mode in "fault", "first":
            self[f"page {mode}"] = lambda m=mode: tools.through(self.mount("page"), m)
        for cache in self.caches:
            self[f"{cache} version 1, first touch"] = lambda c=cache: self.first_touch(c)

    def first_touch(self, cache):
        """The first byte of a version 1 tensor authenticates all of it."""
        result = self.tools.through(self.mount(cache, "one"), "first")
        return dict(result, bytes=os.stat(self.models.file("one")).st_size)

    def gocryptfs(self):
        mount = GoCryptFS(self.models)
        for mode in MODES:
            for threads in 1, 2:
                self[f"gocryptfs {mode} {threads}"] = lambda m=mode, n=threads: \
                    self.tools.through(mount, m, n)
        for mode in "fault", "first":
            self[f"gocryptfs {mode}"] = lambda m=mode: self.tools.through(mount, m)

    def loading(self):
        self.loaders = loaders = Loaders(self.models)
        self["load plain"] = loaders.plain
        for version in 1, 2:
            self[f"load reference, version {version}"] = lambda v=version: loaders.reference(v)
            for cache in self.caches:
                self[f"load {cache}, version {version}"] = lambda c=cache, v=version: \
                    loaders.through(self.mount(c, f"v{v}"))
        for cache in self.caches:
            self[f"mount, load: {cache}"] = lambda c=cache: loaders.mounting(self.models.options(c))
            if has_warm():
                self[f"mount, warm, load: {cache}"] = lambda c=cache: \
                    loaders.mounting(self.models.options(c), warm=True)
        if not has_warm():
            self.left_out.append("mount, warm, load: this kvfs has no `warm`")
        self["decrypt, load: reference"] = loaders.decrypting

    def writing(self):
        self["encrypt"] = self.encrypt
        self["verify"] = self.verify
        self["cipher encrypts"] = lambda: self.tools.own("encrypt", CORES)
        self["cipher decrypts"] = lambda: self.tools.own("open", CORES)
        self["OpenSSL's cipher decrypts"] = lambda: self.tools.own("evp", CORES)
        self["read"] = lambda: self.tools.own("read", CORES)
        self["copy"] = lambda: copy(self.models.file("plain"), self.models.path("copy"))

    def encrypt(self):
        start = time.monotonic()
        self.models.encrypt("plain", "again")
        seconds = time.monotonic() - start
        shutil.rmtree(self.models.path("again"))
        return {"seconds": seconds, "bytes": os.stat(self.models.file("plain")).st_size}

    def verify(self):
        start = time.monotonic()
        kvfstest.kvfs("verify", "-q", self.models.path("v2"), "--key", self.models.reader)
        return {"seconds": time.monotonic() - start,
                "bytes": os.stat(self.models.file("v2")).st_size}

    def many_shards(self):
        """Mount, `ls -l`, then every shard opened; what the worker holds of its own by each."""
        m = self.models.mount("many", "cache=page")
        start = time.monotonic()
        with m:
            result = {"seconds": time.monotonic() - start}
            before = anonymous(m.worker)
            start = time.monotonic()
            kvfstest.run("ls", "-l", m.path, check=True)
            result["ls"] = time.monotonic() - start
            names = [n for n in os.listdir(m.path) if n.endswith(".safetensors")]
            start = time.monotonic()
            files = [os.open(os.path.join(m.path, n), os.O_RDONLY) for n in names]
            result["open"] = time.monotonic() - start
            result["memory"] = ((anonymous(m.worker) - before)
                                / (self.models.shards * self.models.per_shard))
            for fd in files:
                os.close(fd)
        return result


def anonymous(pid):
    """Bytes of a process's memory that no file backs."""
    return int(kvfstest.proc_status(pid)["RssAnon"].split()[0]) * 1024
