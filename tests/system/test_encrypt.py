#!/usr/bin/env python3
"""keygen and encrypt: what they write, what they refuse before anything is written, and that sources
are only read."""
import json
import os
import shutil
import socket
import stat
import subprocess
import sys

from clitest import (KEYS, MIB, OWNER, READER, REGO, check, fresh, finish, header_of, kvfs,
                     manifest_of, model, names, path, read, refuses, secrets_of, tree, verify, write)
from kvfstest import KVFS, Skip, workdir


# ---- keygen ----

def test_keygen():
    with check("keygen: three files, their modes, the same kids in all of them"):
        ran = kvfs("keygen", KEYS)
        assert stat.S_IMODE(os.stat(KEYS).st_mode) == 0o700
        assert [stat.S_IMODE(os.stat(path("keys", f)).st_mode)
                for f in ("owner.jwks", "reader.jwks", "public.jwk")] == [0o600, 0o600, 0o644]
        owner, reader = json.loads(read(OWNER))["keys"], json.loads(read(READER))["keys"]
        public = json.loads(read(path("keys/public.jwk")))
        assert [k["kid"] for k in owner] == [k["kid"] for k in reader], owner
        assert owner[0] == reader[0] and owner[0]["alg"] == "aes256gcm"
        assert "d" in owner[1] and "d" not in reader[1] and "d" not in public
        assert public["kid"] == owner[1]["kid"] and public["x"] == owner[1]["x"]
        assert owner[0]["kid"] in ran.stdout and len(secrets_of(OWNER)) == 2

    with check("keygen: overwrites nothing"):
        before = tree(KEYS)
        assert "exists already" in kvfs("keygen", KEYS, code=1).stderr
        assert tree(KEYS) == before
        other = fresh("partial")
        os.mkdir(other)
        write(f"{other}/public.jwk", "mine")
        kvfs("keygen", other, code=1)
        assert names(other) == ["public.jwk"] and read(f"{other}/public.jwk") == b"mine"

    with check("keygen: algorithms and names"):
        for alg, length in (("aes128gcm", 16), ("aes256gcm", 32), ("chacha20poly1305", 32)):
            kvfs("keygen", "-o", fresh("k2"), "--alg", alg, "--kid", "acme")
            keys = json.loads(read(path("k2/owner.jwks")))["keys"]
            assert [k["kid"] for k in keys] == ["acme-master", "acme-sign"]
            assert keys[0]["alg"] == alg and len(keys[0]["k"].rstrip("=")) == -(-length * 8 // 6)

    with check("keygen: no directory, an unwritable one, a wrong algorithm"):
        kvfs("keygen", code=2)
        kvfs("keygen", "a", "b", code=2)
        assert "aes256gcm" in kvfs("keygen", "--alg", "des", fresh("k3"), code=2).stderr
        assert "No such file" in kvfs("keygen", path("none/such"), code=1).stderr
        write(fresh("k3"), "")
        kvfs("keygen", path("k3"), code=1)
        assert not os.path.exists(path("none"))


# ---- encrypt ----

def test_encrypt(src):
    out = fresh("out")
    with check("encrypt: a directory; the source is only read"):
        before = tree(src)
        os.mkdir(out)  # an empty one is welcome
        ran = kvfs("encrypt", src, "-o", out, "--key", OWNER)
        assert tree(src) == before
        assert names(out) == sorted(names(src) + ["kvfs.manifest"])
        for side in ("config.json", "tokenizer.json", "modeling.py", "sub/vocab.txt"):
            assert read(f"{src}/{side}") == read(f"{out}/{side}"), side
        assert os.readlink(f"{out}/sub/config.json") == "../config.json"
        assert os.readlink(f"{out}/alias") == "sub"
        assert "3 files encrypted" in ran.stdout and "generation 1" in ran.stdout

    with check("encrypt: every tensor is encrypted, keys and policy are in the header"):
        for i in (1, 2, 3):
            name = f"model-{i:05d}-of-00003.safetensors"
            plain, body = header_of(read(f"{src}/{name}"))
            header, encrypted = header_of(read(f"{out}/{name}"))
            meta = header["__metadata__"]
            tensors = json.loads(meta["__encryption__"])
            assert set(tensors) == set(plain) - {"__metadata__"} and meta["format"] == "pt"
            assert json.loads(meta["__crypto_keys__"])["version"] == "2"
            assert len(body) == len(encrypted) and body != encrypted
            assert body[:64] not in read(f"{out}/{name}")

    with check("encrypt: the header says what the keys' JWKs say: kid and, if there is one, jku"):
        with open(OWNER, encoding="utf-8") as file:
            jwks = json.load(file)
        header, _ = header_of(read(f"{out}/model-00001-of-00003.safetensors"))
        keys = json.loads(header["__metadata__"]["__crypto_keys__"])
        assert "jku" not in keys["enc"] and "jku" not in keys["sign"], keys
        for jwk in jwks["keys"]:
            jwk["jku"] = "koalavault://" + jwk["kty"]
        write(path("jku.jwks"), json.dumps(jwks))
        kvfs("encrypt", src, "-o", fresh("jku"), "-k", path("jku.jwks"), "-q")
        header, _ = header_of(read(path("jku/model-00001-of-00003.safetensors")))
        keys = json.loads(header["__metadata__"]["__crypto_keys__"])
        assert keys["enc"]["jku"] == "koalavault://oct", keys
        assert keys["sign"]["jku"] == "koalavault://okp", keys
        assert not verify(path("jku"), READER).stderr
        write(path("nokid.jwks"), json.dumps({"keys": [
            {k: v for k, v in jwk.items() if k != "kid" or jwk["kty"] == "okp"}
            for jwk in jwks["keys"]]}))
        kvfs("encrypt", src, "-o", fresh("nokid"), "-k", path("nokid.jwks"), "-q")
        verify(path("nokid"), path("nokid.jwks"))
        kvfs("rewrap", path("jku"), "-o", fresh("rewrapped"), "-k", OWNER, "--to-key", OWNER, "-q")
        header, _ = header_of(read(path("rewrapped/model-00001-of-00003.safetensors")))
        assert "jku" not in header["__metadata__"]["__crypto_keys__"]

    with check("encrypt: the manifest lists everything else"):
        listed = {e["path"]: e["kind"] for e in manifest_of(out)["entries"]}
        assert listed == {**{f"model-{i:05d}-of-00003.safetensors": "shard" for i in (1, 2, 3)},
                          "config.json": "file", "tokenizer.json": "file", "modeling.py": "file",
                          "sub/vocab.txt": "file", "sub/config.json": "link", "alias": "link"}, listed

    with check("encrypt: what it wrote verifies"):
        ran = verify(out, READER)
        assert "10 files in order" in ran.stdout and not ran.stderr, ran

    with check("encrypt: overwrites nothing, writes nothing into the source"):
        before = tree(out)
        assert "not empty" in kvfs("encrypt", src, "-o", out, "--key", OWNER, code=1).stderr
        assert tree(out) == before
        os.symlink(src, fresh("to-src"))
        for inside in (f"{src}/new", f"{src}/sub", f"{path('to-src')}/new", src):
            ran = kvfs("encrypt", src, "-o", inside, "--key", OWNER, code=1)
            assert "choose another place" in ran.stderr, ran
        assert not os.path.exists(f"{src}/new")
        write(fresh("taken"), "mine")
        kvfs("encrypt", src, "-o", path("taken"), "--key", OWNER, code=1)
        one = f"{src}/model-00001-of-00003.safetensors"
        kvfs("encrypt", one, "-o", path("taken"), "--key", OWNER, code=1)
        assert read(path("taken")) == b"mine"

    with check("encrypt: one file; a manifest only if asked for"):
        one = f"{src}/model-00001-of-00003.safetensors"
        os.mkdir(fresh("single"))
        kvfs("encrypt", one, "-o", path("single/a.safetensors"), "-k", OWNER)
        assert names(path("single")) == ["a.safetensors"]
        verify(path("single/a.safetensors"), READER)
        kvfs("encrypt", one, "-o", path("single/b.safetensors"), "-k", OWNER, "--manifest")
        assert manifest_of(path("single"))["entries"][0]["path"] == "b.safetensors"
        verify(path("single/b.safetensors"), READER)
        ran = kvfs("encrypt", one, "-o", path("single/c"), "-k", OWNER, "--manifest", code=1)
        assert "kvfs.manifest" in ran.stderr and not os.path.exists(path("single/c"))
        kvfs("encrypt", one, "-o", path("single/d"), "-k", OWNER, "--resume", code=2)
        kvfs("encrypt", one, "-o", path("none/d"), "-k", OWNER, code=1)
        assert "no safetensors" in kvfs("encrypt", f"{src}/config.json", "-o", path("single/e"),
                                        "-k", OWNER, code=1).stderr
        assert names(path("single")) == ["a.safetensors", "b.safetensors", "kvfs.manifest"]

    with check("encrypt: versions, chunk sizes, generation, no manifest, quiet"):
        for version, chunk in (("1", "2M"), ("2", "1000"), ("2", "64K")):
            ran = kvfs("encrypt", src, "-o", fresh("v"), "-k", OWNER, "--format-version", version,
                       "--chunk-size", chunk, "--generation", "7", "-q", "-j", "1")
            assert not ran.stdout and not ran.stderr, ran
            assert manifest_of(path("v"))["generation"] == 7
            verify(path("v"), READER)
            found = json.loads(kvfs("inspect", "--json", path("v")).stdout)["files"]
            one = [f for f in found if f["kind"] == "encrypted"][0]
            assert one["version"] == int(version), one
            if version == "2":
                assert one["chunk_size"] == {"1000": 1000, "64K": 65536}[chunk]
        ran = kvfs("encrypt", src, "-o", fresh("v"), "-k", OWNER, "--no-manifest")
        assert "kvfs.manifest" not in names(path("v")) and "no manifest" in ran.stderr

    with check("encrypt: only some tensors; the manifest vouches for the others"):
        ran = kvfs("encrypt", src, "-o", fresh("some"), "-k", OWNER, "--skip-tensors", "*.norm",
                   "--skip-tensors", "*.absent")
        assert "1 of 3 tensors left unencrypted" in ran.stdout and "*.absent" in ran.stderr, ran
        header, body = header_of(read(path("some/model-00002-of-00003.safetensors")))
        assert set(json.loads(header["__metadata__"]["__encryption__"])) == {"layers.1.weight",
                                                                              "empty"}
        plain, plain_body = header_of(read(f"{src}/model-00002-of-00003.safetensors"))
        b, e = plain["layers.1.norm"]["data_offsets"]
        assert body[b:e] == plain_body[b:e]
        verify(path("some"), READER)
        kvfs("encrypt", src, "-o", fresh("only"), "-k", OWNER, "--tensors", "*.weight")
        header, _ = header_of(read(path("only/model-00002-of-00003.safetensors")))
        assert set(json.loads(header["__metadata__"]["__encryption__"])) == {"layers.1.weight"}

    with check("encrypt: a policy; one that kvfs can't read is warned of"):
        write(path("ok.rego"), REGO)
        write(path("odd.rego"), "package model\nallow = time.now_ns() > 0\n")
        ran = kvfs("encrypt", src, "-o", fresh("p"), "-k", OWNER, "--policy", path("ok.rego"),
                   "--remote-policy", path("odd.rego"))
        assert not ran.stderr, ran
        header, _ = header_of(read(path("p/model-00001-of-00003.safetensors")))
        policy = json.loads(header["__metadata__"]["__policy__"])
        assert policy == {"local": REGO, "remote": read(path("odd.rego")).decode()}
        ran = kvfs("encrypt", src, "-o", fresh("p"), "-k", OWNER, "--policy", path("odd.rego"))
        assert "refuse every file" in ran.stderr, ran
        write(path("big.rego"), "package model\nallow = true\n" + "#" * 70000)
        refuses(src, "--policy", path("big.rego"), says="big.rego")
        refuses(src, "--policy", path("none.rego"), says="none.rego")


def test_refusals(src):
    shard = read(f"{src}/model-00001-of-00003.safetensors")
    odd = {
        "a.bin": b"x", "a.pt": b"x", "a.pth": b"x", "a.ckpt": b"x", "a.gguf": b"x",
        "a.onnx": b"x", "a.h5": b"x", "a.msgpack": b"x", "a.pkl": b"x", "a.npz": b"x",
        "A.BIN": b"x", "zip": b"PK\x03\x04rest", "pickle": b"\x80\x04rest", "ggufish": b"GGUFrest",
        "hdf": b"\x89HDF\r\n\x1a\n", "array": b"\x93NUMPY1", "sub/deep.bin": b"",
        "archive": b"\x1f\x8b\x08rest",
    }
    with check("encrypt: weights that it can't encrypt are listed, by name or content"):
        for name, data in odd.items():
            write(f"{src}/{name}", data)
        ran = refuses(src, says=list(odd) + ["--exclude", "--copy-plain", "nothing was written"])
        assert "config.json" not in ran.stderr
        refuses(f"{src}/a.gguf", says="GGUF")

    with check("encrypt: --exclude and --copy-plain let it go on"):
        args = [arg for name in list(odd)[1:] for arg in ("--exclude", name)]
        kvfs("encrypt", src, "-o", fresh("o"), "-k", OWNER, *args, "--copy-plain", "a.b*")
        assert read(path("o/a.bin")) == b"x" and "a.gguf" not in names(path("o"))
        kinds = {e["path"]: e["kind"] for e in manifest_of(path("o"))["entries"]}
        assert kinds["a.bin"] == "file"
        verify(path("o"), READER)
        kvfs("encrypt", src, "-o", fresh("o"), "-k", OWNER, *args, "--exclude", "a.bin",
             "--exclude", "su[b]", "--exclude", "alias")
        assert not os.path.exists(path("o/sub"))
        ran = refuses(src, *args, "--exclude", "a.bin", "--exclude", "sub/*.txt", "--exclude",
                      "nothing.like.it", "--exclude", "model-*", says="no safetensors file")
        for name in odd:
            os.unlink(f"{src}/{name}")

    with check("encrypt: large files of unknown kind count as weights, text does not"):
        with open(f"{src}/unknown", "wb") as file:
            file.write(b"\0\1\2")
            file.truncate(65 * MIB)
        refuses(src, says="unknown kind")
        write(f"{src}/unknown", b"text " * (13 * MIB + MIB // 5))
        kvfs("encrypt", src, "-o", fresh("o"), "-k", OWNER, "-q")
        os.unlink(f"{src}/unknown")

    with check("encrypt: damaged safetensors, pointers of git-lfs, what is encrypted already"):
        bad = {
            "cut.safetensors": shard[:-1], "none.safetensors": b"not at all",
            "blob-without-extension": shard + b"x", "empty.safetensors": b"",
            "lfs.safetensors": b"version https://git-lfs.github.com/spec/v1\n",
        }
        for name, data in bad.items():
            write(f"{src}/{name}", data)
        refuses(src, says=list(bad) + ["git lfs pull"])
        for name in bad:
            os.unlink(f"{src}/{name}")
        shutil.copy(path("out/model-00001-of-00003.safetensors"), f"{src}/twice.safetensors")
        refuses(src, says=["twice.safetensors", "rewrap"])
        refuses(f"{src}/twice.safetensors", says="rewrap")
        os.unlink(f"{src}/twice.safetensors")

    with check("encrypt: weights without extension are found by content"):
        write(f"{src}/blobs/0123abcd", shard)
        os.symlink("../blobs/0123abcd", f"{src}/sub/model.safetensors")
        kvfs("encrypt", src, "-o", fresh("o"), "-k", OWNER, "-q")
        assert b"__encryption__" in read(path("o/sub/model.safetensors"))
        verify(path("o"), READER)
        os.unlink(f"{src}/sub/model.safetensors")
        shutil.rmtree(f"{src}/blobs")

    with check("encrypt: links that are absolute, leave, lead nowhere or to what is left out"):
        for name, target in (("absolute", f"{src}/config.json"), ("leaves", "../keys"),
                             ("nowhere", "no-such"), ("self", "self"),
                             ("sub/far", "../../src/config.json")):
            os.symlink(target, f"{src}/{name}")
            refuses(src, says=name)
            kvfs("encrypt", src, "-o", fresh("o"), "-k", OWNER, "-q", "--exclude",
                 os.path.basename(name))
            os.unlink(f"{src}/{name}")
        os.symlink("modeling.py", f"{src}/to-code")
        refuses(src, "--exclude", "modeling.py", says=["to-code", "left out"])
        os.unlink(f"{src}/to-code")

    with check("encrypt: pipes, sockets, names that are not UTF-8"):
        os.mkfifo(f"{src}/pipe")
        refuses(src, says="pipe")
        os.unlink(f"{src}/pipe")
        with socket.socket(socket.AF_UNIX) as sock:
            here = os.getcwd()
            os.chdir(src)
            sock.bind("sock")
            os.chdir(here)
            refuses(src, says="sock")
        os.unlink(f"{src}/sock")
        name = os.fsencode(src) + b"/\xff\xfe"
        write(name, b"x")
        refuses(src, says="\\xff\\xfe")
        os.unlink(name)

    with check("encrypt: what can't be read is named, before anything is written"):
        write(f"{src}/secret.json", "{}")
        os.chmod(f"{src}/secret.json", 0)
        user = []
        if os.geteuid() == 0:
            user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
            for name in (KEYS, workdir()):
                os.chmod(name, 0o755)
            os.chmod(OWNER, 0o644)
        os.mkdir(fresh("mine"))
        os.chmod(path("mine"), 0o777)
        try:
            done = subprocess.run([*user, KVFS, "encrypt", src, "-o", path("mine/out"), "-k", OWNER],
                                  stderr=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
        finally:
            os.chmod(OWNER, 0o600)
            os.chmod(KEYS, 0o700)
            os.unlink(f"{src}/secret.json")
        if b"Permission denied" in done.stderr and KVFS.encode() in done.stderr:
            raise Skip("another user can't run the binary")
        assert done.returncode == 1 and b"secret.json" in done.stderr, done
        assert b"may be read by everybody" in done.stderr or not user
        assert not os.listdir(path("mine"))

    with check("encrypt: a manifest of the source is not taken along"):
        write(f"{src}/kvfs.manifest", "old")
        write(f"{src}/sub/kvfs.manifest", "old")
        kvfs("encrypt", src, "-o", fresh("o"), "-k", OWNER, "-q")
        assert not os.path.exists(path("o/sub/kvfs.manifest"))
        assert read(path("o/kvfs.manifest")) != b"old"
        os.unlink(f"{src}/kvfs.manifest")
        os.unlink(f"{src}/sub/kvfs.manifest")

    with check("encrypt: nothing to encrypt, no source, no keys, no signing key"):
        os.mkdir(fresh("void"))
        refuses(path("void"), says="no safetensors file")
        refuses(path("none"), says="No such file")
        out = fresh("refused")
        assert "CRYPTOTENSOR_KEYS" in kvfs("encrypt", src, "-o", out, code=1).stderr
        kvfs("encrypt", src, "-o", out, "-k", READER, code=1)
        kvfs("encrypt", src, "-o", out, "-k", path("none"), code=1)
        kvfs("encrypt", src, "-o", out, "-k", OWNER, "--master-kid", "none", code=1)
        write(path("junk.jwks"), "{")
        kvfs("encrypt", src, "-o", out, "-k", path("junk.jwks"), code=1)
        assert not os.path.exists(out)

    with check("keys: from the environment, from a directory, from a pipe"):
        kvfs("encrypt", src, "-o", fresh("o"), "-q", env={"CRYPTOTENSOR_KEYS": read(OWNER).decode()})
        verify(path("o"), KEYS)
        ran = subprocess.run(["bash", "-c", '"$0" verify "$1" -k <(cat "$2")', KVFS, path("o"), READER],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert ran.returncode == 0, ran


def main():
    os.umask(0o022)
    test_keygen()
    src = model("src")
    test_encrypt(src)
    test_refusals(src)
    return finish()


sys.exit(main())
