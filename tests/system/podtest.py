"""What the tests with whole pods share: kvfs-mounter on the host, kvfs without any privilege in one
container, who reads in another, as packaging/container says it; by runc, and by podman with the flags
of README.md."""
import contextlib
import glob
import json
import os
import shutil
import socket
import subprocess

from kvfstest import (FINDING, KVFS, ROOT, die_with_parent, mounts_at, no_mount, read_all, run,
                      sanitized, wait_for, workdir)

MOUNTER = os.path.join(os.path.dirname(KVFS), "kvfs-mounter")
PACKAGING = os.path.join(ROOT, "packaging/container")
USER = 1000
MEMLOCK = 8 << 20  # what every machine allows
SLOW = 4 if sanitized() else 1

COMMAND = ["/usr/bin/kvfs", "mount", "--foreground", "/encrypted", "/models/llm",
           "-omounter=/run/kvfs/socket"]
LOCAL_KEYS = ["--key=/keys/reader.jwks"]
PODMAN_FLAGS = ("--read-only --read-only-tmpfs=false --cap-drop=ALL --user=1000:1000 "
                "--security-opt=no-new-privileges --pids-limit=256 --ulimit=core=0:0 "
                "--ulimit=nofile=4096:4096 --ulimit=nproc=4096:4096 "
                f"--ulimit=memlock={MEMLOCK}:{MEMLOCK} "
                "--tmpfs=/tmp:rw,noexec,nosuid,nodev,size=64m,mode=1777").split()
VOLUMES = {"SOURCE": "/encrypted:ro,nosuid,nodev,noexec", "KEYS": "/keys:ro,nosuid,nodev,noexec",
           "RUN": "/run/kvfs:ro,nosuid,nodev,noexec",
           "MODELS": "/models:ro,nosuid,nodev,noexec,rslave",
           "AUDIT": "/var/lib/kvfs:rw,nosuid,nodev,noexec"}


# ---- runc ----

def runc(*arguments, **more):
    return run("runc", "--root", os.path.join(workdir(), "runc"), *arguments, **more)


def why_not():
    """Why there can be no containers here; empty if there can."""
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("runc"):
        return "no runc: packaging/install-deps test"
    bundle(reader_rootfs(), "probe", "reader", {"MODELS": workdir()}, "/usr/bin/python3", "-c", "")
    result = runc("run", "--bundle", os.path.join(workdir(), "probe"), "probe")
    return result.stderr.strip() if result.returncode else ""


def rootfs(name, *programs):
    path = os.path.join(workdir(), name)
    if not os.path.exists(path):
        run(os.path.join(PACKAGING, "make-rootfs"), path, *programs, check=True)
    return path


def daemon_rootfs():
    return rootfs("rootfs-daemon", KVFS)


def reader_rootfs():
    """Python and pod_reader.py."""
    python = os.path.realpath("/usr/bin/python3")
    path = rootfs("rootfs-reader", python + ":/usr/bin/python3")
    if not os.path.exists(path + "/reader.py"):
        library = "lib/" + os.path.basename(python)
        shutil.copytree("/usr/" + library, f"{path}/usr/{library}", ignore=shutil.ignore_patterns(
            "test*", "dist-packages", "site-packages", "idlelib", "lib2to3", "config-*", "asyncio",
            "__pycache__", "email", "xml*", "distutils", "multiprocessing", "ensurepip"))
        shutil.copy(os.path.join(ROOT, "tests/tools/pod_reader.py"), path + "/reader.py")
    return path


def bundle(rootfs_path, name, kind, settings, *command):
    out = os.path.join(workdir(), name)
    run(os.path.join(PACKAGING, "make-bundle"), kind, out, rootfs_path,
        *(f"{k}={v}" for k, v in settings.items()), "--", *command, check=True)
    if sanitized():  # the search for leaks takes more system calls than the filter allows
        change(name, lambda config: config["process"]["env"].append("ASAN_OPTIONS=detect_leaks=0"))


def change(name, how):
    """Alters a bundle."""
    path = os.path.join(workdir(), name, "config.json")
    config = json.loads(read_all(path))
    how(config)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


class Container:
    """runc in the foreground, as container NAME of bundle NAME; its output is in a file."""

    count = 0

    def __init__(self, name, **more):
        Container.count += 1
        self.name = f"{name}-{os.getpid()}-{Container.count}"
        self.log = os.path.join(workdir(), self.name + ".log")
        with open(self.log, "wb") as log:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(self.command(os.path.join(workdir(), name)), stderr=log,
                                            **{"stdout": log, "stdin": subprocess.DEVNULL, **more})

    def command(self, place):
        return ["runc", "--root", os.path.join(workdir(), "runc"), "run", "--bundle", place,
                self.name]

    @property
    def pid(self):
        state = runc("state", self.name)
        return json.loads(state.stdout)["pid"] if state.returncode == 0 else 0

    def kill(self, sig="KILL"):
        runc("kill", self.name, sig)

    def remove(self):
        runc("delete", "--force", self.name)

    def wait(self, timeout=15):
        return self.process.wait(timeout * SLOW)

    def end(self):
        if self.process.poll() is None:
            self.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait()
        self.remove()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        found = FINDING.search(self.said().replace("OCI runtime error", ""))
        assert not found, f"a sanitizer's report: {self.said()}"

    def said(self):
        return read_all(self.log).decode(errors="replace")

    def ask(self, line):
        """A line in, a line out."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().decode().strip()
        assert answer, f"the container ended: {self.said()}"
        return answer


# ---- podman ----

def podman(*arguments):
    place = os.path.join(workdir(), "podman")
    return ["podman", "--root", place, "--runroot", place + "-run", "--tmpdir", place + "-tmp",
            "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none",
            "--runtime", "runc", *arguments]


def why_no_podman():
    if not shutil.which("podman"):
        return "podman is not installed"
    probe = run(*podman("run", "--rm", "--network=none", *PODMAN_FLAGS), "--rootfs", reader_rootfs(),
                "/usr/bin/python3", "-c", "")
    return f"podman does not work here: {probe.stderr.strip()[-200:]}" if probe.returncode else ""


class PodmanContainer(Container):
    """The same by podman, from settings as make-bundle takes them."""

    hardening = PODMAN_FLAGS

    def __init__(self, name, rootfs_path, settings, *command, **more):
        self.flags = [f"-v={settings[k]}:{to}" for k, to in VOLUMES.items() if k in settings]
        self.flags += [f"--pid=ns:{settings['PID']}"] if "PID" in settings else []
        self.flags += ["--network=host" if "NETWORK" in settings else "--network=none"]
        self.words = ["--rootfs", rootfs_path, *command]
        super().__init__(name, **more)

    def command(self, place):
        self.pidfile = place + ".pid"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.pidfile)  # of the one before
        return podman("run", "--rm", "-i", "--name", self.name, "--pidfile", self.pidfile,
                      *self.hardening, *self.flags, *self.words)

    @property
    def pid(self):
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(read_all(self.pidfile))
        return 0

    def kill(self, sig="KILL"):
        run(*podman("kill", "-s", sig, self.name))

    def remove(self):
        run(*podman("rm", "-f", "-t", "0", self.name))


def remove_groups():
    """Podman leaves them."""
    for top, _, _ in [w for d in glob.glob("/sys/fs/cgroup/**/libpod_parent", recursive=True)
                      for w in os.walk(d, topdown=False)]:
        with contextlib.suppress(OSError):
            os.rmdir(top)


# ---- pods ----

class Reader:
    """pod_reader.py in a container."""

    def __init__(self, container):
        self.container = container

    def __getattr__(self, name):
        return getattr(self.container, name)

    def ask(self, *command):
        return json.loads(self.container.ask(json.dumps(command)))


class Pod:
    """Mounter, daemon and reader. `with Pod(model) as pod:` starts all three."""

    def __init__(self, model, *options, keys=(*LOCAL_KEYS,), network=None):
        self.model = model
        self.options = options
        self.words = [*COMMAND, *keys, *options]
        self.network = {"NETWORK": network} if network else {}
        self.top = os.path.join(workdir(), "pod")
        self.shared, self.run_dir = self.top + "/shared", self.top + "/run"
        self.target = self.shared + "/llm"
        self.config = self.top + "/mounter.conf"
        self.socket = self.run_dir + "/socket"
        for path in (self.top, self.shared, self.run_dir):
            os.makedirs(path, exist_ok=True)
        if not mounts_at(self.shared):
            run("mount", "--bind", self.shared, self.shared, check=True)
            run("mount", "--make-shared", self.shared, check=True)
        self.configure()
        self.mounter = self.daemon = self.reader = None
        self.mounter_log = os.path.join(workdir(), "mounter.log")

    @staticmethod
    def contain(kind, rootfs_path, settings, *command, **more):
        bundle(rootfs_path, kind, kind, settings, *command)
        return Container(kind, **more)

    def configure(self, **more):
        settings = {"socket": self.socket, "target": self.target, "uid": USER,
                    "options": "allow-other", **more}
        with open(self.config, "w", encoding="ascii") as file:
            file.writelines(f"{name} {value}\n" for name, value in settings.items())

    def start_mounter(self):
        with open(self.mounter_log, "ab") as log:
            # pylint: disable=consider-using-with, subprocess-popen-preexec-fn
            self.mounter = subprocess.Popen([MOUNTER, self.config], stderr=log,
                                            preexec_fn=die_with_parent)
        wait_for(self.answers, 5 * SLOW, "a listening mounter")

    def answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            try:
                s.connect(self.socket)
            except OSError:
                assert self.mounter.poll() is None, read_all(self.mounter_log).decode()
                return False
            return True

    def settings(self):
        return {"SOURCE": self.model.encrypted, "KEYS": os.path.dirname(self.model.reader),
                "RUN": self.run_dir, "MEMLOCK": MEMLOCK, **self.network}

    def start_daemon(self):
        self.daemon = self.contain("daemon", daemon_rootfs(), self.settings(), *self.words)
        wait_for(self.serves, 10 * SLOW, "a mount")

    def serves(self):
        assert self.daemon.process.poll() is None, self.daemon.said()
        return mounts_at(self.target) and self.model.shard in os.listdir(self.target)

    def reads(self, rootfs_path, *command):
        """A container that sees /models: beside the daemon, if there is a guard."""
        shares = {"PID": f"/proc/{self.daemon.pid}/ns/pid"} if self.options else {}
        return self.contain("reader", rootfs_path, {"MODELS": self.shared, **shares}, *command,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start_reader(self):
        self.reader = Reader(self.reads(reader_rootfs(), "/usr/bin/python3", "/reader.py"))

    def pids(self):
        """Of kvfs in the daemon's container, by name."""
        found, namespace = {}, os.readlink(f"/proc/{self.daemon.pid}/ns/pid")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                name = read_all(f"/proc/{pid}/comm").decode().strip()
                if name.startswith("kvfs-") and os.readlink(f"/proc/{pid}/ns/pid") == namespace:
                    found[name] = int(pid)
        return found

    def keeper(self):
        """Of the mounter."""
        children = read_all(f"/proc/{self.mounter.pid}/task/{self.mounter.pid}/children").split()
        assert len(children) == 1, children
        return int(children[0])

    def path(self, number=0):
        return "/models/llm/" + self.model.shards[number]

    def __enter__(self):
        self.start_mounter()
        self.start_daemon()
        self.start_reader()
        return self

    def __exit__(self, *_):
        for container in (self.reader, self.daemon):
            if container:
                container.end()
        if self.mounter and self.mounter.poll() is None:
            self.mounter.terminate()
            self.mounter.wait(10)
        found = FINDING.search(read_all(self.mounter_log).decode(errors="replace"))
        assert not found, "a sanitizer's report: " + read_all(self.mounter_log).decode()
        no_mount(self.target)


class PodmanPod(Pod):
    @staticmethod
    def contain(kind, rootfs_path, settings, *command, **more):
        return PodmanContainer(kind, rootfs_path, settings, *command, **more)

    def __exit__(self, *_):
        try:
            super().__exit__()
        finally:
            remove_groups()
