"""A process that has a file open, mapped and touched, and goes on trying both."""
import inspect
import subprocess
import sys

from kvfstest import die_with_parent


def outcome(action):
    """An errno, 0 if it succeeded."""
    try:
        action()
    except OSError as error:
        return error.errno
    return 0


SCRIPT = inspect.getsource(outcome) + """
import ctypes, errno, mmap, os, sys

def end_of_file():
    raise OSError(errno.ENODATA, "end of file")

fd = os.open(sys.argv[1], os.O_RDONLY)
view = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
half = len(view) // 2
sum(view[at] for at in range(0, len(view), 4096))
if sys.argv[2] == "lock":
    assert ctypes.CDLL(None).mlockall(1) == 0
print("ready", flush=True)
while sys.stdin.readline():
    reading, writing = os.pipe()
    print(outcome(lambda: os.pread(fd, 1, half) or end_of_file()),
          outcome(lambda: os.write(writing, memoryview(view)[:1])),
          outcome(lambda: os.write(writing, memoryview(view)[half:][:1])), flush=True)
    os.close(reading)
    os.close(writing)
"""


class Holder:
    def __init__(self, name, lock=False):
        # pylint: disable=consider-using-with, subprocess-popen-preexec-fn
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, name, "lock" if lock else ""], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
        self.pid = self.process.pid
        assert self.process.stdout.readline() == "ready\n", name

    def ask(self):
        """The errnos, or 0, of a read in the middle (ENODATA: the file ends before), of touching the
        first page, and the middle."""
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return list(map(int, self.process.stdout.readline().split()))

    def gone(self):
        return all(self.ask())

    def end(self):
        self.process.kill()
        self.process.communicate()
