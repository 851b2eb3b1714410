"""llama.cpp, where its package `xllamacpp` is installed, computes what our network does from the GGUF files that we write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.hub.export.export import export
from redraft.network.sizes import Scaling, Shape
from tests.hub.test_export_stock import BYTES, saved
from tests.rounding import logits_apart

llama = pytest.importorskip("xllamacpp", reason="llama.cpp needs xllamacpp")
pytest.importorskip("gguf")

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"tied": True},
    "linear": {"scaling": Scaling("linear", 4.0)},
    "yarn": {"scaling": Scaling("yarn", 4.0, original=16, fast=8.0)},
    "llama3": {"scaling": Scaling("llama3", 8.0, original=32), "theta": 500000.0},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 24},
}
TEXT = "a quick fox jumps"  # with BOS as long as a row of `saved` may be


def opened(path: Path) -> Any:
    """Everything in float32, on one thread."""
    how = llama.CommonParams()
    how.model.path, how.n_ctx, how.n_parallel, how.warmup, how.cpuparams.n_threads = str(path), 256, 1, False, 1
    how.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    how.cache_type_k = how.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    return llama.Server(how)


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_the_likeliest_tokens_are_as_likely_there(name: str, tmp_path: Path) -> None:
    """Differences of log-probabilities, as its softmax has a row more. It has none for half a character: others follow."""
    model = saved(tmp_path / "run", "ar", Shape("llama", 2, 4, 64, 96, BYTES, 0, kv_heads=2, **SHAPES[name]))
    server = opened(export(tmp_path / "run", "gguf", tmp_path / "out") / "model.gguf")
    asked = {"max_tokens": 1, "temperature": 0.0, "logprobs": 8, "cache_prompt": False}
    for first in "abcdefghijklmnopqrstuvwxyz":
        said = server.handle_completions({"prompt": first + TEXT, **asked})["choices"][0]["logprobs"]
        if said is not None and said["content"][0]["top_logprobs"]:
            break
    theirs = {token["id"]: token["logprob"] for token in said["content"][0]["top_logprobs"]}
    read = model.family.shifted(torch.tensor([list((first + TEXT).encode())]))  # type: ignore[attr-defined]
    ours = model.network.head(model.network.trunk(model.family.view(read)))[0, -1]  # type: ignore[attr-defined]
    known = [i for i in theirs if i < BYTES]
    off = 4 * logits_apart(model.network.shape, read.shape[1], float(ours.abs().max()))  # both sides, of a difference
    apart = torch.tensor([theirs[i] for i in known]) - ours[known].float()
    assert len(known) >= 7 and float(apart.max() - apart.min()) < off
