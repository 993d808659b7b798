#!/usr/bin/env python3
"""Every way to mount, and every refusal to, with the sentence that says what to type: places, keys,
mount(8), fstab, an ordinary user. No mount and no process is left by what fails."""
import os
import shutil
import signal
import sys

from kvfstest import (KVFS, Checks, Model, Mount, alive, as_user, in_namespace, kvfs, mounts_at,
                      no_mount, open_device, outcome, proc_status, processes, read_all, run,
                      wait_for, workdir)


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
    inside = base + "/copy"
    shutil.copytree(src, inside)
    os.mkdir(inside + "/mnt")
    refused(checks, "MNT inside SRC", "lies inside", inside, inside + "/mnt", *key, code=2)
    refused(checks, "key file missing", "none.jwk", src, mnt, "--key", base + "/none.jwk", mnt=mnt)
    refused(checks, "key file no JWK: names it", "key file file", src, mnt, "--key", file, mnt=mnt)
    refused(checks, "no keys at all: says --key", "--key", src, mnt, mnt=mnt)
    refused(checks, "unknown option", "unknown option", src, mnt, *key, "-o", "colour=red", code=2)
    refused(checks, "option with a bad value", "none of safe, all, none", src, mnt, *key, "-o",
            "plain=maybe", code=2)
    empty = base + "/empty"
    os.mkdir(empty)
    refused(checks, "SRC empty: says why", ["nothing in", "kvfs encrypt"], empty, mnt, *key,
            mnt=mnt)
    refused(checks, "plain files only in SRC: says why, and names one", ["nothing in", model.shard,
            "kvfs encrypt"], model.plain, mnt, *key, mnt=mnt)
    refused(checks, "plain files only, with plain=all: says why", ["nothing in", "kvfs encrypt"],
            model.plain, mnt, *key, "-o", "plain=all", mnt=mnt)
    wrong = base + "/wrong"
    kvfs("keygen", wrong)
    refused(checks, "require-all with a missing key", "kid", src, mnt, "--key",
            wrong + "/reader.jwks", "-o", "require-all", mnt=mnt)
    with checks.check("a missing key alone: mounted, with a warning; reads are ENOKEY"):
        with Mount(src, keys=[wrong + "/reader.jwks"]) as m:
            assert "2 models will be refused for want of a key" in m.output, m.output
            assert model.shard in os.listdir(m.path)
            assert outcome(os.path.join(m.path, model.shard)) == "ENOKEY"
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
    refused(checks, "SRC unreadable for an ordinary caller: says chmod", "chmod",
            os.path.join(workdir(), "private/deep"), mnt, *key, prefix=as_user(1234), mnt=mnt)
    refused(checks, "/dev/fuse missing: says modprobe and --device", ["modprobe fuse", "--device"],
            model.encrypted, mnt, *key, mnt=mnt, prefix=in_namespace(
                "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3;"
                "mknod -m 666 /dev/urandom c 1 9"))
    refused(checks, "fusermount3 can't be executed: says so", "fusermount3", model.encrypted, mnt,
            *key, mnt=mnt, prefix=in_namespace("mount --bind /dev/null /usr/bin/fusermount3"))
    refused(checks, "fusermount3 missing: says apt install", "apt install fuse3", model.encrypted,
            mnt, *key, mnt=mnt, prefix=in_namespace(
                f"mkdir -p {mnt}.up {mnt}.work; mount -t tmpfs none {mnt}.work;"
                f"mkdir {mnt}.work/up {mnt}.work/work; mknod {mnt}.work/up/fusermount3 c 0 0;"
                f"mount -t overlay none /usr/bin -o lowerdir=/usr/bin,upperdir={mnt}.work/up,"
                f"workdir={mnt}.work/work"))


def rootless(checks, model):
    user = as_user(33)  # one that /etc/passwd knows: fusermount3 asks
    home = os.path.join(workdir(), "home")
    os.makedirs(home)
    keys = home + "/reader.jwks"
    shutil.copy(model.reader, keys)
    for path in (home, keys):
        os.chown(path, 33, 33)
    os.chmod(keys, 0o600)
    mnt = home + "/mnt"
    os.mkdir(mnt)
    os.chown(mnt, 33, 33)
    if not os.access("/usr/bin/fusermount3", os.X_OK) or \
            not os.stat("/usr/bin/fusermount3").st_mode & 0o4000:
        checks.skip("rootless", "fusermount3 is not setuid")
        return
    with checks.check("an ordinary user mounts through fusermount3, reads, unmounts"):
        with Mount(model.encrypted, keys=[keys], path=mnt, prefix=user) as m:
            shard = os.path.join(mnt, model.shard)
            run(*user, "cmp", shard, os.path.join(model.plain, model.shard), check=True)
            st = run(*user, "stat", "-c", "%u %g %a", shard, check=True).stdout.split()
            assert st == ["33", "33", "440"], st
            worker = proc_status(m.worker)
            assert worker["NoNewPrivs"] == "1" and worker["Seccomp"] == "2"
            assert int(worker["CapEff"], 16) == 0
            assert outcome(shard) == "EACCES", "root may look into a user's mount"
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
    hide = in_namespace(f"mount --bind {conf} /etc/fuse.conf")
    refused(checks, "user_allow_other missing: says the line to add", "user_allow_other",
            model.encrypted, mnt, "--key", keys, "-o", "allow-other", prefix=hide + user, mnt=mnt)
    os.chmod(keys, 0o644)
    run("mkdir", "-m", "777", mnt + "2", check=True)
    refused(checks, "a user without a name: says what to do", "/etc/passwd", model.encrypted,
            mnt + "2",
            "--key", keys, prefix=as_user(1234))
    root_owned = os.path.join(workdir(), "rootsown")
    os.mkdir(root_owned)
    refused(checks, "a mount point of somebody else: says what to do", "chown",
            model.encrypted, root_owned, "--key", keys, prefix=user, mnt=root_owned)


def gone(mnt, pids):
    """After umount(8), which waits for nobody."""
    wait_for(lambda: not any(alive(p) for p in pids.values()), 10, "the end")
    no_mount(mnt)


def by_mount8(checks, model):
    """With /sbin/mount.fuse.kvfs, as `cmake --install` makes it, in this namespace only."""
    upper = os.path.join(workdir(), "sbin")
    os.mkdir(upper)
    run("mount", "-t", "tmpfs", "none", upper, check=True)
    os.makedirs(upper + "/up")
    os.makedirs(upper + "/work")
    os.symlink(KVFS, upper + "/up/mount.fuse.kvfs")
    over = run("mount", "-t", "overlay", "none", os.path.realpath("/sbin"), "-o",
               f"lowerdir=/sbin,upperdir={upper}/up,workdir={upper}/work")
    if over.returncode:
        checks.skip("mount -t fuse.kvfs", f"no overlay over /sbin: {over.stderr.strip()}")
        return
    mnt = os.path.join(workdir(), "m8")
    os.mkdir(mnt)
    shard = os.path.join(mnt, model.shard)
    with checks.check("mount -t fuse.kvfs with options, and mount(8)'s own ignored"):
        run("mount", "-t", "fuse.kvfs", model.encrypted, mnt, "-o",
            f"key={model.reader},uid=33,gid=33,umask=022,noatime,ro", check=True)
        st = os.stat(shard)
        assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (33, 33, 0o444), st
        mounted = mounts_at(mnt)[-1]
        assert mounted[1] == "fuse.kvfs" and mounted[2] == model.encrypted, mounted
        pids = processes(mnt)
        run("umount", mnt, check=True)
        gone(mnt, pids)
    with checks.check("fstab: mount MNT, umount MNT"):
        fstab = os.path.join(workdir(), "fstab")
        with open(fstab, "w", encoding="utf-8") as file:
            file.write(f"{model.encrypted} {mnt} fuse.kvfs key={model.reader},manifest=require,"
                       "update=follow,noauto,nofail,x-systemd.automount 0 0\n")
        run("touch", "/etc/fstab", check=True)
        run("mount", "--bind", fstab, "/etc/fstab", check=True)
        run("mount", mnt, check=True)
        assert read_all(shard) == model.plain_bytes()
        pids = processes(mnt)
        run("umount", mnt, check=True)
        gone(mnt, pids)
        run("umount", "/etc/fstab", check=True)
    with checks.check("mount -t fuse.kvfs that fails says why, exit not 0"):
        result = run("mount", "-t", "fuse.kvfs", model.encrypted, mnt, "-o", "plain=maybe")
        assert result.returncode != 0 and "none of safe" in result.stderr, result.stderr
        no_mount(mnt)
    with checks.check("mount -f -t fuse.kvfs, which only tries: nothing is mounted"):
        run("mount", "-f", "-t", "fuse.kvfs", model.encrypted, mnt, "-o", f"key={model.reader}",
            check=True)
        no_mount(mnt)


def main():
    checks = Checks()
    model = Model(mib=8)
    refusals(checks, model)
    hostile_places(checks, model)
    open_device()
    rootless(checks, model)
    by_mount8(checks, model)
    return checks.finish()


sys.exit(main())
