#!/usr/bin/env python3
"""Between the C client and a real server a proxy that ends TLS with a certificate that the client's
side trusts. What it records holds no secret, and nothing that it changes gets through."""
import base64
import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading

import kspostgres
from ksclient import (MEASUREMENTS, Http, Publisher, Runtime, Server, b64url, encrypt, encrypt_for,
                      header_of, measurement, new_key, public, sha, sign, unb64, write_plain)
from kvfstest import ROOT, Checks, workdir

checks = Checks()
check = checks.check
WORK = workdir()
TOOL = os.path.join(os.environ.get("KVFS_TOOLS", os.path.join(ROOT, "build/release/tests")),
                    "kc_tool")
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


class Proxy:
    """Takes TLS connections with a certificate of its own, passes requests on to the server, and
    keeps all bytes of both directions. `alter(call, data)` may change an answer's data."""

    def __init__(self, server, other):
        self.server, self.record, self.alter = server, [], None
        self.cafile = os.path.join(other.dir, "tls.crt")
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.cafile, os.path.join(other.dir, "tls.key"))
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            raw, _ = self.listening.accept()
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                with self.context.wrap_socket(raw, server_side=True) as client:
                    self.carry(client)

    def carry(self, client):
        upstream = Http(self.server)
        stream = client.makefile("rb")
        while True:
            line = stream.readline()
            if not line:
                return
            head = [line]
            while head[-1] not in (b"\r\n", b""):
                head.append(stream.readline())
            length = re.search(rb"(?i)content-length: *(\d+)", b"".join(head))
            body = stream.read(int(length[1]) if length else 0)
            method, path, _ = line.decode().split(" ")
            status, answer = upstream.raw(method, path, body)
            self.record += [b"".join(head), body, answer]
            answer = self.changed(path, answer)
            client.sendall(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(answer))
                           + answer)

    def changed(self, path, answer):
        envelope = json.loads(answer)
        if not self.alter or not envelope["data"]:
            return answer
        envelope["data"] = self.alter(path.rsplit("/", 1)[1], envelope["data"])
        return json.dumps(envelope).encode()


def exchange(proxy, key, source):
    """The lines that the client ended with."""
    carrier = Http(proxy.server, cafile=proxy.cafile, port=proxy.port)
    with subprocess.Popen([TOOL, "exchange", proxy.server.thumbprint, "alice/m", source, "0",
                           *SHARDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "KEY": key}) as tool:
        said = []
        for line in tool.stdout:
            if not line.startswith(("GET ", "POST ")):
                said.append(line.rstrip("\n"))
                continue
            method, path, body = line.rstrip("\n").split(" ", 2)
            status, answer = carrier.raw(method, path, body.encode())
            tool.stdin.write(f"{status} {answer.decode()}\n")
            tool.stdin.flush()
    return said


def setup(server):
    publish, = server.user("alice", "publish")
    bob, = server.user("bob", "deploy")
    alice = Publisher(server, publish)
    alice.create("m")
    digest = subprocess.run([TOOL, "measure"], stdout=subprocess.PIPE, text=True,
                            check=True).stdout.strip()
    server.admin("model", "set", "alice/m", "--profiles=none")
    server.admin("baseline", "add", "alice/m", digest)
    server.admin("subscription", "add", "alice/m", "bob")
    plain = os.path.join(WORK, "plain")
    os.makedirs(plain)
    for name in SHARDS:
        write_plain(os.path.join(plain, name), {"w": os.urandom(1000), "v": os.urandom(50)})
    source = encrypt(plain, os.path.join(WORK, "enc"), alice.keys("m"))
    alice.publish("m", {name: header_of(os.path.join(source, name)) for name in SHARDS})
    return bob, source, digest, alice.keys("m")


# ---- what it finds ----

def decoded(data, depth=0):
    """The bytes, and what is base64 in them, and in that."""
    yield data
    for text in set(re.findall(rb"[A-Za-z0-9_+/=-]{16,}", data)) if depth < 4 else ():
        for alphabet in (b"-_", b"+/"):
            with contextlib.suppress(ValueError):
                yield from decoded(base64.b64decode(
                    text.rstrip(b"=") + b"=" * (-len(text.rstrip(b"=")) % 4), alphabet, True),
                    depth + 1)


def secrets_of(server, key, digest, owners):
    """{what: bytes} that no record may have."""
    server.admin("baseline", "add", "alice/m", measurement(MEASUREMENTS))
    _, released, _ = Runtime(server, key).get("alice/m", {})
    with open(TOOL, "rb") as file:
        executable = sha(file.read())
    found = {what: value.encode() for what, value in (
        ("API key", key), ("measurement digest", digest), ("digest of the executable", executable),
        ("name of a library", "libcrypto.so.3"))}
    for what, value in (("master key", released["master_key"]["k"]),
                        ("verify key", released["verify_key"]["x"]),
                        ("producer's master key", owners[0]["k"]),
                        ("producer's sign key", owners[1]["d"])):
        found[what] = value.rstrip("=").encode()
        found[what + ", raw"] = base64.b64decode(value)
    return found


def test_record(proxy, world):
    bob, source, digest, owners = world
    with check("through the proxy all works, and what it records holds no secret"):
        said = exchange(proxy, bob, source)
        assert len(said) == 3 and said[2].startswith("held "), said
        secrets = secrets_of(proxy.server, bob, digest, owners)
        seen = list(decoded(b"\n".join(proxy.record)))
        for what, value in secrets.items():
            assert not any(value in data for data in seen), what
        assert any(b"kvfs-evidence+jwe" in data for data in seen), "the search finds nothing"


# ---- what it changes ----

def payload_of(data):
    return json.loads(unb64(data["signed"]["payload"]))


def repacked(data, change):
    """The payload changed, the signature as it was."""
    payload = payload_of(data)
    change(payload)
    data["signed"]["payload"] = b64url(json.dumps(payload).encode())
    return data


class Evil:
    """A proxy with keys of its own."""

    def __init__(self):
        self.identity, self.key = new_key(), new_key()

    def resigned(self, data, typ, change):
        """The payload changed, and signed by an identity of its own that claims the kid."""
        payload = payload_of(data)
        kid = json.loads(unb64(data["signed"]["protected"]))["kid"]
        change(payload)
        data["signed"] = sign(self.identity, typ, payload,
                              {"alg": "ES256", "kid": kid, "typ": typ})
        return data

    def keys_for(self, name):
        """A release's JWE with another key in it, for the one whose key it knows: itself."""
        keys = {"version": 1, "ticket_sha256": "0" * 64, "model": "alice/m", "generation": 1,
                name: {"kty": "oct", "alg": "aes256gcm", "kid": "x", "k": "AAAA"}}
        return encrypt_for(self.key, "kvfs-keys+jwe", keys)


def substitutions(evil):
    """{what: (call, decision or None, function of data)}"""
    kinds = {"challenge": "kvfs-challenge+jws", "sync": "kvfs-sync+jws",
             "release": "kvfs-release+jws"}
    changes = {
        "server key": ("challenge", None, lambda p: p.update(server_key=public(evil.key))),
        "challenge": ("challenge", None, lambda p: p.update(challenge="A" * 60)),
        "header digests": ("keys", "sync", lambda p: p["headers"][0].update(sha256="0" * 64)),
        "generation": ("keys", "release", lambda p: p.update(generation=7)),
        "lease": ("keys", "release", lambda p: p["lease"].update(seconds=86400)),
        "decision": ("keys", "release", lambda p: p.update(decision="sync")),
        "assurance": ("keys", "release", lambda p: p.update(assurance="tee")),
        "master key": ("keys", "release", lambda p: p.update(release=evil.keys_for("master_key"))),
        "verify key": ("keys", "release", lambda p: p.update(release=evil.keys_for("verify_key"))),
        "runtime's keys": ("keys", "release", lambda p: p["keys"].update(
            decrypt=evil.key.thumbprint())),
    }
    for what, (call, decision, change) in changes.items():
        yield f"{what}, the signature as it was", call, decision, \
            lambda data, change=change: repacked(data, change)
        yield f"{what}, signed by the proxy", call, decision, \
            lambda data, change=change, typ=kinds[decision or call]: \
            evil.resigned(data, typ, change)
    yield "the identity as well", "challenge", None, lambda data: evil.resigned(
        {**data, "identity": public(evil.identity)}, "kvfs-challenge+jws",
        lambda p: p.update(server_key=public(evil.key)))

    def headers(data):
        text = data["headers"][0]["header"]
        data["headers"][0]["header"] = text[:200] + ("A" if text[200] != "A" else "B") + text[201:]
        return data
    yield "a header", "keys", "sync", headers


def test_substitutions(proxy, world):
    bob, source = world[:2]
    evil = Evil()
    for what, call, decision, change in substitutions(evil):
        with check("the proxy changes: " + what):
            done = []

            def alter(path, data, call=call, decision=decision, change=change, done=done):
                if path != call or (decision and payload_of(data)["decision"] != decision):
                    return data
                done.append(path)
                return change(data)
            proxy.alter = alter
            said = exchange(proxy, bob, source)
            assert done, "it did not come to that"
            assert said and said[-1].startswith("failed "), said
            assert not any(line.startswith(("opened", "held")) for line in said), said
    with check("the proxy gives a runtime the release of another"):
        kept = []

        def first(path, data):
            if path == "keys" and payload_of(data)["decision"] == "release":
                kept.append(data)
                return kept[0]
            return data
        proxy.alter = first
        assert exchange(proxy, bob, source)[-1].startswith("held ")
        assert exchange(proxy, bob, source)[-1].startswith("failed EKEYREJECTED")


def main():
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        proxy = Proxy(server, Server().init())
        world = setup(server)
        test_record(proxy, world)
        test_substitutions(proxy, world)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
