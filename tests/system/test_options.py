#!/usr/bin/env python3
"""Every option of kvfs mount, as --name and in -o, as status shows it; values that are refused;
where the log goes; commas and awkward places; update=pin and follow at their simplest."""
import errno
import json
import mmap
import os
import re
import shutil
import stat
import sys

from clitest import check, finish, fresh, kvfs, options_of, path
from kvfstest import Model, Mount, as_user, outcome, proc_status, read_all, run, wait_for

# What each option does to the worker or to status.json: (value, probe, what the probe yields).
PROBES = {
    "manifest": ("require", lambda m: m.status()["options"]["manifest"], "require"),
    "plain": ("none", lambda m: m.status()["options"]["plain"], "none"),
    "require-all": (None, lambda m: m.status()["options"]["require_all"], True),
    "update": ("follow", lambda m: m.status()["options"]["update"], "follow"),
    "uid": ("www-data", lambda m: os.stat(m.path).st_uid, 33),
    "gid": ("34", lambda m: os.stat(m.path).st_gid, 34),
    "umask": ("027", lambda m: stat.S_IMODE(os.stat(m.path).st_mode), 0o550),
    "allow-other": (None, lambda m: "allow_other" in mount_options(m), True),
    "memory": ("32M", lambda m: m.status()["memory"]["bound"], 32 << 20),
    "threads": ("3", lambda m: m.status()["options"]["threads"], 3),
    "cache": ("page", lambda m: m.status()["options"]["cache"], "page"),
    "resident": ("64M", lambda m: m.status()["options"]["resident"] in (64 << 20, 0), True),
    "warm": (None, lambda m: wait_for(lambda: any(f["opens"] for f in m.status()["files"]), 10),
             True),
    "linger": ("7", lambda m: m.status()["options"]["linger"], 7),
    "crypto": ("openssl", lambda m: m.status()["crypto"]["option"], "openssl"),
    "readahead": ("256", lambda m: read_ahead(m), 256),
    "worker-user": ("www-data:34", lambda m: ids(m.worker), ("33", "34")),
    "debug": (None, lambda m: level_of(m), True),
    "log-level": ("debug", lambda m: level_of(m), True),
}
ELSEWHERE = {"key", "key-dir", "log", "nonempty", "foreground",  # tested by themselves
             "mounter",  # test_containers
             "server", "server-key", "model", "deploy-key", "ca", "wait", "state-dir",  # test_lease
             "guard", "exit-on-seal",  # test_seal
             "audit", "audit-log"}  # test_audit


def mount_options(m):
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        fields = next(line for line in table if f" {m.path} " in line).split()
        return fields[-1].split(",")


def read_ahead(m):
    with open(f"/sys/class/bdi/{m.device}/read_ahead_kb", encoding="ascii") as file:
        return int(file.read())


def ids(pid):
    status = proc_status(pid)
    return status["Uid"].split()[0], status["Gid"].split()[0]


def level_of(m):
    """Whether the worker logs what only the debug level shows."""
    return m.status()["options"]["log_level"] == "debug"


def test_each(model):
    options = options_of("mount")
    with check("every option has a test"):
        assert set(options) == set(PROBES) | ELSEWHERE, set(options) ^ (set(PROBES) | ELSEWHERE)
    for name, (value, probe, want) in PROBES.items():
        said = name if value is None else f"{name}={value}"
        for how, arguments in (("--" + said, ["--" + said]), ("-o " + said, ["-o", said]),
                               ("-o with _", ["-o", said.replace("-", "_", name.count("-"))])):
            if how == "-o with _" and "-" not in name:
                continue
            with check(f"{how} ({name})"):
                with Mount(model.encrypted, keys=[model.reader], arguments=arguments) as m:
                    assert probe(m) == want, probe(m)
    with check("several, in one -o and in several; the last one counts"):
        with Mount(model.encrypted, arguments=["-o", f"key={model.reader},uid=1,gid=2", "-o",
                                               "uid=3,plain=all", "--plain=none"]) as m:
            st = os.stat(m.path)
            assert (st.st_uid, st.st_gid) == (3, 2)
            assert m.status()["options"]["plain"] == "none"
    with check("auto: memory and threads by themselves"):
        with model.mount("memory=auto", "threads=auto") as m:
            assert 64 << 20 <= m.status()["memory"]["bound"] <= 512 << 20
            assert m.status()["options"]["threads"] == len(os.sched_getaffinity(0))


def test_limits(model):
    """Limits of a cgroup of version 2, from files such as the kernel's."""
    if os.geteuid() != 0:
        return
    run("mount", "-t", "tmpfs", "none", "/sys/fs/cgroup", check=True)
    try:
        for memory, cpu, bound, threads in (("max", "max 100000", None, None),
                                            ("1073741824", "50000 100000", 128 << 20, 1),
                                            ("268435456", "100000 100000", 64 << 20, 1)):
            for name, text in (("memory.max", memory), ("cpu.max", cpu), ("memory.current", "0")):
                with open("/sys/fs/cgroup/" + name, "w", encoding="ascii") as out:
                    out.write(text + "\n")
            with check(f"auto: memory.max {memory}, cpu.max {cpu}"):
                with model.mount("cache=page") as m:
                    status = m.status()
                    assert status["memory"]["bound"] == bound or not bound, status["memory"]
                    got = status["options"]["threads"]
                    assert got == (threads or len(os.sched_getaffinity(0))), got
    finally:
        run("umount", "/sys/fs/cgroup", check=True)


def test_direct(model):
    """cache=direct: nothing of a model is kept, side files are served as ever."""
    want = model.plain_bytes()
    with model.mount("cache=direct") as m, open(model.shown(m), "rb", buffering=0) as file:
        with check("cache=direct: read, each time decrypted anew, and status says so"):
            for _ in range(2):
                file.seek(0)
                assert b"".join(iter(lambda: file.read(1 << 20), b"")) == want
            status = m.status()
            shown = next(f for f in status["files"] if f["paths"][0] == model.shard)
            assert shown["cache"] == "direct", shown
            assert status["counters"]["bytes_stored"] == 0
            assert shown["bytes_read"] >= 2 * len(want), shown
        with check("cache=direct: MAP_PRIVATE works, MAP_SHARED is ENODEV"):
            with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as view:
                assert view[:] == want
            try:
                mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
                raise AssertionError("MAP_SHARED works")
            except OSError as error:
                assert error.errno == errno.ENODEV, error
        with check("cache=direct: a side file can be mapped as ever"):
            with open(m.path + "/config.json", "rb") as side, \
                    mmap.mmap(side.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
                assert view[:] == read_all(model.plain + "/config.json")


def test_refused(model):
    os.makedirs(path("mnt"), exist_ok=True)
    bad = ["plain=maybe", "plain", "plain=", "manifest=no", "update=never", "uid=nobody-at-all",
           "uid=-1", "uid=4294967295", "gid=none", "umask=9", "umask=u=rwx", "umask=01000",
           "crypto=rot13", "crypto=OpenSSL",
           "memory=1M", "memory=lots", "memory=-1", "memory=99999999999999999999", "threads=0",
           "threads=257", "threads=many", "readahead=-1", "readahead=2000000", "log-level=loud",
           "cache=none", "crypto=rot13", "resident=much", "linger=-1", "require-all=yes",
           "nonempty=1", "worker-user=root", "worker-user=0", "worker-user=:",
           "no-such-option", "no-such=1", "Key=x", "keyx=1"]
    for option in bad:
        with check(f"-o {option}: exit 2, and the option is named"):
            ran = kvfs("mount", model.encrypted, path("mnt"), "-k", model.reader, "-o", option,
                       code=2)
            assert option.split("=")[0] in ran.stderr, ran
    with check("what mount(8) and fstab say for themselves is ignored"):
        ignored = "ro,noatime,nosuid,nodev,_netdev,nofail,noauto,x-systemd.automount,user,defaults"
        with model.mount(ignored) as m:
            assert outcome(m.path + "/config.json") == read_all(model.plain + "/config.json")
    with check("rw is ignored, too: the mount is read-only"):
        with model.mount("rw") as m:
            assert "ro" in mount_options(m)


def test_awkward_places(model):
    source = path("a,b\\c d\n\u00e4 (e)=f")
    shutil.copytree(model.encrypted, source)
    keys = path("key,s =\u00e4.jwks")
    shutil.copy(model.reader, keys)
    os.chmod(keys, 0o600)
    with check("commas, blanks, backslashes and newlines in SRC, MNT and key"):
        where = path("mnt, of\\a\nkind")
        escaped = keys.replace("\\", "\\\\").replace(",", "\\,")
        with Mount(source, path=where, arguments=["-o", f"key={escaped},uid=33"]) as m:
            assert outcome(os.path.join(where, model.shard)) == model.plain_bytes()
            assert os.stat(where).st_uid == 33
            assert m.status()["source"] == source and m.status()["mountpoint"] == where
            assert "serving" in kvfs("status", where).stdout
            assert "\n\u00e4" not in kvfs("status").stdout  # names can't break lines
            kvfs("reload", where)
    with check("relative SRC, MNT and key; links to them"):
        os.makedirs(fresh("here/mnt"))
        os.symlink(model.encrypted, path("here/src"))
        os.symlink("mnt", path("here/to-mnt"))
        shutil.copy(keys, path("here/reader.jwks"))
        run(os.environ["KVFS"], "mount", "src", "to-mnt", "-k", "reader.jwks", cwd=path("here"),
            check=True)
        assert outcome(path("here/mnt/" + model.shard)) == model.plain_bytes()
        run(os.environ["KVFS"], "umount", "to-mnt", cwd=path("here"), check=True)
    with check("nonempty: mounts over what is there, which comes back"):
        os.makedirs(path("full/something"))
        with Mount(model.encrypted, keys=[model.reader], path=path("full"),
                   options=["nonempty"]) as m:
            assert "something" not in os.listdir(m.path)
        assert os.listdir(path("full")) == ["something"]


def test_log(model):
    with check("log=FILE: lines with time, mount, level; mode 0640"):
        file = path("kvfs.log")
        with model.mount(f"log={file}") as m:
            outcome(m.path + "/none")
            assert "mounted" in read_all(file).decode()
            assert stat.S_IMODE(os.stat(file).st_mode) == 0o640
            mounted = m.path
        wait_for(lambda: b"unmounted" in read_all(file), 5, "the last line")
        for line in read_all(file).decode().splitlines():
            assert re.match(r"\S+Z " + re.escape(mounted) + ": (info|warning|debug): ", line), line
    with check("log=FILE that can't be opened: no mount"):
        ran = kvfs("mount", model.encrypted, path("mnt"), "-k", model.reader, "--log",
                   path("none/kvfs.log"), code=1)
        assert "kvfs.log" in ran.stderr, ran
    with check("log-level=error: no warning is logged"):
        file = path("quiet.log")
        with Mount(broken(model), keys=[model.reader],
                   options=[f"log={file}", "log-level=error"]) as m:
            assert outcome(m.path + "/broken.safetensors") == "EBADMSG"
            assert m.status()["failures"]
        assert read_all(file) == b""


def broken(model):
    top = fresh("broken")
    os.makedirs(top)
    shutil.copy(os.path.join(model.encrypted, model.shard), f"{top}/model.safetensors")
    shutil.copy(os.path.join(model.encrypted, model.shard), f"{top}/broken.safetensors")
    os.truncate(f"{top}/broken.safetensors", 5000)
    return top


def test_update(model):
    for update in ("pin", "follow"):
        top = fresh("update")
        os.makedirs(top)
        name = f"{top}/config.json"
        shutil.copy(os.path.join(model.encrypted, model.shard), top)
        with open(name, "w", encoding="ascii") as file:
            file.write('{"old": 1}')
        with Mount(top, keys=[model.reader], options=[f"update={update}"]) as m:
            shown = os.path.join(m.path, "config.json")

            def replace(text):
                with open(name + ".new", "w", encoding="ascii") as file:
                    file.write(text)
                os.rename(name + ".new", name)
            with check(f"update={update}: a file replaced after it was opened"):
                assert outcome(shown) == b'{"old": 1}'
                replace('{"new": 22}')
                if update == "follow":
                    assert outcome(shown) == b'{"new": 22}'
                else:
                    assert outcome(shown) == b'{"old": 1}' and os.stat(shown).st_size == 10
            with check(f"update={update}: what nobody opened is not pinned, nor by looking"):
                # status, inspect and ls of an operator must not decide what readers get.
                with open(f"{top}/other.json", "w", encoding="ascii") as file:
                    file.write("1")
                os.stat(os.path.join(m.path, "other.json"))
                os.listxattr(os.path.join(m.path, "other.json"))
                kvfs("status", m.path)
                with open(f"{top}/other.new", "w", encoding="ascii") as file:
                    file.write("222")
                os.rename(f"{top}/other.new", f"{top}/other.json")
                wait_for(lambda: outcome(os.path.join(m.path, "other.json")) == b"222", 3)
            with check(f"update={update}: reload"):
                kvfs("reload", m.path)
                assert outcome(shown) == b'{"new": 22}'
                replace('{"newer": 333}')
                kvfs("reload", m.path)
                assert outcome(shown) == b'{"newer": 333}'


def test_environment(model):
    text = read_all(model.reader).decode()
    with check("CRYPTOTENSOR_KEYS: a set, and a single key; gone from every environment"):
        for keys in (text, json.dumps(json.loads(text)["keys"][1])):
            with Mount(model.encrypted, env=dict(os.environ, CRYPTOTENSOR_KEYS=keys)) as m:
                got = outcome(os.path.join(m.path, model.shard))
                assert got == (model.plain_bytes() if keys == text else "ENOKEY"), got
                for pid in m.pids.values():
                    assert b"kty" not in read_all(f"/proc/{pid}/environ")
    with check("CRYPTOTENSOR_KEYS that is no JWK: no mount, and its content is not printed"):
        for keys in ("{", '{"keys": [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldA"}', "[]", ""):
            ran = kvfs("mount", model.encrypted, path("mnt"), code=1,
                       env={"CRYPTOTENSOR_KEYS": keys})
            assert "c2VjcmV0" not in ran.stderr and "CRYPTOTENSOR_KEYS" in ran.stderr, ran
    with check("--key wins over CRYPTOTENSOR_KEYS"):
        with Mount(model.encrypted, keys=[model.reader],
                   env=dict(os.environ, CRYPTOTENSOR_KEYS="{")) as m:
            assert outcome(os.path.join(m.path, model.shard)) == model.plain_bytes()
    with check("key files that others may read are warned of; by the owner's alone not"):
        loose = path("loose.jwks")
        shutil.copy(model.reader, loose)
        for mode, warned in ((0o644, True), (0o604, True), (0o600, False), (0o400, False)):
            os.chmod(loose, mode)
            with Mount(model.encrypted, keys=[loose]) as m:
                assert ("loose.jwks may be read by everybody" in m.output) == warned, m.output
    with check("a worker of the ordinary user can't read what the user can't"):
        os.chmod(loose, 0o600)
        ran = run(*as_user(33), os.environ["KVFS"], "mount", model.encrypted, path("mnt"), "-k",
                  loose)
        assert ran.returncode == 1 and "Permission denied" in ran.stderr, ran


def main():
    os.umask(0o022)
    model = Model(mib=2)
    test_each(model)
    test_limits(model)
    test_direct(model)
    test_refused(model)
    test_awkward_places(model)
    test_log(model)
    test_update(model)
    test_environment(model)
    return finish()


sys.exit(main())
