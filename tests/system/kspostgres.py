"""A PostgreSQL of its own: Debian's programs, run by an unprivileged user in a directory that goes away
with the test. `with Postgres() as p:` has one; p.url is what kvfs-keyserver takes."""
import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from kvfstest import die_with_parent, run


def programs():
    """Where initdb and postgres are, or None."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return os.path.dirname(found[-1]) if found else None


class Postgres:
    def __init__(self, where=None):
        self.bin = programs()
        self.dir = tempfile.mkdtemp(prefix="kvfs-postgres.", dir=where)
        self.data = os.path.join(self.dir, "data")
        self.as_user = []
        if os.geteuid() == 0:  # postgres refuses to run as root
            name = next(n for n in ("postgres", "nobody") if n in
                        {u.pw_name for u in pwd.getpwall()})
            user = pwd.getpwnam(name)
            os.chown(self.dir, user.pw_uid, user.pw_gid)
            self.as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}",
                            "--clear-groups"]
        self.process = None
        self.url = ""

    def start(self):
        log = open(os.path.join(self.dir, "log"), "ab")  # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            [*self.as_user, os.path.join(self.bin, "postgres"), "-D", self.data, "-k", self.dir,
             "-c", "listen_addresses="], stdout=log, stderr=log, preexec_fn=die_with_parent)
        log.close()
        for _ in range(300):
            if run(os.path.join(self.bin, "pg_isready"), "-h", self.dir).returncode == 0:
                return self
            time.sleep(0.1)
        with open(os.path.join(self.dir, "log"), encoding="utf-8") as file:
            raise AssertionError("PostgreSQL did not start: " + file.read()[-2000:])

    def stop(self, how=signal.SIGINT):
        if self.process:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    def sql(self, text, database="postgres"):
        return run(os.path.join(self.bin, "psql"), "-h", self.dir, "-U", "kvfs", "-d", database,
                   "-v", "ON_ERROR_STOP=1", "-qAtc", text, check=True).stdout

    def database(self, name):
        """A new database; its connection string."""
        self.sql(f"CREATE DATABASE {name}")
        return f"postgresql://kvfs@/{name}?host={self.dir}"

    def fresh(self):
        """An empty database in the place of the one that self.url names."""
        self.sql("DROP DATABASE keyserver WITH (FORCE)")
        self.url = self.database("keyserver")

    def __enter__(self):
        run(*self.as_user, os.path.join(self.bin, "initdb"), "-D", self.data, "-U", "kvfs", "-A",
            "trust", "-N", "--no-locale", "-E", "UTF8", check=True, timeout=300)
        self.start()
        self.url = self.database("keyserver")
        return self

    def __exit__(self, kind, value, trace):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


@contextlib.contextmanager
def chosen():
    """What $KVFS_DATABASE says: None for SQLite, or a running Postgres. Where that is not installed the
    script ends, skipped (but not with CI=true)."""
    if os.environ.get("KVFS_DATABASE", "sqlite") == "sqlite":
        yield None
        return
    if not programs():
        assert os.environ.get("CI") != "true", "PostgreSQL is not installed"
        print("skip all on PostgreSQL: it is not installed")
        sys.exit(77)
    with Postgres() as postgres:
        yield postgres
