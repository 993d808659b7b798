#!/usr/bin/env python3
"""What a key server does besides answering: personalises, prunes, takes a new certificate, migrates."""
import json
import os
import random
import signal
import ssl
import sys
import threading
import time

import kspostgres
from ksclient import (MEASUREMENTS, Publisher, Refused, Runtime, Server, encrypt, header_of,
                      measurement, refused, sha, write_plain)
from kvfstest import Checks, wait_for, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
MANY = [f"model-{i:05}-of-00130.safetensors" for i in range(1, 131)]


def make(alice, name, shards):
    """The headers of a new model of these shards."""
    plain = os.path.join(WORK, name)
    os.makedirs(plain)
    for shard in shards:
        write_plain(os.path.join(plain, shard), {"w": os.urandom(100), "v": os.urandom(50)})
    out = encrypt(plain, plain + ".enc", alice.keys("m"))
    return {shard: header_of(os.path.join(out, shard)) for shard in shards}


class World:
    def __init__(self, server):
        self.server = server
        key, = server.user("alice", "publish")
        self.alice = Publisher(server, key)
        self.alice.create("m")
        server.admin("model", "set", "alice/m", "--profiles=none")
        server.admin("baseline", "add", "alice/m", measurement(MEASUREMENTS))
        self.bob, = server.user("bob", "deploy")
        server.admin("subscription", "add", "alice/m", "bob")
        self.one, self.two = (make(self.alice, name, SHARDS) for name in ("one", "two"))

    def runtime(self):
        return Runtime(self.server, self.bob)

    def count(self, what):
        return json.loads(self.server.select(f"SELECT COUNT(*) FROM {what}"))[0][0]


# ---- personalising ----

def immutables(runtime):
    """(generation, {path: immutable_sha256}) of one synchronisation."""
    _, answer, _ = runtime.ask(runtime.ticket("alice/m"), {})
    return answer["generation"], {h["path"]: h["immutable_sha256"] for h in answer["headers"]}


def at_once(count, function):
    """The results of so many threads."""
    results = []
    threads = [threading.Thread(target=lambda i=i: results.append(function(i)))
               for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == count
    return results


def test_personalising(world, replica):
    server, alice = world.server, world.alice
    with check("a generation is current without anybody's headers made; they are at the first call"):
        alice.publish("m", world.one)
        assert world.count("personal") == 0
        assert set(world.runtime().get("alice/m", {})[2]) == set(SHARDS)
        assert world.count("personal") == 3
    with check("many runtimes of a subscriber at once: one set of headers, over all servers"):
        alice.publish("m", world.two)
        servers = [server, replica or server]

        def first(number):
            return Runtime(servers[number % 2], world.bob).get("alice/m", {})[2]
        results = at_once(8, first)
        assert all(r == results[0] for r in results)
        assert world.count("personal WHERE generation = 2") == 3
    with check("a set with a gap is filled, and not given out as it is"):
        kept = results[0]
        server.sql(f"DELETE FROM personal WHERE path = '{SHARDS[1]}'")
        again = world.runtime().get("alice/m", {})[2]
        assert set(again) == set(SHARDS) and again[SHARDS[0]] == kept[SHARDS[0]]
        assert again[SHARDS[1]] != kept[SHARDS[1]]


def test_switching(world):
    """Generations of even number have the shards of `two`, odd ones those of `one`."""
    seen, failures, ending = {}, [], threading.Event()

    def exchange():
        runtime = world.runtime()
        while not ending.is_set():
            try:
                generation, found = immutables(runtime)
                if seen.setdefault(generation % 2, found) != found:
                    failures.append((generation, found))
            except Refused as error:
                if error.code != "generation_changed":
                    failures.append(error)
    with check("generations follow each other while subscribers ask: nobody gets half of each"):
        assert world.alice.detail("m")["generation"] == 2
        threads = [threading.Thread(target=exchange) for _ in range(3)]
        for thread in threads:
            thread.start()
        for headers in (world.one, world.two) * 4:
            first, second, third = headers.items()
            for part in ([first], [second, third]):
                world.alice.upload("m", dict(part), "parts")
                time.sleep(0.05)
            world.alice.publish("m", dict([first]), stage="parts")
        ending.set()
        for thread in threads:
            thread.join(60)
        assert not failures, failures[:2]
        assert len(seen) == 2 and seen[0] != seen[1] and set(seen[0]) == set(SHARDS)


def test_kills(world):
    server, rng = world.server, random.Random(2)
    headers = list(make(world.alice, "many", MANY).items())
    world.alice.upload("m", dict(headers[:100]), "many")
    world.alice.publish("m", dict(headers[100:]), stage="many")
    with check("killed while headers are made: batches are whole, the rest is made later"):
        for _ in range(6):
            server.sql("DELETE FROM personal")
            runtime = world.runtime()
            thread = threading.Thread(target=lambda r=runtime: silently(r.get, "alice/m", {}))
            thread.start()
            time.sleep(rng.uniform(0.02, 0.15))
            server.stop(signal.SIGKILL)
            thread.join(60)
            server.start()
            assert world.count("personal p WHERE p.generation = (SELECT generation FROM models)") \
                in (0, 64, 128, 130)
        assert set(world.runtime().get("alice/m", {})[2]) == set(MANY)


def silently(function, *arguments):
    try:
        function(*arguments)
    except (OSError, Refused, ValueError):
        pass


# ---- pruning ----

def test_pruning(world):
    server, bob = world.server, world.runtime()
    lease = bob.get("alice/m", {})[0]["lease"]["id"]
    start = sha(f"kvfs-audit-v1\n{lease}\n")
    four = bob.audit(lease, 1, start, ["a", "b", "c", "d"])
    with check("pruning cuts a lease's chain at a checkpoint; the rest verifies and goes on"):
        server.sql(f"UPDATE audit_records SET at = 1000 WHERE lease_id = '{lease}'"
                   " AND sequence <= 2")
        assert server.admin("prune", "--keep=1")["records"] == 2
        assert [r["sequence"] for r in server.admin("audit", "records", lease)] == [3, 4]
        assert server.admin("audit", "verify") == {"leases": 1, "wrong": 0}
        assert bob.audit(lease, 5, four["head"], ["e"])["sequence"] == 5
        five = server.admin("audit", "records", lease)
        assert [r["record"] for r in five] == ["c", "d", "e"]
        cut = json.loads(server.select("SELECT audit_pruned, audit_pruned_head FROM leases"
                                       f" WHERE id = '{lease}'"))
        assert cut == [[2, sha(f"{sha(f'{start}' + chr(10) + '1' + chr(10) + 'a')}\n2\nb")]], cut
    with check("a record that was changed is found, and pruning leaves it"):
        server.sql(f"UPDATE audit_records SET record = 'x', at = 1000 WHERE lease_id = '{lease}'"
                   " AND sequence = 3")
        result = server.run("audit", "verify", check=False)
        assert result.returncode == 1 and lease in result.stderr
        assert server.admin("prune", "--keep=1")["records"] == 0
        server.sql("UPDATE audit_records SET record = 'c' WHERE sequence = 3")
        server.sql("DELETE FROM audit_records WHERE sequence = 4")
        assert server.run("audit", "verify", check=False).returncode == 1
        server.sql("INSERT INTO audit_records (lease_id, sequence, record, at) VALUES"
                   f" ('{lease}', 4, 'd', 1000)")
        assert server.admin("audit", "verify")["wrong"] == 0
    with check("a lease that was over long ago goes; its records' number and head stay as an event"):
        head = bob.audit(lease, 6, server_head(server, lease), ["f"])["head"]
        server.sql("UPDATE audit_records SET at = 1000")
        server.sql(f"UPDATE leases SET expires = 1000 WHERE id = '{lease}'")
        done = server.admin("prune", "--keep=1")
        assert done["records"] == 4 and done["leases"] == 1, done
        event, = server.audit("lease-pruned")
        assert event["lease"] == lease and event["detail"] == f"6 records, head {head}"
        assert world.count(f"leases WHERE id = '{lease}'") == 0
    with check("events go by age, and uploads that nobody published"):
        world.alice.upload("m", world.one, "forgotten")
        server.sql("UPDATE stages SET touched = 1000")
        server.sql("UPDATE audit SET at = 1000 WHERE event = 'attest'")
        done = server.admin("prune", "--keep=1")
        assert done["events"] > 5 and done["stages"] == 1 and not server.audit("attest"), done
        assert world.count("staged") == 0 and server.audit("release")
        assert server.run("prune", "--keep=0", check=False).returncode == 2


def server_head(server, lease):
    return json.loads(server.select(f"SELECT audit_head FROM leases WHERE id = '{lease}'"))[0][0]


# ---- the certificate, the schema ----

def answers(server, cafile):
    try:
        return server.http(cafile=cafile).raw("GET", "/healthz")[0] == 200
    except ssl.SSLCertVerificationError:
        return False


def test_certificate(world):
    server, bob = world.server, world.runtime()
    new, old = (os.path.join(server.dir, name) for name in ("tls.crt", "old.crt"))
    before = server.http()
    assert before.raw("GET", "/healthz")[0] == 200
    answer = bob.get("alice/m", {})[0]
    lease, generation, polled = answer["lease"]["id"], answer["generation"], []
    thread = threading.Thread(target=lambda: polled.append(
        bob.wait(lease, generation, 30, server.http())))
    thread.start()
    time.sleep(0.3)
    with check("SIGHUP: new connections get the new certificate, those that are open go on"):
        os.rename(new, old)
        server.run("init", "--name=localhost,127.0.0.1")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: answers(server, new), 10, "the new certificate")
        assert not answers(server, old)
        connection = before.connection
        assert before.raw("GET", "/healthz")[0] == 200 and before.connection is connection
        server.admin("revoke", "lease", lease)
        thread.join(10)
        assert polled and polled[0]["state"] == "revoked"
    with check("SIGHUP with a certificate that is none, or for another key: the former one stays"):
        copy = os.path.join(WORK, "good.crt")
        with open(new, "rb") as file, open(copy, "wb") as out:
            out.write(file.read())
        for number, text in enumerate((b"nothing", open(old, "rb").read())):
            with open(new, "wb") as file:
                file.write(text)
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda n=number: server.log().count("the former certificate stays") == n + 1,
                     10, "a refusal in the log")
            assert answers(server, copy)
        os.rename(copy, new)


def test_migration(world):
    server = world.server
    with check("a database of the first version: refused with a word, migrated, twice as well"):
        server.stop()
        for text in ("DROP TABLE changed", "DROP INDEX subscriptions_of", "DROP INDEX audit_records_at",
                     "DROP INDEX leases_expires", "ALTER TABLE leases DROP COLUMN audit_pruned",
                     "ALTER TABLE leases DROP COLUMN audit_pruned_head",
                     "ALTER TABLE audit_records DROP COLUMN at",
                     "ALTER TABLE models ADD COLUMN pending TEXT NOT NULL DEFAULT ''",
                     "DELETE FROM schema_version WHERE version > 1"):
            server.sql(text)
        result = server.run("user", "list", check=False)
        assert result.returncode == 1 and "run migrate" in result.stderr, result.stderr
        server.run("migrate")
        server.run("migrate")
        server.start()
        assert set(world.runtime().get("alice/m", {})[2]) == set(MANY)


def main():
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        world = World(server)
        replica = server.replica().start() if postgres else None
        test_personalising(world, replica)
        test_switching(world)
        if replica:
            replica.stop()
        test_kills(world)
        test_pruning(world)
        test_certificate(world)
        test_migration(world)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
