"""What the tests of the tools share: a small model, its keys, and kvfs as a command whose exit code
is always checked and whose every word is kept."""
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import struct

import kvfstest
from kvfstest import ROOT, Checks, workdir

VECTORS = os.path.join(ROOT, "tests/vectors")
MIB = 1 << 20
REGO = "package model\nimport rego.v1\ndefault allow := false\nallow if input.uid == 0\n"

checks = Checks()
check = checks.check
said = []  # all that kvfs ever printed: no secret may be in it


def kvfs(*args, code=0, env=None, **more):
    """Any exit code is right where code is None."""
    environ = {k: v for k, v in os.environ.items() if k != "CRYPTOTENSOR_KEYS"}
    ran = kvfstest.kvfs(*args, check=False, env={**environ, **(env or {})}, **more)
    said.append(ran.stdout + ran.stderr)
    assert code is None or ran.returncode == code, ran
    return ran


def commands():
    """As `kvfs --help` lists them."""
    return re.findall(r"^  ([a-z]+)  ", kvfs("--help").stdout, re.M)


def options_of(command):
    """{name: value or None} of --help, without --help and --usage."""
    found = re.findall(r"^ +(?:-., )?--([a-z][a-z-]*)(?:=(\S+))?", kvfs(command, "--help").stdout, re.M)
    return {name: value or None for name, value in found if name not in ("help", "usage")}


def path(*parts):
    return os.path.join(workdir(), *parts)


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
    text = jws["payload"]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def verify(top, keys, code=0):
    return kvfs("verify", top, "--key", keys, code=code)


def refuses(*args, says, code=1):
    """The output must not be there afterwards."""
    out = fresh("refused")
    ran = kvfs("encrypt", *args, "-o", out, "--key", OWNER, code=code)
    for text in [says] if isinstance(says, str) else says:
        assert text in ran.stderr, (text, ran)
    assert not os.path.lexists(out), names(out)
    return ran


def big(name="big", shards=6, size=24 * MIB):
    top = fresh(name)
    for i in range(shards):
        write(f"{top}/m{i}.safetensors",
              safetensors({"w": ("U8", [size], size)}, {"format": "pt"}, seed=bytes([i])))
        write(f"{top}/side{i}.json", "{}")
    return top


def leftovers(top):
    return [n for n in names(top) if n.endswith(".tmp") or n.startswith(".kvfs")]


KEYS = path("keys")
OWNER = path("keys/owner.jwks")
READER = path("keys/reader.jwks")


def secrets_of(name):
    return [key[m] for key in json.loads(read(name))["keys"] for m in ("k", "d") if m in key]


def prepare():
    """Keys, a plain model in src, and it encrypted in out; partly in some; with a policy in p."""
    kvfs("keygen", KEYS)
    src = model("src")
    write(path("ok.rego"), REGO)
    for name, more in (("out", []), ("some", ["--skip-tensors", "*.norm"]),
                       ("p", ["--policy", path("ok.rego")])):
        kvfs("encrypt", src, "-o", path(name), "-k", OWNER, "-q", *more)


def finish():
    """The script's exit code."""
    with check("no secret was ever printed"):
        everything = "".join(said)
        for where, _, files in os.walk(workdir()):
            for one in files:
                if one == "owner.jwks":
                    for secret in secrets_of(os.path.join(where, one)):
                        assert secret.rstrip("=") not in everything, "a secret key"
    return checks.finish()
