#!/usr/bin/env python3
"""inspect and verify; and what every command has: exit codes, --help, names that can't act on a
terminal, a progress bar."""
import json
import os
import pty
import select
import shutil
import subprocess
import sys

from clitest import (OWNER, READER, VECTORS, big, check, commands, fresh, finish, header_of, kvfs, path,
                     prepare, read, safetensors, verify, write)
from kvfstest import KVFS


# ---- inspect, verify ----

def inspected(*args, code=0):
    return {f["path"]: f for f in json.loads(kvfs("inspect", "--json", *args, code=code).stdout)["files"]}


def test_inspect():
    out = path("out")
    with check("inspect: a table and JSON, without any key"):
        ran = kvfs("inspect", out)
        for text in ("aes256gcm", "2 MiB", "3/3", "-master", "-sign", "generation 1, lists 9",
                     "kvfs verify"):
            assert text in ran.stdout, (text, ran)
        assert "Not authenticated" not in ran.stdout, ran
        found = inspected(out)
        assert {f["kind"] for f in found.values()} == {"encrypted", "side", "manifest", "link"}
        assert all(f["listed"] for p, f in found.items() if p != "kvfs.manifest")

    with check("inspect: what nothing authenticates"):
        copy = fresh("tampered")
        shutil.copytree(path("some"), copy, symlinks=True)
        write(f"{copy}/extra.py", "x")
        found = inspected(copy)
        assert "manifest" in found["model-00001-of-00003.safetensors"]["not_authenticated"]
        assert "does not list" in found["extra.py"]["not_authenticated"]
        os.unlink(f"{copy}/kvfs.manifest")
        shutil.copy(f"{path('src')}/model-00001-of-00003.safetensors", f"{copy}/p.safetensors")
        found = inspected(copy)
        assert "nothing vouches" in found["config.json"]["not_authenticated"]
        assert "plain" in found["p.safetensors"]["not_authenticated"]
        assert found["p.safetensors"]["kind"] == "plain"
        assert "1 of 3 tensors" in kvfs("inspect", copy).stdout

    with check("inspect: policies, jku, dtypes that are not known, several files"):
        ran = kvfs("inspect", "-v", path("p/model-00001-of-00003.safetensors"))
        assert "input.uid == 0" in ran.stdout and "remote policy: allows" in ran.stdout
        ran = kvfs("inspect", os.path.join(VECTORS, "good/jku-and-kid.cryptotensors"))
        assert "koalavault://" in ran.stdout
        write(fresh("odd.safetensors"), safetensors({"w": ("F12_NEW", [3], 10)}))
        assert inspected(path("odd.safetensors"))[path("odd.safetensors")]["unknown_dtypes"] == "F12_NEW"
        assert len(inspected(path("odd.safetensors"), out)) == 11

    with check("inspect: malformed files are named with the reason, exit 1"):
        found = inspected(os.path.join(VECTORS, "must-fail"), code=1)
        assert "chunk_size of 0" in found["chunk-size-0.safetensors"]["why"]
        assert found["version-3.safetensors"]["kind"] == "malformed"
        ran = kvfs("inspect", os.path.join(VECTORS, "must-fail/offset-hole.safetensors"), code=1)
        assert "offset-hole" in ran.stdout.split("Malformed")[1], ran
        assert "No such file" in kvfs("inspect", path("none"), code=1).stderr
        kvfs("inspect", os.path.join(VECTORS, "good"))

    with check("names can't act on a terminal"):
        evil = fresh("evil\x1b[31m\n\u202e")
        write(f"{evil}/a\x1b]0;x\x07.safetensors", safetensors({"w\x1b[2J": ("U8", [4], 4)}))
        write(f"{evil}/b\x1b[1m.json", "{}")
        for ran in (kvfs("inspect", evil), kvfs("inspect", "--json", evil),
                    kvfs("encrypt", evil, "-o", fresh("ev"), "-k", OWNER),
                    kvfs("verify", path("ev"), "-k", READER),
                    kvfs("verify", evil, "-k", READER, code=1),
                    kvfs("encrypt", evil + "/none", "-o", path("ev2"), "-k", OWNER, code=1)):
            text = (ran.stdout + ran.stderr).encode(errors="surrogateescape")
            assert b"\x1b" not in text and b"\x07" not in text, text
            assert "\u202e".encode() not in text, text


def test_verify():
    out = path("out")
    name = "model-00002-of-00003.safetensors"
    with check("verify: the reference's files"):
        ran = verify(os.path.join(VECTORS, "good"), os.path.join(VECTORS, "keys/reader.jwks"))
        assert "WRONG" not in ran.stdout and "partial.cryptotensors" in ran.stderr, ran

    with check("verify: each file that must fail, by the check that it names"):
        with open(os.path.join(VECTORS, "manifest.json"), encoding="utf-8") as file:
            entries = json.load(file)["must_fail"]
        for entry in entries:
            keys = os.path.join(VECTORS, "keys", entry.get("keys", "reader.jwks"))
            ran = kvfs("verify", os.path.join(VECTORS, entry["file"]), "-k", keys, code=None)
            warned = entry["errno"] == "EACCES" or "plain" in entry["why"]
            assert ran.returncode == 1 or (warned and "warning" in ran.stderr), (entry, ran)

    with check("verify: a flipped bit is named with its tensor and chunk"):
        copy = fresh("tampered")
        kvfs("encrypt", path("src"), "-o", copy, "-k", OWNER, "-q", "--chunk-size", "1000")
        size = os.path.getsize(f"{copy}/{name}")
        with open(f"{copy}/{name}", "r+b") as file:
            begin = size - 300_000 - 16 + 5500
            file.seek(begin)
            byte = file.read(1)
            file.seek(begin)
            file.write(bytes([byte[0] ^ 0x10]))
        ran = verify(copy, READER, code=1)
        wrong = [line for line in ran.stdout.splitlines() if line.startswith("WRONG")]
        assert len(wrong) == 1 and name in wrong[0] and "layers.1." in wrong[0], ran
        assert "chunk 5" in wrong[0] and "1 file wrong, 9 in order" in ran.stdout, ran

    with check("verify: side files, links, missing and added files, against the manifest"):
        for what, says in (("edit", "config.json"), ("grow", "tokenizer.json"),
                           ("remove", "modeling.py"), ("bend", "alias"), ("swap", name),
                           ("plain", name)):
            copy = fresh("tampered")
            shutil.copytree(out, copy, symlinks=True)
            if what == "edit":
                write(f"{copy}/config.json", '{"architectures": ["Evil"]}')
            elif what == "grow":
                with open(f"{copy}/tokenizer.json", "ab") as file:
                    file.write(b" ")
            elif what == "remove":
                os.unlink(f"{copy}/modeling.py")
            elif what == "bend":
                os.unlink(f"{copy}/alias")
                os.symlink(".", f"{copy}/alias")
            elif what == "swap":
                shutil.copy(f"{copy}/model-00001-of-00003.safetensors", f"{copy}/{name}")
            else:
                shutil.copy(f"{path('src')}/{name}", f"{copy}/{name}")
            ran = verify(copy, READER, code=1)
            wrong = [line for line in ran.stdout.splitlines() if line.startswith("WRONG")]
            assert len(wrong) == 1 and says in wrong[0], (what, ran)
        copy = fresh("tampered")
        shutil.copytree(out, copy, symlinks=True)
        write(f"{copy}/evil.py", "x")
        assert "evil.py" in verify(copy, READER).stderr
        with open(f"{copy}/kvfs.manifest", "r+b") as file:
            file.seek(100)
            file.write(b"A" if file.read(1) != b"A" else b"B")
        assert "WRONG  kvfs.manifest" in verify(copy, READER, code=1).stdout

    with check("verify: unencrypted tensors are warned of, and authenticated by a manifest"):
        ran = verify(path("some"), READER)
        assert not ran.stderr, ran
        copy = fresh("tampered")
        shutil.copytree(path("some"), copy, symlinks=True)
        header, body = header_of(read(f"{copy}/{name}"))
        b, _ = header["layers.1.norm"]["data_offsets"]
        with open(f"{copy}/{name}", "r+b") as file:
            file.seek(os.path.getsize(f"{copy}/{name}") - len(body) + b)
            file.write(b"evil")
        assert "layers.1.norm" in verify(copy, READER, code=1).stdout
        os.unlink(f"{copy}/kvfs.manifest")
        ran = verify(copy, READER)
        assert "nothing vouches for 1 of 3 tensors" in ran.stderr, ran

    with check("verify: no key, the public key alone, nothing there, quiet"):
        assert "--key" in kvfs("verify", out, code=1).stderr
        assert "WRONG" in kvfs("verify", out, "-k", path("keys/public.jwk"), code=1).stdout
        kvfs("verify", path("none"), "-k", READER, code=1)
        ran = kvfs("verify", "-q", out, "-k", READER)
        assert not ran.stdout and not ran.stderr
        os.makedirs(path("void"), exist_ok=True)
        kvfs("verify", path("void"), "-k", READER, code=1)


# ---- the rest ----

def test_usage():
    with check("exit codes: 2 for a wrong command line, 0 for --help"):
        for args in (["encrypt"], ["encrypt", "x"], ["encrypt", "x", "-o"], ["encrypt", "--nope"],
                     ["encrypt", "x", "-o", "y", "--chunk-size", "0"],
                     ["encrypt", "x", "-o", "y", "--chunk-size", "5G"],
                     ["encrypt", "x", "-o", "y", "--chunk-size", "-1"],
                     ["encrypt", "x", "-o", "y", "--format-version", "3"],
                     ["encrypt", "x", "-o", "y", "-j", "0"], ["encrypt", "x", "z", "-o", "y"],
                     ["encrypt", "x", "-o", "y", "--no-manifest", "--generation", "2"],
                     ["rekey", "x"], ["rewrap", "x", "-o", "y"], ["inspect"], ["verify"],
                     ["verify", "a", "b"], ["keygen", "--kid", "", "x"], ["mount"], ["mount", "x"],
                     ["mount", "x", "y", "z"], ["umount"], ["umount", "a", "b"],
                     ["status", "a", "b"], ["reload"], ["reload", "a", "b"], ["login"], ["login", "a", "b"],
                     ["login", "https://a", "--wait", "x"], ["logout", "a", "b"],
                     ["login", "https://a", "--api-key", "kvfs_publish_x"],
                     ["login", "https://a", "--api-key", "f", "--api-key-fd", "3"],
                     ["publish"], ["publish", "x"], ["publish", "x", "-o", "y", "--no-manifest"],
                     ["publish", "x", "-o", "y", "--model", "a/b/c"], ["nonsense"], []):
            assert kvfs(*args, code=2).stderr, args
        for command in commands():
            assert f"kvfs {command}" in kvfs(command, "--help").stdout

    with check("a progress bar on a terminal"):
        big()
        main, side = pty.openpty()
        env = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen([KVFS, "encrypt", path("big"), "-o", fresh("bar"), "-k", OWNER],
                              stdout=side, stderr=side, env=env) as run:
            os.close(side)
            text = b""
            while True:
                if not select.select([main], [], [], 60)[0]:
                    break
                try:
                    part = os.read(main, 65536)
                except OSError:
                    break
                if not part:
                    break
                text += part
        os.close(main)
        assert run.returncode == 0 and b"iB/s" in text and b"6 files encrypted" in text, text
        assert b"%" in text and b"[#" in text and b"\r\x1b[K" in text, text


def main():
    os.umask(0o022)
    prepare()
    test_inspect()
    test_verify()
    test_usage()
    return finish()


sys.exit(main())
