#!/usr/bin/env python3
"""--resume goes on only with the very same keys: another master key of the same kid would leave a
directory that no key opens whole."""
import base64
import json
import os
import subprocess
import sys

from kvfstest import ROOT, Checks, kvfs, workdir


def other_master(keys):
    """The same owner's keys, but for the bytes of the master key."""
    with open(os.path.join(keys, "owner.jwks"), encoding="utf-8") as file:
        owner = json.load(file)
    for key in owner["keys"]:
        if key["kty"] == "oct":
            key["k"] = base64.b64encode(os.urandom(32)).decode()
    path = os.path.join(workdir(), "other.jwks")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
        json.dump(owner, file)
    return path


def main():
    checks = Checks()
    keys, plain, small = (os.path.join(workdir(), name) for name in ("keys", "plain", "small"))
    kvfs("keygen", keys)
    subprocess.run([os.path.join(ROOT, "packaging/make-model"), plain, "--shards", "3", "--mib",
                    "24"], check=True)
    os.mkdir(small)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", small], check=True)
    out, owner = os.path.join(small, "out"), keys + "/owner.jwks"
    with checks.check("the disk is full after the first file: it is kept"):
        ran = kvfs("encrypt", "-q", plain, "-o", out, "--key", owner, check=False)
        assert ran.returncode == 1 and "--resume" in ran.stderr, ran
        assert "model-00001-of-00003.safetensors" in os.listdir(out)
    subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
    with checks.check("--resume with another master key of the same kid: refused"):
        ran = kvfs("encrypt", "-q", plain, "-o", out, "--key", other_master(keys), "--resume",
                   check=False)
        assert ran.returncode == 1 and "another master key" in ran.stderr, ran
    with checks.check("--resume with the same keys: finished, and all of it opens"):
        kvfs("encrypt", "-q", plain, "-o", out, "--key", owner, "--resume")
        kvfs("verify", "-q", out, "--key", owner)
    subprocess.run(["umount", small], check=True)
    return checks.finish()


sys.exit(main())
