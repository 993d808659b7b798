#!/usr/bin/env python3
"""The cipher libraries behind a mount: what each gives for every reference vector is the same, and
status.json says which one serves."""
import hashlib
import json
import os
import sys

from kvfstest import KVFS, ROOT, Checks, Mount, kvfs, run, workdir

VECTORS = os.path.join(ROOT, "tests/vectors")
KEY = os.path.join(VECTORS, "keys/reader.jwks")
OPERATIONS = {"aes128gcm": {"open", "encrypt", "gmac"}, "aes256gcm": {"open", "encrypt", "gmac"},
              "chacha20poly1305": {"open", "encrypt", "chacha20", "poly1305"}}


def outcome(path):
    """A file's digest, or the error that reading it gives."""
    try:
        with open(path, "rb", buffering=0) as file:
            digest = hashlib.sha256()
            while data := file.read(1 << 20):
                digest.update(data)
            return digest.hexdigest()
    except OSError as error:
        return error.errno


def outcomes(options, env=None):
    """Of all vectors, and the mount's status."""
    found, status = {}, None
    for part in "good", "must-fail":
        with Mount(os.path.join(VECTORS, part), keys=[KEY], options=options, env=env) as m:
            for directory, _, names in os.walk(m.path):
                for name in names:
                    path = os.path.join(directory, name)
                    found[os.path.join(part, os.path.relpath(path, m.path))] = outcome(path)
            status = m.status()
    return found, status["crypto"]


def backends(crypto, operation=None):
    return {of["backend"] for alg in OPERATIONS for name, of in crypto[alg].items()
            if operation is None or name == operation}


def main():
    checks = Checks()
    available = b"libIPSec_MB" in open(KVFS, "rb").read()
    with open(os.path.join(VECTORS, "manifest.json"), encoding="utf-8") as file:
        want = {e["view"]: e["sha256"] for e in json.load(file)["good"]
                if e["keys"] == "reader.jwks"}
    reference = {}

    with checks.check("openssl: every vector"):
        found, crypto = outcomes(["crypto=openssl"])
        reference.update(found)
        wrong = {view for view, digest in want.items()
                 if found.get(os.path.join("good", view.removeprefix("good/"))) != digest}
        assert not wrong, wrong
        assert sum(isinstance(x, int) for x in found.values()) > 50, found
        assert crypto["option"] == "openssl" and backends(crypto) == {"openssl"}, crypto

    with checks.check("auto: the same, by the faster library for each operation"):
        found, crypto = outcomes([])
        assert found == reference
        assert crypto["option"] == "auto", crypto
        for alg, operations in OPERATIONS.items():
            assert set(crypto[alg]) == operations, crypto
            for of in crypto[alg].values():
                rate = of["gb_per_second"]
                ratio = rate["ipsec"] / rate["openssl"]
                if abs(ratio - 1.05) > 0.01:  # what is shown is rounded
                    assert of["backend"] == ("ipsec" if ratio > 1.05 else "openssl"), crypto
                assert available or rate["ipsec"] == 0
            checks.note(f"{alg}: {json.dumps(crypto[alg])}")

    if available:
        with checks.check("ipsec: the same"):
            found, crypto = outcomes(["crypto=ipsec"])
            assert found == reference
            assert crypto["option"] == "ipsec" and backends(crypto, "open") == {"ipsec"}, crypto

        with checks.check("KVFS_CRYPTO names one for mounts and other commands"):
            env = dict(os.environ, KVFS_CRYPTO="ipsec")
            assert outcomes([], env)[1]["option"] == "ipsec"
            assert outcomes(["crypto=openssl"], env)[1]["option"] == "openssl"
    else:
        checks.skip("ipsec", "kvfs was built without ipsec-mb")
        with checks.check("what was not built in is refused by name"):
            result = kvfs("mount", os.path.join(VECTORS, "good"), workdir(), "--key", KEY, "-o",
                          "crypto=ipsec,nonempty", check=False)
            assert result.returncode == 1 and "not in this build" in result.stderr, result

    with checks.check("nonsense is a usage error"):
        result = kvfs("mount", VECTORS, workdir(), "-o", "crypto=rot13", check=False)
        assert result.returncode == 2 and "auto, openssl, ipsec" in result.stderr, result
        result = run(KVFS, "mount", VECTORS, workdir(), env=dict(os.environ, KVFS_CRYPTO="rot13"))
        assert result.returncode == 2 and "auto, openssl, ipsec" in result.stderr, result
    return checks.finish()


sys.exit(main())
