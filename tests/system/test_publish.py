#!/usr/bin/env python3
"""kvfs login, publish and logout against a real kvfs-keyserver over TLS, with a proxy in between that
kills, loses answers and looks; then the published model with a subscriber's keys."""
import base64
import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

from ksclient import (KC_TOOL, Publisher, Server, header_of, kc_exchange, refused, sha,
                      write_plain)
from kspublish import Answer, Between, Drop, ForwardProxy, Producer, certificate, typed
from kvfstest import Checks, sanitized, workdir

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
NOTE = ".kvfs-unfinished.json"


def path(*parts):
    return os.path.join(WORK, *parts)


def fresh(name):
    shutil.rmtree(path(name), ignore_errors=True)
    return path(name)


def make_model(name, shards=SHARDS, size=1000):
    source = path(name)
    os.makedirs(source)
    for shard in shards:
        write_plain(os.path.join(source, shard), {f"w{k}": os.urandom(size + k) for k in range(3)})
    with open(os.path.join(source, "config.json"), "w", encoding="utf-8") as file:
        file.write("{}")
    return source


class World:
    def __init__(self, server):
        self.server = server
        self.key, self.deploy = server.user("alice", "publish", "deploy")
        self.bob, = server.user("bob", "deploy")
        self.between = Between(server)
        self.ca = os.path.join(server.dir, "tls.crt")
        self.kvfs = Producer(self.between.url, self.ca, self.key)
        self.source = make_model("m")
        self.alice = Publisher(server, self.key)

    def generation(self, name="m"):
        return self.alice.detail(name)["generation"]

    def check_published(self, out, name, generation):
        """What the server has is what lies in `out`, and nothing is left over."""
        files = self.alice.call("GET", self.alice.model(name, "/files"))
        assert files["generation"] == generation, files
        have = {f["filename"]: f["header_sha256"] for f in files["files"]}
        here = {n: sha(header_of(os.path.join(out, n))) for n in os.listdir(out)
                if n.endswith(".safetensors")}
        assert have == here, (have, here)
        assert not os.path.exists(os.path.join(out, NOTE))
        return have


# ---- login, logout ----

def test_login(world):
    kvfs, between = world.kvfs, world.between
    keyfile = path("api.key")
    with open(keyfile, "w", encoding="utf-8") as file:
        file.write(world.key + "\n")
    os.chmod(keyfile, 0o600)

    with check("login: the key from a file, a descriptor, the environment, standard input"):
        ran = kvfs.login()
        assert "as alice until" in ran.stdout, ran
        kvfs.run("login", kvfs.url, "--ca", world.ca, "--api-key", keyfile)
        kvfs.run("login", kvfs.url, "--ca", world.ca, "--api-key", "-", stdin=world.key)
        with open(keyfile, "rb") as file:
            kvfs.run("login", kvfs.url, "--ca", world.ca, "--api-key-fd", file.fileno(),
                     pass_fds=[file.fileno()])
        between.reset(before=lambda *_: kvfs.look())
        kvfs.run("login", kvfs.url + "/", "--ca", world.ca, env={"KVFS_API_KEY": world.key})
        between.reset()
        assert not any(world.key.encode() in seen for pair in kvfs.seen for seen in pair)
        with open(kvfs.file, encoding="utf-8") as file:
            assert len(json.load(file)) == 1, "one server, one entry"

    with check("login: each ends the one before; only the last can be refreshed"):
        rows = json.loads(world.server.select("SELECT ended FROM sessions ORDER BY id"))
        assert len([r for r in rows if r[0] == 0]) == 2, rows  # and the test's own

    with check("login: typed at a terminal, without echo; Ctrl-C there"):
        code, shown = typed(kvfs, "login", kvfs.url, "--ca", world.ca, text=f"xy\x15{world.key}z\x7f\r")
        assert code == 0 and world.key not in shown and "as alice" in shown, shown
        code, shown = typed(kvfs, "login", kvfs.url, "--ca", world.ca, text="abc\x03")
        assert code == 1 and "no API key" in shown and "abc" not in shown, shown

    with check("login: modes, whatever the umask; a file that others may read is refused"):
        before = os.umask(0)
        kvfs.login()
        os.umask(before)
        assert stat.S_IMODE(os.stat(kvfs.file).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(kvfs.file)).st_mode) == 0o700
        assert os.listdir(os.path.dirname(kvfs.file)) == ["logins.json"]
        os.chmod(kvfs.file, 0o640)
        assert "for you alone" in kvfs.publish(world.source, path("x"), code=1).stderr
        os.chmod(kvfs.file, 0o600)
        with open(kvfs.file, "a", encoding="utf-8") as file:
            file.write("]")
        assert "damaged" in kvfs.run("logout", code=1).stderr
        os.unlink(kvfs.file)

    with check("login: a wrong key, one of another scope, none; nothing is kept"):
        for key, says in ((world.key[:-1] + "_", "(denied)"), (world.deploy, "(wrong_scope)"),
                          ("", "no API key"), ("a b", "no API key")):
            ran = kvfs.run("login", kvfs.url, "--ca", world.ca, stdin=key + "\n", code=1)
            assert says in ran.stderr and (not key or key not in ran.stderr), ran
        assert not os.path.exists(kvfs.file)
        ran = kvfs.run("login", kvfs.url, "--ca", world.ca, "--api-key", world.key, code=2)
        assert world.key not in ran.stderr and "revoked" in ran.stderr, ran

    with check("logout: the server knows; without the server only with --force"):
        kvfs.login()
        token = kvfs.token()
        assert "logged out" in kvfs.run("logout").stdout
        assert not os.path.exists(kvfs.file)
        with refused("token_invalid", 401):
            world.alice.call("POST", "/api/auth/refresh", {"refresh_token": token})
        assert "not logged in" in kvfs.publish(world.source, path("x"), code=1).stderr
        assert "not logged in" in kvfs.run("logout", code=1).stderr
        kvfs.login()

        def nobody(*_):
            raise Drop
        between.reset(before=nobody)
        kvfs.run("logout", "--wait", "0", code=1)
        assert os.path.exists(kvfs.file)
        assert "not told" in kvfs.run("logout", "--wait", "0", "--force").stderr
        assert not os.path.exists(kvfs.file)
        between.reset()


# ---- publish ----

def test_publish(world):
    kvfs, between, out = world.kvfs, world.between, fresh("out")
    kvfs.login()
    with check("publish: the model is created, encrypted, uploaded, current"):
        between.reset(before=lambda *_: kvfs.look())
        token = kvfs.token()
        kvfs.age()
        ran = kvfs.publish(world.source, out)
        assert "alice/m: generation 1 is current" in ran.stdout and not ran.stderr, ran
        world.check_published(out, "m", 1)
        assert kvfs.token() != token, "a refresh token works once"
        header, keys = None, world.alice.keys("m")
        for shard in SHARDS:
            header = json.loads(header_of(os.path.join(out, shard))[8:])
            names = json.loads(header["__metadata__"]["__crypto_keys__"])
            assert names["enc"]["jku"] == keys[0]["jku"] and names["sign"]["jku"] == keys[1]["jku"]
        with open(path("keys.jwks"), "w", encoding="utf-8") as file:
            json.dump({"keys": keys}, file)
        os.chmod(path("keys.jwks"), 0o600)
        assert "5 files in order" in kvfs.run("verify", out, "-k", path("keys.jwks")).stdout

    with check("publish: what can be seen while it runs, and what is left, has no secret"):
        between.reset()
        secrets = secrets_of(world)
        for where, data in everything(world, out):
            for name, secret in secrets.items():
                assert secret not in data, f"{name} is in {where}"
        with open(kvfs.file, "rb") as file:
            text = file.read()
        entry, = json.loads(text)
        kept = {secret for secret in secrets.values() if secret in text}
        assert kept == {entry["access_token"].encode(), entry["refresh_token"].encode()}

    with check("publish: the next generation has a body of its own"):
        said = kvfs.published(world.source, fresh("out2"), "--generation", "2", "--model", "alice/m")
        assert said == {"server": kvfs.url, "model": "alice/m", "generation": 2, "created": False,
                        "files": 3, "uploaded": 3, "header_bytes": said["header_bytes"],
                        "was_current": False, "out": path("out2")}, said
        assert said["header_bytes"] == sum(len(header_of(path("out2", s))) for s in SHARDS)
        world.check_published(path("out2"), "m", 2)
        with open(os.path.join(out, SHARDS[0]), "rb") as a, open(path("out2", SHARDS[0]), "rb") as b:
            assert a.read()[-100:] != b.read()[-100:]

    with check("publish: refused before anything is written"):
        for more, says in ((["--generation", "2"], "the next one is 3"),
                           (["--model", "bob/m"], "as alice, who can't"),
                           (["--server", "https://localhost:1"], "not logged in to"),
                           (["--server", "http://localhost:1"], "https://HOST")):
            assert says in kvfs.publish(world.source, path("no"), *more, code=1).stderr, more
            assert not os.path.exists(path("no"))
        os.symlink(world.source, path("odd name"))
        assert "--model alice/NAME" in kvfs.publish("/", path("no"), code=1).stderr
        kvfs.publish(os.path.join(world.source, SHARDS[0]), path("no"), code=1)
        assert world.generation() == 2


def secrets_of(world):
    """Every secret of what was recorded between kvfs and the server, by name."""
    found = {"the API key": world.key.encode()}
    for text in world.between.recorded:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            data = json.loads(text)["data"]
            for name in ("access_token", "refresh_token"):
                if name in data:
                    found[f"{name} {len(found)}"] = data[name].encode()
            for jwk in (data.get("master_key_jwk"), data.get("private_key_jwk")):
                if jwk:
                    secret = jwk.get("k") or jwk["d"]
                    found[f"{jwk['kty']} as base64"] = secret.encode().rstrip(b"=")
                    found[f"{jwk['kty']} as it is"] = base64.b64decode(secret)
    assert {"oct as it is", "okp as it is"} <= set(found) and len(found) > 8, found.keys()
    return found


def everything(world, out):
    """(name, bytes) of what others may see: processes, output, logs, files."""
    yield "output", "".join(world.kvfs.said).encode()
    yield "the server's log", world.server.log().encode()
    for pair in world.kvfs.seen:
        yield "the command line", pair[0]
        yield "the environment", pair[1]
    for top in (out, world.kvfs.home):
        for directory, _, names in os.walk(top):
            for name in names:
                whole = os.path.join(directory, name)
                if whole != world.kvfs.file:
                    with open(whole, "rb") as file:
                        yield whole, file.read()


def test_subscriber(world):
    with check("a subscriber opens what was published, with headers and keys of his own"):
        digest = subprocess.run([KC_TOOL, "measure"], stdout=subprocess.PIPE, text=True,
                                check=True).stdout.strip()
        world.server.admin("model", "set", "alice/m", "--profiles=none")
        world.server.admin("baseline", "add", "alice/m", digest)
        world.server.admin("subscription", "add", "alice/m", "bob")
        said = kc_exchange(world.server, world.bob, path("out2"))
        assert said[-1].startswith("held ") and said[-1].split()[2] == "2", said
        assert len(said) == 4 and all(line.split()[2] == "3/3" for line in said[:3]), said
        with open(path("out2/kvfs.manifest"), "rb") as file:
            assert said[-1].split()[3] == sha(file.read())
    with check("the generation before it is outdated"):
        said = kc_exchange(world.server, world.bob, path("out"))
        assert "body_outdated" in said[-1], said


def test_limits(world):
    kvfs, between = world.kvfs, world.between
    with check("a header above the server's limit is named before anything is encrypted"):
        big = path("big")
        os.makedirs(big)
        write_plain(os.path.join(big, "a.safetensors"), {"w": os.urandom(6 << 20)})
        write_plain(os.path.join(big, "b.safetensors"), {"w": b"x"})
        between.reset()
        ran = kvfs.publish(big, path("bigout"), "--chunk-size", "12", code=1)
        assert "a.safetensors" in ran.stderr and "b.safetensors" not in ran.stderr, ran
        assert "the server takes 10 MiB" in ran.stderr and "--chunk-size" in ran.stderr, ran
        assert not os.path.exists(path("bigout"))
        assert not any("POST" in what and "/files" in what for what in between.seen)
        assert world.generation("big") == 0
        kvfs.publish(big, path("bigout"), "--chunk-size", "1M")

    with check("a remote policy that the server can't read is refused before; one that it can is kept"):
        for text, code in (("package model\nallow = http.send({})", 1),
                           ('package model\nallow = input.user == "bob"', 0)):
            with open(path("remote.rego"), "w", encoding="utf-8") as file:
                file.write(text)
            between.reset()
            ran = kvfs.publish(big, fresh("bigout"), "--chunk-size", "1M", "--remote-policy",
                               path("remote.rego"), code=code)
            assert code == 0 or ("remote.rego" in ran.stderr and not os.path.exists(path("bigout")))
            assert code == 0 or not any("/files" in what for what in between.seen)

    with check("batches of a hundred; after a kill between them only the rest is sent"):
        many = make_model("many", [f"{i}.safetensors" for i in range(120)], size=8)

        def second(number, what):
            if what.endswith("/files") and len([w for w in between.seen if w == what]) == 2:
                kvfs.running.kill()
                raise Drop
        between.reset(before=second)
        kvfs.publish(many, path("manyout"), code=-signal.SIGKILL)
        between.reset()
        said = kvfs.published(many, path("manyout"), "--resume")
        assert (said["files"], said["uploaded"]) == (120, 20), said
        world.check_published(path("manyout"), "many", 1)


# ---- interruptions ----

def test_kills(world):
    """A kill at every request, before the server sees it and before its answer arrives."""
    kvfs, between = world.kvfs, world.between
    count = 0

    def publish_killed(when, number):
        nonlocal count
        count += 1
        name, out = f"kill{count}", fresh("killed")
        reached = []

        def kill(at, what):
            if at == number:
                reached.append(what)
                kvfs.running.kill()
                raise Drop
        between.reset(**{when: kill})
        more = ["--model", f"alice/{name}"]
        kvfs.age()
        kvfs.publish(world.source, out, *more, code=None)
        between.reset()
        if reached:
            resume_after(world, name, out, more)
        return reached

    for when in ("before", "after"):
        with check(f"kill -9 at requests, {when} the server has done it: --resume completes it"):
            number, step = 1, 2 if when == "before" or sanitized() else 1
            if when == "before" and sanitized():
                number, step = 2, 3
            reached = []
            while found := publish_killed(when, number):
                reached += found
                number += step
            assert any(what.endswith(("/files", "/generations")) for what in reached), reached
            assert len(reached) * step >= 8, reached

    with check("kill -9 while it encrypts"):
        large = make_model("large", size=6 << 20)
        out = fresh("largeout")
        kvfs.running = None

        def kill():
            while not os.path.exists(os.path.join(out, SHARDS[0])):
                time.sleep(0.001)
            kvfs.running.kill()
        threading.Thread(target=kill, daemon=True).start()
        kvfs.publish(large, out, code=-signal.SIGKILL)
        said = kvfs.published(large, out, "--resume")
        assert said["generation"] == 1 and said["uploaded"] == 3
        world.check_published(out, "large", 1)


def resume_after(world, name, out, more):
    """--resume, after logging in again if the kill took the login with it."""
    ran = world.kvfs.publish(world.source, out, "--resume", "--json", *more, code=None)
    if "has ended: kvfs login" in ran.stderr:
        world.kvfs.login()
        ran = world.kvfs.publish(world.source, out, "--resume", "--json", *more)
    said = json.loads(ran.stdout)
    assert said["generation"] == 1 and said["files"] == 3, said
    world.check_published(out, name, 1)


def test_lost_answers(world):
    kvfs, between = world.kvfs, world.between

    def drop_once(end):
        done = []

        def drop(_, what):
            if what.endswith(end) and not done:
                done.append(what)
                raise Drop
        return drop
    with check("an answer that is lost: model, upload and generation are not made twice"):
        for number, (when, end) in enumerate([("after", "/models"), ("after", "/files"),
                                              ("after", "/generations"), ("before", "/generations"),
                                              ("before", "/files"), ("after", "/sign-key")]):
            between.reset(**{when: drop_once(end)})
            said = kvfs.published(world.source, fresh("lost"), "--model", f"alice/lost{number}")
            assert said["generation"] == 1, (end, said)
            world.check_published(path("lost"), f"lost{number}", 1)
        between.reset()

    with check("a token that runs out in the middle is refreshed"):
        def expire(_, what):
            if what.endswith("/files"):
                between.reset()
                world.server.sql("UPDATE sessions SET access_expires = 1")
        between.reset(before=expire)
        kvfs.publish(world.source, fresh("expire"), "--model", "alice/expire")
        world.alice = Publisher(world.server, world.key)
        world.check_published(path("expire"), "expire", 1)

    with check("two at once share a login, whichever refreshes it"):
        def expire(_, what):
            if what.endswith("/sign-key") and len([w for w in between.seen if w == what]) == 2:
                world.server.sql("UPDATE sessions SET access_expires = 1")
        between.reset(before=expire)
        runs = [threading.Thread(target=kvfs.publish, args=(
            world.source, fresh(f"both{i}"), "--model", f"alice/both{i}")) for i in range(2)]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        between.reset()
        world.alice = Publisher(world.server, world.key)
        for i in range(2):
            world.check_published(path(f"both{i}"), f"both{i}", 1)

    with check("somebody else publishes meanwhile: said, and --resume becomes the next"):
        def publish(_, what):
            if what.endswith("/generations"):
                between.reset()
                headers = {s: header_of(path("out2", s)) for s in SHARDS}
                world.alice.publish("m", headers)
        between.reset(before=publish)
        ran = kvfs.publish(world.source, fresh("out4"), code=1)
        assert "somebody else published generation 3" in ran.stderr, ran
        said = kvfs.published(world.source, path("out4"), "--resume")
        assert said["generation"] == 4 and said["uploaded"] == 0, said
        world.check_published(path("out4"), "m", 4)

    with check("interrupted by a signal: said, and resumed"):
        def interrupt(_, what):
            if what.endswith("/files"):
                kvfs.running.send_signal(signal.SIGINT)
                time.sleep(3)
        between.reset(before=interrupt)
        ran = kvfs.publish(world.source, fresh("out5"), code=1)
        assert "interrupted" in ran.stderr and "--resume goes on" in ran.stderr, ran
        between.reset()
        assert kvfs.published(world.source, path("out5"), "--resume")["generation"] == 5


def test_outages(world):
    kvfs, between, server = world.kvfs, world.between, world.server
    with check("the server is down at the start: an error, at once or after --wait"):
        server.stop()
        ran = kvfs.publish(world.source, fresh("down"), "--wait", "0", code=1)
        assert "localhost" in ran.stderr and not os.path.exists(path("down")), ran
        server.start()

    with check("the server dies in the middle and comes back: it goes on"):
        dead = threading.Event()

        def die(_, what):
            if what.endswith("/files"):
                between.reset()
                server.stop(signal.SIGKILL)
                dead.set()
                raise Drop
        between.reset(before=die)
        result = []
        run = threading.Thread(target=lambda: result.append(kvfs.publish(
            world.source, fresh("died"), "--model", "alice/died", code=None)))
        run.start()
        assert dead.wait(30)
        time.sleep(1)
        server.start()
        run.join()
        assert result[0].returncode == 0 and "trying again" in result[0].stderr, result
        world.alice.http.close()
        world.alice = Publisher(server, world.key)
        world.check_published(path("died"), "died", 1)

    with check("answers that are no key server's; redirects are not followed"):
        for answer, says in (
                (Answer(502, b"<html>"), "status 502"), (Answer(200, b"[]"), "status 200"),
                (Answer(200, b'{"success":true,"data":3}'), "without data"),
                (Answer(307, b"", [("Location", kvfs.url + "/api/x")]), "status 307"),
                (Answer(500, b'{"success":false,"error":"internal","message":"\\u001b[31m"}'),
                 "(internal)")):
            def say(_, what, a=answer):
                if what.endswith("/sign-key"):
                    raise a
            between.reset(before=say)
            ran = kvfs.publish(world.source, path("odd"), "--wait", "0", code=1)
            assert says in ran.stderr and "\x1b" not in ran.stderr, (answer, ran)
            assert not any("/api/x" in what for what in between.seen)
        between.reset()


# ---- TLS, proxies ----

def test_tls(world):
    source = world.source
    with check("TLS: another authority, another name, an expired certificate: refused at once"):
        expired = certificate("expired", -2, -1)
        other = certificate("other", -1, 1, host="other.example")
        for cert, ca, says in ((None, None, "certificate"), (None, expired[0], "certificate"),
                               (expired, expired[0], "expired"), (other, other[0], "name")):
            between = Between(world.server, *(cert or ()))
            more = ["--ca", ca] if ca else []
            start = time.monotonic()
            ran = world.kvfs.run("login", between.url, *more, stdin=world.key, code=1)
            assert says in ran.stderr.lower() and time.monotonic() - start < 10, ran
            assert not between.seen and not between.recorded, "something was sent"
            between.close()
        ran = world.kvfs.publish(source, path("x"), "--ca", expired[0], code=1)
        assert "certificate" in ran.stderr, ran

    with check("https_proxy: a CONNECT, and nothing else that can be read; no_proxy"):
        proxy = ForwardProxy()
        env = {"https_proxy": proxy.url}
        world.kvfs.publish(source, fresh("proxied"), "--model", "alice/proxied", env=env)
        assert proxy.asked and all(a.startswith(b"CONNECT localhost:") for a in proxy.asked)
        recorded = b"".join(proxy.asked + proxy.bytes)
        assert b"Bearer" not in recorded and b"alice" not in recorded and b"/api/" not in recorded
        asked = len(proxy.asked)
        world.kvfs.publish(source, fresh("proxied"), "--model", "alice/proxied",
                           env={**env, "no_proxy": "localhost"})
        assert len(proxy.asked) == asked
        proxy.socket.close()


def main():
    with Server() as server:
        world = World(server)
        test_login(world)
        test_publish(world)
        test_subscriber(world)
        test_limits(world)
        test_kills(world)
        test_lost_answers(world)
        test_outages(world)
        test_tls(world)
        world.between.close()
    return checks.finish()


sys.exit(main())
