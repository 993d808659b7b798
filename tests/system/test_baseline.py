#!/usr/bin/env python3
"""Who gets no keys: real containers, by runc and podman, ask a real key server that has the baseline of
one hardened container. Those that are not hardened are refused, and those with another profile or
another admission policy; both sides have a line of each."""
import contextlib
import json
import os
import shutil
import sys

from ksclient import Server
from kspod import Published, World
from kvfstest import (KVFS, Checks, Skip, kvfs, no_mount, read_all, sanitized, wait_for, workdir)
from podtest import (PACKAGING, Container, Pod, PodmanContainer, bundle, change, daemon_rootfs,
                     remove_groups, rootfs, why_no_podman, why_not)

AUDIT = os.path.join(workdir(), "audit")  # /var/lib/kvfs of each container
POWERS = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_NET_ADMIN",
          "CAP_SETUID", "CAP_SETGID", "CAP_MKNOD"]
# What this test is not about: the machine, and that a sanitizer's build can't be as it should.
MACHINE = ["swap", "memlock", "core-pattern", "bpf-unprivileged", "bpf-programs"]
SANITIZED = ["dumpable", "mapped-rwx", "mapped-memory", "mapped-new"]
MOUNTER = "-omounter=/run/kvfs/socket"

checks = Checks()
check = checks.check


def profiles():
    """The one that is allowed, and some that ask for something else."""
    with open(os.path.join(PACKAGING, "sidecar.profile"), encoding="ascii") as file:
        good = file.read() + "bind /var/lib/kvfs rw\n"
    for name in MACHINE + (SANITIZED if sanitized() else []):
        good += f"{name} ignore\n"
    return {"good.profile": good, "lax.profile": good + "* ignore\npaused require\n",
            "one-less.profile": good + "seccomp ignore\n",
            "other.profile": good.replace("profile sidecar", "profile other"),
            "others.profile": good + "admit uid 1000 1001\n"}


def loose_rootfs():
    """Of somebody who mounts by himself."""
    return rootfs("rootfs-loose", KVFS, shutil.which("fusermount3"))


class Loose(PodmanContainer):
    """As podman makes it for somebody in a hurry."""

    hardening = ["--privileged"]


def unhardened(config):
    """The root can be written to and is root's, who has capabilities, devices, no filter."""
    config["root"]["readonly"] = False
    config["process"].update(noNewPrivileges=False, user={"uid": 0, "gid": 0}, capabilities={
        which: POWERS for which in ("bounding", "effective", "permitted", "inheritable", "ambient")})
    linux = config["linux"]
    linux.pop("seccomp")
    linux["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                         "fileMode": 0o666}]
    linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]


class Asker:
    """Starts a kvfs that asks the server, in a container of one kind or the other."""

    def __init__(self, model):
        self.model = model
        self.pod = Pod(model, network=model.world.network)
        os.makedirs(AUDIT)
        os.chown(AUDIT, 1000, 1000)

    def command(self, where, *options):
        return ["/usr/bin/kvfs", "mount", "--foreground", "/encrypted", where,
                "--audit=/var/lib/kvfs/audit", *self.model.options(), *options]

    def by_runc(self, root, alter, *command):
        bundle(root, "daemon", "daemon", self.pod.settings(), *command)
        change("daemon", lambda config: config["mounts"].append(
            {"destination": "/var/lib/kvfs", "type": "bind", "source": AUDIT,
             "options": ["bind", "rw", "nosuid", "nodev", "noexec"]}))
        if alter:
            change("daemon", alter)
        return Container("daemon")

    def hardened(self, *options):
        return self.by_runc(daemon_rootfs(), None, *self.command("/models/llm", MOUNTER, *options))

    def loose(self, *options):
        """runc's, not hardened,"""
        return self.by_runc(loose_rootfs(), unhardened, *self.command("/models", *options))

    def privileged(self, *options):
        """podman's --privileged"""
        if why_no_podman():
            raise Skip(why_no_podman())
        settings = {**self.pod.settings(), "AUDIT": AUDIT}
        return Loose("daemon", loose_rootfs(), settings, *self.command("/models", *options))

    def refused(self, start, code, *options):
        """It gets nothing, and is told why; so is whoever reads the file, or the server's audit."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(AUDIT + "/audit")
        known = len(self.model.world.server.audit())
        container = start(*options)
        try:
            assert container.wait() == 1 and code in container.said(), container.said()
        finally:
            container.end()
        no_mount(self.pod.target)
        ours = [json.loads(line) for line in read_all(AUDIT + "/audit").splitlines()]
        theirs = [(row["event"], row["code"], row["model"], row["user"])
                  for row in self.model.world.server.audit()[known:]]
        assert kvfs("audit", "verify", AUDIT + "/audit").returncode == 0
        assert not any(r["event"] == "release" for r in ours), ours
        return {r["event"]: r for r in ours}, theirs

    def refused_by_server(self, start, code, *options):
        ours, theirs = self.refused(start, code, *options)
        why = ours["release-refused"]
        assert why["code"] == "EACCES" and code in why["detail"], why
        assert why["model"] == "alice/m" and ours["failed"]["code"] == "EACCES", ours
        assert theirs == [("attest", code, "alice/m", "bob")], theirs

    def refused_by_itself(self, start, named, *options):
        """The guard is asked before the server."""
        ours, theirs = self.refused(start, named, *options)
        assert "release-refused" not in ours and not theirs, (ours, theirs)
        assert set(ours) == {"failed"} and named in ours["failed"]["detail"], ours
        assert ours["failed"]["signed"] is False, ours


def refusals(asker):
    for start in (asker.loose, asker.privileged):
        for what, code, options in (
                ("as it comes", "profile_refused", ()),
                ("without a guard", "profile_refused", ("--guard=off",)),
                ("with a profile of the right name that asks for nothing", "baseline_unknown",
                 ("--guard=/keys/lax.profile",))):
            with check(f"{start.__doc__} {what} gets no keys: {code}"):
                asker.refused_by_server(start, code, *options)
        with check(f"{start.__doc__} with the right profile does not even ask"):
            asker.refused_by_itself(start, "root-ro", "--guard=/keys/good.profile")
    for what, code, name in (
            ("a profile of another name", "profile_refused", "other"),
            ("a profile that asks for one check less", "baseline_unknown", "one-less"),
            ("another admission policy", "baseline_unknown", "others")):
        with check(f"a hardened container with {what} gets no keys: {code}"):
            asker.refused_by_server(asker.hardened, code, f"--guard=/keys/{name}.profile")


def main():
    if why_not():
        checks.skip("containers", why_not())
        return checks.finish()
    with Server() as server, contextlib.ExitStack() as stack:
        model = Published(World(server), "m", 2, profiles())
        model.allow("/keys/good.profile", "sidecar")
        asker = Asker(model)
        stack.callback(asker.pod.__exit__)
        asker.pod.start_mounter()
        with check("the hardened container that was measured gets them"):
            asker.pod.daemon = asker.hardened("--guard=/keys/good.profile")
            wait_for(asker.pod.serves, 20, "a mount")
            asker.pod.daemon.end()
        refusals(asker)
    remove_groups()
    return checks.finish()


sys.exit(main())
