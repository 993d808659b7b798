#!/usr/bin/env python3
"""A source that hangs: a FUSE file system whose reads are not answered, nor can be interrupted. What
readers were given is taken back all the same, and at once; who waits for a read is answered. And a
worker that is killed then, and can't die."""
import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import time

from clitest import write
from holder import Holder
from kvfstest import (KVFS, Checks, HungSource, Model, Mount, die_with_parent, mounts_at, no_mount, outcome,
                      proc_status, run, sanitized, wait_for, workdir)

LIMIT = 0.5 if not sanitized() else 2.0  # seconds until nothing is readable any more

checks = Checks()
check = checks.check

NUMBERS = itertools.count()

# Ends with the errno of its first read that fails.
READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("ready", flush=True)
try:
    while os.read(fd, 1 << 20):
        pass
except OSError as error:
    sys.exit(error.errno)
"""


def started(script, name):
    # pylint: disable=consider-using-with, subprocess-popen-preexec-fn
    return subprocess.Popen([sys.executable, "-c", script, name], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)


class Readers:
    """One who has a shard mapped and read, and some who wait for another one."""

    def __init__(self, model, m, source, count=3):
        self.holder = Holder(model.shown(m, 0))
        assert not any(self.holder.ask())
        with open(model.shown(m, 1), "rb"):  # its header is read from the source
            parked = m.status()["counters"]["parked"]
            source.hang()
            self.waiting = [started(READER, model.shown(m, 1)) for _ in range(count)]
            for process in self.waiting:
                assert process.stdout.readline() == "ready\n"
            wait_for(lambda: m.status()["counters"]["parked"] > parked, 10, "waiting")
            time.sleep(0.2)  # until the source has been asked

    def revoked_after(self, begun, limit):
        """Seconds until the holder has nothing any more, nor gets anything, and nobody waits."""
        wait_for(self.holder.gone, limit, "taking back")
        took = time.monotonic() - begun
        codes = [process.wait(limit) for process in self.waiting]
        return took, codes

    def end(self):
        self.holder.end()
        for process in self.waiting:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def hung(model, *options):
    # Another place each time: who served the last one may not have ended yet.
    source = HungSource(model.encrypted, os.path.join(workdir(), "far", str(next(NUMBERS))))
    readers = None
    try:
        with mount(source, model, *options) as m:
            readers = Readers(model, m, source)
            try:
                yield m, readers, source
            finally:
                source.go_on()
                readers.end()
    finally:
        source.end()


def mount(source, model, *options):
    return Mount(source.path, keys=[model.reader], options=["cache=page", "threads=2", *options])


def seals(model):
    profile = os.path.join(workdir(), "quick.profile")
    write(profile, "profile quick\nbase drift\nperiod 100\ngap 1500\n")

    def drift(_):
        run("mount", "-t", "tmpfs", "none", os.path.join(workdir(), "far"), check=True)

    def by_hand(m):
        subprocess.Popen([KVFS, "seal", m.path])  # pylint: disable=consider-using-with

    def guard_silent(m):
        os.kill(m.supervisor, signal.SIGSTOP)
    for name, action, guard, more in (("kvfs seal", by_hand, "off", 0), ("drift", drift, "drift", 0.1),
                                      ("a silent guard", guard_silent, profile, 2.5)):
        with check(f"{name} while the source hangs: all is taken back, who waits is answered"):
            with hung(model, f"guard={guard}") as (m, readers, _):
                begun = time.monotonic()
                action(m)
                took, codes = readers.revoked_after(begun, LIMIT + more + 5)
                if action is guard_silent:
                    os.kill(m.supervisor, signal.SIGCONT)
                assert codes == [errno.EKEYREVOKED] * len(codes), codes
                wait_for(lambda: m.status()["state"] == "sealed", 2, "the seal")
                if action is drift:
                    run("umount", os.path.join(workdir(), "far"), check=True)
                checks.note(f"{name}: taken back after {took * 1000:.0f} ms")
                assert took < LIMIT + more, took


def patience():
    """Each invalidation is made to take most of a second, as that of some GiB does."""
    if not os.environ.get("KVFS_SOAK"):
        return
    model = Model(mib=8, shards=8, name="many")
    with check("a seal that takes long, but goes on, is left alone"):
        with model.mount("guard=off", "cache=page") as m:
            for number in range(len(model.shards)):
                assert outcome(model.shown(m, number)) == model.plain_bytes(number)
            with subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=writev", "-e",
                                   "inject=writev:delay_enter=700000", "-p", str(m.worker)]) as strace:
                wait_for(lambda: proc_status(m.worker)["TracerPid"] == str(strace.pid), 5, "the tracer")
                begun = time.monotonic()
                with subprocess.Popen([KVFS, "seal", m.path]) as seal:
                    assert seal.wait(60) == 0
                took = time.monotonic() - begun
                strace.terminate()
            assert m.status()["state"] == "sealed" and outcome(model.shown(m)) == "EKEYREVOKED"
            assert took > 5.5, took


def kills(model):
    with check("kill -9 of the worker while its supervisor hangs: the keeper takes back"):
        with model.mount("guard=off", "cache=page") as m:
            holder = Holder(model.shown(m, 0))
            os.kill(m.supervisor, signal.SIGSTOP)
            os.kill(m.worker, signal.SIGKILL)
            wait_for(lambda: not mounts_at(m.path), 8, "unmounting")
            assert holder.gone()
            os.kill(m.supervisor, signal.SIGCONT)
            holder.end()
            m.wait_gone(5)
    with check("kill -9 of a worker that can't die, since its source hangs: nothing stays readable"):
        with hung(model, "guard=off") as (m, readers, source):
            begun = time.monotonic()
            os.kill(m.worker, signal.SIGKILL)
            took, codes = readers.revoked_after(begun, 8)
            assert all(codes), codes
            wait_for(lambda: not mounts_at(m.path), 3, "unmounting")
            no_mount(m.path)
            checks.note(f"killed: taken back after {took * 1000:.0f} ms")
            source.go_on()
            m.wait_gone(10)


def main():
    model = Model(mib=64, shards=2)
    control = "/sys/fs/fuse/connections"
    if not os.path.ismount(control):
        run("mount", "-t", "fusectl", "none", control)
    seals(model)
    kills(model)
    patience()
    return checks.finish()


if os.geteuid() != 0:
    checks.skip("a hung source", "not root")
    sys.exit(checks.finish())
sys.exit(main())
