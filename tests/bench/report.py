"""The tables."""
import statistics

from measure import CORES, cpu_features


def median(rounds, name, field):
    values = [r[name][field] for r in rounds if name in r and field in r[name]]
    return statistics.median(values) if values else None


def title(args, rounds):
    name, features = cpu_features()
    has = ", ".join(f"{feature}: {'yes' if there else 'no'}" for feature, there in features.items())
    return (f"{name}, {CORES} cores; {has}\n{args.mib} MiB in {args.dir}{args.place}, "
            f"{len(rounds)} round{'s'[:len(rounds) - 1]}; medians; 1 GB is 10^9 bytes")


def speeds(rounds, names):
    yield f"{'':36}{'GB/s':>8}{'CPU s/GB':>10}{'warm GB/s':>11}{'peak MiB':>10}"
    for name in names:
        size, seconds = median(rounds, name, "bytes"), median(rounds, name, "seconds")
        if not size or not seconds:
            continue
        cpu, warm = median(rounds, name, "cpu"), median(rounds, name, "warm")
        memory = median(rounds, name, "memory")
        yield (f"{name:36}{size / seconds / 1e9:8.2f}"
               + (f"{cpu / size * 1e9:10.2f}" if cpu else f"{'':10}")
               + (f"{size / warm / 1e9:11.2f}" if warm else f"{'':11}")
               + (f"{memory / (1 << 20):10.0f}" if memory else "")).rstrip()


def latencies(rounds, names):
    yield f"{'':36}{'mean':>8}{'median':>10}{'p99':>11}  µs, random 4 KiB faults"
    for name in names:
        if median(rounds, name, "p99"):
            yield (f"{name:36}{median(rounds, name, 'mean'):8.1f}"
                   f"{median(rounds, name, 'median'):10.1f}{median(rounds, name, 'p99'):11.1f}")
    for name in names:
        if name.endswith(" first") and median(rounds, name, "seconds"):
            yield (f"{name + ' byte, with open':36}"
                   f"{median(rounds, name, 'seconds') * 1e6:8.0f} µs")


def number(value, unit):
    digits = 0 if unit == "B" else 2 if value < 10 else 1
    return f"{value:.{digits}f} {unit}"


def goals(judged):
    group = None
    for j in judged:
        if j.goal.group != group:
            group = j.goal.group
            yield ""
            yield group
        goal = f"{j.goal.sense} {number(j.goal.limit, j.goal.unit)}" if j.goal.sense else ""
        spread = f"{j.least:.2f}–{j.most:.2f}" if j.goal.unit != "B" else ""
        yield (f"  {j.goal.text:56}{number(j.value, j.goal.unit):>11}  {spread:12} "
               f"{goal:13} {j.verdict}").rstrip()


def print_all(args, rounds, judged, cases, ciphers, loads):
    print(title(args, rounds))
    rates, chosen = ciphers
    print("AES-256-GCM on one core, GB/s: "
          + ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
          + f"; {chosen} decrypts")
    print(f"others' load while measuring (load average at each round's start): "
          f"{', '.join(f'{x:.1f}' for x in loads)}\n")
    for line in speeds(rounds, cases):
        print(line)
    print()
    for line in latencies(rounds, cases):
        print(line)
    print("\npeak memory: a cgroup's highest charge, of the loading process and (mount) kvfs's: "
          "their own\nmemory, tmpfs and page cache; the encrypted file, in memory before, is not "
          "in it")
    for line in goals(judged):
        print(line)
    limits = [j for j in judged if j.goal.limit is not None]
    print(f"\n{sum(j.verdict == 'met' for j in limits)} of {len(limits)} goals met")
    for line in cases.left_out:
        print(f"left out: {line}")
