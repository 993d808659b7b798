#!/usr/bin/env python3
"""What the key server refuses: each case with its code and status, and its record in the audit."""
import base64
import copy
import json
import os
import re
import socket
import ssl
import struct
import sys
import time

import kspostgres
from ksclient import (DEPLOY, MEASUREMENTS, Publisher, Refused, Runtime, Server, b64url,
                      encrypt, encrypt_for, header_of, headers_digest, measurement, new_key, public,
                      refused, sha, sign, unb64, write_plain)
from jwcrypto import jwk
from kvfstest import ROOT, Checks, run, workdir

checks = Checks()
check = checks.check
WORK = workdir()
FILE = "model.safetensors"


class World:
    """A server, alice's models m and n, bob who has both."""

    count = 0

    def __init__(self, server):
        self.server = server
        self.alice_key, self.alice_deploy = server.user("alice", "publish", "deploy")
        self.bob_key, self.bob_publish = server.user("bob", "deploy", "publish")
        self.eve_key, = server.user("eve", "deploy")
        self.alice = Publisher(server, self.alice_key)
        World.count += 1
        self.work = os.path.join(WORK, str(World.count))
        self.plain = os.path.join(self.work, "plain")
        os.makedirs(self.plain)
        write_plain(os.path.join(self.plain, FILE), {"a": os.urandom(100), "b": os.urandom(200)})
        self.subscription = {}
        for name in ("m", "n"):
            self.make(name)
            self.subscription[name] = server.admin("subscription", "add", f"alice/{name}",
                                                   "bob")["id"]
        self.bob = Runtime(server, self.bob_key)
        _, self.keys, self.headers = self.bob.get("alice/m", {})

    def make(self, name, *options):
        self.alice.create(name)
        out = encrypt(self.plain, os.path.join(self.work, name), self.alice.keys(name), *options)
        self.alice.publish(name, {FILE: header_of(os.path.join(out, FILE))})
        self.server.admin("model", "set", f"alice/{name}", "--profiles=none")
        self.server.admin("baseline", "add", f"alice/{name}", measurement(MEASUREMENTS))
        return out

    def expect(self, name, code, status, action, audited=True):
        """`action` must be refused so, and the audit have one more record of it."""
        with check(f"{code}: {name}"):
            before = len([r for r in self.server.audit() if r["code"] == code])
            with refused(code, status):
                action()
            after = len([r for r in self.server.audit() if r["code"] == code])
            assert not audited or after == before + 1, f"{after - before} records in the audit"


def attest(world, change=lambda e: e, runtime=None, model="alice/m", given=None):
    runtime = runtime or world.bob
    return runtime.ticket(model, change=change, given=given)


def with_(**changes):
    return lambda e: {**e, **changes}


def without(name):
    return lambda e: {k: v for k, v in e.items() if k != name}


def test_challenge(world):
    bob = world.bob
    expect = world.expect
    used = bob.challenge()
    bob.attest("alice/m", given=used)
    expect("used before", "challenge_used", 403, lambda: attest(world, given=used))
    expect("used by a refused attestation as well", "challenge_used", 403,
           lambda: attest(world, given=spoiled(world)))
    replayed = bob.evidence(bob.challenge(), ["alice/m"])
    bob.call("POST", "/attest", replayed)
    expect("evidence replayed", "challenge_used", 403,
           lambda: bob.call("POST", "/attest", replayed))

    def altered(position):
        given = bob.challenge()
        text = given["challenge"]
        at = position % len(text)
        given["challenge"] = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1:]
        return given
    for position in (0, 3, 10, 30, -2):
        given = altered(position)
        expect(f"altered at {position}", "challenge_invalid", 403,
               lambda given=given: attest(world, given=given))
    for text in ("", "x", "A" * 76, "'; DROP TABLE challenges; --"):
        given = {**bob.challenge(), "challenge": text}
        expect(f"made up: {text[:12]!r}", "challenge_invalid", 403,
               lambda given=given: attest(world, given=given))
    token = {**bob.challenge(), "challenge": world.alice.session["access_token"]}
    expect("an access token instead", "challenge_invalid", 403,
           lambda: attest(world, given=token))
    foreign = {**bob.challenge(), "server_key": public(new_key())}
    expect("for a key that the server does not have", "server_key_unknown", 409,
           lambda: attest(world, given=foreign))
    for versions in ([2], [], [0, 2, 3]):
        expect(f"versions {versions}", "version_unsupported", 400,
               lambda versions=versions: bob.challenge(versions))
    expect("versions no list", "malformed", 400,
           lambda: bob.call("POST", "/challenge", {"versions": 1}))
    expect("versions no numbers", "malformed", 400,
           lambda: bob.call("POST", "/challenge", {"versions": ["1"]}))
    expect("versions 1.0", "malformed", 400,
           lambda: bob.call("POST", "/challenge", {"versions": [1.0]}))
    expect("another member", "malformed", 400,
           lambda: bob.call("POST", "/challenge", {"versions": [1], "x": 1}))
    expect("version in the evidence another", "version_downgraded", 403,
           lambda: attest(world, with_(version=0)))
    expect("versions in the evidence without ours", "version_unsupported", 400,
           lambda: attest(world, with_(versions=[2])))


def spoiled(world):
    """A challenge that a refused attestation used up."""
    given = world.bob.challenge()
    with refused("hardware_unsupported"):
        attest(world, with_(hardware={"type": "tpm", "report": "AAAA"}), given=given)
    return given


def test_evidence(world):
    bob = world.bob
    expect = world.expect
    expect("a wrong key", "denied", 401, lambda: attest(world, with_(api_key="kvfs_deploy_x")))
    expect("SQL for a key", "denied", 401, lambda: attest(world, with_(api_key="' OR 1=1 --")))
    expect("a publish key", "wrong_scope", 403,
           lambda: attest(world, with_(api_key=world.bob_publish)))
    expect("a key that is a number", "malformed", 400, lambda: attest(world, with_(api_key=1)))
    expect("hardware evidence", "hardware_unsupported", 403,
           lambda: attest(world, with_(hardware={"type": "tee", "report": ""})))
    expect("hardware false", "hardware_unsupported", 403,
           lambda: attest(world, with_(hardware=False)))
    for name in ("version", "models", "keys", "measurements", "guard", "host", "hardware",
                 "binding"):
        code = {"version": "version_downgraded"}.get(name, "malformed")
        expect(f"without {name}", code, 403 if name == "version" else 400,
               lambda name=name: attest(world, without(name)))
    expect("a member more", "malformed", 400, lambda: attest(world, with_(more=1)))
    for models in ([], ["alice/m", "alice/m"], ["alice/m"] * 65, "alice/m", [1]):
        code = "name_invalid" if models == [1] else "malformed"
        expect(f"models {str(models)[:30]}", code, 400,
               lambda models=models: attest(world, with_(models=models)))
    for model in ("alice", "alice/", "/m", "a/b/c", "../m", "alice/m;--", "alice/../m",
                  "alice/m\n", "\u00e4/m", "a" * 65 + "/m"):
        expect(f"model {model[:12]!r}", "name_invalid", 400,
               lambda model=model: attest(world, with_(models=[model])))
    other = {name: public(key) for name, key in bob.keys.items()}
    for name, keys in (
            ("two the same", {**other, "audit": other["sign"]}),
            ("one missing", {"sign": other["sign"], "decrypt": other["decrypt"]}),
            ("a private half", {**other, "sign": json.loads(bob.keys["sign"].export_private())}),
            ("no point of the curve", {**other, "decrypt": {**other["decrypt"],
                                                            "y": other["sign"]["y"]}}),
            ("RSA", {**other, "decrypt": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}}),
            ("symmetric", {**other, "decrypt": {"kty": "oct", "k": "AAAA"}})):
        expect(f"keys: {name}", "malformed", 400,
               lambda keys=keys: attest(world, with_(keys=keys)))

    def items(*more):
        return {**MEASUREMENTS, "items": MEASUREMENTS["items"] + list(more)}
    for name, measurements in (
            ("an item twice", items(MEASUREMENTS["items"][0])),
            ("an unknown kind", items({"kind": "x", "name": "a", "sha256": sha("a")})),
            ("a line end in a name", items({"kind": "tree", "name": "a\nb", "sha256": sha("a")})),
            ("a digest in capitals", items({"kind": "tree", "name": "a",
                                            "sha256": sha("a").upper()})),
            ("a profile with blanks", {**MEASUREMENTS, "profile": "a b"}),
            ("too many items", items(*({"kind": "tree", "name": str(i), "sha256": sha("a")}
                                       for i in range(1024))))):
        expect(f"measurements: {name}", "malformed", 400,
               lambda measurements=measurements: attest(world, with_(measurements=measurements)))
    for name, guard in (("an unknown state", {"state": "fine", "findings": []}),
                        ("ok without a guard", {"state": "ok", "findings": []}),
                        ("too many findings", {"state": "off", "findings": ["x"] * 65}),
                        ("a long finding", {"state": "off", "findings": ["x" * 257]}),
                        ("no findings", {"state": "off"})):
        expect(f"guard: {name}", "malformed", 400,
               lambda guard=guard: attest(world, with_(guard=guard)))

    def bind(key=None, **changes):
        def change(evidence):
            payload = {"version": 1, "challenge": evidence["challenge"], "lease": None,
                       "evidence": bob.evidence_digest(evidence["challenge"]), **changes}
            return {**evidence, "binding": sign(key or bob.keys["sign"], "kvfs-binding+jws",
                                                payload)}
        return change
    expect("binding by another key", "binding_rejected", 403, lambda: attest(world, bind(new_key())))
    expect("binding by the audit key", "binding_rejected", 403,
           lambda: attest(world, bind(bob.keys["audit"])))
    expect("binding for another challenge", "binding_rejected", 403,
           lambda: attest(world, bind(challenge="x")))
    expect("binding for a lease", "binding_rejected", 403,
           lambda: attest(world, bind(lease="0" * 32)))
    expect("binding for other evidence", "binding_rejected", 403,
           lambda: attest(world, bind(evidence=sha("x"))))
    expect("binding with a member more", "binding_rejected", 403,
           lambda: attest(world, bind(more=1)))
    expect("measurements altered after signing", "binding_rejected", 403,
           lambda: attest(world, with_(measurements=items(
               {"kind": "tree", "name": "a", "sha256": sha("a")}))))
    swapped = {**other, "decrypt": public(new_key())}
    expect("decrypt key exchanged after signing", "binding_rejected", 403,
           lambda: attest(world, with_(keys=swapped)))


def test_jose(world):
    bob = world.bob
    expect = world.expect
    given = bob.challenge()
    key = jwk.JWK(**given["server_key"])
    plain = {**bob.common(given["challenge"], None), "models": ["alice/m"],
             "keys": {n: public(k) for n, k in bob.keys.items()}, "host": "test"}
    head = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM", "kid": key.thumbprint(),
            "typ": "kvfs-evidence+jwe"}
    good = encrypt_for(key, "kvfs-evidence+jwe", plain)
    altered = bytearray(unb64(good["ciphertext"]))
    altered[0] ^= 1

    def send(token, path="/attest"):
        return bob.call("POST", path, token)

    def recoded(**changes):
        header = {k: v for k, v in {**head, **changes}.items() if v is not None}
        return {**good, "protected": b64url(json.dumps(header).encode())}
    for name, token in (
            ("alg ECDH-ES+A128KW", encrypt_for(key, "", plain, {**head, "alg": "ECDH-ES+A128KW"})),
            ("alg dir", recoded(alg="dir")),
            ("enc A128GCM", encrypt_for(key, "", plain, {**head, "enc": "A128GCM"})),
            ("enc A256CBC-HS512", encrypt_for(key, "", plain, {**head, "enc": "A256CBC-HS512"})),
            ("zip", encrypt_for(key, "", plain, {**head, "zip": "DEF"})),
            ("crit", recoded(crit=["exp"])),
            ("p2c", recoded(p2c=100000000)),
            ("jwk", recoded(jwk=public(key))),
            ("jku", recoded(jku="https://127.0.0.1/")),
            ("x5u", recoded(x5u="https://127.0.0.1/")),
            ("typ of a renewal", encrypt_for(key, "kvfs-renewal+jwe", plain)),
            ("without typ", recoded(typ=None)),
            ("without kid", recoded(kid=None)),
            ("a header altered", recoded(cty="x")),
            ("ciphertext altered", {**good, "ciphertext": b64url(altered)}),
            ("tag cut", {**good, "tag": good["tag"][:4]}),
            ("epk exchanged", {**good, "header": {"epk": public(new_key())}}),
            ("an aad", {**good, "aad": "AAAA"}),
            ("recipients", {**good, "recipients": [{}]}),
            ("compact", {"jwe": "a.b.c.d.e"}),
            ("for another key", {**encrypt_for(new_key(), "kvfs-evidence+jwe", plain),
                                 "protected": good["protected"]})):
        expect(f"evidence: {name}", "jose_rejected", 400, lambda token=token: send(token))
    expect("evidence sent as a renewal", "jose_rejected", 400, lambda: send(good, "/renew"))
    ticket = bob.ticket("alice/m")
    signer = bob.keys["sign"]
    proof = bob.proof(ticket, world.headers)

    def ask(token):
        return bob.call("POST", "/keys", {"ticket": ticket, "proof": token})

    def headed(**changes):
        header = {"alg": "ES256", "kid": signer.thumbprint(), "typ": "kvfs-proof+jws", **changes}
        return sign(signer, "", json.loads(unb64(proof["payload"])),
                    {k: v for k, v in header.items() if v is not None})

    def unsigned(**changes):
        header = {"alg": "ES256", "kid": signer.thumbprint(), "typ": "kvfs-proof+jws", **changes}
        return {**proof, "protected": b64url(json.dumps(header).encode())}
    for name, token in (
            ("alg none", {**unsigned(alg="none"), "signature": ""}),
            ("alg none, signed", unsigned(alg="none")),
            ("alg HS256", unsigned(alg="HS256")),
            ("alg EdDSA", unsigned(alg="EdDSA")),
            ("crit", headed(crit=["b64"], b64=True)),
            ("jwk", headed(jwk=public(signer))),
            ("jku", headed(jku="https://127.0.0.1/")),
            ("zip", headed(zip="DEF")),
            ("without typ", headed(typ=None)),
            ("an unprotected header", {**proof, "header": {"kid": "x"}}),
            ("a list of signatures", {"payload": proof["payload"], "signatures": []}),
            ("a string", "a.b.c"),
            ("null", None)):
        expect(f"proof: {name}", "jose_rejected", 400, lambda token=token: ask(token))
    for name, token in (
            ("typ of a binding", headed(typ="kvfs-binding+jws")),
            ("kid of another key", headed(kid=new_key().thumbprint())),
            ("by another key", bob.proof(ticket, world.headers, key=new_key())),
            ("by the audit key", bob.proof(ticket, world.headers, key=bob.keys["audit"])),
            ("payload altered", {**proof, "payload": b64url(b"{}")})):
        expect(f"proof: {name}", "proof_rejected", 403, lambda token=token: ask(token))
    with check("none of them used the ticket"):
        assert bob.ask(ticket, world.headers)[0] == "release"


def test_access(world):
    server, expect = world.server, world.expect
    eve = Runtime(server, world.eve_key)
    expect("no subscription", "denied", 200, lambda: attest(world, runtime=eve))
    expect("an unknown model", "denied", 200, lambda: attest(world, model="alice/none"))
    expect("an unknown owner", "denied", 200, lambda: attest(world, model="none/m"))
    other = copy.deepcopy(MEASUREMENTS)
    other["items"][0]["sha256"] = sha("another libc")
    runtime = Runtime(server, world.bob_key, other)
    expect("measured otherwise", "baseline_unknown", 200, lambda: attest(world, runtime=runtime))
    server.admin("baseline", "add", "alice/m", measurement(other), "--assurance=tpm")
    expect("the baseline asks for a TPM", "assurance_too_low", 200,
           lambda: attest(world, runtime=runtime))
    server.admin("baseline", "withdraw", "alice/m", measurement(other))
    expect("withdrawn", "baseline_withdrawn", 200, lambda: attest(world, runtime=runtime))
    server.admin("model", "set", "alice/m", "--assurance=tee")
    expect("the model asks for a TEE", "assurance_too_low", 200, lambda: attest(world))
    server.admin("model", "set", "alice/m", "--assurance=self-reported", "--profiles=strict")
    expect("profile none", "profile_refused", 200, lambda: attest(world))
    server.admin("model", "set", "alice/m", "--profiles=strict none")
    strict = Runtime(server, world.bob_key, {**MEASUREMENTS, "profile": "strict"})
    strict.guard = {"state": "drift", "findings": ["a mount appeared"]}
    server.admin("baseline", "add", "alice/m", measurement(strict.measurements))
    expect("the guard reports drift", "guard_drift", 200, lambda: attest(world, runtime=strict))
    strict.guard = {"state": "ok", "findings": []}
    with check("the strict profile is admitted when its guard is content"):
        assert strict.get("alice/m", {})
    world.alice.create("empty")
    server.admin("model", "set", "alice/empty", "--profiles=none")
    owner = Runtime(server, world.alice_deploy)
    expect("nothing published", "model_empty", 200,
           lambda: attest(world, runtime=owner, model="alice/empty"))
    for name, policy in (("false", "package model\nallow = false"),
                         ("undefined", "package model\nallow if input.user == \"x\""),
                         ("of another user", "package model\nallow if input.owner == input.user")):
        model = "p" + name[:1]
        with open(os.path.join(world.work, model + ".rego"), "w", encoding="utf-8") as file:
            file.write(policy)
        world.make(model, "--remote-policy", os.path.join(world.work, model + ".rego"))
        server.admin("subscription", "add", f"alice/{model}", "bob")
        expect(f"remote policy {name}", "policy_denied", 200,
               lambda model=model: attest(world, model=f"alice/{model}"))
    with check("the same policy lets its owner in"):
        assert owner.ticket("alice/po")
    server.admin("subscription", "set", world.subscription["n"], "--expires=2020-01-01")
    expect("expired", "subscription_ended", 200, lambda: attest(world, model="alice/n"))
    server.admin("subscription", "set", world.subscription["n"], "--expires=never")


def test_tickets(world):
    server, bob, expect = world.server, world.bob, world.expect

    def fresh(model="alice/m"):
        return bob.ticket(model)
    headers = world.headers
    expect("made up", "ticket_unknown", 403, lambda: bob.ask("x" * 43, headers))
    expect("SQL", "ticket_unknown", 403, lambda: bob.ask("' OR '1'='1", headers))
    expect("a number", "malformed", 400,
           lambda: bob.call("POST", "/keys", {"ticket": 1, "proof": {}}))
    ticket = fresh()
    bob.ask(ticket, headers)
    expect("after its release", "ticket_used", 403, lambda: bob.ask(ticket, headers))
    ticket = fresh()
    for _ in range(2):
        assert bob.ask(ticket, {})[0] == "sync"
    expect("a third synchronisation", "sync_limit", 403, lambda: bob.ask(ticket, {}))
    expect("a fourth use", "ticket_used", 403, lambda: bob.ask(ticket, headers, call=4))
    ticket = fresh()
    proof = {"ticket": ticket, "proof": bob.proof(ticket, {})}
    bob.call("POST", "/keys", proof)
    expect("a proof replayed", "call_out_of_order", 403, lambda: bob.call("POST", "/keys", proof))
    expect("a call left out", "call_out_of_order", 403, lambda: bob.ask(ticket, headers, call=3))
    ticket, other = fresh(), fresh("alice/n")
    expect("a proof for another ticket", "proof_rejected", 403, lambda: bob.call(
        "POST", "/keys", {"ticket": other, "proof": bob.proof(ticket, headers)}))
    second = Runtime(server, world.bob_key)
    second.challenge()
    expect("another runtime's", "proof_rejected", 403, lambda: second.ask(ticket, headers))
    expect("headers altered beside their digest", "proof_rejected", 403, lambda: bob.ask(
        ticket, headers, change=lambda p: {**p, "headers_sha256": headers_digest([])}))
    for name, change in (
            ("a path twice", lambda p: {**p, "headers": p["headers"] * 2}),
            ("a path upwards", lambda p: {**p, "headers": [{"path": "../x", "sha256": sha("x")}]}),
            ("an absolute path", lambda p: {**p, "headers": [{"path": "/x", "sha256": sha("x")}]}),
            ("no digest", lambda p: {**p, "headers": [{"path": "x", "sha256": "x"}]}),
            ("call a string", lambda p: {**p, "call": "1"}),
            ("version 2", lambda p: {**p, "version": 2}),
            ("a member more", lambda p: {**p, "more": 1}),
            ("too many headers", lambda p: {**p, "headers": [
                {"path": str(i), "sha256": sha("x")} for i in range(10001)]})):
        expect(name, "malformed", 400,
               lambda change=change: bob.ask(ticket, headers, change=change))
    with check("a header missing, added, altered, under another name: a synchronisation each"):
        for wrong in ({}, {**headers, "more": b"x"}, {FILE: headers[FILE] + b" "},
                      {"other.safetensors": headers[FILE]}):
            kind, _, right = bob.ask(fresh(), wrong)
            assert kind == "sync" and right == headers, wrong.keys()
    ticket = fresh("alice/n")
    server.admin("revoke", "subscription", world.subscription["n"])
    expect("subscription ended after the ticket", "subscription_ended", 403,
           lambda: bob.ask(ticket, {}))
    server.admin("subscription", "add", "alice/n", "bob")
    ticket = fresh("alice/n")
    server.admin("revoke", "subscription", next(
        s["id"] for s in server.admin("subscription", "list")
        if s["model"] == "alice/n" and not s["ended"]))
    server.admin("subscription", "add", "alice/n", "bob")
    expect("of a subscription before this one", "subscription_ended", 403,
           lambda: bob.ask(ticket, {}))
    ticket = fresh()
    world.alice.publish("m", {FILE: header_of(os.path.join(world.work, "m", FILE))})
    expect("of an older generation", "generation_changed", 409, lambda: bob.ask(ticket, headers))
    ticket = fresh()
    server.admin("baseline", "withdraw", "alice/m", measurement(MEASUREMENTS))
    expect("baseline withdrawn after the ticket", "baseline_withdrawn", 403,
           lambda: bob.ask(ticket, headers))
    server.admin("baseline", "add", "alice/m", measurement(MEASUREMENTS))
    key = server.admin("apikey", "add", "bob", "--scope=deploy")
    runtime = Runtime(server, key["api_key"])
    ticket = runtime.ticket("alice/m")
    server.admin("revoke", "apikey", key["id"])
    expect("API key revoked after the ticket", "denied", 401, lambda: runtime.ask(ticket, {}))
    _, world.keys, world.headers = bob.get("alice/m", {})


def test_leases(world):
    server, bob, expect = world.server, world.bob, world.expect
    answer, _, _ = bob.get("alice/m", world.headers)
    lease, generation = answer["lease"]["id"], answer["generation"]
    eve = Runtime(server, world.eve_key)
    eve.keys, eve.thumbs = bob.keys, bob.thumbs
    expect("renewal by another user", "lease_unknown", 404, lambda: eve.renew(lease))
    other = Runtime(server, world.bob_key)
    expect("renewal by another runtime", "binding_rejected", 403, lambda: other.renew(lease))
    expect("renewal of none", "lease_unknown", 404, lambda: bob.renew("0" * 32))
    expect("renewal of a name", "lease_unknown", 404, lambda: bob.renew("' OR 1=1"))
    changed = copy.copy(bob)
    changed.measurements = {**MEASUREMENTS, "items": MEASUREMENTS["items"][:1]}
    server.admin("baseline", "add", "alice/m", measurement(changed.measurements))
    expect("renewal measured otherwise", "measurement_changed", 403, lambda: changed.renew(lease))
    given = bob.challenge()
    replay = bob.renewal(given, lease)
    bob.call("POST", "/renew", replay)
    expect("renewal replayed", "challenge_used", 403, lambda: bob.call("POST", "/renew", replay))
    server.admin("baseline", "withdraw", "alice/m", measurement(MEASUREMENTS))
    expect("renewal after withdrawal", "baseline_withdrawn", 403, lambda: bob.renew(lease))
    server.admin("baseline", "add", "alice/m", measurement(MEASUREMENTS))
    for query in ("", "?nonce=short&generation=1&timeout=1", "?nonce=" + "A" * 20,
                  "?nonce=" + "A" * 20 + "&generation=1&timeout=0",
                  "?nonce=" + "A" * 20 + "&generation=1&timeout=61",
                  "?nonce=" + "A" * 20 + "&generation=-1&timeout=1",
                  "?nonce=" + "A" * 20 + "&generation=x&timeout=1",
                  "?nonce=" + "%22" * 20 + "&generation=1&timeout=1"):
        expect(f"wait{query[:40]}", "malformed", 400,
               lambda query=query: bob.call("GET", f"/leases/{lease}/wait{query}"))
    expect("wait for none", "lease_unknown", 404, lambda: bob.wait("0" * 32, 1, 1))
    expect("giving back by another key", "proof_rejected", 403, lambda: other.end(lease))
    end = sign(bob.keys["sign"], "kvfs-end+jws", {"version": 1, "lease": "0" * 32})
    expect("giving back another", "proof_rejected", 403,
           lambda: bob.call("POST", f"/leases/{lease}/end", {"proof": end}))
    start = sha(f"kvfs-audit-v1\n{lease}\n")
    for name, records in (("none", []), ("too many", ["x"] * 257), ("an empty one", [""]),
                          ("a long one", ["x" * 4097]), ("a number", [1])):
        head = "0" * 64
        expect(f"audit records: {name}", "malformed", 400,
               lambda records=records, head=head: bob.audit(lease, 1, start, records, head))
    expect("audit of another lease", "lease_unknown", 404,
           lambda: bob.audit("0" * 32, 1, start, ["x"]))
    server.admin("revoke", "lease", lease)
    expect("renewal after revocation", "lease_revoked", 403, lambda: bob.renew(lease))
    with check("a lease that ran out is gone"):
        # The shortest lease is a minute; its end is set by hand.
        answer, _, _ = bob.get("alice/m", world.headers)
        lease = answer["lease"]["id"]
        server.sql(f"UPDATE leases SET expires = {int(time.time()) - 1} WHERE id = '{lease}'")
        with refused("lease_expired", 403):
            bob.renew(lease)
        assert bob.wait(lease, generation, 5)["state"] == "expired"


def test_publisher(world):
    alice, expect, server = world.alice, world.expect, world.server
    bob = Publisher(server, world.bob_publish)
    header = header_of(os.path.join(world.work, "m", FILE))
    for path in ("/master-key", "", "/files", f"/files/{FILE}", "/stages/s"):
        expect(f"somebody else's model{path}", "not_found", 404,
               lambda path=path: bob.call("GET", alice.model("m", path)))
        expect(f"no model{path}", "not_found", 404,
               lambda path=path: alice.call("GET", alice.model("none", path)))
    expect("somebody else's upload", "not_found", 404,
           lambda: bob.call("POST", alice.model("m", "/files"), {"files": [
               {"filename": FILE, "file_header": base64.b64encode(header).decode()}]}))
    expect("somebody else's deletion", "not_found", 404,
           lambda: bob.call("DELETE", alice.model("m", "/files")))
    for name in ("", ".", "..", "a/b", "-x", "a b", "x" * 65, "'; DROP TABLE models; --",
                 "\u00e4"):
        expect(f"a model {name[:10]!r}", "name_invalid", 400,
               lambda name=name: alice.create(name))
    expect("a model's name a list", "malformed", 400, lambda: alice.create(["x"]))
    expect("a description with lines", "name_invalid", 400,
           lambda: alice.create("x", description="a\nb"))
    for name in ("../x", "/x", "a//b", "a/./b", "a\\b", "x\n", "", "x" * 256, "a/"):
        expect(f"a filename {name[:10]!r}", "name_invalid", 400,
               lambda name=name: alice.upload("m", {name: header}))
    for name, data in (
            ("no bytes", b""), ("seven bytes", b"1234567"),
            ("another length", struct.pack("<Q", len(header)) + header[8:]),
            ("no JSON", struct.pack("<Q", 8) + b"notjson!"),
            ("a plain file's", header_of(os.path.join(world.plain, FILE))),
            ("cut", header[:-8]), ("a byte altered", header[:200] + b"~" + header[201:]),
            ("of another model", header_of(os.path.join(world.work, "n", FILE))),
            ("a subscriber's", world.headers[FILE])):
        expect(f"a header: {name}", "header_rejected", 422,
               lambda data=data: alice.upload("m", {FILE: data}))
    expect("a header above 10 MiB", "header_too_large", 413, lambda: alice.upload(
        "m", {FILE: struct.pack("<Q", 10 << 20) + b" " * (10 << 20)}))
    expect("more than 100 files", "malformed", 400,
           lambda: alice.upload("m", {f"{i}": header for i in range(101)}))
    expect("no files", "malformed", 400, lambda: alice.upload("m", {}))
    expect("a stage's name", "name_invalid", 400,
           lambda: alice.upload("m", {FILE: header}, "../s"))
    expect("not base64", "malformed", 400, lambda: alice.call(
        "POST", alice.model("m", "/files"), {"files": [{"filename": FILE, "file_header": "@"}]}))

    def generation(**changes):
        return alice.call("POST", alice.model("m", "/generations"), {
            "stage": "s", "generation": alice.detail("m")["next_generation"], "manifest": None,
            **changes})
    expect("an empty stage", "stage_empty", 409, generation)
    alice.upload("m", {FILE: header}, "s")
    expect("a generation left out", "generation_mismatch", 409,
           lambda: generation(generation=alice.detail("m")["next_generation"] + 1))
    expect("a generation again", "generation_mismatch", 409, lambda: generation(generation=1))
    expect("no manifest at all", "manifest_rejected", 422, lambda: generation(manifest="{}"))
    with open(os.path.join(world.work, "m", "kvfs.manifest"), encoding="utf-8") as file:
        manifest = file.read()
    expect("a manifest of another generation", "manifest_rejected", 422,
           lambda: generation(manifest=manifest))
    expect("a generation as text", "malformed", 400, lambda: generation(generation="1"))
    with check("none of it changed what is current"):
        assert alice.call("GET", alice.model("m", "/files"))["total_count"] == 1
        assert world.bob.get("alice/m", world.headers)


def test_http(world):
    server, expect = world.server, world.expect
    http = server.http()
    token = {"Authorization": "Bearer " + world.alice.session["access_token"]}

    def send(method, path, body=b"", headers=None, raw=None):
        status, data = http.raw(method, path, body, headers)
        envelope = json.loads(data)
        if status != 200:
            raise Refused(status, envelope)
    challenge = DEPLOY + "/challenge"
    for name, body in (("nothing", b""), ("no JSON", b"{"), ("a list", b"[]"),
                       ("two members of one name", b'{"versions":[1],"versions":[1]}'),
                       ("bytes after it", b'{"versions":[1]}x'), ("no UTF-8", b'{"v\xff":1}'),
                       ("a NUL", b'{"versions":[1],"\\u0000":1}'),
                       ("very deep", b"[" * 100000), ("a deep member",
                                                      b'{"a":' * 3000 + b"1" + b"}" * 3000)):
        expect(f"body: {name}", "malformed", 400,
               lambda body=body: send("POST", challenge, body))
    expect("body: 5 MiB", "too_large", 413,
           lambda: send("POST", challenge, b" " * (5 << 20)), audited=False)
    expect("body: 5 MiB in chunks", "too_large", 413,
           lambda: send("POST", challenge, [b" " * (1 << 20)] * 5,
                        {"Transfer-Encoding": "chunked"}), audited=False)
    expect("an upload without a token", "token_invalid", 401,
           lambda: send("POST", world.alice.model("m", "/files"), b"x" * 1000), audited=False)
    for text in ("x", "Bearer", "Bearer ", "Bearer x", "Basic eDp4", "Bearer " + "A" * 76,
                 "Bearer " + world.alice.session["refresh_token"]):
        expect(f"token {text[:12]!r}", "token_invalid", 401,
               lambda text=text: send("GET", "/api/users/sign-key", b"", {"Authorization": text}),
               audited=False)
    expect("another method", "method_not_allowed", 405,
           lambda: send("DELETE", challenge), audited=False)
    for path in ("/", "/api", "/api/", DEPLOY, "/healthz/", "/api/resources//models",
                 "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/deploy/v2/challenge"):
        expect(f"address {path}", "not_found", 404,
               lambda path=path: send("GET", path), audited=False)
    for path in ("/api/resources/alice/models/%00", "/api/resources/alice/models/m'--",
                 "/api/resources/alice%2fx/models/m", "/api/resources/%61lice2/models/m",
                 "/api/resources/alice/models/m/files/..%2f..%2fx"):
        expect(f"address {path}", "not_found", 404,
               lambda path=path: send("GET", path, b"", token), audited=False)
    expect("login with a wrong key", "denied", 401, lambda: Publisher(server, "kvfs_publish_x"))
    expect("login with SQL", "denied", 401, lambda: Publisher(server, "' OR 1=1; --"))
    expect("login with a number", "malformed", 400, lambda: Publisher(server, 1))
    expect("login without a key", "malformed", 400,
           lambda: send("POST", "/api/auth/inference-login", b"{}"))
    expect("refresh with nothing of ours", "token_invalid", 401, lambda: send(
        "POST", "/api/auth/refresh", b'{"refresh_token":"x"}'))
    with check("a wrong key, an unknown user and an unknown model look alike"):
        seen = set()
        for change in (with_(api_key="kvfs_deploy_" + "x" * 43),):
            try:
                attest(world, change)
            except Refused as error:
                seen.add((error.code, error.envelope["message"]))
        for model in ("alice/none", "none/none"):
            try:
                attest(world, model=model)
            except Refused as error:
                seen.add((error.code, error.envelope["message"]))
        assert len(seen) == 1, seen


def test_tls(world):
    server = world.server
    with check("TLS: another name than the certificate's is refused"):
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            try:
                server.http().context.wrap_socket(plain, server_hostname="example.org")
                raise AssertionError("accepted")
            except ssl.SSLCertVerificationError:
                pass
    with check("TLS: below 1.2 is refused"):
        result = run("openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_1",
                     check=False)
        assert result.returncode != 0
    with check("another server's identity does not fit the pin"):
        with Server() as other:
            stranger = Runtime(other, "x", pin=server.thumbprint)
            try:
                stranger.challenge()
                raise AssertionError("accepted")
            except AssertionError as error:
                assert "another server's identity" in str(error), error
    with check("plain HTTP gets no answer"):
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            plain.settimeout(10)
            try:
                assert b"200" not in plain.recv(100)
            except ConnectionError:
                pass


def test_rates():
    with Server("--rate-login=1", "--rate-attest=1") as server:
        http = server.http()
        for name, path, body, normal in (
                ("login", "/api/auth/inference-login", {"api_key": "x"}, "denied"),
                ("challenge", DEPLOY + "/challenge", {"versions": [2]}, "version_unsupported")):
            with check(f"rate_limited: {name}"):
                codes = []
                for _ in range(40):
                    try:
                        http.call("POST", path, body)
                    except Refused as error:
                        codes.append(error.code)
                assert codes[:30] == [normal] * 30 and "rate_limited" in codes[30:], codes


def test_time():
    with Server("--challenge-seconds=2", "--ticket-seconds=2") as server:
        world = World(server)
        bob = world.bob
        given, ticket = bob.challenge(), bob.ticket("alice/m")
        assert given["expires_in"] == 2
        time.sleep(2.2)
        world.expect("too old", "challenge_expired", 403, lambda: attest(world, given=given))
        world.expect("too old", "ticket_expired", 403, lambda: bob.ask(ticket, world.headers))


def test_admin(world):
    server = world.server
    with check("the administrator's mistakes are named"):
        for arguments, code, words in (
                (("user", "add", "alice"), 1, "there is a user"),
                (("user", "add", "a b"), 2, "characters"),
                (("user", "add"), 2, "NAME"),
                (("user", "add", "x", "--no=1"), 2, "no option"),
                (("user", "add", "x", "--json=1"), 2, "no option"),
                (("user", "add", "x", "--dir"), 2, "no option"),
                (("apikey", "add", "alice", "--scope=all"), 2, "publish or deploy"),
                (("apikey", "add", "none", "--scope=deploy"), 1, "no user"),
                (("model", "add", "alice"), 2, "OWNER/NAME"),
                (("model", "set", "alice/m", "--lease=59"), 2, "60 to 86400"),
                (("model", "set", "alice/m", "--lease=86401"), 2, "86400"),
                (("model", "set", "alice/m", "--assurance=full"), 2, "tee"),
                (("model", "set", "alice/none"), 1, "no model"),
                (("subscription", "add", "alice/m", "bob"), 1, "running subscription"),
                (("subscription", "add", "alice/m", "alice"), 2, "owner"),
                (("subscription", "add", "alice/m", "eve", "--expires=soon"), 2, "date"),
                (("baseline", "add", "alice/m", "xyz"), 2, "64"),
                (("baseline", "withdraw", "alice/m", "0" * 64), 1, "no such baseline"),
                (("revoke", "lease", "0" * 32), 1, "nothing")):
            result = server.run(*arguments, check=False)
            assert result.returncode == code and words in result.stderr, (arguments, result.stderr)
    with check("a database that is newer than the program is refused"):
        server.sql("INSERT INTO schema_version (version) VALUES (99)")
        for command in (("user", "list"), ("migrate",), ("init",)):
            result = server.run(*command, check=False)
            assert result.returncode == 1 and "newer" in result.stderr, result.stderr
        server.sql("DELETE FROM schema_version WHERE version = 99")
        server.run("migrate")
        server.run("user", "list")
    with check("the protocol page has the program's table of codes"):
        table = server.run("codes").stdout
        with open(os.path.join(ROOT, "keyserver/PROTOCOL.md"), encoding="utf-8") as file:
            assert table in file.read(), "print it with: kvfs-keyserver codes"
    with check("every list, as a table and as JSON"):
        for noun in ("user", "apikey", "model", "subscription", "baseline", "lease", "audit"):
            rows = server.admin(noun, "list")
            assert isinstance(rows, list), noun
            lines = server.run(noun, "list").stdout.splitlines()
            assert noun == "audit" or len(lines) == len(rows) + 1, noun


def test_secrets(world):
    with check("no secret in log, audit or answers to others"):
        text = world.server.log() + json.dumps(world.server.audit())
        for secret in (world.alice_key, world.alice_deploy, world.bob_key, world.bob_publish,
                       world.keys["master_key"]["k"], world.alice.keys("m")[0]["k"],
                       world.alice.keys("m")[1]["d"], world.alice.session["access_token"],
                       world.alice.session["refresh_token"]):
            assert secret not in text
    with check("what a proxy sees of an exchange: no API key, measurements, or keys"):
        bob = Runtime(world.server, world.bob_key)
        _, keys, _ = bob.get("alice/m", {})
        wire = b"".join(part for entry in bob.http.seen for part in entry[1:])
        decoded = b"".join(unb64_or_nothing(t) for t in re.findall(rb"[A-Za-z0-9_-]{16,}", wire))
        for what in (world.bob_key, MEASUREMENTS["items"][0]["sha256"], "libc.so.6",
                     keys["master_key"]["k"], keys["verify_key"]["x"]):
            assert what.encode() not in wire + decoded, what


def unb64_or_nothing(text):
    try:
        return unb64(text.decode())
    except ValueError:
        return b""


def main():
    with kspostgres.chosen() as postgres, Server("--challenge-seconds=600", "--ticket-seconds=600",
                                                 postgres=postgres) as server:
        world = World(server)
        for test in (test_challenge, test_evidence, test_jose, test_access, test_tickets,
                     test_leases, test_publisher, test_http, test_tls, test_admin, test_secrets):
            test(world)
    test_time()
    test_rates()
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
