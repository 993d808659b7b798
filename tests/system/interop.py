#!/usr/bin/env python3
"""What format/ writes is read by the reference implementation, and the other way round; manifests
are checked by an independent JOSE library, and their digests computed again from the description in
format/README.md. Drives ct_tool (CT_TOOL); no mounts."""
import base64
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile

try:
    import cryptotensors
    import safetensors
    from jwcrypto import jwk, jws
    from safetensors._safetensors_rust import TensorSpec
except ImportError as error:
    print(f"skip interop: {error}")
    sys.exit(77)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOL = os.environ["CT_TOOL"]
KEYS = os.path.join(ROOT, "tests/vectors/keys/owner.jwks")
MIB = 1 << 20

failures, passed = [], 0


def check(what, good):
    global passed
    if good:
        passed += 1
    else:
        failures.append(what)
        print("FAILED", what)


def tool(verb, *args, fail=False):
    result = subprocess.run([TOOL, verb, *map(str, args)], check=False, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    if (result.returncode != 0) != fail:
        failures.append(f"ct_tool {verb} {args}")
        print(f"FAILED ct_tool {verb}: {result.stderr.decode()}")
    return result.stdout.decode() if not fail else result.stderr.decode()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


# ---- tensors: name -> (dtype as the serialisers' Python interface spells it, shape, bytes) ----

WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "uint8": 1, "int8": 1, "bool": 1,
         "float64": 8}


def tensor(seed, dtype, *shape):
    count = 1
    for n in shape:
        count *= n
    data = hashlib.shake_128(str(seed).encode()).digest(count * WIDTH[dtype])
    if dtype == "bool":
        data = bytes(b & 1 for b in data)
    return {"dtype": dtype, "shape": list(shape), "data": data}


MIXED = {
    "scalar": tensor(1, "int64"),
    "norm.bias": tensor(2, "float32", 7),
    "q.weight": tensor(3, "bfloat16", 33, 65),
    "embed": tensor(4, "float16", 61, 17),
    "mask": tensor(5, "bool", 3, 5),
    "d": tensor(6, "float64", 3, 3),
    "u8": tensor(7, "uint8", 1),
    "page": tensor(8, "int8", 4096),
    "big": tensor(9, "uint8", 300001),
}
AWKWARD = {name: tensor(name, "float32", i + 1) for i, name in enumerate(
    ["", " ", "quote\"back\\slash/", "tab\tnewline\nbell\x07del\x7f", "\u00fc\u20ac\U0001f600",
     "__encryption__", "{\"a\":1}", "a" * 1000, "\u2028", "nul\0nul"])}
CASES = {
    "mixed": (MIXED, {"format": "pt"}),
    "no metadata": (MIXED, None),
    "awkward metadata": ({"w": tensor(1, "float32", 4)}, {"k\"\\\n\u00fc": "v\"\\\n\x01\u20ac"}),
    "scalars": ({f"s{i}": tensor(i, t) for i, t in enumerate(WIDTH)}, None),
    "empty": ({"a": tensor(1, "float32", 0, 3), "b": tensor(2, "int64", 5)}, {"format": "pt"}),
    "only empty": ({"a": tensor(1, "float32", 0)}, None),
    "awkward names": (AWKWARD, {"format": "pt"}),
    "thousand": ({f"layer.{i}.w": tensor(i, "float32", i % 37 + 1) for i in range(1000)}, None),
    "long": ({"a": tensor(1, "bfloat16", 1500, 1001), "b": tensor(2, "uint8", 2 * MIB),
              "c": tensor(3, "uint8", 2 * MIB + 1)}, {"format": "pt"}),
}


def same(deserialized, tensors):
    got = dict(deserialized)
    return got.keys() == tensors.keys() and all(
        bytes(got[n]["data"]) == t["data"] and got[n]["shape"] == t["shape"]
        for n, t in tensors.items())


def plain_of(case):
    tensors, metadata = CASES[case]
    return safetensors.serialize({
        name: TensorSpec(dtype=t["dtype"], shape=t["shape"], data_len=len(t["data"]),
                         data_ptr=ctypes.cast(ctypes.c_char_p(t["data"]), ctypes.c_void_p).value)
        for name, t in tensors.items()}, metadata)


# ---- both directions ----

def ours_to_theirs(work):
    """Encrypted by us: the reference reads the tensors, we read the file it came from."""
    variants = [["-v", "1"]] + [["-v", "2", "-c", c] for c in (1000, 4096, 65537, 2 * MIB, 7 * MIB)]
    for case, (tensors, _) in CASES.items():
        plain = plain_of(case)
        write(f"{work}/plain", plain)
        for kid in ("m-256", "m-128", "m-chacha"):
            for variant in variants:
                what = f"{case}, {kid}, {' '.join(map(str, variant))}"
                tool("encrypt", *variant, KEYS, kid, "s-1", f"{work}/plain", f"{work}/out")
                check(f"reference reads {what}",
                      same(cryptotensors.deserialize(read(f"{work}/out")), tensors))
                tool("decrypt", KEYS, f"{work}/out", f"{work}/view")
                check(f"view of {what}", read(f"{work}/view") == plain)
                os.remove(f"{work}/out")
                os.remove(f"{work}/view")


def theirs_to_ours(work, keys):
    for case, (tensors, metadata) in CASES.items():
        plain = plain_of(case)
        for kid in ("m-256", "m-128", "m-chacha"):
            for config in ({"version": "1"}, {"version": "2"}, {"chunk_size": 1000},
                           {"chunk_size": 65537}):
                config = {**config, "enc_key": keys[kid], "sign_key": keys["s-1"]}
                write(f"{work}/ref", cryptotensors.serialize(tensors, metadata, config))
                tool("decrypt", KEYS, f"{work}/ref", f"{work}/view")
                check(f"view of the reference's {case}, {kid}", read(f"{work}/view") == plain)
                os.remove(f"{work}/view")


def partial(work, keys):
    write(f"{work}/plain", plain_of("mixed"))
    some = ["q.weight", "page", "scalar"]
    chosen = [a for name in some for a in ("-t", name)]
    for version in ("1", "2"):
        tool("encrypt", "-v", version, "-c", 999, *chosen, KEYS, "m-256", "s-1", f"{work}/plain",
             f"{work}/out")
        data = read(f"{work}/out")
        listed = json.loads(header_of(data)[0]["__metadata__"]["__encryption__"])
        check("partial: what was chosen", sorted(listed) == sorted(some))
        check("partial: reference reads", same(cryptotensors.deserialize(data), MIXED))
        tool("decrypt", KEYS, f"{work}/out", f"{work}/view")
        check("partial: view", read(f"{work}/view") == read(f"{work}/plain"))
        os.remove(f"{work}/out")
        os.remove(f"{work}/view")
        config = {"version": version, "tensors": some, "enc_key": keys["m-256"],
                  "sign_key": keys["s-1"]}
        write(f"{work}/ref", cryptotensors.serialize(MIXED, {"format": "pt"}, config))
        tool("decrypt", KEYS, f"{work}/ref", f"{work}/view")
        check("partial: view of the reference's", read(f"{work}/view") == read(f"{work}/plain"))
        os.remove(f"{work}/view")


# ---- new keys ----

def new_keys(work, keys):
    """Rewrap and rekey by us, rewrap by the reference, one after the other, each read by both."""
    other = {"keys": [{"kty": "oct", "alg": "aes256gcm", "kid": "m-other",
                       "k": base64.b64encode(bytes(range(32))).decode()}, keys["s-2"]]}
    write(f"{work}/other.jwks", json.dumps(other).encode())
    cryptotensors.register_direct_key_provider(keys=list(keys.values()) + other["keys"])
    for version in ("1", "2"):
        tensors, metadata = CASES["long"]
        plain = plain_of("long")
        config = {"version": version, "enc_key": keys["m-256"], "sign_key": keys["s-1"]}
        write(f"{work}/0", cryptotensors.serialize(tensors, metadata, config))
        tool("rewrap", KEYS, f"{work}/other.jwks", "m-other", "s-2", f"{work}/0", f"{work}/1")
        tool("rekey", "-v", version, f"{work}/other.jwks", KEYS, "m-chacha", "s-1", f"{work}/1",
             f"{work}/2")
        write(f"{work}/3", read(f"{work}/1"))
        cryptotensors.rewrap_file(f"{work}/3", {"enc_key": keys["m-256"], "sign_key": keys["s-1"]})
        for step, ring in (("1", f"{work}/other.jwks"), ("2", KEYS), ("3", KEYS)):
            data = read(f"{work}/{step}")
            check(f"new keys, version {version}: reference reads {step}",
                  same(cryptotensors.deserialize(data), tensors))
            tool("decrypt", ring, f"{work}/{step}", f"{work}/view")
            check(f"new keys, version {version}: view {step}", read(f"{work}/view") == plain)
            os.remove(f"{work}/view")
        digests = [immutable(read(f"{work}/{i}")).hex() for i in range(4)]
        check("rewrapping keeps the immutable part", digests[0] == digests[1] == digests[3])
        check("rekeying changes it", digests[2] != digests[0])
        said = tool("decrypt", KEYS, f"{work}/1", f"{work}/none", fail=True)
        check("old keys do not open it", "no key" in said)
        for name in "0123":
            os.remove(f"{work}/{name}")
        os.remove(f"{work}/none")


# ---- the manifest, by the book ----

def header_of(data):
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + n]), data[8 + n:]


def quoted(text):
    out = '"'
    for c in text:
        if c in '"\\':
            out += "\\" + c
        elif ord(c) < 0x20:
            out += {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}.get(
                c, f"\\u{ord(c):04x}")
        else:
            out += c
    return out + '"'


def immutable(data):
    header, _ = header_of(data)
    metadata = header.pop("__metadata__")
    encryption = json.loads(metadata["__encryption__"])
    reduced = []
    for name in sorted(encryption, key=lambda n: n.encode()):
        members = ("iv", "tag") if "iv" in encryption[name] else ("base_iv", "tags")
        reduced.append(quoted(name) + ":{" + ",".join(
            f'"{m}":"{encryption[name][m]}"' for m in members) + "}")
    metadata["__encryption__"] = "{" + ",".join(reduced) + "}"
    parts = ['"__metadata__":{' + ",".join(
        quoted(k) + ":" + quoted(metadata[k]) for k in sorted(metadata, key=lambda k: k.encode())
        if k not in ("__signature__", "__crypto_keys__")) + "}"]
    for name, t in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        parts.append(f'{quoted(name)}:{{"dtype":{quoted(t["dtype"])},"shape":'
                     f'{json.dumps(t["shape"], separators=(",", ":"))},"data_offsets":'
                     f'{json.dumps(t["data_offsets"], separators=(",", ":"))}}}')
    return hashlib.sha256(("{" + ",".join(parts) + "}").encode()).digest()


def url64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def pieces(data):
    return url64(b"".join(hashlib.sha256(data[i:i + MIB]).digest()
                          for i in range(0, len(data), MIB)))


def expected_entry(top, path):
    full = os.path.join(top, path)
    if os.path.islink(full):
        return {"path": path, "kind": "link", "target": os.readlink(full)}
    data = read(full)
    if not path.endswith(".safetensors"):
        entry = {"path": path, "kind": "file", "size": len(data),
                 "sha256": url64(hashlib.sha256(data).digest())}
        return {**entry, "pieces": pieces(data)} if len(data) > MIB else entry
    header, body = header_of(data)
    entry = {"path": path, "kind": "shard", "body": len(body), "header": url64(immutable(data))}
    encrypted = json.loads(header["__metadata__"]["__encryption__"])
    spans = sorted(t["data_offsets"] for n, t in header.items()
                   if n != "__metadata__" and n not in encrypted)
    plain = [{"begin": b, "end": e, "pieces": pieces(body[b:e])} for b, e in spans if e > b]
    return {**entry, "plain": plain} if plain else entry


def manifest(work, keys):
    top = os.path.join(work, "model")
    os.makedirs(f"{top}/sub/deep")
    write(f"{top}/config.json", b"{}")
    write(f"{top}/empty", b"")
    write(f"{top}/exact.json", os.urandom(MIB))
    write(f"{top}/tokenizer.json", os.urandom(3 * MIB + 5))
    write(f"{top}/sub/\u00fc \"quoted\"\\.txt", b"x")
    write(f"{top}/sub/deep/a", b"y")
    os.symlink("../config.json", f"{top}/sub/link")
    for name, chosen in (("all", []), ("some", ["-t", "b"])):
        write(f"{work}/plain", plain_of("long"))
        for version in ("1", "2"):
            tool("encrypt", "-v", version, *chosen, KEYS, "m-256", "s-1", f"{work}/plain",
                 f"{top}/{name}-{version}.safetensors")
    write(f"{work}/plain", plain_of("awkward names"))
    tool("encrypt", "-c", 3, KEYS, "m-256", "s-1", f"{work}/plain", f"{top}/sub/odd.safetensors")
    paths = ["config.json", "empty", "exact.json", "tokenizer.json", "sub/\u00fc \"quoted\"\\.txt",
             "sub/deep/a", "sub/link", "sub/odd.safetensors", "some-2.safetensors",
             "some-1.safetensors", "all-2.safetensors", "all-1.safetensors"]
    tool("manifest", KEYS, "s-1", 7, top, *paths)

    public = jwk.JWK(kty="OKP", crv="Ed25519",
                     x=url64(base64.b64decode(keys["s-1"]["x"])))
    token = jws.JWS()
    token.allowed_algs = ["EdDSA"]
    token.deserialize(read(f"{top}/kvfs.manifest").decode(), public)
    check("manifest: JOSE library verifies", token.is_valid)
    check("manifest: protected header", token.jose_header == {
        "alg": "EdDSA", "typ": "kvfs-manifest+json", "kid": "s-1"})
    payload = json.loads(token.payload)
    want = [expected_entry(top, p) for p in sorted(paths, key=lambda p: p.encode())]
    check("manifest: version and generation",
          (payload["version"], payload["generation"]) == (1, 7) and len(payload) == 3)
    for got, entry in zip(payload["entries"], want):
        check(f"manifest: entry {entry['path']}", got == entry)
    check("manifest: number of entries", len(payload["entries"]) == len(want))

    # What the library signs is taken by us.
    private = jwk.JWK(kty="OKP", crv="Ed25519", x=url64(base64.b64decode(keys["s-1"]["x"])),
                      d=url64(base64.b64decode(keys["s-1"]["d"])))
    token = jws.JWS(json.dumps({**payload, "generation": 8}))
    token.add_signature(private, None, json.dumps(
        {"alg": "EdDSA", "typ": "kvfs-manifest+json", "kid": "s-1"}))
    write(f"{top}/kvfs.manifest", token.serialize().encode())
    listed = tool("check", KEYS, top).splitlines()
    check("manifest: signed by the library, read by us",
          listed[0] == "generation 8" and len(listed) == 1 + len(want))
    token = jws.JWS(json.dumps(payload))
    token.add_signature(private, None, json.dumps(
        {"alg": "EdDSA", "typ": "kvfs-manifest+json", "kid": "s-1"}), json.dumps({"x": 1}))
    write(f"{top}/kvfs.manifest", token.serialize().encode())
    said = tool("check", KEYS, top, fail=True)
    check("manifest: an unprotected header is refused", "\"header\" is not allowed" in said)


def main():
    with open(KEYS, encoding="utf-8") as file:
        keys = {k["kid"]: k for k in json.load(file)["keys"]}
    cryptotensors.register_direct_key_provider(keys=list(keys.values()))
    with tempfile.TemporaryDirectory(prefix="kvfs-interop-") as work:
        ours_to_theirs(work)
        theirs_to_ours(work, keys)
        partial(work, keys)
        new_keys(work, keys)
        manifest(work, keys)
    print(f"{passed} checks passed, {len(failures)} failed")
    return 1 if failures else 0


sys.exit(main())
