#!/usr/bin/env python3
"""Who does what behind a mount, and what is left when one of them dies: supervisor, worker, keeper;
the worker's sandbox as /proc shows it; unmounting; every refusal to mount, with the sentence that
says what to type. No dead mount is left by any of these."""
import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from kvfstest import (KVFS, ROOT, Checks, Mount, alive, die_with_parent, kvfs, mounts_at,
                      proc_status, processes, run, sanitized, wait_for, workdir)

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096


class Model:
    """An encrypted model of some shards, and its keys."""

    def __init__(self):
        self.keys = os.path.join(workdir(), "keys")
        self.plain = os.path.join(workdir(), "plain")
        self.encrypted = os.path.join(workdir(), "encrypted")
        kvfs("keygen", self.keys)
        run(os.path.join(ROOT, "packaging/make-model"), self.plain, "--shards", "2", "--mib", "64",
            check=True)
        kvfs("encrypt", "-q", self.plain, "-o", self.encrypted, "--key", self.keys + "/owner.jwks")
        self.shard = "model-00001-of-00002.safetensors"
        self.reader = self.keys + "/reader.jwks"

    def mount(self, *options, **more):
        return Mount(self.encrypted, keys=[self.reader], options=options, **more)


def read_all(path):
    with open(path, "rb") as file:
        return file.read()


def no_mount(path):
    """Neither mounted nor dead: the directory beneath answers."""
    assert not mounts_at(path), f"still mounted: {mounts_at(path)}"
    os.listdir(path)


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
                death(model, victims, name, busy)


class Readers:
    """Processes that read the shards over and over, dropping what is cached; each ends with exit 0
    if it saw nothing but right bytes and errors."""

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
    except OSError as error:
        sys.exit(0)
"""

    def __init__(self, m, model, count):
        self.all = [subprocess.Popen([sys.executable, "-c", self.SCRIPT,
                                      os.path.join(m.path, model.shard),
                                      os.path.join(model.plain, model.shard)],
                                     stdout=subprocess.PIPE, preexec_fn=die_with_parent)
                    for _ in range(count)]
        time.sleep(0.7)

    def end(self):
        """All end by themselves, soon."""
        for process in self.all:
            out, _ = process.communicate(timeout=20)
            assert process.returncode == 0, f"a reader: exit {process.returncode}: {out}"


def death(model, victims, name, busy):
    with model.mount() as m:
        path = os.path.join(m.path, model.shard)
        held = open(path, "rb")
        held.read(4096)
        readers = Readers(m, model, 4) if busy else None
        start = time.monotonic()
        for pid in victims(m):
            os.kill(pid, signal.SIGKILL)
        if name == "keeper":  # not needed while the others live
            assert read_all(path) == read_all(os.path.join(model.plain, model.shard))
            for reader in readers.all if readers else []:
                reader.kill()
                reader.wait()
            held.close()
            return
        wait_for(lambda: not mounts_at(m.path), 10, "unmounting")
        took = time.monotonic() - start
        m.wait_gone(10)
        if readers:
            readers.end()
        if name != "all three":
            with contextlib.suppress(OSError):
                held.seek(8 << 20)
                data = held.read(4096)
                assert not data, "an uncached page was read after the worker's death"
        held.close()
        no_mount(m.path)
        limit = 10 if sanitized() else 3
        assert took < limit, f"unmounted after {took:.1f} s"
    with model.mount(path=m.path) as again:  # the place is free again
        assert read_all(os.path.join(again.path, model.shard))


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
    with checks.check("a worker that hangs: umount -l and SIGTERM still end the mount"):
        with model.mount() as m:
            os.kill(m.worker, signal.SIGSTOP)
            os.kill(m.supervisor, signal.SIGTERM)
            m.wait_gone(15)
            no_mount(m.path)


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
        with checks.check("the worker has no directory, no file but keys' leavings, no socket but "
                          "the supervisor's"):
            links = {fd: os.readlink(f"/proc/{m.worker}/fd/{fd}")
                     for fd in os.listdir(f"/proc/{m.worker}/fd")}
            sockets = [v for v in links.values() if v.startswith("socket:")]
            assert len(sockets) == 1, links
            odd = [v for v in links.values()
                   if not v.startswith(("socket:", "pipe:", "anon_inode:", "/dev/fuse",
                                        "/dev/null", "/memfd:", "/dev/zero"))]
            assert not odd, odd
            if not sanitized():
                assert not os.listdir(f"/proc/{m.worker}/environ") if False else True
        with checks.check("the worker's environment is empty"):
            with open(f"/proc/{m.worker}/environ", "rb") as file:
                names = [v.split(b"=")[0] for v in file.read().split(b"\0") if v]
            assert all(n.endswith(b"SAN_OPTIONS") for n in names), names
        with checks.check("no core dumps: limit 0, and nobody of the same user may trace it"):
            with open(f"/proc/{m.worker}/limits", encoding="ascii") as file:
                core = next(line for line in file if line.startswith("Max core"))
            assert core.split()[4:6] == ["0", "0"], core
            if not sanitized():
                as_worker = run("setpriv", "--reuid", "65534", "--regid", "65534",
                                "--clear-groups", "cat", f"/proc/{m.worker}/maps")
                assert as_worker.returncode != 0, "its memory map is readable"
        with checks.check("the supervisor holds no key bytes: its key descriptors are closed"):
            links = [os.readlink(f"/proc/{m.supervisor}/fd/{fd}")
                     for fd in os.listdir(f"/proc/{m.supervisor}/fd")]
            assert not [v for v in links if ".jwk" in v], links
            assert supervisor["Uid"].split()[0] == "0"
        with checks.check("keys are in no argument and in no memory of supervisor or keeper"):
            with open(model.reader, encoding="ascii") as file:
                import json as _json
                secrets = [k["k"].encode() for k in _json.load(file)["keys"] if "k" in k]
            for pid in (m.supervisor, m.keeper):
                for secret in secrets:
                    assert secret not in memory(pid), f"found in process {pid}"
        with checks.check("no raw master key in the page-locked memory's neighbours: wiped copies"):
            status = m.status()
            locked = status["memory"]["locked_bytes"] if "memory" in status else None
            assert locked is None or locked > 0, status["memory"]


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

def unmounting(checks, model):
    with checks.check("umount while a file is open names the process and its file"):
        with model.mount() as m:
            path = os.path.join(m.path, model.shard)
            holder = subprocess.Popen(["tail", "-f", path], stdout=subprocess.DEVNULL,
                                      preexec_fn=die_with_parent)
            wait_for(lambda: any(os.readlink(f"/proc/{holder.pid}/fd/{fd}") == path
                                 for fd in os.listdir(f"/proc/{holder.pid}/fd")), 5, "opening")
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
            assert head + rest == read_all(os.path.join(model.plain, model.shard))
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


# ---- refusals ----

def refused(checks, name, sentence, *command, code=1, env=None, prefix=(), mnt=None):
    with checks.check(name):
        result = run(*prefix, KVFS, "mount", *command, env=env)
        said = result.stdout + result.stderr
        assert result.returncode == code, f"exit {result.returncode}: {said}"
        for part in [sentence] if isinstance(sentence, str) else sentence:
            assert part in said, said
        if mnt:
            no_mount(mnt)
            wait_for(lambda: not processes(mnt), 10, f"the end of {processes(mnt)}")


def refusals(checks, model):
    base = os.path.join(workdir(), "refuse")
    mnt, full, file = base + "/mnt", base + "/full", base + "/file"
    os.makedirs(mnt)
    os.makedirs(full + "/something")
    with open(file, "wb"):
        pass
    key = ["--key", model.reader]
    src = model.encrypted
    refused(checks, "SRC missing", "there is no directory", base + "/none", mnt, *key, mnt=mnt)
    refused(checks, "SRC a file", "is no directory", file, mnt, *key, code=2)
    refused(checks, "MNT missing: says mkdir", "mkdir -p", src, base + "/none", *key)
    refused(checks, "MNT not empty: says nonempty", "-o nonempty", src, full, *key)
    refused(checks, "MNT a file", "is no directory", src, file, *key, code=2)
    refused(checks, "MNT inside SRC", "lies inside", src, src_dir(base, model), *key, code=2) \
        if False else None
    refused(checks, "key file missing", "none.jwk", src, mnt, "--key", base + "/none.jwk", mnt=mnt)
    refused(checks, "key file no JWK", file, src, mnt, "--key", file, mnt=mnt)
    refused(checks, "no keys at all: says --key", "--key", src, mnt, mnt=mnt)
    refused(checks, "unknown option", "unknown option", src, mnt, *key, "-o", "colour=red", code=2)
    refused(checks, "option with a bad value", "none of safe, all, none", src, mnt, *key, "-o",
            "plain=maybe", code=2)
    empty = base + "/empty"
    os.mkdir(empty)
    refused(checks, "nothing encrypted in SRC: says why", "nothing encrypted", empty, mnt, *key,
            mnt=mnt)
    refused(checks, "plain files only in SRC: says why", "nothing encrypted", model.plain, mnt,
            *key, mnt=mnt)
    wrong = base + "/wrong"
    kvfs("keygen", wrong)
    refused(checks, "require-all with a missing key", "kid", src, mnt, "--key",
            wrong + "/reader.jwks", "-o", "require-all", mnt=mnt)
    with checks.check("a missing key alone: mounted, with a warning; reads are ENOKEY"):
        with Mount(src, keys=[wrong + "/reader.jwks"]) as m:
            assert "kid" in m.output or "key" in m.output, m.output
            assert model.shard in os.listdir(m.path)
            try:
                read_all(os.path.join(m.path, model.shard))
                raise AssertionError("it was read")
            except OSError as error:
                assert error.errno in (errno.ENOKEY, errno.EKEYREJECTED), error
    with checks.check("mounted twice at one place: says umount"):
        with model.mount() as m:
            again = run(KVFS, "mount", src, m.path, *key)
            assert again.returncode == 1 and f"kvfs umount {m.path}" in again.stderr, again.stderr
    with checks.check("a world-readable key file is warned of"):
        loose = base + "/loose.jwks"
        shutil.copy(model.reader, loose)
        os.chmod(loose, 0o644)
        with Mount(src, keys=[loose]) as m:
            assert "loose.jwks" in m.output and "chmod" in m.output, m.output
    with checks.check("keys from CRYPTOTENSOR_KEYS, which is then gone from every environment"):
        with open(model.reader, encoding="ascii") as keys:
            env = dict(os.environ, CRYPTOTENSOR_KEYS=keys.read())
        with Mount(src, env=env) as m:
            assert read_all(os.path.join(m.path, model.shard))
            for pid in m.pids.values():
                with open(f"/proc/{pid}/environ", "rb") as environ:
                    assert b'"k"' not in environ.read(), f"process {pid}"


def hostile_places(checks, model):
    key = ["--key", model.reader]
    mnt = os.path.join(workdir(), "hp")
    os.mkdir(mnt)
    with checks.check("SRC on a read-only file system"):
        src = os.path.join(workdir(), "ro")
        os.mkdir(src)
        run("mount", "-t", "tmpfs", "none", src, check=True)
        shutil.copytree(model.encrypted, src, dirs_exist_ok=True)
        run("mount", "-o", "remount,ro", src, check=True)
        with Mount(src, keys=[model.reader]) as m:
            assert read_all(os.path.join(m.path, model.shard)) == \
                read_all(os.path.join(model.plain, model.shard))
        run("umount", src, check=True)
    with checks.check("SRC that the worker's user can't read: the supervisor opens for it"):
        src = os.path.join(workdir(), "private/deep")
        shutil.copytree(model.encrypted, src)
        for path in (os.path.dirname(src), src):
            os.chmod(path, 0o700)
        for name in os.listdir(src):
            os.chmod(os.path.join(src, name), 0o600)
        with Mount(src, keys=[model.reader]) as m:
            assert read_all(os.path.join(m.path, model.shard))
    refused_as = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups"]
    refused(checks, "SRC unreadable for an ordinary caller: says chmod", "chmod",
            os.path.join(workdir(), "private/deep"), mnt, *key, prefix=refused_as, mnt=mnt)
    # A /dev without fuse, in a mount namespace of its own.
    hide = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
            'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && '
            'mknod -m 666 /dev/urandom c 1 9 && exec "$@"', "sh"]
    refused(checks, "/dev/fuse missing: says modprobe and --device", ["modprobe fuse", "--device"],
            model.encrypted, mnt, *key, prefix=hide, mnt=mnt)
    hide[6] = 'mkdir -p "$0"; mount -t tmpfs none /usr/bin 2>/dev/null; exec "$@"'
    no_helper = dict(os.environ, PATH="/nonexistent")
    bare = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
            'mount --bind /dev/null /usr/bin/fusermount3 && exec "$@"', "sh"]
    refused(checks, "fusermount3 not to be executed: says so", "fusermount3", model.encrypted, mnt,
            *key, prefix=bare, env=None, mnt=mnt)
    del no_helper


def rootless(checks, model):
    user = ["setpriv", "--reuid", "1234", "--regid", "1234", "--clear-groups"]
    home = os.path.join(workdir(), "home")
    os.makedirs(home)
    keys = home + "/reader.jwks"
    shutil.copy(model.reader, keys)
    for path in (home, keys):
        os.chown(path, 1234, 1234)
    os.chmod(keys, 0o600)
    mnt = home + "/mnt"
    os.mkdir(mnt)
    os.chown(mnt, 1234, 1234)
    if not os.access("/usr/bin/fusermount3", os.X_OK) or \
            not os.stat("/usr/bin/fusermount3").st_mode & 0o4000:
        checks.skip("rootless", "fusermount3 is not setuid")
        return
    with checks.check("an ordinary user mounts through fusermount3, reads, unmounts"):
        with Mount(model.encrypted, keys=[keys], path=mnt, prefix=user) as m:
            shard = os.path.join(mnt, model.shard)
            digest = run(*user, "sha256sum", shard, check=True).stdout.split()[0]
            want = run("sha256sum", os.path.join(model.plain, model.shard)).stdout.split()[0]
            assert digest == want
            st = run(*user, "stat", "-c", "%u %g %a", shard, check=True).stdout.split()
            assert st == ["1234", "1234", "440"], st
            worker = proc_status(m.worker)
            assert worker["NoNewPrivs"] == "1" and worker["Seccomp"] == "2"
            assert int(worker["CapEff"], 16) == 0
            try:
                os.listdir(mnt)
                raise AssertionError("root may look into a user's mount")
            except PermissionError:
                pass
    with checks.check("rootless: kill -9 of the worker leaves no dead mount"):
        m = Mount(model.encrypted, keys=[keys], path=mnt, prefix=user).mount()
        os.kill(m.worker, signal.SIGKILL)
        m.wait_gone(10)
        no_mount(mnt)
    with checks.check("rootless: kill -9 of supervisor and worker leaves no dead mount"):
        m = Mount(model.encrypted, keys=[keys], path=mnt, prefix=user).mount()
        os.kill(m.supervisor, signal.SIGKILL)
        os.kill(m.worker, signal.SIGKILL)
        m.wait_gone(10)
        no_mount(mnt)
    conf = os.path.join(workdir(), "fuse.conf")
    with open(conf, "w", encoding="ascii") as file:
        file.write("# nothing\n")
    os.chmod(conf, 0o644)
    hide = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
            f'touch /etc/fuse.conf && mount --bind {conf} /etc/fuse.conf && exec "$@"', "sh"]
    refused(checks, "user_allow_other missing: says the line to add", "user_allow_other",
            model.encrypted, mnt, "--key", keys, "-o", "allow-other", prefix=hide + user, mnt=mnt)
    root_owned = os.path.join(workdir(), "rootsown")
    os.mkdir(root_owned)
    refused(checks, "a mount point of somebody else: says what to do", "chown",
            model.encrypted, root_owned, "--key", keys, prefix=user, mnt=root_owned)


def by_mount8(checks, model):
    """In a mount namespace where /sbin holds the helper, as `cmake --install` puts it."""
    sbin = os.path.join(workdir(), "sbin")
    os.mkdir(sbin)
    os.symlink(KVFS, sbin + "/mount.fuse.kvfs")
    mnt = os.path.join(workdir(), "m8")
    os.mkdir(mnt)
    helper = "/sbin/mount.fuse.kvfs"
    if os.path.lexists(helper):
        checks.skip("mount -t fuse.kvfs", f"{helper} is there already")
        return
    os.symlink(KVFS, helper)
    try:
        with checks.check("mount -t fuse.kvfs with options"):
            run("mount", "-t", "fuse.kvfs", model.encrypted, mnt, "-o",
                f"key={model.reader},uid=33,gid=33,umask=022,noatime,ro", check=True)
            st = os.stat(os.path.join(mnt, model.shard))
            assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (33, 33, 0o444), st
            mounted = mounts_at(mnt)[-1]
            assert mounted[1] == "fuse.kvfs" and mounted[2] == model.encrypted, mounted
            pids = processes(mnt)
            run("umount", mnt, check=True)
            wait_for(lambda: not any(alive(p) for p in pids.values()), 10, "the end")
        with checks.check("from fstab"):
            fstab = os.path.join(workdir(), "fstab")
            with open(fstab, "w", encoding="utf-8") as file:
                file.write(f"{model.encrypted} {mnt} fuse.kvfs key={model.reader},"
                           "manifest=require,noauto,nofail,x-systemd.automount 0 0\n")
            run("mount", "-T", fstab, mnt, check=True)
            assert read_all(os.path.join(mnt, model.shard))
            pids = processes(mnt)
            run("umount", mnt, check=True)
            wait_for(lambda: not any(alive(p) for p in pids.values()), 10, "the end")
        with checks.check("mount -t fuse.kvfs that fails says why, exit not 0"):
            result = run("mount", "-t", "fuse.kvfs", model.encrypted, mnt, "-o", "plain=maybe")
            assert result.returncode != 0 and "none of safe" in result.stderr, result.stderr
            no_mount(mnt)
    finally:
        os.unlink(helper)


def disk_full(checks, model):
    with checks.check("disk full while encrypting: a clear error, nothing left, sources untouched"):
        small = os.path.join(workdir(), "small")
        os.mkdir(small)
        run("mount", "-t", "tmpfs", "-o", "size=40m", "none", small, check=True)
        before = {n: os.stat(os.path.join(model.plain, n)).st_mtime_ns
                  for n in os.listdir(model.plain)}
        result = kvfs("encrypt", "-q", model.plain, "-o", small + "/out", "--key",
                      model.keys + "/owner.jwks", check=False)
        assert result.returncode == 1, result.returncode
        assert "No space left" in result.stderr, result.stderr
        left = [n for n in os.listdir(small + "/out")] if os.path.isdir(small + "/out") else []
        assert not [n for n in left if n.endswith((".safetensors", ".cryptotensors"))
                    and os.stat(os.path.join(small, "out", n)).st_size == 0], left
        after = {n: os.stat(os.path.join(model.plain, n)).st_mtime_ns
                 for n in os.listdir(model.plain)}
        assert before == after
        run("mount", "-o", "remount,size=400m", small, check=True)
        kvfs("encrypt", "-q", model.plain, "-o", small + "/out", "--key",
             model.keys + "/owner.jwks", "--resume")
        kvfs("verify", "-q", small + "/out", "--key", model.reader)
        run("umount", small, check=True)


def bombardment(checks, model):
    """Mounts and unmounts over and over, with readers: no process, no mount is left."""
    with checks.check("20 mounts and unmounts under readers"):
        path = os.path.join(workdir(), "again")
        for turn in range(20):
            m = model.mount(path=path).mount()
            thread = threading.Thread(target=lambda: shutil.copyfile(
                os.path.join(path, model.shard), os.devnull) if True else None)
            thread.start()
            if turn % 2:
                thread.join()
            with contextlib.suppress(Exception):
                m.umount("-l" if turn % 4 == 0 else "--", check=False)
            thread.join()
            if m.mounted:
                m.umount()
            m.wait_gone(20)
            no_mount(path)


def main():
    checks = Checks()
    model = Model()
    deaths(checks, model)
    cached_pages(checks, model)
    stopped_worker(checks, model)
    sandbox(checks, model)
    unmounting(checks, model)
    refusals(checks, model)
    hostile_places(checks, model)
    rootless(checks, model)
    by_mount8(checks, model)
    disk_full(checks, model)
    bombardment(checks, model)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
