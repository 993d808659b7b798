#!/usr/bin/env python3
"""Resident mode: a file decrypted whole at its first open and served by the kernel. Right bytes in
every way; one population for many openers; what falls back to the page cache and still reads; memory
given back; and how it is taken away from readers when worker, supervisor or both die."""
import concurrent.futures
import contextlib
import errno
import mmap
import os
import signal
import subprocess
import sys
import time

from kvfstest import (Checks, Model, Mount, die_with_parent, in_group, memory_group, mounts_at,
                      oom_kills, read_all, run, sanitized, wait_for, workdir)

MIB = 1 << 20
MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
os.closerange(3, 256)  # the mapping's own copy of it too
n = sum(m[i] for i in range(0, len(m), 4096))
m[4096] = 1  # a private copy of this page
print("mapped", flush=True)
sys.stdin.readline()
n = m[4096] + sum(m[i] for i in range(0, len(m), 65536))
print("still readable", flush=True)
"""


def file_status(m, name):
    return next(f for f in m.status()["files"] if f["paths"][0].endswith(name))


def mode_of(m, name):
    return file_status(m, name)["cache"]


def available(model):
    """Whether this machine can do it at all: root, and a kernel with FUSE passthrough."""
    with model.mount("cache=resident") as m:
        with open(model.shown(m), "rb") as file:
            file.read(1)
            return mode_of(m, model.shards[0]) == "resident"


def mapper(path):
    process = subprocess.Popen([sys.executable, "-c", MAPPER, path], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, preexec_fn=die_with_parent)
    assert process.stdout.readline() == b"mapped\n"
    return process


# ---- right bytes ----

def by_sendfile(path):
    fd, out = os.open(path, os.O_RDONLY), os.memfd_create("out")
    size, sent = os.fstat(fd).st_size, 0
    while sent < size:
        got = os.sendfile(out, fd, sent, size - sent)
        assert got, "short"
        sent += got
    os.close(fd)
    return os.pread(out, size + 1, 0)


def by_mmap(flags):
    def way(path):
        with open(path, "rb") as file:
            with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as view:
                return view[:]
    return way


def by_direct(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer, data = mmap.mmap(-1, MIB), bytearray()
    while got := os.preadv(fd, [buffer], len(data)):
        data += buffer[:got]
    os.close(fd)
    return bytes(data)


WAYS = {"read": read_all, "mmap shared": by_mmap(mmap.MAP_SHARED),
        "mmap private": by_mmap(mmap.MAP_PRIVATE), "O_DIRECT": by_direct, "sendfile": by_sendfile}


def bytes_are_right(checks, model, what):
    with model.mount("cache=resident") as m:
        for way, reader in WAYS.items():
            with checks.check(f"{what}: right bytes by {way}"):
                assert reader(model.shown(m)) == model.plain_bytes()
                assert mode_of(m, model.shards[0]) == "resident"
        with checks.check(f"{what}: decrypted once, whoever reads"):
            decrypted = m.status()["counters"]["bytes_decrypted"]
            assert decrypted <= len(model.plain_bytes()) * 1.1, decrypted
        with checks.check(f"{what}: not for writing"):
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
                try:
                    os.open(model.shown(m), flags)
                    raise AssertionError("opened")
                except OSError as error:
                    assert error.errno == errno.EROFS, error


# ---- who gets it ----

def choices(checks, small, large):
    with checks.check("auto leaves small files to the page cache"):
        with small.mount() as m, open(small.shown(m), "rb") as file:
            file.read(1)
            assert mode_of(m, small.shards[0]) == "page"
    with checks.check("auto takes files of 256 MB and more"):
        with large.mount() as m, open(large.shown(m), "rb") as file:
            file.read(1)
            assert mode_of(m, large.shards[0]) == "resident"
    with checks.check("cache=page: none"):
        with large.mount("cache=page") as m, open(large.shown(m), "rb") as file:
            file.read(1)
            assert mode_of(m, large.shards[0]) == "page"
    with checks.check("a budget that is too small: the page cache, and right bytes"):
        with large.mount("resident=64M") as m, open(large.shown(m), "rb") as file:
            assert file.read() == large.plain_bytes()
            assert mode_of(m, large.shards[0]) == "page"
            assert m.status()["memory"]["resident"] == 0
    if sanitized():
        return  # a sanitizer's own memory does not fit
    with checks.check("a cgroup with less memory than the file: the page cache, nobody is killed"):
        in_a_small_cgroup(large)
    with checks.check("a cgroup with room for one of two files that are opened at once: the other from "
                      "the page cache, nobody is killed"):
        room_for_one(large)
    with checks.check("a cgroup with room for one of two mounts' files: nobody is killed"):
        room_for_one_of_two_mounts(large)


def in_a_small_cgroup(model):
    with memory_group(256 * MIB) as group, \
            model.mount("cache=resident", prefix=in_group(group)) as m:
        with open(model.shown(m), "rb") as file:
            file.read(1)
            assert mode_of(m, model.shards[0]) == "page"
        assert m.status()["memory"]["bound"] == 64 * MIB, m.status()["memory"]
        assert read_all(model.shown(m)) == model.plain_bytes()
        assert oom_kills(group) == 0


def room_for_one(model):
    """resident= promises room that is not there: that shows half-way."""
    size = len(model.plain_bytes())
    with memory_group(size * 3 // 2) as group, \
            model.mount("cache=resident", "resident=4G", prefix=in_group(group)) as m:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            files = list(pool.map(lambda i: open(model.shown(m, i), "rb"), range(2)))
        modes = sorted(mode_of(m, name) for name in model.shards)
        for i, file in enumerate(files):
            assert file.read() == model.plain_bytes(i)
            file.close()
        assert modes == ["page", "resident"], modes
        assert oom_kills(group) == 0


def room_for_one_of_two_mounts(model):
    """Neither knows of the other: they run short while they take memory."""
    size = len(model.plain_bytes())
    with memory_group(size * 3 // 2) as group:
        options = ["cache=resident", "resident=4G", "guard=off"]
        with model.mount(*options, prefix=in_group(group)) as a, \
                model.mount(*options, prefix=in_group(group)) as b:
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                files = list(pool.map(lambda m: open(model.shown(m), "rb"), (a, b)))
            modes = [mode_of(m, model.shards[0]) for m in (a, b)]
            for file in files:
                assert file.read() == model.plain_bytes()
                file.close()
            assert "page" in modes, modes
        assert oom_kills(group) == 0


def fallback(checks, model):
    """A failed tag: intact tensors stay readable, through the page cache."""
    source = os.path.join(workdir(), "damaged")
    run("cp", "-r", model.encrypted, source, check=True)
    shard = os.path.join(source, model.shards[0])
    with open(shard, "r+b") as file:
        file.seek(-3 * MIB, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with checks.check("a failed tag: back to the page cache, only its chunk is unreadable"):
        with Mount(source, keys=[model.reader], options=["cache=resident"]) as m:
            want, bad = model.plain_bytes(), 0
            with open(model.shown(m), "rb", buffering=0) as file:
                assert mode_of(m, model.shards[0]) == "page"
                for at in range(0, len(want), MIB):
                    try:
                        data = os.pread(file.fileno(), 4096, at)
                        assert data == want[at:at + 4096], at
                    except OSError as error:
                        assert error.errno == errno.EBADMSG, error
                        bad += 1
            assert 1 <= bad <= 3, f"{bad} places unreadable"
            assert m.status()["memory"]["resident"] == 0


# ---- many openers ----

def openers(checks, model):
    with checks.check("16 openers share one population"):
        with model.mount("cache=resident", "threads=1") as m:
            readers = [subprocess.Popen(["sha256sum", model.shown(m)], stdout=subprocess.PIPE,
                                        preexec_fn=die_with_parent) for _ in range(16)]
            sums = {r.communicate(timeout=120)[0].split()[0] for r in readers}
            want = run("sha256sum", os.path.join(model.plain, model.shards[0])).stdout.split()[0]
            assert sums == {want.encode()}, sums
            assert m.status()["counters"]["bytes_decrypted"] <= len(model.plain_bytes()) * 1.1
    with checks.check("stat answers while a file is being decrypted; its progress shows"):
        with model.mount("cache=resident", "threads=1") as m:
            os.stat(model.shown(m))
            reader = subprocess.Popen(["head", "-c1", model.shown(m)], stdout=subprocess.DEVNULL,
                                      preexec_fn=die_with_parent)
            slowest, seen = 0.0, set()
            while reader.poll() is None:
                start = time.monotonic()
                os.stat(model.shown(m, 1))
                slowest = max(slowest, time.monotonic() - start)
                seen.add(mode_of(m, model.shards[0]))
            assert "populating" in seen, seen
            assert slowest < (2 if sanitized() else 0.1), slowest
    with checks.check("an opener that is killed while it waits does not hang"):
        with model.mount("cache=resident", "threads=1") as m:
            os.stat(model.shown(m))
            reader = subprocess.Popen(["head", "-c1", model.shown(m)], stdout=subprocess.DEVNULL)
            wait_for(lambda: mode_of(m, model.shards[0]) == "populating", 5, "populating")
            start = time.monotonic()
            reader.kill()
            reader.wait(10)
            took = time.monotonic() - start
            still = mode_of(m, model.shards[0])
            assert took < 0.2 or still == "populating", f"{took:.2f} s, then {still}"
            wait_for(lambda: mode_of(m, model.shards[0]) == "resident", 60, "the rest of it")
            assert read_all(model.shown(m)) == model.plain_bytes()


# ---- memory ----

def memory(checks, model):
    with checks.check("linger=0: memory is given back after the last close"):
        with model.mount("cache=resident", "linger=0") as m:
            with open(model.shown(m), "rb") as file:
                file.read(1)
                assert m.status()["memory"]["resident"] >= len(model.plain_bytes())
            wait_for(lambda: m.status()["memory"]["resident"] == 0, 5, "giving memory back")
            assert read_all(model.shown(m)) == model.plain_bytes()
    with checks.check("who has it mapped keeps it, though all descriptors are closed"):
        with model.mount("cache=resident", "linger=0") as m:
            process = mapper(model.shown(m))
            time.sleep(3)
            assert m.status()["memory"]["resident"] >= len(model.plain_bytes())
            out, _ = process.communicate(b"\n", timeout=20)
            assert process.returncode == 0 and out == b"still readable\n", (process.returncode, out)
            wait_for(lambda: m.status()["memory"]["resident"] == 0, 5, "giving memory back")
    with checks.check("linger counts although the guard speaks all the time"):
        profile = os.path.join(workdir(), "quick.profile")
        with open(profile, "w", encoding="ascii") as file:
            file.write("profile quick\nbase drift\nperiod 200\n")
        with model.mount("cache=resident", "linger=0", f"guard={profile}") as m:
            read_all(model.shown(m))
            wait_for(lambda: m.status()["memory"]["resident"] == 0, 5, "giving memory back")
    with checks.check("another file that needs the room gets it"):
        size = len(model.plain_bytes()) // MIB + 8
        with model.mount("cache=resident", f"resident={size}M", "linger=1000") as m:
            for number in (0, 1, 0):
                with open(model.shown(m, number), "rb") as file:
                    assert file.read() == model.plain_bytes(number)
                    assert mode_of(m, model.shards[number]) == "resident"
                wait_for(lambda name=model.shards[number]: file_status(m, name)["open"] == 0, 5,
                         "the kernel's word of its close")
            with open(model.shown(m, 0), "rb"), open(model.shown(m, 1), "rb") as second:
                assert second.read() == model.plain_bytes(1)
                assert mode_of(m, model.shards[1]) == "page", "there was no room"


# ---- what a container's root has, and less: no CAP_LEASE, no CAP_DAC_OVERRIDE ----

def few_capabilities(checks, model):
    few = ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+sys_admin,+chown,+setuid,+setgid"]
    with checks.check("few capabilities: who has it mapped keeps it, and it is given back later"):
        with model.mount("cache=resident", "linger=0", prefix=few) as m:
            process = mapper(model.shown(m))
            assert mode_of(m, model.shards[0]) == "resident"
            time.sleep(3)
            out, _ = process.communicate(b"\n", timeout=20)
            assert process.returncode == 0 and out == b"still readable\n", (process.returncode, out)
            wait_for(lambda: m.status()["memory"]["resident"] == 0, 5, "giving memory back")
    for name in ("worker", "supervisor"):
        with checks.check(f"few capabilities: kill -9 of the {name}: mappings get SIGBUS"):
            with model.mount("cache=resident", prefix=few) as m:
                process = mapper(model.shown(m))
                assert mode_of(m, model.shards[0]) == "resident"
                os.kill(getattr(m, name), signal.SIGKILL)
                wait_for(lambda: not mounts_at(m.path), 10, "unmounting")
                m.wait_gone(10)
                out, _ = process.communicate(b"\n", timeout=20)
                assert process.returncode == -signal.SIGBUS, (process.returncode, out)


# ---- taking it away ----

def revocation(checks, model):
    ways = {"worker": lambda m: [m.worker], "supervisor": lambda m: [m.supervisor],
            "supervisor and worker": lambda m: [m.supervisor, m.worker]}
    for name, victims in ways.items():
        with checks.check(f"kill -9 of {name}: mappings get SIGBUS, descriptors nothing"):
            with model.mount("cache=resident") as m:
                process = mapper(model.shown(m))
                with open(model.shown(m), "rb", buffering=0) as held:
                    assert held.read(4096) == model.plain_bytes()[:4096]
                    for pid in victims(m):
                        os.kill(pid, signal.SIGKILL)
                    wait_for(lambda: not mounts_at(m.path), 10, "unmounting")
                    m.wait_gone(10)
                    with contextlib.suppress(OSError):
                        data = os.pread(held.fileno(), 4096, 0)
                        assert not data, "a descriptor still reads"
                out, _ = process.communicate(b"\n", timeout=20)
                assert process.returncode == -signal.SIGBUS, (process.returncode, out)
            with model.mount("cache=resident", path=m.path) as again:
                assert read_all(model.shown(again)) == model.plain_bytes()


def remounting(checks, model):
    with checks.check("mounted again at once, 20 times: no leftover of the last unmounts the next"):
        path = os.path.join(workdir(), "again")
        for turn in range(20):
            with model.mount("cache=" + ("resident" if turn % 2 else "page"), path=path) as m:
                with open(model.shown(m), "rb") as file:
                    file.read(4096)
                time.sleep(0.15)
                assert m.mounted, f"turn {turn}"
                m.umount()
                m.pids = {}  # the next is mounted while these are still ending


def read_once(checks, model):
    """A long message is decrypted where its ciphertext was read to, to authenticate it."""
    with checks.check("version 1: the source is read once, and bytes are right"):
        with model.mount("cache=resident") as m:
            before = bytes_read(m.worker)
            assert read_all(model.shown(m)) == model.plain_bytes()
            assert mode_of(m, model.shards[0]) == "resident"
            times = (bytes_read(m.worker) - before) / len(model.plain_bytes())
            assert times < 1.3, f"{times:.2f} times"


def bytes_read(pid):
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file)["rchar"])


def main():
    checks = Checks()
    small = Model(24, name="small-")
    if not available(small):
        checks.skip("resident mode", "root and a kernel with FUSE passthrough are needed")
        return checks.finish()
    large = Model(600, name="large-")
    first = Model(24, 1, "first-", ["--format-version", "1"])
    odd = Model(24, 1, "odd-", ["--chunk-size", "65537"])
    bytes_are_right(checks, small, "version 2")
    bytes_are_right(checks, first, "version 1")
    bytes_are_right(checks, odd, "odd chunks")
    read_once(checks, Model(64, 0, "long-", ["--format-version", "1"]))
    choices(checks, small, large)
    fallback(checks, small)
    openers(checks, large)
    memory(checks, small)
    few_capabilities(checks, small)
    revocation(checks, small)
    remounting(checks, small)
    return checks.finish()


sys.exit(main())
