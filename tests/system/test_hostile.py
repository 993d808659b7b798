#!/usr/bin/env python3
"""Source directories that somebody else arranged: trees bent so that a signed path would yield
another one's content, names that would hide what the mount says of itself, sizes that no disk has."""
import concurrent.futures
import errno
import fcntl
import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time

from kvfstest import ROOT, Checks, Mount, kvfs, proc_status, sanitized, workdir

SHARD = "model-00001-of-00001.safetensors"
RELOAD = ord("k") << 8 | 1  # what `kvfs reload` asks of MNT/.kvfs/status.json


def outcome(path):
    """The content, or the errno's name."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        return errno.errorcode[error.errno]


def said(m):
    """What an operator sees: status and log."""
    with open(os.path.join(m.path, ".kvfs/log"), encoding="utf-8") as log:
        return json.dumps(m.status()) + log.read()


class Source:
    """A small model, with side files, encrypted at .path; `manifest` False: without a manifest."""

    count = 0

    def __init__(self, keys, files=None, manifest=True, generation=1):
        Source.count += 1
        self.keys = keys
        plain = os.path.join(workdir(), f"plain{Source.count}")
        self.path = os.path.join(workdir(), f"source{Source.count}")
        subprocess.run([os.path.join(ROOT, "packaging/make-model"), plain, "--shards", "1", "--mib",
                        "2"], check=True)
        for name, text in (files or {}).items():
            os.makedirs(os.path.dirname(os.path.join(plain, name)), exist_ok=True)
            with open(os.path.join(plain, name), "w", encoding="utf-8") as file:
                file.write(text)
        kvfs("encrypt", "-q", plain, "-o", self.path, "--key", keys + "/owner.jwks",
             "--generation", str(generation))
        if not manifest:
            os.remove(self.file("kvfs.manifest"))

    def file(self, *parts):
        return os.path.join(self.path, *parts)

    def mount(self, *options):
        return Mount(self.path, keys=[self.keys + "/reader.jwks"], options=options)


def bent_trees(checks, keys):
    with checks.check("a directory exchanged for a link to another: refused and named"):
        source = Source(keys, {"en/config.json": '{"en": 1}', "de/config.json": '{"de": 1}'})
        shutil.rmtree(source.file("de"))
        os.symlink("en", source.file("de"))
        with source.mount("manifest=require") as m:
            got = outcome(os.path.join(m.path, "de/config.json"))
            assert got in ("EKEYREJECTED", "ENOENT", "ENOTDIR"), got
            assert outcome(os.path.join(m.path, "de")) == "EKEYREJECTED"
            assert outcome(os.path.join(m.path, "en/config.json")) == b'{"en": 1}'
            assert '"de"' in said(m)

    with checks.check("an older release with its manifest put into a listed directory: refused"):
        older = Source(keys, {"config.json": '{"older": true}'})
        source = Source(keys, {"main/config.json": '{"newer": true}'}, generation=2)
        for name in os.listdir(older.path):
            shutil.copy(older.file(name), source.file("main"))
        with source.mount("manifest=require") as m:
            assert outcome(os.path.join(m.path, "main/config.json")) == "EBADMSG"
            assert outcome(os.path.join(m.path, "main", SHARD)) == "ENOENT"
            assert "main/config.json" in said(m)
        result = kvfs("verify", "-q", source.path, "--key", keys + "/reader.jwks", check=False)
        assert result.returncode == 1 and "WRONG  main/config.json" in result.stdout, result
    with checks.check("a manifest in a directory of which no other one lists anything: governs it"):
        source = Source(keys)
        deeper = Source(keys, {"notes.json": '{"deeper": true}'})
        shutil.copytree(deeper.path, source.file("deeper"))
        with source.mount("manifest=require") as m:
            assert outcome(os.path.join(m.path, "deeper/notes.json")) == b'{"deeper": true}'


def borrowed_names(checks, keys):
    with checks.check("a .kvfs in the source: neither listed nor taken for the mount's own"):
        source = Source(keys, manifest=False)
        os.mkdir(source.file(".kvfs"))
        with open(source.file(".kvfs/status.json"), "w", encoding="utf-8") as file:
            file.write('{"state": "serving"}')
        with source.mount() as m:
            assert ".kvfs" not in os.listdir(m.path)
            subprocess.run(["ls", "-la", m.path], stdout=subprocess.DEVNULL, check=True)
            assert m.status()["source"] == source.path
            assert "metrics" in os.listdir(os.path.join(m.path, ".kvfs"))
    with checks.check("the longest name there can be is read, a longer one is not there"):
        longest = "n" * (255 - len(".safetensors")) + ".safetensors"
        os.rename(source.file(SHARD), source.file(longest))
        with source.mount() as m:
            assert len(outcome(os.path.join(m.path, longest))) > 2 << 20
            assert outcome(os.path.join(m.path, "n" + longest)) == "ENOENT"
        os.rename(source.file(longest), source.file(SHARD))
    with checks.check("files called like those in .kvfs are what they are"):
        directory = os.path.join(workdir(), "four")
        os.mkdir(directory)
        shutil.copy(source.file(SHARD), os.path.join(directory, "z.safetensors"))
        for name in "status.json", "t.json", "u.json":
            with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
                file.write("{}")
        with Mount(directory, keys=[keys + "/reader.jwks"]) as m:
            subprocess.run(["ls", "-la", m.path], stdout=subprocess.DEVNULL, check=True)
            assert outcome(os.path.join(m.path, "status.json")) == b"{}"


def sizes(checks, keys):
    source = Source(keys, manifest=False)
    tmpfs = os.path.join(workdir(), "tmpfs")
    os.mkdir(tmpfs)
    subprocess.run(["mount", "-t", "tmpfs", "none", tmpfs], check=True)
    shutil.copy(source.file(SHARD), tmpfs)
    with open(os.path.join(tmpfs, "vast.json"), "wb") as file:
        file.truncate(1 << 54)
    with Mount(tmpfs, keys=[keys + "/reader.jwks"]) as m, \
            checks.check("a sparse file larger than any disk: refused, and the mount lives"):
        got = 0
        try:
            with open(os.path.join(m.path, "vast.json"), "rb", buffering=0) as file:
                os.pread(file.fileno(), 10, (1 << 53) + 5)
        except OSError as error:
            got = error.errno
        assert got == errno.EOPNOTSUPP, got
        assert len(outcome(os.path.join(m.path, SHARD))) > 2 << 20
    subprocess.run(["umount", tmpfs], check=True)


def headers(checks, keys):
    """Headers of many small tensors, of which each byte takes five until the signature is seen to
    be none. All who open them share 64 MiB, or twice memory=."""
    source = Source(keys, manifest=False)
    with open(source.file(SHARD), "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header, body = file.read(size), file.read()
    names = {f"large{i}.safetensors": 5 for i in range(3)} | {"huge.safetensors": 15}
    for name, mega in names.items():
        more = ",".join(f'"{name}{i:07}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
                        for i in range(mega * 1000000 // 77)).encode()
        text = b"{" + more + b"," + header[1:]
        text += b" " * (-len(text) % 8)
        with open(source.file(name), "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text + body)
    with checks.check("large hostile headers, opened at once: refused, within bounds of memory"), \
            source.mount("memory=16M") as m:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = dict(zip(4 * list(names), pool.map(
                lambda n: outcome(os.path.join(m.path, n)), 4 * list(names))))
        assert found.pop("huge.safetensors") == "ENOMEM", found
        assert set(found.values()) == {"EKEYREJECTED"}, found
        peak = int(proc_status(m.worker)["VmHWM"].split()[0]) // 1024
        assert sanitized() or peak < 16 + 64 + 32, f"{peak} MiB"


def touched(checks, keys):
    with checks.check("chmod and a further hard link change no content that a digest vouches for"):
        text = json.dumps(list(range(300000)))  # above 1 MiB: in pieces
        source = Source(keys, {"vocab.json": text})
        with source.mount() as m:
            path = os.path.join(m.path, "vocab.json")
            assert outcome(path) == text.encode()
            os.chmod(source.file("vocab.json"), 0o600)
            os.link(source.file("vocab.json"), source.file("vocab.copy"))
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert outcome(path) == text.encode()


def reloaded(checks, keys):
    source = Source(keys, {"turn.json": "0"}, manifest=False)
    with source.mount() as m, checks.check("once reload has returned, names yield what is there"), \
            open(os.path.join(m.path, ".kvfs/status.json"), "rb") as status:
        path = os.path.join(m.path, "turn.json")
        for turn in range(100):
            assert outcome(path) == str(turn).encode(), turn
            with open(source.file("new"), "w", encoding="utf-8") as file:
                file.write(str(turn + 1))
            os.rename(source.file("new"), source.file("turn.json"))
            fcntl.ioctl(status, RELOAD)


def many(checks, keys):
    source = Source(keys, manifest=False)
    took = {}
    with source.mount() as m, checks.check("large directories: one id a file, however often they are listed"):
        for count in 2000, 20000:
            directory = os.path.join(m.path, str(count))
            os.mkdir(source.file(str(count)))
            for number in range(count):
                with open(source.file(str(count), f"{number:05d}.json"), "w", encoding="utf-8"):
                    pass
            before = os.stat(directory).st_ino
            for _ in range(3):
                assert len(os.listdir(directory)) == count
            start = time.monotonic()
            subprocess.run(["ls", "-l", directory], stdout=subprocess.DEVNULL, check=True)
            took[count] = time.monotonic() - start
            ids = max(file["node"] for file in m.status()["files"]) - before
            assert ids < count + 100, f"{ids} ids for {count} files"
        checks.note(f"ls -l: {took[2000]:.2f} s for 2000 files, {took[20000]:.2f} s for 20000")


def forget_inodes():
    """Makes the kernel drop what nobody uses, of all mounts: another one that is stuck would hold it
    up for ever, so a child does it. Whether it could."""
    child = subprocess.Popen(["sh", "-c", "echo 2 >/proc/sys/vm/drop_caches"])
    try:
        return child.wait(10) == 0
    except subprocess.TimeoutExpired:
        return False


def forgotten_while_read_ahead(checks, keys):
    """Version 1: what is decrypted ahead takes as long as its whole tensor does."""
    name = "reload, and the kernel forgets, while the worker reads ahead"
    if not sanitized():
        checks.skip(name, "only a sanitizer would see it")
        return
    plain, encrypted = (os.path.join(workdir(), name) for name in ("long", "long-encrypted"))
    os.mkdir(plain)
    os.mkdir(encrypted)
    header = json.dumps({"a": {"dtype": "U8", "shape": [2 << 20], "data_offsets": [0, 2 << 20]},
                         "b": {"dtype": "U8", "shape": [32 << 20],
                               "data_offsets": [2 << 20, 34 << 20]}}).encode()
    with open(os.path.join(plain, SHARD), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (34 << 20))
    kvfs("encrypt", "-q", "--format-version", "1", os.path.join(plain, SHARD), "-o",
         os.path.join(encrypted, SHARD), "--key", keys + "/owner.jwks")
    buffer = mmap.mmap(-1, 131072)
    with checks.check(name):
        with Mount(encrypted, keys=[keys + "/reader.jwks"]) as m, \
                open(os.path.join(m.path, ".kvfs/status.json"), "rb") as status:
            for _ in range(10):
                fd = os.open(os.path.join(m.path, SHARD), os.O_RDONLY | os.O_DIRECT)
                for turn in range(3):
                    os.preadv(fd, [buffer], turn << 17)
                os.close(fd)
                fcntl.ioctl(status, RELOAD)
                if not forget_inodes():
                    checks.note("the kernel could not be made to forget")
                    break
            assert m.status()["worker"] and os.path.exists(f"/proc/{m.worker}")


def main():
    checks = Checks()
    keys = os.path.join(workdir(), "keys")
    kvfs("keygen", keys)
    bent_trees(checks, keys)
    borrowed_names(checks, keys)
    sizes(checks, keys)
    headers(checks, keys)
    touched(checks, keys)
    reloaded(checks, keys)
    many(checks, keys)
    forgotten_while_read_ahead(checks, keys)
    return checks.finish()


sys.exit(main())
