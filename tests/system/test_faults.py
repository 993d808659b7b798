#!/usr/bin/env python3
"""Random faults on the page cache path: the rest of what was decrypted for one goes into the page
cache. Right bytes, little decrypted twice, damage never shown, and nothing of it left behind when
worker or supervisor die in the middle of it."""
import contextlib
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading

from kvfstest import Checks, Model, die_with_parent, mounts_at, sanitized, turns, wait_for

KIB, MIB = 1 << 10, 1 << 20


def random_faults(checks, model):
    want = model.plain_bytes()
    with checks.check("one mapping, random faults, few slots: right bytes, little decrypted twice"):
        with model.mount("cache=page", "memory=16M") as m, open(model.shown(m), "rb") as file, \
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            rng = random.Random(1)
            for _ in range(2000):
                at = rng.randrange(len(want))
                assert view[at] == want[at], at
            counters = m.status()["counters"]
            assert counters["bytes_stored"] > len(want) / 4, counters
            assert counters["bytes_decrypted"] < 3 * len(want), counters
            assert view[:] == want
    with checks.check("four threads, random reads of all sizes, pages dropped meanwhile"):
        with model.mount("cache=page", "memory=16M") as m, \
                open(model.shown(m), "rb", buffering=0) as file:
            wrong = []
            threads = [threading.Thread(target=reads, args=(file.fileno(), want, i, wrong))
                       for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not wrong, wrong[0]


def reads(fd, want, seed, wrong):
    rng = random.Random(seed)
    for turn in range(300):
        at, size = rng.randrange(len(want)), rng.choice((1, 4 * KIB, 100 * KIB, MIB, 3 * MIB))
        if os.pread(fd, size, at) != want[at:at + size]:
            wrong.append((seed, turn, at, size))
        if turn % 20 == 0:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def damage(checks):
    """One chunk of 64 KiB in an extent of many: all around it is stored, itself never."""
    model = Model(8, 1, "damage", ("--chunk-size", str(64 * KIB)))
    path = next(os.path.join(model.encrypted, n) for n in os.listdir(model.encrypted)
                if n.startswith(os.path.splitext(model.shard)[0]))
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    want = model.plain_bytes()
    with checks.check("a damaged chunk: EBADMSG or right bytes, whatever is stored around it"):
        with model.mount("cache=page", "memory=16M") as m, \
                open(model.shown(m), "rb", buffering=0) as file:
            rng, bad = random.Random(2), 0
            for _ in range(400):
                at = rng.randrange(len(want))
                try:
                    data = os.pread(file.fileno(), 128 * KIB, at)
                    assert data == want[at:at + len(data)], at
                except OSError as error:
                    assert error.errno == errno.EBADMSG, error
                    bad += 1
            assert 0 < bad < 40, bad


def first_touch(checks):
    """A version 1 tensor is authenticated whole at its first touch, by all threads."""
    model = Model(64, 0, "one", ("--format-version", "1"))
    want = model.plain_bytes()
    with checks.check("version 1: a first touch in the middle of a long tensor, by three threads: right bytes"):
        with model.mount("cache=page", "threads=3") as m, \
                open(model.shown(m), "rb", buffering=0) as file:
            at = len(want) // 2
            assert os.pread(file.fileno(), 100, at) == want[at:at + 100]
            assert file.read(len(want)) == want


FAULTER = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
view = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
rng = random.Random(os.getpid())
print("begun", flush=True)
while True:
    for _ in range(20):
        view[rng.randrange(len(view))]
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.pread(fd, 128 << 10, rng.randrange(len(view)))
    except OSError:
        sys.exit(0)
"""


def deaths(checks, model):
    for who in ("worker", "supervisor"):
        with checks.check(f"kill -9 of the {who} among random faults: nothing stays readable"):
            for _ in turns(1 if sanitized() else 4):
                death(model, who)


def death(model, who):
    with model.mount("cache=page", "memory=16M") as m:
        held = os.open(model.shown(m), os.O_RDONLY)
        size = os.fstat(held).st_size
        faulters = [subprocess.Popen([sys.executable, "-c", FAULTER, model.shown(m)],
                                     stdout=subprocess.PIPE, preexec_fn=die_with_parent)
                    for _ in range(3)]
        for process in faulters:
            assert process.stdout.readline() == b"begun\n"
        wait_for(lambda: m.status()["counters"]["bytes_stored"], 20, "storing")
        os.kill(m.pids[who], signal.SIGKILL)
        wait_for(lambda: not mounts_at(m.path), 10, "unmounting")
        m.wait_gone(10)
        for process in faulters:  # by an error, or by SIGBUS
            process.communicate(timeout=20)
        readable = 0
        for at in range(0, size, 64 * KIB):
            with contextlib.suppress(OSError):
                readable += len(os.pread(held, 4 * KIB, at))
        os.close(held)
        assert not readable, f"{readable} bytes are still readable"


def main():
    checks = Checks()
    model = Model(64, 1)
    random_faults(checks, model)
    damage(checks)
    first_touch(checks)
    deaths(checks, model)
    return checks.finish()


sys.exit(main())
