#!/usr/bin/env python3
"""The audit of mounts, with local keys and with a real key server: what happens has its line, on both
sides; whatever is done to the file afterwards is found; a worker that is killed and a disk that is
full."""
import base64
import contextlib
import json
import os
import shutil
import signal
import stat
import sys
import threading
import time

from ksclient import Publisher, Server, encrypt, header_of, sha, write_plain
from kvfstest import (Checks, Model, Mount, kvfs, outcome, read_all, run, wait_for, workdir)

checks = Checks()
check = checks.check
WORK = workdir()
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
count = 0


def fresh(name="audit"):
    global count
    count += 1
    return os.path.join(WORK, f"{name}{count}")


def lines(path):
    """The whole ones, without their ends."""
    with contextlib.suppress(FileNotFoundError):
        return read_all(path).split(b"\n")[:-1]
    return []


def records(path, chain=None):
    found = [json.loads(line) for line in lines(path)]
    return [r for r in found if chain is None or r["chain"] == chain]


def events(path, chain=None):
    return [r["event"] for r in records(path, chain)]


def happened(path, event, chain=None, timeout=5, **members):
    def look():
        return next((r for r in records(path, chain) if r["event"] == event and
                     all(r.get(k) == v for k, v in members.items())), None)
    return wait_for(look, timeout, f"{event} {members}")


def flip_last_byte(path):
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def record_of(line):
    """What of a line is digested, and sent to the server."""
    return line[:line.rindex(b',"head":"')] + b"}"


def verify(path, *more):
    """Whether it is found in order, and what is said."""
    ran = kvfs("audit", "verify", path, *more, check=False)
    assert ran.returncode in (0, 1), ran
    return ran.returncode == 0, ran.stdout + ran.stderr


def in_order(path, *more):
    good, said = verify(path, *more)
    assert good, said
    return said


def heads(path):
    """Each chain's last, and how many records it has."""
    found = {}
    for record in records(path):
        found[record["chain"]] = (record["head"], found.get(record["chain"], ("", 0))[1] + 1)
    return found


# ---- local keys ----

def test_local(model):
    path = fresh()
    with check("local keys: what happens, one line each; mode 0600; signed, in order"):
        with model.mount(f"audit={path}") as m:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            read_all(model.shown(m))
            for _ in range(5):
                read_all(model.shown(m, 1))
            opened = happened(path, "open", file=model.shards[1], uid=0)
            assert opened["pid"] > 0 and events(path).count("open") == 2, events(path)
        first = records(path)[0]
        assert first["event"] == "mount" and first["mountpoint"] == m.path, first
        assert first["audit_key"]["crv"] == "P-256" and "d" not in first["audit_key"]
        assert [r["repeated"] for r in records(path) if "repeated" in r] == [4], events(path)
        assert events(path)[-2:] == ["end", "signature"], events(path)
        assert f"{len(lines(path))} records" not in in_order(path)
    with check("refused reads are recorded, with their error and why"):
        broken = fresh("broken")
        shutil.copytree(model.encrypted, broken)
        flip_last_byte(os.path.join(broken, model.shard))
        with Mount(broken, keys=[model.reader], options=[f"audit={path}"]) as m:
            assert outcome(model.shown(m)) == "EBADMSG"
            said = happened(path, "refusal", file=model.shard, code="EBADMSG")
            assert "tag" in said["detail"], said
        assert in_order(path).count("mount ") == 2
    with check("kvfs seal, and a reader that is not admitted, are recorded"):
        profile = fresh("profile")
        with open(profile, "w", encoding="ascii") as file:
            file.write("profile uids\nbase drift\nreader-uid require\nadmit uid 4321\n")
        with model.mount(f"audit={path}", f"guard={profile}", "umask=0") as m:
            assert outcome(model.shown(m)) == "EPERM"
            said = happened(path, "refusal", file=model.shard, code="EPERM", uid=0)
            assert "not admitted" in said["detail"], said
            run("setpriv", "--reuid=4321", "--clear-groups", "sha256sum", model.shown(m), check=True)
            assert happened(path, "open", uid=4321)["exe"].endswith("/sha256sum"), events(path)
            kvfs("seal", m.path)
            assert "kvfs seal" in happened(path, "seal", code="EKEYREVOKED")["detail"]
        assert in_order(path).count("mount ") == 3
    with check("--audit-log: the same lines in the log"):
        log, path = fresh("log"), fresh()
        with model.mount(f"audit={path}", "audit-log", f"log={log}") as m:
            read_all(model.shown(m))
            happened(path, "open")
        logged = [l[len(b"audit: "):] for l in lines(log) if l.startswith(b"audit: ")]
        assert logged == lines(path)
    with check("a file that others can read, one in use, a directory, a link: no mount"):
        bad = fresh("bad")
        with open(bad, "wb"):
            os.chmod(bad, 0o644)
        link = fresh("link")
        os.symlink(path, link)
        with model.mount(f"audit={path}"):
            for file, words in ((bad, "chmod"), (path, "another mount"), (WORK, "irectory"),
                                (link, "audit file")):
                with contextlib.suppress(AssertionError):
                    model.mount(f"audit={file}").mount()
                    raise RuntimeError(f"mounted with {file}")
                ran = kvfs("mount", model.encrypted, fresh_dir(), "--key", model.reader, "--audit",
                           file, check=False)
                assert ran.returncode and words in ran.stderr, ran
    with check("a mount that fails says why in its chain"):
        path = fresh()
        ran = kvfs("mount", model.plain, fresh_dir(), "--key", model.reader, "--audit", path,
                   check=False)
        assert ran.returncode == 1 and events(path)[-2:] == ["end", "signature"], events(path)
        assert "encrypted" in happened(path, "failed", code="ENOENT")["detail"], records(path)
        in_order(path)
    with check("one that its guard refuses has a line too, which nobody can sign, and nothing follows it"):
        path = fresh()
        ran = kvfs("mount", model.encrypted, fresh_dir(), "--key", model.reader, "--audit", path,
                   "--guard=strict", check=False)
        only, = records(path)
        assert ran.returncode == 1 and only["event"] == "failed" and only["signed"] is False, only
        assert "root-ro, " in only["detail"] and "no mount came of it" in in_order(path), only
        for record in (only, {**only, "n": 2}):
            text = json.dumps({k: v for k, v in record.items() if k != "head"}, separators=(",", ":"))
            head = only["head"] if record["n"] == 2 else sha(f"kvfs-audit-v1\n{only['chain']}\n")
            head = sha(f"{head}\n{record['n']}\n{text}")
            if record["n"] == 1:
                assert head == only["head"]
                continue
            with open(path, "a", encoding="ascii") as file:
                file.write(f'{text[:-1]},"head":"{head}"}}\n')
        assert "it goes on" in verify(path)[1], verify(path)


def fresh_dir():
    os.mkdir(fresh("dir"))
    return os.path.join(WORK, f"dir{count}")


def test_alterations(model):
    path, other = fresh(), fresh()
    for _ in range(2):
        with model.mount(f"audit={path}") as m:
            read_all(model.shown(m))
            happened(path, "open", file=model.shard)
            read_all(f"{m.path}/config.json")
            happened(path, "open", file="config.json")
    whole = lines(path)
    in_order(path)

    def found(parts, *more):
        with open(other, "wb") as file:
            file.write(b"".join(part + b"\n" for part in parts))
        return not verify(other, *more)[0]

    with check(f"any one line of {len(whole)} altered is found"):
        for i, line in enumerate(whole):
            for at in (11, len(line) // 2, line.index(b'"time"') + 12, len(line) - 30):
                changed = bytearray(line)
                changed[at] ^= 1
                assert found(whole[:i] + [bytes(changed)] + whole[i + 1:]), (i, at)
    with check("... removed, doubled, exchanged with the next"):
        for i, line in enumerate(whole):
            last = json.loads(line)["head"] in [head for head, _ in heads(path).values()]
            assert found(whole[:i] + whole[i + 1:],
                         *(["--head", json.loads(line)["head"]] if last else [])), i
            assert found(whole[:i] + [line] + whole[i:]), i
            if i + 1 < len(whole) and line[:44] == whole[i + 1][:44]:
                assert found(whole[:i] + [whole[i + 1], line] + whole[i + 2:]), i
    with check("a tail that was cut is found by who has the head, and only so"):
        head = json.loads(whole[-1])["head"]
        for n in range(1, len(whole)):
            assert found(whole[:n], "--head", head), n
        assert not found(whole[:-1])
        assert not found(whole, "--head", json.loads(whole[3])["head"])
        with open(other, "wb") as file:
            file.write(b"\n".join(whole)[:-100])
        assert "cut in the middle" in verify(other)[1]
    with check("several files are read as one; --quiet says nothing; what is no file"):
        half = fresh()
        for name, part in ((half, whole[:4]), (other, whole[4:])):
            with open(name, "wb") as file:
                file.write(b"".join(line + b"\n" for line in part))
        assert not verify(other)[0] and verify(half)[0]
        assert kvfs("audit", "verify", "-q", half, other).stdout == ""
        ran = kvfs("audit", "verify", fresh(), check=False)
        assert ran.returncode == 1 and "No such file" in ran.stderr, ran


def test_ends(model):
    with check("the worker is killed: the next lines are chained, not signed, and say so"):
        path = fresh()
        with model.mount(f"audit={path}") as m:
            read_all(model.shown(m))
            happened(path, "open")
            os.kill(m.worker, signal.SIGKILL)
            m.wait_gone()
        last = records(path)[-1]
        assert last["event"] == "worker-ended" and last["signed"] is False, last
        assert "signal 9" in last["detail"], last
        assert "the worker died" in in_order(path, "--head", last["head"])
        with model.mount(f"audit={path}"):
            pass
        assert in_order(path).count("mount ") == 2
    with check("stopped although in use: recorded by the supervisor, at the latest when it ends"):
        path = fresh()
        with model.mount(f"audit={path}") as m:
            with open(model.shown(m), "rb"):
                os.kill(m.supervisor, signal.SIGTERM)
                m.wait_gone(10)
        assert "stop" in events(path) and events(path)[-1] in ("worker-ended", "stop"), events(path)
        in_order(path)
    with check("both are killed: what was written is in order"):
        path = fresh()
        with model.mount(f"audit={path}") as m:
            read_all(model.shown(m))
            happened(path, "open")
            os.kill(m.supervisor, signal.SIGKILL)
            os.kill(m.worker, signal.SIGKILL)
            m.wait_gone()
        assert "it has no end" in in_order(path)


def test_disk(model):
    disk = fresh_dir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "none", disk, check=True)
    path, filler, log = f"{disk}/audit", f"{disk}/filler", fresh("log")

    def fill():
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)

    with check("the disk is full: the mount goes on, and lines come when there is room"):
        with model.mount(f"audit={path}", f"log={log}") as m:
            happened(path, "signature")
            fill()
            for pid in range(40):  # as many readers: as many lines
                assert run("cat", model.shown(m)).returncode == 0, pid
            wait_for(lambda: "can't be written to" in read_all(log).decode(), 5, "a word of it")
            had = len(lines(path))
            os.unlink(filler)
            wait_for(lambda: events(path).count("open") == 40, 5, "the lines")
            assert had < 40 and "can be written to again" in read_all(log).decode()
        in_order(path)
    with check("it stays full: the mount ends as ever, the loss is told, the tail is missing"):
        with model.mount(f"audit={path}", f"log={log}") as m:
            happened(path, "signature", chain=records(path)[-1]["chain"])
            fill()
            for _ in range(40):
                run("cat", model.shown(m))
        assert "bytes are lost" in read_all(log).decode()
        os.unlink(filler)
        assert "it has no end" in verify(path)[1]
        with model.mount(f"audit={path}"):
            pass
        good, said = verify(path)
        assert "NOT" in said or good, said  # a torn line is one fault, and only that one
        assert said.count(": it is no audit line") <= 1, said
    with check("more readers than can be listed: how many were left out is recorded"):
        path = fresh()
        with model.mount(f"audit={path}") as m:
            began = time.monotonic()
            for _ in range(3000):  # each has a process ID of its own
                thread = threading.Thread(target=lambda: os.close(os.open(shown, os.O_RDONLY)))
                shown = model.shown(m)
                thread.start()
                thread.join()
            took = time.monotonic() - began
        listed = events(path).count("open")
        lost = sum(r["events"] for r in records(path) if r["event"] == "lost")
        checks.note(f"of 3000 opens in {took:.1f} s {listed} listed, {lost} counted")
        assert listed + lost == 3000 and (lost or took >= 2), (listed, lost, took)  # 1000 a second
        in_order(path)


# ---- a key server ----

class World:
    """alice publishes m; bob subscribes to it."""

    def __init__(self, server):
        self.server = server
        publish, = server.user("alice", "publish")
        bob, = server.user("bob", "deploy")
        alice = Publisher(server, publish)
        self.key = os.path.join(WORK, "bob.key")
        with open(self.key, "w", encoding="ascii") as file:
            file.write(bob)
        alice.create("m")
        server.admin("model", "set", "alice/m", "--profiles=drift")
        server.admin("baseline", "add", "alice/m", kvfs("measure").stdout.strip())
        plain = fresh_dir()
        for shard in SHARDS:
            write_plain(os.path.join(plain, shard), {"w": os.urandom(100000)})
        self.source = encrypt(plain, fresh("enc"), alice.keys("m"), "--generation", "1")
        alice.publish("m", {s: header_of(os.path.join(self.source, s)) for s in SHARDS},
                      read_all(os.path.join(self.source, "kvfs.manifest")).decode())
        server.admin("subscription", "add", "alice/m", "bob")

    def mount(self, *options, source=None):
        return Mount(source or self.source, options=options, arguments=[
            "--server", f"https://localhost:{self.server.port}", "--server-key",
            self.server.thumbprint, "--ca", os.path.join(self.server.dir, "tls.crt"),
            "--deploy-key", self.key, "--model", "alice/m"])

    def records(self, lease):
        rows = self.server.admin("audit", "records", lease) or []
        assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1)), rows
        return [row["record"].encode() for row in rows]

    def has(self, lease, event, timeout=5):
        wait_for(lambda: event in [json.loads(r)["event"] for r in self.records(lease)], timeout,
                 f"{event} at the server")


def lease_of(m):
    return m.status()["leases"][0]["lease"]


def same_chain(world, path, lease):
    """What the server has is how the chain in the file begins. What is more there."""
    ours = [record_of(line) for line in lines(path) if json.loads(line)["chain"] == lease]
    theirs = world.records(lease)
    assert theirs == ours[:len(theirs)], (len(theirs), len(ours))
    head = sha(f"kvfs-audit-v1\n{lease}\n")
    for i, record in enumerate(theirs):
        head = sha(f"{head}\n{i + 1}\n{record.decode()}")
    assert json.loads(world.server.select(
        f"SELECT audit_head, audit_count FROM leases WHERE id = '{lease}'")) == [[head, len(theirs)]]
    in_order(path, "--head", head)
    return ours[len(theirs):]


def test_server(world):
    server = world.server
    server.sql("UPDATE models SET lease_seconds = 3")
    path = fresh()
    with check("release, open, refusal and renewal: the same records here and at the server"):
        broken = fresh("broken")
        shutil.copytree(world.source, broken)
        flip_last_byte(os.path.join(broken, SHARDS[1]))
        with world.mount(f"audit={path}", source=broken) as m:
            lease = lease_of(m)
            read_all(f"{m.path}/{SHARDS[0]}")
            assert outcome(f"{m.path}/{SHARDS[1]}") == "EBADMSG"
            first = records(path, lease)[0]
            assert first["event"] == "release" and first["model"] == "alice/m", first
            assert len(first["ticket_sha256"]) == 64 and first["lease"] == lease, first
            assert first["mount"] == records(path)[0]["chain"], first
            happened(path, "release", chain=first["mount"], lease=lease)
            happened(path, "open", chain=lease, file=SHARDS[0])
            happened(path, "refusal", chain=lease, file=SHARDS[1], code="EBADMSG")
            for event in ("release", "open", "refusal", "renewal"):
                world.has(lease, event)
            same_chain(world, path, lease)
        assert same_chain(world, path, lease) == [], "not all came to the server"
        assert json.loads(world.records(lease)[-2])["event"] == "end"
    with check("without a file, the server has the records all the same"):
        with world.mount() as m:
            lease = lease_of(m)
            read_all(f"{m.path}/{SHARDS[0]}")
            world.has(lease, "renewal")
        assert json.loads(world.records(lease)[-2])["event"] == "end"
    with check("revoked: the lease's end, the seal and what is refused then, here and there, signed"):
        with world.mount(f"audit={path}") as m:
            lease = lease_of(m)
            read_all(f"{m.path}/{SHARDS[0]}")
            server.admin("revoke", "lease", lease)
            happened(path, "lease-end", chain=lease, code="EKEYREVOKED")
            happened(path, "seal", chain=lease, code="EKEYREVOKED")
            assert outcome(f"{m.path}/{SHARDS[0]}") == "EKEYREVOKED"
            happened(path, "refusal", chain=lease, code="EKEYREVOKED")
            world.has(lease, "seal")
        assert same_chain(world, path, lease) == [], same_chain(world, path, lease)
    with check("drift: what the guard saw and the seal, in every chain, here and there, signed"):
        top = fresh_dir()
        shutil.copytree(world.source, f"{top}/deep/model")
        with world.mount(f"audit={path}", source=f"{top}/deep/model") as m:
            lease = lease_of(m)
            chain = records(path, lease)[0]["mount"]
            read_all(f"{m.path}/{SHARDS[0]}")
            run("mount", "-t", "tmpfs", "none", f"{top}/deep", check=True)
            for where in (lease, chain):
                seen = happened(path, "drift", chain=where, by="supervisor")
                sealed = happened(path, "seal", chain=where, code="EKEYREVOKED")
                assert f"the guard: {seen['detail']}" == sealed["detail"], (seen, sealed)
                assert "signed" not in seen
            world.has(lease, "drift")
            world.has(lease, "seal")
        assert same_chain(world, path, lease) == [], same_chain(world, path, lease)
    with check("drift, and the mount ends by it (exit-on-seal): nothing is missing here or there"):
        top = fresh_dir()
        shutil.copytree(world.source, f"{top}/deep/model")
        with world.mount(f"audit={path}", "exit-on-seal=42", source=f"{top}/deep/model") as m:
            lease = lease_of(m)
            run("mount", "-t", "tmpfs", "none", f"{top}/deep", check=True)
            m.wait_gone(10)
        assert {"drift", "seal", "end"} <= set(events(path, lease)), events(path, lease)
        assert same_chain(world, path, lease) == [], same_chain(world, path, lease)
    with check("a release that is refused: in the mount's chain, and in the server's own audit"):
        server.sql("UPDATE models SET profiles = 'strict'")
        with contextlib.suppress(AssertionError):
            world.mount(f"audit={path}").mount()
            raise RuntimeError("it was mounted")
        server.sql("UPDATE models SET profiles = 'drift'")
        refused = happened(path, "release-refused", model="alice/m")
        assert "profile_refused" in refused["detail"] and refused["code"] == "EACCES", refused
        assert any(row["code"] == "profile_refused" for row in server.audit()), server.audit()
        in_order(path)
    with check("the server is away: what it missed comes when it is back; the refusals too"):
        server.sql("UPDATE models SET lease_grace = 60")
        with world.mount(f"audit={path}") as m:
            lease = lease_of(m)
            world.has(lease, "release")
            server.stop(signal.SIGKILL)
            read_all(f"{m.path}/{SHARDS[0]}")
            happened(path, "renewal-refused", chain=lease)
            server.start()
            world.has(lease, "open", 10)
            world.has(lease, "renewal-refused", 10)
        assert same_chain(world, path, lease) == [], same_chain(world, path, lease)
        server.sql("UPDATE models SET lease_grace = 0")
    with check("the worker is killed: the file goes on, unsigned, from where the server's records end"):
        with world.mount(f"audit={path}") as m:
            lease = lease_of(m)
            world.has(lease, "release")
            os.kill(m.worker, signal.SIGKILL)
            m.wait_gone()
        more = [json.loads(record) for record in same_chain(world, path, lease)]
        assert more[-1]["event"] == "worker-ended" and more[-1]["signed"] is False, more
    with check("a server whose records are not ours: told, nothing more is sent, the mount goes on"):
        log = fresh("log")
        with world.mount(f"audit={path}", f"log={log}") as m:
            lease = lease_of(m)
            world.has(lease, "signature")
            server.sql(f"UPDATE leases SET audit_head = '{'0' * 64}' WHERE id = '{lease}'")
            had = len(world.records(lease))
            wait_for(lambda: b"other audit records" in read_all(log), 5, "a word of it")
            happened(path, "renewal", chain=lease)
            read_all(f"{m.path}/{SHARDS[0]}")
            assert len(world.records(lease)) == had
        in_order(path)
    with check("no secret is in the file"):
        text = read_all(path)
        for secret in (read_all(world.key).strip(), b'"d":', b'"k":'):
            assert secret not in text
        for part in text.split(b'"payload":"')[1:]:
            payload = part.split(b'"')[0]
            assert b"sequence" in base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))


def main():
    model = Model(mib=1)
    test_local(model)
    test_alterations(model)
    test_ends(model)
    test_disk(model)
    with Server() as server:
        test_server(World(server))
    return checks.finish()


sys.exit(main())
