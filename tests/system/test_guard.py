#!/usr/bin/env python3
"""The guard: every drift is provoked for real, in a mount namespace of its own or in a real
container, and has to be found by its name; what is no drift must not be."""
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from kvfstest import (KVFS, ROOT, Checks, Model, Skip, as_user, die_with_parent, in_namespace, kvfs,
                      run, sanitized, turns, wait_for, workdir)

checks = Checks()
check = checks.check
TOOL = os.path.join(os.environ.get("KVFS_TOOLS") or
                    os.path.join(os.path.dirname(os.path.dirname(KVFS)), "tests"), "guard_tool")
NEW_NS = ["unshare", "--mount", "--propagation", "private"]
found_so_far = set()
sys.path.insert(0, os.path.join(ROOT, "tests/system"))


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

    def finds_nothing(self, ms=400):
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


# ---- Mounts ----

def test_mounts():
    src, mnt = path("src"), path("mnt")
    for one in (src + "/model", mnt):
        os.makedirs(one)
    which = keep()
    ro = f"mount --bind {src} {src}; mount -o remount,bind,ro,nosuid,nodev {src}"
    here = {"prefix": in_namespace(ro)}
    ends = [f"source={src}", f"mount={mnt}"]

    with check("mounts: nothing is found where nothing changes"):
        with Guard(which, *ends, **here) as g:
            g.finds_nothing()

    def drift(name, want, *commands):
        with check(f"mounts: {name}"), Guard(which, *ends, **here) as g:
            for command in commands:
                (g.umount if command[0] == "umount" else g.mount)(*command[command[0] == "umount":])
            got = g.finds(*want)
            assert got["us"] < 100_000, f"{got['us']} us"

    drift("over the source", ["mount-path", "mount-event", "source-ro"],
          ["-t", "tmpfs", "none", src])
    drift("over the mount point", ["mount-path"], ["-t", "tmpfs", "none", mnt])
    drift("above both", ["mount-path", "mount-stacked"],
          ["--bind", path("other"), workdir()])
    drift("beneath the source", ["mount-path"], ["-t", "tmpfs", "none", src + "/model"])
    drift("the source writable", ["source-ro", "mount-path"], ["-o", "remount,bind,rw", src])
    drift("the source unmounted", ["mount-path", "source-ro"], ["umount", "-l", src])
    drift("somewhere else", ["mount-foreign", "mount-event"],
          ["-t", "tmpfs", "-o", "nosuid,nodev,noexec", "none", path("other")])
    os.makedirs(path("declared"))
    os.makedirs(path("declared-not"))
    which = keep("declared", f"tmpfs {path('declared')}")
    with check("mounts: a declared one, and one whose name begins with it"):
        with Guard(which, *ends, **here) as g:
            tmpfs = ["-t", "tmpfs", "-o", "nosuid,nodev", "none"]
            g.mount(*tmpfs, path("declared"))
            got = g.finds("mount-event")
            assert ids(got) == {"mount-event"}, said(got)
            g.mount(*tmpfs, path("declared-not"))
            g.finds("mount-foreign", "mount-flags")
    which = keep()
    drift("set-user-id programs", ["mount-flags"], ["-t", "tmpfs", "none", path("other")])
    drift("one over another", ["mount-stacked"], ["-t", "tmpfs", "none", src],
          ["-t", "tmpfs", "none", src])
    drift("over /proc", ["proc"], ["-t", "tmpfs", "none", "/proc"])
    drift("a socket of a runtime under another name", ["runtime-socket"],
          ["--bind", path("docker.sock"), path("other/file")])

    with check("mounts: touched and changed back"):
        with Guard(which, *ends, **here) as g:
            g.mount("-t", "tmpfs", "none", path("other"))
            g.umount(path("other"))
            got = g.finds("mount-event")
            assert "is as it was" in said(got), said(got)

    with check("mounts: the root becomes writable"):
        with Guard(which, prefix=in_namespace("mount -o remount,bind,ro /")) as g:
            g.mount("-o", "remount,bind,rw", "/")
            g.finds("root-ro")
            assert "mounted rw" in said(g.ask("full")), "mount and superblock are not told apart"

    with check("mounts: kernel files become writable"):
        with Guard(which, prefix=in_namespace("mount -o remount,bind,ro /sys")) as g:
            g.mount("-o", "remount,bind,rw", "/sys")
            g.finds("kernel-writable")

    with check("mounts: drift judges those at the source, the mount point and above only"):
        with Guard(profile("near", "base drift"), *ends, **here) as g:
            g.mount("-t", "tmpfs", "none", path("other"))
            g.finds_nothing()
            g.mount("-t", "tmpfs", "none", mnt)
            g.finds("mount-path")

    with check("mounts: kvfs's own, before and after"):
        with Guard(which, *ends, **here) as g:
            g.mount("-t", "tmpfs", "-o", "ro,nosuid,nodev", "none", mnt)
            table = run("nsenter", "-t", g.pid, "-m", "cat", "/proc/self/mountinfo").stdout
            device = [line.split()[2] for line in table.splitlines() if line.split()[4] == mnt][-1]
            assert g.ask(f"mounted {device}")["rc"] == 0
            g.finds_nothing()
            g.mount("-o", "remount,bind,rw,nosuid,nodev", mnt)
            g.finds("mount-own")
            g.mount("-t", "tmpfs", "none", mnt)
            g.finds("mount-own", "mount-path")

    with check("mounts: a write probe takes EROFS only"):
        safe = path("safe")
        os.makedirs(safe)
        which = keep("probe", f"write-probe require\nprotect {safe}")
        script = f"mount --bind {safe} {safe}; mount -o remount,bind,ro {safe}"
        with Guard(which, prefix=in_namespace(script)) as g:
            g.finds_nothing()
            g.mount("-o", "remount,bind,rw", safe)
            assert "can be made" in said(g.finds("write-probe"))
            assert not os.listdir(safe)
        os.chmod(safe, 0o555)
        with Guard(which, quiet=False, prefix=as_user(1000)) as g:
            assert "Permission denied" in said(g.ready), said(g.ready)


# ---- The process ----

def test_process():
    library = path("lib/evil.so")
    write(path("code/main.py"), "print('x')\n")
    os.makedirs(path("lib"))
    shutil.copy("/bin/true", library)
    which = keep("process", f"tree {path('code')}")

    def drift(name, want, deed, *first, **more):
        with check(f"process: {name}"), Guard(which, *first, **more) as g:
            g.do(deed)
            g.finds(*want)

    drift("memory that is written and executed", ["mapped-rwx"], "rwx")
    drift("code in a memfd", ["mapped-memory"], "memfd")
    drift("code in shared memory", ["mapped-memory"], "shared")
    drift("a library from a writable mount", ["mapped-writable", "mapped-new"], f"map {library}")
    drift("code patched in memory", ["text-altered"], "patch")
    drift("cores", ["core-limit"], "core 1000000", "first=core 0")
    drift("dumpable", ["dumpable"], "dumpable 1", "first=dumpable 0")
    drift("less memory may be locked", ["memlock"], "memlock 4096", "lock=65536")
    drift("capabilities", ["capabilities"], "effective 1", "first=effective 0")
    drift("another user", ["uid"], "uid 1000")
    drift("another UTS namespace", ["namespaces"], "unshare uts")
    drift("another mount namespace", ["namespaces"], "unshare mnt", prefix=NEW_NS)

    with check("process: a deleted library"):
        with Guard(which) as g:
            g.do(f"map {library}")
            os.rename(library, library + ".away")
            os.unlink(library + ".away")
            g.finds("mapped-deleted")

    with check("process: traced, from here and from outside the PID namespace"):
        with Guard(which) as g, Tool("trace", g.pid) as tracer:
            assert tracer.line() == "ok"
            g.finds("tracer")
        with Guard(which, prefix=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]) as g:
            inner = int(run("pgrep", "-P", g.pid).stdout)
            g.finds_nothing()
            with Tool("trace", inner) as tracer:
                assert tracer.line() == "ok"
                g.finds("tracer-outside", command="full")

    with check("process: one of its threads is traced"):
        with Guard(which) as g:
            g.do("thread")
            g.finds_nothing()
            tid = max(map(int, os.listdir(f"/proc/{g.pid}/task")))
            assert tid != g.pid
            with Tool("trace", tid) as tracer:
                assert tracer.line() == "ok"
                assert f"thread {tid}" in said(g.finds("tracer"))

    with check("process: started with LD_PRELOAD, LD_AUDIT, LD_LIBRARY_PATH"):
        strict = profile("env", "* ignore\nld-preload require\nld-library-path require")
        for name, what in (("LD_PRELOAD", "ld-preload"), ("LD_AUDIT", "ld-preload"),
                           ("LD_LIBRARY_PATH", "ld-library-path")):
            value = "/lib" if name == "LD_LIBRARY_PATH" else "libm.so.6"
            with Guard(strict, quiet=False, env={name: value}) as g:
                assert ids(g.ready) == {what}, said(g.ready)
                found_so_far.add(("own", what))
        preload = in_namespace(f"echo > {path('preload')}; touch /etc/ld.so.preload; "
                               f"mount --bind {path('preload')} /etc/ld.so.preload")
        try:
            with Guard(strict, quiet=False, prefix=preload) as g:
                assert ids(g.ready) == {"ld-preload"}, said(g.ready)
        finally:
            os.unlink("/etc/ld.so.preload")

    with check("process: program and libraries changed on disk"):
        copy = path("bin/guard_tool")
        os.makedirs(os.path.dirname(copy))
        shutil.copy(TOOL, copy)
        with Guard(which, prefix=["sh", "-c", f'shift; exec {copy} "$@"', "sh"]) as g:
            g.finds_nothing()
            os.utime(copy)
            g.finds("mapped-changed", "exe-replaced")
            shutil.copy(TOOL, copy + ".new")
            os.rename(copy + ".new", copy)
            g.finds("exe-replaced", "mapped-deleted")

    with check("process: a measured tree"):
        with Guard(which) as g:
            g.finds_nothing()
            write(path("code/main.py"), "print('y')\n")
            g.finds("tree-changed", command="full")

    with check("process: stopped, itself and another of kvfs's"):
        with Guard(which) as g, Idle() as worker:
            g.finds_nothing()
            os.kill(g.pid, signal.SIGSTOP)
            time.sleep(1.3)
            os.kill(g.pid, signal.SIGCONT)
            g.finds("paused")
            assert g.ask(f"own {worker.pid}")["rc"] == 0
            g.finds_nothing()
            os.kill(worker.pid, signal.SIGSTOP)
            g.finds("stopped")
            os.kill(worker.pid, signal.SIGCONT)
            worker.do("rwx")
            worker.do("patch")
            g.finds("mapped-rwx", "text-altered")


def test_machine():
    which = keep("machine", "devices keep\nruntime-socket keep")

    with check("machine: a device, a runtime's socket"):
        dev = in_namespace("mount -t tmpfs -o mode=755 none /dev; mkdir /dev/net; "
                           "mount -t tmpfs none /run")
        with Guard(which, prefix=dev) as g:
            g.finds_nothing()
            run("nsenter", "-t", g.pid, "-m", "mknod", "/dev/net/tun", "c", "10", "200", check=True)
            g.finds("devices")
        with Guard(which, prefix=dev) as g:
            script = ("import socket; s = socket.socket(socket.AF_UNIX); "
                      "s.bind('/run/docker.sock')")
            run("nsenter", "-t", g.pid, "-m", sys.executable, "-c", script, check=True)
            g.finds("runtime-socket")

    with check("machine: swap"):
        file = path("swap")
        run("dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=1", check=True)
        os.chmod(file, 0o600)
        run("mkswap", file, check=True)
        with Guard(which) as g:
            if run("swapon", file).returncode:
                raise Skip("no swapon here")
            try:
                g.finds("swap")
            finally:
                run("swapoff", file, check=True)

    with check("machine: an eBPF program that traces"):
        with Guard(which) as g, Tool("load") as loader:
            if (answer := loader.line()) != "ok":
                raise Skip(f"bpf: {answer}")
            g.finds("bpf-programs")

    for name, value, what in (("core_pattern", "|/bin/true", "core-pattern"),
                              ("unprivileged_bpf_disabled", "0", "bpf-unprivileged")):
        with check(f"machine: kernel.{name}"):
            file = f"/proc/sys/kernel/{name}"
            if not os.path.exists(file):
                raise Skip("not in this kernel")
            with open(file, encoding="ascii") as old:
                before = old.read()
            with Guard(which) as g:
                try:
                    write_sys(file, value)
                except PermissionError:
                    raise Skip("it can't be changed") from None
                try:
                    g.finds(what)
                finally:
                    write_sys(file, before)

    with check("machine: the host's namespaces"):
        with Guard(profile("ns", "* ignore\nhost-namespaces require"), quiet=False) as g:
            if not in_first_namespaces():
                raise Skip("not in the first namespaces")
            assert ids(g.ready) == {"host-namespaces"}, said(g.ready)


def write_sys(name, value):
    with open(name, "w", encoding="ascii") as file:
        file.write(value)


# ---- Readers ----

READERS = ("* ignore\ninspect require reader\nreader-uid require\nreader-exe require\n"
           "reader-tree require\nreader-pin require\ntracer require reader\n"
           "exe-replaced require reader\nnamespaces require reader\nmapped-memory require reader\n"
           "mapped-rwx require reader\nld-preload require reader\ncapabilities keep reader\n"
           "no-new-privs require reader\n")


def nnp():
    die_with_parent()
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)


def test_readers():
    which = profile("readers", READERS + "admit pin mnt pid cgroup")
    with check("readers: admitted; others by namespace and cgroup not"):
        with Guard(which) as g, Idle(preexec=nnp) as one, Idle(preexec=nnp) as two:
            g.admits(one.pid)
            g.admits(two.pid)
            with Idle(preexec=nnp, prefix=NEW_NS) as other:
                g.admits(other.pid, "reader-pin")
            with Idle(preexec=nnp, prefix=["unshare", "--pid", "--fork", "--kill-child"]) as other:
                g.admits(int(run("pgrep", "-P", other.pid).stdout), "reader-pin")
            group = next((d for d in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids",
                                      "/sys/fs/cgroup") if os.access(d, os.W_OK)), None)
            if group:
                group += f"/kvfs-test-{os.getpid()}"
                os.mkdir(group)
                try:
                    with Idle(preexec=nnp) as other:
                        write_sys(f"{group}/cgroup.procs", str(other.pid))
                        g.admits(other.pid, "reader-pin")
                        write_sys(f"{os.path.dirname(group)}/cgroup.procs", str(other.pid))
                finally:
                    os.rmdir(group)
            g.finds_nothing()

    with check("readers: who can't be seen is refused"):
        with Guard(which) as g:
            g.admits(0, "inspect")
            g.admits(99999999, "inspect")
        with Idle(preexec=nnp) as rooted:
            with Guard(which, prefix=as_user(1000)) as g:
                g.admits(rooted.pid, "inspect")
        with Idle(preexec=nnp, prefix=as_user(1000)) as reader:
            with Guard(which, prefix=as_user(1000)) as g:
                g.admits(reader.pid)
                reader.do("dumpable 0")
                g.finds("inspect", who="reader")
                g.admits(reader.pid, "inspect")

    def drift(name, want, deed):
        with check(f"readers: {name}, after it was admitted"):
            with Guard(which) as g, Idle(preexec=nnp) as reader:
                g.admits(reader.pid)
                g.finds_nothing(150)
                reader.send(f"do {deed}")
                g.finds(want, who="reader")
                g.admits(reader.pid, want)

    drift("code in a memfd", "mapped-memory", "memfd")
    drift("memory to write and execute", "mapped-rwx", "rwx")
    drift("another program", "exe-replaced", "exec " + copied("other_tool"))
    drift("another mount namespace", "namespaces", "unshare mnt")
    drift("capabilities by a user namespace", "namespaces", "unshare user")

    with check("readers: traced, before and after"):
        with Guard(which) as g, Idle(preexec=nnp) as reader:
            with Tool("trace", reader.pid) as tracer:
                assert tracer.line() == "ok"
                g.admits(reader.pid, "tracer")
            g.admits(reader.pid)
            with Tool("trace", reader.pid) as tracer:
                assert tracer.line() == "ok"
                g.finds("tracer", who="reader")

    with check("readers: LD_PRELOAD, no_new_privs"):
        with Guard(which) as g, Idle() as reader:
            g.admits(reader.pid, "no-new-privs")
        with Guard(which) as g, Idle(preexec=nnp, env={"LD_PRELOAD": "libm.so.6"}) as reader:
            g.admits(reader.pid, "ld-preload")

    with check("readers: a mount in a reader's own namespace wakes the guard"):
        few = profile("few", "* ignore\nmount-event require\nmount-foreign keep reader\n")
        os.makedirs(path("other"), exist_ok=True)
        with Guard(few) as g, Idle(prefix=NEW_NS) as reader:
            g.admits(reader.pid)
            g.finds_nothing(150)
            run("nsenter", "-t", reader.pid, "-m", "mount", "-t", "tmpfs", "none", path("other"),
                check=True)
            got = g.finds("mount-foreign", who="reader")
            assert "mount-event" in ids(got) and got["us"] < 60_000, (said(got), got["us"])

    with check("readers: one that ends is forgotten, and its number means nothing"):
        with Guard(which) as g:
            with Idle(preexec=nnp) as reader:
                g.admits(reader.pid)
            g.finds_nothing()
            g.admits(reader.pid, "inspect")


def copied(name):
    copy = path("copies", name)
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    shutil.copy(TOOL, copy)
    return copy


def test_admission():
    digest = kvfs("guard", "digest", TOOL).stdout.strip()
    python = os.path.realpath("/usr/bin/python3")
    with check("admission: users"):
        with Guard(profile("users", READERS + "no-new-privs ignore\nadmit uid 1000 1001")) as g:
            with Idle(prefix=as_user(1001)) as reader:
                g.admits(reader.pid)
            with Idle(prefix=as_user(1002)) as reader:
                g.admits(reader.pid, "reader-uid")

    with check("admission: programs, by path and digest"):
        other = copied("evil_tool")
        with open(other, "ab") as file:
            file.write(b"x")
        text = READERS + f"no-new-privs ignore\nadmit exe {os.path.realpath(TOOL)} {digest}\n" \
            f"admit exe {other} {digest}\n"
        with Guard(profile("programs", text)) as g, Idle() as reader:
            g.admits(reader.pid)
            with Idle(prefix=["sh", "-c", f'shift; exec {other} "$@"', "sh"]) as evil:
                assert "another digest" in said(g.admits(evil.pid, "reader-exe"))
            with subprocess.Popen(["sleep", "60"], preexec_fn=die_with_parent) as sleeper:
                assert "is not admitted" in said(g.admits(sleeper.pid, "reader-exe"))
                sleeper.kill()

    with check("admission: an interpreter with its code only"):
        app = path("app")
        write(app + "/serve.py", "import time; print('up', flush=True); time.sleep(60)\n")
        write(app + "/lib/x.py", "")
        write(path("stray.py"), "import time; print('up', flush=True); time.sleep(60)\n")
        os.symlink(path("stray.py"), app + "/link.py")
        tree = kvfs("guard", "digest", app).stdout.strip()
        # A Python that is built so maps code in memory for callbacks.
        text = READERS + f"no-new-privs ignore\nmapped-memory ignore\nmapped-rwx ignore\n" \
            f"admit exe {python} tree\nadmit tree {app} {tree}\n"

        def asked(g, *arguments, cwd=None, why=None, env=None, prefix=()):
            with subprocess.Popen([*prefix, python, *arguments], stdout=subprocess.PIPE, cwd=cwd,
                                  env={**os.environ, **(env or {})},
                                  preexec_fn=die_with_parent) as process:
                process.stdout.readline()
                g.admits(process.pid, why)
                process.kill()

        code = "import time; print('up', flush=True); time.sleep(60)"
        with Guard(profile("trees", text)) as g:
            asked(g, app + "/serve.py")
            asked(g, "-B", "-u", "serve.py", cwd=app)
            asked(g, "-c", code, why="reader-tree")
            asked(g, "-Bc", code, app + "/serve.py", why="reader-tree")
            asked(g, "-X", "utf8", app + "/serve.py")
            asked(g, app + "/serve.py", env={"PYTHONPATH": "/tmp"}, why="reader-tree")
            hidden = in_namespace(f"mount -t tmpfs none {app}/lib; echo > {app}/lib/x.py")
            asked(g, app + "/serve.py", prefix=hidden, why="reader-tree")
            asked(g, path("stray.py"), why="reader-tree")
            asked(g, app + "/../stray.py", why="reader-tree")
            asked(g, app + "/link.py", why="reader-tree")
            write(app + "/lib/x.py", "evil\n")
            time.sleep(0.15)
            asked(g, app + "/serve.py", why="reader-tree")

    with check("admission: fast, and a profile of everything stays under 0.2 % of a processor"):
        everything = profile("all", "base strict\n* keep\nreader-exe require\nreader-pin require\n"
                             "reader-uid require\nadmit uid 0\nadmit pin mnt pid cgroup\n"
                             f"admit exe {os.path.realpath(TOOL)} {digest}")
        write(everything, open(everything, encoding="utf-8").read().replace("period 100", "period 1000"))
        with Guard(everything) as g, Idle() as reader:
            g.admits(reader.pid)
            many = g.ask(f"admit-many {reader.pid} 200")
            took = sorted(g.ask("check")["took_us"] for _ in range(9))
            checks.note(f"an admission {many['us']} us, a run {took[4]} us")
            if not sanitized():
                assert many["rc"] == 1 and many["us"] < 500, many["us"]
                assert took[0] < 4000, took


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
        self.name = f"kvfs-test-{os.getpid()}-{name}"
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


def test_no_false_alarm():
    """Beside a real mount that is read, with two processors busy and mounts coming and going."""
    model = Model(mib=16)
    with check("no false alarm while a mount is read"), model.mount() as m:
        which = profile("calm", "base drift\n* ignore reader\nmapped-new keep\nperiod 50")
        with Guard(which, f"source={model.encrypted}", f"mount={m.path}") as g:
            assert g.ask(f"mounted {m.device}")["rc"] == 0
            for pid in m.pids.values():
                assert (got := g.ask(f"own {pid}"))["rc"] == 0, got["error"]
            busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"],
                                     preexec_fn=die_with_parent) for _ in range(2)]
            try:
                for turn in turns(30):
                    with open(model.shown(m, turn % 2), "rb") as file:
                        file.read()
                    run("unshare", "-m", "sh", "-c", f"mount -t tmpfs none {path('other')}",
                        check=True)
                    run("mount", "-t", "tmpfs", "none", path("other"), check=True)
                    run("umount", path("other"), check=True)
                    got = g.ask("wait 60")
                    assert got["rc"] == 0 and not got["findings"], said(got)
                assert not g.ask("full")["findings"]
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            os.kill(m.worker, signal.SIGSTOP)
            g.finds("stopped")
            os.kill(m.worker, signal.SIGCONT)
            if not sanitized():
                with Tool("trace", m.worker) as tracer:
                    assert tracer.line() == "ok"
                    g.finds("tracer")
            g.finds_nothing()
            # What a uprobe or a debugger's breakpoint does to a page of code.
            patch(m.worker)
            assert "code was altered in memory" in said(g.finds("text-altered"))


def patch(pid):
    """Writes a byte of a process's code to where it was."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        line = next(x for x in maps if " r-xp " in x and "kvfs" in x)
    at = int(line.split("-")[0], 16)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(at)
        byte = memory.read(1)
        memory.seek(at)
        memory.write(byte)


def test_containers():
    if not shutil.which("runc"):
        checks.skip("containers", "no runc")
        return
    root = rootfs()
    usable = True
    with check("containers: a hardened one passes strict"):
        try:
            box = Box("good", root, quiet=False)
        except AssertionError as why:
            usable = False
            raise Skip(f"runc: {why}") from None
        with box as g:
            assert g.ready["state"] == "ok" and g.ready["rc"] == 0, said(g.ready)
            states = {c["id"]: c["state"] for c in g.ready["checks"] if c["who"] == "own"}
            assert states["write-probe"] == "ok" and states["seccomp"] == "ok", states
            checks.note(f"unseen in it: {[i for i, s in states.items() if s == 'unseen']}")
            g.finds_nothing(2500)
            g.do("dumpable 1")
            g.finds("dumpable")
    if not usable:
        return

    def badly(name, want, change):
        with check(f"containers: {name} is refused at the start"):
            with Box("bad-" + re.sub(r"\W", "-", name), root, change, quiet=False) as g:
                missing = set(want) - ids(g.ready)
                assert not missing, f"{missing}: {said(g.ready)}"
                found_so_far.update(("own", one) for one in want)

    badly("a writable root", ["root-ro", "write-probe", "mapped-writable"],
          lambda s: s["root"].update(readonly=False))
    badly("root with a capability", ["uid", "capabilities"],
          lambda s: (s["process"]["user"].update(uid=0, gid=0),
                     s["process"]["capabilities"].update({k: ["CAP_SYS_ADMIN"] for k in (
                         "bounding", "effective", "permitted")})))
    badly("without no_new_privs and seccomp", ["no-new-privs", "seccomp"],
          lambda s: (s["process"].update(noNewPrivileges=False), s["linux"].pop("seccomp")))
    badly("in another's UTS namespace", ["host-namespaces"] if in_first_namespaces() else [],
          lambda s: (s.pop("hostname"),
                     s["linux"].update(namespaces=[n for n in s["linux"]["namespaces"]
                                                   if n["type"] != "uts"])))
    badly("with /sys writable and no read-only paths", ["kernel-writable", "mount-foreign"],
          lambda s: (s["mounts"][5]["options"].remove("ro"), s["linux"].update(readonlyPaths=[])))
    badly("with a directory of the host", ["mount-foreign"],
          lambda s: s["mounts"].append({"destination": "/drivers", "type": "bind",
                                        "source": "/usr/bin", "options": ["bind", "ro"]}))
    badly("with a device", ["devices"],
          lambda s: s["linux"].update(devices=[{"path": "/dev/kmsg", "type": "c", "major": 1,
                                                "minor": 11, "fileMode": 0o666}]))
    badly("with a source that is writable", ["source-ro", "mount-flags"],
          lambda s: s["mounts"][7].update(options=["bind", "rw"]))

    def drift(name, want, *script):
        with check(f"containers: {name}, while it runs"):
            with Box("drift-" + re.sub(r"\W", "-", name), root) as g:
                in_box(g.pid, *script)
                got = g.finds(*want)
                assert got["us"] < 60_000 or sanitized(), got["us"]

    drift("a mount from the host", ["mount-foreign", "mount-event", "mount-flags"],
          ("none", "/drivers", "tmpfs", 0))
    drift("the root writable", ["root-ro", "mount-path", "write-probe"],
          (None, "/", None, REMOUNT | BIND))
    drift("over the source", ["mount-path", "mount-stacked"],
          ("none", "/encrypted", "tmpfs", RO | NOSUID | NODEV))
    with check("containers: a device made by the host, while it runs"):
        with Box("mknod", root) as g:
            os.mknod(f"/proc/{g.pid}/root/dev/kmsg", 0o20666, os.makedev(1, 11))
            g.finds("devices")
    with check("containers: traced by the host, while it runs"):
        write(root + "/etc/seen", "profile seen\nbase strict\ndumpable ignore\n")

        def seen(spec):
            spec["process"]["args"][2:] = ["/etc/seen", "source=/encrypted"]
        with Box("traced", root, seen) as g, Tool("trace", g.pid) as tracer:
            assert tracer.line() == "ok"
            g.finds("tracer-outside", command="full")
    test_reader_containers(root)
    test_sidecar(root)


def inside(pid):
    """The number of a process in its own PID namespace."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(next(line for line in status if line.startswith("NSpid:")).split()[-1])


def test_sidecar(root):
    """Guard and reader in two hardened containers, nobody privileged: same user, and the reader in
    the guard's PID namespace."""
    def beside(other, change=None):
        def spec_of(spec):
            spec["mounts"].pop()  # the source
            for one in spec["linux"]["namespaces"]:
                if one["type"] == "pid":
                    one["path"] = f"/proc/{other.pid}/ns/pid"
            if change:
                change(spec)
        return spec_of

    with check("sidecar: a hardened reader is admitted under strict by an unprivileged guard"):
        with Box("main", root) as g, ReaderBox("side", root, beside(g)) as reader:
            g.admits(inside(reader.pid))
            g.finds_nothing(1200)
            g.admits(0, "inspect")
            reader.do("memfd")
            g.finds("mapped-memory", who="reader")

    with check("sidecar: another user, a writable root, more privileges are refused"):
        with Box("main2", root) as g:
            other = beside(g, lambda s: s["process"]["user"].update(uid=1001, gid=1001))
            with ReaderBox("other-user", root, other) as reader:
                g.admits(inside(reader.pid), "inspect")
            loose = beside(g, lambda s: s["root"].update(readonly=False))
            with ReaderBox("loose", root, loose) as reader:
                g.admits(inside(reader.pid), "root-ro")
            able = beside(g, lambda s: s["process"]["capabilities"].update(
                {k: ["CAP_CHOWN"] for k in ("bounding", "effective", "permitted", "inheritable",
                                            "ambient")}))
            with ReaderBox("able", root, able) as reader:
                got = g.admits(inside(reader.pid), "capabilities")
                assert "inspect" in ids(got), said(got)

    with check("sidecar: the host mounts into the reader's container"):
        with Box("main3", root) as g, ReaderBox("side3", root, beside(g)) as reader:
            g.admits(inside(reader.pid))
            in_box(reader.pid, ("none", "/drivers", "tmpfs", NOSUID | NODEV | NOEXEC))
            got = g.finds("mount-foreign", who="reader")
            assert got["us"] < 60_000 or sanitized(), got["us"]
            assert "mount-event" in ids(got, "own"), said(got)


def test_reader_containers(root):
    """The reader's container, from a privileged guard that is outside of it."""
    # runc mounts and unmounts something where it is started.
    which = profile("sidecar", f"base strict\n* ignore own\nmount-event require\n"
                    "bind /encrypted\n")

    with check("reader containers: a hardened one is admitted, another one not"):
        with Guard(which, prefix=NEW_NS) as g:
            with ReaderBox("reader", root) as reader, ReaderBox("second", root) as second:
                g.admits(reader.pid)
                g.finds_nothing(300)
                g.admits(second.pid, "reader-pin")
        with Guard(which, prefix=NEW_NS) as g:
            with ReaderBox("bad-reader", root, lambda s: s["root"].update(readonly=False)) as bad:
                g.admits(bad.pid, "root-ro")
            with Idle() as here:
                got = g.admits(here.pid, "capabilities")
                assert {"root-ro", "no-new-privs", "seccomp", "uid"} <= ids(got), said(got)

    def drift(name, want, provoke):
        with check(f"reader containers: {name}, after it was admitted"), Guard(which, prefix=NEW_NS) as g:
            with ReaderBox("r-" + re.sub(r"\W", "-", name), root) as reader:
                g.admits(reader.pid)
                g.finds_nothing(150)
                provoke(reader)
                g.finds(*want, who="reader")
                g.admits(reader.pid, want[0])

    drift("a mount from the host", ["mount-foreign", "mount-flags"],
          lambda r: in_box(r.pid, ("none", "/drivers", "tmpfs", 0)))
    drift("one over another", ["mount-stacked"],
          lambda r: in_box(r.pid, ("none", "/tmp", "tmpfs", NOSUID | NODEV)))
    drift("the root writable", ["root-ro", "mapped-writable"],
          lambda r: in_box(r.pid, (None, "/", None, REMOUNT | BIND)))
    drift("kernel files writable", ["kernel-writable", "mount-foreign"],
          lambda r: in_box(r.pid, (None, "/sys", None, REMOUNT | BIND)))
    drift("a device", ["devices"], lambda r: os.mknod(
        f"/proc/{r.pid}/root/dev/mem", 0o20666, os.makedev(1, 1)))
    drift("code in a memfd", ["mapped-memory"], lambda r: r.do("memfd"))
    drift("capabilities by a user namespace", ["capabilities", "namespaces", "bpf-capable"],
          lambda r: r.do("unshare user"))


# ---- The command ----

def test_command():
    with check("kvfs guard check: a table, JSON, exit codes"):
        ran = kvfs("guard", "check", check=False)
        assert ran.returncode == 1 and "FAILED" in ran.stdout and "root-ro" in ran.stdout, ran
        assert kvfs("guard", "check", "--profile", "off").stdout.count("0 fail") == 1
        report = json.loads(kvfs("guard", "check", "--profile", "drift", "--json").stdout)
        assert report["state"] == "ok" and not report["findings"], report
        assert kvfs("guard", "check", "--profile", "none", check=False).returncode == 2
        with subprocess.Popen(["sleep", "60"], preexec_fn=die_with_parent) as reader:
            ran = kvfs("guard", "check", "--pid", reader.pid, check=False)
            assert ran.returncode == 1 and "no-new-privs" in ran.stdout, ran
            reader.kill()

    with check("kvfs guard explain: every check of the README, and the other way round"):
        with open(os.path.join(ROOT, "guard/README.md"), encoding="utf-8") as file:
            section = file.read().partition("\n## Checks\n")[2]
        table = re.findall(r"^\| `([a-z-]+)` \|", section, re.M)
        listed = re.findall(r"^([a-z][a-z-]+) ", kvfs("guard", "explain").stdout, re.M)
        assert listed == table, set(listed) ^ set(table)
        for one in listed:
            assert one in kvfs("guard", "explain", one).stdout
        assert kvfs("guard", "explain", "nonsense", check=False).returncode == 2

    with check("the digest of a profile: of what it means, not of how it is written"):
        def digest(text):
            write(path("profiles/d"), "profile d\n" + text)
            return json.loads(kvfs("guard", "check", "-j", "-p", path("profiles/d"),
                                   check=False).stdout)["digest"]
        same = digest("base strict\nadmit uid 1 2 # two\nbind /a\n")
        assert same == digest("base strict\nbind /a/\nadmit uid 2\n\nadmit uid 1\n")
        for other in ("", "swap ignore\n", "swap keep\n", "bind /a rw\n", "admit uid 3\n",
                      "period 999\n", "admit pin mnt\n", "device /dev/x\n"):
            if other:
                assert same != digest("base strict\nadmit uid 1 2\nbind /a\n" + other), other


def main():
    if os.geteuid() != 0:
        checks.skip("the guard", "only root can make what it is to find")
        return checks.finish()
    wait_for(lambda: os.path.exists(TOOL), what=TOOL)
    with open(path("docker.sock"), "w", encoding="ascii"):
        pass
    os.makedirs(path("other"))
    with open(path("other/file"), "w", encoding="ascii"):
        pass
    test_command()
    test_mounts()
    test_process()
    test_machine()
    test_readers()
    test_admission()
    test_no_false_alarm()
    test_containers()
    checks.note(f"{len(found_so_far)} kinds of drift were provoked and found")
    with check("at least 30 kinds of drift"):
        assert len(found_so_far) >= 30, sorted(found_so_far)
    return checks.finish()


sys.exit(main())
