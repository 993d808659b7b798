"""Loads models as users do: a server that imports the libraries once and forks for every job.

Runs with the packages of tests/requirements.txt. Jobs and answers are JSON, one a line: "how" is a
function's name below, "group" a cgroup's directory to enter. Seconds count from after the imports.
"""
import json
import os
import subprocess
import sys
import time
import traceback

import cryptotensors.torch
import safetensors.torch
import torch


def touch(tensors):
    """Reads every byte."""
    return sum(int(x.view(torch.int64).sum()) for x in tensors.values()) & 0xFFFFFFFF


def run(command):
    environment = {k: v for k, v in os.environ.items() if k != "CRYPTOTENSOR_KEYS"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def load(job):
    """Twice, the second time warm."""
    loader = safetensors.torch if job["with"] == "safetensors" else cryptotensors.torch
    seconds, sums = [], []
    for _ in range(job.get("times", 2)):
        start = time.monotonic()
        tensors = loader.load_file(job["file"])
        sums.append(touch(tensors))
        seconds.append(time.monotonic() - start)
        del tensors
    assert len(set(sums)) == 1, "two loads, two contents"
    return {"seconds": seconds[0], "warm": seconds[-1], "sum": sums[0]}


def mount_and_load(job):
    start = time.monotonic()
    for command in job["before"]:
        run(command)
    total = touch(safetensors.torch.load_file(job["file"]))
    seconds = time.monotonic() - start
    run(job["after"])
    return {"seconds": seconds, "sum": total}


def decrypt_and_load(job):
    start = time.monotonic()
    tensors = cryptotensors.torch.load_file(job["file"])
    safetensors.torch.save_file(tensors, job["to"])
    del tensors
    total = touch(safetensors.torch.load_file(job["to"]))
    seconds = time.monotonic() - start
    os.unlink(job["to"])
    return {"seconds": seconds, "sum": total}


def answer(job):
    if job.get("group"):
        with open(os.path.join(job["group"], "cgroup.procs"), "w", encoding="ascii") as procs:
            procs.write("0")
    return globals()[job["how"]](job)


def main():
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                result = answer(json.loads(line))
            except BaseException:  # pylint: disable=broad-except
                result = {"error": traceback.format_exc()}
            print(json.dumps(result), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


main()
