"""What the system tests share: checks that print one line each, a working directory, mounts.

A script that imports this runs again in mount and PID namespaces of its own (as root), so that
whatever it leaves behind goes away with it. The kvfs under test is $KVFS, or the first argument.
Lines are `ok NAME`, `FAIL NAME: why`, `skip NAME: why`, and `note …`.
"""
import atexit
import contextlib
import ctypes
import errno
import functools
import itertools
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FINDING = re.compile(r"ERROR: \w+Sanitizer|WARNING: ThreadSanitizer|runtime error:")
SECONDS = float(os.environ.get("KVFS_SECONDS", "5"))
TIMEOUT = float(os.environ.get("KVFS_TEST_TIMEOUT", 1000 + 5 * SECONDS))  # ctest's own is shorter


def _binary():
    if len(sys.argv) > 1 and os.access(sys.argv[1], os.X_OK):
        return os.path.abspath(sys.argv[1])
    return os.path.abspath(os.environ.get("KVFS", os.path.join(ROOT, "build/release/kvfs/kvfs")))


KVFS = _binary()


def _enter_namespaces():
    if os.geteuid() != 0 or os.environ.get("KVFSTEST_INSIDE"):
        return
    os.environ["KVFSTEST_INSIDE"] = "1"
    os.environ["KVFS"] = KVFS
    test = os.path.basename(sys.argv[0]).removesuffix(".py") + f".{os.getpid()}"
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "LSAN_OPTIONS"):
        if name in os.environ:  # in a new namespace pids come again, and so would a report's name
            os.environ[name] = re.sub(r"(log_path=[^:]*/)", rf"\1{test}.", os.environ[name])
    sys.stdout.flush()
    os.execvp("unshare", ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                          "--propagation", "private", sys.executable] + sys.argv)


_enter_namespaces()


@functools.lru_cache(maxsize=None)
def workdir():
    """A directory of this run, that everybody may enter; removed at the end."""
    path = tempfile.mkdtemp(prefix="kvfs-test.")
    os.chmod(path, 0o755)
    owner = os.getpid()

    def remove():
        if os.getpid() == owner:
            shutil.rmtree(path, ignore_errors=True)
    atexit.register(remove)
    return path


@functools.lru_cache(maxsize=None)
def sanitized():
    """Whether kvfs was built with a sanitizer, which makes it slow."""
    with open(KVFS, "rb") as file:
        data = file.read()
    return b"__asan_init" in data or b"__tsan_init" in data


class Skip(Exception):
    """Raised inside a check that can't be done here, with the reason."""


class Checks:
    """Counts and prints. A check fails by any exception; what follows it still runs."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    @contextlib.contextmanager
    def check(self, name):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except Skip as why:
            self.skip(name, why)
        except Exception as error:  # pylint: disable=broad-except
            self.failed += 1
            frames = traceback.extract_tb(error.__traceback__)
            where = next((f for f in reversed(frames) if f.filename == sys.argv[0]), frames[-1])
            why = f"{type(error).__name__}: {error}".strip().replace("\n", " | ")
            print(f"FAIL {name}: {why} (line {where.lineno})", flush=True)
        else:
            self.passed += 1
            print(f"ok {name}", flush=True)

    def skip(self, name, why):
        self.skipped += 1
        print(f"skip {name}: {why}", flush=True)

    @staticmethod
    def note(text):
        print(f"note {text}", flush=True)

    def finish(self):
        """The script's exit code."""
        print(f"{self.passed} ok, {self.failed} failed, {self.skipped} skipped", flush=True)
        if self.failed:
            return 1
        return 77 if self.skipped and not self.passed else 0


def run(*command, check=False, timeout=60, **more):
    """A command's result with stdout and stderr as text."""
    result = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                            errors="replace", timeout=timeout, check=False, **more)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(str(c) for c in command)}: exit {result.returncode}: "
                             f"{result.stdout}{result.stderr}".strip())
    return result


def kvfs(*arguments, check=True, **more):
    more.setdefault("timeout", 600)
    return run(KVFS, *arguments, check=check, **more)


def wait_for(condition, timeout=5.0, what="it"):
    """The first true value of condition(); AssertionError if there is none in time, of which a
    sanitizer gets three times as much."""
    timeout *= 3 if sanitized() else 1
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        time.sleep(0.01)


def alive(pid):
    """Whether a process runs; a zombie, which nobody waits for here, does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def proc_status(pid):
    """/proc/PID/status as a dictionary."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        return dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)


def memory_of(pid):
    """What a process has in memory, part by part."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps, \
            open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            begin, end = (int(n, 16) for n in line.split()[0].split("-"))
            if "r" in line.split()[1] and "[v" not in line and end - begin < 1 << 30:
                try:
                    memory.seek(begin)
                    yield memory.read(end - begin)
                except (OSError, ValueError):
                    continue


def found_in(where, known):
    """Which of {name: bytes} the memory of a process (by pid), or something of bytes, holds."""
    parts = list(memory_of(where)) if isinstance(where, int) else [where]
    return {name for name, value in known.items() if any(value in part for part in parts)}


def mounts_at(path):
    """(major:minor, file system type, source) of all that is mounted there, topmost last. Touches
    nothing but /proc."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split()
            after = fields.index("-")
            if fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape") == path:
                found.append((fields[2], fields[after + 1], fields[after + 2]))
    return found


def no_mount(path):
    """Neither mounted nor dead: the directory beneath answers."""
    assert not mounts_at(path), f"still mounted: {mounts_at(path)}"
    os.listdir(path)


def processes(mountpoint):
    """Names and pids of the processes behind a mount: supervisor, keeper, worker."""
    found = {}
    # A child that has not come to its own name yet has its parent's: the parent is older.
    for pid in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                name = file.read().strip()
        except OSError:
            continue
        if os.fsencode(mountpoint) in words and name.startswith("kvfs-") and alive(pid):
            found.setdefault(name[len("kvfs-"):], int(pid))
    return found


def abort(device):
    """Ends a FUSE connection whatever state it is in, by major:minor."""
    control = "/sys/fs/fuse/connections"
    if not os.path.ismount(control):
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=False)
    with contextlib.suppress(OSError):
        with open(f"{control}/{int(device.split(':')[1])}/abort", "w", encoding="ascii") as file:
            file.write("1")


def _abort_all():
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        for line in table:
            if " - fuse.kvfs " in line:
                abort(line.split()[2])


def _too_late():
    print(f"FAIL {os.path.basename(sys.argv[0])}: not done after {TIMEOUT} s", flush=True)
    _abort_all()
    os._exit(1)


def _words_of(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().decode(errors="replace").split("\0")
    return []


class HungSource:
    """A directory behind a FUSE file system, at `path`, whose reads can hang, and then not be
    interrupted; they bypass its page cache. Opens go on."""

    def __init__(self, directory, path):
        tool = os.path.join(os.environ.get("KVFS_TOOLS") or
                            os.path.join(os.path.dirname(os.path.dirname(KVFS)), "tests"),
                            "slow_source")
        self.path = path
        os.makedirs(path, exist_ok=True)
        run(tool, directory, path, 0, 0, "direct", check=True)
        self.pid = next(int(pid) for pid in filter(str.isdigit, os.listdir("/proc"))
                        if path in _words_of(pid) and tool in _words_of(pid))

    def hang(self):
        os.kill(self.pid, signal.SIGUSR1)

    def go_on(self):
        os.kill(self.pid, signal.SIGUSR2)

    def end(self):
        self.go_on()
        run("umount", "-l", self.path, check=True)


def turns(count):
    """That many turns; in a soak (tests/soak), as many more as KVFS_SECONDS give."""
    deadline = time.monotonic() + (SECONDS if os.environ.get("KVFS_SOAK") else 0)
    return itertools.takewhile(lambda turn: turn < count or time.monotonic() < deadline,
                               itertools.count())


def read_all(path):
    with open(path, "rb") as file:
        return file.read()


def close_all(path):
    """Closes all that this process has open there: Python's mmap keeps a descriptor of its own."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == path:
                os.close(int(fd))


def map_touched(fd, size, more=0):
    """The address of a private mapping, of which every page was touched."""
    address = LIBC.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ | more, mmap.MAP_PRIVATE, fd,
                        ctypes.c_long(0))
    assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
    populate_read = 22  # of madvise(2), Linux 5.14: an error where touching would be SIGBUS
    if LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), populate_read):
        raise OSError(ctypes.get_errno(), "a mapping can't be touched")
    return address


def lock(address, size):
    if LIBC.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)):
        raise OSError(ctypes.get_errno(), "mlock")


def unmap(address, size):
    LIBC.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def take_bytes(address, count=64):
    """Bytes of a mapping, or the errno's name: by way of a pipe, for which SIGBUS is EFAULT."""
    out, into = os.pipe()
    try:
        if LIBC.write(into, ctypes.c_void_p(address), ctypes.c_size_t(count)) < 0:
            return errno.errorcode[ctypes.get_errno()]
        return os.read(out, count)
    finally:
        os.close(out)
        os.close(into)


def outcome(path):
    """The content, or the errno's name."""
    try:
        return read_all(path)
    except OSError as error:
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno]


def as_user(uid, gid=None):
    """A prefix that makes a command an ordinary user's."""
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid if gid is None else gid),
            "--clear-groups"]


def in_namespace(script):
    """A prefix that runs a shell script in a mount namespace of its own before the command."""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script + '; exec "$@"',
            "sh"]


def open_device():
    """Lets everybody in this mount namespace open /dev/fuse, as on most machines."""
    if os.stat("/dev/fuse").st_mode & 0o666 != 0o666:
        directory = os.path.join(workdir(), "dev")
        os.mkdir(directory)
        run("mount", "-t", "tmpfs", "none", directory, check=True)
        node = os.path.join(directory, "fuse")
        os.mknod(node, 0o20666, os.stat("/dev/fuse").st_rdev)
        os.chmod(node, 0o666)
        run("mount", "--bind", node, "/dev/fuse", check=True)
        run("umount", "-l", directory, check=True)  # or the working directory could not be removed


def write_long(directory, mib):
    """One safetensors file of two tensors, which are long messages in version 1."""
    os.mkdir(directory)
    size = mib // 2 * (1 << 20) - 1000
    header = json.dumps({n: {"dtype": "U8", "shape": [size],
                             "data_offsets": [i * size, (i + 1) * size]}
                         for i, n in enumerate("ab")}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(os.path.join(directory, "long.safetensors"), "wb") as out:
        out.write(len(header).to_bytes(8, "little") + header + os.urandom(2 * size))


@contextlib.contextmanager
def memory_group(limit):
    """A cgroup, of either version, of so many bytes; Skip where there is none to be had."""
    bases = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
    for base, file in bases:
        group = f"{base}/kvfs-test-{os.getpid()}"
        if not os.path.exists(base + "/cgroup.procs"):
            continue
        os.mkdir(group)
        if os.path.exists(os.path.join(group, file)):
            break
        os.rmdir(group)
    else:
        raise Skip("no cgroup with a limit of memory is to be had")
    try:
        with open(os.path.join(group, file), "w", encoding="ascii") as out:
            out.write(str(limit))
        yield group
    finally:
        wait_for(lambda: not read_all(group + "/cgroup.procs"), 10, "the cgroup's emptying")
        os.rmdir(group)


def in_group(group):
    """A prefix that runs a command in a cgroup."""
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]


def oom_kills(group):
    for name in "memory.oom_control", "memory.events":
        path = os.path.join(group, name)
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                return int(dict(line.split() for line in file).get("oom_kill", 0))
    return 0


class Model:
    """An encrypted model of some shards with two side files, and its keys. Several in one test need
    names; `options` are kvfs encrypt's. shards=0: write_long() instead."""

    def __init__(self, mib=64, shards=2, name="", options=()):
        self.keys, self.plain, self.encrypted = (os.path.join(workdir(), name + part)
                                                 for part in ("keys", "plain", "encrypted"))
        self.owner = self.keys + "/owner.jwks"
        self.reader = self.keys + "/reader.jwks"
        kvfs("keygen", self.keys)
        if shards:
            run(os.path.join(ROOT, "packaging/make-model"), self.plain, "--shards", shards,
                "--mib", mib, check=True)
        else:
            write_long(self.plain, mib)
        kvfs("encrypt", "-q", self.plain, "-o", self.encrypted, "--key", self.owner, *options)
        self.shards = sorted(n for n in os.listdir(self.plain) if n.endswith(".safetensors"))
        self.shard = self.shards[0]

    def mount(self, *options, **more):
        return Mount(self.encrypted, keys=[self.reader], options=options, **more)

    def plain_bytes(self, number=0):
        return read_all(os.path.join(self.plain, self.shards[number]))

    def shown(self, m, number=0):
        return os.path.join(m.path, self.shards[number])


def die_with_parent():
    """For preexec_fn: no reader outlives its test."""
    LIBC.prctl(1, signal.SIGKILL)


class Mount:
    """`with Mount(source, keys=[…], options=[…]) as m:` mounts at m.path and unmounts.

    `arguments` go to the command line as they are; `prefix` is put before the command (setpriv …),
    `path` is where to mount (default: a new directory). m.output is what mounting printed."""

    count = 0

    def __init__(self, source, keys=(), options=(), arguments=(), path=None, prefix=(), env=None):
        Mount.count += 1
        self.path = path or os.path.join(workdir(), f"mnt{Mount.count}")
        os.makedirs(self.path, exist_ok=True)
        self.prefix = list(prefix)
        self.env = env
        self.command = self.prefix + [KVFS, "mount", str(source), self.path]
        for key in keys:
            self.command += ["--key", key]
        if options:
            self.command += ["-o", ",".join(options)]
        self.log = next((o[len("log="):] for o in options if o.startswith("log=")), None)
        if sanitized() and not self.log and not prefix:
            self.log = os.path.join(workdir(), f"log{Mount.count}")
            self.command += ["--log", self.log]
        self.command += list(arguments)
        self.output = ""
        self.device = None
        self.pids = {}

    def mount(self):
        result = run(*self.command, env=self.env)
        self.output = result.stdout + result.stderr
        assert result.returncode == 0, f"mount: exit {result.returncode}: {self.output.strip()}"
        mounted = mounts_at(self.path)
        assert mounted and mounted[-1][1] == "fuse.kvfs", f"nothing mounted: {self.output.strip()}"
        self.device = mounted[-1][0]
        self.pids = processes(self.path)
        return self

    @property
    def supervisor(self):
        return self.pids["supervisor"]

    @property
    def worker(self):
        return self.pids["worker"]

    @property
    def keeper(self):
        return self.pids["keeper"]

    @property
    def mounted(self):
        return any(device == self.device for device, _, _ in mounts_at(self.path))

    def status(self):
        with open(os.path.join(self.path, ".kvfs/status.json"), encoding="utf-8") as file:
            return json.load(file)

    def umount(self, *arguments, check=True):
        return run(*self.prefix, KVFS, "umount", self.path, *arguments, check=check, env=self.env)

    def wait_gone(self, timeout=5.0):
        """Until neither mount nor processes are left."""
        wait_for(lambda: not self.mounted and not any(alive(p) for p in self.pids.values()),
                 timeout, f"the end of {self.path} ({self.pids})")

    def findings(self):
        """What a sanitizer said of supervisor or worker, which ended by it."""
        if not self.log or not os.path.exists(self.log):
            return ""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
        first = next((i for i, line in enumerate(lines) if FINDING.search(line)), None)
        return "" if first is None else "".join(lines[first:first + 60])

    def __enter__(self):
        return self.mount()

    def __exit__(self, kind, value, trace):
        if self.mounted and not any(alive(p) for p in self.pids.values()):
            self.umount("-f", "-l", check=False)  # without -f it may wait for a dead worker's thread
        if self.mounted:
            result = self.umount(check=False)
            if result.returncode:
                print(f"note umount of {self.path}: {result.stderr.strip()}", flush=True)
                self.umount("-l", check=False)
        try:
            self.wait_gone(20)
        except AssertionError as error:
            abort(self.device)
            for pid in self.pids.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if kind is None:
                raise AssertionError(f"{error}; aborted") from None
        found = self.findings()
        assert not found, f"a sanitizer's report: {found}"
        return False


_watchdog = threading.Timer(TIMEOUT, _too_late)
_watchdog.daemon = True
_watchdog.start()
