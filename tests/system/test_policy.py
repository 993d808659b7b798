#!/usr/bin/env python3
"""A model's policy through a mount: every member of `input`, asked at every open, for every name of
a file; what is outside the subset refuses and is named."""
import json
import os
import shutil
import socket
import sys
import time

from clitest import check, finish, fresh, kvfs, path, write
from kvfstest import Model, Mount, as_user, outcome, read_all, run

HEAD = "package model\nimport rego.v1\ndefault allow := false\n"


class Site:
    """A directory to mount, with one model a policy."""

    def __init__(self, model):
        self.model = model
        self.top = fresh("policies")

    def add(self, name, rule):
        write(path("policy.rego"), HEAD + rule + "\n")
        os.makedirs(os.path.join(self.top, os.path.dirname(name)), exist_ok=True)
        kvfs("encrypt", os.path.join(self.model.plain, self.model.shard), "-o",
             os.path.join(self.top, name), "-k", self.model.owner, "-q", "--policy",
             path("policy.rego"))

    def mount(self, *options):
        return Mount(self.top, keys=[self.model.reader], options=["umask=022", *options])


def members(now):
    """{name: (rule, allowed)}: each uses one member of input."""
    host = socket.gethostname()
    version = kvfs("--version").stdout.split()[1]
    return {
        "version": (f'allow if input.kvfs.version == "{version}"', True),
        "other-version": ('allow if input.kvfs.version == "0.0.0"', False),
        "host": (f'allow if input.host == "{host}"', True),
        "other-host": (f'allow if input.host == "not-{host}"', False),
        "root": ("allow if input.uid == 0", True),
        "nobody": ("allow if input.uid == 65534", False),
        "unix": (f"allow if {{ input.unix >= {now}; input.unix < {now + 3600} }}", True),
        "not-yet": (f"allow if input.unix > {now + 3600}", False),
        "time": ('allow if { input.time > "2024-01-01T00:00:00Z"\n'
                 'input.time < "2124-01-01T00:00:00Z"\nendswith(input.time, "Z") }', True),
        "expired": ('allow if input.time < "2024-01-01T00:00:00Z"', False),
        "sub/path": ('allow if input.path == "/sub/path.safetensors"', True),
        "sub/other-path": ('allow if input.path == "/sub/path.safetensors"', False),
        "sub/deep/model": ('allow if input.model == "sub/deep"', True),
        "sub/deep/other-model": ('allow if input.model == "sub"', False),
        "top": ('allow if input.model == ""', True),
        "guarded": ('allow if { input.guard.ok\ninput.guard.profile == "drift" }', True),
        "no-such-member": ("allow if input.gpu.ok", False),
        "not-a-member": ("allow if not input.gpu.ok", True),
        "all-of-it": ('allow if { count(input) == 8\ncount(input.kvfs) == 1 }', True),
    }


def test_members(site):
    rules = members(int(time.time()))
    for name, (rule, _) in rules.items():
        site.add(f"{name}.safetensors", rule)
    with site.mount() as m:
        for name, (rule, allowed) in rules.items():
            with check(f"{'allowed' if allowed else 'refused'}: {rule.splitlines()[0]}"):
                got = outcome(os.path.join(m.path, f"{name}.safetensors"))
                assert got == (site.model.plain_bytes() if allowed else "EACCES"), got


def test_every_open(site):
    """Hoped for: to get in after somebody else, who was allowed, has opened and cached the file."""
    site.add("one-user.safetensors", "allow if input.uid == 33")
    soon = int(time.time()) + 4
    site.add("soon-over.safetensors", f"allow if input.unix < {soon}")
    with site.mount() as m:
        file = os.path.join(m.path, "one-user.safetensors")
        with check("a policy on uid allows one user and refuses the others, in any order"):
            for user, allowed in ((34, False), (33, True), (34, False), (0, False), (33, True)):
                ran = run(*as_user(user), "cmp", file,
                          os.path.join(site.model.plain, site.model.shard))
                assert (ran.returncode == 0) == allowed, (user, ran)
                assert allowed or "Permission denied" in ran.stderr, ran
            log = read_all(m.path + "/.kvfs/log").decode()
            assert "one-user.safetensors: EACCES: " in log and "uid 34)" in log, log
        with check("a policy on the time: an open file stays open, the next open is refused"):
            name = os.path.join(m.path, "soon-over.safetensors")
            with open(name, "rb") as held:
                held.read(1)
                time.sleep(max(0, soon + 0.2 - time.time()))
                assert outcome(name) == "EACCES"
                held.seek(0)
                assert held.read() == site.model.plain_bytes()


def test_names(site):
    """Hoped for: that another name of the same file satisfies a policy on its path."""
    site.add("named.safetensors", 'allow if input.path == "/named.safetensors"')
    os.symlink("named.safetensors", os.path.join(site.top, "alias.safetensors"))
    with site.mount() as m:
        with check("a policy on the path: the name that it allows"):
            assert outcome(m.path + "/named.safetensors") == site.model.plain_bytes()
        with check("a policy on the path: a link to it is not that name"):
            assert outcome(m.path + "/alias.safetensors") == "EACCES"
    with site.mount() as m:
        with check("a policy on the path: nor when the link is looked up first"):
            assert outcome(m.path + "/alias.safetensors") == "EACCES"


def test_subset(site):
    cases = {"builtin": ('allow if http.send({"method": "get", "url": "http://x"}).body',
                         "a call of anything but"),
             "with": ("allow if data.other.allow with input as {}", ""),
             "syntax": ("allow if {", "")}
    for name, (rule, _) in cases.items():
        site.add(f"subset-{name}.safetensors", rule)
    write(path("policy.rego"), "package model\nallow = true\n# " + "x" * 70000)
    with check("encrypt refuses a policy larger than 64 KiB"):
        ran = kvfs("encrypt", os.path.join(site.model.plain, site.model.shard), "-o",
                   path("big.safetensors"), "-k", site.model.owner, "--policy",
                   path("policy.rego"), code=1)
        assert "policy.rego" in ran.stderr and "65536" in ran.stderr, ran
    with site.mount() as m:
        for name, (rule, construct) in cases.items():
            with check(f"outside the subset, refused and named: {rule[:40]}"):
                assert outcome(f"{m.path}/subset-{name}.safetensors") == "EACCES"
                failure = m.status()["failures"][-1]
                assert construct in failure["message"] and "policy" in failure["message"], failure


def test_manifest(model):
    with check("a manifest does not overrule a policy"):
        write(path("policy.rego"), HEAD + "allow if input.uid == 33\n")
        shutil.rmtree(fresh("both"), ignore_errors=True)
        kvfs("encrypt", model.plain, "-o", path("both"), "-k", model.owner, "-q", "--policy",
             path("policy.rego"))
        with Mount(path("both"), keys=[model.reader], options=["manifest=require"]) as m:
            assert outcome(os.path.join(m.path, model.shard)) == "EACCES"
            assert json.loads(outcome(m.path + "/config.json"))


def main():
    os.umask(0o022)
    site = Site(Model(mib=2))
    test_members(site)
    test_every_open(site)
    test_names(site)
    test_subset(site)
    test_manifest(site.model)
    return finish()


sys.exit(main())
