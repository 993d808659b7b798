#!/usr/bin/env python3
"""The key server killed, doubled, without its database, on a full disk."""
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import kspostgres
from ksclient import (KEYSERVER, MEASUREMENTS, Http, Publisher, Refused, Runtime, Server, encrypt,
                      header_of, measurement, refused, write_plain)
from kvfstest import Checks, Skip, die_with_parent, run, wait_for, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SBIN = os.environ["PATH"] + ":/usr/sbin"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
KILLS = 5 * int(os.environ.get("KVFS_SECONDS", "5"))


def publish_first(server, subscribers=("bob",)):
    """alice/m with three shards; (publisher, headers, {subscriber: deploy key})."""
    key, = server.user("alice", "publish")
    alice = Publisher(server, key)
    alice.create("m")
    plain = os.path.join(WORK, f"plain{Server.count}")
    os.makedirs(plain)
    for name in SHARDS:
        write_plain(os.path.join(plain, name), {"w": os.urandom(500), "v": os.urandom(50)})
    out = encrypt(plain, plain + ".enc", alice.keys("m"))
    headers = {name: header_of(os.path.join(out, name)) for name in SHARDS}
    server.admin("model", "set", "alice/m", "--profiles=none")
    server.admin("baseline", "add", "alice/m", measurement(MEASUREMENTS))
    keys = {}
    for name in subscribers:
        keys[name], = server.user(name, "deploy")
        server.admin("subscription", "add", "alice/m", name)
    alice.publish("m", headers)
    return alice, headers, keys


LOST = (OSError, Refused, AssertionError, json.JSONDecodeError)


class Load:
    """Threads that go on whatever happens to the server."""

    def __init__(self, *actions):
        self.ending = False
        self.done = [0] * len(actions)
        self.lost = []
        self.threads = [threading.Thread(target=self.run, args=(i, action))
                        for i, action in enumerate(actions)]

    def run(self, number, action):
        while not self.ending:
            try:
                action()
                self.done[number] += 1
            except Exception as error:  # pylint: disable=broad-except
                self.lost.append(error)
                time.sleep(0.02)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending = True
        for thread in self.threads:
            thread.join(60)


def check_whole(server, keys):
    """No half of anything: what SQL sees, and what a subscriber gets."""
    models = server.admin("model", "list")
    by_name = {m["model"]: m for m in models}
    assert by_name["alice/m"]["files"] == 3, by_name["alice/m"]
    assert json.loads(server.select(
        "SELECT COUNT(*) FROM files f JOIN models m ON m.id = f.model_id"
        " WHERE f.generation <> m.generation")) == [[0]]
    for table, what in (("users", "sign_sealed"), ("models", "master_sealed"),
                        ("subscriptions", "sign_sealed")):
        halves = json.loads(server.select(
            f"SELECT COUNT(*) FROM {table} WHERE {what} IS NULL OR LENGTH({what}) < 37"))
        assert halves == [[0]], (table, halves)
    orphans = json.loads(server.select(
        "SELECT COUNT(*) FROM models m WHERE m.generation > 0 AND NOT EXISTS (SELECT 1 FROM"
        " generations g WHERE g.model_id = m.id AND g.number = m.generation)"))
    assert orphans == [[0]], orphans
    answer, _, headers = Runtime(server, keys["bob"]).get("alice/m", {})
    assert set(headers) == set(SHARDS)
    assert answer["generation"] == by_name["alice/m"]["generation"]


def test_kills(postgres):
    with Server(postgres=postgres) as server:
        _, headers, keys = publish_first(server, ("bob", "carol", "dave"))
        api_key = server.admin("apikey", "add", "alice", "--scope=publish")["api_key"]
        counter = iter(range(10**9))
        admins = []

        def publish():
            Publisher(server, api_key).publish("m", headers, stage=f"s{next(counter)}")

        def exchange():
            Runtime(server, keys["bob"]).get("alice/m", {})

        def administrate():
            name = f"u{next(counter)}"
            for command in (("user", "add", name), ("model", "add", f"{name}/x"),
                            ("subscription", "add", "alice/m", name)):
                process = subprocess.Popen(
                    [KEYSERVER, *command, f"--dir={server.dir}"], stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, preexec_fn=die_with_parent)
                admins.append(process)
                process.wait()
                admins.remove(process)
        rng = random.Random(1)
        with check(f"killed {KILLS} times amid publishing, exchanges, administration"):
            with Load(publish, exchange, administrate) as load:
                for _ in range(KILLS):
                    time.sleep(rng.uniform(0.02, 0.4))
                    for process in list(admins):
                        if rng.random() < 0.5:
                            process.kill()
                    server.stop(signal.SIGKILL)
                    server.start()
                time.sleep(2)
            assert all(load.done), load.done
            checks.note(f"{load.done} publications, exchanges, users between the kills")
            check_whole(server, keys)


@contextlib.contextmanager
def balancer(*servers):
    """haproxy in front of them; the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = os.path.join(WORK, "haproxy.cfg")
    with open(config, "w", encoding="utf-8") as file:
        file.write("global\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 1s\n"
                   "  timeout client 70s\n  timeout server 70s\n  retries 3\n"
                   "  option redispatch 1\n"
                   f"listen keyservers\n  bind 127.0.0.1:{port}\n  balance roundrobin\n")
        for i, server in enumerate(servers):
            file.write(f"  server s{i} 127.0.0.1:{server.port} check inter 200ms fall 1 rise 1"
                       f" on-marked-down shutdown-sessions\n")
    process = subprocess.Popen(["haproxy", "-db", "-f", config], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, preexec_fn=die_with_parent,
                               env={**os.environ, "PATH": SBIN})
    try:
        wait_for(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 10, "haproxy")
        yield port
    finally:
        process.kill()
        process.wait()


def test_replicas(postgres):
    with Server(postgres=postgres) as one:
        _, _, keys = publish_first(one)
        two = one.replica()
        two.start()
        first, second = Runtime(one, keys["bob"]), Runtime(two, keys["bob"])
        second.keys, second.thumbs = first.keys, first.thumbs
        with check("a challenge of one is good at the other, once over both"):
            given = first.challenge()
            second.challenge()
            assert "ticket" in second.attest("alice/m", given=given)["alice/m"]
            with refused("challenge_used"):
                first.attest("alice/m", given=given)
            for _ in range(10):
                given = first.challenge()
                got = []

                def use(runtime, given=given, got=got):
                    try:
                        runtime.attest("alice/m", given=given)
                        got.append("ok")
                    except Refused as error:
                        got.append(error.code)
                threads = [threading.Thread(target=use, args=(r,)) for r in (first, second)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert sorted(got) == ["challenge_used", "ok"], got
        with check("a ticket of one is good at the other"):
            ticket = first.ticket("alice/m")
            second.last_challenge = first.last_challenge
            headers = second.ask(ticket, {})[2]
            first.calls[ticket] = 1
            assert first.ask(ticket, headers)[0] == "release"
        with check("max_leases holds over both"):
            subscription = one.admin("subscription", "list")[0]["id"]
            for row in one.admin("lease", "list"):
                one.admin("revoke", "lease", row["id"])
            one.admin("subscription", "set", subscription, "--max-leases=3")
            runtimes = [Runtime((one, two)[i % 2], keys["bob"]) for i in range(10)]
            ready = [(r, r.ticket("alice/m")) for r in runtimes]
            got = []

            def take(runtime, ticket):
                try:
                    got.append(runtime.ask(ticket, headers)[0])
                except Refused as error:
                    got.append(error.code)
            threads = [threading.Thread(target=take, args=item) for item in ready]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(got) == ["max_leases"] * 7 + ["release"] * 3, got
            one.admin("subscription", "set", subscription, "--max-leases=0")
        with check("a revocation made anywhere reaches a poll at the other"):
            lease = first.get("alice/m", headers)[0]["lease"]["id"]
            answers = []
            thread = threading.Thread(target=lambda: answers.append(
                (second.wait(lease, 1, 30, two.http()), time.monotonic())))
            thread.start()
            time.sleep(0.5)
            one.admin("revoke", "lease", lease)
            done = time.monotonic()
            thread.join(10)
            assert answers[0][0]["state"] == "revoked" and answers[0][1] - done < 1
        with check("one of two killed under load: after retries nothing is lost"):
            if not shutil.which("haproxy", path=SBIN) and os.environ.get("CI") != "true":
                raise Skip("haproxy is not installed")
            with balancer(one, two) as port:
                failures = []

                def exchange():
                    runtime = Runtime(one, keys["bob"])
                    for attempt in range(5):
                        runtime.http = Http(one, port=port)
                        try:
                            runtime.get("alice/m", headers)
                            return
                        except LOST as error:
                            if attempt == 4:
                                failures.append(error)
                            time.sleep(0.2)
                with Load(*[exchange] * 4) as load:
                    time.sleep(1)
                    before = sum(load.done)
                    two.stop(signal.SIGKILL)
                    time.sleep(2)
                assert before and sum(load.done) > before + 5, (before, load.done)
                assert not failures, failures[:3]
        two.stop()


def test_database_gone(postgres):
    with Server(postgres=postgres) as server:
        _, _, keys = publish_first(server)
        bob = Runtime(server, keys["bob"])
        _, _, headers = bob.get("alice/m", {})
        with check("the database gone: clear answers, and back: as before"):
            postgres.stop(signal.SIGQUIT)
            with refused("unavailable", 503):
                bob.attest("alice/m")
            assert server.http().raw("GET", "/healthz")[0] == 503
            postgres.start()
            bob.get("alice/m", headers)
            assert server.http().raw("GET", "/healthz")[0] == 200
            assert "kvfs@" not in server.log(), "a connection string in the log"


@contextlib.contextmanager
def small_disk(size):
    """A file system of so many MiB; its path."""
    path = os.path.join(WORK, "small")
    os.makedirs(path, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "none", path, check=True)
    try:
        yield path
    finally:
        run("umount", "-l", path)


def fill(path):
    """Writes until there is no room; the file."""
    name = os.path.join(path, "filler")
    with contextlib.suppress(OSError), open(name, "ab", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return name


def check_full(server, disk, postgres=None):
    """Exchanges while there is no room, and then again."""
    _, _, keys = publish_first(server)
    bob = Runtime(server, keys["bob"])
    _, _, headers = bob.get("alice/m", {})
    codes = set()
    for _ in range(50):
        filler = fill(disk)
        try:
            bob.get("alice/m", headers)
        except Refused as error:
            codes.add(error.code)
    assert codes <= {"unavailable", "busy"} and codes, codes
    os.unlink(filler)
    if postgres:  # it may have given up
        postgres.stop(signal.SIGQUIT)
        postgres.start()
    bob.get("alice/m", headers)
    assert server.admin("model", "list")[0]["files"] == 3


def test_disk_full(postgres):
    name = "a full disk: clear answers; room again: as before, nothing lost"
    if os.geteuid() != 0:
        checks.skip(name, "needs root to mount a small file system")
    elif postgres:
        with check(name), small_disk(100) as disk, kspostgres.Postgres(disk) as full, \
                Server(postgres=full) as server:
            check_full(server, disk, full)
    else:
        with check(name), small_disk(3) as disk, \
                Server(directory=os.path.join(disk, "server")) as server:
            check_full(server, disk)


def main():
    with kspostgres.chosen() as postgres:
        test_kills(postgres)
        if postgres:
            for test in (test_replicas, test_database_gone):
                postgres.fresh()
                test(postgres)
        test_disk_full(postgres)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
