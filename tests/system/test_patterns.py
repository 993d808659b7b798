#!/usr/bin/env python3
"""How loaders read, replayed: prefetching in blocks, many processes that slice one file lazily, direct
reads by many threads that overlap, populated and advised mappings, sendfile, splice, SEEK_HOLE. Right
bytes, no hang, and each byte decrypted at most 1.1 times over all processes. And what can't work, with
the error it gives."""
import concurrent.futures
import ctypes
import errno
import fcntl
import mmap
import multiprocessing
import os
import random
import sys

from kvfstest import Checks, Model, Mount, close_all, kvfs, read_all, run, workdir

MIB = 1 << 20
MADV_POPULATE_READ = 22
MAP_POPULATE = 0x8000
BLOCK = 16 * MIB
DIRECT_STEP, DIRECT_READ, DIRECT_THREADS = 524288, 528384, 8
IN_ANY_CHANGE = 0xFFF


def in_processes(count, target, *arguments):
    """Runs target(number, count, ...) in processes of their own; all must end well."""
    processes = [multiprocessing.Process(target=target, args=(i, count) + arguments)
                 for i in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, process.exitcode


def blocks(number, count, shown, plain):
    """vLLM's prefetch: each of some readers takes every n-th block by pread."""
    with open(shown, "rb", buffering=0) as file, open(plain, "rb") as original:
        size = os.fstat(original.fileno()).st_size
        for at in range(number * BLOCK, size, count * BLOCK):
            want = min(BLOCK, size - at)
            data = b""
            while len(data) < want:
                data += os.pread(file.fileno(), want - len(data), at + len(data))
            assert data == os.pread(original.fileno(), want, at), at


def slices(number, count, shown, plain):
    """Tensor-parallel ranks: each maps the file and touches its own part of every stretch."""
    rng = random.Random(number)
    with open(shown, "rb") as file, open(plain, "rb") as original:
        size = os.fstat(original.fileno()).st_size
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view, \
                mmap.mmap(original.fileno(), 0, prot=mmap.PROT_READ) as want:
            part = 8 * MIB // count
            for stretch in range(0, size, 8 * MIB):
                begin = min(size, stretch + number * part)
                end = min(size, begin + part)
                assert view[begin:end] == want[begin:end], begin
            for _ in range(50):
                at = rng.randrange(size)
                assert view[at] == want[at]


def parallel(checks, model, mode):
    ways = {"8 processes, 16 MiB blocks": blocks, "8 processes slicing one file": slices}
    if mode == "direct":
        ways.popitem()  # each mapping empties what others have cached
    for name, way in ways.items():
        with checks.check(f"{mode}: {name}: right bytes, nothing decrypted twice"):
            with model.mount(f"cache={mode}") as m:
                in_processes(8, way, model.shown(m), os.path.join(model.plain, model.shard))
                decrypted = m.status()["counters"]["bytes_decrypted"]
                size = len(model.plain_bytes())
                assert decrypted <= size * 1.1, f"{decrypted / size:.2f} times"


def by_direct(file):
    """fastsafetensors: 8 threads read overlapping blocks, and ask for whole blocks at the end too."""
    size = os.fstat(file.fileno()).st_size
    fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_DIRECT)

    def share(number):
        buffer, parts = mmap.mmap(-1, DIRECT_READ), {}
        for at in range(number * DIRECT_STEP, size, DIRECT_THREADS * DIRECT_STEP):
            got = os.preadv(fd, [buffer], at)
            assert got == min(DIRECT_READ, size - at), (at, got)
            parts[at] = buffer[:got]
        return parts

    with concurrent.futures.ThreadPoolExecutor(DIRECT_THREADS) as pool:
        parts = {at: part for parts in pool.map(share, range(DIRECT_THREADS))
                 for at, part in parts.items()}
    os.close(fd)
    for at in sorted(parts)[1:]:
        assert parts[at - DIRECT_STEP][DIRECT_STEP:] == parts[at][:DIRECT_READ - DIRECT_STEP], at
    return b"".join(parts[at][:DIRECT_STEP] for at in sorted(parts))


def mapped(file, flags=mmap.MAP_SHARED, advice=None):
    with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as view:
        if advice is not None:
            view.madvise(advice)
        return view[:]


def by_splice(file):
    size, data = os.fstat(file.fileno()).st_size, bytearray()
    out, into = os.pipe()
    while len(data) < size:
        got = os.splice(file.fileno(), into, 65536, offset_src=len(data))
        data += os.read(out, got)
    os.close(out)
    os.close(into)
    return bytes(data)


def by_sendfile(file):
    out, size, sent = os.memfd_create("out"), os.fstat(file.fileno()).st_size, 0
    while sent < size:
        sent += os.sendfile(out, file.fileno(), sent, size - sent)
    data = os.pread(out, size + 1, 0)
    os.close(out)
    return data


def advised(file):
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return file.read()


def single(checks, model, mode):
    ways = {
        "MAP_POPULATE": lambda f: mapped(f, mmap.MAP_SHARED | MAP_POPULATE),
        "MADV_POPULATE_READ": lambda f: mapped(f, advice=MADV_POPULATE_READ),
        "MADV_WILLNEED": lambda f: mapped(f, advice=mmap.MADV_WILLNEED),
        "MADV_RANDOM": lambda f: mapped(f, mmap.MAP_PRIVATE, mmap.MADV_RANDOM),
        "FADV_RANDOM and WILLNEED": advised,
        "sendfile": by_sendfile,
        "splice": by_splice,
        "O_DIRECT by 8 threads": by_direct,
    }
    if mode == "direct":
        ways = {"MAP_PRIVATE": lambda f: mapped(f, mmap.MAP_PRIVATE), "sendfile": by_sendfile,
                "splice": by_splice, "O_DIRECT by 8 threads": by_direct}
    want = model.plain_bytes()
    for name, way in ways.items():
        with checks.check(f"{mode}: {name}"):
            with model.mount(f"cache={mode}") as m:
                with open(model.shown(m), "rb", buffering=0) as file:
                    assert way(file) == want
                decrypted = m.status()["counters"]["bytes_decrypted"]
                assert decrypted <= len(want) * 1.1, f"{decrypted / len(want):.2f} times"
    with checks.check(f"{mode}: SEEK_HOLE and SEEK_DATA: no holes"):
        with model.mount(f"cache={mode}") as m, open(model.shown(m), "rb") as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == len(want)
            assert os.lseek(file.fileno(), 100, os.SEEK_DATA) == 100


def impossible(checks, model, mode):
    """README's table of what can't work."""
    with model.mount(f"cache={mode}") as m:
        path, outside = model.shown(m), os.path.join(workdir(), "outside")
        with open(path, "rb") as file, open(outside, "wb") as out:
            refused = {
                "writing": (lambda: os.open(path, os.O_WRONLY), errno.EROFS),
                "creating": (lambda: os.open(path + "x", os.O_RDWR | os.O_CREAT), errno.EROFS),
                "renaming": (lambda: os.rename(path, path + "x"), errno.EROFS),
                "a hard link within": (lambda: os.link(path, path + "x"), errno.EROFS),
                "a hard link to outside": (lambda: os.link(path, outside + "x"), errno.EXDEV),
                "copy_file_range": (lambda: os.copy_file_range(file.fileno(), out.fileno(), MIB),
                                    errno.EXDEV),
                "running it": (lambda: os.execv(path, [path]), errno.EACCES),
            }
            if mode == "direct":
                refused["MAP_SHARED"] = (lambda: mapped(file), errno.ENODEV)
            for name, (attempt, want) in refused.items():
                with checks.check(f"{mode}: {name}: {errno.errorcode[want]}"):
                    try:
                        attempt()
                        raise AssertionError("it worked")
                    except OSError as error:
                        assert error.errno == want, error
            with checks.check(f"{mode}: locks are the kernel's own, and work"):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with checks.check(f"{mode}: cp copies nevertheless"):
            assert os.system(f"cp {path} {outside}") == 0
            assert read_all(outside) == model.plain_bytes()


def watch(path):
    """A descriptor that inotify's events of a file come from."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, os.fsencode(path), IN_ANY_CHANGE) >= 0
    return fd


def unnoticed(checks, model):
    with checks.check("inotify: no event when the source changes, reload or not"):
        source = os.path.join(workdir(), "changing")
        run("cp", "-r", model.encrypted, source, check=True)
        with Mount(source, keys=[model.reader]) as m:
            name = os.path.join(m.path, "config.json")
            fds = [watch(name), watch(m.path)]
            os.utime(os.path.join(source, "config.json"))
            run("cp", os.path.join(model.encrypted, "config.json"),
                os.path.join(source, "config.json.new"), check=True)
            os.rename(os.path.join(source, "config.json.new"), os.path.join(source, "config.json"))
            kvfs("reload", m.path)
            for fd in fds:
                try:
                    raise AssertionError(os.read(fd, 4096))
                except BlockingIOError:
                    os.close(fd)
    with checks.check("a file that is mapped, not open: EBUSY at unmounting, and who it is; lazily, readable"):
        with model.mount("cache=resident") as m:
            with open(model.shown(m), "rb") as file:
                view = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            close_all(model.shown(m))
            assert "python3 maps" in m.umount(check=False).stderr
            assert "busy" in run("umount", m.path).stderr
            m.umount("-l")
            assert view[:] == model.plain_bytes()
            view.close()
            m.wait_gone()


def main():
    checks = Checks()
    model = Model(96, 1)
    for mode in ("page", "resident", "direct"):
        parallel(checks, model, mode)
        single(checks, model, mode)
        impossible(checks, model, mode)
    unnoticed(checks, model)
    return checks.finish()


sys.exit(main())
