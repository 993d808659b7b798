#!/usr/bin/env python3
"""The guard: every drift of its own container is provoked for real, and has to be found by its name;
what is no drift must not be. And the command."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from guardtest import (NEW_NS, TOOL, Guard, Idle, Tool, check, checks, found_so_far, ids,
                       in_first_namespaces, keep, path, profile, said, write, write_sys)
from kvfstest import (ROOT, Model, Skip, as_user, die_with_parent, in_namespace, kvfs, run,
                      sanitized, turns, workdir)


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


def set_sysctl(file, value):
    """A socket for cores is taken from the first mount namespace only."""
    if value.startswith("@"):
        done = run("nsenter", "-t", "1", "-m", "sh", "-c", 'echo "$1" > "$2"', "sh", value, file)
        if done.returncode:
            raise OSError(done.stderr)
    else:
        write_sys(file, value)


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
        # Stands for a cgroup of version 2, which not every machine has.
        none = in_namespace("mount -t tmpfs none /sys/fs/cgroup; "
                            "echo 0 >/sys/fs/cgroup/memory.swap.max")
        with Guard(which) as g, Guard(which, "lock-all=4096") as locked, \
                Guard(which, f"lock-all={1 << 60}") as too_much, \
                Guard(which, prefix=none) as forbidden:
            if run("swapon", file).returncode:
                raise Skip("no swapon here")
            try:
                g.finds("swap")
                too_much.finds("swap")
                locked.finds_nothing()
                forbidden.finds_nothing()
            finally:
                run("swapoff", file, check=True)

    with check("machine: an eBPF program that traces"):
        with Guard(which) as g, Tool("load") as loader:
            if (answer := loader.line()) != "ok":
                raise Skip(f"bpf: {answer}")
            g.finds("bpf-programs")

    for name, value, what in (("core_pattern", "|/bin/true", "core-pattern"),
                              ("core_pattern", "@/run/core.socket", "core-pattern"),
                              ("unprivileged_bpf_disabled", "0", "bpf-unprivileged")):
        with check(f"machine: kernel.{name}"):
            file = f"/proc/sys/kernel/{name}"
            if not os.path.exists(file):
                raise Skip("not in this kernel")
            with open(file, encoding="ascii") as old:
                before = old.read()
            with Guard(which) as g:
                try:
                    set_sysctl(file, value)
                except OSError:
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


def test_no_false_alarm():
    """Beside a real mount that is read, with two processors busy and mounts coming and going. The
    mount has no guard of its own: its look for a tracer outside is a child that traces for a moment,
    which this guard would find."""
    model = Model(mib=16)
    with check("no false alarm while a mount is read"), model.mount("guard=off") as m:
        which = profile("calm", "base drift\n* ignore reader\nmapped-new keep\nperiod 50")
        with Guard(which, f"source={model.encrypted}", f"mount={m.path}") as g:
            assert g.ask(f"mounted {m.device}")["rc"] == 0
            for pid in m.pids.values():
                assert (got := g.ask(f"own {pid}"))["rc"] == 0, got["error"]
            busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"],
                                     preexec_fn=die_with_parent) for _ in range(2)]
            try:
                for turn in turns(15):
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

    with check("how a mount ends is no drift"):  # with AddressSanitizer it traces itself then
        quick = write(path("profiles/quick"), "profile quick\nbase drift\nperiod 20\n")
        audit = path("ends.audit")
        for _ in range(20):
            with model.mount(f"guard={quick}", f"audit={audit}"):
                pass
        with open(audit, encoding="utf-8") as file:
            events = [json.loads(line) for line in file]
        assert len(events) >= 20 and not any("drift" in str(e) for e in events), events


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
    with open(path("docker.sock"), "w", encoding="ascii"):
        pass
    os.makedirs(path("other"))
    with open(path("other/file"), "w", encoding="ascii"):
        pass
    test_command()
    test_mounts()
    test_process()
    test_machine()
    test_no_false_alarm()
    checks.note(f"{len(found_so_far)} kinds of drift were provoked and found")
    with check("at least 30 kinds of drift"):
        assert len(found_so_far) >= 30, sorted(found_so_far)
    return checks.finish()


sys.exit(main())
