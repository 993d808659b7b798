#!/usr/bin/env python3
"""Every reference vector through a real mount: right bytes however they are read, and each file
that must fail refused with its errno, its neighbours undisturbed."""
import errno
import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys

from kvfstest import ROOT, Checks, Mount, workdir

VECTORS = os.path.join(ROOT, "tests/vectors")
PAGE = mmap.PAGESIZE


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def by_cat(path):
    return subprocess.run(["cat", path], check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL).stdout


def by_dd(path):
    """Odd block size, and once more from an odd offset to the end."""
    whole = subprocess.run(["dd", f"if={path}", "bs=977", "status=none"], check=True,
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    tail = subprocess.run(["dd", f"if={path}", "bs=1", "skip=13", "count=3001", "status=none"],
                          check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    assert tail == whole[13:13 + 3001], "dd from an odd offset differs"
    return whole


def by_cp(path):
    copy = os.path.join(workdir(), "copy")
    subprocess.run(["cp", path, copy], check=True, stderr=subprocess.DEVNULL)
    with open(copy, "rb") as file:
        return file.read()


def by_mmap(flags):
    def read(path):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            with mmap.mmap(file.fileno(), size, flags=flags, prot=mmap.PROT_READ) as view:
                return view[:]
    return read


def by_direct(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        size = os.fstat(fd).st_size
        buffer = mmap.mmap(-1, 1 << 20)
        data = bytearray()
        while len(data) < size:
            got = os.preadv(fd, [buffer], len(data))
            if got == 0:
                break
            data += buffer[:got]
        return bytes(data)
    finally:
        os.close(fd)


def by_sendfile(path):
    out = os.memfd_create("out")
    fd = os.open(path, os.O_RDONLY)
    try:
        size, sent = os.fstat(fd).st_size, 0
        while sent < size:
            got = os.sendfile(out, fd, sent, size - sent)
            if got == 0:
                break
            sent += got
        return os.pread(out, size + 1, 0)
    finally:
        os.close(fd)
        os.close(out)


def by_odd_preads(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        size, data, step = os.fstat(fd).st_size, bytearray(), 1
        while len(data) < size:
            data += os.pread(fd, step, len(data))
            step = step * 3 % 70001 + 1
        return bytes(data)
    finally:
        os.close(fd)


WAYS = {
    "cat": by_cat, "dd": by_dd, "cp": by_cp, "mmap shared": by_mmap(mmap.MAP_SHARED),
    "mmap private": by_mmap(mmap.MAP_PRIVATE), "O_DIRECT": by_direct, "sendfile": by_sendfile,
    "odd preads": by_odd_preads,
}


def good(checks, manifest):
    with Mount(os.path.join(VECTORS, "good"), keys=[os.path.join(VECTORS, "keys/reader.jwks")]) as m:
        for entry in manifest["good"]:
            path = os.path.join(m.path, os.path.relpath(entry["view"], "good"))
            for way, read in WAYS.items():
                with checks.check(f"{entry['view']} by {way}"):
                    assert os.stat(path).st_size == entry["size"], "size in stat"
                    data = read(path)
                    assert len(data) == entry["size"], f"{len(data)} bytes"
                    assert sha256(data) == entry["sha256"], "digest differs"


def first_error(path):
    """The errno of open or of the first read; None if both work."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.read(1)
    except OSError as error:
        return error.errno
    return None


def damaged_ranges(entry, vectors_path):
    """Byte ranges of the view that hold the damaged tensors, from the file's own header."""
    with open(vectors_path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    ranges = [header[name]["data_offsets"] for name in entry["tensors"]]
    tensors = {k: v["data_offsets"] for k, v in header.items() if k != "__metadata__"}
    return ranges, tensors


def read_damaged(checks, entry, path, source):
    """Whole pages outside the damaged tensors read right; every damaged one has an error somewhere
    and never a byte that differs from the original."""
    want = getattr(errno, entry["errno"])
    ranges, tensors = damaged_ranges(entry, source)
    body = max(end for _, end in tensors.values())
    size = os.stat(path).st_size
    start = size - body
    fd = os.open(path, os.O_RDONLY)
    try:
        failed = set()
        for at in range(0, size, PAGE):
            try:
                os.pread(fd, PAGE, at)
            except OSError as error:
                assert error.errno == want, f"errno {errno.errorcode[error.errno]} at {at}"
                failed.add(at // PAGE)
        for begin, end in ranges:
            pages = set(range((start + begin) // PAGE, (start + end - 1) // PAGE + 1))
            assert pages & failed, f"no page of [{begin}, {end}) failed"
        allowed = set()
        for begin, end in ranges:
            allowed |= set(range((start + begin) // PAGE, (start + end - 1) // PAGE + 1))
        assert failed <= allowed, f"pages outside the damaged tensors failed: {failed - allowed}"
    finally:
        os.close(fd)
    # Past the page cache errors are exact: an intact tensor reads, whatever page it shares.
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, size)
        for name, (begin, end) in tensors.items():
            if name not in entry["tensors"] and end > begin:
                assert os.preadv(fd, [memoryview(buffer)[:end - begin]], start + begin) == end - begin
    finally:
        os.close(fd)
    checks.note(f"{entry['file']}: {len(failed)} pages unreadable")


def must_fail(checks, manifest):
    by_keys = {}
    for entry in manifest["must_fail"]:
        by_keys.setdefault(entry["keys"], []).append(entry)
    for keys, entries in by_keys.items():
        # A good neighbour in the same directory must not notice.
        source = os.path.join(workdir(), "must-fail-" + keys)
        os.makedirs(source)
        for entry in entries:
            shutil.copy(os.path.join(VECTORS, entry["file"]), source)
        neighbour = next(e for e in manifest["good"] if e["file"].endswith("/v2-a256.cryptotensors"))
        shutil.copy(os.path.join(VECTORS, neighbour["file"]), os.path.join(source, "neighbour"))
        with Mount(source, keys=[os.path.join(VECTORS, "keys", keys)]) as m:
            listed = set(os.listdir(m.path))
            for entry in entries:
                name = os.path.basename(entry["file"])
                path = os.path.join(m.path, name)
                with checks.check(f"{entry['file']}: {entry['errno']} at {entry['when']}"):
                    assert name in listed, "not in ls"
                    if entry["when"] == "open":
                        got = first_error(path)
                        assert got is not None, "it can be read"
                        assert got == getattr(errno, entry["errno"]), errno.errorcode[got]
                        for way, read in WAYS.items():
                            try:
                                data = read(path)
                            except (OSError, subprocess.CalledProcessError, ValueError):
                                continue
                            raise AssertionError(f"{len(data)} bytes by {way}")
                    else:
                        read_damaged(checks, entry, path, os.path.join(source, name))
            if keys == "reader.jwks":
                with checks.check("a good neighbour of all these"):
                    with open(os.path.join(m.path, "neighbour"), "rb") as file:
                        assert sha256(file.read()) == neighbour["sha256"]


def faults_are_signals(checks):
    """A mapping over a damaged chunk gives SIGBUS to the reader, and the mount lives on."""
    source = os.path.join(workdir(), "sigbus")
    os.makedirs(source)
    shutil.copy(os.path.join(VECTORS, "must-fail/body-bit.safetensors"), source)
    with Mount(source, keys=[os.path.join(VECTORS, "keys/reader.jwks")]) as m:
        with checks.check("mmap over a damaged chunk: SIGBUS for the reader only"):
            code = ("import mmap,sys\n"
                    "f=open(sys.argv[1],'rb')\n"
                    "m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ)\n"
                    "sum(m[i] for i in range(0,len(m),4096))\n")
            path = os.path.join(m.path, "body-bit.safetensors")
            result = subprocess.run([sys.executable, "-c", code, path], check=False)
            assert result.returncode == -7, f"exit {result.returncode}"
            assert os.stat(path).st_size > 0
            status = m.status()
            assert any("w0" in failure["message"] for failure in status["failures"]), \
                "status does not name the tensor"


def main():
    with open(os.path.join(VECTORS, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    checks = Checks()
    good(checks, manifest)
    must_fail(checks, manifest)
    faults_are_signals(checks)
    return checks.finish()


sys.exit(main())
