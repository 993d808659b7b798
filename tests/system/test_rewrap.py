#!/usr/bin/env python3
"""encrypt, rewrap and rekey stopped at any time and gone on with; full disks; new keys for what is
encrypted already."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from clitest import (OWNER, READER, big, check, fresh, finish, header_of, kvfs, leftovers,
                     manifest_of, names, path, prepare, read, tree, verify, write)
from kvfstest import KVFS, Skip, workdir


def test_resume(src):
    """src is big()."""
    with check("kill -9 at any time, then --resume: finished files are kept, the rest is made"):
        out, kept = fresh("killed"), {}
        for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
            args = ["--resume"] if os.path.exists(out) else []
            with subprocess.Popen([KVFS, "encrypt", src, "-o", out, "-k", OWNER, *args],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
                time.sleep(delay)
                run.kill()
            if os.path.exists(out) and not os.path.exists(f"{out}/kvfs.manifest"):
                for name in names(out):
                    if not name.startswith("."):
                        assert len(read(f"{out}/{name}")) >= len(read(f"{src}/{name}")), name
        for name in names(out):
            kept[name] = os.stat(f"{out}/{name}").st_ino
        noted = leftovers(out)
        if noted or not kept:
            kvfs("encrypt", src, "-o", out, "-k", OWNER, *(["--resume"] if kept else []))
        assert not leftovers(out), leftovers(out)
        verify(out, READER)
        assert names(out) == sorted(names(src) + ["kvfs.manifest"])

    with check("--resume: killed while it wrote its first note"):
        out = fresh("begun")
        for more in (["--resume"], []):
            os.mkdir(out)
            write(f"{out}/..kvfs-unfinished.json.0123456789abcdef.tmp", "{")
            kvfs("encrypt", src, "-o", out, "-k", OWNER, *more)
            assert not leftovers(out), leftovers(out)
            shutil.rmtree(out)

    with check("interrupted: exit 1, no half-written file, and it says how to go on"):
        out = fresh("stopped")
        with subprocess.Popen([KVFS, "encrypt", src, "-o", out, "-k", OWNER, "-j", "1"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            run.stdout.readline()  # the first model is finished
            run.send_signal(signal.SIGINT)
            out_text, err = run.communicate(timeout=60)
        if run.returncode == 0:
            raise Skip("it was faster than the signal")
        assert run.returncode == 1 and b"interrupted" in err and b"--resume" in err, err
        assert leftovers(out) == [".kvfs-unfinished.json"] and "kvfs.manifest" not in names(out)
        assert "unfinished" in kvfs("encrypt", src, "-o", out, "-k", OWNER, code=1).stderr

    with check("--resume: another option, another key, another source are refused"):
        before = tree(out)
        for more in (["--chunk-size", "1M"], ["--generation", "2"], ["--exclude", "*.txt"],
                     ["--format-version", "1"], ["--skip-tensors", "w"], ["--no-manifest"]):
            ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", *more, code=1)
            assert "must be the same" in ran.stderr, ran
        kvfs("keygen", fresh("other-keys"))
        kvfs("encrypt", src, "-o", out, "-k", path("other-keys/owner.jwks"), "--resume", code=1)
        ran = kvfs("rekey", path("out"), "-o", out, "-k", OWNER, "--resume", code=1)
        assert tree(out) == before

    with check("--resume: a forged note is refused, foreign files are left alone"):
        write(f"{out}/mine.txt", "mine")
        ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=1)
        assert "mine.txt" in ran.stderr and read(f"{out}/mine.txt") == b"mine"
        os.unlink(f"{out}/mine.txt")
        note = read(f"{out}/.kvfs-unfinished.json")
        write(f"{out}/.kvfs-unfinished.json", note.replace(b'"payload":"e', b'"payload":"f'))
        kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=1)
        write(f"{out}/.kvfs-unfinished.json", note)

    with check("--resume: a changed source and a changed output are made anew, the rest is kept"):
        done = [n for n in names(out) if n.endswith(".safetensors")]
        sides = [n for n in names(out) if n.startswith("side")]
        write(f"{src}/side0.json", "{ }")
        with open(f"{out}/{done[0]}", "r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"?")
        ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume")
        assert "earlier run" in ran.stdout or len(done) + len(sides) < 3, ran
        assert read(f"{out}/side0.json") == b"{ }" and not leftovers(out)
        verify(out, READER)

    with check("--resume: nothing to go on with; and one that was not begun starts"):
        ran = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=1)
        assert "no unfinished run" in ran.stderr
        kvfs("encrypt", path("src"), "-o", fresh("anew"), "-k", OWNER, "--resume")
        verify(path("anew"), READER)

    with check("two runs at once: the second one is refused"):
        out = fresh("both")
        with subprocess.Popen([KVFS, "encrypt", src, "-o", out, "-k", OWNER, "-j", "1"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
            run.stdout.readline()
            second = kvfs("encrypt", src, "-o", out, "-k", OWNER, "--resume", code=None)
            run.communicate(timeout=60)
        if "another run" not in second.stderr:
            raise Skip("the first one was too fast")
        assert run.returncode == 0
        verify(out, READER)


FULL = """
set -e
mount -t tmpfs -o size=60m tmpfs "$1/full"
set +e
"$KVFS" encrypt "$1/big" -o "$1/full/out" -k "$1/keys/owner.jwks" >"$1/full.out" 2>"$1/full.err"
echo "first $?"
ls -A "$1/full/out"
mount -o remount,size=600m "$1/full"
"$KVFS" encrypt "$1/big" -o "$1/full/out" -k "$1/keys/owner.jwks" --resume -q
echo "second $?"
"$KVFS" verify "$1/full/out" -k "$1/keys/reader.jwks" -q
echo "third $?"
mount -o remount,size=600m "$1/full"
"$KVFS" rekey "$1/full/out" -o "$1/full/again" -k "$1/keys/owner.jwks" -q
echo "fourth $?"
"""


def test_disk_full():
    with check("disk full: a sentence, nothing half-written, and --resume when there is room"):
        if os.geteuid() != 0:
            raise Skip("needs root for a small tmpfs")
        os.makedirs(path("full"), exist_ok=True)
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", FULL, "-",
                               workdir()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        text = done.stdout.decode()
        if "first" not in text:
            raise Skip("no tmpfs here: " + text.strip())
        err = read(path("full.err")).decode()
        assert "first 1" in text and "No space left" in err, (text, err)
        assert "room for" in err and "--resume" in err, err
        before = text.split("first 1")[1].split("second")[0].split()
        assert all(not n.endswith(".tmp") for n in before) and "kvfs.manifest" not in before, before
        assert "second 0" in text and "third 0" in text and "fourth 0" in text, text

    with check("disk full at the first file: nothing is left"):
        if os.geteuid() != 0:
            raise Skip("needs root for a small tmpfs")
        script = ('mount -t tmpfs -o size=1m tmpfs "$1/full" || exit 9; "$KVFS" encrypt '
                  '"$1/big/m0.safetensors" -o "$1/full/a" -k "$1/keys/owner.jwks" 2>&1; echo $?; '
                  'mkdir "$1/full/d"; "$KVFS" encrypt "$1/big" -o "$1/full/d/out" --exclude "*.json" '
                  '-k "$1/keys/owner.jwks" 2>&1; echo $?; ls -A "$1/full" "$1/full/d"')
        done = subprocess.run(["unshare", "-m", "--propagation", "private", "bash", "-c", script,
                               "-", workdir()], stdout=subprocess.PIPE, check=False)
        text = done.stdout.decode()
        if done.returncode == 9:
            raise Skip("no tmpfs here")
        assert text.count("No space left") == 2 and "out" not in text.split("\n1\n")[-1], text


# ---- rewrap, rekey ----

def test_rewrap():
    out = path("out")
    kvfs("keygen", fresh("new"), "--kid", "new")
    new = path("new/owner.jwks")
    master_only = path("master.jwk")
    write(master_only, json.dumps(json.loads(read(new))["keys"][0]))
    with check("rewrap: new keys read it, the old ones do not; bodies are the same"):
        before = tree(out)
        ran = kvfs("rewrap", out, "-o", fresh("w"), "-k", OWNER, "--to-key", new)
        assert tree(out) == before and "3 files rewrapped" in ran.stdout
        verify(path("w"), path("new/reader.jwks"))
        assert "no verification key" in verify(path("w"), READER, code=1).stdout
        for i in (1, 2, 3):
            name = f"model-{i:05d}-of-00003.safetensors"
            assert header_of(read(f"{out}/{name}"))[1] == header_of(read(path("w", name)))[1]
        assert manifest_of(path("w")) == manifest_of(out)
        assert os.readlink(path("w/alias")) == "sub"

    with check("rewrap: with the same signing key the manifest is taken along as it is"):
        kvfs("rewrap", out, "-o", fresh("w2"), "-k", OWNER, "--to-key", master_only)
        assert read(path("w2/kvfs.manifest")) == read(f"{out}/kvfs.manifest")
        both = path("both.jwks")
        write(both, json.dumps({"keys": [json.loads(read(new))["keys"][0],
                                         json.loads(read(READER))["keys"][1]]}))
        verify(path("w2"), both)

    with check("rewrap: side files that are not what was signed, added, missing ones, bent links"):
        for what in ("edit", "add", "remove", "bend"):
            copy = fresh("tampered")
            shutil.copytree(out, copy, symlinks=True)
            if what == "edit":
                write(f"{copy}/config.json", '{"architectures": ["Evil"]}')
            elif what == "add":
                write(f"{copy}/evil.py", "x")
            elif what == "remove":
                os.unlink(f"{copy}/modeling.py")
            else:
                os.unlink(f"{copy}/sub/config.json")
                os.symlink("../tokenizer.json", f"{copy}/sub/config.json")
            for command in ("rewrap", "rekey"):
                ran = kvfs(command, copy, "-o", fresh("w3"), "-k", OWNER, "--to-key", new,
                           code=0 if what == "add" else 1)
                if what == "add":
                    assert "evil.py" in ran.stderr and "evil.py" not in names(path("w3"))
                else:
                    assert "manifest" in ran.stderr and "kvfs.manifest" not in (
                        names(path("w3")) if os.path.exists(path("w3")) else []), ran

    with check("rewrap: a shard of another release, and one without its signature"):
        copy = fresh("tampered")
        shutil.copytree(out, copy, symlinks=True)
        shutil.copy(f"{out}/model-00001-of-00003.safetensors",
                    f"{copy}/model-00002-of-00003.safetensors")
        for command in ("rewrap", "rekey"):
            ran = kvfs(command, copy, "-o", fresh("w3"), "-k", OWNER, "--to-key", new, code=1)
            assert "model-00002" in ran.stderr, ran

    with check("rewrap: another algorithm, wrong keys, no new key"):
        kvfs("keygen", fresh("cc20"), "--alg", "chacha20poly1305")
        ran = kvfs("rewrap", out, "-o", fresh("w3"), "-k", OWNER, "--to-key",
                   path("cc20/owner.jwks"), code=1)
        assert "rekey" in ran.stderr and not os.path.exists(path("w3")), ran
        kvfs("rewrap", out, "-o", fresh("w3"), "-k", new, "--to-key", new, code=1)
        kvfs("rewrap", out, "-o", fresh("w3"), "-k", OWNER, code=2)
        kvfs("rewrap", path("src"), "-o", fresh("w3"), "-k", OWNER, "--to-key", new, code=1)

    with check("rewrap: one file; a directory without manifest, and with a new one"):
        kvfs("rewrap", f"{out}/model-00001-of-00003.safetensors", "-o", fresh("w4"), "-k", OWNER,
             "--to-key", new)
        verify(path("w4"), path("new/reader.jwks"))
        kvfs("encrypt", path("src"), "-o", fresh("bare"), "-k", OWNER, "-q", "--no-manifest")
        ran = kvfs("rewrap", path("bare"), "-o", fresh("w5"), "-k", OWNER, "--to-key", new)
        assert "no manifest" in ran.stderr and "kvfs.manifest" not in names(path("w5"))
        kvfs("rewrap", path("bare"), "-o", fresh("w5"), "-k", OWNER, "--to-key", new, "--manifest")
        assert "10 files in order" in verify(path("w5"), path("new/reader.jwks")).stdout

    with check("rekey: new bodies, the next generation; other cipher; source untouched"):
        before = tree(out)
        kvfs("rekey", out, "-o", fresh("r"), "-k", OWNER)
        assert tree(out) == before
        assert manifest_of(path("r"))["generation"] == manifest_of(out)["generation"] + 1
        name = "model-00001-of-00003.safetensors"
        assert header_of(read(f"{out}/{name}"))[1] != header_of(read(path("r", name)))[1]
        verify(path("r"), READER)
        kvfs("rekey", out, "-o", fresh("r"), "-k", OWNER, "--to-key", path("cc20/owner.jwks"),
             "--generation", "9", "--chunk-size", "4096")
        verify(path("r"), path("cc20/reader.jwks"))
        assert manifest_of(path("r"))["generation"] == 9
        kvfs("rekey", path("r"), "-o", fresh("r2"), "-k", path("cc20/owner.jwks"), "--generation",
             "8", code=1)

    with check("rekey: a damaged source is refused, and named"):
        copy = fresh("tampered")
        shutil.copytree(out, copy, symlinks=True)
        with open(f"{copy}/{name}", "r+b") as file:
            file.seek(-1000, os.SEEK_END)
            byte = file.read(1)
            file.seek(-1000, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        ran = kvfs("rekey", copy, "-o", fresh("r3"), "-k", OWNER, code=1)
        assert name in ran.stderr and "tag" in ran.stderr, ran
        assert name not in (names(path("r3")) if os.path.exists(path("r3")) else [])

    with check("rekey: which tensors are encrypted, and the policy, stay"):
        kvfs("rekey", path("some"), "-o", fresh("r4"), "-k", OWNER)
        header, _ = header_of(read(path("r4/model-00002-of-00003.safetensors")))
        assert set(json.loads(header["__metadata__"]["__encryption__"])) == {"layers.1.weight",
                                                                              "empty"}
        verify(path("r4"), READER)
        kvfs("encrypt", path("src"), "-o", fresh("p"), "-k", OWNER, "-q", "--policy",
             path("ok.rego"))
        kvfs("rekey", path("p"), "-o", fresh("r5"), "-k", OWNER)
        header, _ = header_of(read(path("r5/model-00001-of-00003.safetensors")))
        assert json.loads(header["__metadata__"]["__policy__"])["local"] == read(
            path("ok.rego")).decode()

    with check("rewrap and rekey: killed, then --resume"):
        kvfs("encrypt", path("big"), "-o", fresh("ebig"), "-k", OWNER, "-q")
        for command in ("rewrap", "rekey"):
            out = fresh("wbig")
            args = [command, path("ebig"), "-o", out, "-k", OWNER, "--to-key", new]
            with subprocess.Popen([KVFS, *args], stdout=subprocess.PIPE) as run:
                run.stdout.readline()
                run.kill()
            if leftovers(out):
                kvfs(*args, "--resume")
            assert not leftovers(out)
            verify(out, path("new/reader.jwks"))


def main():
    os.umask(0o022)
    prepare()
    test_resume(big())
    test_disk_full()
    test_rewrap()
    return finish()


sys.exit(main())
