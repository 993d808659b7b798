#!/usr/bin/env python3
"""Who else gets at what kvfs has in memory: its own user, a core file, swap space. What is set for the
whole machine (core_pattern, swap space) is set back."""
import contextlib
import ctypes
import functools
import json
import os
import shutil
import signal
import subprocess
import sys

from guardtest import TOOL, write_sys
from ksclient import Server, unb64
from kvfstest import (KVFS, Checks, Model, Skip, alive, as_user, die_with_parent, found_in, kvfs,
                      open_device, read_all, run, sanitized, turns, wait_for, workdir)
from test_lease import SHARDS, World, secrets_of

checks = Checks()
check = checks.check
MIB = 1 << 20
SOAK = bool(os.environ.get("KVFS_SOAK"))


class Marked:
    """An ordinary process with something known in its memory, which whoever looks has to find; some
    MiB of it, since not every page is taken at once."""

    script = ("import os, time; x = os.urandom(16).hex() * 4; print(x, flush=True); y = x * 40000; "
              "time.sleep(600)")

    def __init__(self, prefix=()):
        # pylint: disable=consider-using-with, subprocess-popen-preexec-fn
        self.process = subprocess.Popen([*prefix, sys.executable, "-c", self.script],
                                        stdout=subprocess.PIPE, preexec_fn=die_with_parent)
        self.known = {"marker": self.process.stdout.readline().strip()}
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


def readable(pid):
    """A process's first readable address."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return int(next(line for line in maps if " r" in line).split("-")[0], 16)


# ---- Its own user ----

PEEK = """
import ctypes, errno, os, sys
pid, at = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
part = lambda base: (ctypes.c_void_p * 2)(base, 16)
into = ctypes.create_string_buffer(16)
def result(done):
    return 'ok' if done else errno.errorcode[ctypes.get_errno()]
print(result(libc.process_vm_readv(pid, part(ctypes.addressof(into)), 1, part(at), 1, 0) == 16))
try:
    with open(f'/proc/{pid}/mem', 'rb') as memory:
        memory.seek(at)
        print('ok' if len(memory.read(16)) == 16 else 'short')
except OSError as error:
    print(errno.errorcode[error.errno])
print(result(libc.ptrace(0x4206, pid, None, None) == 0))  # PTRACE_SEIZE
"""


def peek(uid, pid):
    """What process_vm_readv, /proc/PID/mem and ptrace say to a process of this user, without any
    capability; and whether gcore makes a core of it."""
    ran = run(*as_user(uid), sys.executable, "-c", PEEK, pid, readable(pid), check=True)
    said = ran.stdout.split()
    if shutil.which("gcore"):
        where = os.path.join(workdir(), f"user-{uid}")
        os.makedirs(where, exist_ok=True)
        os.chown(where, uid, uid)
        run(*as_user(uid), "gcore", "-o", f"{where}/core", pid, cwd=where)
        made = [os.path.join(where, name) for name in os.listdir(where)]
        said.append("ok" if made else "refused")
        for one in made:
            os.unlink(one)
    return said


def test_own_user(model):
    if sanitized():
        checks.skip("its own user", "a sanitizer's build is dumpable")
        return
    with check("the worker's own user can read an ordinary process of his"):
        with Marked(as_user(65534)) as other:
            said = peek(65534, other.pid)
            assert set(said) == {"ok"}, said
            checks.note(f"{len(said)} ways to read memory" + ("" if len(said) == 4 else ", no gcore"))

    def refused(uid, pids):
        for pid in pids:
            said = peek(uid, pid)
            assert set(said) <= {"EPERM", "EACCES", "refused"}, (pid, said)

    with check("but not the worker: process_vm_readv, /proc/PID/mem, ptrace, gcore"):
        with model.mount() as m:
            read_all(model.shown(m))
            refused(65534, [m.worker])
            assert m.status()["state"] == "serving"
    with check("nor worker, supervisor or keeper of his own mount"):
        if not shutil.which("fusermount3"):
            raise Skip("no fusermount3")
        open_device()
        where = os.path.join(workdir(), "of-a-user")
        os.mkdir(where)
        for one in (where, os.path.dirname(model.reader), model.encrypted):
            run("chown", "-R", "1000:1000", one, check=True)
        with model.mount(prefix=as_user(1000), path=where) as m:
            refused(1000, m.pids.values())


# ---- A core ----

class Cores:
    """Has the kernel give each core to a script, whatever the process's limit."""

    pattern = "/proc/sys/kernel/core_pattern"

    def __init__(self):
        self.dir = os.path.join(workdir(), "cores")
        os.makedirs(self.dir, exist_ok=True)
        self.script = f"{self.dir}/take"
        with open(self.script, "w", encoding="ascii") as file:
            file.write(f"#!/bin/sh\ncat >{self.dir}/$1.part && mv {self.dir}/$1.part {self.dir}/$1\n")
        os.chmod(self.script, 0o755)
        with open(self.pattern, encoding="ascii") as file:
            self.before = file.read()

    def __enter__(self):
        try:
            write_sys(self.pattern, f"|{self.script} %p")
        except OSError as error:
            raise Skip(f"{self.pattern} can't be changed: {error.strerror}") from None
        return self

    def __exit__(self, *_):
        write_sys(self.pattern, self.before)

    def of(self, *pids):
        """The core of each process; None of one that leaves none."""
        for pid in pids:
            os.kill(pid, signal.SIGSEGV)
        wait_for(lambda: not any(alive(pid) for pid in pids), 10, "the end")
        names = [f"{self.dir}/{pid}" for pid in pids]
        with contextlib.suppress(AssertionError):
            wait_for(lambda: all(os.path.exists(name) for name in names), 1)
        return [read_all(name) if os.path.exists(name) else None for name in names]


def core_of(pid):
    """What a debugger, as root, takes for the core of a process that goes on."""
    if not shutil.which("gcore"):
        raise Skip("no gcore")
    name = os.path.join(workdir(), "debugger")
    run("gcore", "-o", name, pid, check=True)
    core = read_all(f"{name}.{pid}")
    os.unlink(f"{name}.{pid}")
    assert b"CORE" in core, len(core)
    return core


def test_cores(mounts):
    """Core files of the kernel, which is not to make any, and of a debugger."""
    if sanitized():
        checks.skip("cores", "a sanitizer's build is dumpable")
        return
    name, mount, known = mounts[0]
    with check("a crash: a core of an ordinary process, none of the worker; of a supervisor that a "
               "debugger made dumpable, one without keys"), Cores() as cores:
        with Marked() as other:
            core, = cores.of(other.pid)
            if not core:
                raise Skip("the kernel gives no core to a script here")
            assert found_in(core, other.known) == {"marker"}, len(core)
        with mount() as m:
            ran = run(TOOL, "inject", m.supervisor, "dumpable")
            assert ran.returncode == 0, ran
            core, none = cores.of(m.supervisor, m.worker)
            assert none is None, len(none)
            assert b"kvfs-supervisor" in core and not found_in(core, known), found_in(core, known)
    with check("a debugger's core of an ordinary process has what it had in memory"):
        with Marked() as other:
            assert found_in(core_of(other.pid), other.known) == {"marker"}
    for name, mount, known in mounts if SOAK else mounts[-1:]:
        with check(f"a debugger's core of worker and supervisor, keys from {name}: neither keys nor "
                   "plaintext, before sealing and after"), mount() as m:
            assert found_in(m.worker, known) == set(known), found_in(m.worker, known)
            for pid in (m.worker, m.supervisor):
                assert not found_in(core_of(pid), known), (pid, found_in(core_of(pid), known))
            kvfs("seal", m.path)
            assert not found_in(core_of(m.worker), known), found_in(core_of(m.worker), known)


# ---- Swap space ----

@contextlib.contextmanager
def cgroup():
    """A memory cgroup: (a prefix that puts a command into it, a function that takes from those in it
    all memory that it can)."""
    top = next((g for g in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")
                if os.path.exists(g + "/memory.stat")), "/sys/fs/cgroup")
    group = f"{top}/kvfs-test-{os.urandom(6).hex()}"
    try:
        os.mkdir(group)
    except OSError as error:
        raise Skip(f"no cgroup: {error.strerror}") from None

    def squeeze():
        with contextlib.suppress(OSError):  # not all could be taken
            write_sys(*how)
    try:
        how = next(((f"{group}/{name}", what) for name, what in
                    (("memory.force_empty", "0"), ("memory.reclaim", "8G"))
                    if os.path.exists(f"{group}/{name}")), None)
        if not how:
            raise Skip("no cgroup of which memory can be taken")
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"], squeeze
    finally:
        wait_for(lambda: not read_all(group + "/cgroup.procs"), 10, "the cgroup's emptying")
        os.rmdir(group)


class Swap:
    """Swap space in a file, nothing but this one."""

    def __init__(self, mib):
        self.path = os.path.join(workdir(), "swap")
        run("dd", "if=/dev/zero", f"of={self.path}", "bs=1M", f"count={mib}", "conv=fsync",
            check=True)
        os.chmod(self.path, 0o600)
        run("mkswap", self.path, check=True)

    def __enter__(self):
        ran = run("swapon", self.path)
        if ran.returncode:
            raise Skip(f"no swapon here: {ran.stderr.strip()}")
        return self

    def __exit__(self, *_):
        run("swapoff", self.path, check=True, timeout=120)
        os.unlink(self.path)

    @staticmethod
    def is_full():
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(line for line in file if line.startswith("SwapFree"))
        return int(free.split()[1]) < 8192

    def content(self):
        """From the disk: what the kernel swaps goes past its cache."""
        with open(self.path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return file.read()


def page_out(pid):
    """Has the kernel take all memory of a process that it may (process_madvise, MADV_PAGEOUT)."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            begin, end = (int(n, 16) for n in line.split()[0].split("-"))
            part = (ctypes.c_void_p * 2)(begin, end - begin)
            libc.syscall(440, pidfd, part, 1, 21, 0)  # EINVAL for what is locked
    os.close(pidfd)


def swapped(pid):
    """KiB of a process that are in swap space."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(next(line for line in status if line.startswith("VmSwap")).split()[1])


def on_swap(swap, mount, known):
    """What of a mount under pressure is found there, beside a process of which it has to be."""
    with cgroup() as (prefix, squeeze), Marked(prefix) as other, mount(prefix) as m:
        memory = m.status()["memory"]
        held = set(known) - ({"plaintext"} if memory["resident"] else set())
        assert found_in(m.worker, known) == held, found_in(m.worker, known)
        for _ in range(20 if SOAK else 3):
            m.read_again()
            squeeze()
            for pid in (other.pid, m.worker, m.supervisor):
                page_out(pid)
        if swap.is_full():
            raise Skip("others need memory so badly that they fill all swap space")
        wait_for(lambda: found_in(swap.content(), other.known), 10, "the marker in swap space")
        assert swapped(m.worker) > 0, "nothing of the worker was taken"
        found = found_in(swap.content(), known)
        checks.note(f"in swap space: {swapped(m.worker)} KiB of the worker, "
                    f"{swapped(m.supervisor)} KiB of the supervisor; of {memory['bound'] >> 20} "
                    f"MiB, {memory['locked'] >> 20} MiB are locked, {memory['resident'] >> 20} "
                    f"MiB are resident; found: {found or 'nothing'}")
        # As guard/THREATS.md says.
        may_be = not memory["resident"] and memory["locked"] + 2 * MIB < memory["bound"]
        return found - ({"plaintext"} if may_be else set())


def test_swap(model, mounts):
    """Keys never come to swap space; plaintext does where it may not all be locked, and is not
    resident: then `strict` refuses."""
    if sanitized():
        checks.skip("swap", "a sanitizer keeps copies")
        return
    with check("swap on: strict refuses; keys are not found in swap space"), \
            Swap(1024 if SOAK else 128) as swap:
        where = os.path.join(workdir(), "refused")
        os.mkdir(where)
        profile = os.path.join(workdir(), "swap.profile")
        with open(profile, "w", encoding="ascii") as file:
            file.write("profile swap\n* ignore\nswap require\n")
        not_all = ["setpriv", "--bounding-set=-sys_resource", "prlimit", f"--memlock={8 * MIB}"]
        for which in ("strict", profile):
            ran = run(*not_all, KVFS, "mount", model.encrypted, where, "--key", model.reader,
                      "--guard", which)
            assert ran.returncode == 1 and "guard: swap: " in ran.stderr, ran
        chosen = mounts if SOAK else mounts[-1:]
        for turn in turns(len(chosen)):
            name, mount, known = chosen[turn % len(chosen)]
            found = on_swap(swap, mount, known)
            assert not found, (name, found)


@contextlib.contextmanager
def reading(mount, prefix, name):
    """A mount of which a file is open and has been read."""
    mount.command = [*prefix, *mount.command]
    with mount as m, open(f"{m.path}/{name}", "rb") as file:
        def read_again():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            file.read()
        m.read_again = read_again
        read_again()
        yield m


def main():
    if os.geteuid() != 0:
        checks.skip("memory", "only root can look")
        return checks.finish()
    model = Model(mib=256 if SOAK else 16)
    with open(model.reader, encoding="ascii") as file:
        master = next(key["k"] for key in json.load(file)["keys"] if "k" in key)
    local = {"master key": unb64(master)}
    with Server() as server:
        world = World(server)

        def mounted(cache, prefix=()):
            return reading(model.mount(f"cache={cache}"), prefix, model.shard)

        def leased(prefix=()):
            return reading(world.mount(options=["cache=page"]), prefix, SHARDS[0])
        test_own_user(model)
        mounts = [("a file", functools.partial(mounted, "page"), local),
                  ("a server", leased, secrets_of(world))]
        test_cores(mounts)
        with_plaintext = {**local, "plaintext": model.plain_bytes()[-3 * MIB:-3 * MIB + 32]}
        test_swap(model, [("a file, resident", functools.partial(mounted, "resident"),
                           with_plaintext), *mounts])
    return checks.finish()


sys.exit(main())
