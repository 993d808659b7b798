#!/usr/bin/env python3
"""Secrets of the key server: rows moved by SQL, and 100,000 tensors' keys and IVs."""
import base64
import collections
import json
import os
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import kspostgres
from ksclient import (MEASUREMENTS, Publisher, Runtime, Server, encrypt, header_of, measurement,
                      refused, write_plain)
from kvfstest import Checks, sanitized, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS, TENSORS = 20, 5000


def setup(server):
    """alice's models m and n with a small shard each; (alice, bob's and carol's deploy keys)."""
    publish, = server.user("alice", "publish")
    keys = [server.user(name, "deploy")[0] for name in ("bob", "carol")]
    alice = Publisher(server, publish)
    for name in ("m", "n"):
        alice.create(name)
        server.admin("model", "set", f"alice/{name}", "--profiles=none")
        server.admin("baseline", "add", f"alice/{name}", measurement(MEASUREMENTS))
    plain = os.path.join(WORK, "plain")
    os.makedirs(plain)
    write_plain(os.path.join(plain, "model.safetensors"), {"w": os.urandom(100)})
    for name in ("m", "n"):
        out = encrypt(plain, os.path.join(WORK, name), alice.keys(name))
        alice.publish(name, {"model.safetensors": header_of(f"{out}/model.safetensors")})
        for user in ("bob", "carol"):
            server.admin("subscription", "add", f"alice/{name}", user)
    return alice, keys


# ---- rows ----

ROW = ("(SELECT s.id FROM subscriptions s JOIN users u ON u.id = s.user_id JOIN models m ON"
       " m.id = s.model_id WHERE u.name = '{}' AND m.name = '{}')")


def moved(server, table, columns, source, target):
    """The columns of row `target` as those of `source`; how it was is returned, as SQL."""
    old = json.loads(server.select(f"SELECT {', '.join(f'{hex_of(server, c)}' for c in columns)}"
                                   f" FROM {table} WHERE id = {target}"))[0]
    taken = json.loads(server.select(f"SELECT {', '.join(f'{hex_of(server, c)}' for c in columns)}"
                                     f" FROM {table} WHERE id = {source}"))[0]

    def assign(values):
        blobs = ", ".join(f"{c} = {blob(server, v)}" for c, v in zip(columns, values))
        return f"UPDATE {table} SET {blobs} WHERE id = '{one}'"
    one = json.loads(server.select(f"SELECT id FROM {table} WHERE id = {target}"))[0][0]
    server.sql(assign(taken))
    return assign(old)


def hex_of(server, column):
    return f"encode({column}, 'hex')" if server.postgres else f"hex({column})"


def blob(server, text):
    return f"'\\x{text}'::bytea" if server.postgres else f"x'{text}'"


def test_rows(server, alice, bob):
    sealed = ("master_sealed", "sign_sealed")
    bob_m = ROW.format("bob", "m")
    for what, source in (("another user's", ROW.format("carol", "m")),
                         ("another model's", ROW.format("bob", "n"))):
        for columns in (sealed, sealed[:1], sealed[1:]):
            with check(f"{what} {' and '.join(columns)} in a subscription do not open"):
                back = moved(server, "subscriptions", columns, source, bob_m)
                with refused("internal", 500):
                    Runtime(server, bob).get("alice/m", {})
                assert "does not open here" in server.log()
                server.sql(back)
                Runtime(server, bob).get("alice/m", {})
    with check("the other column's secret does not open"):
        server.sql("UPDATE subscriptions SET master_sealed = sign_sealed, sign_sealed ="
                   f" master_sealed WHERE id = {bob_m}")
        with refused("internal", 500):
            Runtime(server, bob).get("alice/m", {})
        server.sql("UPDATE subscriptions SET master_sealed = sign_sealed, sign_sealed ="
                   f" master_sealed WHERE id = {bob_m}")
    with check("a subscription given to another user, or for another model, does not open"):
        eve, = server.user("eve", "deploy")
        server.sql("UPDATE subscriptions SET user_id = (SELECT id FROM users WHERE name = 'eve')"
                   f" WHERE id = {bob_m}")
        with refused("internal", 500):
            Runtime(server, eve).get("alice/m", {})
        server.sql("UPDATE subscriptions SET user_id = (SELECT id FROM users WHERE name = 'bob')"
                   f" WHERE id = {ROW.format('eve', 'm')}")
    model = "(SELECT id FROM models WHERE name = '{}')"
    with check("another model's master key does not open"):
        back = moved(server, "models", sealed[:1], model.format("m"), model.format("n"))
        with refused("internal", 500):
            alice.keys("n")
        server.sql(back)
        alice.keys("n")
    with check("another user's sign key does not open"):
        user = "(SELECT id FROM users WHERE name = '{}')"
        back = moved(server, "users", sealed[1:], user.format("bob"), user.format("alice"))
        with refused("internal", 500):
            alice.keys("m")
        server.sql(back)
    with check("the server's own secrets do not open in each other's place"):
        back = moved(server, "secrets", ("sealed",), "'stamp'", "'identity'")
        result = server.run("thumbprint", check=False)
        assert result.returncode == 1 and "does not open here" in result.stderr, result.stderr
        server.sql(back)
        assert server.admin("thumbprint")["thumbprint"] == server.thumbprint


# ---- 100,000 tensors ----

def encryption(headers):
    """What each tensor's entry has, of all headers."""
    for data in headers.values():
        yield from json.loads(json.loads(data[8:])["__metadata__"]["__encryption__"]).values()


def unwrap(master, entries):
    cipher = AESGCM(base64.b64decode(master))
    return [cipher.decrypt(base64.b64decode(e["key_iv"]), base64.b64decode(e["wrapped_key"])
                           + base64.b64decode(e["key_tag"]), None) for e in entries]


def repeated(values):
    return [v for v, n in collections.Counter(values).most_common(1) if n > 1]


def test_many(server, alice, keys):
    alice.create("many")
    server.admin("model", "set", "alice/many", "--profiles=none")
    server.admin("baseline", "add", "alice/many", measurement(MEASUREMENTS))
    for user in ("bob", "carol"):
        server.admin("subscription", "add", "alice/many", user)
    plain = os.path.join(WORK, "many")
    os.makedirs(plain)
    names = [f"model-{i + 1:05}-of-{SHARDS:05}.safetensors" for i in range(SHARDS)]
    for name in names:
        write_plain(os.path.join(plain, name), {f"w{i}": b"\0" * 8 for i in range(TENSORS)})
    with check(f"{SHARDS * TENSORS:,} tensors: no DEK twice, no IV twice"):
        owners = alice.keys("many")
        out = encrypt(plain, plain + ".enc", owners)
        sets = [(owners[0]["k"], {n: header_of(os.path.join(out, n)) for n in names})]
        alice.publish("many", sets[0][1])
        for key in keys:
            _, released, headers = Runtime(server, key).get("alice/many", {})
            sets.append((released["master_key"]["k"], headers))
        entries = [list(encryption(headers)) for _, headers in sets]
        assert all(len(e) == SHARDS * TENSORS for e in entries)
        deks = [unwrap(master, e) for (master, _), e in zip(sets, entries)]
        assert not repeated(deks[0]) and deks[0] == deks[1] == deks[2]
        assert not repeated(e["base_iv"] for e in entries[0])
        assert not repeated(e["key_iv"] for one in entries for e in one)
        assert not repeated(e["wrapped_key"] for one in entries for e in one)


def main():
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        alice, keys = setup(server)
        test_rows(server, alice, keys[0])
        if not postgres and not sanitized():  # it takes long, and is the same everywhere
            test_many(server, alice, keys)
    return checks.finish()


if __name__ == "__main__":
    sys.exit(main())
