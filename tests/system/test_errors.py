#!/usr/bin/env python3
"""What is refused, with which error, and what is said of it: the table of README.md, plain= and
manifest= with every kind of file, tensors that a signed header leaves unencrypted, missing keys;
one log line for each failure, with file, tensor, chunk, reason and reader."""
import json
import os
import re
import shutil
import sys
import time

from clitest import VECTORS, check, finish, fresh, kvfs, path, safetensors, write
from kvfstest import Model, Mount, as_user, outcome, read_all, run

MUST_FAIL = os.path.join(VECTORS, "must-fail")
VECTOR_KEYS = os.path.join(VECTORS, "keys/reader.jwks")

TABLE = [  # a file, its error, what cat prints, what the log says
    ("master-kid-unknown", "ENOKEY", "Required key not available", "no master key of kid"),
    ("sig-kid-unknown", "ENOKEY", "Required key not available", "no verification key of kid"),
    ("sig-bit-flipped", "EKEYREJECTED", "Key was rejected by service", "signature"),
    ("alg-lowered", "EKEYREJECTED", "Key was rejected by service", "for another algorithm"),
    ("downgrade-to-plain", "EKEYREJECTED", "Key was rejected by service", "nothing vouches"),
    ("policy-deny", "EACCES", "Permission denied", "policy"),
    ("truncated-half", "EBADMSG", "Bad message", ""),
    ("body-bit", "EBADMSG", "Bad message", "tensor w0: chunk 2: tag does not match"),
    ("version-3", "EOPNOTSUPP", "Operation not supported", "version"),
    ("alg-unknown", "EOPNOTSUPP", "Operation not supported", "algorithm"),
]


def log_of(m):
    return read_all(m.path + "/.kvfs/log").decode()


def test_table():
    top = fresh("table")
    os.makedirs(top)
    for name, *_ in TABLE:
        shutil.copy(f"{MUST_FAIL}/{name}.safetensors", top)
    shutil.copy(f"{VECTORS}/good/v2-a256.cryptotensors", top)
    with Mount(top, keys=[VECTOR_KEYS]) as m:
        for name, error, message, reason in TABLE:
            file = f"{name}.safetensors"
            with check(f"{name}: {error}, `{message}`, and a line in the log"):
                assert file in os.listdir(m.path)
                cat = run(*as_user(0), "cat", os.path.join(m.path, file))
                assert message in cat.stderr, cat.stderr
                assert outcome(os.path.join(m.path, file)) == error
                lines = [line for line in log_of(m).splitlines()
                         if f" warning {file}: {error}: " in line]
                assert lines and reason in lines[0], (lines, log_of(m))
                assert re.search(r"\(pid \d+, uid 0\)$", lines[0]), lines[0]
                failures = [f for f in m.status()["failures"] if f["path"] == file]
                assert failures and failures[0]["error"] == error, failures
                status = kvfs("status", m.path).stdout
                assert f"{file}: {error}: " in status and reason in status, status
                time.sleep(0.25)  # lines are limited: ten a second
        with check("its neighbours are undisturbed"):
            assert len(read_all(m.path + "/v2-a256.safetensors")) > 1000
        with check("the reader is named: its uid, its pid"):
            time.sleep(1.1)
            with Mount(top, keys=[VECTOR_KEYS], options=["uid=33", "umask=022"]) as other:
                run(*as_user(34), "cat", other.path + "/policy-deny.safetensors")
                assert "uid 34)" in log_of(other), log_of(other)
                assert other.status()["failures"][-1]["uid"] == 34
        with check("what never was there is ENOENT, and no failure"):
            before = len(m.status()["failures"])
            assert outcome(m.path + "/none.safetensors") == "ENOENT"
            assert len(m.status()["failures"]) == before
        with check("lines are limited, and those missing are counted; status counts them all"):
            for _ in range(200):
                outcome(m.path + "/policy-deny.safetensors")
            time.sleep(1.1)
            outcome(m.path + "/policy-deny.safetensors")
            log = log_of(m)
            assert log.count("policy-deny") < 50 and "more failures were not logged" in log, log
            denied = next(f for f in m.status()["files"]
                          if "policy-deny.safetensors" in f["paths"])
            assert denied["errors"] >= 201, denied["errors"]


# ---- what no signature covers ----

KINDS = {
    "config.json": b"{}", "data.jsonl": b"{}\n", "notes.txt": b"x", "README.md": b"x",
    "chat.jinja": b"x", "tokenizer.model": b"x", "bpe.tiktoken": b"x", "a.yaml": b"x",
    "b.yml": b"x",
    "code.py": b"x", "weights.bin": b"x", "weights.pt": b"x", "x.gguf": b"GGUFx", "noext": b"x",
    "lib.so": b"\x7fELF", "pickle.json": b"\x80\x04x", "zip.txt": b"PK\x03\x04",
    "elf.model": b"\x7fELFx", "config.JSON.bak": b"{}",
    "plain.safetensors": safetensors({"w": ("U8", [4], 4)}),
    "plain.txt": safetensors({"w": ("U8", [4], 4)}),
}
SAFE = {"config.json", "data.jsonl", "notes.txt", "README.md", "chat.jinja", "tokenizer.model",
        "bpe.tiktoken", "a.yaml", "b.yml"}


def kinds(model):
    top = fresh("kinds")
    os.makedirs(top)
    for name, data in KINDS.items():
        write(f"{top}/{name}", data)
    shutil.copy(os.path.join(model.encrypted, model.shard), f"{top}/model.safetensors")
    return top


def test_plain(model):
    top = kinds(model)
    broken = {"cut.safetensors": KINDS["plain.safetensors"][:50],
              "reserved.safetensors": safetensors({"w": ("U8", [4], 4)}, {"__policy__": "{}"}),
              "junk.safetensors": b"no safetensors file"}
    for name, data in broken.items():
        write(f"{top}/{name}", data)
    for option, shown in (("safe", SAFE), ("all", set(KINDS)), ("none", set())):
        with Mount(top, keys=[model.reader], options=[f"plain={option}"]) as m:
            for name, data in KINDS.items():
                with check(f"plain={option}: {name} is {'shown' if name in shown else 'refused'}"):
                    file = os.path.join(m.path, name)
                    assert outcome(file) == (data if name in shown else "EKEYREJECTED")
                    state = os.getxattr(file, "user.kvfs.state")
                    assert state == (b"passed on" if name in shown else b"refused")
                    assert os.getxattr(file, "user.kvfs.authenticated") == b"no"
            with check(f"plain={option}: encrypted models are shown, what poses as one never"):
                assert outcome(m.path + "/model.safetensors") == model.plain_bytes()
                for name in broken:
                    assert outcome(os.path.join(m.path, name)) in ("EBADMSG", "EKEYREJECTED")
    with Mount(top, keys=[model.reader], options=["manifest=require"]) as m:
        with check("manifest=require: without one, nothing is shown"):
            assert {outcome(e.path) for e in os.scandir(m.path)} == {"EKEYREJECTED"}
            assert "no manifest vouches" in kvfs("status", m.path).stdout
    with check("plain=all never overrides a manifest"):
        # Hoped for: that an operator's plain=all lets an added file through.
        signed = fresh("signed")
        shutil.copytree(model.encrypted, signed)
        write(f"{signed}/evil.py", "x")
        write(f"{signed}/config.json", "{ }")
        with Mount(signed, keys=[model.reader], options=["plain=all"]) as m:
            assert outcome(m.path + "/evil.py") == "ENOENT" and "evil.py" not in os.listdir(m.path)
            assert outcome(m.path + "/config.json") in ("EKEYREJECTED", "EBADMSG")
            assert outcome(os.path.join(m.path, model.shard)) == model.plain_bytes()


def test_unencrypted_tensors(model):
    write(path("two.safetensors"), safetensors({"a.weight": ("U8", [90000], 90000),
                                                "b.norm": ("U8", [90000], 90000)}))
    plain = read_all(path("two.safetensors"))
    os.makedirs(fresh("partly"))
    kvfs("encrypt", path("two.safetensors"), "-o", path("partly/two.safetensors"), "-k",
         model.owner, "--skip-tensors", "*.norm", "-q")
    with Mount(path("partly"), keys=[model.reader]) as m:
        with check("tensors that a signed header leaves unencrypted: served, and flagged"):
            file = m.path + "/two.safetensors"
            assert outcome(file) == plain
            with open(file, "rb"):
                assert os.getxattr(file, "user.kvfs.authenticated") == b"partly"
                shown = next(f for f in m.status()["files"] if "two.safetensors" in f["paths"])
            assert shown["unauthenticated_bytes"] == 90000, shown
    with Mount(path("partly"), keys=[model.reader], options=["plain=none"]) as m:
        with check("plain=none refuses them"):
            assert outcome(m.path + "/two.safetensors") == "EKEYREJECTED"
            assert "b.norm" in log_of(m), log_of(m)
    os.makedirs(fresh("one"))
    os.rename(path("two.safetensors"), path("one/two.safetensors"))
    kvfs("encrypt", path("one"), "-o", fresh("vouched"), "-k", model.owner, "--skip-tensors",
         "*.norm", "-q")
    for options in ([], ["plain=none"]):
        with Mount(path("vouched"), keys=[model.reader], options=options) as m:
            with check(f"the manifest authenticates them {options}"):
                file = m.path + "/two.safetensors"
                assert outcome(file) == plain
                with open(file, "rb"):
                    assert os.getxattr(file, "user.kvfs.authenticated") == b"yes"
    with check("and a changed one is EBADMSG, with its tensor in the log; the other one reads"):
        data = bytearray(read_all(path("vouched/two.safetensors")))
        data[-5] ^= 1
        write(path("vouched/two.safetensors"), bytes(data))
        with Mount(path("vouched"), keys=[model.reader]) as m:
            assert outcome(m.path + "/two.safetensors") == "EBADMSG"
            assert re.search("two.safetensors: EBADMSG: .*b.norm", log_of(m)), log_of(m)
            with open(m.path + "/two.safetensors", "rb") as file:
                assert os.pread(file.fileno(), 80000, 0) == plain[:80000]


# ---- keys ----

def test_missing_keys(model):
    kvfs("keygen", path("other"), "--kid", "other")
    top = fresh("two-keys")
    os.makedirs(top)
    source = os.path.join(model.plain, model.shard)
    kvfs("encrypt", source, "-o", f"{top}/mine.safetensors", "-k", model.owner, "-q")
    kvfs("encrypt", source, "-o", f"{top}/theirs.safetensors", "-k", path("other/owner.jwks"), "-q")
    with check("a missing key: a degraded mount that says so; the rest reads"):
        with Mount(top, keys=[model.reader]) as m:
            assert "1 models will be refused for want of a key" in m.output, m.output
            assert "theirs.safetensors" in m.output and "other-" in m.output, m.output
            assert outcome(m.path + "/mine.safetensors") == model.plain_bytes()
            assert outcome(m.path + "/theirs.safetensors") == "ENOKEY"
            assert os.stat(m.path + "/theirs.safetensors").st_size == len(model.plain_bytes())
    with check("require-all: no mount, and which key"):
        os.makedirs(path("none"), exist_ok=True)
        ran = kvfs("mount", top, path("none"), "-k", model.reader, "--require-all", code=1)
        assert "theirs.safetensors" in ran.stderr and "other-" in ran.stderr, ran
    with check("both keys, in two --key: everything"):
        with Mount(top, keys=[model.reader, path("other/reader.jwks")],
                   options=["require-all"]) as m:
            assert not m.output, m.output
            assert outcome(m.path + "/theirs.safetensors") == model.plain_bytes()
    with check("--key DIR: all that is in it"):
        os.makedirs(fresh("dir"))
        shutil.copy(model.reader, path("dir/a.jwks"))
        shutil.copy(path("other/reader.jwks"), path("dir/b.jwks"))
        os.chmod(path("dir/a.jwks"), 0o600)
        with Mount(top, keys=[path("dir")], options=["require-all"]) as m:
            assert outcome(m.path + "/theirs.safetensors") == model.plain_bytes()


def test_jku(model):
    kvfs("keygen", path("j"), "--kid", "j")
    directory = path("key-dir")
    os.makedirs(directory)
    master, signer = (json.dumps(k) for k in json.loads(read_all(path("j/reader.jwks")))["keys"])
    write(f"{directory}/m.jwk", master)
    write(f"{directory}/s.jwk", signer)
    write(path("outside.jwk"), master)
    os.symlink("../outside.jwk", f"{directory}/link.jwk")
    write(path("signer.jwk"), signer)
    for one in (f"{directory}/m.jwk", f"{directory}/s.jwk", path("signer.jwk")):
        os.chmod(one, 0o600)
    source = os.path.join(model.plain, model.shard)

    def encrypted(master_jku, sign_jku=""):
        os.makedirs(fresh("jku"))
        run(os.path.join(os.environ["KVFS_TOOLS"], "ct_tool"), "encrypt", "-m", master_jku, "-s",
            sign_jku, path("j/owner.jwks"), "j-master", "j-sign", source,
            path("jku/m.safetensors"), check=True)

    def read(*options, keys=("signer.jwk",)):
        with Mount(path("jku"), keys=[path(k) for k in keys], options=options) as m:
            return outcome(m.path + "/m.safetensors")
    cases = [("file://m.jwk", "a relative one"), (f"file://{directory}/m.jwk", "an absolute one")]
    for jku, what in cases:
        encrypted(jku)
        with check(f"jku file://, {what}: found in --key-dir"):
            assert read(f"key-dir={directory}") == model.plain_bytes()
        with check(f"jku file://, {what}: without --key-dir nothing is opened"):
            assert read() == "ENOKEY"
    # Hoped for: that a header makes the supervisor, which may be root, open what it names.
    for jku in ("file://../outside.jwk", f"file://{path('outside.jwk')}", "file://link.jwk",
                "file:///etc/shadow", "file://", "file://.", "file://none.jwk",
                "file://m.jwk/../m.jwk", "koalavault://x", "https://example.org/m.jwk"):
        encrypted(jku)
        with check(f"jku {jku}: not followed out of --key-dir"):
            got = read(f"key-dir={directory}")
            inside = jku == "file://m.jwk/../m.jwk"
            assert got == "ENOKEY" or (inside and got == model.plain_bytes()), got
    encrypted("file://m.jwk", "file://s.jwk")
    with check("verification keys are never taken from a jku"):
        # Hoped for: that a file brings along the key that vouches for it.
        write(path("unrelated.jwk"), json.dumps(json.loads(read_all(model.reader))["keys"][1]))
        os.chmod(path("unrelated.jwk"), 0o600)
        assert read(f"key-dir={directory}", keys=("unrelated.jwk",)) == "ENOKEY"
        assert read(f"key-dir={directory}") == model.plain_bytes()


def main():
    os.umask(0o022)
    model = Model(mib=4)
    test_table()
    test_plain(model)
    test_unencrypted_tensors(model)
    test_missing_keys(model)
    test_jku(model)
    return finish()


sys.exit(main())
