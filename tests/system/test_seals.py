#!/usr/bin/env python3
"""Seals at random moments under load: fifty readers that fault, read and open, as many requests in
the background as there may be, all on one processor. Each has to be done in five seconds, nobody gets
a byte afterwards, and nobody hangs. In between, worker and supervisor are killed instead.

KVFS_SEALS says how many (20; in tests/soak 1000)."""
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time

from kvfstest import (KVFS, Checks, Model, Skip, alive, die_with_parent, kvfs, mounts_at, no_mount,
                      outcome, read_all, run, wait_for, workdir)

SOAK = bool(os.environ.get("KVFS_SOAK"))
SEALS = int(os.environ.get("KVFS_SEALS", 1000 if SOAK else 20))
SEED = int(os.environ.get("KVFS_SEED", "1"))
READERS = 50
LIMIT = 5
TOOL = os.path.join(os.environ.get("KVFS_TOOLS") or
                    os.path.join(os.path.dirname(os.path.dirname(KVFS)), "tests"), "faulter")
KILLS = {"worker": ["worker"], "supervisor": ["supervisor"], "both": ["supervisor", "worker"]}

checks = Checks()
check = checks.check


class Readers:
    def __init__(self, path):
        # pylint: disable=consider-using-with, subprocess-popen-preexec-fn
        self.process = subprocess.Popen([TOOL, path, str(READERS)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True,
                                        preexec_fn=die_with_parent)

    def ask(self):
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        """How many of them hang."""
        self.process.stdin.close()
        left = int(self.process.stdout.readline())
        self.process.wait(10)
        return left


def waiting(device):
    """Requests that the kernel has for the worker."""
    try:
        with open(f"/sys/fs/fuse/connections/{device.split(':')[1]}/waiting", encoding="ascii") as f:
            return int(f.read())
    except OSError:
        return 0


def threads(m):
    """What those of the mount's processes that are left wait for."""
    return "; ".join(f"{name} {tid}: {read_all(f'{task}/{tid}/wchan').decode()}"
                     for name, pid in m.pids.items() for task in [f"/proc/{pid}/task"]
                     if os.path.exists(task) for tid in os.listdir(task))


def last_byte(readers, begun):
    """Seconds until the last read began that got something; none did for a while."""
    def quiet():
        state = readers.ask()
        return state if state["now"] - max(state["last"], begun) > 200e6 else None
    return max(0, wait_for(quiet, 2 * LIMIT, "an end of reading")["last"] - begun) / 1e9


def once(model, how, dice):
    """(seconds until it is done, until the last byte, requests that waited)"""
    log = os.path.join(workdir(), "log")
    options = ["cache=page", f"threads={dice.choice([1, 2, 4])}", f"log={log}"]
    with contextlib.ExitStack() as stack:
        m = stack.enter_context(model.mount(*options))
        readers = Readers(model.shown(m))
        stack.callback(readers.kill)
        wait_for(lambda: readers.ask()["ok"] > READERS, 20, "reading")
        time.sleep(dice.random() * 0.2)
        queued = waiting(m.device)
        begun = time.monotonic_ns()
        if how == "seal":
            kvfs("seal", m.path)
        else:
            for one in KILLS[how]:
                os.kill(m.pids[one], signal.SIGKILL)
            try:
                m.wait_gone(2 * LIMIT)
            except AssertionError as error:
                raise AssertionError(f"{error}; mounted: {m.mounted}; {threads(m)}; "
                                     f"{read_all(log).decode()[-2000:]}") from None
        done = (time.monotonic_ns() - begun) / 1e9
        last = last_byte(readers, begun)
        if how == "seal":
            assert outcome(model.shown(m)) == "EKEYREVOKED"
            assert m.status()["state"] == "sealed"
        else:
            no_mount(m.path)
        stuck = readers.end()
        assert not stuck, f"{stuck} readers hang"
    assert not mounts_at(m.path) and not any(alive(pid) for pid in m.pids.values())
    return done, last, queued


def report(name, took):
    done, last, queued = zip(*took)
    checks.note(f"{len(took)} times {name}: done in {statistics.median(done) * 1000:.0f} ms (median), "
                f"{max(done) * 1000:.0f} ms (longest); the last byte after "
                f"{statistics.median(last) * 1000:.0f} and {max(last) * 1000:.0f} ms; "
                f"{statistics.median(queued):.0f} requests waiting (median), {max(queued)} at most")
    assert max(done) < LIMIT, done
    # No read that began afterwards got anything.
    assert all(b <= a for a, b in zip(done, last)), [x for x in took if x[1] > x[0]]


def turns(model):
    """Who takes back comes before ordinary processes, and what they start does not."""
    with model.mount() as m:
        first = {name: os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
                 for name, pid in m.pids.items()}
        assert set(first.values()) == {os.SCHED_RR}, first
        others = [os.sched_getscheduler(int(tid)) for pid in m.pids.values()
                  for tid in os.listdir(f"/proc/{pid}/task") if int(tid) != pid]
        assert set(others) == {os.SCHED_OTHER}, others


def main():
    dice = random.Random(SEED)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    control = "/sys/fs/fuse/connections"
    if not os.path.ismount(control):
        subprocess.run(["mount", "-t", "fusectl", "none", control], check=False)
    model = Model(mib=64, shards=1)
    with check("whoever takes back comes before busy readers"):
        if run("chrt", "--rr", "1", "true").returncode:
            raise Skip("no real-time scheduling here")
        turns(model)
    with check(f"{SEALS} seals under load, on one processor"):
        report("sealed", [once(model, "seal", dice) for _ in range(SEALS)])
    for how in KILLS:
        with check(f"kill -9 of {how} under load: no byte afterwards, no dead mount"):
            report(f"killed ({how})", [once(model, how, dice) for _ in range(max(1, SEALS // 20))])
    return checks.finish()


if os.geteuid() != 0:
    checks.skip("seals", "not root")
    sys.exit(checks.finish())
sys.exit(main())
