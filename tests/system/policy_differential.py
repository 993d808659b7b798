#!/usr/bin/env python3
"""Generated policies, 10,000 and more for KVFS_SECONDS, through kvfs and through regorus, the engine
of the reference (PyPI opa-eval). Allowing what the engine refuses is a failure, always. Refusing what
it allows is one too, unless the reason names what is wrong or not in the subset.

    tests/with-venv tests/system/policy_differential.py [--count N] [--seed N]
"""
import argparse
import collections
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

import opa_eval

TOOL = os.path.join(os.environ.get("KVFS_TOOLS", "build/release/tests"), "policy_eval")

INPUT = {
    "kvfs": {"version": "0.1.0"}, "host": "node-7", "uid": 1000, "time": "2026-11-23T10:00:00Z",
    "unix": 1795428000, "path": "/models/llama/model.safetensors", "model": "acme/llama",
    "guard": {"profile": "strict", "findings": [], "ok": True}, "tags": ["prod", "eu"],
    "zero": 0, "empty": "", "nul": None, "f": 1.5,
}

PATHS = ["input.uid", "input.host", "input.unix", "input.path", "input.model", "input.guard.ok",
         "input.guard.profile", "input.guard.findings", "input.tags", "input.tags[0]", "input.tags[1]",
         "input.tags[7]", "input.zero", "input.empty", "input.nul", "input.f", "input.missing",
         "input.guard.missing", 'input["host"]', 'input["no such"]', "input.kvfs.version", "input.time",
         "input.missing.deeper", "input.guard", "input.default", "input.if", "input.contains",
         "input.data"]
STRINGS = ['"node-7"', '"node-"', '"prod"', '"eu"', '"strict"', '""', '"llama"', '".safetensors"',
           '"\\u00e9"', '"\\ud83d\\ude00"', "`raw`", '"0.1.0"', '"acme/llama"', '"a#b"', '"z"']
NUMBERS = ["0", "1", "2", "1000", "1001", "999", "1.5", "1.0", "1795428000", "-1", "- 1", "1800000000", "0.1"]
CONSTANTS = ["true", "false", "null"]


class Generator:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, *choices):
        return self.random.choice(choices)

    def chance(self, share):
        return self.random.random() < share

    def literal(self, depth=0):
        kind = self.random.random()
        if kind < 0.35:
            return self.random.choice(STRINGS)
        if kind < 0.65:
            return self.random.choice(NUMBERS)
        if kind < 0.8 or depth > 2:
            return self.random.choice(CONSTANTS)
        items = [self.literal(depth + 1) for _ in range(self.random.randrange(4))]
        if kind < 0.92:
            return "[" + ", ".join(items) + "]"
        keys = self.random.sample(['"a"', '"b"', '"c"', '"d"'], len(items))
        return "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, items)) + "}"

    def term(self, names):
        kind = self.random.random()
        if names and kind < 0.25:
            return self.random.choice(names)
        if kind < 0.65:
            return self.random.choice(PATHS)
        if kind < 0.75:
            return f"count({self.pick(*PATHS, '[1, 2]', *STRINGS)})"
        return self.literal()

    def comparison(self, names):
        if self.chance(0.55):  # something that is likely to make sense
            return self.pick(
                "input.uid == 1000", "input.uid != 1001", "input.uid > 999", "input.uid <= 1000",
                'input.host == "node-7"', "input.guard.ok", "input.unix < 1800000000",
                'startswith(input.host, "node")', 'endswith(input.path, ".safetensors")',
                'contains(input.model, "acme")', '"prod" in input.tags', 'input.host in ["node-7", "x"]',
                "count(input.guard.findings) == 0", 'input.guard.profile == "strict"', "true",
                "input.uid == 1", 'input.host == "other"', "false", '"x" in input.tags')
        left, right = self.term(names), self.term(names)
        kind = self.random.random()
        if kind < 0.5:
            return f"{left} {self.pick('==', '!=', '<', '<=', '>', '>=')} {right}"
        if kind < 0.65:
            return f"{left} in {right}"
        if kind < 0.8:
            return f"{self.pick('startswith', 'endswith', 'contains')}({left}, {right})"
        return left

    def statement(self, names, number):
        kind = self.random.random()
        if kind < 0.6:
            return [self.comparison(names)]
        if kind < 0.75:
            return ["not " + self.comparison(names)]
        name = f"v{number}"
        if kind < 0.9:
            lines = [f"{name} := {self.term(names)}"]
        else:
            lines = [f"some {name} in {self.pick('input.tags', '[1, 2, 3]', self.term(names))}"]
        names.append(name)
        if not self.chance(0.1):
            lines.append(f"{name} {self.pick('==', '!=', '<')} {self.term(names[:-1])}")
        return lines

    def body(self, rules):
        names, lines = list(rules), []
        for number in range(self.random.randrange(1, 4)):
            lines += self.statement(names, number)
        if len(lines) == 1 and self.chance(0.4):
            return f"if {lines[0]}"
        return "if {" + self.pick("; ", "\n  ", " ;\n").join([""] + lines)[2:] + \
            self.pick("\n}", "\n}", ";\n}") \
            if self.chance(0.5) else "if {\n  " + "\n  ".join(lines) + "\n}"

    def rule(self, name, rules):
        kind = self.random.random()
        if kind < 0.15:
            return f"{name} {self.pick('=', ':=')} {self.pick('true', 'true', self.literal())}"
        value = "" if kind < 0.7 else f" {self.pick('=', ':=')} {self.pick('true', 'false', self.literal())}"
        return f"{name}{value} {self.body(rules)}"

    def policy(self):
        lines = [self.pick("package model", "package model", "package model # a comment")]
        if self.chance(0.3):
            lines.append("import rego.v1")
        if self.chance(0.5):
            lines.append(f"default allow {self.pick('=', ':=')} {self.pick('false', 'false', 'true')}")
        rules = []
        for number in range(self.random.randrange(3)):
            name = f"r{number}"
            lines += [self.rule(name, rules) for _ in range(self.pick(1, 1, 1, 2))]
            rules.append(name)
        lines += [self.rule("allow", rules) for _ in range(self.pick(1, 1, 1, 2, 3))]
        if self.chance(0.1):
            self.random.shuffle(lines)
        text = self.pick("\n", "\n\n").join(lines)
        return self.mutate(text) if self.chance(0.2) else text

    def mutate(self, text):
        """Near misses, and constructs outside the subset."""
        if self.chance(0.4):
            return text + "\n" + self.pick(
                "allow contains 1", "f(x) := x", "allow if { x }", "allow if { every t in input.tags { t } }",
                "allow if { 1 + 1 == 2 }", "allow if { count([x | some x in input.tags]) == 2 }",
                "allow if { input.tags[_] == \"eu\" }", "allow := true if { true } else := false",
                "default allow := input.uid", "import data.x", "package other", "allow if { true } }",
                "allow if { data.model.r0 }", "allow if { lower(input.host) == \"node-7\" }", "allow { true }",
                "allow if { input := 1 }", "allow if { x = 1; x == 1 }", "allow if { some x; x == 1 }",
                "allow if { {1, 2} == {2, 1} }", "allow[\"x\"] if { true }", "r9.a := 1", "allow if { not not true }",
                "allow if { 1 == 1 == true }", "allow if { (1 == 1) == true }", "allow if { \"\\ud800\" == \"\" }",
                "allow if { (input).uid == 1000 }", "allow if { (input.tags)[0] == \"prod\" }")
        position = self.random.randrange(len(text))
        if self.chance(0.5):
            return text[:position] + text[position + 1:]
        return text[:position] + self.pick(*"{}[]()=:;,.\"`#!<>x1 \n\t\\|&+-*/%_é") + text[position:]


def engine(policy, path):
    """The engine's verdict: whether data.model.allow is exactly true, in Rego v1."""
    text = policy if "import rego.v1" in policy else \
        re.sub(r"package[ \t]+model", "package model\nimport rego.v1", policy, count=1)
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    try:
        return opa_eval.OpaEval(path, query="data.model.allow").evaluate_parsed(json.dumps(INPUT)) is True
    except KeyboardInterrupt:
        raise
    except BaseException:  # pylint: disable=broad-except
        return False  # RuntimeError; the engine also panics on some texts


def compare(policies, path, counts):
    """What is wrong, as pairs of why and policy."""
    result = subprocess.run([TOOL], input=json.dumps({"input": INPUT, "policies": policies}), text=True,
                            stdout=subprocess.PIPE, check=True)
    ours = result.stdout.splitlines()
    assert len(ours) == len(policies), f"{len(ours)} verdicts for {len(policies)} policies"
    failures = []
    for policy, verdict in zip(policies, ours):
        allowed = engine(policy, path)
        if verdict == "allow" and not allowed:
            failures.append(("kvfs allows, the engine refuses", policy))
        elif verdict != "allow" and allowed and not named(verdict):
            failures.append((f"the engine allows; kvfs: {verdict}", policy))
        counts["both allow" if verdict == "allow" else "refused by name only" if allowed else
               "both refuse"] += 1
    return failures


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("KVFS_SEED", "1")))
    args = parser.parse_args()
    deadline = time.monotonic() + float(os.environ.get("KVFS_SECONDS", "5"))
    generator = Generator(args.seed)
    counts, failures = collections.Counter(), []
    # The engine prints warnings of what is no matter here.
    sys.stdout = os.fdopen(os.dup(1), "w")
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    path = os.path.join(tempfile.mkdtemp(dir="/dev/shm"), "model.rego")
    while True:
        failures += compare([generator.policy() for _ in range(args.count)], path, counts)
        if failures or time.monotonic() > deadline:
            break
    shutil.rmtree(os.path.dirname(path))
    print(dict(counts))
    for why, policy in failures[:10]:
        print(f"FAIL {why}\n{policy}\n---")
    print(f"{sum(counts.values())} policies, seed {args.seed}: {len(failures)} failures")
    return 1 if failures else 0


def named(verdict):
    """Verdicts about the value (undefined, not true) name nothing: there the engines must agree."""
    return "allow is undefined" not in verdict and "allow is not true" not in verdict and \
        "no rule called allow" not in verdict


sys.exit(main())
