#!/usr/bin/env python3
"""The guard: who may read, and what is found of a reader after it was admitted."""
import json
import os
import subprocess
import sys
import time

from guardtest import (NEW_NS, TOOL, Guard, Idle, Tool, check, checks, copied, found_so_far, ids,
                       new_cgroup, nnp, path, profile, said, write, write_sys)
from kvfstest import (as_user, die_with_parent, in_namespace, kvfs, proc_status, run, sanitized,
                      turns, wait_for)


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
            with new_cgroup() as procs, Idle(preexec=nnp) as other:
                write_sys(procs, str(other.pid))
                g.admits(other.pid, "reader-pin")
            g.finds_nothing()

    with check("readers: another cgroup, after it was admitted"):
        with Guard(which) as g, new_cgroup() as procs, Idle(preexec=nnp) as reader:
            g.admits(reader.pid)
            g.finds_nothing(150)
            write_sys(procs, str(reader.pid))
            g.finds("reader-pin", who="reader")
            g.admits(reader.pid, "reader-pin")

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

    with check("readers: nor does it pass where inspect is ignored, but its program is asked for"):
        text = f"base drift\nreader-exe require\nadmit exe {os.path.realpath(TOOL)}\n"
        with Guard(profile("exe-only", text), quiet=False) as g, Idle() as reader:
            g.admits(reader.pid)
            tids = os.listdir(f"/proc/{reader.pid}/task")
            reader.process.stdin.write("do leave\n")
            reader.process.stdin.flush()
            other = wait_for(lambda: [t for t in os.listdir(f"/proc/{reader.pid}/task")
                                      if t not in tids], 3, "another thread")[0]
            wait_for(lambda: proc_status(reader.pid)["State"][0] == "Z", 3, "the first one's end")
            g.admits(other, "reader-exe")
            g.finds("reader-exe", who="reader")

    with check("readers: who is admitted counts, though the base asks nothing of readers"):
        for text, why in (("admit uid 4321", "reader-uid"), ("admit exe /nonexistent", "reader-exe"),
                          ("admit tree /nonexistent", "reader-tree")):
            with Guard(profile("only", f"base drift\n{text}"), quiet=False) as g, Idle() as reader:
                g.admits(reader.pid, why)
        with Guard(profile("not", "base drift\nreader-uid ignore\nadmit uid 4321"), quiet=False) as g, \
                Idle() as reader:
            g.admits(reader.pid)

    users = profile("users-and-pins", READERS + "uid require reader\nadmit uid 1000\n"
                    "capabilities ignore\nadmit pin mnt cgroup")
    for deed, wants in (("thread mnt", ("namespaces",)), ("thread uid 1001", ("uid", "reader-uid")),
                        ("thread", ("reader-pin",))):
        with check(f"readers: a thread that is elsewhere or somebody else ({', '.join(wants)})"):
            keeps = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups",
                     "--inh-caps=+sys_admin,+setuid", "--ambient-caps=+sys_admin,+setuid"]
            with Guard(users) as g, new_cgroup("tasks") as tasks, \
                    Idle(preexec=nnp, prefix=keeps) as reader:
                g.admits(reader.pid)
                reader.do(deed)
                tid = max(map(int, os.listdir(f"/proc/{reader.pid}/task")))
                if deed == "thread":
                    g.admits(tid)
                    write_sys(tasks, str(tid))
                for want in wants:
                    g.admits(tid, want)
                    g.admits(reader.pid)  # its first thread is as it was
                g.finds(*wants, who="reader", command="full")

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
        write(app + "/again.py", "import os, sys, time\nprint('up', flush=True)\n"
              "if len(sys.argv) > 1: time.sleep(60)\nsys.stdin.readline()\n"
              "os.environ['PYTHONPATH'] = '/tmp'\n"
              "os.execv(sys.executable, [sys.executable, __file__, 'again'])\n")
        write(path("stray.py"), "import time; print('up', flush=True); time.sleep(60)\n")
        os.symlink(path("stray.py"), app + "/link.py")
        tree = kvfs("guard", "digest", app).stdout.strip()
        # A Python that is built so maps code in memory for callbacks.
        text = READERS + f"no-new-privs ignore\nmapped-memory ignore\nmapped-rwx ignore\n" \
            f"admit exe {python} tree\nadmit tree {app} {tree}\n"
        slow = write(path("profiles/slow"), "profile slow\n" + text + "period 1500\n")

        def asked(g, *arguments, cwd=None, why=None, env=None, prefix=()):
            with subprocess.Popen([*prefix, python, *arguments], stdout=subprocess.PIPE, cwd=cwd,
                                  env={**os.environ, **(env or {})},
                                  preexec_fn=die_with_parent) as process:
                process.stdout.readline()
                g.admits(process.pid, why)
                process.kill()

        code = "import time; print('up', flush=True); time.sleep(60)"
        with Guard(slow) as g:  # a moment later not everything is looked at
            with subprocess.Popen([python, app + "/again.py"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, preexec_fn=die_with_parent) as process:
                process.stdout.readline()
                g.admits(process.pid)
                g.admits(process.pid)
                process.stdin.write(b"\n")
                process.stdin.flush()
                process.stdout.readline()
                g.admits(process.pid, "reader-tree")
                process.kill()
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
                assert many["rc"] == 1 and many["us"] < 500, (many["us"], said(many))
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
