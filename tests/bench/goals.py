"""What kvfs has to reach, each a ratio (or a difference) of measurements of one round."""
import dataclasses
import statistics
import typing

from measure import cpu_features


@dataclasses.dataclass
class Goal:
    group: str
    text: str
    unit: str  # "×", "s/GB", "ms/GiB", "s", "B"
    sense: str  # "≥", "≤"; "" if it is told only
    limit: typing.Optional[float]
    value: typing.Callable  # of a round's results, by name

    def of(self, rounds):
        """The values of all rounds that have what it needs."""
        values = []
        for results in rounds:
            try:
                values.append(self.value(results))
            except KeyError:
                pass
        return values

    def met(self, value):
        return value >= self.limit if self.sense == "≥" else value <= self.limit


def rate(results, name, field="seconds"):
    return results[name]["bytes"] / results[name][field]


def faster(a, b, field="seconds"):
    """How many times as many bytes a second."""
    return lambda r: rate(r, a, field) / rate(r, b, field)


def share(a, b, field="seconds"):
    return lambda r: r[a][field] / r[b][field]


def cpu_above(a, b):
    return lambda r: (r[a]["cpu"] / r[a]["bytes"] - r[b]["cpu"] / r[b]["bytes"]) * 1e9


def field(a, name):
    return lambda r: r[a][name]


def page_goals():
    group = "Page cache"
    for threads in 1, 2:
        for mode in "pread", "mmap":
            yield Goal(group, f"{mode}, {threads} reader{'s'[:threads - 1]}: CPU above own", "s/GB",
                       "≤", 0.45, cpu_above(f"page {mode} {threads}", f"own {threads}"))
        yield Goal(group, f"direct, {threads} reader{'s'[:threads - 1]}: CPU above own", "s/GB",
                   "≤", 0.15, cpu_above(f"page direct {threads}", f"own {threads}"))
    for mode in "pread", "mmap":
        for threads, limit in (1, 2.5), (2, 1.6):
            yield Goal(group, f"cold {mode}, {threads} reader{'s'[:threads - 1]}: of gocryptfs",
                       "×", "≥", limit,
                       faster(f"page {mode} {threads}", f"gocryptfs {mode} {threads}"))
    yield Goal(group, "direct, 1 reader: of own, 1 thread", "×", "≥", 1.2,
               faster("page direct 1", "own 1"))
    yield Goal(group, "4 KiB faults, mean: of gocryptfs's time", "×", "≤", 1,
               share("page fault", "gocryptfs fault", "mean"))
    yield Goal(group, "4 KiB faults, median: of gocryptfs's time", "×", "≤", 3,
               share("page fault", "gocryptfs fault", "median"))
    yield Goal(group, "4 KiB faults, p99: of gocryptfs's time", "×", "", None,
               share("page fault", "gocryptfs fault", "p99"))
    yield Goal(group, "open to first byte: of gocryptfs's time", "×", "", None,
               share("page first", "gocryptfs first"))


def resident_goals():
    group = "Resident"
    for mode in "mmap", "pread":
        yield Goal(group, f"cold {mode}, 2 readers: of own, 2 threads", "×", "≥", 0.9,
                   faster(f"resident {mode} 2", "own 2"))
        yield Goal(group, f"cold {mode}, 1 reader: of own, 1 thread", "×", "≥", 1.2,
                   faster(f"resident {mode} 1", "own 1"))
    for threads in 1, 2:
        yield Goal(group, f"warm mmap, {threads} reader{'s'[:threads - 1]}: of the plain file",
                   "×", "≥", 0.9,
                   faster(f"resident mmap {threads}", f"plain mmap {threads}", "warm"))


def first_touch_goals():
    wide = cpu_features()[1]["AVX-512"]
    group, touch = "Version 1, first touch of a tensor", "page version 1, first touch"
    yield Goal(group, "of own by OpenSSL, 2 threads", "×", "≥", 2 if wide else 1.5,
               faster(touch, "own by OpenSSL 2"))
    yield Goal(group, "of OpenSSL's cipher alone, all cores", "×", "", None,
               faster(touch, "OpenSSL's cipher decrypts"))
    yield Goal(group, "of reading alone, all cores", "×", "", None, faster(touch, "read"))
    yield Goal(group, "resident: of own by OpenSSL, 2 threads", "×", "", None,
               faster("resident version 1, first touch", "own by OpenSSL 2"))


def loader_goals():
    group = "Loaders (safetensors.torch.load_file, every byte touched): time"
    limits = {("resident", 2): 0.55, ("page", 2): 0.9, ("resident", 1): 0.3, ("page", 1): 0.5}
    for (cache, version), limit in limits.items():
        yield Goal(group, f"{cache}, cold: of the reference's load, version {version}", "×", "≤",
                   limit, share(f"load {cache}, version {version}",
                                f"load reference, version {version}"))
    for cache, limit in ("resident", 1.1), ("page", 2.5):
        yield Goal(group, f"{cache}, warm: of the plain file", "×", "≤", limit,
                   share(f"load {cache}, version 2", "load plain", "warm"))
    group = "From encrypted files to tensors: of decrypting to a tmpfs first"
    for how in "mount, load", "mount, warm, load":
        for cache in "resident", "page":
            for name, what in (("time", "seconds"), ("peak memory", "memory")):
                yield Goal(group, f"{how}, {cache}: {name}", "×", "≤", 1,
                           share(f"{how}: {cache}", "decrypt, load: reference", what))


def other_goals():
    group = "Writing, verifying"
    yield Goal(group, "encrypt: of the cipher, all cores", "×", "≥", 0.8,
               faster("encrypt", "cipher encrypts"))
    yield Goal(group, "encrypt: of copying the plain file, all cores", "×", "", None,
               faster("encrypt", "copy"))
    yield Goal(group, "verify: of the cipher, all cores", "×", "≥", 0.8,
               faster("verify", "cipher decrypts"))
    yield Goal(group, "verify: of own, 2 threads", "×", "", None, faster("verify", "own 2"))
    yield Goal(group, "verify: of reading alone, all cores", "×", "", None,
               faster("verify", "read"))
    group = "200 shards, 50,000 tensors"
    yield Goal(group, "mount answers", "s", "≤", 0.5, field("many shards", "seconds"))
    yield Goal(group, "ls -l", "s", "≤", 0.5, field("many shards", "ls"))
    yield Goal(group, "opening all shards", "s", "", None, field("many shards", "open"))
    yield Goal(group, "memory of a tensor, all shards open", "B", "", None,
               field("many shards", "memory"))


def condition_goals():
    group = "Real conditions"
    for cache in "page", "resident":
        yield Goal(group, f"cold disk, {cache}: of reading the ciphertext, cold", "×", "", None,
                   faster(f"cold disk, {cache}", "cold disk, ciphertext"))
    yield Goal(group, "source of 10 ms, 1 GB/s: of 16 copiers of the ciphertext", "×", "≥", 0.85,
               faster("far source", "far source, 16 copiers"))
    yield Goal(group, "a cgroup of 256 MiB, one core: of unlimited, one core", "×", "≥", 0.8,
               faster("one core, 256 MiB", "one core"))
    yield Goal(group, "processes that were killed for memory there", "", "≤", 0,
               field("one core, 256 MiB", "killed"))
    yield Goal(group, "read-ahead of 128 KiB: of 1 MiB", "×", "", None,
               faster("read-ahead of 128 KiB", "page pread 1"))
    for mode in "pread", "mmap":
        yield Goal(group, f"rootless, {mode}: of mounted by root", "×", "", None,
                   faster(f"rootless {mode}", f"page {mode} 1"))
    yield Goal(group, "worker's memory, 8 streams of 8 files: of memory=", "×", "≤", 1,
               field("8 streams, 8 files", "share"))
    for mode, what in ("blocks", "16 MiB blocks by pread"), ("slices", "slices of a mapping"):
        yield Goal(group, f"8 readers, {what}: each byte decrypted", "×", "≤", 1.1,
                   field(f"page {mode} 8", "decrypted"))
        yield Goal(group, f"8 readers, {what}: of 2 readers", "×", "", None,
                   faster(f"page {mode} 8", "page pread 2"))
    for readers in 8, 32:
        yield Goal(group, f"CPU of {readers} readers: of one reader's", "×", "≤", 1.25,
                   share(f"page pread {readers}", "page pread 1", "cpu"))
    yield Goal(group, "CPU a GB, eight times the size", "×", "≤", 1.15,
               lambda r: (r["page pread, double size"]["cpu"]
                          / r["page pread, double size"]["bytes"]
                          / r["page pread, quarter size"]["cpu"]
                          * r["page pread, quarter size"]["bytes"]))


def revocation_goals():
    group = "Revocation of a file that is mapped and touched: time"
    for cache in "resident", "page":
        for how in "worker killed", "sealed":
            limit = 20 if cache == "resident" else None
            yield Goal(group, f"{cache}, {how}: until nothing is left", "ms/GiB",
                       "≤" if limit else "", limit,
                       lambda r, name=f"{cache} {how}": r[name]["per_gib"] * 1e3)


def all_goals():
    return [*page_goals(), *resident_goals(), *first_touch_goals(), *loader_goals(),
            *other_goals(), *condition_goals(), *revocation_goals()]


@dataclasses.dataclass
class Judged:
    goal: Goal
    value: float
    least: float
    most: float

    @property
    def verdict(self):
        if self.goal.limit is None:
            return ""
        return "met" if self.goal.met(self.value) else "NOT MET"


def judge(rounds):
    """All goals that these rounds say something about: medians of the rounds' own values."""
    found = []
    for goal in all_goals():
        values = goal.of(rounds)
        if values:
            found.append(Judged(goal, statistics.median(values), min(values), max(values)))
    return found
