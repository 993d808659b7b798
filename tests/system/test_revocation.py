#!/usr/bin/env python3
"""What remains readable of that which a reader has in its hands when a mount is sealed, and when its worker
is killed: a descriptor that is read all the while, mappings that are faulted, locked, and written to,
pages in a pipe. The README's table says the same."""
import ctypes
import errno
import json
import mmap
import os
import signal
import sys
import threading
import time

from kvfstest import Checks, Model, die_with_parent, kvfs, lock, map_touched, take_bytes, wait_for

PAGE = mmap.PAGESIZE


class Hands:
    """All that a reader may hold of a file."""

    def __init__(self, path, want):
        self.want = want
        self.fd = os.open(path, os.O_RDONLY)
        self.faulted, self.locked = (map_touched(self.fd, len(want)) for _ in range(2))
        # For writing, mlock would make a copy of every page.
        lock(self.locked, len(want))
        self.written = map_touched(self.fd, len(want), mmap.PROT_WRITE)
        self.copied = len(want) // PAGE // 2 * PAGE
        ctypes.memmove(self.written + self.copied, want[self.copied:self.copied + 1], 1)
        self.pipe = os.pipe()
        self.at = len(want) // PAGE // 3 * PAGE
        os.splice(self.fd, self.pipe[1], PAGE, offset_src=self.at)
        self.last, self.failed, self.zeros, self.wrong = 0, None, 0, 0
        threading.Thread(target=self.read_on, daemon=True).start()

    def read_on(self):
        """Reads in flight: many at a time, since the kernel reads ahead of what is asked for."""
        at = 0
        while True:
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(self.fd, at, 8 << 20, os.POSIX_FADV_WILLNEED)
            try:
                data = os.pread(self.fd, 1 << 20, at)
                if not data:
                    self.failed = "end of file"
                    return
            except OSError as error:
                self.failed = errno.errorcode[error.errno]
                return
            if data == self.want[at:at + len(data)]:
                self.last = time.monotonic()
            elif all(got in (0, right) for got, right in zip(data, self.want[at:])):
                self.zeros += 1
            else:
                self.wrong += 1
            at = (at + (1 << 20)) % (len(self.want) >> 20 << 20)

    def held(self):
        """What is still to be had of each: data, zeros, or an error's name."""
        found = {"descriptor": self.failed}
        for name, address, at in (("faulted", self.faulted, self.at), ("locked", self.locked, self.at),
                               ("written to, other pages", self.written, self.at),
                               ("written to, its copies", self.written, self.copied)):
            found[name] = self.said(take_bytes(address + at), at)
        found["pipe"] = self.said(os.read(self.pipe[0], PAGE), self.at)
        return found

    def said(self, data, at):
        if isinstance(data, str):
            return data
        return "data" if data == self.want[at:at + len(data)] else "zeros" if not any(data) else "wrong"


def reader(path, want, ask, answer):
    hands = Hands(path, want)
    os.write(answer, b"ready")
    os.read(ask, 1)
    deadline = time.monotonic() + 10
    while hands.failed is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.write(answer, json.dumps([hands.held(), hands.last, hands.zeros, hands.wrong]).encode())
    os._exit(0)


def once(checks, model, cache, how):
    want = model.plain_bytes()
    with model.mount(f"cache={cache}") as m:
        with open(model.shown(m), "rb") as file:
            file.read(1)
            mode = next(f["cache"] for f in m.status()["files"] if f["paths"][0] == model.shard)
        if mode != cache:
            checks.skip(f"{cache}, {how}", "root and a kernel with FUSE passthrough are needed")
            return
        (ask, asked), (answered, answer) = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            reader(model.shown(m), want, ask, answer)
        assert os.read(answered, 100) == b"ready"
        time.sleep(0.2)
        begin = time.monotonic()
        if how == "sealed":
            kvfs("seal", m.path)
        else:
            os.kill(m.worker, signal.SIGKILL)
            wait_for(lambda: not m.mounted, 10, "the unmounting")
        took = time.monotonic() - begin
        os.write(asked, b"?")
        held, last, zeros, wrong = json.loads(os.read(answered, 4096))
        os.waitpid(pid, 0)
    checks.note(f"{cache}, {how}: done after {took * 1e3:.0f} ms, the last read {(last - begin) * 1e3:.0f} ms "
                f"after it began, {zeros} reads with zeros; {held}")
    pages = "EFAULT"
    expected = {"descriptor": "end of file" if cache == "resident" else None, "faulted": pages,
                "locked": pages, "written to, other pages": pages,
                "written to, its copies": pages if cache == "resident" else "data",
                "pipe": "data"}
    with checks.check(f"{cache}, {how}: mappings are gone, locked ones too; what else is"):
        if cache == "page":
            assert held["descriptor"] in ("EKEYREVOKED", "ENOTCONN", "ECONNABORTED", "EIO"), held
            expected["descriptor"] = held["descriptor"]
        assert held == expected, held
        assert last <= begin + took + 0.2, f"read {last - begin - took:.3f} s after it was done"
        assert not wrong, f"{wrong} reads of something else"
        assert not zeros, zeros


def main():
    checks = Checks()
    model = Model(64, 1)
    for cache in "page", "resident":
        for how in "sealed", "killed":
            once(checks, model, cache, how)
    return checks.finish()


if os.geteuid() != 0:
    print("skip revocation: root locks and seals here")
    sys.exit(77)
sys.exit(main())
