#!/usr/bin/env python3
"""The view as readers and operators see it: read-only in every way, owners and modes, attributes,
names, links, extended attributes, and what lies in .kvfs/."""
import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import shutil
import stat
import sys

from clitest import check, finish, kvfs, path, safetensors, write
from kvfstest import Model, Mount, as_user, mounts_at, outcome, read_all, run

LIBC = ctypes.CDLL(None, use_errno=True)


def refuses(wanted, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno == wanted, errno.errorcode[error.errno]
    else:
        raise AssertionError("it was allowed")


# ---- read-only ----

def open_and_close(name, flags):
    os.close(os.open(name, flags, 0o600))


def libc(name, *arguments):
    if getattr(LIBC, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


def writes(file):
    """All the ways to change a file, or to put something beside it."""
    new = file + ".new"
    return {
        "open O_WRONLY": lambda: open_and_close(file, os.O_WRONLY),
        "open O_RDWR": lambda: open_and_close(file, os.O_RDWR),
        "open O_TRUNC": lambda: open_and_close(file, os.O_RDONLY | os.O_TRUNC),
        "open O_APPEND": lambda: open_and_close(file, os.O_WRONLY | os.O_APPEND),
        "create": lambda: open_and_close(new, os.O_RDONLY | os.O_CREAT),
        "O_TMPFILE": lambda: open_and_close(os.path.dirname(file), os.O_TMPFILE | os.O_RDWR),
        "unlink": lambda: os.unlink(file),
        "rename": lambda: os.rename(file, new),
        "chmod": lambda: os.chmod(file, 0o777),
        "chown": lambda: os.chown(file, 1, 1),
        "utime": lambda: os.utime(file, (1, 1)),
        "truncate": lambda: os.truncate(file, 1),
        "setxattr": lambda: os.setxattr(file, "user.mine", b"1"),
        "set user.kvfs.state": lambda: os.setxattr(file, "user.kvfs.state", b"1"),
        "removexattr": lambda: os.removexattr(file, "user.kvfs.state"),
        "link": lambda: os.link(file, new),
        "symlink": lambda: os.symlink("x", new),
        "mkdir": lambda: os.mkdir(new),
        "mkfifo": lambda: os.mkfifo(new),
        "access W_OK": lambda: libc("access", os.fsencode(file), os.W_OK),
    }


def test_writes(model):
    """Hoped for: to change what is shown, or to leave something behind."""
    with model.mount() as m:
        for name in (model.shard, "config.json", ".kvfs/status.json", ".kvfs/log"):
            for what, function in writes(os.path.join(m.path, name)).items():
                with check(f"{name}: {what} is EROFS"):
                    refuses(errno.EROFS, function)
        with check("rmdir and mkdir in the root are EROFS"):
            refuses(errno.EROFS, os.rmdir, os.path.join(m.path, ".kvfs"))
            refuses(errno.EROFS, os.mkdir, os.path.join(m.path, "new"))
        with open(os.path.join(m.path, model.shard), "rb") as file:
            with check("a shared writable mapping of what is open for reading is EACCES"):
                refuses(errno.EACCES, mmap.mmap, file.fileno(), 4096, mmap.MAP_SHARED,
                        mmap.PROT_READ | mmap.PROT_WRITE)
            with check("write, ftruncate, fallocate to what is open for reading fail"):
                refuses(errno.EBADF, os.write, file.fileno(), b"x")
                refuses(errno.EINVAL, os.ftruncate, file.fileno(), 0)
                refuses(errno.EBADF, os.posix_fallocate, file.fileno(), 0, 1)
            with check("FS_IOC_SETFLAGS is EROFS, an ioctl that nobody knows ENOTTY"):
                refuses(errno.EROFS, fcntl.ioctl, file.fileno(), 0x40086602, bytes(8))
                refuses(errno.ENOTTY, fcntl.ioctl, file.fileno(), 0x5401, bytes(64))
        with check("a private writable mapping changes nothing"):
            with open(os.path.join(m.path, model.shard), "rb") as file, \
                    mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE,
                              mmap.PROT_READ | mmap.PROT_WRITE) as view:
                view[0:4] = b"evil"
            assert read_all(os.path.join(m.path, model.shard)) == model.plain_bytes()


def test_remounted(model):
    """Root can take the flag from the mount, and then the kernel asks us."""
    with model.mount() as m:
        run("mount", "-i", "-o", "remount,rw", m.path, check=True)
        with check("the kernel takes the mount for writable now"):
            assert not os.statvfs(m.path).f_flag & os.ST_RDONLY
        for name in (model.shard, ".kvfs/status.json"):
            for what, function in writes(os.path.join(m.path, name)).items():
                if what == "access W_OK":
                    continue  # is the kernel's to answer, from root's rights
                with check(f"remounted writable: {name}: {what} is refused"):
                    refuses(errno.EOPNOTSUPP if what == "O_TMPFILE" else errno.EROFS, function)
        with check("remounted writable: rmdir and mkdir in the root are EROFS"):
            refuses(errno.EROFS, os.rmdir, os.path.join(m.path, ".kvfs"))
            refuses(errno.EROFS, os.mkdir, os.path.join(m.path, "new"))


# ---- owners and modes ----

def modes(m, model):
    """(uid, gid, mode) of a file and of the root."""
    found = []
    for name in (model.shard, ""):
        st = os.stat(os.path.join(m.path, name))
        found.append((st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)))
    return found


def can_read(user, m, model):
    return run(*user, "head", "-c1", os.path.join(m.path, model.shard)).returncode == 0


def test_owners(model):
    cases = [((), (os.getuid(), os.getgid(), 0o440), (os.getuid(), os.getgid(), 0o550)),
             (("uid=33", "gid=34"), (33, 34, 0o440), (33, 34, 0o550)),
             (("uid=www-data", "gid=backup"), (33, 34, 0o440), (33, 34, 0o550)),
             (("umask=022",), (0, 0, 0o444), (0, 0, 0o555)),
             (("umask=0",), (0, 0, 0o444), (0, 0, 0o555)),
             (("uid=33", "umask=077"), (33, 0, 0o400), (33, 0, 0o500))]
    for options, file, directory in cases:
        with check(f"owner and modes with {','.join(options) or 'no option'}"):
            with model.mount(*options) as m:
                assert modes(m, model) == [file, directory], modes(m, model)
                assert stat.S_IMODE(os.stat(m.path + "/.kvfs").st_mode) == 0o550
                for one in os.listdir(m.path + "/.kvfs"):
                    st = os.stat(os.path.join(m.path, ".kvfs", one))
                    assert stat.S_IMODE(st.st_mode) == 0o440 and st.st_uid == file[0], one
    with check("plaintext is not for everyone: other users get EACCES, at any name"):
        with model.mount("uid=33", "gid=34") as m:
            assert can_read(as_user(33), m, model) and can_read(as_user(1, 34), m, model)
            for command in (["ls", m.path], ["stat", os.path.join(m.path, model.shard)],
                            ["cat", os.path.join(m.path, ".kvfs/status.json")],
                            ["cat", os.path.join(m.path, "config.json")]):
                denied = run(*as_user(1), *command)
                assert denied.returncode and "Permission denied" in denied.stderr, denied
    with check("umask=022 lets everybody read, when root mounts; .kvfs/ stays the owner's"):
        with model.mount("umask=022") as m:
            assert can_read(as_user(1), m, model)
            assert run(*as_user(1), "cat", os.path.join(m.path, ".kvfs/log")).returncode
    with check("reload is for root and the owner"):
        with model.mount("uid=33", "umask=022") as m:
            run(*as_user(33), os.environ["KVFS"], "reload", m.path, check=True)
            kvfs("reload", m.path)
            assert run(*as_user(1, 0), os.environ["KVFS"], "reload", m.path).returncode == 1


# ---- attributes ----

def test_attributes(model):
    with model.mount() as m:
        with check("mount source is SRC, the type fuse.kvfs"):
            assert mounts_at(m.path)[-1][1:] == ("fuse.kvfs", model.encrypted)
        with check("sizes are those of the plain files, st_blocks follows, times are the source's"):
            for name in os.listdir(m.path):
                st = os.stat(os.path.join(m.path, name))
                source = os.stat(os.path.join(model.encrypted, name))
                assert st.st_size == os.stat(os.path.join(model.plain, name)).st_size, name
                assert st.st_blocks == (st.st_size + 511) // 512 and st.st_nlink == 1, name
                assert (st.st_mtime_ns, st.st_ctime_ns) == (source.st_mtime_ns,
                                                            source.st_ctime_ns), name
            du = run("du", "-sB1", m.path, check=True).stdout.split()[0]
            assert int(du) >= os.stat(os.path.join(m.path, model.shard)).st_size
        with check("statfs: the source's size, nothing free, read-only"):
            view, source = os.statvfs(m.path), os.statvfs(model.encrypted)
            assert (view.f_blocks, view.f_frsize) == (source.f_blocks, source.f_frsize)
            assert view.f_bfree == view.f_bavail == view.f_ffree == 0
            assert view.f_flag & os.ST_RDONLY and view.f_flag & os.ST_NOSUID
            assert view.f_namemax == 255


def inode_numbers(top):
    """{name: (of readdir, of stat)}"""
    with os.scandir(top) as entries:
        return {e.name: (e.inode(), os.stat(e.path, follow_symlinks=False).st_ino)
                for e in entries}


def test_listing():
    source = path("many")
    for i in range(1500):
        write(f"{source}/sub/{i:04d}.json", "{}")
    write(path("one.safetensors"), safetensors({"w": ("U8", [4], 4)}))
    kvfs("encrypt", path("one.safetensors"), "-o", f"{source}/one.safetensors", "-k",
         path("keys/owner.jwks"), "-q")
    with Mount(source, keys=[path("keys/reader.jwks")]) as m:
        with check("1,500 names, each once; a second listing of the same directory is the same"):
            names = os.listdir(m.path + "/sub")
            assert sorted(names) == sorted(os.listdir(source + "/sub"))
            assert names == os.listdir(m.path + "/sub")
        with check("inode numbers: readdir and stat agree, and none is there twice"):
            numbers = inode_numbers(m.path + "/sub")
            wrong = {n: pair for n, pair in numbers.items() if pair[0] != pair[1]}
            assert not wrong, f"{len(wrong)} of {len(numbers)}, such as {list(wrong.items())[:2]}"
            assert len({pair[1] for pair in numbers.values()}) == len(numbers)
        with check("inode numbers stay when the kernel has forgotten, and after mounting anew"):
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
                file.write("2")
            assert inode_numbers(m.path + "/sub") == numbers
            with Mount(source, keys=[path("keys/reader.jwks")]) as again:
                assert inode_numbers(again.path + "/sub") == numbers
        with check("seekdir, rewinddir, a directory that changes while it is listed"):
            with os.scandir(m.path + "/sub") as entries:
                first = next(entries).name
                os.unlink(f"{source}/sub/1499.json")
                rest = [e.name for e in entries]
            assert first not in rest and len(rest) >= 1498


# ---- extended attributes ----

def test_xattrs(model):
    shutil.copytree(model.encrypted, path("xattrs"))
    write(path("xattrs/added.py"), "x")
    os.unlink(path("xattrs/kvfs.manifest"))
    with Mount(path("xattrs"), keys=[model.reader]) as m, \
            model.mount() as vouched:
        shard = os.path.join(m.path, model.shard)

        def get(name, file=shard):
            return os.getxattr(file, "user.kvfs." + name).decode()
        kid = json.loads(read_all(model.reader))["keys"][0]["kid"]
        with check("user.kvfs.* of a model, before and after it was opened"):
            assert get("state") == "encrypted" and get("kid") == kid
            assert get("sign_kid").endswith("-sign")
            refuses(errno.ENODATA, get, "version")
            with open(shard, "rb"):
                assert get("version") == "2" and get("alg") == "aes256gcm"
                assert re.fullmatch("[0-9a-f]{64}", get("header_sha256"))
                assert get("authenticated") == "yes"
                refuses(errno.ENODATA, get, "error")
                refuses(errno.ENODATA, get, "generation")
        with check("user.kvfs.* of what is passed on, refused, vouched for"):
            config = os.path.join(m.path, "config.json")
            assert (get("state", config), get("authenticated", config)) == ("passed on", "no")
            added = os.path.join(m.path, "added.py")
            assert get("state", added) == "refused" and get("authenticated", added) == "no"
            assert get("error", added).startswith("EKEYREJECTED: nothing vouches for it")
            config = os.path.join(vouched.path, "config.json")
            assert (get("state", config), get("authenticated", config)) == ("vouched for", "yes")
            assert get("generation", config) == "1"
            assert get("authenticated", os.path.join(vouched.path, model.shard)) == "yes"
        with check("listxattr names exactly those that have a value; getfattr -d prints them"):
            with open(shard, "rb"):
                names = os.listxattr(shard)
                assert {"user.kvfs.state", "user.kvfs.alg", "user.kvfs.kid"} <= set(names)
                for name in names:
                    assert os.getxattr(shard, name)
                text = run("getfattr", "-d", shard, check=True).stdout
                assert all(f"{name}=" in text for name in names), text
        with check("other names are ENODATA, a small buffer ERANGE, .kvfs/ has none"):
            refuses(errno.ENODATA, os.getxattr, shard, "user.other")
            refuses(errno.ENODATA, os.getxattr, shard, "security.capability")
            assert os.listxattr(m.path + "/.kvfs/status.json") == []
            buffer = ctypes.create_string_buffer(2)
            got = LIBC.getxattr(os.fsencode(shard), b"user.kvfs.state", buffer, 2)
            assert got == -1 and ctypes.get_errno() == errno.ERANGE


# ---- .kvfs/ ----

def parse_openmetrics(text):
    """A small parser of OpenMetrics 1.0: {sample: value}; raises on what is not well-formed."""
    assert text.endswith("# EOF\n") and text.count("# EOF") == 1, "no # EOF at the end"
    types, samples, current = {}, {}, None
    for line in text.split("\n")[:-2]:
        comment = re.fullmatch(r"# (TYPE|HELP|UNIT) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)", line)
        if comment:
            kind, family, rest = comment.groups()
            if family != current:
                assert family not in types, f"{family} is interleaved"
                assert kind == "TYPE", f"{line}: before its type"
                current = family
            if kind == "TYPE":
                assert rest in ("counter", "gauge", "info"), rest
                types[family] = rest
            continue
        sample = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*) (-?[0-9.e+]+)", line)
        assert sample, f"no sample: {line!r}"
        suffix = "_total" if types[current] == "counter" else ""
        assert sample[1] == current + suffix and sample[1] not in samples, line
        samples[sample[1]] = float(sample[2])
    assert samples.keys() == {f + ("_total" if t == "counter" else "") for f, t in types.items()}
    return samples


MEMBERS = {"version", "source", "mountpoint", "worker", "uptime", "state", "keys", "leases", "guard",
           "options", "memory", "crypto", "counters", "manifests", "files", "failures"}


def test_status_directory(model):
    with model.mount("uid=33") as m:
        with check(".kvfs/ is not listed by readdir, and there all the same"):
            assert ".kvfs" not in os.listdir(m.path)
            assert sorted(os.listdir(m.path + "/.kvfs")) == ["log", "manifest", "metrics",
                                                            "status.json"]
            assert run("find", m.path, "-name", ".kvfs").stdout == ""
            refuses(errno.ENOENT, os.stat, m.path + "/.kvfs/none")
            refuses(errno.ENOENT, os.stat, m.path + "/sub/.kvfs")
        with check("status.json: valid, its members, what was read"):
            with open(os.path.join(m.path, model.shard), "rb") as file:
                size = len(file.read())
                status = m.status()
            assert set(status) == MEMBERS, set(status) ^ MEMBERS
            assert status["source"] == model.encrypted and status["mountpoint"] == m.path
            assert status["worker"] == m.worker and status["state"] == "serving"
            assert status["keys"] == {"source": "local", "count": 2}
            assert status["options"]["uid"] == 33 and status["options"]["update"] == "pin"
            shard = next(f for f in status["files"] if model.shard in f["paths"])
            assert shard["open"] == 1 and shard["opens"] == 1 and shard["pinned"]
            # What the worker puts into the page cache by itself is never asked for.
            stored = status["counters"]["bytes_stored"]
            assert shard["size"] == size <= shard["bytes_read"] + stored, (size, shard, stored)
            assert shard["verdict"] == "encrypted"
            assert shard["encrypted"] == shard["tensors"] == shard["unwrapped"]
            manifest = status["manifests"][0]
            assert manifest["generation"] == 1 and manifest["missing"] == []
        with check("metrics: OpenMetrics, counting"):
            before = parse_openmetrics(read_all(m.path + "/.kvfs/metrics").decode())
            assert before["kvfs_opens_total"] == 1 and before["kvfs_errors_total"] == 0
            assert before["kvfs_decrypted_bytes_total"] >= size - 4096
            read_all(os.path.join(m.path, "config.json"))
            after = parse_openmetrics(read_all(m.path + "/.kvfs/metrics").decode())
            assert after["kvfs_opens_total"] == 2
            assert all(after[n] >= v for n, v in before.items() if n.endswith("_total"))
        with check("log: lines with time and level"):
            log = read_all(m.path + "/.kvfs/log").decode()
            for line in log.splitlines():
                assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (error|warning|info|debug) ",
                                line), line
        with check("manifest: the source's, byte for byte"):
            assert read_all(m.path + "/.kvfs/manifest") == read_all(model.encrypted +
                                                                    "/kvfs.manifest")
        with check("a snapshot stays what it was at open, in pieces and at any offset"):
            with open(m.path + "/.kvfs/status.json", "rb", buffering=0) as file:
                first = file.read(10)
                outcome(os.path.join(m.path, "none"))
                rest = b"".join(iter(lambda: file.read(100), b""))
                json.loads(first + rest)
                assert os.pread(file.fileno(), 5, 0) == first[:5]
                assert os.pread(file.fileno(), 5, 1 << 40) == b""
        with check("kvfs status prints it, of one mount and of all; --json as it is"):
            text = kvfs("status", m.path).stdout
            assert text == kvfs("status").stdout
            for part in (m.path, model.encrypted, "serving", "generation 1", "2 of them"):
                assert part in text, text
            assert set(json.loads(kvfs("status", "--json", m.path).stdout)) == MEMBERS
    with check("kvfs status: of what is no mount, and of nothing"):
        assert "nothing is mounted" in kvfs("status").stdout
        assert path("") in kvfs("status", path(""), code=1).stderr


def main():
    os.umask(0o022)
    model = Model(mib=4)
    test_writes(model)
    test_remounted(model)
    test_owners(model)
    test_attributes(model)
    test_listing()
    test_xattrs(model)
    test_status_directory(model)
    return finish()


sys.exit(main())
