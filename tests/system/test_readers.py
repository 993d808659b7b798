#!/usr/bin/env python3
"""Readers that know nothing of encryption, unmodified and pinned (tests/requirements.txt): what they
load through the mount equals what they load from the original."""
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
    for original in sorted(glob.glob(plain + "/*.safetensors")):
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
    model.save_pretrained(directory, max_shard_size="2MB")
    shards = glob.glob(directory + "/*.safetensors")
    assert len(shards) >= 4, shards


def transformers_reader(checks, plain, shown):
    from transformers import AutoModelForCausalLM
    tokens = torch.arange(32).reshape(1, 32)

    def logits(directory):
        model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
        with torch.no_grad():
            return model(tokens).logits

    with checks.check("transformers: sharded, equal logits"):
        assert torch.equal(logits(shown), logits(plain))
    with checks.check("transformers: its loading threads on one CPU"):
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        try:
            assert torch.equal(logits(shown), logits(plain))
        finally:
            os.sched_setaffinity(0, cpus)


def fastsafetensors_reader(checks, plain, shown):
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup
    name = os.path.basename(sorted(glob.glob(plain + "/*.safetensors"))[0])

    def everything(directory):
        loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
        loader.add_filenames({0: [os.path.join(directory, name)]})
        buffers = loader.copy_files_to_device()
        tensors = {key: buffers.get_tensor(key).clone() for key in loader.get_keys()}
        buffers.close()
        loader.close()
        return tensors

    with checks.check("fastsafetensors"):
        same(everything(shown), everything(plain))


def runai_reader(checks, plain, shown):
    from runai_model_streamer import SafetensorsStreamer
    name = os.path.basename(sorted(glob.glob(plain + "/*.safetensors"))[0])

    def everything(directory):
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(os.path.join(directory, name))
            return {key: tensor.clone() for key, tensor in streamer.get_tensors()}

    with checks.check("runai-model-streamer"):
        same(everything(shown), everything(plain))


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


def main():
    checks = Checks()
    plain = os.path.join(workdir(), "plain")
    encrypted = os.path.join(workdir(), "encrypted")
    keys = os.path.join(workdir(), "keys")
    tiny_llama(plain)
    save_file({"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "bf16": torch.ones(7, 5).bfloat16(),
               "i64": torch.arange(100), "flag": torch.tensor([True, False])},
              plain + "/odd.safetensors", metadata={"format": "pt"})
    kvfs("keygen", keys)
    kvfs("encrypt", "-q", plain, "-o", encrypted, "--key", keys + "/owner.jwks")
    with Mount(encrypted, keys=[keys + "/reader.jwks"]) as m:
        safetensors_readers(checks, plain, m.path)
        transformers_reader(checks, plain, m.path)
        fastsafetensors_reader(checks, plain, m.path)
        runai_reader(checks, plain, m.path)
        with checks.check("sha256sum of every file equals the original's"):
            for name in sorted(os.listdir(plain)):
                result = subprocess.run(["cmp", os.path.join(plain, name), os.path.join(m.path, name)],
                                        check=False)
                assert result.returncode == 0, name
    hub_cache(checks, plain, [keys + "/reader.jwks"])
    return checks.finish()


sys.exit(main())
