"""What the bench works with: a place that vanishes, models, mounts, programs, processor time and
memory. Uses the system tests' namespaces and mounts (kvfstest.py)."""
import concurrent.futures
import contextlib
import functools
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests/system"))

import kvfstest  # noqa: E402  pylint: disable=wrong-import-position

MIB = 1 << 20
CORES = len(os.sched_getaffinity(0))


class Missing(RuntimeError):
    """Raised where something can't be measured here, with the reason."""


def output(*command):
    """The last line that a program prints, as JSON."""
    result = kvfstest.run(*command, timeout=1800)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {result.stderr.strip()[-500:]}")
    return json.loads(result.stdout.splitlines()[-1])


def place(directory, pages):
    """Where all data goes. As root it is a tmpfs that only this process's mount namespace has, over
    /dev/shm (which may be small, in a container): nothing of it outlives the bench. What the report
    says of it; `pages` are "huge" or "small"."""
    own = os.geteuid() == 0 and directory == "/dev/shm"
    if own:
        huge = ",huge=always" if pages == "huge" else ""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=85%,mode=1777{huge}", "none",
                        directory], check=True)
    tempfile.tempdir = directory
    kvfstest.workdir()
    return f" (tmpfs, {pages} pages)" if own else ""


# ---- models ----

def write_model(path, tensors, size):
    """A safetensors file of BF16 tensors of `size` random bytes each."""
    header = {"__metadata__": {"format": "pt"}}
    for i in range(tensors):
        header[f"layers.{i}.weight"] = {"dtype": "BF16", "shape": [size // 64, 32],
                                        "data_offsets": [i * size, (i + 1) * size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for _ in range(tensors):
            for at in range(0, size, MIB):
                out.write(os.urandom(min(MIB, size - at)))


class Models:
    """`plain`, encrypted as `v1` and `v2`: one file of `mib` MiB in tensors of up to 64 MiB; `one`:
    a single tensor of half that, version 1; `part`: a quarter of it, `large`: twice; `many`: 200
    shards with 50,000 tensors. `small`: there is neither of the two before."""

    NAME = "model.safetensors"

    def __init__(self, mib, quick):
        self.keys = self.path("keys")
        self.shards, self.per_shard = (20, 50) if quick else (200, 250)
        self.small = quick
        kvfstest.kvfs("keygen", self.keys)
        self.make("plain", mib // min(mib, 64), min(mib, 64) * MIB)
        for version in 1, 2:
            self.encrypt("plain", f"v{version}", "--format-version", version)
        self.make("one-plain", 1, mib // 2 * MIB)
        self.encrypt("one-plain", "one", "--format-version", 1)
        shutil.rmtree(self.path("one-plain"))
        for name, size in (("part", mib // 4), ("large", 2 * mib)) if not quick else ():
            self.make(name + "-plain", size // 64, 64 * MIB)
            self.encrypt(name + "-plain", name)
            shutil.rmtree(self.path(name + "-plain"))
        os.mkdir(self.path("many-plain"))
        for i in range(self.shards):
            write_model(self.path("many-plain", f"model-{i:05d}.safetensors"), self.per_shard, 1024)
        self.encrypt("many-plain", "many")

    @staticmethod
    def path(*parts):
        return os.path.join(kvfstest.workdir(), *parts)

    def file(self, model):
        return self.path(model, self.NAME)

    @property
    def reader(self):
        return os.path.join(self.keys, "reader.jwks")

    def make(self, name, tensors, size):
        os.mkdir(self.path(name))
        write_model(self.file(name), tensors, size)

    def encrypt(self, model, to, *options):
        kvfstest.kvfs("encrypt", "-q", self.path(model), "-o", self.path(to), "--key",
                      os.path.join(self.keys, "owner.jwks"), *options)

    def options(self, cache):
        """Resident mode has room for the model, however little the data beside it leaves."""
        room = f",resident={2 * os.stat(self.file('plain')).st_size >> 20}M"
        return f"cache={cache}{room if cache == 'resident' else ''}"

    def mount(self, model, *options):
        return kvfstest.Mount(self.path(model), keys=[self.reader], options=options)


class GoCryptFS:
    """The plain model in a gocryptfs; `with` mounts it."""

    def __init__(self, models):
        if not shutil.which("gocryptfs"):
            raise Missing("gocryptfs is not installed")
        self.source, self.path = models.path("gocryptfs"), models.path("gocryptfs-mnt")
        self.password = models.path("password")
        self.pids, self.command = {}, []
        for directory in self.source, self.path:
            os.mkdir(directory)
        with open(self.password, "w", encoding="ascii") as out:
            out.write("bench\n")
        kvfstest.run("gocryptfs", "-q", "-init", "-passfile", self.password, self.source,
                     check=True)
        with self:
            shutil.copy(models.file("plain"), self.path)

    def __enter__(self):
        kvfstest.run("gocryptfs", "-q", "-passfile", self.password, self.source, self.path,
                     check=True)
        self.pids = {"gocryptfs": pid for pid in pids_of("gocryptfs", self.path)}
        return self

    def __exit__(self, *exception):
        kvfstest.run("fusermount3", "-u", self.path, check=True)
        kvfstest.wait_for(lambda: not any(map(kvfstest.alive, self.pids.values())), 20, "its end")


def pids_of(name, word):
    """The processes of that name that have this word in their command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/comm", encoding="utf-8") as comm, \
                    open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as cmdline:
                if comm.read().strip() == name and word in cmdline.read().split("\0"):
                    found.append(int(pid))
    return found


# ---- processor time, memory ----

def cpu_of(pids):
    """User and system seconds that these processes have used."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                fields = stat.read().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy(seconds=0.2):
    """What share of the machine is in use."""
    def times():
        with open("/proc/stat", encoding="ascii") as stat:
            fields = [int(x) for x in stat.readline().split()[1:]]
        return sum(fields), fields[3] + fields[4]
    total, idle = times()
    time.sleep(seconds)
    total_after, idle_after = times()
    return 1 - (idle_after - idle) / max(1, total_after - total)


def wait_for_quiet(most):
    """Until others use less than a tenth of the machine; no longer than that many seconds."""
    deadline = time.monotonic() + most
    while most and busy() > 0.1 and time.monotonic() < deadline:
        time.sleep(0.3)


def have_memory_ready(size):
    """Touches as much free memory and gives it back, until that is fast. A virtual machine's host
    may have taken free pages away (free page reporting), and to bring a huge page back takes ten
    times as long as to clear one: whoever came first would pay, and nothing else be measured."""
    populate_write = 23  # of madvise(2), Linux 5.14
    with open("/proc/meminfo", encoding="ascii") as f:
        free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in f}["MemFree"]
    size = min(size, free // 2)
    for _ in range(3):
        start = time.monotonic()
        with contextlib.suppress(OSError), mmap.mmap(
                -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(populate_write)
        if size / (time.monotonic() - start) > 4e9:
            return


class MemoryGroup:
    """A cgroup whose peak is the memory of all processes in it: their own, what they wrote to a
    tmpfs, and the page cache that they filled. `directory` is None where there is no cgroup to be
    had: then nothing is measured."""

    def __init__(self):
        self.directory = None
        bases = [("/sys/fs/cgroup/memory", "memory.max_usage_in_bytes"),
                 ("/sys/fs/cgroup", "memory.peak")]
        for base, peak in bases:
            directory = f"{base}/kvfs-bench-{os.getpid()}-{time.monotonic_ns()}"
            if not os.path.exists(base + "/cgroup.procs"):
                continue
            with contextlib.suppress(OSError):
                os.mkdir(directory)
                self.directory, self.peak_file = directory, os.path.join(directory, peak)
                if os.path.exists(self.peak_file):
                    return
                os.rmdir(directory)
                self.directory = None

    def __enter__(self):
        return self

    def peak(self):
        if not self.directory:
            return None
        with open(self.peak_file, encoding="ascii") as file:
            return int(file.read())

    def __exit__(self, *exception):
        if self.directory:
            with contextlib.suppress(AssertionError):
                kvfstest.wait_for(lambda: not kvfstest.read_all(self.directory + "/cgroup.procs"),
                                  10, "the cgroup's emptying")
            with contextlib.suppress(OSError):
                os.rmdir(self.directory)


# ---- measuring ----

def expect_resident(mount):
    """Resident mode falls back silently; then something else would have been measured."""
    if "cache=resident" in " ".join(mount.command):
        modes = {f["cache"] for f in mount.status()["files"] if f["paths"][0].endswith(Models.NAME)}
        if modes != {"resident"}:
            raise RuntimeError(f"the page cache served: {modes}")


class Tools:
    """The C programs of the bench."""

    def __init__(self, build, models):
        self.models = models
        self.programs = os.path.join(build, "tests")

    def read(self, mode, path, threads=1, daemons=(), prefix=()):
        """One reading program; "cpu" is its own and the daemons'."""
        before = cpu_of(daemons)
        result = output(*prefix, os.path.join(self.programs, "reader"), mode, path, threads)
        if "cpu" in result:
            result["cpu"] += cpu_of(daemons) - before
        return result

    def through(self, mount, mode, threads=1, prefix=()):
        """A reading program through a mount that was just made: nothing is cached in it."""
        with mount:
            have_memory_ready(3 * os.stat(self.models.file("plain")).st_size // 2)
            result = self.read(mode, os.path.join(mount.path, Models.NAME), threads,
                               list(mount.pids.values()), prefix)
            expect_resident(mount)
            return result

    def own(self, mode, threads, crypto="auto"):
        return output("env", f"KVFS_CRYPTO={crypto}", os.path.join(self.programs, "own"), mode,
                      self.models.file("v2"), self.models.reader, threads)

    def ciphers(self):
        """AES-256-GCM on one core: {backend: GB/s}, and which one decrypts."""
        result = kvfstest.run(os.path.join(self.programs, "aead"), check=True, timeout=300)
        mine = [x for x in json.loads(result.stdout)
                if x["alg"] == "aes256gcm" and x["operation"] == "open"]
        return ({x["backend"]: x["gb_per_second"] for x in mine},
                next(x["backend"] for x in mine if x["chosen"]))


def copy(path, to, threads=CORES):
    """What it costs to write a file's bytes at all: 2 MiB at a time, by all cores."""
    start = time.monotonic()
    size = os.stat(path).st_size
    source, target = os.open(path, os.O_RDONLY), os.open(to, os.O_WRONLY | os.O_CREAT, 0o600)

    def share(number):
        buffer = memoryview(bytearray(2 * MIB))
        for at in range(number * 2 * MIB, size, threads * 2 * MIB):
            got = os.preadv(source, [buffer], at)
            os.pwrite(target, buffer[:got], at)
    try:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            list(pool.map(share, range(threads)))
        return {"seconds": time.monotonic() - start, "bytes": size}
    finally:
        os.close(source)
        os.close(target)
        os.unlink(to)


@functools.lru_cache(maxsize=None)
def cpu_features():
    """The processor's name and the flags that decide which cipher library is fast."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = fields.get("flags", "").split()
    return fields.get("model name", "unknown processor"), {
        "AVX-512": "avx512f" in flags, "VAES": "vaes" in flags, "VPCLMULQDQ": "vpclmulqdq" in flags}
