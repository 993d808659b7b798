#!/usr/bin/env python3
"""The guard at work on real mounts: what drifts seals, whoever is not admitted is refused, and what was
given out is taken back."""
import base64
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from clitest import OWNER, READER, fresh, kvfs as kvfs_tool, path, prepare, read, secrets_of, write
from guardtest import new_cgroup
from holder import Holder, outcome
from kvfstest import (KVFS, SECONDS, Checks, Mount, Skip, alive, found_in, kvfs, processes, run,
                      sanitized, wait_for)

LIBC = ctypes.CDLL(None, use_errno=True)

checks = Checks()
check = checks.check


def model():
    """A model with a shard of some MiB, encrypted."""
    src = path("wide")
    os.mkdir(src)
    run(os.path.join(os.path.dirname(KVFS), "../../../packaging/make-model"), src, check=False)
    names = [n for n in os.listdir(src) if n.endswith(".safetensors")]
    if not names:
        src = path("src")
        names = [n for n in os.listdir(src) if n.endswith(".safetensors")]
    out = fresh("sealable")
    kvfs_tool("encrypt", src, "-o", out, "-k", OWNER, "-q")
    return out, sorted(names)[0]


def sealed_by(m, why, within=2.0):
    """Waits until it is sealed, and looks whether the reason is told."""
    status = wait_for(lambda: (s := m.status())["state"] == "sealed" and s, within, "the seal")
    assert why in status["sealed"], status["sealed"]
    return status


def test_seal(source, shard):
    for cache in ("page", "resident"):
        with check(f"kvfs seal: descriptors, mappings, new opens, side files (cache={cache})"):
            with Mount(source, keys=[READER], options=[f"cache={cache}"]) as m:
                name = f"{m.path}/{shard}"
                holders = [Holder(name), Holder(name, lock=True)]
                assert not any(holders[0].ask()) and not any(holders[1].ask())
                begin = time.monotonic()
                kvfs("seal", m.path)
                took = time.monotonic() - begin
                for holder in holders:
                    codes = holder.ask()
                    assert codes[0] in (errno.EKEYREVOKED, errno.ENODATA), codes
                    assert codes[1:] == [errno.EFAULT] * 2, codes
                    holder.end()
                assert outcome(lambda: read(name)) == errno.EKEYREVOKED
                assert outcome(lambda: read(f"{m.path}/config.json")) == errno.EKEYREVOKED
                assert os.listdir(m.path)  # names are no secret
                status = m.status()
                assert status["state"] == "sealed" and "kvfs seal" in status["sealed"], status
                kvfs("seal", m.path)  # once is enough
                checks.note(f"sealed in {took * 1000:.0f} ms")
    with check("kvfs seal is for root and the owner of the mount"):
        with Mount(source, keys=[READER], options=["umask=0"]) as m:
            ran = run("setpriv", "--reuid=1234", "--clear-groups", KVFS, "seal", m.path)
            assert ran.returncode == 1 and "not permitted" in ran.stderr, ran
            assert m.status()["state"] == "serving"
    with check("exit-on-seal: unmounted, and the exit code that was asked for"):
        where = fresh("exits")
        os.mkdir(where)
        with subprocess.Popen([KVFS, "mount", source, where, "-f", "--key", READER,
                               "--exit-on-seal=42"], stderr=subprocess.DEVNULL) as mount:
            wait_for(lambda: os.path.exists(f"{where}/{shard}"), 10, "the mount")
            holder = Holder(f"{where}/{shard}")
            kvfs("seal", where, check=False)
            assert mount.wait(10) == 42
            assert holder.gone(), holder.ask()
            holder.end()
            assert not os.listdir(where)


def test_memory(source, shard):
    if sanitized():
        checks.skip("memory after sealing", "a sanitizer keeps what was freed")
        return
    with check("master key and plaintext are in the worker's memory before, and not after sealing"):
        with Mount(source, keys=[READER], options=["cache=page"]) as m:
            text, = secrets_of(READER)
            known = {"master key": base64.b64decode(text + "==", altchars="-_"),
                     "plaintext": read(f"{m.path}/{shard}")[-70000:-69968]}
            assert found_in(m.worker, known) == set(known)
            known["its text"] = text.encode()
            kvfs("seal", m.path)
            for pid in (m.worker, m.supervisor, m.keeper):
                assert not found_in(pid, known), found_in(pid, known)


def test_drift(source, shard):
    def with_profile(name, text):
        write(path(name), f"profile {name}\n{text}\n")
        return path(name)

    quick = with_profile("quick", "base drift\nperiod 100\ngap 1500")
    with check("drift: something is mounted over a directory above the source"):
        top = fresh("above")
        os.makedirs(f"{top}/deep")
        os.rename(source, f"{top}/deep/model")
        try:
            with Mount(f"{top}/deep/model", keys=[READER]) as m:
                holder = Holder(f"{m.path}/{shard}")
                begin = time.monotonic()
                run("mount", "-t", "tmpfs", "none", f"{top}/deep", check=True)
                wait_for(holder.gone, 1.0, "the seal")
                checks.note(f"an event seals after {(time.monotonic() - begin) * 1000:.0f} ms")
                run("umount", f"{top}/deep", check=True)
                sealed_by(m, "mount-path")
                assert "guard: mount-path" in read(m.log).decode() if m.log else True
                holder.end()
        finally:
            os.rename(f"{top}/deep/model", source)
    with check("drift: a process of ours is stopped"):
        with Mount(source, keys=[READER], options=[f"guard={quick}"]) as m:
            read(f"{m.path}/{shard}")
            os.kill(m.keeper, signal.SIGSTOP)
            os.kill(m.keeper, signal.SIGCONT)
            os.kill(m.worker, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(m.worker, signal.SIGCONT)
            sealed_by(m, "stopped")
    with check("drift while the worker does not even listen: ended from outside, with the exit code"):
        deaf = with_profile("deaf", "base drift\nstopped ignore\nperiod 100\ngap 20000")
        where = fresh("deaf-mount")
        os.mkdir(where)
        os.makedirs(path("over/deep"))
        os.rename(source, path("over/deep/model"))
        with subprocess.Popen([KVFS, "mount", path("over/deep/model"), where, "-f", "--key", READER,
                               "--exit-on-seal=43", f"--guard={deaf}", "--cache=page"],
                              stderr=subprocess.DEVNULL) as mount:
            wait_for(lambda: os.path.exists(f"{where}/{shard}"), 10, "the mount")
            holder = Holder(f"{where}/{shard}")
            os.kill(processes(where)["worker"], signal.SIGSTOP)
            time.sleep(1)
            run("mount", "-t", "tmpfs", "none", path("over/deep"), check=True)
            assert mount.wait(10) == 43
            assert holder.gone(), holder.ask()
            holder.end()
        run("umount", path("over/deep"), check=True)
        os.rename(path("over/deep/model"), source)
    with check("a guard that falls silent: the worker seals by itself"):
        with Mount(source, keys=[READER], options=[f"guard={quick}"]) as m:
            holder = Holder(f"{m.path}/{shard}")
            os.kill(m.supervisor, signal.SIGSTOP)
            try:
                wait_for(holder.gone, 4, "the seal")
            finally:
                os.kill(m.supervisor, signal.SIGCONT)
            sealed_by(m, "silent", 3)
            holder.end()
    with check("guard=off: nothing is looked at"):
        with Mount(source, keys=[READER], options=["guard=off"]) as m:
            os.kill(m.worker, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(m.worker, signal.SIGCONT)
            assert m.status()["state"] == "serving" and m.status()["guard"]["profile"] == "none"


def test_link(source, shard):
    """The link between worker and guard, by which the guard's word comes: whoever spoils it, by sending
    what is no message, or by cutting it, is not served without a guard."""
    for name, deed in (("a message of the wrong form", lambda s: s.send(b"x")),
                       ("cut", lambda s: s.shutdown(socket.SHUT_RDWR))):
        with check(f"the guard's link: {name}: nothing is served any more"):
            write(path("patient"), "profile patient\nbase drift\ngap 3600000\n")
            with Mount(source, keys=[READER], options=[f"guard={path('patient')}"]) as m:
                pidfd = os.pidfd_open(m.worker)
                link = LIBC.syscall(438, pidfd, 7, 0)  # pidfd_getfd(2), KVFS_FD_GUARD
                assert link > 0, os.strerror(ctypes.get_errno())
                with socket.socket(fileno=link) as theirs:
                    deed(theirs)
                wait_for(lambda: outcome(lambda: read(f"{m.path}/{shard}")) in
                         (errno.EKEYREVOKED, errno.ENOENT), 15, "the seal, or the end of the mount")
                os.close(pidfd)


def test_admission(source, shard):
    def profile(name, text):
        write(path(name), f"profile {name}\nbase drift\n{text}\n")
        return path(name)

    name_of = os.path.basename(sys.executable)
    with check("admission by uid: EPERM, and why"):
        which = profile("uids", "reader-uid require\nadmit uid 4321")
        with Mount(source, keys=[READER], options=[f"guard={which}", "umask=0"]) as m:
            assert outcome(lambda: read(f"{m.path}/{shard}")) == errno.EPERM
            ran = run("setpriv", "--reuid=4321", "--clear-groups", "sha256sum", f"{m.path}/{shard}")
            assert ran.returncode == 0, ran
            failures = m.status()["failures"]
            assert any(f["error"] == "EPERM" and "not admitted" in f["message"] for f in failures), failures
            assert os.listdir(m.path) and m.status()["guard"]["admits"]
    with check("admission by program"):
        which = profile("exes", "reader-exe require\nadmit exe /usr/bin/sha256sum")
        with Mount(source, keys=[READER], options=[f"guard={which}"]) as m:
            assert outcome(lambda: read(f"{m.path}/{shard}")) == errno.EPERM, name_of
            assert run("sha256sum", f"{m.path}/{shard}").returncode == 0
            assert run("cat", f"{m.path}/config.json").returncode == 1
    with check("a reader that is traced after it was admitted: sealed"):
        which = profile("traced", "tracer require reader\nperiod 100")
        with Mount(source, keys=[READER], options=[f"guard={which}"]) as m:
            holder = Holder(f"{m.path}/{shard}")
            with subprocess.Popen(["strace", "-o", "/dev/null", "-p", str(holder.pid)],
                                  stderr=subprocess.DEVNULL) as strace:
                sealed_by(m, "tracer", 5)
                strace.terminate()
            holder.end()
    with check("a second reader in another cgroup: EPERM; the first one moved there: sealed"):
        which = profile("pinned", "reader-pin require\nadmit pin cgroup\nperiod 100")
        with new_cgroup() as procs, Mount(source, keys=[READER],
                                          options=[f"guard={which}"]) as m:
            holder = Holder(f"{m.path}/{shard}")
            ran = run("sh", "-c", f"echo $$ >{procs}; exec sha256sum {m.path}/{shard}")
            assert ran.returncode == 1 and "not permitted" in ran.stderr, ran
            assert run("sha256sum", f"{m.path}/{shard}").returncode == 0
            assert m.status()["state"] == "serving" and not holder.gone()
            write(procs, str(holder.pid))
            wait_for(holder.gone, 2, "the seal")
            sealed_by(m, "reader-pin: it is in another cgroup")
            holder.end()
    with check("600 opens at once: none is refused because the guard is busy"):
        which = profile("crowd", "reader-uid require\nadmit uid 0")
        with Mount(source, keys=[READER], options=[f"guard={which}"]) as m:
            codes = []
            start = threading.Barrier(600)

            def one():
                start.wait()
                codes.append(outcome(lambda: os.close(os.open(f"{m.path}/config.json", os.O_RDONLY))))

            threading.stack_size(1 << 17)
            crowd = [threading.Thread(target=one) for _ in range(600)]
            for thread in crowd:
                thread.start()
            for thread in crowd:
                thread.join()
            threading.stack_size(0)
            assert codes == [0] * 600, set(codes)
    with check("an open costs little more"):
        which = profile("timed", "reader-uid require\nadmit uid 0")
        for _ in range(3):
            medians = []
            for options in (["guard=off"], [f"guard={which}"]):
                with Mount(source, keys=[READER], options=options) as m:
                    times = []
                    for _ in range(300):
                        begin = time.perf_counter()
                        os.close(os.open(f"{m.path}/config.json", os.O_RDONLY))
                        times.append(time.perf_counter() - begin)
                    medians.append(sorted(times)[len(times) // 2])
            checks.note(f"an open: {medians[0] * 1e6:.0f} us, admitted {medians[1] * 1e6:.0f} us")
            if medians[1] - medians[0] < (0.005 if sanitized() else 0.0005):
                break
        else:
            raise AssertionError(medians)


def test_strict(source):
    with check("strict where it does not hold: no mount, and each reason with what to do"):
        where = fresh("strict-here")
        os.mkdir(where)
        ran = kvfs("mount", source, where, "--key", READER, "--guard=strict", check=False)
        assert ran.returncode == 1 and "guard: root-ro:" in ran.stderr, ran
        assert "guard: capabilities:" in ran.stderr and not os.listdir(where)
    with check("memlock: refused where less may be locked than keys need, by strict too"):
        write(path("locks"), "profile locks\n* ignore\nmemlock require\n")
        little = ["setpriv", "--bounding-set=-sys_resource", "prlimit", "--memlock=524288"]
        for which in (path("locks"), "strict"):
            ran = run(*little, KVFS, "mount", source, where, "--key", READER, "--guard", which)
            assert ran.returncode == 1 and "guard: memlock: 512 KiB" in ran.stderr, ran
            assert "1024 KiB are needed" in ran.stderr and "--ulimit memlock" in ran.stderr, ran
        ran = run(*little, KVFS, "guard", "check")
        assert "FAILED  memlock" in ran.stdout, ran
        ran = kvfs("mount", source, where, "--key", READER, "--guard=strict", check=False)
        assert "guard: memlock" not in ran.stderr, ran
    with check("memlock: enough for keys; drift only wants that it stays"):
        for which, limit in ((path("locks"), 4 << 20), ("drift", 1 << 19)):
            with Mount(source, keys=[READER], options=[f"guard={which}"],
                       prefix=[*little[:-1], f"--memlock={limit}"]) as m:
                status = m.status()
                assert status["state"] == "serving", status
                assert sanitized() or 0 < status["memory"]["locked"] <= limit, status["memory"]
    with check("all is locked where it may be"):
        enough = ["prlimit", f"--memlock={96 << 20}"]
        if run(*enough, "true").returncode:
            raise Skip("the limit can't be raised here")
        if sanitized():
            raise Skip("a sanitizer locks nothing")
        with Mount(source, keys=[READER], options=["memory=32M"], prefix=enough) as m:
            assert m.status()["memory"]["locked"] >= 30 << 20, m.status()["memory"]
    with check("a profile that is none: usage"):
        write(path("broken"), "profile broken\nno-such-check require\n")
        for which in ("sometimes", path("broken"), path("nowhere/else")):
            ran = kvfs("mount", source, where, "--key", READER, f"--guard={which}", check=False)
            assert ran.returncode in (1, 2) and "guard" in ran.stderr, ran


def test_quiet(source, shard):
    with check("no false alarm: reading, mounts elsewhere, a warming mount, busy loops"):
        other = fresh("elsewhere")
        os.mkdir(other)
        with Mount(source, keys=[READER], options=["warm", "cache=page"]) as m:
            until = time.monotonic() + min(SECONDS, 5)
            stop = threading.Event()
            spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                        for _ in range(4)]
            try:
                while time.monotonic() < until and m.status()["state"] == "serving":
                    run("mount", "-t", "tmpfs", "none", other, check=True)
                    read(f"{m.path}/{shard}")
                    run("umount", other, check=True)
            finally:
                stop.set()
                for spinner in spinners:
                    spinner.kill()
                    spinner.wait()
            assert m.status()["state"] == "serving", m.status()["sealed"]


def main():
    prepare()
    source, shard = model()
    test_seal(source, shard)
    test_memory(source, shard)
    test_drift(source, shard)
    test_link(source, shard)
    test_admission(source, shard)
    test_strict(source)
    test_quiet(source, shard)
    return checks.finish()


if os.geteuid() != 0:
    checks.skip("seals", "root mounts and unmounts here")
    sys.exit(checks.finish())
sys.exit(main())
