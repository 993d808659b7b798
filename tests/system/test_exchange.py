#!/usr/bin/env python3
"""keyclient against a real kvfs-keyserver over TLS: the C client says what to send, this script
carries it, as it is or altered."""
import json
import os
import subprocess
import sys

import kspostgres
from ksclient import (KC_TOOL, Publisher, Server, encrypt, header_of, kc_exchange, measurement, sha,
                      write_plain)
from kvfstest import Checks, kvfs, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def refused(said, errno, words):
    assert said and said[-1].startswith(f"failed {errno} "), said
    assert words in said[-1], said


def setup(server):
    publish, _ = server.user("alice", "publish", "deploy")
    bob, = server.user("bob", "deploy")
    alice = Publisher(server, publish)
    alice.create("m")
    digest = subprocess.run([KC_TOOL, "measure"], stdout=subprocess.PIPE, text=True,
                            check=True).stdout.strip()
    server.admin("model", "set", "alice/m", "--profiles=none")
    server.admin("baseline", "add", "alice/m", digest)
    plain = os.path.join(WORK, "plain")
    os.makedirs(plain)
    for name in SHARDS:
        write_plain(os.path.join(plain, name), {f"w{k}": os.urandom(1000 + k) for k in range(4)})
    source = encrypt(plain, os.path.join(WORK, "enc"), alice.keys("m"), "--generation", "1")
    headers = {name: header_of(os.path.join(source, name)) for name in SHARDS}
    with open(os.path.join(source, "kvfs.manifest"), encoding="utf-8") as file:
        manifest = file.read()
    alice.publish("m", headers, manifest)
    server.admin("subscription", "add", "alice/m", "bob")
    return bob, source, headers, manifest


def test_release(server, world):
    bob, source, headers, manifest = world
    with check("one synchronisation, a release that opens every tensor, a renewal"):
        said = kc_exchange(server, bob, source)
        assert len(said) == 3 and said[2].startswith("held "), said
        for line, name in zip(said, SHARDS):
            _, path, opened, digest = line.split()
            assert path == name and opened == "4/4" and digest != sha(headers[name])
        assert said[2].split()[2:] == ["1", sha(manifest)]


def tampered(step, change):
    """An answer of this step with its envelope's data changed."""
    def alter(path, text):
        if path != step:
            return text
        envelope = json.loads(text)
        change(envelope["data"])
        return json.dumps(envelope)
    return alter


def replayed(step):
    """The first answer of this step is given for ever."""
    kept = []

    def alter(path, text):
        if path == step:
            kept.append(text)
            return kept[0]
        return text
    return alter


def test_refusals(server, world):
    bob, source, _, _ = world
    with check("another thumbprint"):
        refused(kc_exchange(server, bob, source, pin="A" * 43), "EKEYREJECTED", "identity")
    with check("another deploy key"):
        refused(kc_exchange(server, "kvfs_deploy_x", source), "EACCES", "(denied")
    with check("a model that is not subscribed"):
        refused(kc_exchange(server, bob, source, model="alice/other"), "EACCES", "(denied)")
    with check("a generation lower than one that was seen"):
        refused(kc_exchange(server, bob, source, seen=2), "EKEYREJECTED", "seen already")
    with check("a file that is missing"):
        refused(kc_exchange(server, bob, source, shards=SHARDS[:1]), "EKEYREJECTED", "body_outdated")

    def flip(data):
        text = data["headers"][0]["header"]
        data["headers"][0]["header"] = text[:100] + ("A" if text[100] != "A" else "B") + text[101:]

    def drop(data):
        data.get("headers", []).pop()
    for name, alter, words in (
            ("a header altered on the way", tampered("keys", flip), "not the one that"),
            ("a header left out", tampered("keys", drop), "did not send"),
            ("a challenge altered", tampered("challenge", lambda d: d["signed"].update(
                payload=d["signed"]["payload"][:-4] + "AAAA")), "signature"),
            ("a ticket put in the place of a release", replayed("keys"), "answer")):
        with check("a proxy: " + name):
            refused(kc_exchange(server, bob, source, alter=alter), "EKEYREJECTED", words)
    with check("a proxy: a challenge that was used before"):
        refused(kc_exchange(server, bob, source, alter=replayed("challenge")), "EACCES",
                "challenge_used")
    with check("a subscription that was revoked"):
        listed = server.admin("subscription", "list")
        server.admin("revoke", "subscription", listed[0]["id"])
        refused(kc_exchange(server, bob, source), "EACCES", "refuses")


def test_measure():
    with check("kvfs measure: the digest of what it lists, which is what lies on the disk"):
        one = json.loads(kvfs("measure", "--json").stdout)
        digest = one.pop("digest")
        assert digest == measurement(one) == kvfs("measure").stdout.strip()
        items = {(item["kind"], item["name"]): item["sha256"] for item in one["items"]}
        with open(os.environ["KVFS"], "rb") as file:
            assert items["executable", "kvfs"] == sha(file.read())
        assert ("library", "libcrypto.so.3") in items and ("library", "libc.so.6") in items


def main():
    test_measure()
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        world = setup(server)
        test_release(server, world)
        test_refusals(server, world)
    return checks.finish()


sys.exit(main())
