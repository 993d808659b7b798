#!/usr/bin/env python3
"""Names of the view: models recognised by content, x.cryptotensors shown as x.safetensors, links of
every kind, the cache layout of Hugging Face; one source file with one verdict is one node."""
import os
import shutil
import stat
import sys

from clitest import check, finish, fresh, kvfs, path, safetensors, write
from kvfstest import Model, Mount, outcome, read_all


class Tree:
    """A source directory to be filled, and mounted."""

    def __init__(self, model, name="tree"):
        self.model = model
        self.top = fresh(name)
        os.makedirs(self.top)

    def add(self, name, source=None):
        """An encrypted shard, or another file."""
        to = os.path.join(self.top, name)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy(source or os.path.join(self.model.encrypted, self.model.shard), to)

    def link(self, name, target):
        to = os.path.join(self.top, name)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        os.symlink(target, to)

    def mount(self, *options, top=None):
        return Mount(top or self.top, keys=[self.model.reader], options=options)


def said_of(m, name):
    """What status says of a file."""
    found = [f for f in m.status()["files"] if name in f["paths"]]
    assert found, f"{name} is not in {[f['paths'] for f in m.status()['files']]}"
    return found[0]


def test_names(model):
    want = model.plain_bytes()
    tree = Tree(model)
    tree.add("a.cryptotensors")
    tree.add("b.safetensors")
    tree.add("b.cryptotensors")
    tree.add("blob-without-extension")
    tree.add("model.bin")
    tree.add("sub/c.cryptotensors")
    tree.add("dir.cryptotensors/d.cryptotensors")
    tree.add("odd name, with: everything\n\u00e4\u20ac.safetensors")
    tree.add(".hidden.safetensors")
    write(f"{tree.top}/plain.safetensors", safetensors({"w": ("U8", [4], 4)}))
    write(f"{tree.top}/fake.cryptotensors", safetensors({"w": ("U8", [4], 4)}))
    with tree.mount() as m:
        def read(name):
            return outcome(os.path.join(m.path, name))
        with check("x.cryptotensors appears as x.safetensors, and by no other name"):
            assert read("a.safetensors") == want and read("a.cryptotensors") == "ENOENT"
            assert read("sub/c.safetensors") == want
            names = os.listdir(m.path)
            assert "a.safetensors" in names and "a.cryptotensors" not in names, names
        with check("a directory keeps its name, whatever it is called"):
            assert read("dir.cryptotensors/d.safetensors") == want
        with check("both endings present: both refused, once listed, and status says why"):
            assert os.listdir(m.path).count("b.safetensors") == 1
            assert read("b.safetensors") == "EKEYREJECTED" and read("b.cryptotensors") == "ENOENT"
            assert "a .safetensors and a .cryptotensors" in said_of(m, "b.safetensors")["why"]
        with check("models are recognised by content, whatever they are called"):
            for name in ("blob-without-extension", "model.bin", ".hidden.safetensors",
                         "odd name, with: everything\n\u00e4\u20ac.safetensors"):
                assert read(name) == want, name
        with check("a plain file does not become a model by its name"):
            assert read("plain.safetensors") == read("fake.safetensors") == "EKEYREJECTED"
        with check("a file that appears or goes later is seen"):
            tree.add("later.safetensors")
            assert read("later.safetensors") == want
            assert "later.safetensors" in os.listdir(m.path)
            os.unlink(f"{tree.top}/model.bin")
            os.unlink(f"{tree.top}/blob-without-extension")
            assert "model.bin" not in os.listdir(m.path)
    with check("devices, pipes and sockets are not shown, nor opened"):
        os.mkfifo(f"{tree.top}/pipe.json")
        os.mknod(f"{tree.top}/null.json", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.symlink("pipe.json", f"{tree.top}/to-pipe.json")
        with tree.mount() as m:
            assert not {"pipe.json", "null.json"} & set(os.listdir(m.path))
            for name in ("pipe.json", "null.json", "to-pipe.json"):
                assert outcome(os.path.join(m.path, name)) == "ENOENT", name


def test_links(model):
    want = model.plain_bytes()
    tree = Tree(model)
    tree.add("blobs/0123")
    write(f"{tree.top}/config.json", "{}")
    write(f"{tree.top}/blobs/text", "[]")
    tree.link("model.safetensors", "blobs/0123")
    tree.link("again.safetensors", "model.safetensors")
    tree.link("absolute.safetensors", f"{tree.top}/blobs/0123")
    tree.link("alias.json", "config.json")
    tree.link("config.bin", "config.json")
    tree.link("text.json", "blobs/text")
    tree.link("up-and-down.safetensors", "blobs/../blobs/0123")
    tree.link("deep/er/model.safetensors", "../../blobs/0123")
    tree.link("directory", "blobs")
    tree.link("loop", "loop")
    tree.link("ring-a", "ring-b")
    tree.link("ring-b", "ring-a")
    tree.link("nowhere.json", "not-there")
    tree.link("passwd.json", "/etc/passwd")
    tree.link("out.json", "../keys/reader.jwks")
    tree.link("far.json", "../../../../../../../etc/hostname")
    tree.link("proc.json", "/proc/self/environ")
    tree.link("out-directory", "../keys")
    with tree.mount() as m:
        def at(name):
            return os.path.join(m.path, name)
        with check("a link to a file is shown as a regular file"):
            for name in ("model.safetensors", "again.safetensors", "absolute.safetensors",
                         "deep/er/model.safetensors", "up-and-down.safetensors"):
                st = os.lstat(at(name))
                assert stat.S_ISREG(st.st_mode) and st.st_size == len(want), name
                assert outcome(at(name)) == want, name
        with check("a link to a directory is shown as one, and leads there"):
            assert os.readlink(at("directory")) == "blobs"
            assert outcome(at("directory/0123")) == want
        with check("one source file with one verdict is one node, however many names lead to it"):
            numbers = {os.stat(at(n)).st_ino for n in ("model.safetensors", "again.safetensors",
                                                       "absolute.safetensors", "blobs/0123")}
            assert len(numbers) == 1, numbers
            names = said_of(m, "model.safetensors")["paths"]
            assert {"again.safetensors", "absolute.safetensors", "blobs/0123"} <= set(names), names
            assert outcome(at("alias.json")) == outcome(at("config.json")) == b"{}"
            assert said_of(m, "alias.json")["node"] == said_of(m, "config.json")["node"]
        with check("a link is judged by its own path: another verdict, another node"):
            assert outcome(at("config.json")) == b"{}"
            assert outcome(at("config.bin")) == "EKEYREJECTED"
            assert outcome(at("text.json")) == b"[]" and outcome(at("blobs/text")) == "EKEYREJECTED"
            assert said_of(m, "config.bin")["node"] != said_of(m, "config.json")["node"]
        with check("links that leave SRC keep their place, are EXDEV, and the log names the "
                   "directory to mount"):
            # Hoped for: to read what the supervisor, as root, may read outside.
            for name in ("passwd.json", "out.json", "far.json", "proc.json"):
                assert name in os.listdir(m.path), name
                assert outcome(at(name)) == "EXDEV", (name, outcome(at(name)))
            log = read_all(at(".kvfs/log")).decode()
            assert f"mount {path('')[:-1]} instead" in log, log
            assert "passwd.json: EXDEV: the link leads to /etc/passwd" in log, log
        with check("a link to a directory outside leads nowhere"):
            for name in ("out-directory/reader.jwks", "out-directory"):
                assert outcome(at(name)) in ("EXDEV", "ENOENT", "ENOTDIR"), outcome(at(name))
        with check("loops and links that lead nowhere: an error, at once"):
            for name in ("loop", "ring-a", "ring-b", "nowhere.json"):
                assert outcome(at(name)) in ("EXDEV", "ELOOP", "ENOENT"), outcome(at(name))
            assert outcome(at("model.safetensors")) == want


def hub(model):
    """The layout of a Hugging Face cache: snapshots/REV/name -> ../../blobs/digest."""
    tree = Tree(model, "hub")
    tree.add("models--a--b/blobs/0123")
    tree.add("models--a--b/blobs/4567", os.path.join(model.plain, "config.json"))
    tree.link("models--a--b/snapshots/rev/model.safetensors", "../../blobs/0123")
    tree.link("models--a--b/snapshots/rev/config.json", "../../blobs/4567")
    return tree


def test_hub(model):
    tree = hub(model)
    repository = f"{tree.top}/models--a--b"
    with check("a snapshot of a Hugging Face cache: refused, with the directory to mount"):
        ran = kvfs("mount", f"{repository}/snapshots/rev", fresh_directory("hub-mnt"), "--key",
                   model.reader, code=1)
        assert f"mount {repository} instead" in ran.stderr, ran
    for top, below in ((repository, "snapshots/rev"), (tree.top, "models--a--b/snapshots/rev")):
        with check(f"mounted at {os.path.basename(top)}: the snapshot reads"):
            with tree.mount(top=top) as m:
                name = os.path.join(m.path, below, "model.safetensors")
                assert outcome(name) == model.plain_bytes()
                config = os.path.join(m.path, below, "config.json")
                assert outcome(config) == read_all(os.path.join(model.plain, "config.json"))


def fresh_directory(name):
    os.makedirs(fresh(name))
    return path(name)


def swap(name, target):
    """Puts a link at a name, all at once."""
    os.symlink(target, name + ".new")
    os.rename(name + ".new", name)


def test_swapped_links(model):
    """Hoped for: that what is checked is not what is opened."""
    tree = Tree(model)
    tree.add("model.safetensors")
    write(f"{tree.top}/safe.json", "inside")
    write(path("outside.json"), "outside")
    tree.link("bent.json", "safe.json")
    with tree.mount("update=follow") as m, check("a link bent back and forth never leads outside"):
        seen = set()
        for turn in range(300):
            swap(f"{tree.top}/bent.json", ("safe.json", "../outside.json")[turn % 2])
            got = outcome(os.path.join(m.path, "bent.json"))
            seen.add(got)
        assert b"outside" not in seen and seen <= {b"inside", "EXDEV", "ESTALE"}, seen


def main():
    os.umask(0o022)
    model = Model(mib=4)
    test_names(model)
    test_links(model)
    test_hub(model)
    test_swapped_links(model)
    return finish()


sys.exit(main())
