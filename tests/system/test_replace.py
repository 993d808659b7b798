#!/usr/bin/env python3
"""A shard replaced underneath: between a loader's two opens, during a read, in place and by rename,
on tmpfs and on overlayfs. Under update=pin a name yields one version or an error, never a mix;
under update=follow the next open sees the new one. Truncation is an error, never a signal in the
daemon."""
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading

from kvfstest import ROOT, Checks, Mount, kvfs, turns, workdir


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def outcome(path):
    """The digest of what is read by path, or the errno."""
    try:
        return digest(path)
    except OSError as error:
        return errno.errorcode[error.errno]


def by_rename(new, old):
    shutil.copy(new, old + ".new")
    os.rename(old + ".new", old)


def in_place(new, old):
    with open(new, "rb") as source, open(old, "r+b") as target:
        shutil.copyfileobj(source, target)
        target.truncate()


def truncated(_, old):
    os.truncate(old, os.stat(old).st_size // 2)


class Releases:
    """Two encrypted releases of one model: same names and sizes, other weights."""

    def __init__(self):
        self.keys = os.path.join(workdir(), "keys")
        kvfs("keygen", self.keys)
        self.shard = "model-00001-of-00001.safetensors"
        self.plain, self.encrypted = [], []
        for release in "ab":
            plain = os.path.join(workdir(), "plain-" + release)
            subprocess.run([os.path.join(ROOT, "packaging/make-model"), plain, "--shards", "1",
                            "--mib", "24"], check=True)
            if release == "b":
                with open(os.path.join(plain, self.shard), "r+b") as file:
                    file.seek(-(20 << 20), os.SEEK_END)
                    file.write(os.urandom(20 << 20))
            encrypted = os.path.join(workdir(), "encrypted-" + release)
            os.mkdir(encrypted)
            kvfs("encrypt", "-q", os.path.join(plain, self.shard), "-o",
                 os.path.join(encrypted, self.shard), "--key", self.keys + "/owner.jwks")
            self.plain.append(digest(os.path.join(plain, self.shard)))
            self.encrypted.append(os.path.join(encrypted, self.shard))

    def mount(self, source, *options):
        return Mount(source, keys=[self.keys + "/reader.jwks"], options=options)


def fresh(where, releases):
    directory = os.path.join(where, "src")
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    shutil.copy(releases.encrypted[0], directory)
    return directory, os.path.join(directory, releases.shard)


def pinned(checks, where, kind, releases):
    old, new = releases.plain
    for change in by_rename, in_place, truncated:
        name = f"{kind}, pin, {change.__name__}"
        source, shard = fresh(where, releases)
        with releases.mount(source) as m:
            path = os.path.join(m.path, releases.shard)
            with open(path, "rb") as first:
                header = first.read(4096)
                change(releases.encrypted[1], shard)
                with checks.check(f"{name}: between two opens"):
                    got = outcome(path)
                    allowed = {by_rename: {old}}.get(change, {old, "ESTALE", "EBADMSG"})
                    assert got in allowed, got
                with checks.check(f"{name}: the open descriptor"):
                    try:
                        first.seek(0)
                        data = first.read()
                        assert data[:4096] == header
                        assert hashlib.sha256(data).hexdigest() == old, "a mix"
                    except OSError as error:
                        assert error.errno in (errno.ESTALE, errno.EBADMSG), error
            with checks.check(f"{name}: after reload"):
                kvfs("reload", m.path)
                got = outcome(path)
                assert got == ("EBADMSG" if change is truncated else new), got
            with checks.check(f"{name}: the daemon lives"):
                os.stat(m.path)
                assert os.path.exists(f"/proc/{m.worker}")


def followed(checks, where, kind, releases):
    for change in by_rename, in_place:
        source, shard = fresh(where, releases)
        with releases.mount(source, "update=follow") as m, \
                checks.check(f"{kind}, follow, {change.__name__}: the next open sees the new one"):
            path = os.path.join(m.path, releases.shard)
            assert digest(path) == releases.plain[0]
            change(releases.encrypted[1], shard)
            assert digest(path) == releases.plain[1]


def during_reads(checks, where, kind, releases):
    """Readers run while the file is swapped again and again: whole versions or errors."""
    for option in "update=pin", "update=follow":
        source, shard = fresh(where, releases)
        with releases.mount(source, option) as m:
            path, seen, stop = os.path.join(m.path, releases.shard), set(), threading.Event()

            def read_again():
                while not stop.is_set():
                    seen.add(outcome(path))

            readers = [threading.Thread(target=read_again) for _ in range(4)]
            for thread in readers:
                thread.start()
            for turn in turns(12):
                (by_rename if turn % 3 else in_place)(releases.encrypted[(turn + 1) % 2], shard)
                stop.wait(0.1)
            stop.set()
            for thread in readers:
                thread.join()
            with checks.check(f"{kind}, {option}: replaced during reads, never a mix"):
                wrong = seen - set(releases.plain) - {"ESTALE", "EBADMSG"}
                assert not wrong, f"neither version: {wrong}"
            with checks.check(f"{kind}, {option}: the daemon lives"):
                assert os.path.exists(f"/proc/{m.worker}")


def truncated_under_a_mapping(checks, where, releases):
    source, shard = fresh(where, releases)
    with releases.mount(source) as m:
        path = os.path.join(m.path, releases.shard)
        code = ("import mmap,os,sys\n"
                "f=open(sys.argv[1],'rb')\n"
                "m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n"
                "m[0]\n"
                "os.truncate(sys.argv[2],1000)\n"
                "sum(m[i] for i in range(0,len(m),4096))\n")
        result = subprocess.run([sys.executable, "-c", code, path, shard], check=False)
        with checks.check("truncated under a mapping: SIGBUS for the reader, not the daemon"):
            assert result.returncode == -7, result.returncode
            assert os.path.exists(f"/proc/{m.worker}")
            os.stat(m.path)


def main():
    checks = Checks()
    releases = Releases()
    tmpfs = os.path.join(workdir(), "tmpfs")
    os.mkdir(tmpfs)
    subprocess.run(["mount", "-t", "tmpfs", "none", tmpfs], check=True)
    places = [("tmpfs", tmpfs)]
    parts = {part: os.path.join(tmpfs, part) for part in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        os.mkdir(part)
    overlay = "lowerdir={lower},upperdir={upper},workdir={work}".format(**parts)
    if subprocess.run(["mount", "-t", "overlay", "none", "-o", overlay, parts["merged"]],
                      check=False).returncode == 0:
        places.append(("overlayfs", parts["merged"]))
    else:
        checks.skip("overlayfs", "it cannot be mounted here")
    for kind, where in places:
        pinned(checks, where, kind, releases)
        followed(checks, where, kind, releases)
        during_reads(checks, where, kind, releases)
    truncated_under_a_mapping(checks, tmpfs, releases)
    for _, where in reversed(places):
        subprocess.run(["umount", where], check=True)
    return checks.finish()


sys.exit(main())
