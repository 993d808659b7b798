#!/usr/bin/env python3
"""Attacks on a model directory by somebody who can write to it but has no signing key. Each is
refused or absent, and named; what was not touched stays readable."""
import json
import os
import shutil
import subprocess
import sys

from kvfstest import ROOT, Checks, Mount, kvfs, outcome, read_all, workdir

SHARD = "model-{:05d}-of-00003.safetensors"


def everything_said(m):
    """What an operator sees: status and log."""
    return json.dumps(m.status()) + read_all(os.path.join(m.path, ".kvfs/log")).decode()


class Release:
    def __init__(self, name, generation, keys, seed_file=None):
        self.plain = os.path.join(workdir(), "plain-" + name)
        self.encrypted = os.path.join(workdir(), "release-" + name)
        subprocess.run([os.path.join(ROOT, "packaging/make-model"), self.plain, "--shards", "3",
                        "--mib", "6"], check=True)
        if seed_file:
            with open(os.path.join(self.plain, SHARD.format(1)), "r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(seed_file)
        with open(os.path.join(self.plain, "tokenizer.json"), "w", encoding="utf-8") as file:
            json.dump({"vocab": list(range(200000))}, file)  # above 1 MiB: in pieces
        with open(os.path.join(self.plain, "modeling.py"), "w", encoding="utf-8") as file:
            file.write("print('code that the owner signed')\n")
        os.mkdir(os.path.join(self.plain, "sub"))
        os.symlink("../config.json", os.path.join(self.plain, "sub", "config.json"))
        kvfs("encrypt", "-q", self.plain, "-o", self.encrypted, "--key", keys + "/owner.jwks",
             "--generation", str(generation))


class Attack:
    """A copy of a release, to be damaged and mounted."""

    def __init__(self, release):
        self.release = release
        self.source = os.path.join(workdir(), "attacked")
        shutil.rmtree(self.source, ignore_errors=True)
        shutil.copytree(release.encrypted, self.source, symlinks=True)

    def file(self, *parts):
        return os.path.join(self.source, *parts)

    def mount(self, keys, *options):
        return Mount(self.source, keys=[keys + "/reader.jwks"], options=options)


def untouched(m, release, *names):
    for name in names:
        assert outcome(os.path.join(m.path, name)) == read_all(os.path.join(release.plain, name)), name


def run(checks, keys, first, second):
    with checks.check("nothing touched: every byte, links, code, and the pieces of a large file"):
        attack = Attack(first)
        with attack.mount(keys, "manifest=require") as m:
            untouched(m, first, *(SHARD.format(n) for n in (1, 2, 3)), "config.json",
                      "tokenizer.json", "modeling.py", "model.safetensors.index.json")
            assert "kvfs.manifest" not in os.listdir(m.path)
            assert outcome(os.path.join(m.path, "sub/config.json")) == read_all(first.plain + "/config.json")

    for name in "config.json", "model.safetensors.index.json", "modeling.py":
        with checks.check(f"edited {name}: refused and named"):
            attack = Attack(first)
            data = read_all(attack.file(name))
            with open(attack.file(name), "wb") as file:
                file.write(data.replace(b"e", b"3", 1))
            with attack.mount(keys) as m:
                assert outcome(os.path.join(m.path, name)) in ("EBADMSG", "EKEYREJECTED")
                untouched(m, first, SHARD.format(2), "tokenizer.json")
                assert name in everything_said(m)

    with checks.check("one byte of a large side file: its pages fail, the rest reads"):
        attack = Attack(first)
        with open(attack.file("tokenizer.json"), "r+b") as file:
            file.seek(10)
            file.write(b"7")
        with attack.mount(keys) as m:
            path = os.path.join(m.path, "tokenizer.json")
            assert outcome(path) == "EBADMSG"
            with open(path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                assert size > 1 << 20
                os.lseek(file.fileno(), (1 << 20) + 4096, os.SEEK_SET)
                want = read_all(os.path.join(first.plain, "tokenizer.json"))
                got = os.pread(file.fileno(), 4096, (1 << 20) + 4096)
                assert got == want[(1 << 20) + 4096:(1 << 20) + 8192]

    for name, content in (("evil.py", b"import os\n"), ("weights.pkl", b"\x80\x04N."),
                          ("extra.json", b"{}"), ("pytorch_model.bin", b"PK\x03\x04")):
        for plain in "safe", "all":
            with checks.check(f"added {name}, plain={plain}: absent"):
                attack = Attack(first)
                with open(attack.file(name), "wb") as file:
                    file.write(content)
                with attack.mount(keys, f"plain={plain}") as m:
                    assert name not in os.listdir(m.path)
                    assert outcome(os.path.join(m.path, name)) == "ENOENT"

    with checks.check("two shards exchanged: both refused and named"):
        attack = Attack(first)
        a, b = attack.file(SHARD.format(1)), attack.file(SHARD.format(2))
        os.rename(a, a + "x")
        os.rename(b, a)
        os.rename(a + "x", b)
        with attack.mount(keys) as m:
            for number in 1, 2:
                assert outcome(os.path.join(m.path, SHARD.format(number))) == "EKEYREJECTED"
                assert SHARD.format(number) in everything_said(m)
            untouched(m, first, SHARD.format(3))

    with checks.check("an older release's shard: refused and named"):
        attack = Attack(second)
        shutil.copy(os.path.join(first.encrypted, SHARD.format(1)), attack.source)
        with attack.mount(keys) as m:
            assert outcome(os.path.join(m.path, SHARD.format(1))) == "EKEYREJECTED"
            assert SHARD.format(1) in everything_said(m)

    with checks.check("an older manifest beside newer files: the changed shard is refused"):
        attack = Attack(second)
        shutil.copy(os.path.join(first.encrypted, "kvfs.manifest"), attack.source)
        with attack.mount(keys) as m:
            assert outcome(os.path.join(m.path, SHARD.format(1))) == "EKEYREJECTED"

    with checks.check("the manifest removed: manifest=require refuses everything"):
        attack = Attack(first)
        os.remove(attack.file("kvfs.manifest"))
        with attack.mount(keys, "manifest=require") as m:
            for name in SHARD.format(1), "config.json":
                assert outcome(os.path.join(m.path, name)) == "EKEYREJECTED", name
            assert "manifest" in everything_said(m)
    with checks.check("the manifest removed: without require, code is refused and models are flagged"):
        with attack.mount(keys) as m:
            untouched(m, first, SHARD.format(1), "config.json")
            assert outcome(os.path.join(m.path, "modeling.py")) == "EKEYREJECTED"
            got = os.getxattr(os.path.join(m.path, "config.json"), "user.kvfs.authenticated")
            assert got == b"no", got

    with checks.check("a removed file: absent, and status names it"):
        attack = Attack(first)
        os.remove(attack.file(SHARD.format(2)))
        with attack.mount(keys) as m:
            assert outcome(os.path.join(m.path, SHARD.format(2))) == "ENOENT"
            assert SHARD.format(2) in everything_said(m)

    with checks.check("a link bent: refused and named"):
        attack = Attack(first)
        os.remove(attack.file("sub/config.json"))
        os.symlink("../tokenizer.json", attack.file("sub/config.json"))
        with attack.mount(keys) as m:
            assert outcome(os.path.join(m.path, "sub/config.json")) == "EKEYREJECTED"
            assert "sub/config.json" in everything_said(m)

    for what, change in (("payload", "payload"), ("signature", "signature"), ("header", "protected")):
        with checks.check(f"the manifest's {what} altered: everything is refused"):
            attack = Attack(first)
            jws = json.loads(read_all(attack.file("kvfs.manifest")))
            text = jws[change]
            jws[change] = text[:20] + ("A" if text[20] != "A" else "B") + text[21:]
            with open(attack.file("kvfs.manifest"), "w", encoding="utf-8") as file:
                json.dump(jws, file)
            with attack.mount(keys) as m:
                got = outcome(os.path.join(m.path, SHARD.format(1)))
                assert got in ("EKEYREJECTED", "EBADMSG", "ENOKEY"), got
                assert outcome(os.path.join(m.path, "config.json")) == got

    with checks.check("a manifest signed by a stranger: everything is refused"):
        stranger = os.path.join(workdir(), "stranger")
        kvfs("keygen", stranger)
        attack = Attack(first)
        forged = os.path.join(workdir(), "forged")
        shutil.rmtree(forged, ignore_errors=True)
        kvfs("encrypt", "-q", first.plain, "-o", forged, "--key", stranger + "/owner.jwks")
        shutil.copy(os.path.join(forged, "kvfs.manifest"), attack.source)
        with attack.mount(keys) as m:
            assert outcome(os.path.join(m.path, "config.json")) in ("ENOKEY", "EKEYREJECTED")

    with checks.check("verify names every one of these"):
        attack = Attack(first)
        os.remove(attack.file(SHARD.format(2)))
        with open(attack.file("config.json"), "a", encoding="utf-8") as file:
            file.write(" ")
        with open(attack.file("evil.py"), "w", encoding="utf-8") as file:
            file.write("1")
        result = kvfs("verify", "-q", attack.source, "--key", keys + "/reader.jwks", check=False)
        said = result.stdout + result.stderr
        assert result.returncode == 1, result.returncode
        for name in SHARD.format(2), "config.json", "evil.py":
            assert name in said, name


def main():
    checks = Checks()
    keys = os.path.join(workdir(), "keys")
    kvfs("keygen", keys)
    run(checks, keys, Release("1", 1, keys), Release("2", 2, keys, b"newer weights"))
    return checks.finish()


sys.exit(main())
