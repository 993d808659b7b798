#!/usr/bin/env python3
"""The guard: who may read, and what is found of a reader after it was admitted."""
import json
import os
import subprocess
import sys
import time

from guardtest import (NEW_NS, TOOL, Guard, Idle, Tool, check, checks, copied, found_so_far, ids, nnp,
                       path, profile, said, write, write_sys)
from kvfstest import as_user, die_with_parent, in_namespace, kvfs, run, sanitized, turns


# ---- Readers ----

READERS = ("* ignore\ninspect require reader\nreader-uid require\nreader-exe require\n"
           "reader-tree require\nreader-pin require\ntracer require reader\n"
           "exe-replaced require reader\nnamespaces require reader\nmapped-memory require reader\n"
           "mapped-rwx require reader\nld-preload require reader\ncapabilities keep reader\n"
           "no-new-privs require reader\n")


def test_readers():
    which = profile("readers", READERS + "admit pin mnt pid cgroup")
    with check("readers: admitted; others by namespace and cgroup not"):
        with Guard(which) as g, Idle(preexec=nnp) as one, Idle(preexec=nnp) as two:
            g.admits(one.pid)
            g.admits(two.pid)
            with Idle(preexec=nnp, prefix=NEW_NS) as other:
                g.admits(other.pid, "reader-pin")
            with Idle(preexec=nnp, prefix=["unshare", "--pid", "--fork", "--kill-child"]) as other:
                g.admits(int(run("pgrep", "-P", other.pid).stdout), "reader-pin")
            group = next((d for d in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids",
                                      "/sys/fs/cgroup") if os.access(d, os.W_OK)), None)
            if group:
                group += f"/kvfs-test-{os.urandom(6).hex()}"  # pids are of a namespace
                os.mkdir(group)
                try:
                    with Idle(preexec=nnp) as other:
                        write_sys(f"{group}/cgroup.procs", str(other.pid))
                        g.admits(other.pid, "reader-pin")
                        write_sys(f"{os.path.dirname(group)}/cgroup.procs", str(other.pid))
                finally:
                    os.rmdir(group)
            g.finds_nothing()

    with check("readers: who can't be seen is refused"):
        with Guard(which) as g:
            g.admits(0, "inspect")
            g.admits(99999999, "inspect")
        with Idle(preexec=nnp) as rooted:
            with Guard(which, prefix=as_user(1000)) as g:
                g.admits(rooted.pid, "inspect")
        with Idle(preexec=nnp, prefix=as_user(1000)) as reader:
            with Guard(which, prefix=as_user(1000)) as g:
                g.admits(reader.pid)
                reader.do("dumpable 0")
                g.finds("inspect", who="reader")
                g.admits(reader.pid, "inspect")

    def drift(name, want, deed):
        with check(f"readers: {name}, after it was admitted"):
            with Guard(which) as g, Idle(preexec=nnp) as reader:
                g.admits(reader.pid)
                g.finds_nothing(150)
                reader.send(f"do {deed}")
                g.finds(want, who="reader")
                g.admits(reader.pid, want)

    drift("code in a memfd", "mapped-memory", "memfd")
    drift("memory to write and execute", "mapped-rwx", "rwx")
    drift("another mount namespace", "namespaces", "unshare mnt")
    drift("capabilities by a user namespace", "namespaces", "unshare user")

    with check("readers: another program, which has to be an admitted one too"):
        other, third = copied("other_tool"), copied("third_tool")
        text = READERS + f"admit exe {os.path.realpath(TOOL)}\nadmit exe {other}\n"
        with Guard(profile("two", text)) as g, Idle(preexec=nnp) as reader:
            g.admits(reader.pid)
            reader.send("do exec " + other)
            g.finds_nothing()
            g.admits(reader.pid)
            reader.send("do exec " + third)
            g.finds("reader-exe", who="reader")
            g.admits(reader.pid, "reader-exe")

    with check("readers: those that end while they are looked at are no drift"):
        with Guard(profile("quick", READERS + "inspect require reader\nperiod 10")) as g:
            for _ in turns(10):
                with Idle(preexec=nnp) as reader:
                    g.admits(reader.pid)
                    g.process.stdin.write("wait 60\n")
                    g.process.stdin.flush()
                    time.sleep(0.02)
                    reader.process.kill()
                    got = json.loads(g.line())
                    assert got["rc"] == 0 and not got["findings"], said(got)

    with check("readers: one whose first thread has left is still looked at"):
        with Guard(which) as g, Idle(preexec=nnp) as reader:
            g.admits(reader.pid)
            reader.process.stdin.write("do leave\n")
            reader.process.stdin.flush()
            g.finds("inspect", who="reader")
            g.admits(reader.pid, "inspect")

    with check("readers: traced, before and after"):
        with Guard(which) as g, Idle(preexec=nnp) as reader:
            with Tool("trace", reader.pid) as tracer:
                assert tracer.line() == "ok"
                g.admits(reader.pid, "tracer")
            g.admits(reader.pid)
            with Tool("trace", reader.pid) as tracer:
                assert tracer.line() == "ok"
                g.finds("tracer", who="reader")

    with check("readers: LD_PRELOAD, no_new_privs"):
        with Guard(which) as g, Idle() as reader:
            g.admits(reader.pid, "no-new-privs")
        with Guard(which) as g, Idle(preexec=nnp, env={"LD_PRELOAD": "libm.so.6"}) as reader:
            g.admits(reader.pid, "ld-preload")

    with check("readers: a mount in a reader's own namespace wakes the guard"):
        few = profile("few", "* ignore\nmount-event require\nmount-foreign keep reader\n")
        os.makedirs(path("other"), exist_ok=True)
        with Guard(few) as g, Idle(prefix=NEW_NS) as reader:
            g.admits(reader.pid)
            g.finds_nothing(150)
            run("nsenter", "-t", reader.pid, "-m", "mount", "-t", "tmpfs", "none", path("other"),
                check=True)
            got = g.finds("mount-foreign", who="reader")
            assert "mount-event" in ids(got) and got["us"] < 60_000, (said(got), got["us"])

    with check("readers: one that ends is forgotten, and its number means nothing"):
        with Guard(which) as g:
            with Idle(preexec=nnp) as reader:
                g.admits(reader.pid)
            g.finds_nothing()
            g.admits(reader.pid, "inspect")


def test_admission():
    digest = kvfs("guard", "digest", TOOL).stdout.strip()
    python = os.path.realpath("/usr/bin/python3")
    with check("admission: users"):
        with Guard(profile("users", READERS + "no-new-privs ignore\nadmit uid 1000 1001")) as g:
            with Idle(prefix=as_user(1001)) as reader:
                g.admits(reader.pid)
            with Idle(prefix=as_user(1002)) as reader:
                g.admits(reader.pid, "reader-uid")

    with check("admission: programs, by path and digest"):
        other = copied("evil_tool")
        with open(other, "ab") as file:
            file.write(b"x")
        text = READERS + f"no-new-privs ignore\nadmit exe {os.path.realpath(TOOL)} {digest}\n" \
            f"admit exe {other} {digest}\n"
        with Guard(profile("programs", text)) as g, Idle() as reader:
            g.admits(reader.pid)
            with Idle(prefix=["sh", "-c", f'shift; exec {other} "$@"', "sh"]) as evil:
                assert "another digest" in said(g.admits(evil.pid, "reader-exe"))
            with subprocess.Popen(["sleep", "60"], preexec_fn=die_with_parent) as sleeper:
                assert "is not admitted" in said(g.admits(sleeper.pid, "reader-exe"))
                sleeper.kill()

    with check("admission: an interpreter with its code only"):
        app = path("app")
        write(app + "/serve.py", "import time; print('up', flush=True); time.sleep(60)\n")
        write(app + "/lib/x.py", "")
        write(path("stray.py"), "import time; print('up', flush=True); time.sleep(60)\n")
        os.symlink(path("stray.py"), app + "/link.py")
        tree = kvfs("guard", "digest", app).stdout.strip()
        # A Python that is built so maps code in memory for callbacks.
        text = READERS + f"no-new-privs ignore\nmapped-memory ignore\nmapped-rwx ignore\n" \
            f"admit exe {python} tree\nadmit tree {app} {tree}\n"

        def asked(g, *arguments, cwd=None, why=None, env=None, prefix=()):
            with subprocess.Popen([*prefix, python, *arguments], stdout=subprocess.PIPE, cwd=cwd,
                                  env={**os.environ, **(env or {})},
                                  preexec_fn=die_with_parent) as process:
                process.stdout.readline()
                g.admits(process.pid, why)
                process.kill()

        code = "import time; print('up', flush=True); time.sleep(60)"
        with Guard(profile("trees", text)) as g:
            asked(g, app + "/serve.py")
            asked(g, "-B", "-u", "serve.py", cwd=app)
            asked(g, "-c", code, why="reader-tree")
            asked(g, "-Bc", code, app + "/serve.py", why="reader-tree")
            asked(g, "-X", "utf8", app + "/serve.py")
            asked(g, app + "/serve.py", env={"PYTHONPATH": "/tmp"}, why="reader-tree")
            hidden = in_namespace(f"mount -t tmpfs none {app}/lib; echo > {app}/lib/x.py")
            asked(g, app + "/serve.py", prefix=hidden, why="reader-tree")
            asked(g, path("stray.py"), why="reader-tree")
            asked(g, app + "/../stray.py", why="reader-tree")
            asked(g, app + "/link.py", why="reader-tree")
            write(app + "/lib/x.py", "evil\n")
            time.sleep(0.15)
            asked(g, app + "/serve.py", why="reader-tree")

    with check("admission: fast, and a profile of everything stays under 0.2 % of a processor"):
        everything = profile("all", "base strict\n* keep\nreader-exe require\nreader-pin require\n"
                             "reader-uid require\nadmit uid 0\nadmit pin mnt pid cgroup\n"
                             f"admit exe {os.path.realpath(TOOL)} {digest}")
        write(everything, open(everything, encoding="utf-8").read().replace("period 100", "period 1000"))
        with Guard(everything) as g, Idle() as reader:
            g.admits(reader.pid)
            many = g.ask(f"admit-many {reader.pid} 200")
            took = sorted(g.ask("check")["took_us"] for _ in range(9))
            checks.note(f"an admission {many['us']} us, a run {took[4]} us")
            if not sanitized():
                assert many["rc"] == 1 and many["us"] < 500, many["us"]
                assert took[0] < 4000, took


def main():
    if os.geteuid() != 0:
        checks.skip("the guard", "only root can make what it is to find")
        return checks.finish()
    test_readers()
    test_admission()
    checks.note(f"{len(found_so_far)} kinds of drift were provoked and found")
    return checks.finish()


sys.exit(main())
