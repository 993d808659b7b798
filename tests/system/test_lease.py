#!/usr/bin/env python3
"""kvfs mount --server against a real key server over TLS: a subscriber with nothing but a deploy key,
a URL, a thumbprint and a model's name; and everything that ends a lease."""
import errno
import json
import mmap
import os
import signal
import socket
import sys
import time

import kspostgres
from ksclient import Publisher, Server, encrypt, header_of, sha, write_plain
from kvfstest import Checks, Mount, kvfs, run, sanitized, wait_for, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS = ["model-00001-of-00002.safetensors", "sub/model-00002-of-00002.safetensors"]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def same(view, plain):
    """Whether two files have the same content: of safetensors, whose headers may be spelled
    differently, the body."""
    if not plain.endswith(".safetensors"):
        return read(view) == read(plain)
    return read(view)[len(header_of(view)):] == read(plain)[len(header_of(plain)):]


def refused(path, number):
    try:
        read(path)
    except OSError as error:
        assert error.errno == number, error
        return
    raise AssertionError(f"{path} was read")


class World:
    """alice publishes m; bob subscribes to it."""

    def __init__(self, server):
        self.server = server
        publish, self.alice_key = server.user("alice", "publish", "deploy")
        self.bob, = server.user("bob", "deploy")
        self.alice = Publisher(server, publish)
        self.digest = kvfs("measure").stdout.strip()
        self.key = os.path.join(WORK, "bob.key")
        write(self.key, self.bob.encode() + b"\n")
        self.plain, self.source, self.manifest = {}, {}, {}
        for name in ("m", "n"):
            self.publish(name)
        self.subscription = server.admin("subscription", "add", "alice/m", "bob")

    def publish(self, name, generation=1):
        if generation == 1:
            self.alice.create(name)
            self.server.admin("model", "set", f"alice/{name}", "--profiles=none")
            self.server.admin("baseline", "add", f"alice/{name}", self.digest)
        plain = os.path.join(WORK, f"plain-{name}-{generation}")
        os.makedirs(os.path.join(plain, "sub"))
        for shard in SHARDS:
            write_plain(os.path.join(plain, shard),
                        {f"w{k}": os.urandom(200000 + k) for k in range(4)})
        write(os.path.join(plain, "config.json"), b'{"model_type": "test"}')
        source = encrypt(plain, os.path.join(WORK, f"enc-{name}-{generation}"),
                         self.alice.keys(name), "--generation", str(generation))
        self.manifest[name] = read(os.path.join(source, "kvfs.manifest"))
        self.alice.publish(name, {s: header_of(os.path.join(source, s)) for s in SHARDS},
                           self.manifest[name].decode())
        self.plain[name], self.source[name] = plain, source

    def arguments(self, *more, model="alice/m", key=None, pin=None, url=None):
        all_ = ["--server", url or f"https://localhost:{self.server.port}", "--server-key",
                pin or self.server.thumbprint, "--ca", os.path.join(self.server.dir, "tls.crt"),
                "--deploy-key", key or self.key]
        return all_ + (["--model", model] if model else []) + list(more)

    def mount(self, *more, name="m", source=None, options=(), **how):
        return Mount(source or self.source[name], arguments=self.arguments(*more, **how),
                     options=options)

    def fails(self, words, *more, name="m", source=None, **how):
        mount = self.mount(*more, "--wait", "1", name=name, source=source, **how)
        try:
            mount.mount()
        except AssertionError as error:
            assert words in str(error), error
            return
        mount.umount()
        raise AssertionError("it was mounted")


def test_release(world):
    with check("mounted with a deploy key, a URL, a thumbprint and a name: everything is as it was"):
        with world.mount() as m:
            for shard in SHARDS + ["config.json"]:
                assert same(f"{m.path}/{shard}", f"{world.plain['m']}/{shard}"), shard
            status = m.status()
            assert status["keys"]["source"] == "server", status["keys"]
            lease, = status["leases"]
            assert lease["state"] == "held" and lease["model"] == "alice/m", lease
            assert lease["generation"] == 1 and lease["assurance"] == "self-reported", lease
            assert 0 < lease["renew"] < lease["seconds"] <= 900, lease
            file = next(f for f in status["files"] if f.get("header_sha256")
                        and f["paths"] == [SHARDS[0]])
            assert file["header_sha256"] != sha(header_of(f"{world.source['m']}/{SHARDS[0]}"))
            text = kvfs("status", m.path).stdout
            assert "alice/m" in text and "self-reported" in text, text
            rows = world.server.admin("lease", "list")
            assert [row["id"] for row in rows] == [lease["lease"]], rows
    with check("unmounting gives the lease back"):
        assert world.server.admin("lease", "list") == [], world.server.admin("lease", "list")
    with check("the deploy key is in no command line, environment or log"):
        with world.mount() as m:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                for name in ("cmdline", "environ"):
                    try:
                        text = read(f"/proc/{pid}/{name}")
                    except OSError:
                        continue
                    assert world.bob.encode() not in text, (pid, name)
            assert world.bob not in read(f"{m.path}/.kvfs/log").decode()
            assert world.bob not in world.server.log()


def main():
    with kspostgres.chosen() as postgres, Server(postgres=postgres) as server:
        world = World(server)
        test_release(world)
    return checks.finish()


sys.exit(main())
