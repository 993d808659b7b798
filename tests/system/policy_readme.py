#!/usr/bin/env python3
"""Every example of format/policy/README.md does what the text says of it: blocks marked `rego allow`
and `rego refuse`, with the `input` of the block marked `json input`. A block that has a line `package`
is one policy; of any other each line is one: what follows `package model` if it begins with `allow`,
`default` or `import`, otherwise the body of `allow`. A refusal's reason is the comment: the first line
of a whole policy, or what follows the last ` # ` of a line."""
import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOL = os.path.join(os.environ.get("KVFS_TOOLS", os.path.join(ROOT, "build/release/tests")), "policy_eval")
README = os.path.join(ROOT, "format/policy/README.md")
HEADS = ("allow", "default", "import")


def policies(block, refuse):
    """(text, reason) of each policy in a block; the reason is "" where it is to be allowed."""
    if re.search(r"^package\b", block, re.M):
        first = block.split("\n", 1)[0]
        yield block, first.removeprefix("# ") if refuse else ""
        return
    for line in block.splitlines():
        text, _, reason = line.rpartition(" # ") if refuse else (line, "", "")
        rule = text if text.startswith(HEADS) else "allow if { " + text + " }"
        yield "package model\n" + rule, reason


def main():
    with open(README, encoding="utf-8") as file:
        blocks = re.findall(r"^```(rego allow|rego refuse|json input)\n(.*?)^```$", file.read(), re.M | re.S)
    document = [json.loads(block) for mark, block in blocks if mark == "json input"]
    cases = [case for mark, block in blocks if mark != "json input"
             for case in policies(block.rstrip("\n"), mark == "rego refuse")]
    assert len(document) == 1 and len(cases) > 50, "the examples were not found"
    result = subprocess.run([TOOL], input=json.dumps({"input": document[0], "policies": [c[0] for c in cases]}),
                            text=True, stdout=subprocess.PIPE, check=True)
    verdicts = result.stdout.splitlines()
    assert len(verdicts) == len(cases), f"{len(verdicts)} verdicts for {len(cases)} policies"
    failures = 0
    for (text, reason), verdict in zip(cases, verdicts):
        good = verdict.startswith("refuse: ") and verdict.endswith(reason) if reason else verdict == "allow"
        if not good:
            failures += 1
            print(f"FAIL {text}\n  should be {reason or 'allowed'}\n  is        {verdict}")
    print(f"{len(cases)} policies, {failures} failures")
    return 1 if failures else 0


sys.exit(main())
