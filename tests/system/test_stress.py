#!/usr/bin/env python3
"""50 readers mixing mmap, pread and O_DIRECT for KVFS_SECONDS: every byte right, `stat` answered
meanwhile, memory within the bound. One file has a damaged chunk: its neighbours must not notice."""
import contextlib
import errno
import mmap
import multiprocessing
import os
import random
import subprocess
import sys
import time

from kvfstest import ROOT, SECONDS, Checks, Mount, kvfs, sanitized, workdir

READERS = 50
MEMORY = 64 << 20
PAGE = mmap.PAGESIZE


def read_pread(fd, size, rng):
    at = rng.randrange(size)
    want = min(rng.choice([1, 4096, 70001, 1 << 20]), size - at)
    return at, os.pread(fd, want, at)


def read_mmap(view, size, rng):
    at = rng.randrange(size)
    return at, view[at:at + rng.choice([1, 4096, 300000])]


def read_direct(fd, buffer, size, rng):
    at = rng.randrange(size) // PAGE * PAGE
    got = os.preadv(fd, [buffer], at)
    return at, buffer[:got]


def reader(number, pairs, deadline, damaged, problems):
    rng = random.Random(number)
    # The damaged file is last in `pairs`; errors there are expected, wrong bytes never.
    while time.monotonic() < deadline:
        shown, original = rng.choice(pairs)
        try:
            with open(original, "rb") as plain, open(shown, "rb", buffering=0) as file:
                size = os.fstat(plain.fileno()).st_size
                view = None
                direct = None
                for _ in range(20):
                    kind = rng.choice(["pread", "mmap", "direct"])
                    # A fault in a damaged chunk is SIGBUS, which Python can't catch.
                    if kind == "mmap" and shown == damaged:
                        kind = "pread"
                    try:
                        if kind == "pread":
                            at, data = read_pread(file.fileno(), size, rng)
                        elif kind == "mmap":
                            view = view or mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
                            at, data = read_mmap(view, size, rng)
                        else:
                            if direct is None:
                                direct = os.open(shown, os.O_RDONLY | os.O_DIRECT)
                                buffer = mmap.mmap(-1, 256 << 10)
                            at, data = read_direct(direct, buffer, size, rng)
                    except OSError as error:
                        if shown == damaged and error.errno == errno.EBADMSG:
                            continue
                        raise
                    if data != os.pread(plain.fileno(), len(data), at) or not data:
                        problems.put(f"{kind} of {shown} at {at}: {len(data)} wrong bytes")
                        return
                if direct is not None:
                    os.close(direct)
        except OSError as error:
            problems.put(f"{shown}: {error}")
            return


def rss_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def main():
    checks = Checks()
    plain, encrypted = os.path.join(workdir(), "plain"), os.path.join(workdir(), "encrypted")
    keys = os.path.join(workdir(), "keys")
    subprocess.run([os.path.join(ROOT, "packaging/make-model"), plain, "--shards", "4", "--mib", "192"],
                   check=True)
    kvfs("keygen", keys)
    # Small chunks in one shard, version 1 in another: all read paths at once.
    os.mkdir(encrypted)
    names = sorted(n for n in os.listdir(plain) if n.endswith(".safetensors"))
    options = [[], ["--chunk-size", "65537"], ["--format-version", "1"], []]
    for name, more in zip(names, options):
        kvfs("encrypt", "-q", os.path.join(plain, name), "-o", os.path.join(encrypted, name),
             "--key", keys + "/owner.jwks", *more)
    damaged = os.path.join(encrypted, names[-1])
    with open(damaged, "r+b") as file:
        file.seek(-5 << 20, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))

    with Mount(encrypted, keys=[keys + "/reader.jwks"], options=[f"memory={MEMORY}"]) as m:
        pairs = [(os.path.join(m.path, n), os.path.join(plain, n)) for n in names]
        problems = multiprocessing.Queue()
        deadline = time.monotonic() + SECONDS
        readers = [multiprocessing.Process(target=reader, args=(
            n, pairs, deadline, os.path.join(m.path, names[-1]), problems)) for n in range(READERS)]
        for process in readers:
            process.start()
        # 50 busy readers on few cores keep anybody waiting for a core: that is not what is measured.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, -15)
        slowest, peak = 0.0, 0
        while any(process.is_alive() for process in readers):
            started = time.monotonic()
            os.stat(os.path.join(m.path, names[0]))
            try:
                os.stat(os.path.join(m.path, "no such file"))
            except FileNotFoundError:
                pass
            slowest = max(slowest, time.monotonic() - started)
            peak = max(peak, rss_of(m.worker))
            time.sleep(0.02)
            if time.monotonic() > deadline + 60:
                break
        with checks.check("50 readers: every byte right"):
            for process in readers:
                process.join(1)
                assert process.exitcode == 0, f"a reader ended with {process.exitcode}"
            assert problems.empty(), problems.get()
        with checks.check("50 readers: stat answers meanwhile"):
            # A sanitizer makes everything slower by a factor that says nothing about kvfs.
            assert slowest < (2.0 if sanitized() else 0.1), f"{slowest:.3f} s"
        with checks.check("50 readers: memory within the bound"):
            # What is not plaintext: headers, stacks, malloc's slack.
            assert sanitized() or peak < MEMORY + (32 << 20), f"{peak >> 20} MiB"
        with checks.check("the damaged file: every page right or EBADMSG"):
            bad = 0
            with open(pairs[-1][0], "rb", buffering=0) as file, open(pairs[-1][1], "rb") as original:
                for at in range(0, os.fstat(original.fileno()).st_size, 64 << 10):
                    try:
                        # Short when a later page of the block fails: that is an error next time.
                        data = os.pread(file.fileno(), 64 << 10, at)
                        want = os.pread(original.fileno(), 64 << 10, at)
                        assert data == want[:len(data)], f"wrong bytes at {at}"
                        bad += len(data) < len(want)
                    except OSError as error:
                        assert error.errno == errno.EBADMSG, error
                        bad += 1
            assert 1 <= bad <= (2 << 20) // (64 << 10) + 1, f"{bad} blocks unreadable"
        checks.note(f"slowest stat {slowest * 1e3:.1f} ms, peak {peak >> 20} MiB")
    return checks.finish()


sys.exit(main())
