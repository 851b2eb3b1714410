"""What this machine can do with redraft, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from argparse import ArgumentParser, Namespace
from typing import Any

from redraft.display import emit, quantity
from redraft.text.shards.prepare import default_cache

# module: what it is for, and the extra of redraft that brings it
OPTIONAL = {
    "altair": ("figures and reports", "figures"),
    "vl_convert": ("figures and reports", "figures"),
    "pyarrow": (".parquet and .zst", "parquet"),
    "sentencepiece": ("sentencepiece tokenizers", "hf"),
    "datasets": ("hf:DATASET sources", "hf"),
    "transformers": ("judges of transformers", "hf"),
    "gguf": ("GGUF files", "gguf"),
    "fastapi": ("redraft serve", "serve"),
    "uvicorn": ("redraft serve", "serve"),
    "greenlet": ("redraft serve, and sample --prompts", "serve"),
    "peft": ("train.lora", "lora"),
    "lm_eval": ("eval --tasks", "harness"),
    "mauve": ("MAUVE of samples", "mauve"),
    "submitit": ("the Slurm launcher", "slurm"),
    "datatrove": ("tokenising on many machines", "cluster"),
    "wandb": ("--track wandb", "track"),
}


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    facts = {**_machine(), **_torch(), "missing": _missing()}
    if options.json:
        return emit(facts)
    rate = facts["float32_flops_per_second"], facts["bfloat16_flops_per_second"]
    print(
        f"python {facts['python']}, torch {facts['torch']}, {facts['cores']} cores, "
        f"{quantity(facts['memory_bytes'], 'B')} memory, {quantity(facts['disk_free_bytes'], 'B')} free "
        f"in {facts['cache']}\n"
        f"device: {facts['device']}; matrix products at {quantity(rate[0], 'FLOP/s')} in float32, "
        f"{quantity(rate[1], 'FLOP/s')} in bfloat16\n"
        f"fused cross-entropy in torch: {'yes' if facts['linear_cross_entropy'] else 'no'}; "
        f"compiler for torch.compile: {facts['compiler'] or 'none found (install gcc or clang)'}"
    )
    for name, remedy in facts["missing"].items():
        print(f"missing, optional: {name}: {remedy}")
    if not facts["cache_writable"]:
        print(f"{facts['cache']} cannot be written: name another folder by REDRAFT_CACHE")
        return None
    print("ready" if facts["text_source"] else "no standard library source here: give --data to train and demo")
    return None


def _machine() -> dict[str, Any]:
    from redraft.errors import UserError
    from redraft.text.sources.corpus import open_source

    try:
        text = open_source("stdlib").identity() is not None
    except UserError:
        text = False
    cache = default_cache()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cache": str(cache),
        "cache_writable": os.access(existing, os.W_OK),
        "disk_free_bytes": shutil.disk_usage(existing).free,
        "text_source": text,
        "compiler": shutil.which("gcc") or shutil.which("clang"),
    }


def _torch() -> dict[str, Any]:
    import torch

    from redraft.network.device import pick_device
    from redraft.network.sizes import from_size
    from redraft.training.precision import seconds_of_product

    shape, device = from_size("19M", "dit", 257), pick_device("auto")
    flops = 2 * 1024 * 4 * shape.width**2
    return {
        "torch": torch.__version__,
        "device": str(device),
        "float32_flops_per_second": flops / seconds_of_product(shape, "float32", device),
        "bfloat16_flops_per_second": flops / seconds_of_product(shape, "bfloat16", device),
        "linear_cross_entropy": "linear_cross_entropy" in dir(torch.nn.functional),
    }


def _missing() -> dict[str, str]:
    absent = {m: why for m, why in OPTIONAL.items() if importlib.util.find_spec(m) is None}
    return {module: f"{purpose}; pip install 'redraft[{extra}]'" for module, (purpose, extra) in absent.items()}
