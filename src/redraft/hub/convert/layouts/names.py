"""Tensor names: prefixes added by wrappers, and entries of a checkpoint that are not weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from redraft.errors import UserError
from redraft.hub.lazy_tensor import LazyTensor

# torch.compile, DDP, Lightning's strategies, FSDP; each may stand anywhere in a name.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
LEADING = ("module.",)
# What is no weight: buffers that are computed anew, metrics, the noise schedule, the teacher of a distillation.
STRAY = re.compile(
    r"teacher.*|noise\..*|(.*\.)?rotary_emb\..*|(.*\.)?(inv_freq|cos_cached|sin_cached)|(.*\.)?sampling_eps_(min|max)"
    r"|(.*[._])?metrics?\..*|(.*\.)?mask_index|(.*\.)?logit_bias"
)
# What a layout is known by: its embedding and something that only it has.
MARKS = {
    "dit": ("vocab_embed.embedding", "output_layer.norm_final.weight"),
    "smdm": ("transformer.wte.weight", "transformer.h.0.attn.attn.weight"),
    "llada": ("transformer.wte.weight", "transformer.blocks.0.q_proj.weight"),
    "causal": ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight"),
    "gpt2": ("wte.weight", "h.0.attn.c_attn.weight"),
}


def unwrapped(path: Path, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors without what wrappers put into their names, in their order."""
    out: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        plain = WRAPPERS.sub("", name)
        for prefix in LEADING:
            while plain.startswith(prefix):
                plain = plain[len(prefix) :]
        if plain in out:
            raise UserError(f"{path} holds {plain} twice, once as {name}")
        out[plain] = tensor
    return out


def plain_names(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """What DiffuLLaMA's class calls by names of its own (`denoise_model`) under Llama's."""
    if not any(name.startswith("denoise_model.layers.") for name in tensors):
        return tensors
    return {name.removeprefix("denoise_model."): tensor for name, tensor in tensors.items()}


def recognised(path: Path, names: Iterable[str]) -> tuple[str, str]:
    """(layout, prefix) of a checkpoint with tensors of these names."""
    names = list(names)
    for layout, (first, *others) in MARKS.items():
        prefixes = [name.removesuffix(first) for name in names if name == first or name.endswith(f".{first}")]
        known = [p for p in prefixes if not p.startswith("teacher") and all(f"{p}{other}" in names for other in others)]
        if known:
            return layout, min(known, key=len)
    few = ", ".join(names[:4])
    raise UserError(
        f"{path} is of no format that is known: its tensors are called {few or 'nothing'}. "
        f"Known: dit-lightning, dit-hf, gidd, smdm, llada, llama, mistral, qwen2, qwen3, gpt2, dream, diffullama, sdar"
    )


def belonging(tensors: dict[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """The weights, without the prefix of their network; what stands elsewhere keeps its name, and strays are left out."""
    out = {}
    for name, tensor in tensors.items():
        inner = name.removeprefix(prefix)
        if not STRAY.fullmatch(name) and not STRAY.fullmatch(inner):
            out[inner] = tensor
    return out


def numbered(names: Iterable[str], before: str) -> int:
    """How many blocks there are: one more than the greatest number after `before`."""
    found = (re.match(rf"{re.escape(before)}(\d+)\.", name) for name in names)
    return 1 + max((int(m[1]) for m in found if m and len(m[1]) < 6), default=-1)
