#!/usr/bin/env python3
"""The guard in real containers, of runc and of podman: hardened ones pass, others don't, and what the
host does to them while they run is found."""
import contextlib
import glob
import os
import re
import shutil
import sys
import tempfile

from guardtest import (BIND, NEW_NS, NODEV, NOEXEC, NOSUID, REMOUNT, RO, Box, Guard, Idle, Pod,
                       ReaderBox, Tool, check, checks, found_so_far, ids, in_box,
                       in_first_namespaces, inside, path, profile, rootfs, said, write)
from kvfstest import Skip, sanitized


def test_containers():
    if not shutil.which("runc"):
        checks.skip("containers", "no runc")
        return
    root = rootfs()
    usable = True
    with check("containers: a hardened one passes strict"):
        try:
            box = Box("good", root, quiet=False)
        except AssertionError as why:
            usable = False
            raise Skip(f"runc: {why}") from None
        with box as g:
            assert g.ready["state"] == "ok" and g.ready["rc"] == 0, said(g.ready)
            states = {c["id"]: c["state"] for c in g.ready["checks"] if c["who"] == "own"}
            assert states["write-probe"] == "ok" and states["seccomp"] == "ok", states
            checks.note(f"unseen in it: {[i for i, s in states.items() if s == 'unseen']}")
            g.finds_nothing(1200)
            g.do("dumpable 1")
            g.finds("dumpable")
    if not usable:
        return

    def badly(name, want, change):
        with check(f"containers: {name} is refused at the start"):
            with Box("bad-" + re.sub(r"\W", "-", name), root, change, quiet=False) as g:
                missing = set(want) - ids(g.ready)
                assert not missing, f"{missing}: {said(g.ready)}"
                found_so_far.update(("own", one) for one in want)

    badly("a writable root", ["root-ro", "write-probe", "mapped-writable"],
          lambda s: s["root"].update(readonly=False))
    badly("root with a capability", ["uid", "capabilities"],
          lambda s: (s["process"]["user"].update(uid=0, gid=0),
                     s["process"]["capabilities"].update({k: ["CAP_SYS_ADMIN"] for k in (
                         "bounding", "effective", "permitted")})))
    badly("without no_new_privs and seccomp", ["no-new-privs", "seccomp"],
          lambda s: (s["process"].update(noNewPrivileges=False), s["linux"].pop("seccomp")))
    badly("in another's UTS namespace", ["host-namespaces"] if in_first_namespaces() else [],
          lambda s: (s.pop("hostname"),
                     s["linux"].update(namespaces=[n for n in s["linux"]["namespaces"]
                                                   if n["type"] != "uts"])))
    badly("with /sys writable and no read-only paths", ["kernel-writable", "mount-foreign"],
          lambda s: (s["mounts"][5]["options"].remove("ro"), s["linux"].update(readonlyPaths=[])))
    badly("with a directory of the host", ["mount-foreign"],
          lambda s: s["mounts"].append({"destination": "/drivers", "type": "bind",
                                        "source": "/usr/bin", "options": ["bind", "ro"]}))
    badly("with a device", ["devices"],
          lambda s: s["linux"].update(devices=[{"path": "/dev/kmsg", "type": "c", "major": 1,
                                                "minor": 11, "fileMode": 0o666}]))
    badly("with a device by the name of another", ["devices"],
          lambda s: s["linux"].update(devices=[{"path": "/dev/full", "type": "c", "major": 1,
                                                "minor": 11, "fileMode": 0o666}]))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as leak:
        options = ["bind", "rw", "nosuid", "nodev", "noexec"]
        badly("with a directory of the host at /dev/shm", ["mount-foreign"],
              lambda s: s["mounts"].append({"destination": "/dev/shm", "type": "bind",
                                            "source": leak, "options": options}))
    badly("with a source that is writable", ["source-ro", "mount-flags"],
          lambda s: s["mounts"][7].update(options=["bind", "rw"]))

    def drift(name, want, *script):
        with check(f"containers: {name}, while it runs"):
            with Box("drift-" + re.sub(r"\W", "-", name), root) as g:
                in_box(g.pid, *script)
                got = g.finds(*want)
                assert got["us"] < 60_000 or sanitized(), got["us"]

    drift("a mount from the host", ["mount-foreign", "mount-event", "mount-flags"],
          ("none", "/drivers", "tmpfs", 0))
    drift("the root writable", ["root-ro", "mount-path", "write-probe"],
          (None, "/", None, REMOUNT | BIND))
    drift("over the source", ["mount-path", "mount-stacked"],
          ("none", "/encrypted", "tmpfs", RO | NOSUID | NODEV))
    with check("containers: a device made by the host, while it runs"):
        with Box("mknod", root) as g:
            os.mknod(f"/proc/{g.pid}/root/dev/kmsg", 0o20666, os.makedev(1, 11))
            g.finds("devices")
    with check("containers: traced by the host, while it runs"):
        write(root + "/etc/seen", "profile seen\nbase strict\ndumpable ignore\n")

        def seen(spec):
            spec["process"]["args"][2:] = ["/etc/seen", "source=/encrypted"]
        with Box("traced", root, seen) as g, Tool("trace", g.pid) as tracer:
            assert tracer.line() == "ok"
            g.finds("tracer-outside", command="full")
    test_reader_containers(root)
    test_sidecar(root)
    test_podman(root)


def test_podman(root):
    if not shutil.which("podman"):
        checks.skip("podman", "not installed")
        return
    usable = []
    for runtime, more in (("runc", []), ("crun", []),
                          ("runc", ["--uidmap", "0:100000:65536"])):
        with check(f"podman: a hardened container of {' '.join([runtime, *more])} passes strict"):
            if not shutil.which(runtime):
                raise Skip(f"no {runtime}")
            try:
                pod = Pod(root, *more, runtime=runtime, quiet=False)
            except AssertionError as why:
                raise Skip(f"podman: {str(why)[-200:]}") from None
            with pod as g:
                assert g.ready["state"] == "ok", said(g.ready)
                usable.append(runtime)
    if "runc" not in usable:
        return

    def badly(name, want, *more, less=()):
        with check(f"podman: {name} is refused"):
            with Pod(root, *more, less=less, quiet=False) as g:
                assert set(want) <= ids(g.ready), f"{want}: {said(g.ready)}"

    badly("--privileged", ["kernel-writable", "devices", "seccomp", "mount-foreign"],
          "--privileged")
    badly("a directory of the host", ["mount-foreign", "mount-flags"], "-v",
          path("box-source") + ":/drivers")
    badly("a writable root", ["root-ro", "write-probe"], less=["--read-only"])
    badly("the host's PID and IPC namespaces", ["host-namespaces"] if in_first_namespaces() else [],
          "--pid", "host", "--ipc", "host")
    with check("podman: the host mounts into it, while it runs"):
        with Pod(root) as g:
            in_box(g.host_pid(), ("none", "/drivers", "tmpfs", NOSUID | NODEV | NOEXEC))
            g.finds("mount-foreign", "mount-event")
    groups = [g for top in ("", "*/") for g in glob.glob(f"/sys/fs/cgroup/{top}libpod_parent/**/",
                                                         recursive=True)]
    for group in sorted(groups, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(group)  # unless somebody's containers are in it


def test_sidecar(root):
    """Guard and reader in two hardened containers, nobody privileged: same user, and the reader in
    the guard's PID namespace."""
    def beside(other, change=None):
        def spec_of(spec):
            spec["mounts"].pop()  # the source
            for one in spec["linux"]["namespaces"]:
                if one["type"] == "pid":
                    one["path"] = f"/proc/{other.pid}/ns/pid"
            if change:
                change(spec)
        return spec_of

    with check("sidecar: a hardened reader is admitted under strict by an unprivileged guard"):
        with Box("main", root) as g, ReaderBox("side", root, beside(g)) as reader:
            g.admits(inside(reader.pid))
            g.finds_nothing(1200)
            g.admits(0, "inspect")
            reader.do("memfd")
            g.finds("mapped-memory", who="reader")

    with check("sidecar: another user, a writable root, more privileges are refused"):
        with Box("main2", root) as g:
            other = beside(g, lambda s: s["process"]["user"].update(uid=1001, gid=1001))
            with ReaderBox("other-user", root, other) as reader:
                g.admits(inside(reader.pid), "inspect")
            loose = beside(g, lambda s: s["root"].update(readonly=False))
            with ReaderBox("loose", root, loose) as reader:
                g.admits(inside(reader.pid), "root-ro")
            able = beside(g, lambda s: s["process"]["capabilities"].update(
                {k: ["CAP_CHOWN"] for k in ("bounding", "effective", "permitted", "inheritable",
                                            "ambient")}))
            with ReaderBox("able", root, able) as reader:
                got = g.admits(inside(reader.pid), "capabilities")
                assert "inspect" in ids(got), said(got)

    with check("sidecar: the host mounts into the reader's container"):
        with Box("main3", root) as g, ReaderBox("side3", root, beside(g)) as reader:
            g.admits(inside(reader.pid))
            in_box(reader.pid, ("none", "/drivers", "tmpfs", NOSUID | NODEV | NOEXEC))
            got = g.finds("mount-foreign", who="reader")
            assert got["us"] < 60_000 or sanitized(), got["us"]
            assert "mount-event" in ids(got, "own"), said(got)


def test_reader_containers(root):
    """The reader's container, from a privileged guard that is outside of it."""
    # runc mounts and unmounts something where it is started.
    which = profile("sidecar", f"base strict\n* ignore own\nmount-event require\n"
                    "bind /encrypted\n")

    with check("reader containers: a hardened one is admitted, another one not"):
        with Guard(which, prefix=NEW_NS) as g:
            with ReaderBox("reader", root) as reader, ReaderBox("second", root) as second:
                g.admits(reader.pid)
                g.finds_nothing(300)
                g.admits(second.pid, "reader-pin")
        with Guard(which, prefix=NEW_NS) as g:
            with ReaderBox("bad-reader", root, lambda s: s["root"].update(readonly=False)) as bad:
                g.admits(bad.pid, "root-ro")
            with Idle() as here:
                got = g.admits(here.pid, "capabilities")
                assert {"root-ro", "no-new-privs", "seccomp", "uid"} <= ids(got), said(got)

    def drift(name, want, provoke):
        with check(f"reader containers: {name}, after it was admitted"), Guard(which, prefix=NEW_NS) as g:
            with ReaderBox("r-" + re.sub(r"\W", "-", name), root) as reader:
                g.admits(reader.pid)
                g.finds_nothing(150)
                provoke(reader)
                g.finds(*want, who="reader")
                g.admits(reader.pid, want[0])

    drift("a mount from the host", ["mount-foreign", "mount-flags"],
          lambda r: in_box(r.pid, ("none", "/drivers", "tmpfs", 0)))
    drift("one over another", ["mount-stacked"],
          lambda r: in_box(r.pid, ("none", "/tmp", "tmpfs", NOSUID | NODEV)))
    drift("the root writable", ["root-ro", "mapped-writable"],
          lambda r: in_box(r.pid, (None, "/", None, REMOUNT | BIND)))
    drift("kernel files writable", ["kernel-writable", "mount-foreign"],
          lambda r: in_box(r.pid, (None, "/sys", None, REMOUNT | BIND)))
    drift("a device", ["devices"], lambda r: os.mknod(
        f"/proc/{r.pid}/root/dev/mem", 0o20666, os.makedev(1, 1)))
    drift("code in a memfd", ["mapped-memory"], lambda r: r.do("memfd"))
    drift("capabilities by a user namespace", ["capabilities", "namespaces", "bpf-capable"],
          lambda r: r.do("unshare user"))


def main():
    if os.geteuid() != 0:
        checks.skip("the guard", "only root can make what it is to find")
        return checks.finish()
    test_containers()
    checks.note(f"{len(found_so_far)} kinds of drift were provoked and found")
    return checks.finish()


sys.exit(main())
