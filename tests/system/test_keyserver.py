#!/usr/bin/env python3
"""The key server over TLS: a producer, a subscriber, an operator; what is released is what opens."""
import base64
import json
import os
import sys
import threading
import time

import kspostgres
from ksclient import (MEASUREMENTS, Publisher, Refused, Runtime, Server, encrypt, header_of,
                      measurement, refused, sha, timed, with_header, write_plain)
from kvfstest import Checks, kvfs, run, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def make_plain(directory, seed=b""):
    os.makedirs(directory)
    for i, name in enumerate(SHARDS):
        write_plain(os.path.join(directory, name),
                    {f"w{i}.{k}": os.urandom(1000 + k) + seed for k in range(4)})
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        file.write("{}")
    return directory


def headers_in(directory):
    return {name: header_of(os.path.join(directory, name)) for name in SHARDS}


def manifest_in(directory):
    with open(os.path.join(directory, "kvfs.manifest"), encoding="utf-8") as file:
        return file.read()


def open_with(source, headers, keys, name):
    """Whether kvfs verify opens the model with these headers and keys: its result."""
    directory = os.path.join(WORK, name)
    os.makedirs(directory)
    for path, header in headers.items():
        with_header(os.path.join(source, path), header, os.path.join(directory, path))
    for path in ("config.json", "kvfs.manifest"):
        if os.path.exists(os.path.join(source, path)):
            run("cp", os.path.join(source, path), directory, check=True)
    keyfile = directory + ".jwks"
    with open(keyfile, "w", encoding="utf-8") as file:
        json.dump({"keys": keys}, file)
    return kvfs("verify", directory, "--key", keyfile, check=False)


def released_keys(keys):
    return [keys["master_key"], keys["verify_key"], keys["manifest_key"]]


def setup(server):
    """Users alice (producer), bob and carol (subscribers) and a published model."""
    world = {"server": server}
    world["alice_key"], world["alice_deploy"] = server.user("alice", "publish", "deploy")
    world["bob"], = server.user("bob", "deploy")
    world["carol"], = server.user("carol", "deploy")
    alice = world["alice"] = Publisher(server, world["alice_key"])
    for name in ("m", "n"):
        alice.create(name, description=f"the model {name}")
        server.admin("model", "set", f"alice/{name}", "--profiles=none")
        server.admin("baseline", "add", f"alice/{name}", measurement(MEASUREMENTS))
    world["plain"] = make_plain(os.path.join(WORK, f"plain-{Server.count}"))
    for name in ("m", "n"):
        world[name] = encrypt(world["plain"], os.path.join(WORK, f"enc-{name}-{Server.count}"),
                              alice.keys(name), "--generation", "1")
        world[name + "-headers"] = headers_in(world[name])
    return world


def test_publisher(world):
    server, alice = world["server"], world["alice"]
    with check("a model has its own master key, a user one sign key"):
        one, two = alice.keys("m"), alice.keys("n")
        assert one[0]["k"] != two[0]["k"] and one[0]["kid"] != two[0]["kid"]
        assert one[1] == two[1]
        assert one[0]["jku"] == "koalavault://resources/alice/models/m/master-key"
        assert one[1]["jku"] == "koalavault://users/alice/sign-key"
    with check("a model is made once"), refused("exists", 409):
        alice.create("m")
    with check("headers are staged, then current at once, with a manifest"):
        alice.upload("m", dict(list(world["m-headers"].items())[:2]), "s1")
        assert alice.detail("m")["generation"] == 0
        assert [f["filename"] for f in alice.call(
            "GET", alice.model("m", "/stages/s1"))["files"]] == SHARDS[:2]
        with refused("manifest_rejected", 422):
            alice.call("POST", alice.model("m", "/generations"), {
                "stage": "s1", "generation": 1, "manifest": manifest_in(world["m"])})
        detail = alice.publish("m", world["m-headers"], manifest_in(world["m"]), "s1")
        assert detail["generation"] == 1 and detail["file_count"] == 3
        listed = alice.call("GET", alice.model("m", "/files"))
        assert listed["total_count"] == 3 and listed["generation"] == 1
        assert {f["filename"]: f["header_sha256"] for f in listed["files"]} == {
            name: sha(data) for name, data in world["m-headers"].items()}
        one = alice.call("GET", alice.model("m", f"/files/{SHARDS[1]}"))
        assert base64.b64decode(one["file_header"]) == world["m-headers"][SHARDS[1]]
    with check("a client that knows no stages: current when a numbered set is whole"):
        one, two, three = (dict([item]) for item in world["n-headers"].items())
        alice.upload("n", one)
        alice.upload("n", two)
        time.sleep(3)
        assert alice.detail("n")["generation"] == 0, "half a set is current"
        alice.upload("n", three)
        deadline = time.monotonic() + 10
        while alice.detail("n")["generation"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert alice.detail("n")["file_count"] == 3
    with check("sessions: refresh works once, twice ends it"):
        key = server.admin("apikey", "add", "alice", "--scope=publish")
        other = Publisher(server, key["api_key"])
        first = other.session
        other.session = other.http.call("POST", "/api/auth/refresh",
                                        {"refresh_token": first["refresh_token"]})
        assert other.detail("m")["generation"] == 1
        with refused("token_invalid", 401):
            other.http.call("GET", other.model("m"), token=first["access_token"])
        with refused("token_invalid", 401):
            other.http.call("POST", "/api/auth/refresh",
                            {"refresh_token": first["refresh_token"]})
        with refused("token_invalid", 401):
            other.detail("m")
    with check("logging out ends a session, revoking an API key all of them"):
        other = Publisher(server, key["api_key"])
        other.http.call("POST", "/api/auth/revoke",
                        {"refresh_token": other.session["refresh_token"]})
        with refused("token_invalid", 401):
            other.detail("m")
        other = Publisher(server, key["api_key"])
        server.admin("revoke", "apikey", key["id"])
        with refused("token_invalid", 401):
            other.detail("m")
        with refused("denied", 401):
            Publisher(server, key["api_key"])
    with check("a deploy key gets no publisher's answer"):
        eve = Publisher(server, world["alice_deploy"])
        for path in ("/api/users/sign-key", eve.model("m"), eve.model("m", "/master-key"),
                     eve.model("m", "/files")):
            with refused("wrong_scope", 403):
                eve.call("GET", path)


def test_exchange(world):
    server = world["server"]
    bob = Runtime(server, world["bob"])
    with check("without a subscription a model looks unknown"):
        results = bob.attest("alice/m", "alice/unknown", "nobody/m")
        assert {r["error"] for r in results.values()} == {"denied"}
    server.admin("subscription", "add", "alice/m", "bob")
    server.admin("subscription", "add", "alice/m", "carol")
    server.admin("subscription", "add", "alice/n", "bob")
    with check("one synchronisation, then a release; the producer's headers stay on disk"):
        answer, keys, headers = bob.get("alice/m", world["m-headers"])
        assert answer["generation"] == 1 and answer["lease"]["seconds"] == 900
        assert answer["lease"]["renew"] == 300 and answer["lease"]["grace"] == 0
        assert keys["manifest_sha256"] == sha(manifest_in(world["m"]))
        assert set(headers) == set(SHARDS)
        assert all(headers[name] != world["m-headers"][name] for name in SHARDS)
        world["bob-m"] = headers, keys, answer["lease"]["id"]
    with check("what was released opens every tensor, manifest included"):
        result = open_with(world["m"], headers, released_keys(keys), "bob-m")
        assert result.returncode == 0, result.stdout + result.stderr
    with check("with the right headers at once: no synchronisation"):
        ticket = bob.ticket("alice/m")
        kind, _, again = bob.ask(ticket, headers)
        assert kind == "release" and again["master_key"] == keys["master_key"]
    with check("only what differs is sent"):
        ticket = bob.ticket("alice/m")
        mixed = {**headers, SHARDS[0]: world["m-headers"][SHARDS[0]]}
        kind, answer, more = bob.ask(ticket, mixed)
        assert kind == "sync" and more == headers and len(answer["headers"]) == 3
    with check("nobody else's keys or headers fit"):
        carol = Runtime(server, world["carol"])
        _, others, other_headers = carol.get("alice/m", headers)
        _, second, second_headers = bob.get("alice/n", world["n-headers"])
        producer = world["alice"].keys("m")
        assert len({k["master_key"]["k"] for k in (keys, others, second)}
                   | {producer[0]["k"]}) == 4
        assert len({k["verify_key"]["x"] for k in (keys, others, second)}
                   | {producer[1]["x"]}) == 4
        for number, (source, used, given) in enumerate((
                (world["m"], headers, released_keys(others)),
                (world["m"], other_headers, released_keys(keys)),
                (world["n"], second_headers, released_keys(keys)),
                (world["m"], world["m-headers"], released_keys(keys)),
                (world["m"], headers, producer))):
            kids = [{**k, "kid": w["kid"]} for k, w in zip(given, released_keys(keys))]
            for use in (given, kids):  # also when the kid is made to fit
                result = open_with(source, used, use, f"foreign-{number}-{use is kids}")
                assert result.returncode != 0, number
    with check("the owner gets his own keys, without subscription"):
        owner = Runtime(server, world["alice_deploy"])
        ticket = owner.ticket("alice/m")
        kind, _, own = owner.ask(ticket, world["m-headers"])
        assert kind == "release" and own["master_key"]["k"] == producer[0]["k"]
        assert own["verify_key"] == own["manifest_key"]
    with check("one attestation, many models: a refused one disturbs no other"):
        results = bob.attest("alice/m", "alice/none", "alice/n")
        assert "ticket" in results["alice/m"] and "ticket" in results["alice/n"]
        assert results["alice/none"]["error"] == "denied"
        for name in ("m", "n"):
            assert bob.ask(results[f"alice/{name}"]["ticket"], {})[0] == "sync"


def test_leases(world):
    server = world["server"]
    bob = Runtime(server, world["bob"])
    headers = world["bob-m"][0]
    answer, _, _ = bob.get("alice/m", headers)
    lease = answer["lease"]["id"]
    with check("a lease is renewed by the same runtime"):
        assert bob.renew(lease)["lease"]["seconds"] == 900
    with check("a revocation reaches the long poll within a second"):
        bob.wait(lease, 1, timeout=1)
        waiting = {}

        def wait():
            waiting["took"], waiting["answer"] = timed(bob.wait, lease, 1, 30, server.http())
        thread = threading.Thread(target=wait)
        thread.start()
        threading.Event().wait(0.5)
        took, _ = timed(server.admin, "revoke", "lease", lease, "--reason=test")
        thread.join(10)
        assert waiting["answer"]["state"] == "revoked" and waiting["answer"]["reason"] == "test"
        assert waiting["took"] < 0.5 + took + 1, waiting["took"]
        with refused("lease_revoked", 403):
            bob.renew(lease)
    with check("a new generation ends the long poll as well, the lease runs on"):
        answer, _, _ = bob.get("alice/m", headers)
        lease = answer["lease"]["id"]
        thread = threading.Thread(target=wait)
        waiting.clear()
        thread.start()
        world["alice"].publish("m", world["m-headers"])
        thread.join(10)
        assert waiting["answer"]["state"] == "active" and waiting["answer"]["generation"] == 2
        assert bob.renew(lease)["generation"] == 2
    with check("a lease that was given back does not count"):
        subscription = next(s for s in server.admin("subscription", "list")
                            if s["user"] == "bob" and s["model"] == "alice/m")
        server.admin("revoke", "lease", lease)
        for row in server.admin("lease", "list"):
            server.admin("revoke", "lease", row["id"])
        server.admin("subscription", "set", subscription["id"], "--max-leases=2")
        leases = [bob.get("alice/m", {})[0]["lease"]["id"] for _ in range(2)]
        with refused("max_leases", 403):
            bob.get("alice/m", {})
        bob.end(leases[0])
        with refused("lease_ended", 403):
            bob.renew(leases[0])
        bob.get("alice/m", {})
    with check("max_leases holds when many ask at once"):
        for row in server.admin("lease", "list"):
            server.admin("revoke", "lease", row["id"])
        runtimes = [Runtime(server, world["bob"]) for _ in range(8)]
        tickets = [(r, r.ticket("alice/m")) for r in runtimes]
        synced = [(r, t, r.ask(t, {})[2]) for r, t in tickets]
        got = []

        def take(runtime, ticket, own):
            try:
                got.append(runtime.ask(ticket, own)[0])
            except Refused as error:
                got.append(error.code)
        threads = [threading.Thread(target=take, args=s) for s in synced]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(got) == ["max_leases"] * 6 + ["release"] * 2, got
        server.admin("subscription", "set", subscription["id"], "--max-leases=0")
    with check("audit records extend what is there, or are refused with it"):
        answer, _, _ = bob.get("alice/m", {})
        lease = answer["lease"]["id"]
        start = sha(f"kvfs-audit-v1\n{lease}\n")
        one = bob.audit(lease, 1, start, ["mounted", "read"])
        assert one["sequence"] == 2
        two = bob.audit(lease, 3, one["head"], ["unmounted \u00fc"])
        assert two["sequence"] == 3
        for first, previous in ((1, start), (3, one["head"]), (5, two["head"]), (4, one["head"])):
            try:
                bob.audit(lease, first, previous, ["again"])
                raise AssertionError("taken")
            except Refused as error:
                assert error.code == "audit_gap" and error.status == 409
                assert error.envelope["data"]["signed"]
        with refused("audit_gap"):
            bob.audit(lease, 4, two["head"], ["x"], head="0" * 64)
        with refused("proof_rejected"):
            bob.audit(lease, 4, two["head"], ["x"], key=bob.keys["sign"])
        assert bob.audit(lease, 4, two["head"], ["x"])["sequence"] == 4
    with check("ending a subscription ends its leases; a new one has other keys"):
        keys = bob.get("alice/m", {})[1]
        server.admin("revoke", "subscription", subscription["id"])
        assert bob.wait(lease, 2, timeout=5)["state"] == "revoked"
        with refused("subscription_ended"):
            bob.get("alice/m", {})
        server.admin("subscription", "add", "alice/m", "bob")
        assert bob.get("alice/m", {})[1]["master_key"]["k"] != keys["master_key"]["k"]
    with check("removing the files ends all: nothing is released"):
        lease = bob.get("alice/n", {})[0]["lease"]["id"]
        alice = world["alice"]
        assert alice.call("DELETE", alice.model("n", "/files")) == {"total_deleted": 3}
        assert bob.wait(lease, 1, timeout=5)["state"] == "revoked"
        with refused("model_empty"):
            bob.get("alice/n", {})


def test_server(world):
    server = world["server"]
    with check("healthz and metrics"):
        http = server.http()
        assert http.raw("GET", "/healthz")[0] == 200
        status, text = http.raw("GET", "/metrics")
        assert status == 200 and text.endswith(b"# EOF\n")
        assert b'kvfs_keyserver_answers_total{call="keys",code="ok"}' in text
    with check("rotating the secrets' key beside the running server"):
        server.run("rotate-key")
        bob = Runtime(server, world["bob"])
        before = bob.get("alice/m", {})[1]["master_key"]
        for step in ("add", "use", "drop"):
            server.run("rotate-key", f"--step={step}")
            assert bob.get("alice/m", {})[1]["master_key"] == before
        world["alice"].create("after-rotation")
        world["alice"].keys("after-rotation")
        server.stop()
        server.start()
        bob = Runtime(server, world["bob"])
        assert bob.get("alice/m", {})[1]["master_key"] == before
    with check("a long poll ends when the server does"):
        lease = bob.get("alice/m", {})[0]["lease"]["id"]
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(bob.wait(lease, 2, 60, server.http())))
        thread.start()
        threading.Event().wait(0.5)
        took, code = timed(server.stop)
        thread.join(10)
        assert code == 0 and took < 5 and answers and answers[0]["state"] == "active", (code, took)
        server.start()
    with check("init again changes nothing"):
        assert server.admin("init")["thumbprint"] == server.thumbprint
    with check("every release is in the audit"):
        rows = server.audit("release")
        assert rows and all(r["user"] and r["model"] and r["lease"] for r in rows)
        assert "measured " + measurement(MEASUREMENTS) in rows[0]["detail"]
    with check("nothing secret in the log"):
        log = server.log() + json.dumps(server.audit())
        for secret in (world["alice_key"], world["bob"], before["k"],
                       world["alice"].session["access_token"]):
            assert secret not in log
    with check("nothing secret lies open in the database"):
        secrets = [before["k"]] + [k.get("k") or k["d"] for k in world["alice"].keys("m")]
        for data in server.database_bytes():
            for secret in secrets:
                assert secret.encode() not in data and base64.b64decode(secret) not in data
            assert world["bob"].encode() not in data


def main():
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        world = setup(server)
        test_publisher(world)
        test_exchange(world)
        test_leases(world)
        test_server(world)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
