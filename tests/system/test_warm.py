#!/usr/bin/env python3
"""kvfs warm: what it leaves decrypted, in both modes; what it says; memory that runs short; a mount
that is taken away meanwhile."""
import json
import os
import re
import subprocess
import sys
import time

from kvfstest import (KVFS, Checks, Model, Mount, die_with_parent, in_group, kvfs, memory_group,
                      oom_kills, processes, read_all, run, sanitized, wait_for, workdir)

MIB = 1 << 20


def warm(*arguments, **more):
    """The exit code and what it said of itself."""
    result = run(KVFS, "warm", "--json", *arguments, timeout=120, **more)
    return result.returncode, json.loads(result.stdout or "{}"), result.stderr


def size_of(directory):
    return sum(os.stat(os.path.join(where, name)).st_size
               for where, _, names in os.walk(directory) for name in names)


def decrypted(m):
    return m.status()["counters"]["bytes_decrypted"]


def page_cache(checks, model):
    with model.mount("cache=page") as m:
        with checks.check("page cache: all files, each byte once"):
            code, said, _ = warm(m.path)
            assert code == 0 and said["complete"] and said["resident"] == 0, said
            assert said["bytes"] == said["of"] == size_of(m.path), said
            assert decrypted(m) <= said["bytes"] * 1.1
        with checks.check("page cache: who reads afterwards makes nobody decrypt"):
            grown = []  # something else may empty the machine's caches meanwhile
            while len(grown) < 3 and 0 not in grown:
                warm(m.path)
                before = decrypted(m)
                for number, shard in enumerate(model.shards):
                    assert read_all(os.path.join(m.path, shard)) == model.plain_bytes(number)
                grown.append(decrypted(m) - before)
            assert 0 in grown, grown
        with checks.check("one file; what does not exist is an error"):
            code, said, _ = warm(m.path, model.shards[0])
            assert code == 0 and said["files"] == 1, said
            code, _, error = warm(m.path, "nothing")
            assert code == 1 and "nothing at nothing" in error, error
        with checks.check("what is no mount of kvfs is an error that says so"):
            code, _, error = warm(workdir())
            assert code == 1 and "no kvfs is mounted" in error, error
    with model.mount("cache=direct") as m:
        with checks.check("cache=direct: an error that says that nothing is kept"):
            code, _, error = warm(m.path)
            assert code == 1 and "cache=direct" in error, error


def resident(checks, model):
    with model.mount("cache=resident", "linger=0") as m:
        code, said, _ = warm(m.path)
        if said.get("resident") == 0:
            checks.skip("warm in resident mode", "root and FUSE passthrough are needed")
            return
        with checks.check("resident: whole files, which stay although nobody has them open"):
            assert code == 0 and said["resident"] == len(model.shards), said
            time.sleep(2.5)
            before = decrypted(m)
            assert read_all(os.path.join(m.path, model.shards[0])) == \
                read_all(os.path.join(model.plain, model.shards[0]))
            assert decrypted(m) == before
        with checks.check("resident: once read, linger= holds again"):
            wait_for(lambda: m.status()["memory"]["resident"] <
                     sum(os.stat(os.path.join(model.plain, s)).st_size for s in model.shards),
                     5, "giving memory back")


def full(checks, model):
    """Room for all shards but one: the first stay, instead of going round in a circle."""
    sizes = [os.stat(os.path.join(model.plain, s)).st_size for s in model.shards]
    with model.mount("cache=resident", f"resident={(sum(sizes) - sizes[-1] // 2) >> 20}M") as m:
        if m.status()["memory"]["resident_bound"] == 0:
            return
        with checks.check("resident: a budget that is too small: it stops, says so, keeps the first"):
            code, said, error = warm(m.path)
            assert code == 0 and not said["complete"] and "memory runs short" in error, (said, error)
            assert said["resident"] == len(sizes) - 1, said
            before = decrypted(m)
            for shard in model.shards[:-1]:
                assert read_all(os.path.join(m.path, shard)) == \
                    read_all(os.path.join(model.plain, shard))
            assert decrypted(m) == before, "decrypted again"
        with checks.check("status: how much is resident"):
            told = run(KVFS, "status", m.path, check=True).stdout
            assert re.search(r"^  resident  .* of ", told, re.M), told


def damage(checks, model):
    source = os.path.join(workdir(), "damaged")
    run("cp", "-r", model.encrypted, source, check=True)
    with open(os.path.join(source, model.shards[0]), "r+b") as file:
        file.seek(-3 * MIB, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with Mount(source, keys=[model.reader], options=["cache=page"]) as m:
        with checks.check("a damaged file: the rest of it, exit 1, and its name"):
            code, said, error = warm(m.path)
            assert code == 1 and said["damaged"] == 1 and not said["complete"], said
            assert said["bytes"] >= said["of"] - 4 * MIB, said
            assert model.shards[0] in error, error


def memory(checks, model):
    """Pages are charged to who reads: warm stops before its cgroup is full."""
    if sanitized():
        checks.skip("memory that runs short", "a sanitizer needs more")
        return
    with checks.check("memory runs short: it stops before, and says so"):
        with memory_group(400 * MIB) as group, model.mount("cache=page") as m:
            result = run(*in_group(group), KVFS, "warm", "--json", m.path, timeout=120)
            said = json.loads(result.stdout)
            assert result.returncode == 0 and not said["complete"], said
            assert "memory runs short" in result.stderr, result.stderr
            assert oom_kills(group) == 0


def unmounting(checks, model):
    for option in ("cache=page", "cache=resident"):
        with checks.check(f"umount while it is at work in the background ({option})"):
            with model.mount(option, "threads=1") as m:
                kvfs("warm", m.path)
                m.umount()
                m.wait_gone(10)
        with checks.check(f"SIGTERM to the supervisor while -o warm is at work ({option})"):
            with model.mount(option, "warm", "threads=1") as m:
                os.kill(m.supervisor, 15)
                m.wait_gone(10)
                assert not processes(m.path), processes(m.path)
    with checks.check("-o warm: everything is decrypted by and by"):
        with model.mount("cache=page", "warm") as m:
            size = sum(len(model.plain_bytes(i)) for i in range(len(model.shards)))
            wait_for(lambda: decrypted(m) > size * 0.99, 60, "warming")
    with checks.check("an interrupted warm ends with 1 and leaves the mount alone"):
        with model.mount("cache=page", "threads=1") as m:
            process = subprocess.Popen([KVFS, "warm", "--wait", m.path], stderr=subprocess.PIPE,
                                       preexec_fn=die_with_parent)
            wait_for(lambda: decrypted(m) > 0, 10, "decrypting")
            process.terminate()
            process.communicate(timeout=20)
            assert process.returncode in (0, 1), process.returncode  # it may have been done
            assert read_all(os.path.join(m.path, model.shards[0]))


def main():
    checks = Checks()
    model = Model(shards=3, mib=192)
    page_cache(checks, model)
    resident(checks, model)
    full(checks, Model(64, 4, "four-"))
    damage(checks, model)
    memory(checks, model)
    unmounting(checks, model)
    return checks.finish()


sys.exit(main())
