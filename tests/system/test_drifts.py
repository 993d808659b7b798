#!/usr/bin/env python3
"""What drifts while a model is read, in hardened containers under `strict`: kvfs, unprivileged, with
keys from a real key server, and a reader that goes on reading. Each drift is provoked for real and has
to seal the mount; how long the reader still got something is measured, by open, read, old descriptor,
mapping and locked mapping. Then the lease is over, and both sides have a line that names the check.

In tests/run a selection of the drifts by runc, and of that one by podman; with KVFS_SOAK all of them;
with names as arguments, those."""
import contextlib
import ctypes
import errno
import glob
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import podtest
from guardtest import BIND, NODEV, NOEXEC, NOSUID, REMOUNT, TOOL, Tool, inside, new_cgroup
from ksclient import Server
from kspod import Published, World
from kvfstest import Checks, Skip, kvfs, mounts_at, run, sanitized, wait_for, workdir
from podtest import PACKAGING, Pod, PodmanPod, daemon_rootfs, rootfs, runc, why_no_podman

PERIOD, GAP, FULL = 1.0, 5.0, 10.0  # of the profile; what costs more is looked at every tenth time
# "leaves": a process whose first thread is gone may be just ending, and is given time for it.
LIMITS = {"event": 0.05, "leaves": 3 * PERIOD + 0.1, "period": PERIOD + 0.1, "full": FULL * PERIOD + 0.5, "gap": GAP + 1.1}
REFUSALS = (errno.EKEYREVOKED, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED)
WAYS = ("open", "new", "old", "mapped", "locked")
MIB = 16
SILENT = "the guard is silent"
SOAK = bool(os.environ.get("KVFS_SOAK"))

checks = Checks()
check = checks.check


def tool_rootfs():
    """libgcc_s is for the end of a thread."""
    return rootfs("rootfs-tool", TOOL, TOOL + ":/usr/bin/other_tool",
                  *(f"{path}:{path}" for path in glob.glob("/usr/lib/*/libgcc_s.so.1")))


class Reader(podtest.Reader):
    """guard_tool read, in a container."""

    def __init__(self, container):
        super().__init__(container)
        line = container.process.stdout.readline().decode().strip()
        assert line == "reading", f"{line} {self.said()}"

    def state(self):
        return json.loads(self.container.ask("state"))

    def do(self, deed, answer="ok"):
        got = self.container.ask(f"do {deed}")
        assert re.fullmatch(answer, got), f"{deed}: {got}"


class Scene:
    """Mounter, daemon, reader. The mounter stays when the others begin anew. The file of the audit is
    on the daemon's tmpfs, and held here, whatever is mounted over it."""

    audit = None

    def start_reader(self):
        self.reader = Reader(self.reads(tool_rootfs(), "/usr/bin/guard_tool", "read", self.path()))

    def begin(self):
        if self.mounter and self.mounter.poll() is not None:
            with open(self.mounter_log, encoding="utf-8") as log:
                raise AssertionError(f"the mounter ended: {self.mounter.poll()} {log.read()}")
        if not self.mounter:
            self.start_mounter()
        self.start_daemon()
        self.audit = open(f"/proc/{self.daemon.pid}/root/tmp/audit", "rb")
        self.start_reader()

    def end(self):
        for container in (self.reader, self.daemon):
            if container:
                container.end()
        self.reader = self.daemon = None
        if self.audit:
            self.audit.close()
        self.audit = None
        wait_for(lambda: not mounts_at(self.target), 10, "unmounting")

    def one(self, name):
        """The host's number of a process of the daemon's."""
        return self.pids()["kvfs-" + name]


class RuncScene(Scene, Pod):
    pass


class PodmanScene(Scene, PodmanPod):
    pass


# ---- what the host does ----

# s.undo is undone before kvfs and the reader end, s.after when they have.

def inside_mounts(pid, *calls):
    """mount(source, target, type, flags) or umount2(target, flags), as root, in the mount namespace
    of a process: by a child of ours, which takes a millisecond."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    encoded = [[x.encode() if isinstance(x, str) else x for x in call] for call in calls]
    child = os.fork()
    if child == 0:
        failed = libc.setns(fd, 0x20000)
        for call in encoded:
            failed = failed or (libc.umount2(*call) if len(call) == 2
                                else libc.mount(*call, None))
        os._exit(1 if failed else 0)
    _, status = os.waitpid(child, 0)
    os.close(fd)
    assert status == 0, "the mount failed"


def tmpfs(target, flags=NOSUID | NODEV | NOEXEC):
    return ("none", target, "tmpfs", flags)


def remount(target, flags=0):
    return (None, target, None, REMOUNT | BIND | flags)


def mounts(who, *calls):
    """A deed: these calls in the container of `who`."""
    return lambda s: inside_mounts(getattr(s, who).pid, *calls)


@contextlib.contextmanager
def file_in(root, name, what):
    path = os.path.join(root, name)
    try:
        what(path)
        yield
    finally:
        if os.path.lexists(path):
            os.unlink(path)


def put(root, name, what):
    """A deed that makes a file in a root file system, which lies on the host; removed afterwards."""
    return lambda s: s.undo.enter_context(file_in(root(), name, what))


def node(who, name="kmsg"):
    def deed(s):
        s.undo.enter_context(file_in(f"/proc/{getattr(s, who).pid}/root/dev", name, lambda p:
                                     os.mknod(p, 0o20666, os.makedev(1, 11))))
    return deed


def bind_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


def preload(path):
    with open(path, "w", encoding="ascii") as file:
        file.write("/usr/lib/other.so\n")


def touch(root, name):
    return lambda s: os.utime(os.path.join(root(), name))


def replace(root, name):
    def deed(_):
        path = os.path.join(root(), name)
        shutil.copy(path, path + ".new")
        os.rename(path + ".new", path)
    return deed


def library(root):
    """A library that kvfs has mapped, beneath the root file system."""
    for top, _, names in os.walk(root + "/usr/lib"):
        for name in names:
            if name.startswith("libcrypto.so"):
                return os.path.relpath(os.path.join(top, name), root)
    raise Skip("no libcrypto")


def sysctl(name, value):
    def deed(s):
        path = "/proc/sys/kernel/" + name
        if not os.path.exists(path):
            raise Skip("not in this kernel")
        with open(path, encoding="ascii") as file:
            before = file.read()
        s.undo.callback(write, path, before)
        try:
            write(path, value)
        except OSError as error:
            raise Skip(f"it can't be changed: {error.strerror}") from None
    return deed


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def swap(s):
    path = os.path.join(workdir(), "swap")
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=1", check=True)
    os.chmod(path, 0o600)
    run("mkswap", path, check=True)
    s.begun = time.monotonic_ns()
    if run("swapon", path).returncode:
        raise Skip("no swapon here")
    s.undo.callback(run, "swapoff", path, check=True)


def tracer(pid_of):
    """From inside the daemon's PID namespace."""
    def deed(s):
        prefix = ["nsenter", "-t", str(s.daemon.pid), "-p"]
        tool = s.undo.enter_context(Tool("trace", inside(pid_of(s)), prefix=prefix))
        s.undo.callback(tool.leave)
        assert tool.line() == "ok"
    return deed


def thread_of(pid):
    return max(map(int, os.listdir(f"/proc/{pid}/task")))


def go_on(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def stop(name):
    def deed(s):
        pid = s.one(name)
        s.undo.callback(go_on, pid)
        os.kill(pid, signal.SIGSTOP)
    return deed


def freeze(s):
    result = runc("pause", s.daemon.name)
    if result.returncode:
        raise Skip(f"runc pause: {result.stderr.strip()}")
    time.sleep(GAP + 0.3)
    s.begun = time.monotonic_ns()
    runc("resume", s.daemon.name, check=True)


def limit(which, value):
    """As root, who may do that where he has CAP_SYS_RESOURCE."""
    def deed(s):
        ran = run("prlimit", "--pid", s.one("supervisor"), f"--{which}={value}:{value}")
        if ran.returncode:
            raise Skip(f"prlimit: {ran.stderr.strip()}")
    return deed


def patch(name):
    """A byte of its code, to what it was: as a breakpoint or a uprobe does."""
    def deed(s):
        pid = s.one(name)
        with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
            at = next(int(x.split("-")[0], 16) for x in maps if " r-xp " in x and "kvfs" in x)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(at)
            byte = memory.read(1)
            memory.seek(at)
            memory.write(byte)
    return deed


def inject(name, deed):
    def inject_it(s):
        ran = run(TOOL, "inject", s.one(name), deed)
        if ran.returncode:
            raise Skip(f"it can't be injected here: {ran.stdout.strip()}")
    return inject_it


def does(deed, answer="ok"):
    return lambda s: s.reader.do(deed, answer)


def loses_a_library(s):
    path = tool_rootfs() + "/usr/bin/third_tool"
    shutil.copy(TOOL, path)
    s.reader.do("map /usr/bin/third_tool")
    time.sleep(0.05)
    s.begun = time.monotonic_ns()
    os.unlink(path)


def other_cgroup(s):
    procs = s.after.enter_context(new_cgroup())
    s.begun = time.monotonic_ns()
    write(procs, str(s.reader.pid))


KVFS_FILE = "usr/bin/kvfs"
TOOL_FILE = "usr/bin/guard_tool"
UID_FLAGS = NOEXEC  # without nosuid and nodev

# name, check that has to find it, how it comes to be known, what is done
DRIFTS = [
    # the daemon's container
    ("kvfs: a mount", "mount-foreign", "event", mounts("daemon", tmpfs("/var/lib/kvfs"))),
    ("kvfs: a mount, and away again", "mount-event", "event",
     mounts("daemon", tmpfs("/var/lib/kvfs"), ("/var/lib/kvfs", 0))),
    ("kvfs: a directory of the host", "mount-foreign", "event",
     mounts("daemon", ("/usr/bin", "/var/lib/kvfs", None, BIND))),
    ("kvfs: over the source", "mount-path", "event", mounts("daemon", tmpfs("/encrypted"))),
    ("kvfs: beneath the source", "mount-path", "event", mounts("daemon", tmpfs("/encrypted/aside"))),
    ("kvfs: the source writable", "source-ro", "event",
     mounts("daemon", remount("/encrypted", NOSUID | NODEV | NOEXEC))),
    ("kvfs: the source unmounted", "mount-path", "event", mounts("daemon", ("/encrypted", 2))),
    ("kvfs: the root writable", "root-ro", "event", mounts("daemon", remount("/"))),
    ("kvfs: over /usr", "mount-path", "event", mounts("daemon", tmpfs("/usr"))),
    ("kvfs: over /tmp", "mount-stacked", "event", mounts("daemon", tmpfs("/tmp"))),
    ("kvfs: /tmp with set-user-id", "mount-flags", "event",
     mounts("daemon", remount("/tmp", UID_FLAGS))),
    ("kvfs: over /proc", "proc", "event", mounts("daemon", tmpfs("/proc"))),
    ("kvfs: /sys writable", "kernel-writable", "event", mounts("daemon", remount("/sys"))),
    ("kvfs: a device", "devices", "period", node("daemon")),
    ("kvfs: a runtime's socket", "runtime-socket", "period",
     put(daemon_rootfs, "run/docker.sock", bind_socket)),
    ("kvfs: /etc/ld.so.preload", "ld-preload", "period",
     put(daemon_rootfs, "etc/ld.so.preload", preload)),
    ("kvfs: its program touched", "exe-replaced", "period", touch(daemon_rootfs, KVFS_FILE)),
    ("kvfs: its program replaced", "exe-replaced", "period", replace(daemon_rootfs, KVFS_FILE)),
    ("kvfs: a library touched", "mapped-changed", "period",
     lambda s: os.utime(os.path.join(daemon_rootfs(), library(daemon_rootfs())))),
    ("kvfs: a library replaced", "mapped-deleted", "period",
     lambda s: replace(daemon_rootfs, library(daemon_rootfs()))(s)),
    ("kvfs: a measured tree", "tree-changed", "full",
     lambda s: s.undo.enter_context(file_in(os.path.dirname(s.model.reader), "more",
                                            lambda p: write(p, "more")))),
    ("kvfs: the supervisor traced", "tracer", "period", tracer(lambda s: s.one("supervisor"))),
    ("kvfs: the worker traced", "tracer", "period", tracer(lambda s: s.one("worker"))),
    ("kvfs: a thread of the worker traced", "tracer", "period",
     tracer(lambda s: thread_of(s.one("worker")))),
    ("kvfs: the worker stopped", "stopped", "period", stop("worker")),
    ("kvfs: the keeper stopped", "stopped", "period", stop("keeper")),
    ("kvfs: the supervisor stopped", "silent", "gap", stop("supervisor")),
    ("kvfs: frozen and thawed", "paused", "period", freeze),
    ("kvfs: cores allowed", "core-limit", "period", limit("core", 1000000)),
    ("kvfs: code in a memfd", "mapped-memory", "period", inject("supervisor", "memfd")),
    ("kvfs: code in shared memory", "mapped-memory", "period", inject("supervisor", "shared")),
    ("kvfs: memory to write and execute", "mapped-rwx", "period", inject("supervisor", "rwx")),
    ("kvfs: dumpable", "dumpable", "period", inject("supervisor", "dumpable")),
    ("kvfs: code patched in memory", "text-altered", "period", patch("supervisor")),
    # the machine
    ("host: cores piped to a program", "core-pattern", "period",
     sysctl("core_pattern", "|/bin/true")),
    ("host: eBPF for everybody", "bpf-unprivileged", "period",
     sysctl("unprivileged_bpf_disabled", "0")),
    ("host: swap space", "swap", "period", swap),
    # the reader's container
    ("reader: a mount", "mount-foreign", "event", mounts("reader", tmpfs("/encrypted"))),
    ("reader: a mount, and away again", "mount-event", "event",
     mounts("reader", tmpfs("/encrypted"), ("/encrypted", 0))),
    ("reader: a directory of the host", "mount-foreign", "event",
     mounts("reader", ("/usr/bin", "/encrypted", None, BIND))),
    ("reader: over /tmp", "mount-stacked", "event", mounts("reader", tmpfs("/tmp"))),
    ("reader: /tmp with set-user-id", "mount-flags", "event",
     mounts("reader", remount("/tmp", UID_FLAGS))),
    ("reader: the root writable", "root-ro", "event", mounts("reader", remount("/"))),
    ("reader: /sys writable", "kernel-writable", "event", mounts("reader", remount("/sys"))),
    ("reader: over /proc", "mount-stacked", "event", mounts("reader", tmpfs("/proc"))),
    ("reader: a device", "devices", "period", node("reader")),
    ("reader: a runtime's socket", "runtime-socket", "period",
     put(tool_rootfs, "run/docker.sock", bind_socket)),
    ("reader: /etc/ld.so.preload", "ld-preload", "period",
     put(tool_rootfs, "etc/ld.so.preload", preload)),
    ("reader: code in a memfd", "mapped-memory", "period", does("memfd")),
    ("reader: code in shared memory", "mapped-memory", "period", does("shared")),
    ("reader: a library deleted", "mapped-deleted", "period", loses_a_library),
    ("reader: traced", "tracer", "period", tracer(lambda s: s.reader.pid)),
    ("reader: its program touched", "exe-replaced", "period", touch(tool_rootfs, TOOL_FILE)),
    ("reader: its program replaced", "exe-replaced", "period", replace(tool_rootfs, TOOL_FILE)),
    ("reader: another program", "reader-exe", "period", does("exec /usr/bin/other_tool", "[0-9]+")),
    ("reader: not dumpable", "inspect", "period", does("dumpable 0")),
    ("reader: its first thread leaves", "inspect", "leaves", does("leave", "no answer")),
    ("reader: another cgroup", "reader-pin", "period", other_cgroup),
]
SHORT = ["kvfs: a mount", "kvfs: over the source", "kvfs: the root writable",
         "kvfs: a device", "kvfs: code patched in memory", "reader: a mount, and away again",
         "reader: a device", "reader: code in a memfd", "reader: traced", "reader: another cgroup"]
PODMAN = ["kvfs: a mount", "kvfs: the root writable", "kvfs: a device",
          "reader: a mount, and away again", "reader: code in a memfd"]


def settled(s, begun):
    """When every way is refused, and for a while: its state."""
    def refused():
        state = s.reader.state()
        quiet = min(state["now"] - max(state[w]["last"], begun) for w in WAYS)
        return state if quiet > 150e6 and all(state[w]["refused"] for w in WAYS) else None
    return refused


def provoke(s, want, how, deed, gib):
    """(seconds to the last open or new read, to the last byte of what was given out)"""
    before = wait_for(lambda: (b := s.reader.state()) and all(b[w]["ok"] for w in WAYS) and b, 3,
                      "reading")
    assert not any(before[w]["refused"] for w in WAYS), before
    s.begun = time.monotonic_ns()
    deed(s)
    try:
        state = wait_for(settled(s, s.begun), LIMITS[how] + 3, "the seal")
    except AssertionError as error:
        raise AssertionError(f"{error}: {s.reader.state()} {s.daemon.said()[-600:]}") from None
    after = {w: max(0, state[w]["last"] - s.begun) / 1e9 for w in WAYS}
    if how == "gap":
        go_on(s.one("supervisor"))  # which has not taken the worker's log
    found = {"silent": SILENT}.get(want, f"guard: {want}: ")
    wait_for(lambda: found in s.daemon.said(), 2, f"{want} in the log")
    s.said = s.daemon.said()
    assert state["new"]["error"] in REFUSALS, state
    assert state["mapped"]["error"] == state["locked"]["error"] == errno.EFAULT, state
    news, old = max(after[w] for w in WAYS[:2]), max(after[w] for w in WAYS[2:])
    late = news > LIMITS[how] or old > LIMITS[how] + 0.05 + 0.5 * gib
    return news, old, late


def drift(s, name, want, how, deed, gib=MIB / 2048):
    """A machine that others keep busy is late now and then: twice is too often."""
    for turn in range(3):
        with contextlib.ExitStack() as after, contextlib.ExitStack() as undo:
            s.undo, s.after = undo, after
            undo.callback(s.end)
            s.begin()
            news, old, late = provoke(s, want, how, deed, gib)
            told(s, want)
        if not late:
            break
        checks.note(f"{name}: late, {news * 1000:.0f} and {old * 1000:.0f} ms; {s.said[-300:]!r}")
    assert not late, f"{news * 1000:.0f} ms, {old * 1000:.0f} ms"
    return f"{name:40} {want:16} {how:6} {news * 1000:7.0f} {old * 1000:7.0f}"


# ---- what is told of it ----

def altered(lines):
    """The file with one byte of one line another one, for each line."""
    for i, line in enumerate(lines):
        at = len(line) // 2
        yield b"".join(lines[:i] + [line[:at] + bytes([line[at] ^ 1]) + line[at + 1:]] + lines[i + 1:])


def verify(text):
    path = os.path.join(workdir(), "audit")
    with open(path, "wb") as file:
        file.write(text)
    return kvfs("audit", "verify", path, check=False).returncode == 0


def lines_of(s):
    s.audit.seek(0)
    return s.audit.read().splitlines(keepends=True)


def told(s, want):
    """By the audit's file, which is in order, and by the server: which check failed, that the mount was
    sealed, and that the lease is over. Nobody can alter a line of the file unnoticed."""
    def said(records):
        return [(r["event"], r["detail"]) for r in records
                if r["event"] in ("drift", "seal") and r["chain"] == lease]

    def names(events):
        return any(event == "seal" for event, _ in events) and \
            any(why == SILENT if want == "silent" else f"{want}, " in why or f"{want}: " in why
                for _, why in events)
    lease = next(r["lease"] for r in map(json.loads, lines_of(s)) if r["event"] == "release")
    for where, records in (("the file", lambda: map(json.loads, lines_of(s))),
                           ("the server", lambda: s.model.world.audit(lease))):
        wait_for(lambda r=records: names(said(r())), 5, f"{want} in what {where} has")
    assert s.model.ended(lease)["reason"] == "sealed"
    whole = lines_of(s)
    assert verify(b"".join(whole)), whole
    unnoticed = [text for text in altered(whole) if verify(text)]
    assert len(whole) > 5 and not unnoticed, unnoticed


def scene(kind, world, mib=MIB, name="m"):
    with open(os.path.join(PACKAGING, "sidecar.profile"), encoding="ascii") as file:
        text = file.read().replace("profile sidecar", "profile drifts")
    model = Published(world, name, mib, {"drifts.profile": text + "tree /keys\n"
                                         "admit exe /usr/bin/guard_tool\n"})
    os.makedirs(model.encrypted + "/aside", exist_ok=True)
    model.allow("/keys/drifts.profile", "drifts")
    return kind(model, "--guard=/keys/drifts.profile", "--audit=/tmp/audit", keys=model.options(),
                network=world.network)


def cached(s, world):
    """How long it takes to take back a gibibyte."""
    with check("1 GiB cached and mapped: within half a second more"):
        big = scene(RuncScene, world, 2048, "big")
        big.mounter = s.mounter
        line = drift(big, "kvfs: a mount, 1 GiB given out", *DRIFTS[0][1:], gib=1)
        checks.note(line)


def usable(s):
    """Whether this machine can be as strict wants it."""
    try:
        s.begin()
        s.end()
    except AssertionError as error:
        faults = re.findall(r"guard: (swap|core-pattern|bpf-\w+): .*", str(error))
        if not faults and shutil.which("runc") and os.environ.get("CI") == "true":
            raise
        checks.skip("drifts", f"no strict container here: {faults or error}")
        return False
    return True


def by_podman(world, mounter, table):
    """Some of both sides; all of what a runtime does otherwise is in test_guard_containers.py."""
    if why_no_podman():
        checks.skip("drifts by podman", why_no_podman())
        return
    s = scene(PodmanScene, world, name="by-podman")
    s.mounter = mounter
    for name, *rest in DRIFTS:
        if name in PODMAN:
            with check(f"podman: {name}: {rest[0]}"):
                table.append(drift(s, f"podman: {name}", *rest))
    podtest.remove_groups()


def wanted():
    """The names on the command line; or a selection; or all."""
    chosen = [a for a in sys.argv[1:] if not os.access(a, os.X_OK)]
    return chosen, [d for d in DRIFTS if (any(c in d[0] for c in chosen) if chosen else
                                          SOAK or d[0] in SHORT)]


def main():
    if os.geteuid() != 0 or sanitized():
        checks.skip("drifts", "not root" if os.geteuid() else "a sanitizer's build is dumpable")
        return checks.finish()
    chosen, drifts = wanted()
    table = []
    with Server() as server, contextlib.ExitStack() as stack:
        world = World(server)
        s = scene(RuncScene, world)
        stack.callback(s.__exit__)
        if not usable(s):
            return checks.finish()
        for one in drifts:
            with check(f"{one[0]}: {one[1]}"):
                table.append(drift(s, *one))
        if not chosen:
            by_podman(world, s.mounter, table)
        if SOAK and not chosen:
            cached(s, world)
    checks.note(f"{len(table)} drifts: check, known by, ms to the last new read, ms to the last byte")
    for line in table:
        checks.note(line)
    return checks.finish()


sys.exit(main())
