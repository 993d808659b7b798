#!/usr/bin/env python3
"""The tools, without mounts: keygen, encrypt, rewrap, rekey, inspect, verify; what they refuse, what
they leave behind when they are stopped, exit codes, man pages and completion."""
import contextlib
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KVFS = os.environ["KVFS"]
VECTORS = os.path.join(ROOT, "tests/vectors")
VECTOR_KEYS = os.path.join(VECTORS, "keys/reader.jwks")
MAN = os.path.join(ROOT, "kvfs/man")
MIB = 1 << 20

work = tempfile.mkdtemp(prefix="kvfs-cli-")
failed = 0
said = []  # all that kvfs ever printed: no secret may be in it


class Skip(Exception):
    pass


@contextlib.contextmanager
def check(name):
    global failed
    try:
        yield
        print(f"ok {name}")
    except Skip as why:
        print(f"skip {name}: {why}")
    except Exception as error:
        failed += 1
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"FAIL {name}: {error!r} (line {where.lineno}: {where.line})")
    sys.stdout.flush()


class Ran:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n{self.out}{self.err}"


def kvfs(*args, code=0, **options):
    environ = {k: v for k, v in os.environ.items() if k != "CRYPTOTENSOR_KEYS"}
    environ.update(options.pop("env", {}))
    done = subprocess.run([KVFS, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=environ, timeout=120, check=False, **options)
    said.append(done.stdout + done.stderr)
    ran = Ran(done.returncode, done.stdout.decode(errors="surrogateescape"),
              done.stderr.decode(errors="surrogateescape"))
    assert code is None or ran.code == code, (args, ran)
    return ran


def path(*parts):
    return os.path.join(work, *parts)


def fresh(name):
    shutil.rmtree(path(name), ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path(name))
    return path(name)


def read(name):
    with open(name, "rb") as file:
        return file.read()


def write(name, data):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    with open(name, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def safetensors(tensors, metadata=None, seed=b"x"):
    """{name: (dtype, shape, bytes)} as a file, in the order given."""
    header, body = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(body), len(body) + size]}
        noise = hashlib.shake_256(seed + name.encode()).digest(min(size, 65536))
        body += (noise * (size // max(1, len(noise)) + 1))[:size]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def model(name, shards=3, size=300_000):
    """A small model directory with side files, a subdirectory and links."""
    top = fresh(name)
    for i in range(shards):
        write(f"{top}/model-{i + 1:05d}-of-{shards:05d}.safetensors",
              safetensors({f"layers.{i}.weight": ("F32", [size // 4], size // 4 * 4),
                           f"layers.{i}.norm": ("F16", [8], 16), "empty": ("F32", [0], 0)},
                          {"format": "pt"}, seed=bytes([i])))
    write(f"{top}/config.json", '{"architectures": ["Made"]}')
    write(f"{top}/tokenizer.json", b"[" + b"1," * MIB + b"1]")
    write(f"{top}/modeling.py", "print('hello')\n")
    write(f"{top}/sub/vocab.txt", "a\nb\n")
    os.symlink("../config.json", f"{top}/sub/config.json")
    os.symlink("sub", f"{top}/alias")
    return top


def tree(top):
    """Everything that must not change in a source."""
    found = {}
    for where, dirs, files in os.walk(top):
        for one in dirs + files:
            full = os.path.join(where, one)
            st = os.lstat(full)
            content = (os.readlink(full) if stat.S_ISLNK(st.st_mode)
                       else hashlib.sha256(read(full)).hexdigest() if stat.S_ISREG(st.st_mode)
                       else "")
            found[os.path.relpath(full, top)] = (st.st_mode, st.st_mtime_ns, content)
    return found


def names(top):
    return sorted(os.path.relpath(os.path.join(where, one), top)
                  for where, _, files in os.walk(top) for one in files)


def header_of(data):
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + n]), data[8 + n:]


def manifest_of(top):
    jws = json.loads(read(os.path.join(top, "kvfs.manifest")))
    import base64
    text = jws["payload"]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def verify(top, keys, code=0):
    return kvfs("verify", top, "--key", keys, code=code)


def refuses(*args, says, code=1):
    """The output must not be there afterwards."""
    out = fresh("refused")
    ran = kvfs("encrypt", *args, "-o", out, "--key", OWNER, code=code)
    for text in [says] if isinstance(says, str) else says:
        assert text in ran.err, (text, ran)
    assert not os.path.lexists(out), names(out)
    return ran


KEYS = path("keys")
OWNER = path("keys/owner.jwks")
READER = path("keys/reader.jwks")


# ---- keygen ----

def secrets_of(name):
    return [key[m] for key in json.loads(read(name))["keys"] for m in ("k", "d") if m in key]


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
        assert owner[0]["kid"] in ran.out and len(secrets_of(OWNER)) == 2

    with check("keygen: overwrites nothing"):
        before = tree(KEYS)
        assert "exists already" in kvfs("keygen", KEYS, code=1).err
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
        assert "aes256gcm" in kvfs("keygen", "--alg", "des", fresh("k3"), code=2).err
        assert "No such file" in kvfs("keygen", path("none/such"), code=1).err
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
        assert "3 files encrypted" in ran.out and "generation 1" in ran.out

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

    with check("encrypt: the manifest lists everything else"):
        listed = {e["path"]: e["kind"] for e in manifest_of(out)["entries"]}
        assert listed == {**{f"model-{i:05d}-of-00003.safetensors": "shard" for i in (1, 2, 3)},
                          "config.json": "file", "tokenizer.json": "file", "modeling.py": "file",
                          "sub/vocab.txt": "file", "sub/config.json": "link", "alias": "link"}, listed

    with check("encrypt: what it wrote verifies"):
        ran = verify(out, READER)
        assert "11 files in order" in ran.out and not ran.err, ran

    with check("encrypt: overwrites nothing, writes nothing into the source"):
        before = tree(out)
        assert "not empty" in kvfs("encrypt", src, "-o", out, "--key", OWNER, code=1).err
        assert tree(out) == before
        os.symlink(src, fresh("to-src"))
        for inside in (f"{src}/new", f"{src}/sub", f"{path('to-src')}/new", src):
            ran = kvfs("encrypt", src, "-o", inside, "--key", OWNER, code=1)
            assert "choose another place" in ran.err, ran
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
        assert "kvfs.manifest" in ran.err and not os.path.exists(path("single/c"))
        kvfs("encrypt", one, "-o", path("single/d"), "-k", OWNER, "--resume", code=2)
        kvfs("encrypt", one, "-o", path("none/d"), "-k", OWNER, code=1)
        assert "no safetensors" in kvfs("encrypt", f"{src}/config.json", "-o", path("single/e"),
                                        "-k", OWNER, code=1).err
        assert names(path("single")) == ["a.safetensors", "b.safetensors", "kvfs.manifest"]

    with check("encrypt: versions, chunk sizes, generation, no manifest, quiet"):
        for version, chunk in (("1", "2M"), ("2", "1000"), ("2", "64K")):
            ran = kvfs("encrypt", src, "-o", fresh("v"), "-k", OWNER, "--format-version", version,
                       "--chunk-size", chunk, "--generation", "7", "-q", "-j", "1")
            assert not ran.out and not ran.err, ran
            assert manifest_of(path("v"))["generation"] == 7
            verify(path("v"), READER)
            found = json.loads(kvfs("inspect", "--json", path("v")).out)["files"]
            one = [f for f in found if f["kind"] == "encrypted"][0]
            assert one["version"] == int(version), one
            if version == "2":
                assert one["chunk_size"] == {"1000": 1000, "64K": 65536}[chunk]
        ran = kvfs("encrypt", src, "-o", fresh("v"), "-k", OWNER, "--no-manifest")
        assert "kvfs.manifest" not in names(path("v")) and "no manifest" in ran.err

    with check("encrypt: only some tensors; the manifest vouches for the others"):
        ran = kvfs("encrypt", src, "-o", fresh("some"), "-k", OWNER, "--skip-tensors", "*.norm",
                   "--skip-tensors", "*.absent")
        assert "1 of 3 tensors left unencrypted" in ran.out and "*.absent" in ran.err, ran
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
        rego = 'package model\nimport rego.v1\ndefault allow := false\nallow if input.uid == 0\n'
        write(path("ok.rego"), rego)
        write(path("odd.rego"), "package model\nallow = time.now_ns() > 0\n")
        ran = kvfs("encrypt", src, "-o", fresh("p"), "-k", OWNER, "--policy", path("ok.rego"),
                   "--remote-policy", path("odd.rego"))
        assert not ran.err, ran
        header, _ = header_of(read(path("p/model-00001-of-00003.safetensors")))
        policy = json.loads(header["__metadata__"]["__policy__"])
        assert policy == {"local": rego, "remote": read(path("odd.rego")).decode()}
        ran = kvfs("encrypt", src, "-o", fresh("p"), "-k", OWNER, "--policy", path("odd.rego"))
        assert "refuse every file" in ran.err, ran
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
        assert "config.json" not in ran.err
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
        refuses(src, "--exclude", "config.json", "--exclude", "tokenizer.json", says="sub/config.json"
                ) if False else None
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
            for name in (KEYS, work):
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
        assert "CRYPTOTENSOR_KEYS" in kvfs("encrypt", src, "-o", out, code=1).err
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


# ---- stopped, and gone on ----

def big(name="big", shards=6, size=24 * MIB):
    top = fresh(name)
    for i in range(shards):
        write(f"{top}/m{i}.safetensors",
              safetensors({"w": ("U8", [size], size)}, {"format": "pt"}, seed=bytes([i])))
        write(f"{top}/side{i}.json", "{}")
    return top


def leftovers(top):
    return [n for n in names(top) if n.endswith(".tmp") or n.startswith(".kvfs")]


def test_resume(src):
    """src is big()."""
    with check("kill -9 at any time, then --resume: finished files are kept, the rest is made"):
        out, kept = fresh("killed"), {}
        for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
            args = ["--resume"] if os.path.exists(out) else []
            with subprocess.Popen([KVFS, "encrypt", src, "-o", out, "-k", OWNER, *args],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
                time.sleep(delay)
                run.kill()
            if os.path.exists(out) and not os.path.exists(f"{out}/kvfs.manifest"):
                for name in names(out):
                    if not name.startswith("."):
                        assert len(read(f"{out}/{name}")) >= len(read(f"{src}/{name}")), name
        for name in names(out):
            kept[name] = os.stat(f"{out}/{name}").st_ino
        noted = leftovers(out)
        if noted or not kept:
            kvfs("encrypt", src, "-o", out, "-k", OWNER, *(["--resume"] if kept else []))
        assert not leftovers(out), leftovers(out)
        verify(out, READER)
        assert names(out) == sorted(names(src) + ["kvfs.manifest"])

    with check("interrupted: exit 1, no half-written file, and it says how to go on"):
        out = fresh("stopped")
        with subprocess.Popen([KVFS, "encrypt", src, "-o", out, "-k", OWNER, "-j", "1"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            run.stdout.readline()  # the first model is finished
            run.send_signal(signal.SIGINT)
            out_text, err = run.communicate(timeout=60)
        if run.returncode == 0:
            raise Skip("it was faster than the signal")
        assert run.returncode == 1 and b"interrupted" in err and b"--resume" in err, err
        assert leftovers(out) == [".kvfs-unfinished.json"] and "kvfs.manifest" not in names(out)
        assert "unfinished" in kvfs("encrypt", src, "-o", out, "-k", OWNER, code=1).err

    with check("--resume: another option, another key, another source are refused"):
        before = tree(out)
        for more in (["--chunk-size", "1M"], ["--generation", "2"], ["--exclude", "*.txt"],
                     ["--format-version", "1"], ["--skip-tensors", "w"], ["--no-manifest"]):
            ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", *more, code=1)
            assert "must be the same" in ran.err, ran
        kvfs("keygen", fresh("other-keys"))
        kvfs("encrypt", src, "-o", out, "-k", path("other-keys/owner.jwks"), "--resume", code=1)
        ran = kvfs("rekey", path("out"), "-o", out, "-k", OWNER, "--resume", code=1)
        assert tree(out) == before

    with check("--resume: a forged note is refused, foreign files are left alone"):
        write(f"{out}/mine.txt", "mine")
        ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=1)
        assert "mine.txt" in ran.err and read(f"{out}/mine.txt") == b"mine"
        os.unlink(f"{out}/mine.txt")
        note = read(f"{out}/.kvfs-unfinished.json")
        write(f"{out}/.kvfs-unfinished.json", note.replace(b'"payload":"e', b'"payload":"f'))
        kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=1)
        write(f"{out}/.kvfs-unfinished.json", note)

    with check("--resume: a changed source and a changed output are made anew, the rest is kept"):
        done = [n for n in names(out) if n.endswith(".safetensors")]
        sides = [n for n in names(out) if n.startswith("side")]
        write(f"{src}/side0.json", "{ }")
        with open(f"{out}/{done[0]}", "r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"?")
        ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume")
        assert "earlier run" in ran.out or len(done) + len(sides) < 3, ran
        assert read(f"{out}/side0.json") == b"{ }" and not leftovers(out)
        verify(out, READER)

    with check("--resume: nothing to go on with; and one that was not begun starts"):
        ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=1)
        assert "no unfinished run" in ran.err
        kvfs("encrypt", path("src"), "-o", fresh("anew"), "-k", OWNER, "--resume")
        verify(path("anew"), READER)

    with check("two runs at once: the second one is refused"):
        out = fresh("both")
        with subprocess.Popen([KVFS, "encrypt", src, "-o", out, "-k", OWNER, "-j", "1"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            run.stdout.readline()
            second = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=None)
            run.communicate(timeout=60)
        if "another run" not in second.err:
            raise Skip("the first one was too fast")
        assert run.returncode == 0
        verify(out, READER)


FULL = """
set -e
mount -t tmpfs -o size=60m tmpfs "$1/full"
set +e
"$KVFS" encrypt "$1/big" -o "$1/full/out" -k "$1/keys/owner.jwks" >"$1/full.out" 2>"$1/full.err"
echo "first $?"
ls -A "$1/full/out"
mount -o remount,size=600m "$1/full"
"$KVFS" encrypt "$1/big" -o "$1/full/out" -k "$1/keys/owner.jwks" --resume -q
echo "second $?"
"$KVFS" verify "$1/full/out" -k "$1/keys/reader.jwks" -q
echo "third $?"
mount -o remount,size=600m "$1/full"
"$KVFS" rekey "$1/full/out" -o "$1/full/again" -k "$1/keys/owner.jwks" -q
echo "fourth $?"
"""


def test_disk_full():
    with check("disk full: a sentence, nothing half-written, and --resume when there is room"):
        if os.geteuid() != 0:
            raise Skip("needs root for a small tmpfs")
        os.makedirs(path("full"), exist_ok=True)
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", FULL, "-",
                               work], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        text = done.stdout.decode()
        if "first" not in text:
            raise Skip("no tmpfs here: " + text.strip())
        err = read(path("full.err")).decode()
        assert "first 1" in text and "No space left" in err, (text, err)
        assert "room for" in err and "--resume" in err, err
        before = text.split("first 1")[1].split("second")[0].split()
        assert all(not n.endswith(".tmp") for n in before) and "kvfs.manifest" not in before, before
        assert "second 0" in text and "third 0" in text and "fourth 0" in text, text

    with check("disk full at the first file: nothing is left"):
        if os.geteuid() != 0:
            raise Skip("needs root for a small tmpfs")
        script = ('mount -t tmpfs -o size=1m tmpfs "$1/full" || exit 9; "$KVFS" encrypt '
                  '"$1/big/m0.safetensors" -o "$1/full/a" -k "$1/keys/owner.jwks" 2>&1; echo $?; '
                  'mkdir "$1/full/d"; "$KVFS" encrypt "$1/big" -o "$1/full/d/out" --exclude "*.json" '
                  '-k "$1/keys/owner.jwks" 2>&1; echo $?; ls -A "$1/full" "$1/full/d"')
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", script,
                               "-", work], stdout=subprocess.PIPE, check=False)
        text = done.stdout.decode()
        if done.returncode == 9:
            raise Skip("no tmpfs here")
        assert text.count("No space left") == 2 and "out" not in text.split("\n1\n")[-1], text


# ---- rewrap, rekey ----

def test_rewrap():
    out = path("out")
    kvfs("keygen", fresh("new"), "--kid", "new")
    new = path("new/owner.jwks")
    master_only = path("master.jwk")
    write(master_only, json.dumps(json.loads(read(new))["keys"][0]))
    with check("rewrap: new keys read it, the old ones do not; bodies are the same"):
        before = tree(out)
        ran = kvfs("rewrap", out, "-o", fresh("w"), "-k", OWNER, "--to-key", new)
        assert tree(out) == before and "3 files rewrapped" in ran.out
        verify(path("w"), path("new/reader.jwks"))
        assert "no verification key" in verify(path("w"), READER, code=1).out
        for i in (1, 2, 3):
            name = f"model-{i:05d}-of-00003.safetensors"
            assert header_of(read(f"{out}/{name}"))[1] == header_of(read(path("w", name)))[1]
        assert manifest_of(path("w")) == manifest_of(out)
        assert os.readlink(path("w/alias")) == "sub"

    with check("rewrap: with the same signing key the manifest is taken along as it is"):
        kvfs("rewrap", out, "-o", fresh("w2"), "-k", OWNER, "--to-key", master_only)
        assert read(path("w2/kvfs.manifest")) == read(f"{out}/kvfs.manifest")
        both = path("both.jwks")
        write(both, json.dumps({"keys": [json.loads(read(new))["keys"][0],
                                         json.loads(read(READER))["keys"][1]]}))
        verify(path("w2"), both)

    with check("rewrap: side files that are not what was signed, added, missing ones, bent links"):
        for what in ("edit", "add", "remove", "bend"):
            copy = fresh("tampered")
            shutil.copytree(out, copy, symlinks=True)
            if what == "edit":
                write(f"{copy}/config.json", '{"architectures": ["Evil"]}')
            elif what == "add":
                write(f"{copy}/evil.py", "x")
            elif what == "remove":
                os.unlink(f"{copy}/modeling.py")
            else:
                os.unlink(f"{copy}/sub/config.json")
                os.symlink("../tokenizer.json", f"{copy}/sub/config.json")
            for command in ("rewrap", "rekey"):
                ran = kvfs(command, copy, "-o", fresh("w3"), "-k", OWNER, "--to-key", new,
                           code=0 if what == "add" else 1)
                if what == "add":
                    assert "evil.py" in ran.err and "evil.py" not in names(path("w3"))
                else:
                    assert "manifest" in ran.err and "kvfs.manifest" not in (
                        names(path("w3")) if os.path.exists(path("w3")) else []), ran

    with check("rewrap: a shard of another release, and one without its signature"):
        copy = fresh("tampered")
        shutil.copytree(out, copy, symlinks=True)
        shutil.copy(f"{out}/model-00001-of-00003.safetensors",
                    f"{copy}/model-00002-of-00003.safetensors")
        for command in ("rewrap", "rekey"):
            ran = kvfs(command, copy, "-o", fresh("w3"), "-k", OWNER, "--to-key", new, code=1)
            assert "model-00002" in ran.err, ran

    with check("rewrap: another algorithm, wrong keys, no new key"):
        kvfs("keygen", fresh("cc20"), "--alg", "chacha20poly1305")
        ran = kvfs("rewrap", out, "-o", fresh("w3"), "-k", OWNER, "--to-key",
                   path("cc20/owner.jwks"), code=1)
        assert "rekey" in ran.err and not os.path.exists(path("w3")), ran
        kvfs("rewrap", out, "-o", fresh("w3"), "-k", new, "--to-key", new, code=1)
        kvfs("rewrap", out, "-o", fresh("w3"), "-k", OWNER, code=2)
        kvfs("rewrap", path("src"), "-o", fresh("w3"), "-k", OWNER, "--to-key", new, code=1)

    with check("rewrap: one file; a directory without manifest, and with a new one"):
        kvfs("rewrap", f"{out}/model-00001-of-00003.safetensors", "-o", fresh("w4"), "-k", OWNER,
             "--to-key", new)
        verify(path("w4"), path("new/reader.jwks"))
        kvfs("encrypt", path("src"), "-o", fresh("bare"), "-k", OWNER, "-q", "--no-manifest")
        ran = kvfs("rewrap", path("bare"), "-o", fresh("w5"), "-k", OWNER, "--to-key", new)
        assert "no manifest" in ran.err and "kvfs.manifest" not in names(path("w5"))
        kvfs("rewrap", path("bare"), "-o", fresh("w5"), "-k", OWNER, "--to-key", new, "--manifest")
        assert "11 files in order" in verify(path("w5"), path("new/reader.jwks")).out

    with check("rekey: new bodies, the next generation; other cipher; source untouched"):
        before = tree(out)
        kvfs("rekey", out, "-o", fresh("r"), "-k", OWNER)
        assert tree(out) == before
        assert manifest_of(path("r"))["generation"] == manifest_of(out)["generation"] + 1
        name = "model-00001-of-00003.safetensors"
        assert header_of(read(f"{out}/{name}"))[1] != header_of(read(path("r", name)))[1]
        verify(path("r"), READER)
        kvfs("rekey", out, "-o", fresh("r"), "-k", OWNER, "--to-key", path("cc20/owner.jwks"),
             "--generation", "9", "--chunk-size", "4096")
        verify(path("r"), path("cc20/reader.jwks"))
        assert manifest_of(path("r"))["generation"] == 9
        kvfs("rekey", path("r"), "-o", fresh("r2"), "-k", path("cc20/owner.jwks"), "--generation",
             "8", code=1)

    with check("rekey: a damaged source is refused, and named"):
        copy = fresh("tampered")
        shutil.copytree(out, copy, symlinks=True)
        with open(f"{copy}/{name}", "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1000, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        ran = kvfs("rekey", copy, "-o", fresh("r3"), "-k", OWNER, code=1)
        assert name in ran.err and "tag" in ran.err, ran
        assert name not in (names(path("r3")) if os.path.exists(path("r3")) else [])

    with check("rekey: which tensors are encrypted, and the policy, stay"):
        kvfs("rekey", path("some"), "-o", fresh("r4"), "-k", OWNER)
        header, _ = header_of(read(path("r4/model-00002-of-00003.safetensors")))
        assert set(json.loads(header["__metadata__"]["__encryption__"])) == {"layers.1.weight",
                                                                              "empty"}
        verify(path("r4"), READER)
        kvfs("encrypt", path("src"), "-o", fresh("p"), "-k", OWNER, "-q", "--policy",
             path("ok.rego"))
        kvfs("rekey", path("p"), "-o", fresh("r5"), "-k", OWNER)
        header, _ = header_of(read(path("r5/model-00001-of-00003.safetensors")))
        assert json.loads(header["__metadata__"]["__policy__"])["local"] == read(
            path("ok.rego")).decode()

    with check("rewrap and rekey: killed, then --resume"):
        kvfs("encrypt", path("big"), "-o", fresh("ebig"), "-k", OWNER, "-q")
        for command in ("rewrap", "rekey"):
            out = fresh("wbig")
            args = [command, path("ebig"), "-o", out, "-k", OWNER, "--to-key", new]
            with subprocess.Popen([KVFS, *args], stdout=subprocess.PIPE) as run:
                run.stdout.readline()
                run.kill()
            if leftovers(out):
                kvfs(*args, "--resume")
            assert not leftovers(out)
            verify(out, path("new/reader.jwks"))


# ---- inspect, verify ----

def inspected(*args, code=0):
    return {f["path"]: f for f in json.loads(kvfs("inspect", "--json", *args, code=code).out)["files"]}


def test_inspect():
    out = path("out")
    with check("inspect: a table and JSON, without any key"):
        ran = kvfs("inspect", out)
        for text in ("aes256gcm", "2 MiB", "3/3", "-master", "-sign", "generation 1, lists 9",
                     "kvfs verify"):
            assert text in ran.out, (text, ran)
        assert "Not authenticated" not in ran.out, ran
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
        assert "1 of 3 tensors" in kvfs("inspect", copy).out

    with check("inspect: policies, jku, dtypes that are not known, several files"):
        ran = kvfs("inspect", "-v", path("p/model-00001-of-00003.safetensors"))
        assert "input.uid == 0" in ran.out and "remote policy: allows" in ran.out
        ran = kvfs("inspect", os.path.join(VECTORS, "good/jku-and-kid.cryptotensors"))
        assert "koalavault://" in ran.out
        write(fresh("odd.safetensors"), safetensors({"w": ("F12_NEW", [3], 10)}))
        assert inspected(path("odd.safetensors"))[path("odd.safetensors")]["unknown_dtypes"] == "F12_NEW"
        assert len(inspected(path("odd.safetensors"), out)) == 12

    with check("inspect: malformed files are named with the reason, exit 1"):
        found = inspected(os.path.join(VECTORS, "must-fail"), code=1)
        assert "chunk_size of 0" in found["chunk-size-0.safetensors"]["why"]
        assert found["version-3.safetensors"]["kind"] == "malformed"
        ran = kvfs("inspect", os.path.join(VECTORS, "must-fail/offset-hole.safetensors"), code=1)
        assert "offset-hole" in ran.out.split("Malformed")[1], ran
        assert "No such file" in kvfs("inspect", path("none"), code=1).err
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
            text = (ran.out + ran.err).encode(errors="surrogateescape")
            assert b"\x1b" not in text and b"\x07" not in text, text
            assert "\u202e".encode() not in text, text


def test_verify():
    out = path("out")
    name = "model-00002-of-00003.safetensors"
    with check("verify: the reference's files"):
        ran = verify(os.path.join(VECTORS, "good"), VECTOR_KEYS)
        assert "WRONG" not in ran.out and "partial.cryptotensors" in ran.err, ran

    with check("verify: each file that must fail, by the check that it names"):
        with open(os.path.join(VECTORS, "manifest.json"), encoding="utf-8") as file:
            entries = json.load(file)["must_fail"]
        for entry in entries:
            keys = os.path.join(VECTORS, "keys", entry.get("keys", "reader.jwks"))
            ran = kvfs("verify", os.path.join(VECTORS, entry["file"]), "-k", keys, code=None)
            warned = entry["errno"] == "EACCES" or "plain" in entry["why"]
            assert ran.code == 1 or (warned and "warning" in ran.err), (entry, ran)

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
        wrong = [line for line in ran.out.splitlines() if line.startswith("WRONG")]
        assert len(wrong) == 1 and name in wrong[0] and "layers.1." in wrong[0], ran
        assert "chunk 5" in wrong[0] and "1 file wrong, 10 in order" in ran.out, ran

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
            wrong = [line for line in ran.out.splitlines() if line.startswith("WRONG")]
            assert len(wrong) == 1 and says in wrong[0], (what, ran)
        copy = fresh("tampered")
        shutil.copytree(out, copy, symlinks=True)
        write(f"{copy}/evil.py", "x")
        assert "evil.py" in verify(copy, READER).err
        with open(f"{copy}/kvfs.manifest", "r+b") as file:
            file.seek(100)
            file.write(b"A" if file.read(1) != b"A" else b"B")
        assert "WRONG  kvfs.manifest" in verify(copy, READER, code=1).out

    with check("verify: unencrypted tensors are warned of, and authenticated by a manifest"):
        ran = verify(path("some"), READER)
        assert not ran.err, ran
        copy = fresh("tampered")
        shutil.copytree(path("some"), copy, symlinks=True)
        header, body = header_of(read(f"{copy}/{name}"))
        b, _ = header["layers.1.norm"]["data_offsets"]
        with open(f"{copy}/{name}", "r+b") as file:
            file.seek(os.path.getsize(f"{copy}/{name}") - len(body) + b)
            file.write(b"evil")
        assert "layers.1.norm" in verify(copy, READER, code=1).out
        os.unlink(f"{copy}/kvfs.manifest")
        ran = verify(copy, READER)
        assert "nothing vouches for 1 of 3 tensors" in ran.err, ran

    with check("verify: no key, the public key alone, nothing there, quiet"):
        assert "--key" in kvfs("verify", out, code=1).err
        assert "WRONG" in kvfs("verify", out, "-k", path("keys/public.jwk"), code=1).out
        kvfs("verify", path("none"), "-k", READER, code=1)
        ran = kvfs("verify", "-q", out, "-k", READER)
        assert not ran.out and not ran.err
        os.makedirs(path("void"), exist_ok=True)
        kvfs("verify", path("void"), "-k", READER, code=1)


# ---- the rest ----

COMMANDS = ("keygen", "encrypt", "rewrap", "rekey", "inspect", "verify")


def options_of(command):
    text = kvfs(command, "--help").out
    return set(re.findall(r"--([a-z][a-z-]+)", text)) - {"help", "usage", "version"}


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
                     ["verify", "a", "b"], ["keygen", "--kid", "", "x"], ["nonsense"], []):
            assert kvfs(*args, code=2).err, args
        for command in COMMANDS:
            assert f"kvfs {command}" in kvfs(command, "--help").out

    with check("a progress bar on a terminal"):
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


def test_documents():
    with check("man pages: no warnings"):
        if not shutil.which("mandoc"):
            raise Skip("no mandoc")
        pages = [os.path.join(MAN, n) for n in sorted(os.listdir(MAN))]
        done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0 and not done.stdout, done.stdout.decode()

    with check("man pages: every command has one, with exactly its options"):
        for command in COMMANDS + MOUNTING:
            with open(os.path.join(MAN, f"kvfs-{command}.1"), encoding="utf-8") as file:
                text = file.read()
            documented = set(re.findall(r"Fl -([a-z][a-z-]+)", text.replace("\\-", "-")))
            shared = {"manifest", "no-manifest", "exclude", "resume", "copy-plain", "key",
                      "output", "threads", "quiet", "master-kid", "sign-kid", "generation"}
            assert options_of(command) - shared <= documented, (command, documented)
            assert documented <= options_of(command), (command, documented - options_of(command))
        with open(os.path.join(MAN, "kvfs.1"), encoding="utf-8") as file:
            text = file.read()
        assert all(f".It Cm {c}\n" in text for c in COMMANDS + ("mount", "umount", "status", "reload"))

    with check("completion: bash and zsh"):
        bash = os.path.join(ROOT, "kvfs/completion/kvfs.bash")
        subprocess.run(["bash", "-n", bash], check=True)
        script = ('source "$0"; COMP_WORDS=("$1" encrypt --chu); COMP_CWORD=2; _kvfs; '
                  'echo "${COMPREPLY[@]}"; COMP_WORDS=("$1" keygen --alg ch); COMP_CWORD=3; '
                  '_kvfs; echo "${COMPREPLY[@]}"; COMP_WORDS=("$1" re); COMP_CWORD=1; _kvfs; '
                  'echo "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "-c", script, bash, KVFS], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=True)
        assert done.stdout.decode().split("\n")[:3] == [
            "--chunk-size=", "chacha20poly1305", "rekey reload rewrap"], done.stdout
        if not shutil.which("zsh"):
            raise Skip("no zsh")
        subprocess.run(["zsh", "-n", os.path.join(ROOT, "kvfs/completion/_kvfs")], check=True)

    with check("cmake --install: binary, man pages, completion, the mount helper"):
        build = os.path.dirname(os.path.dirname(KVFS))
        if not os.path.exists(os.path.join(build, "cmake_install.cmake")):
            raise Skip("not run from a build directory")
        subprocess.run(["cmake", "--install", build, "--prefix", fresh("prefix")], check=True,
                       stdout=subprocess.DEVNULL)
        installed = names(path("prefix"))
        for one in ("bin/kvfs", "share/man/man1/kvfs-encrypt.1", "sbin/mount.fuse.kvfs",
                    "share/bash-completion/completions/kvfs", "share/zsh/site-functions/_kvfs"):
            assert one in installed, (one, installed)
        assert os.path.samefile(path("prefix/sbin/mount.fuse.kvfs"), path("prefix/bin/kvfs"))

    with check("no secret was ever printed"):
        everything = b"".join(said).decode(errors="replace")
        for where, _, files in os.walk(work):
            for one in files:
                if one == "owner.jwks":
                    for secret in secrets_of(os.path.join(where, one)):
                        assert secret not in everything and secret.rstrip("=") not in everything


MOUNTING = ()  # whose options are compared, too


def main():
    os.umask(0o022)
    test_keygen()
    src = model("src")
    test_encrypt(src)
    test_refusals(src)
    model("src")
    large = big()
    test_resume(large)
    test_disk_full()
    test_rewrap()
    test_inspect()
    test_verify()
    test_usage()
    test_documents()


try:
    main()
finally:
    shutil.rmtree(work, ignore_errors=True)
sys.exit(1 if failed else 0)
