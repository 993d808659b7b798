#!/usr/bin/env python3
"""Readers that know nothing of encryption, unmodified and pinned (tests/requirements.txt): what they
load through the mount equals what they load from the original, and each byte is decrypted at most 1.1
times."""
import glob
import os
import shutil
import subprocess
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from kvfstest import Checks, Mount, kvfs, workdir


def same(a, b):
    assert a.keys() == b.keys(), "names differ"
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert torch.equal(a[name].view(torch.uint8) if a[name].dim() else a[name],
                           b[name].view(torch.uint8) if b[name].dim() else b[name]), name


def safetensors_readers(checks, plain, shown):
    for original in sorted(glob.glob(plain + "/*.safetensors"))[-3:]:
        path = os.path.join(shown, os.path.basename(original))
        want = load_file(original)
        with checks.check(f"safetensors load_file: {os.path.basename(path)}"):
            same(load_file(path), want)
        with checks.check(f"safetensors load(f.read()): {os.path.basename(path)}"):
            with open(path, "rb") as file:
                same(load(file.read()), want)
        with checks.check(f"safetensors safe_open, slices: {os.path.basename(path)}"):
            with safe_open(path, framework="pt") as file:
                assert set(file.keys()) == set(want)
                for name in file.keys():
                    if want[name].dim() == 2:
                        part = file.get_slice(name)[1:3]
                        assert torch.equal(part, want[name][1:3]), name
        with checks.check(f"safetensors backend=pread: {os.path.basename(path)}"):
            same(load_file(path, backend="pread"), want)


def tiny_llama(directory):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(7)
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=8,
                         num_attention_heads=4, num_key_value_heads=2, vocab_size=1024)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="1MB")
    shards = glob.glob(directory + "/*.safetensors")
    assert len(shards) >= 8, shards


def logits(directory):
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    with torch.no_grad():
        return model(torch.arange(32).reshape(1, 32)).logits


def transformers_reader(checks, plain, shown):
    with checks.check("transformers: sharded, equal logits"):
        assert torch.equal(logits(shown), logits(plain))
    with checks.check("transformers: its loading threads on one CPU"):
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        try:
            assert torch.equal(logits(shown), logits(plain))
        finally:
            os.sched_setaffinity(0, cpus)


def by_fastsafetensors(path):
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup
    loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
    loader.add_filenames({0: [path]})
    buffers = loader.copy_files_to_device()
    tensors = {key: buffers.get_tensor(key).clone() for key in loader.get_keys()}
    buffers.close()
    loader.close()
    return tensors


def by_runai(path):
    from runai_model_streamer import SafetensorsStreamer
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(path)
        return {key: tensor.clone() for key, tensor in streamer.get_tensors()}


def by_safe_open(path):
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def by_load(path):
    with open(path, "rb") as file:
        return load(file.read())


FILE_READERS = {
    "safe_open": by_safe_open,
    "load_file": load_file,
    "load_file, backend=pread": lambda path: load_file(path, backend="pread"),
    "load(f.read())": by_load,
    "fastsafetensors": by_fastsafetensors,
    "runai-model-streamer": by_runai,
}


def decrypted_once(m, size, limit=1.1):
    times = m.status()["counters"]["bytes_decrypted"] / size
    assert times <= limit, f"decrypted {times:.2f} times"


def write_large(directory):
    """Large enough for loaders to read with all their threads and as deep as their queues are."""
    os.mkdir(directory)
    shapes = {"input_layernorm": (1024,), "self_attn.q_proj": (1024, 1024), "mlp.up_proj": (4096, 1024)}
    save_file({f"model.layers.{layer}.{name}.weight": torch.randn(shape).bfloat16()
               for layer in range(10) for name, shape in shapes.items()},
              os.path.join(directory, "large.safetensors"), metadata={"format": "pt"})


def large_file(checks, plain, encrypted, keys, cache):
    original = os.path.join(plain, "large.safetensors")
    want = load_file(original)
    for name, reader in FILE_READERS.items():
        with checks.check(f"{cache}: {name}: right tensors, nothing decrypted twice"):
            with Mount(encrypted, keys=keys, options=[f"cache={cache}"]) as m:
                same(reader(os.path.join(m.path, "large.safetensors")), want)
                decrypted_once(m, os.stat(original).st_size)


def hub_cache(checks, plain, keys):
    """The layout of the Hugging Face cache: snapshots full of links into blobs."""
    cache = os.path.join(workdir(), "hub", "models--acme--tiny")
    snapshot = os.path.join(cache, "snapshots", "0123abc")
    encrypted = os.path.join(workdir(), "encrypted")
    os.makedirs(snapshot)
    os.makedirs(os.path.join(cache, "blobs"))
    for number, name in enumerate(sorted(os.listdir(encrypted))):
        blob = f"{number:064x}"
        shutil.copy(os.path.join(encrypted, name), os.path.join(cache, "blobs", blob))
        os.symlink(os.path.join("../../blobs", blob), os.path.join(snapshot, name))
    with Mount(os.path.dirname(cache), keys=keys) as m:
        shown = os.path.join(m.path, "models--acme--tiny", "snapshots", "0123abc")
        transformers_reader(checks, plain, shown)
        with checks.check("hub cache: its files are regular files in the view"):
            for name in os.listdir(shown):
                assert not os.path.islink(os.path.join(shown, name)), name


def encrypt(plain, encrypted, keys):
    kvfs("encrypt", "-q", plain, "-o", encrypted, "--key", keys + "/owner.jwks")


def main():
    checks = Checks()
    plain, encrypted, keys = (os.path.join(workdir(), n) for n in ("plain", "encrypted", "keys"))
    reader = [keys + "/reader.jwks"]
    tiny_llama(plain)
    shards = glob.glob(plain + "/*.safetensors")
    size, want = sum(map(os.path.getsize, shards)), logits(plain)
    kvfs("keygen", keys)
    encrypt(plain, encrypted + "-llama", keys)
    save_file({"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "bf16": torch.ones(7, 5).bfloat16(),
               "i64": torch.arange(100), "flag": torch.tensor([True, False])},
              plain + "/odd.safetensors", metadata={"format": "pt"})
    encrypt(plain, encrypted, keys)
    with Mount(encrypted, keys=reader) as m:
        safetensors_readers(checks, plain, m.path)
        transformers_reader(checks, plain, m.path)
        with checks.check("sha256sum of every file equals the original's"):
            for name in sorted(os.listdir(plain)):
                result = subprocess.run(["cmp", os.path.join(plain, name), os.path.join(m.path, name)],
                                        check=False)
                assert result.returncode == 0, name
    hub_cache(checks, plain, reader)
    write_large(plain + "-large")
    encrypt(plain + "-large", encrypted + "-large", keys)
    for cache in "page", "resident", "direct":
        large_file(checks, plain + "-large", encrypted + "-large", reader, cache)
        with checks.check(f"{cache}: transformers, {len(shards)} shards: equal logits, each byte once"):
            with Mount(encrypted + "-llama", keys=reader, options=[f"cache={cache}"]) as m:
                assert torch.equal(logits(m.path), want)
                # It opens and maps each shard twice, and cache=direct keeps nothing.
                decrypted_once(m, size, 2.2 if cache == "direct" else 1.1)
    return checks.finish()


sys.exit(main())
