#!/usr/bin/env python3
"""Containers for real, with runc: a daemon without any privilege whose mount kvfs-mounter makes,
and a reader that sees /models and nothing else. Whoever dies, no dead mount is left and no page stays
readable. Who is not the daemon gets nothing of the mounter, and no swapped path moves its mount."""
import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib

from kvfstest import (KVFS, Checks, Model, Skip, die_with_parent, kvfs, mounts_at, no_mount, outcome,
                      proc_status, read_all, run, sanitized, wait_for, workdir)
from podtest import (LOCAL_KEYS, MEMLOCK, MOUNTER, PACKAGING, SLOW, USER, Pod, PodmanPod, bundle,
                     daemon_rootfs, runc, why_no_podman, why_not)

STRICT = ("--guard", "/keys/sidecar.profile")


def digest(data):
    return str(zlib.crc32(data))


# ---- what each may and sees ----

def layout(checks, model):
    with Pod(model) as pod:
        plain = [digest(model.plain_bytes(n)) for n in range(len(model.shards))]
        with checks.check("the reader's container gets the right bytes"):
            for n, want in enumerate(plain):
                assert pod.reader.ask("read", pod.path(n)) == want, n
        with checks.check("it sees /models, and nothing else of ours"):
            assert pod.reader.ask("list", "/models") == ["llm"]
            for path in ("/encrypted", "/keys", "/run/kvfs"):
                assert pod.reader.ask("list", path) == [], path
            mounts = [line.split() for line in pod.reader.ask("mounts").splitlines()]
            flags = next(m for m in mounts if m[4] == "/models/llm")[5].split(",")
            assert {"ro", "nosuid", "nodev", "noexec"} <= set(flags), flags
        with checks.check("the mounter sets the read-ahead"):
            device = mounts_at(pod.target)[-1][0]
            assert read_all(f"/sys/class/bdi/{device}/read_ahead_kb").strip() == b"1024"
        with checks.check("the daemon has no privilege: no capability, no root, no new privileges, "
                          "a filter, a read-only root"):
            pids = pod.pids()
            assert set(pids) == {"kvfs-supervisor", "kvfs-worker", "kvfs-keeper"}, pids
            for name, pid in pids.items():
                status = proc_status(pid)
                assert status["Uid"].split() == [str(USER)] * 4, (name, status["Uid"])
                for which in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                    assert int(status[which], 16) == 0, (name, which)
                assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), name
            with open(f"/proc/{pids['kvfs-supervisor']}/mountinfo", encoding="ascii") as table:
                mounts = [line.split() for line in table]
            assert "ro" in next(m for m in mounts if m[4] == "/")[5].split(",")
            assert not os.path.exists(f"/proc/{pids['kvfs-supervisor']}/root/dev/fuse")
            assert not [m for m in mounts if "fuse" in m[m.index("-") + 1]]
        with checks.check("there is no shell in it, and no file but kvfs, libraries, /etc"):
            odd = [os.path.join(top, name) for top, _, names in os.walk(daemon_rootfs())
                   for name in names if "/etc/" not in top + "/" and ".so" not in name]
            assert odd == [daemon_rootfs() + "/usr/bin/kvfs"], odd
        with checks.check("a reader whose uid is not the daemon's is admitted by allow-other and "
                          "mode alone"):
            assert os.stat(os.path.join(pod.target, model.shard)).st_uid == USER
            other = run("setpriv", "--reuid", "2000", "--clear-groups", "--regid", "2000", "cat",
                        os.path.join(pod.target, model.shard))
            assert other.returncode and "Permission denied" in other.stderr, other.stderr
        with checks.check("SIGTERM to the daemon unmounts, and it ends with 0"):
            pod.daemon.kill("TERM")
            assert pod.daemon.wait() == 0, pod.daemon.said()
            no_mount(pod.target)
            assert pod.reader.ask("list", "/models/llm") == []
        with checks.check("another daemon, another mount, which the running reader sees"):
            pod.start_daemon()
            assert pod.reader.ask("read", pod.path()) == plain[0]
        with checks.check("umount(8) by the host ends the daemon, with 0"):
            run("umount", pod.target, check=True)
            assert pod.daemon.wait() == 0, pod.daemon.said()
            no_mount(pod.target)


def guarded(checks, model):
    """The options of a mount under `strict`; none where there can be none."""
    if sanitized():
        checks.skip("guard", "a sanitizer's build is dumpable, and more")
        return ()
    pod = Pod(model, *STRICT, "--exit-on-seal", "42")
    with contextlib.ExitStack() as stack:
        stack.callback(pod.__exit__)
        pod.start_mounter()
        try:
            pod.start_daemon()
        except AssertionError as error:
            faults = re.findall(r"guard: (swap|core-pattern|bpf-\w+): .*", str(error))
            if not faults:
                raise
            checks.skip("guard", f"this machine is not as strict wants it: {faults}")
            return ()
        pod.start_reader()
        with checks.check("guard: a reader in the daemon's PID namespace is admitted"):
            got = pod.reader.ask("read", pod.path())
            assert got == digest(model.plain_bytes()), pod.daemon.said()
        with checks.check("guard: one outside of it is not, though root"):
            assert outcome(os.path.join(pod.target, model.shards[1])) == "EPERM"
        with checks.check("guard: the host mounts into the reader's container: the mount is removed, "
                          "the daemon ends with its code, and the reader with its PID namespace"):
            pod.reader.ask("hold", pod.path())
            script = ("import ctypes, os, sys\n"
                      "libc = ctypes.CDLL(None, use_errno=True)\n"
                      "assert libc.setns(os.open(sys.argv[1], os.O_RDONLY), 0x20000) == 0\n"
                      "assert libc.mount(b'none', b'/encrypted', b'tmpfs', 0, None) == 0\n")
            run(sys.executable, "-c", script, f"/proc/{pod.reader.pid}/ns/mnt", check=True)
            assert pod.daemon.wait() == 42, pod.daemon.said()
            assert "mount-" in pod.daemon.said()
            no_mount(pod.target)
            assert pod.reader.wait() == 128 + signal.SIGKILL
    return STRICT


# ---- deaths ----

def deaths(checks, model):
    ways = {
        "the worker": lambda pod: [pod.pids()["kvfs-worker"]],
        "the supervisor, which is the container's pid 1": lambda pod: [pod.daemon.pid],
        "the supervisor while a read waits": lambda pod: [pod.daemon.pid],
        "the mounter while a read waits": lambda pod: [pod.mounter.pid],
        "the mounter": lambda pod: [pod.mounter.pid],
        "the mounter's keeper": lambda pod: [pod.keeper()],
        "mounter, then daemon": lambda pod: [pod.mounter.pid, pod.daemon.pid],
        "daemon, then mounter": lambda pod: [pod.daemon.pid, pod.mounter.pid],
        "mounter and its keeper": lambda pod: [pod.mounter.pid, pod.keeper()],
    }
    for name, victims in ways.items():
        with checks.check(f"kill -9 of {name}"):
            death(model, name, victims)
    with checks.check("kill -9 of the reader disturbs nobody"), Pod(model) as pod:
        pod.reader.ask("hold", pod.path())
        pod.reader.kill()
        pod.reader.wait()
        pod.start_reader()
        assert pod.reader.ask("read", pod.path()) == digest(model.plain_bytes())


def waiting_reader(pod):
    """A read whose answer never comes: the worker has taken it, and stands still."""
    os.kill(pod.pids()["kvfs-worker"], signal.SIGSTOP)
    path = os.path.join(pod.target, pod.model.shards[1])
    reader = subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              preexec_fn=die_with_parent)
    wait_for(lambda: read_all(f"/proc/{reader.pid}/wchan") != b"0", 5, "waiting")
    return reader


def hanging(checks, model):
    with checks.check("a daemon that hangs, with a read that waits: SIGTERM to the mounter takes "
                      "everything back, and waits for nobody"), Pod(model) as pod:
        pod.reader.ask("hold", pod.path())
        waiting = waiting_reader(pod)
        for pid in pod.pids().values():
            os.kill(pid, signal.SIGSTOP)
        pod.mounter.terminate()
        assert pod.mounter.wait(5) == 0
        no_mount(pod.target)
        assert pod.reader.ask("left", pod.path()) == [0, "SIGBUS"]
        assert waiting.wait(5) != 0


def silence(checks, model):
    seconds = 8 if sanitized() else 5
    with checks.check("a guard that is at work keeps the mounter's mount, also a sealed one"):
        pod = Pod(model)
        pod.configure(silence=seconds)
        with pod:
            time.sleep(seconds + 1)
            assert pod.reader.ask("read", pod.path()) == digest(model.plain_bytes())
            kvfs("seal", pod.target)
            time.sleep(seconds + 1)
            assert mounts_at(pod.target)
            assert outcome(os.path.join(pod.target, model.shard)) == "EKEYREVOKED"
    with checks.check("all of kvfs stopped in the same instant: the mounter takes everything back"):
        pod = Pod(model)
        pod.configure(silence=seconds)
        with pod:
            pod.reader.ask("hold", pod.path())
            pids = pod.pids()
            for pid in pids.values():
                os.kill(pid, signal.SIGSTOP)
            # Whoever goes on connecting meanwhile keeps it from nothing.
            wait_for(lambda: all(pod.answers() for _ in range(50)) and not mounts_at(pod.target),
                     seconds + 3, "unmounting")
            assert pod.reader.ask("left", pod.path()) == [0, "SIGBUS"]
            for pid in pids.values():
                with contextlib.suppress(ProcessLookupError):  # with the container's first one
                    os.kill(pid, signal.SIGCONT)
            pod.daemon.wait()


def death(model, name, victims):
    pod = Pod(model)
    with pod:
        assert pod.reader.ask("hold", pod.path()) == digest(model.plain_bytes())
        busy = waiting_reader(pod) if "waits" in name else None
        started = time.monotonic()
        both = name == "mounter and its keeper"
        dying = victims(pod)
        for number in (signal.SIGSTOP, signal.SIGKILL) if both else (signal.SIGKILL,):
            for pid in dying:  # of both, none sees the other one's end
                os.kill(pid, number)
        if name == "the mounter's keeper":  # not needed while the mounter lives
            assert pod.reader.ask("read", pod.path()) == digest(model.plain_bytes())
            return
        if both:
            pod.daemon.wait()
        else:
            wait_for(lambda: not mounts_at(pod.target), 10, "unmounting")
            assert time.monotonic() - started < 4 * SLOW, "it took long"
            no_mount(pod.target)
            assert pod.reader.ask("list", "/models/llm") == [], "the reader's copy is still there"
        by_read, by_map = pod.reader.ask("left", pod.path())
        assert by_read == 0, f"{by_read} pages can be read"
        assert by_map == "SIGBUS", f"mapped: {by_map}"
        if busy:
            assert busy.wait(10) != 0, "the read that waited got bytes"
        if both:  # the next one takes it away
            assert mounts_at(pod.target)
        if pod.mounter.poll() is not None:
            pod.start_mounter()
        no_mount(pod.target)
        assert pod.daemon.wait() != 0 or "mounter" in name, "the daemon calls that success"
        pod.daemon.end()
        pod.start_daemon()
        assert pod.reader.ask("read", pod.path()) == digest(model.plain_bytes())


# ---- the mounter alone ----

def connect(pod, uid, gid, patience=5):
    """What a process of this uid gets for its KM_MOUNT: bytes and number of descriptors."""
    script = ("import os, socket, sys\n"
              "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
              f"s.settimeout({patience})\n"
              "s.connect(sys.argv[1])\n"
              "data, fds = b'', []\n"
              "for call in [lambda: s.send(b'm')] + 2 * [lambda: socket.recv_fds(s, 1000, 8)]:\n"
              "    try:\n"
              "        got = call()\n"
              "    except OSError:\n"
              "        continue\n"
              "    if got != 1 and got[0]:\n"
              "        data, fds = got[:2]\n"
              "        break\n"
              "print(len(data), len(fds), int.from_bytes(data[4:8], 'little'), "
              "data[16:].split(bytes(1))[0].decode())\n")
    result = run("setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", sys.executable, "-c",
                 script, pod.socket)
    return result.stdout.strip() or result.stderr


def peers(checks, model):
    pod = Pod(model)
    with contextlib.ExitStack() as stack:
        stack.callback(pod.__exit__)
        pod.start_mounter()
        for what, uid, gid in (("another uid", 2000, 2000), ("root", 0, 0),
                               ("the uid with another gid", USER, 2000)):
            with checks.check(f"{what} gets nothing of the mounter: no byte, no mount"):
                assert connect(pod, uid, gid) == "0 0 0", connect(pod, uid, gid)
                no_mount(pod.target)
        with checks.check("the daemon's uid gets three descriptors, and the mount ends with it"):
            assert connect(pod, USER, USER).startswith("272 3 0"), connect(pod, USER, USER)
            wait_for(lambda: not mounts_at(pod.target), 5, "unmounting")
        with checks.check("while a daemon serves, a second one is refused, a stranger too, and the "
                          "first goes on"):
            pod.start_daemon()
            said = connect(pod, USER, USER)
            assert said.startswith(f"272 0 {errno.EBUSY} "), said
            assert connect(pod, 2000, 2000) == "0 0 0"
            assert pod.serves()
        with checks.check("packets that no daemon sends end the session of the sender, no more"):
            pod.daemon.end()
            for packet in (b"x", b"u", b"m" * 500, b""):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
                    os.setresgid(-1, USER, -1)
                    os.setresuid(-1, USER, -1)
                    try:
                        s.connect(pod.socket)
                        s.send(packet)
                    finally:
                        os.setresuid(-1, 0, -1)
                        os.setresgid(-1, 0, -1)
                wait_for(lambda: not mounts_at(pod.target), 5, "unmounting")
            pod.start_daemon()
        with checks.check("kvfs says what is wrong when it is not the mounter's"):
            source = shutil.copytree(model.encrypted, pod.top + "/source")
            key = shutil.copy(model.reader, source + ".jwks")
            def mount(uid, *more):
                run("chown", "-R", uid, source, key, check=True)
                return run("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", KVFS,
                           "mount", "-f", source, "/models/llm", "--key", key, "-o",
                           f"mounter={pod.socket}", *more)

            result = mount(2000)
            assert result.returncode == 1 and "uid and gid in its configuration" in result.stderr, \
                result.stderr
        with checks.check("a mount that fails says why, and leaves nothing"):
            pod.daemon.end()
            wait_for(lambda: not mounts_at(pod.target), 5, "unmounting")
            for name in model.shards:
                os.unlink(os.path.join(source, name))
            result = mount(USER)
            assert result.returncode == 1 and "kvfs mount: " in result.stderr, result.stderr
            no_mount(pod.target)
            result = mount(USER, "--warm")
            assert result.returncode == 2 and "option warm" in result.stderr, result.stderr
            pod.start_daemon()


def refused(pod, sentence, **settings):
    pod.configure(**settings)
    result = run(MOUNTER, pod.config, timeout=10)
    pod.configure()
    assert result.returncode in (1, 2) and sentence in result.stderr, result.stderr


def configurations(checks, model):
    pod = Pod(model)
    elsewhere = pod.top + "/elsewhere"
    os.makedirs(elsewhere, exist_ok=True)
    with checks.check("a target that is a link, or lies behind one, is refused"):
        link = pod.top + "/link"
        os.symlink(elsewhere, link)
        os.makedirs(elsewhere + "/llm", exist_ok=True)
        for target in (link, link + "/llm", link + "/new"):
            refused(pod, "there is a link in this path", target=target)
    with checks.check("settings that make no sense are refused by name"):
        refused(pod, "'suid' is none of", options="allow-other,suid")
        refused(pod, "'mode' is no setting", mode="777")
        refused(pod, "no absolute path", target="shared/llm")
        refused(pod, "'-1' is no number", uid="-1")
    with checks.check("a configuration that others may write to is refused"):
        os.chmod(pod.config, 0o666)
        result = run(MOUNTER, pod.config)
        assert result.returncode == 2 and "nobody else may write" in result.stderr, result.stderr
        os.chmod(pod.config, 0o644)
    with contextlib.ExitStack() as stack:
        stack.callback(pod.__exit__)
        pod.start_mounter()
        with checks.check("a second mounter with the same configuration is refused"):
            result = run(MOUNTER, pod.config)
            assert result.returncode == 1 and "has it already" in result.stderr, result.stderr
        with checks.check("a target swapped for a link, or for another directory, is refused, and "
                          "nothing is mounted anywhere"):
            for swap in (lambda: os.symlink(elsewhere, pod.target), lambda: os.mkdir(pod.target)):
                os.rename(pod.target, pod.target + ".away")
                swap()
                said = connect(pod, USER, USER)
                assert said.split()[:2] == ["272", "0"] and \
                    ("a link in this path" in said or "not the directory" in said), said
                for place in (elsewhere, pod.target, pod.target + ".away"):
                    assert not mounts_at(place), place
                (os.unlink if os.path.islink(pod.target) else os.rmdir)(pod.target)
                os.rename(pod.target + ".away", pod.target)
            assert connect(pod, USER, USER).startswith("272 3 0")


def preserve_fds(checks, model):
    """Without a socket: runc hands the connection on."""
    pod = Pod(model)
    bundle(daemon_rootfs(), "daemon", "daemon",
           {"SOURCE": model.encrypted, "KEYS": os.path.dirname(model.reader), "RUN": pod.run_dir,
            "MEMLOCK": MEMLOCK},
           "/usr/bin/kvfs", "mount", "--foreground", "/encrypted", "/models/llm", *LOCAL_KEYS,
           "-omounter=fd:3")
    name = f"preserved-{os.getpid()}"
    with open(pod.config, "w", encoding="ascii") as file:
        file.write(f"target {pod.target}\nuid {USER}\noptions allow-other\n")
    with checks.check("--preserve-fds: runc gets the connection as descriptor 3; SIGTERM ends all"):
        mounter = subprocess.Popen(
            [MOUNTER, "--preserve-fds", pod.config, "--", "runc", "--root",
             os.path.join(workdir(), "runc"), "run", "--preserve-fds", "1", "--bundle",
             os.path.join(workdir(), "daemon"), name], stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        try:
            wait_for(lambda: mounts_at(pod.target) and model.shard in os.listdir(pod.target),
                     10 * SLOW, "a mount")
            assert read_all(os.path.join(pod.target, model.shard)) == model.plain_bytes()
            runc("kill", name, "TERM")
            assert mounter.wait(10 * SLOW) == 0, mounter.stderr.read()
        finally:
            mounter.kill()
            mounter.wait()
            runc("delete", "--force", name)
        no_mount(pod.target)


# ---- where plaintext can be left ----

HARMLESS = {"/dev/" + name for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx",
                                        "pts/ptmx")}
MASKED = {"/proc/keys", "/proc/timer_list", "/proc/kcore"}  # runc binds /dev/null over these


def declared(profile):
    with open(os.path.join(PACKAGING, profile), encoding="ascii") as file:
        return {line.split()[1] for line in file if line.startswith("tmpfs ")}


def plaintext(checks, model, pod_of, options, more=()):
    """A reader under `strict` that tries to write to everything that it sees. What counts is what can
    be found again: files, names, links, attributes. Its processes' own memory (a memfd, their names in
    /proc) ends with them, and its standard output is what the runtime makes of it."""
    with pod_of(model, *options) as pod:
        for n in range(len(model.shards)):
            assert pod.reader.ask("read", pod.path(n)) == digest(model.plain_bytes(n))
        text = "plaintext-" + os.urandom(8).hex()
        got = pod.reader.ask("write_everywhere", text)
        left = {os.path.dirname(path) if how != "write" else path
                for how, path, kept in got["found"] if kept}
        names = {p for p in left if re.fullmatch(r"/proc/\d+/(task/\d+/)?(comm|sched)", p)}
        assert left - names == declared("sidecar.profile") | set(more), got
        swallowed = {path for _, path, kept in got["found"] if not kept}
        odd = {p for p in swallowed - HARMLESS - MASKED if not re.fullmatch(r"/proc/\d+/.*sched", p)}
        assert not odd, odd
        assert got["files"] > 1000 and got["memory"]
        assert set(pod.reader.ask("descriptors")) <= {"0", "1", "2"}
        assert pod.reader.ask("read", pod.path()) == digest(model.plain_bytes()), pod.daemon.said()
        checks.note(f"{got['files']} files tried")


def writing(checks, model, options):
    with checks.check("a strict container: plaintext can be written to the declared tmpfs, and to no "
                      "other path"):
        plaintext(checks, model, Pod, options)
    with checks.check("podman: the daemon serves without privileges, the reader gets right bytes, and "
                      "can write them to that tmpfs and to /dev/shm, no other path"):
        if why_no_podman():
            raise Skip(why_no_podman())
        plaintext(checks, model, PodmanPod, options, ["/dev/shm"])


def main():
    checks = Checks()
    why = why_not()
    if why:
        if os.environ.get("CI") == "true":
            with checks.check("runc"):
                raise AssertionError(why)
        checks.skip("containers with runc", why)
        return checks.finish()
    model = Model(mib=16)
    shutil.copy(os.path.join(PACKAGING, "sidecar.profile"), os.path.dirname(model.reader))
    for path in (model.encrypted, os.path.dirname(model.reader)):
        run("chown", "-R", f"{USER}:{USER}", path, check=True)
    layout(checks, model)
    options = guarded(checks, model)
    deaths(checks, model)
    hanging(checks, model)
    silence(checks, model)
    peers(checks, model)
    configurations(checks, model)
    preserve_fds(checks, model)
    writing(checks, model, options)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
