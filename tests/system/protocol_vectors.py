#!/usr/bin/env python3
"""The test vectors of keyserver/PROTOCOL.md: makes them again and compares byte for byte.

    protocol_vectors.py           compares with tests/vectors/protocol/, and reads them with jwcrypto
    protocol_vectors.py --write   writes them

Everything here is made from the protocol page, with fixed keys: ECDSA nonces as RFC 6979 has them,
ephemeral keys, content keys and IVs out of SHA-256. Nothing of the server is used.
"""
import base64
import hashlib
import hmac
import json
import os
import sys

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

HERE = os.path.dirname(os.path.abspath(__file__))
TO = os.path.join(HERE, "../vectors/protocol")
N = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def std64(data):
    return base64.b64encode(data).decode()


def sha(data):
    return hashlib.sha256(data if isinstance(data, bytes) else data.encode()).hexdigest()


def fixed(label, length=32):
    return hashlib.sha256(b"kvfs protocol vector: " + label.encode()).digest()[:length]


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


# ---- keys ----

def private(label):
    return ec.derive_private_key(int.from_bytes(fixed(label), "big") % (N - 1) + 1, ec.SECP256R1())


def jwk(key, with_private=False):
    numbers = key.public_key().public_numbers()
    out = {"kty": "EC", "crv": "P-256", "x": b64(numbers.x.to_bytes(32, "big")),
           "y": b64(numbers.y.to_bytes(32, "big"))}
    if with_private:
        out["d"] = b64(key.private_numbers().private_value.to_bytes(32, "big"))
    return out


def thumbprint(public):
    text = compact({"crv": "P-256", "kty": "EC", "x": public["x"], "y": public["y"]})
    return b64(hashlib.sha256(text).digest())


KEYS = {name: private(name) for name in
        ("identity", "server", "sign", "decrypt", "audit", "stranger")}
PUBLIC = {name: jwk(key) for name, key in KEYS.items()}
THUMB = {name: thumbprint(public) for name, public in PUBLIC.items()}


# ---- JOSE, with nothing left to chance ----

def nonce(d, digest):
    """RFC 6979 3.2 for P-256 with SHA-256."""
    h1 = (int.from_bytes(digest, "big") % N).to_bytes(32, "big")
    x = d.to_bytes(32, "big")
    k, v = b"\0" * 32, b"\1" * 32
    for octet in (b"\0", b"\1"):
        k = hmac.new(k, v + octet + x + h1, "sha256").digest()
        v = hmac.new(k, v, "sha256").digest()
    while True:
        v = hmac.new(k, v, "sha256").digest()
        candidate = int.from_bytes(v, "big")
        if 1 <= candidate < N:
            return candidate
        k = hmac.new(k, v + b"\0", "sha256").digest()
        v = hmac.new(k, v, "sha256").digest()


def es256(key, message):
    d = key.private_numbers().private_value
    digest = hashlib.sha256(message).digest()
    k = nonce(d, digest)
    r = ec.derive_private_key(k, ec.SECP256R1()).public_key().public_numbers().x % N
    s = pow(k, -1, N) * (int.from_bytes(digest, "big") + r * d) % N
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_jws(header, payload, key):
    protected = b64(header if isinstance(header, bytes) else compact(header))
    body = b64(payload if isinstance(payload, bytes) else compact(payload))
    return {"protected": protected, "payload": body,
            "signature": b64(es256(key, f"{protected}.{body}".encode()))}


def jws(typ, payload, signer):
    return raw_jws({"alg": "ES256", "kid": THUMB[signer], "typ": typ}, payload, KEYS[signer])


def concat_kdf(shared, alg):
    info = len(alg).to_bytes(4, "big") + alg + b"\0" * 8 + (256).to_bytes(4, "big")
    return hashlib.sha256((1).to_bytes(4, "big") + shared + info).digest()


def raw_jwe(header, payload, recipient, label):
    epk = private(f"epk of {label}")
    wrap = concat_kdf(epk.exchange(ec.ECDH(), KEYS[recipient].public_key()), b"ECDH-ES+A256KW")
    cek, iv = fixed(f"cek of {label}"), fixed(f"iv of {label}", 12)
    protected = b64(header if isinstance(header, bytes) else compact(header))
    sealed = AESGCM(cek).encrypt(iv, compact(payload), protected.encode())
    return {"protected": protected, "header": {"epk": jwk(epk)},
            "encrypted_key": b64(aes_key_wrap(wrap, cek)), "iv": b64(iv),
            "ciphertext": b64(sealed[:-16]), "tag": b64(sealed[-16:])}


def jwe(typ, payload, recipient):
    header = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": THUMB[recipient], "typ": typ}
    return raw_jwe(header, payload, recipient, typ)


# ---- digests ----

MEASUREMENTS = {"profile": "none", "items": [
    {"kind": "library", "name": "libc.so.6", "sha256": sha("libc")},
    {"kind": "executable", "name": "kvfs", "sha256": sha("kvfs")},
    {"kind": "tree", "name": "code, with blanks and \u00fcmlauts", "sha256": sha("tree")},
    {"kind": "policy", "name": "admission", "sha256": sha("policy")},
    {"kind": "library", "name": "libcrypto.so.3", "sha256": sha("libcrypto")}]}
HEADERS = [{"path": path, "sha256": sha(path)} for path in
           ("model-00002-of-00002.safetensors", "a/b.safetensors", "a-b.safetensors",
            "model-00001-of-00002.safetensors", "\u00e9.safetensors")]
LEASE = fixed("lease", 16).hex()
CHALLENGE = b64(fixed("challenge") + fixed("more of it", 25))
TICKET = b64(fixed("ticket"))
RECORDS = ["first", "second, with \u00fcmlauts", "{\"third\":true}"]


def measurement_text(measurements):
    lines = sorted((i["kind"].encode(), i["name"].encode(), i["sha256"].encode())
                   for i in measurements["items"])
    return (b"kvfs-measurement-v1\nprofile " + measurements["profile"].encode() + b"\n"
            + b"".join(b"%s %s %s\n" % (kind, digest, name) for kind, name, digest in lines))


def headers_text(headers):
    return b"kvfs-headers-v1\n" + b"".join(
        b"%s %s\n" % (digest, path)
        for path, digest in sorted((h["path"].encode(), h["sha256"].encode()) for h in headers))


def evidence_text(challenge, thumbs, measurement):
    return ("kvfs-evidence-v1\n" + "".join(
        f"{line}\n" for line in [challenge, *thumbs, measurement])).encode()


def audit_heads(lease, records):
    heads = [sha(f"kvfs-audit-v1\n{lease}\n")]
    for number, record in enumerate(records, 1):
        heads.append(sha(f"{heads[-1]}\n{number}\n{record}"))
    return heads


def tree_text(entries):
    return b"kvfs-tree-v1\n" + b"".join(
        b"%s %s %s\n" % (mode.encode(), digest.encode(), path.encode())
        for path, mode, digest in sorted(entries, key=lambda e: e[0].encode()))


M = sha(measurement_text(MEASUREMENTS))
THUMBS = [THUMB[name] for name in ("sign", "decrypt", "audit")]
E = sha(evidence_text(CHALLENGE, THUMBS, M))
E_RENEWAL = E
H = sha(headers_text(HEADERS))
HEADS = audit_heads(LEASE, RECORDS)


def digests():
    tree = [("run.py", "0755", sha("run")), ("lib/x.py", "0644", sha("x")),
            ("current", "link", sha("lib"))]
    return {
        "thumbprints": [{"jwk": PUBLIC[name], "thumbprint": THUMB[name]} for name in KEYS],
        "measurement": {"measurements": MEASUREMENTS,
                        "text": measurement_text(MEASUREMENTS).decode(), "sha256": M},
        "evidence": {"challenge": CHALLENGE, "thumbprints": THUMBS, "measurement": M,
                     "text": evidence_text(CHALLENGE, THUMBS, M).decode(), "sha256": E},
        "headers": [{"headers": HEADERS, "text": headers_text(HEADERS).decode(), "sha256": H},
                    {"headers": [], "text": headers_text([]).decode(),
                     "sha256": sha(headers_text([]))}],
        "tree": {"entries": [{"path": p, "mode": m, "sha256": d} for p, m, d in tree],
                 "text": tree_text(tree).decode(), "sha256": sha(tree_text(tree))},
        "audit": {"lease": LEASE, "records": RECORDS, "heads": HEADS},
        "ticket": {"ticket": TICKET, "sha256": sha(TICKET)},
        "paths": {"good": ["a", "a/b", ".a", "a..b/c", "\u00e9", "a b"],
                  "bad": ["", "/a", "a/", "a//b", ".", "a/..", "../a", "a/./b", "a\\b", "a\nb",
                          "a\x7fb", "x" * 256]},
        "names": {"good": ["a", "A.b_c-1", "9", "x" * 64],
                  "bad": ["", ".a", "-a", "a/b", "a b", "x" * 65, "\u00e9", "a;b", "a'--"]},
    }


# ---- objects ----

LEASE_JSON = {"id": LEASE, "seconds": 900, "renew": 300, "grace": 0, "end": None}
OKP = {"kty": "okp", "alg": "ed25519"}
THUMBS_JSON = dict(zip(("sign", "decrypt", "audit"), THUMBS))
KEYS_PLAIN = {
    "version": 1, "ticket_sha256": sha(TICKET), "model": "alice/m", "generation": 3,
    "master_key": {"kty": "oct", "alg": "aes256gcm", "kid": "m-master-1", "k": std64(fixed("k"))},
    "verify_key": {**OKP, "kid": "m-sign-1", "x": std64(fixed("x"))},
    "manifest_key": {**OKP, "kid": "alice-sign-1", "x": std64(fixed("producer"))},
    "manifest_sha256": sha("manifest")}


def binding(lease):
    return jws("kvfs-binding+jws", {"version": 1, "challenge": CHALLENGE, "lease": lease,
                                    "evidence": E}, "sign")


EVIDENCE = {
    "version": 1, "versions": [1], "challenge": CHALLENGE, "api_key": "kvfs_deploy_" + TICKET,
    "models": ["alice/m", "carol/n"], "keys": {n: PUBLIC[n] for n in THUMBS_JSON},
    "measurements": MEASUREMENTS, "guard": {"state": "off", "findings": []}, "host": "node-1",
    "hardware": None, "binding": binding(None)}
RENEWAL = {**{k: v for k, v in EVIDENCE.items() if k not in ("models", "keys", "host")},
           "lease": LEASE, "binding": binding(LEASE)}
SET = [{**h, "immutable_sha256": sha("immutable " + h["path"]), "body": 1048576} for h in HEADERS]
AROUND = {"ticket_sha256": sha(TICKET), "call": 2, "model": "alice/m", "generation": 3,
          "headers_sha256": H}


def objects():
    """(typ, key, plaintext) of each object."""
    return [
        ("kvfs-challenge+jws", "identity", {
            "version": 1, "challenge": CHALLENGE, "server_key": PUBLIC["server"],
            "expires_in": 60}),
        ("kvfs-evidence+jwe", "server", EVIDENCE),
        ("kvfs-binding+jws", "sign", {
            "version": 1, "challenge": CHALLENGE, "lease": None, "evidence": E}),
        ("kvfs-ticket+jws", "identity", {
            "version": 1, "challenge": CHALLENGE, "evidence": E, "results": [
                {"model": "alice/m", "ticket": TICKET, "expires_in": 60, "generation": 3},
                {"model": "carol/n", "error": "denied", "message": "No."}]}),
        ("kvfs-proof+jws", "sign", {
            "version": 1, "ticket_sha256": sha(TICKET), "call": 2, "headers": HEADERS,
            "headers_sha256": H}),
        ("kvfs-sync+jws", "identity", {
            "version": 1, "decision": "sync", **AROUND, "headers": SET}),
        ("kvfs-release+jws", "identity", {
            "version": 1, "decision": "release", "challenge": CHALLENGE, **AROUND,
            "keys": THUMBS_JSON, "assurance": "self-reported", "lease": LEASE_JSON,
            "release": jwe("kvfs-keys+jwe", KEYS_PLAIN, "decrypt")}),
        ("kvfs-keys+jwe", "decrypt", KEYS_PLAIN),
        ("kvfs-renewal+jwe", "server", RENEWAL),
        ("kvfs-lease+jws", "identity", {
            "version": 1, "challenge": CHALLENGE, "evidence": E_RENEWAL, "model": "alice/m",
            "generation": 3, "assurance": "self-reported", "lease": LEASE_JSON}),
        ("kvfs-state+jws", "identity", {
            "version": 1, "lease": LEASE, "nonce": b64(fixed("nonce", 18)), "state": "revoked",
            "reason": "revoked by the administrator", "generation": 3}),
        ("kvfs-end+jws", "sign", {"version": 1, "lease": LEASE}),
        ("kvfs-audit+jws", "audit", {
            "version": 1, "lease": LEASE, "first": 1, "previous": HEADS[0], "records": RECORDS,
            "head": HEADS[-1]}),
        ("kvfs-head+jws", "identity", {
            "version": 1, "lease": LEASE, "sequence": len(RECORDS), "head": HEADS[-1]}),
    ]


def jose():
    out = []
    for typ, key, plain in objects():
        make = jws if typ.endswith("jws") else jwe
        out.append({"typ": typ, "key": key, "plain": plain, "object": make(typ, plain, key)})
    return {"keys": {name: jwk(key, True) for name, key in KEYS.items()}, "objects": out}


# ---- what must be refused ----

def bad_jws():
    typ, payload = "kvfs-end+jws", {"version": 1, "lease": LEASE}
    good = jws(typ, payload, "sign")
    head = {"alg": "ES256", "kid": THUMB["sign"], "typ": typ}

    def headed(**changes):
        changed = {k: v for k, v in {**head, **changes}.items() if v is not None}
        return raw_jws(changed, payload, KEYS["sign"])

    def flipped(name):
        value = good[name]
        return {**good, name: ("A" if value[0] != "A" else "B") + value[1:]}
    secret = {"kty": "oct", "k": b64(b"x")}
    yield from [
        ("alg none", headed(alg="none"), "unsupported"),
        ("alg HS256", headed(alg="HS256"), "unsupported"),
        ("alg EdDSA", headed(alg="EdDSA"), "unsupported"),
        ("alg missing", headed(alg=None), "malformed"),
        ("alg a number", headed(alg=1), "malformed"),
        ("typ of another object", headed(typ="kvfs-proof+jws"), "rejected"),
        ("typ missing", headed(typ=None), "malformed"),
        ("kid of another key", headed(kid=THUMB["stranger"]), "rejected"),
        ("kid missing", headed(kid=None), "malformed"),
        ("kid not a thumbprint", headed(kid="sign"), "malformed"),
        ("crit", headed(crit=["exp"], exp=1), "malformed"),
        ("b64", headed(b64=False), "malformed"),
        ("jwk", headed(jwk=PUBLIC["sign"]), "malformed"),
        ("jku", headed(jku="https://example.org/"), "malformed"),
        ("x5u", headed(x5u="https://example.org/"), "malformed"),
        ("x5c", headed(x5c=["AAAA"]), "malformed"),
        ("zip", headed(zip="DEF"), "malformed"),
        ("cty", headed(cty="JWT"), "malformed"),
        ("alg twice", raw_jws(b'{"alg":"none",' + compact(head)[1:], payload, KEYS["sign"]),
         "malformed"),
        ("protected no object", raw_jws(b"[]", payload, KEYS["sign"]), "malformed"),
        ("protected too long", headed(kid="A" * 2000), "malformed"),
        ("signed by another key, under its kid",
         raw_jws(head, payload, KEYS["stranger"]), "rejected"),
        ("signature altered", flipped("signature"), "rejected"),
        ("payload altered", {**good, "payload": b64(compact({"version": 1, "lease": "0" * 32}))},
         "rejected"),
        ("signature short", {**good, "signature": good["signature"][:-4]}, "rejected"),
        ("signature all zero", {**good, "signature": b64(b"\0" * 64)}, "rejected"),
        ("signature padded", {**good, "signature": good["signature"] + "=="}, "malformed"),
        ("payload with a line end", {**good, "payload": good["payload"] + "\n"}, "malformed"),
        ("payload no JSON", raw_jws(head, b"version", KEYS["sign"]), "malformed"),
        ("payload a list", raw_jws(head, [1], KEYS["sign"]), "malformed"),
        ("payload with a member twice",
         raw_jws(head, b'{"version":1,"version":1}', KEYS["sign"]), "malformed"),
        ("an unprotected header", {**good, "header": {"alg": "none"}}, "malformed"),
        ("signatures", {"payload": good["payload"], "signatures": [
            {"protected": good["protected"], "signature": good["signature"]}]}, "malformed"),
        ("no signature", {k: v for k, v in good.items() if k != "signature"}, "malformed"),
        ("another member", {**good, "jwk": secret}, "malformed"),
    ]


def bad_jwe():
    typ, payload = "kvfs-evidence+jwe", {"version": 1}
    head = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": THUMB["server"], "typ": typ}
    good = raw_jwe(head, payload, "server", "good")

    def headed(**changes):
        changed = {k: v for k, v in {**head, **changes}.items() if v is not None}
        return raw_jwe(changed, payload, "server", "good")

    def flipped(name):
        value = good[name]
        return {**good, name: ("A" if value[0] != "A" else "B") + value[1:]}
    epk = good["header"]["epk"]
    off = {**epk, "y": b64(fixed("no point"))}
    yield from [
        ("alg dir", headed(alg="dir"), "unsupported"),
        ("alg ECDH-ES", headed(alg="ECDH-ES"), "unsupported"),
        ("alg ECDH-ES+A128KW", headed(alg="ECDH-ES+A128KW"), "unsupported"),
        ("alg PBES2", headed(alg="PBES2-HS256+A128KW", p2c=10000000, p2s="AAAA"), "unsupported"),
        ("enc A128CBC-HS256", headed(enc="A128CBC-HS256"), "unsupported"),
        ("enc missing", headed(enc=None), "malformed"),
        ("zip", headed(zip="DEF"), "malformed"),
        ("crit", headed(crit=["exp"]), "malformed"),
        ("p2c", headed(p2c=10000000), "malformed"),
        ("apu", headed(apu="AAAA"), "malformed"),
        ("jwk", headed(jwk=PUBLIC["server"]), "malformed"),
        ("jku", headed(jku="https://example.org/"), "malformed"),
        ("x5u", headed(x5u="https://example.org/"), "malformed"),
        ("epk protected", headed(epk=epk), "malformed"),
        ("typ of another object", headed(typ="kvfs-renewal+jwe"), "rejected"),
        ("kid missing", headed(kid=None), "malformed"),
        ("no epk", {**good, "header": {}}, "malformed"),
        ("alg beside epk", {**good, "header": {"epk": epk, "alg": "dir"}}, "malformed"),
        ("epk with a private half", {**good, "header": {"epk": {**epk, "d": epk["x"]}}},
         "malformed"),
        ("epk off the curve", {**good, "header": {"epk": off}}, "malformed"),
        ("epk of another curve", {**good, "header": {"epk": {**epk, "crv": "P-384"}}},
         "malformed"),
        ("another epk", {**good, "header": {"epk": PUBLIC["stranger"]}}, "rejected"),
        ("an unprotected member", {**good, "unprotected": {"zip": "DEF"}}, "malformed"),
        ("aad", {**good, "aad": "AAAA"}, "malformed"),
        ("recipients", {**good, "recipients": []}, "malformed"),
        ("ciphertext altered", flipped("ciphertext"), "rejected"),
        ("tag altered", flipped("tag"), "rejected"),
        ("tag short", {**good, "tag": good["tag"][:6]}, "rejected"),
        ("iv altered", flipped("iv"), "rejected"),
        ("encrypted_key altered", flipped("encrypted_key"), "rejected"),
        ("for another key, under this kid", raw_jwe(head, payload, "stranger", "good"),
         "rejected"),
        ("plaintext no object", raw_jwe(head, [1], "server", "good"), "malformed"),
        ("no tag", {k: v for k, v in good.items() if k != "tag"}, "malformed"),
    ]


def refused():
    return {
        "jws": {"typ": "kvfs-end+jws", "key": "sign", "objects": [
            {"name": n, "object": o, "why": w} for n, o, w in bad_jws()]},
        "jwe": {"typ": "kvfs-evidence+jwe", "key": "server", "objects": [
            {"name": n, "object": o, "why": w} for n, o, w in bad_jwe()]},
    }


# ---- comparing ----

def read_with_jwcrypto(vectors):
    from jwcrypto import jwe as jc_jwe  # pylint: disable=import-outside-toplevel
    from jwcrypto import jwk as jc_jwk
    from jwcrypto import jws as jc_jws
    for entry in vectors["objects"]:
        key = jc_jwk.JWK(**vectors["keys"][entry["key"]])
        assert key.thumbprint() == THUMB[entry["key"]]
        text = json.dumps(entry["object"])
        if entry["typ"].endswith("jws"):
            token = jc_jws.JWS()
            token.deserialize(text, key)
        else:
            token = jc_jwe.JWE()
            token.deserialize(text, key)
        assert json.loads(token.payload) == entry["plain"], entry["typ"]
        print(f"ok jwcrypto reads {entry['typ']}")


def main():
    files = {"digests.json": digests(), "jose.json": jose(), "refused.json": refused()}
    failed = 0
    for name, content in files.items():
        path = os.path.join(TO, name)
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if "--write" in sys.argv:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            continue
        with open(path, encoding="utf-8") as file:
            same = file.read() == text
        failed += not same
        print(f"{'ok' if same else 'FAIL'} {name} is made again byte for byte")
    read_with_jwcrypto(files["jose.json"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
