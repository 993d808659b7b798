#!/usr/bin/env python3
"""Who does what behind a mount, and what is left when one of them dies: supervisor, worker, keeper;
the worker's sandbox as /proc shows it; unmounting. No dead mount is left by any of these."""
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from kvfstest import (KVFS, Checks, Model, abort, as_user, die_with_parent, kvfs, mounts_at, no_mount,
                      proc_status, read_all, run, sanitized, wait_for, workdir)


# ---- deaths ----

def deaths(checks, model):
    ways = {
        "worker": lambda m: [m.worker],
        "supervisor": lambda m: [m.supervisor],
        "worker and supervisor": lambda m: [m.worker, m.supervisor],
        "supervisor and worker": lambda m: [m.supervisor, m.worker],
        "keeper": lambda m: [m.keeper],
        "all three": lambda m: [m.supervisor, m.worker, m.keeper],
    }
    for name, victims in ways.items():
        for busy in (False, True):
            with checks.check(f"kill -9 of {name}{' while 4 readers read' if busy else ''}"):
                death(checks, model, victims, name, busy)


class Readers:
    """Processes that read a shard over and over, dropping what is cached; each ends with exit 0 at
    the first error, if it saw nothing but right bytes until then."""

    SCRIPT = """
import os, sys
want = open(sys.argv[2], "rb").read()
for _ in range(100000):
    try:
        fd = os.open(sys.argv[1], os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        at = 0
        while at < len(want):
            part = os.pread(fd, 1 << 20, at)
            if not part:
                break
            if part != want[at:at + len(part)]:
                print("WRONG BYTES", flush=True)
                sys.exit(1)
            at += len(part)
        os.close(fd)
        print("read", flush=True)
    except OSError as error:
        sys.exit(0)
"""

    def __init__(self, m, model, count):
        self.all = [subprocess.Popen([sys.executable, "-c", self.SCRIPT,
                                      os.path.join(m.path, model.shard),
                                      os.path.join(model.plain, model.shard)],
                                     stdout=subprocess.PIPE, preexec_fn=die_with_parent)
                    for _ in range(count)]
        for process in self.all:
            assert process.stdout.readline() == b"read\n", "a reader can't read"

    def end(self):
        """All end by themselves, soon."""
        for process in self.all:
            out, _ = process.communicate(timeout=20)
            assert process.returncode == 0 and b"WRONG" not in out, out

    def go_on(self):
        """None was disturbed."""
        for process in self.all:
            assert process.poll() is None, "a reader ended"
            process.kill()
            process.communicate()


def let_go(checks, m):
    """What the README says to do when a worker can't die, since a thread of it was just handing
    pages to the kernel, and nobody is there who ends the connection."""
    with contextlib.suppress(AssertionError):
        m.wait_gone(2)
        return
    checks.note("all three killed: one can't die; unmounted by force")
    m.umount("-f", "-l", check=False)
    abort(m.device)


def death(checks, model, victims, name, busy):
    with model.mount() as m:
        path = os.path.join(m.path, model.shard)
        with open(path, "rb") as held:
            held.read(4096)
            readers = Readers(m, model, 4 if busy else 0)
            start = time.monotonic()
            for pid in victims(m):
                os.kill(pid, signal.SIGKILL)
            if name == "keeper":  # not needed while the others live
                assert read_all(path) == model.plain_bytes()
                readers.go_on()
                return
            if name == "all three":
                let_go(checks, m)
            wait_for(lambda: not mounts_at(m.path), 10, "unmounting")
            took = time.monotonic() - start
            m.wait_gone(10)
            readers.end()
            # With all three dead in the same instant, what others had cached stays.
            if not busy or name != "all three":
                with contextlib.suppress(OSError):
                    held.seek(8 << 20)
                    assert not held.read(4096), "read after the worker's death"
        no_mount(m.path)
        assert took < (10 if sanitized() else 3), f"unmounted after {took:.1f} s"
    with model.mount(path=m.path) as again:  # the place is free again
        assert read_all(os.path.join(again.path, model.shard)) == model.plain_bytes()


def by_force(checks, model):
    """Nobody of kvfs answers any more: -f ends who waits."""
    with checks.check("umount -f ends reads that nobody answers"):
        with model.mount("guard=off", "cache=direct") as m:
            path = os.path.join(m.path, model.shard)
            stopped = [m.worker, m.supervisor, m.keeper]
            with open(path, "rb"):  # its header is read
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                with subprocess.Popen(["dd", f"if={path}", "of=/dev/null", "bs=1M"],
                                      stderr=subprocess.PIPE, preexec_fn=die_with_parent) as reader:
                    time.sleep(0.3)
                    assert reader.poll() is None, "it read"
                    m.umount("-f", "-l")
                    reader.communicate(timeout=5)
                    assert reader.returncode == 1
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            m.wait_gone(10)
    with checks.check("umount -f is for root"):
        result = run(*as_user(65534), KVFS, "umount", "-f", workdir())
        assert result.returncode == 1, result


def cached_pages(checks, model):
    """After the worker's death what is cached and mapped is revoked too."""
    with checks.check("kill -9 of the worker revokes cached and mapped pages"):
        with model.mount() as m:
            path = os.path.join(m.path, model.shard)
            fd = os.open(path, os.O_RDONLY)
            size = os.fstat(fd).st_size
            at = 0
            while at < size:
                at += len(os.pread(fd, 1 << 20, at))
            script = ("import mmap, os, sys, time\n"
                      "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
                      "m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n"
                      "n = sum(m[i] for i in range(0, len(m), 4096))\n"
                      "print('mapped', flush=True)\n"
                      "sys.stdin.readline()\n"
                      "n = sum(m[i] for i in range(0, len(m), 4096))\n"
                      "print('still readable', flush=True)\n")
            mapper = subprocess.Popen([sys.executable, "-c", script, path], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, preexec_fn=die_with_parent)
            assert mapper.stdout.readline() == b"mapped\n"
            os.kill(m.worker, signal.SIGKILL)
            wait_for(lambda: not mounts_at(m.path), 10, "unmounting")
            readable = 0
            for at in range(0, size, 1 << 20):
                with contextlib.suppress(OSError):
                    readable += len(os.pread(fd, 4096, at))
            os.close(fd)
            out, _ = mapper.communicate(b"\n", timeout=20)
            assert readable == 0, f"{readable} bytes by pread"
            assert mapper.returncode == -signal.SIGBUS, f"mapping: {mapper.returncode} {out}"


def stopped_worker(checks, model):
    with checks.check("a worker that hangs: SIGTERM to the supervisor still ends the mount"):
        with model.mount("guard=off") as m:  # which would have it sealed
            os.kill(m.worker, signal.SIGSTOP)
            os.kill(m.supervisor, signal.SIGTERM)
            m.wait_gone(15)
            no_mount(m.path)
    with checks.check("a worker that hangs: umount -l takes the mount away at once"):
        with model.mount("guard=off") as m:  # which would have it sealed
            os.kill(m.worker, signal.SIGSTOP)
            m.umount("-l")
            no_mount(m.path)
            os.kill(m.worker, signal.SIGCONT)
            m.wait_gone(10)


# ---- the sandbox ----

def sandbox(checks, model):
    with model.mount() as m:
        worker, supervisor = proc_status(m.worker), proc_status(m.supervisor)
        checks.note(f"worker: seccomp {worker['Seccomp']}, threads {worker['Threads']}")
        with checks.check("the worker has no root, no groups, no capabilities, no new privileges"):
            assert worker["Uid"].split() == ["65534"] * 4, worker["Uid"]
            assert worker["Gid"].split() == ["65534"] * 4, worker["Gid"]
            assert not worker.get("Groups", "").strip(), worker["Groups"]
            for which in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(worker[which], 16) == 0, f"{which} {worker[which]}"
            assert worker["NoNewPrivs"] == "1"
        with checks.check("every thread of the worker has the system call filter"):
            for thread in os.listdir(f"/proc/{m.worker}/task"):
                assert proc_status(f"{m.worker}/task/{thread}")["Seccomp"] == "2", thread
        with checks.check("the worker holds no directory, no file, no socket but supervisor's, "
                          "guard's and fusermount3's"):
            links = {fd: os.readlink(f"/proc/{m.worker}/fd/{fd}")
                     for fd in os.listdir(f"/proc/{m.worker}/fd")}
            sockets = [fd for fd, target in links.items() if target.startswith("socket:")]
            assert set(sockets) == {"3", "4", "7"}, links  # 7: the guard's
            own = (f"/proc/{m.worker}/status", "/dev/fuse", "/dev/null")
            odd = {target for target in links.values()
                   if not target.startswith(("socket:", "pipe:", "anon_inode:")) and
                   target not in own}
            assert not odd, odd
        with checks.check("the worker's environment is empty"):
            with open(f"/proc/{m.worker}/environ", "rb") as file:
                names = [v.split(b"=")[0] for v in file.read().split(b"\0") if v]
            assert all(n.endswith(b"SAN_OPTIONS") for n in names), names
        with checks.check("no core dumps: limit 0, and nobody of the same user may trace it"):
            with open(f"/proc/{m.worker}/limits", encoding="ascii") as file:
                core = next(line for line in file if line.startswith("Max core"))
            assert core.split()[4:6] == ["0", "0"], core
            if not sanitized():
                as_worker = run(*as_user(65534), "cat", f"/proc/{m.worker}/maps")
                assert as_worker.returncode != 0, "its memory map is readable"
        with checks.check("the supervisor holds no key bytes: its key descriptors are closed"):
            links = [os.readlink(f"/proc/{m.supervisor}/fd/{fd}")
                     for fd in os.listdir(f"/proc/{m.supervisor}/fd")]
            assert not [v for v in links if ".jwk" in v], links
            assert supervisor["Uid"].split()[0] == "0"
        with checks.check("keys are in no argument and in no memory of supervisor or keeper"):
            for pid in (m.supervisor, m.keeper):
                whole = memory(pid)
                assert len(whole) > 1 << 20, "its memory was not read"
                for secret in secrets_of(model.reader):
                    assert secret not in whole, f"found in process {pid}"
        with checks.check("the worker locks what it holds of keys into RAM, and says how much"):
            said = m.status()["memory"]
            assert said["secrets"] > 0, said
            # A sanitizer makes mlock(2) do nothing.
            assert sanitized() or said["locked"] >= said["secrets"], said


def secrets_of(jwks):
    """Secret keys, as the file has them and as bytes."""
    texts = [k["k"] for k in json.loads(read_all(jwks))["keys"] if "k" in k]
    return [t.encode() for t in texts] + [base64.urlsafe_b64decode(t + "==") for t in texts]


def memory(pid):
    """All readable private memory of a process."""
    parts = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, \
            open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            where, mode = line.split()[:2]
            begin, end = (int(x, 16) for x in where.split("-"))
            if mode[0] != "r" or end - begin > 1 << 30 or "[v" in line:
                continue
            with contextlib.suppress(OSError, OverflowError, ValueError):
                mem.seek(begin)
                parts.append(mem.read(end - begin))
    return b"\0".join(parts)


# ---- unmounting ----

def has_open(pid, path):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # a program that just starts closes some
            if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                return True
    return False


def unmounting(checks, model):
    with checks.check("umount while a file is open names the process and its file"):
        with model.mount() as m:
            path = os.path.join(m.path, model.shard)
            holder = subprocess.Popen(["tail", "-f", path], stdout=subprocess.DEVNULL,
                                      preexec_fn=die_with_parent)
            wait_for(lambda: has_open(holder.pid, path), 5, "opening")
            refused = m.umount(check=False)
            assert refused.returncode == 1
            assert f"{holder.pid} tail" in refused.stderr, refused.stderr
            assert model.shard in refused.stderr, refused.stderr
            assert f"kvfs umount -l {m.path}" in refused.stderr, refused.stderr
            holder.kill()
            holder.wait()
            m.umount()
            m.wait_gone(10)
    with checks.check("umount while somebody works in it names who"):
        with model.mount() as m:
            holder = subprocess.Popen(["sleep", "60"], cwd=m.path, preexec_fn=die_with_parent)
            refused = m.umount(check=False)
            assert refused.returncode == 1 and f"{holder.pid} sleep" in refused.stderr, \
                refused.stderr
            holder.kill()
            holder.wait()
    with checks.check("umount -l: gone at once; who has a file open reads on; then all end"):
        with model.mount() as m:
            with open(os.path.join(m.path, model.shard), "rb") as held:
                head = held.read(100)
                m.umount("-l")
                no_mount(m.path)
                rest = held.read()
            assert head + rest == model.plain_bytes()
            m.wait_gone(10)
    with checks.check("umount of what is not mounted says so"):
        result = kvfs("umount", workdir(), check=False)
        assert result.returncode == 1 and "no kvfs is mounted at" in result.stderr, result.stderr
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        for busy in (False, True):
            with checks.check(f"{name} to the supervisor{' while a file is open' if busy else ''}"):
                with model.mount() as m:
                    held = open(os.path.join(m.path, model.shard), "rb") if busy else None
                    if held:
                        held.read(100)
                    os.kill(m.supervisor, getattr(signal, name))
                    m.wait_gone(10)
                    no_mount(m.path)
                    if held:
                        with contextlib.suppress(OSError):
                            assert not held.read(1 << 20), "it stayed readable"
                        with contextlib.suppress(OSError):
                            held.close()
    with checks.check("SIGTERM to the worker and keeper changes nothing"):
        with model.mount() as m:
            os.kill(m.worker, signal.SIGTERM)
            os.kill(m.keeper, signal.SIGTERM)
            time.sleep(0.2)
            assert read_all(os.path.join(m.path, model.shard))
    with checks.check("plain umount(8) and fusermount3 -u work too"):
        for command in (["umount"], ["fusermount3", "-u"]):
            with model.mount() as m:
                run(*command, m.path, check=True)
                m.wait_gone(10)
    with checks.check("foreground: SIGINT ends it with exit 0"):
        path = os.path.join(workdir(), "fg")
        os.mkdir(path)
        process = subprocess.Popen([KVFS, "mount", "-f", model.encrypted, path, "--key",
                                    model.reader], stderr=subprocess.PIPE,
                                   preexec_fn=die_with_parent)
        wait_for(lambda: mounts_at(path) and os.path.exists(os.path.join(path, model.shard)), 10)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0, process.stderr.read()
        no_mount(path)


def bombardment(checks, model):
    """Mounts and unmounts over and over, with readers: no process, no mount is left."""
    path = os.path.join(workdir(), "again")

    def read():
        with contextlib.suppress(OSError):  # it may come too late
            shutil.copyfile(os.path.join(path, model.shard), os.devnull)

    with checks.check("20 mounts and unmounts under readers"):
        for turn in range(20):
            m = model.mount(path=path).mount()
            thread = threading.Thread(target=read)
            thread.start()
            if turn % 2:
                thread.join()
            m.umount(*(["-l"] if turn % 4 == 0 else []), check=False)
            thread.join()
            if m.mounted:
                m.umount()
            m.wait_gone(20)
            no_mount(path)


def main():
    checks = Checks()
    model = Model()
    deaths(checks, model)
    by_force(checks, model)
    cached_pages(checks, model)
    stopped_worker(checks, model)
    sandbox(checks, model)
    unmounting(checks, model)
    bombardment(checks, model)
    return checks.finish()


sys.exit(main())
