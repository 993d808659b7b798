"""What the tests of the guard share: a guard that runs and is asked, processes that do things that
it has to find, and containers of runc and podman."""
import contextlib
import ctypes
import json
import os
import re
import shutil
import subprocess

from kvfstest import KVFS, Checks, Skip, die_with_parent, in_namespace, run, wait_for, workdir

checks = Checks()
check = checks.check
TOOL = os.path.join(os.environ.get("KVFS_TOOLS") or
                    os.path.join(os.path.dirname(os.path.dirname(KVFS)), "tests"), "guard_tool")
NEW_NS = ["unshare", "--mount", "--propagation", "private"]
found_so_far = set()


def path(*parts):
    return os.path.join(workdir(), *parts)


def write(name, text):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)
    return name


def profile(name, text):
    """A profile of the text's statements on the test's own times."""
    return write(path("profiles", name), f"profile {name}\n{text}\nperiod 100\ngap 1000\n")


class Tool:
    """A guard_tool that answers a line with a line."""

    def __init__(self, *arguments, prefix=(), env=None, cwd=None, preexec=die_with_parent):
        # LeakSanitizer traces at the end, which whoever traces already prevents.
        env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0", **(env or {})}
        # pylint: disable=consider-using-with, subprocess-popen-preexec-fn
        self.process = subprocess.Popen([*prefix, TOOL, *map(str, arguments)], env=env, cwd=cwd,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, errors="replace",
                                        preexec_fn=preexec)
        self.pid = self.process.pid

    def line(self):
        got = self.process.stdout.readline().rstrip("\n")
        assert got, f"{self.process.args} ended: {self.process.stderr.read()}"
        return got

    def send(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.line()

    def do(self, deed):
        assert (got := self.send(f"do {deed}")) == "ok", f"{deed}: {got}"

    def __enter__(self):
        return self

    def leave(self):
        """Ends it by the end of its input: behind a prefix that forks, a zombie that nobody takes would
        keep a PID namespace from ending."""
        self.process.stdin.close()
        self.process.stdin = None
        self.process.wait(10)

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


class Idle(Tool):
    """A process that can be made to do things: a reader, or one of kvfs's own."""

    def __init__(self, **more):
        super().__init__("idle", **more)
        self.inner = int(self.line())


class Guard(Tool):
    """A guard that runs. `quiet`: nothing may be found at the start."""

    def __init__(self, which, *arguments, quiet=True, **more):
        super().__init__("watch", which, *arguments, **more)
        self.ready = json.loads(self.line())
        assert not quiet or self.ready["state"] != "drift", said(self.ready)

    def ask(self, command):
        return json.loads(self.send(command))

    def do(self, deed):
        got = self.ask(f"do {deed}")
        assert got["rc"] == 0, f"{deed}: {got['error']}"

    def mount(self, *arguments):
        run("nsenter", "-t", self.pid, "-m", "mount", *arguments, check=True)

    def umount(self, *arguments):
        run("nsenter", "-t", self.pid, "-m", "umount", *arguments, check=True)

    def admits(self, pid, why=None):
        """Whether it admits this process; otherwise `why` is the check that refuses it."""
        got = self.ask(f"admit {pid}")
        assert got["rc"] == (0 if why else 1), f"{got['rc']}: {said(got)} {got['error']}"
        if why:
            assert why in ids(got), f"not {why}: {said(got)}"
            found_so_far.add(("reader", why))
        return got

    def finds(self, *want, who="own", ms=3000, command=None):
        """Waits for a finding; all of `want` have to be in it."""
        got = self.ask(command or f"wait {ms}")
        assert got["rc"] == 0, got["error"]
        missing = set(want) - ids(got, who)
        assert not missing, f"not found: {missing}; found: {said(got)}"
        found_so_far.update((who, one) for one in want)
        for finding in got["findings"]:
            assert finding["text"] and finding["fix"] and len(finding["text"]) < 224, finding
        return got

    def finds_nothing(self, ms=200):
        for command in ("full", f"wait {ms}"):
            got = self.ask(command)
            assert got["rc"] == 0 and not got["findings"], said(got)


def ids(report, who=None):
    return {f["id"] for f in report["findings"] if who in (None, f["who"])}


def said(report):
    return "; ".join(f"{f['who']} {f['id']}: {f['text']}" for f in report["findings"])


def keep(name="keep", more=""):
    """What held at the start has to go on holding, all of it."""
    return profile(name, f"base drift\n* keep own\n{more}")


def in_first_namespaces():
    """Numbers that are the same everywhere (include/linux/proc_ns.h)."""
    return [os.readlink(f"/proc/self/ns/{n}") for n in ("ipc", "uts")] == \
        ["ipc:[4026531839]", "uts:[4026531838]"]


def write_sys(name, value):
    with open(name, "w", encoding="ascii") as file:
        file.write(value)


@contextlib.contextmanager
def new_cgroup(kind="cgroup.procs"):
    """The path of a file by which a process (`tasks`: a thread, in version 1) is put into a cgroup
    that is made for it; who is in it goes back in the end."""
    top = next((d for d in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup")
                if os.access(f"{d}/{kind}", os.W_OK)), None)
    if not top:
        raise Skip("no cgroup that can be written")
    group = f"{top}/kvfs-test-{os.urandom(6).hex()}"  # pids are of a namespace
    os.mkdir(group)

    def removed():
        with open(f"{group}/{kind}", encoding="ascii") as left:
            for one in left.read().split():
                with contextlib.suppress(OSError):
                    write_sys(f"{top}/{kind}", one)
        with contextlib.suppress(OSError):
            os.rmdir(group)
        return not os.path.exists(group)
    try:
        yield f"{group}/{kind}"
    finally:
        wait_for(removed, 5, "the cgroup's end")


def nnp():
    die_with_parent()
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)


def copied(name):
    copy = path("copies", name)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    shutil.copy(TOOL, copy)
    return copy


# ---- Real containers ----

SECCOMP = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["mount", "umount2", "bpf", "kexec_load"], "action": "SCMP_ACT_ERRNO"}]}
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def rootfs():
    """Of guard_tool and what it is linked with."""
    root = path("rootfs")
    for one in ("bin", "proc", "sys", "dev", "tmp", "etc", "models", "encrypted", "usr", "drivers"):
        os.makedirs(f"{root}/{one}", exist_ok=True)
    shutil.copy(TOOL, root + "/bin/guard_tool")
    for library in re.findall(r"(/\S+) \(0x", run("ldd", TOOL, check=True).stdout):
        os.makedirs(root + os.path.dirname(library), exist_ok=True)
        shutil.copy(library, root + library)
    return root


def bundle(name, root, change=None):
    """An OCI bundle of a hardened container, `change`d."""
    def mount(at, kind, source, *options):
        return {"destination": at, "type": kind, "source": source, "options": list(options)}
    spec = {
        "ociVersion": "1.0.2", "hostname": "box", "root": {"path": root, "readonly": True},
        "process": {"terminal": False, "user": {"uid": 1000, "gid": 1000}, "cwd": "/",
                    "args": ["/bin/guard_tool", "watch", "strict", "source=/encrypted",
                             "after=dumpable 0"],
                    "env": ["PATH=/bin", "ASAN_OPTIONS=detect_leaks=0"], "noNewPrivileges": True,
                    "capabilities": {s: [] for s in ("bounding", "effective", "permitted",
                                                     "inheritable", "ambient")},
                    "rlimits": [{"type": "RLIMIT_CORE", "hard": 0, "soft": 0}]},
        "mounts": [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance",
                  "ptmxmode=0666", "mode=0620"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            mount("/tmp", "tmpfs", "tmpfs", "nosuid", "nodev", "exec", "mode=1777", "size=8m"),
            mount("/encrypted", "bind", path("box-source"), "bind", "ro", "nosuid", "nodev")],
        "linux": {"namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount", "network")],
                  "maskedPaths": MASKED, "readonlyPaths": READONLY, "seccomp": SECCOMP}}
    if change:
        change(spec)
    os.makedirs(path("box-source"), exist_ok=True)
    write(path("bundles", name, "config.json"), json.dumps(spec))
    return path("bundles", name)


class InBox:
    """A guard_tool in a container of runc."""

    def __init__(self, name, root, change=None):
        self.name = f"kvfs-test-{os.urandom(6).hex()}-{name}"
        self.pid = None
        where = bundle(name, root, change)
        state = path("runc")
        self.runc = ["runc", "--root", state]
        # pylint: disable=consider-using-with, super-init-not-called
        self.process = subprocess.Popen([*self.runc, "run", "--bundle", where, self.name],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, cwd=where,
                                        preexec_fn=die_with_parent)
        try:
            self.first = self.line()
            self.pid = json.loads(run(*self.runc, "state", self.name, check=True).stdout)["pid"]
        except (AssertionError, ValueError):
            self.__exit__()
            raise

    def __exit__(self, *_):
        run(*self.runc, "kill", self.name, "KILL")
        self.process.communicate()
        run(*self.runc, "delete", "-f", self.name)


class Box(InBox, Guard):
    """A guard in a container."""

    def __init__(self, name, root, change=None, quiet=True):
        super().__init__(name, root, change)
        self.ready = json.loads(self.first)
        assert not quiet or self.ready["state"] != "drift", said(self.ready)


class ReaderBox(InBox, Idle):
    """A reader in a container."""

    def __init__(self, name, root, change=None):
        def idle(spec):
            spec["process"]["args"][1:] = ["idle"]
            if change:
                change(spec)
        super().__init__(name, root, idle)


def in_box(pid, *script):
    """Runs a command of the host in the container's mount namespace: by file descriptor, since the
    container has no programs."""
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        failed = libc.setns(fd, 0x20000)
        for source, target, kind, flags in script:
            encoded = [None if x is None else x.encode() for x in (source, target, kind)]
            failed = failed or libc.mount(*encoded, flags, None)
        os._exit(1 if failed else 0)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the mount failed"


RO, NOSUID, NODEV, NOEXEC, REMOUNT, BIND = 1, 2, 4, 8, 32, 4096


class Pod(Guard):
    """A guard in a container of podman, hardened but for `more` options and without those in
    `less`."""

    hardened = ["--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt",
                "no-new-privileges", "--user", "1000:1000", "--tmpfs",
                "/tmp:rw,exec,nosuid,nodev,size=8m,mode=1777", "--network", "none", "--ulimit",
                "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--ulimit", "core=0:0"]

    def __init__(self, root, *more, runtime="runc", less=(), quiet=True):
        own = path("podman")
        os.makedirs(path("box-source"), exist_ok=True)
        command = ["podman", "--root", own + "/root", "--runroot", own + "/run", "--tmpdir",
                   own + "/tmp", "--runtime", runtime, "--cgroup-manager", "cgroupfs",
                   "--events-backend", "none"]
        options = [o for o in self.hardened if o not in less]
        self.remove = [*command, "rm", "-f", "-t", "0", "-a"]
        # crun takes a hybrid of both versions of cgroups for the second one.
        prefix = in_namespace("umount /sys/fs/cgroup/unified 2>/dev/null || :")
        # pylint: disable=consider-using-with, super-init-not-called
        self.process = subprocess.Popen(
            [*prefix, *command, "run", "-i", "--rm", *options, "-v",
             path("box-source") + ":/encrypted:ro,nosuid,nodev", "-e",
             "ASAN_OPTIONS=detect_leaks=0", *more, "--rootfs", root, "/bin/guard_tool", "watch",
             "strict", "source=/encrypted", "after=dumpable 0"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=die_with_parent)
        self.pid = None
        try:
            self.ready = json.loads(self.line())
        except AssertionError:
            self.__exit__()
            raise
        assert not quiet or self.ready["state"] != "drift", said(self.ready)

    def host_pid(self):
        found = run("pgrep", "-f", "guard_tool watch strict")
        return next(int(p) for p in found.stdout.split()
                    if os.path.basename(os.readlink(f"/proc/{p}/exe")) == "guard_tool")

    def __exit__(self, *_):
        self.process.stdin.close()  # which ends guard_tool
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            run(*self.remove)
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


def inside(pid):
    """The number of a process in its own PID namespace."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(next(line for line in status if line.startswith("NSpid:")).split()[-1])
