"""How long it takes until a reader that has all of a file mapped and touched can reach none of it."""
import os
import signal
import time

from measure import Models, kvfstest

PROBES = 64


class Revoking:
    """Its cases; "per_gib": seconds for each GiB of the file."""

    def __init__(self, cases):
        self.mount = cases.mount
        for cache in cases.caches:
            cases[f"{cache} sealed"] = lambda c=cache: self.measure(c, self.seal)
            cases[f"{cache} worker killed"] = lambda c=cache: self.measure(c, self.kill)

    @staticmethod
    def seal(m):
        kvfstest.kvfs("seal", m.path)

    @staticmethod
    def kill(m):
        os.kill(m.worker, signal.SIGKILL)

    def measure(self, cache, revoke):
        with self.mount(cache) as m:
            fd = os.open(os.path.join(m.path, Models.NAME), os.O_RDONLY)
            size = os.fstat(fd).st_size
            address = kvfstest.map_touched(fd, size)
            os.close(fd)
            try:
                start = time.monotonic()
                revoke(m)
                kvfstest.wait_for(lambda: self.nothing_left(address, size), 30, "revocation")
                seconds = time.monotonic() - start
            finally:
                kvfstest.unmap(address, size)
        return {"per_gib": seconds / (size / (1 << 30))}

    @staticmethod
    def nothing_left(address, size):
        return not any(isinstance(kvfstest.take_bytes(address + size // PROBES * i, 1), bytes)
                       for i in range(PROBES))
