"""Foreign checkpoints with random weights, and their networks written out from the reference documents alone.

Nothing here knows redraft's network: keys, shapes and formulas are those of the official code, as the documents tell them.
"""

from __future__ import annotations

import json
import math
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]


def norm_in(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turned(x: Tensor, places: Tensor, base: float) -> Tensor:
    """[..., L, D]: o1 = x1 cos - x2 sin, o2 = x1 sin + x2 cos, x1 and x2 the halves of a head."""
    half = x.shape[-1] // 2
    angle = places[:, None].to(x.dtype) * torch.tensor(
        [base ** (-2 * i / (2 * half)) for i in range(half)], dtype=x.dtype
    )
    x1, x2 = x[..., :half], x[..., half:]
    return torch.cat([x1 * angle.cos() - x2 * angle.sin(), x1 * angle.sin() + x2 * angle.cos()], -1)


def attended(q: Tensor, k: Tensor, v: Tensor, places: Tensor, base: float, may: Tensor) -> Tensor:
    """[h, L, D] each, with as many heads of keys as of queries -> [L, h D]."""
    q, k = turned(q, places, base), turned(k, places, base)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return (scores.masked_fill(~may, -math.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)


def everything(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool)


def dit_weights(
    depth: int = 2, width: int = 32, rows: int = 30, cond: int = 24, seed: int = 0, hidden: int | None = None
) -> Weights:
    """families.md 1.4, in the table's order; `cond` 0: the causal classes without adaLN."""
    g = torch.Generator().manual_seed(seed)
    hidden = hidden or 4 * width

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * (0.15 if len(shape) > 1 else 0.3)

    w: Weights = OrderedDict({"vocab_embed.embedding": draw(rows, width)})
    if cond:
        w |= {"sigma_map.mlp.0.weight": draw(cond, 256), "sigma_map.mlp.0.bias": draw(cond)}
        w |= {"sigma_map.mlp.2.weight": draw(cond, cond), "sigma_map.mlp.2.bias": draw(cond)}
    for i in range(depth):
        b = f"blocks.{i}."
        w |= {b + "norm1.weight": 1 + draw(width), b + "attn_qkv.weight": draw(3 * width, width)}
        w |= {b + "attn_out.weight": draw(width, width), b + "norm2.weight": 1 + draw(width)}
        w |= {b + "mlp.0.weight": draw(hidden, width), b + "mlp.0.bias": draw(hidden)}
        w |= {b + "mlp.2.weight": draw(width, hidden), b + "mlp.2.bias": draw(width)}
        if cond:
            w |= {b + "adaLN_modulation.weight": draw(6 * width, cond), b + "adaLN_modulation.bias": draw(6 * width)}
    w |= {"output_layer.norm_final.weight": 1 + draw(width), "output_layer.linear.weight": draw(rows, width)}
    w["output_layer.linear.bias"] = draw(rows)
    if cond:
        w |= {"output_layer.adaLN_modulation.weight": draw(2 * width, cond)}
        w |= {"output_layer.adaLN_modulation.bias": draw(2 * width)}
    return w


def dit_logits(
    w: Mapping[str, Tensor], ids: Tensor, heads: int, sigma: float = 0.0, may: Tensor | None = None,
    places: Tensor | None = None, base: float = 10000.0,
) -> Tensor:  # fmt: skip
    """families.md 1.1, one row of ids [L] -> [L, rows], in float64. `may` [L, L]: who looks at whom; all if left out."""
    w = {k: v.double() for k, v in w.items()}
    h = w["vocab_embed.embedding"][ids]
    length, width = h.shape
    may = everything(length) if may is None else may
    places = torch.arange(length) if places is None else places
    adaln = "sigma_map.mlp.0.weight" in w
    if adaln:
        f = torch.tensor([math.exp(-math.log(10000) * i / 128) for i in range(128)], dtype=torch.float64)
        waves = torch.cat([torch.cos(sigma * f), torch.sin(sigma * f)])
        c = silu(w["sigma_map.mlp.0.weight"] @ waves + w["sigma_map.mlp.0.bias"])
        c = silu(w["sigma_map.mlp.2.weight"] @ c + w["sigma_map.mlp.2.bias"])
    for i in range(sum(1 for k in w if k.endswith("attn_qkv.weight"))):
        b = f"blocks.{i}."
        sh1 = sc1 = sh2 = sc2 = torch.zeros(width, dtype=torch.float64)
        g1 = g2 = torch.ones(width, dtype=torch.float64)
        if adaln:
            sh1, sc1, g1, sh2, sc2, g2 = (w[b + "adaLN_modulation.weight"] @ c + w[b + "adaLN_modulation.bias"]).chunk(
                6
            )
        u = norm_in(h) * w[b + "norm1.weight"] * (1 + sc1) + sh1
        qkv = (u @ w[b + "attn_qkv.weight"].T).view(length, 3, heads, width // heads).permute(1, 2, 0, 3)
        h = h + g1 * (attended(*qkv, places, base, may) @ w[b + "attn_out.weight"].T)
        u = norm_in(h) * w[b + "norm2.weight"] * (1 + sc2) + sh2
        inner = gelu_tanh(u @ w[b + "mlp.0.weight"].T + w[b + "mlp.0.bias"])
        h = h + g2 * (inner @ w[b + "mlp.2.weight"].T + w[b + "mlp.2.bias"])
    u = norm_in(h) * w["output_layer.norm_final.weight"]
    if adaln:
        sh, sc = (w["output_layer.adaLN_modulation.weight"] @ c + w["output_layer.adaLN_modulation.bias"]).chunk(2)
        u = u * (1 + sc) + sh
    return u @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def smdm_weights(rows: int, head: int, depth: int = 2, width: int = 32, heads: int = 2, groups: int = 2, hidden: int = 48,
                 seed: int = 0) -> Weights:  # fmt: skip
    """smdm.md 1.3."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.2

    fused = (heads + 2 * groups) * (width // heads)
    w: Weights = {"lm_head.weight": draw(head, width), "transformer.wte.weight": draw(rows, width)}
    for i in range(depth):
        b = f"transformer.h.{i}."
        w |= {b + "norm_1.weight": 1 + draw(width), b + "attn.attn.weight": draw(fused, width)}
        w |= {b + "attn.proj.weight": draw(width, width), b + "norm_2.weight": 1 + draw(width)}
        w |= {b + "mlp.swiglu.w1.weight": draw(hidden, width), b + "mlp.swiglu.w2.weight": draw(hidden, width)}
        w[b + "mlp.swiglu.w3.weight"] = draw(width, hidden)
    w["transformer.ln_f.weight"] = 1 + draw(width)
    return w


def rms(x: Tensor, g: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * g


def smdm_logits(w: Mapping[str, Tensor], ids: Tensor, heads: int, causal: bool) -> Tensor:
    """smdm.md 1.1: fused qkv viewed as [G, q per group + 2, hs, d]."""
    w = {k: v.double() for k, v in w.items()}
    h = w["transformer.wte.weight"][ids]
    length, width = h.shape
    size = width // heads
    may = everything(length).tril() if causal else everything(length)
    for i in range(sum(1 for k in w if k.endswith("attn.attn.weight"))):
        b = f"transformer.h.{i}."
        fused = w[b + "attn.attn.weight"]
        groups = (fused.shape[0] // size - heads) // 2
        view = fused.view(groups, heads // groups + 2, size, width)
        n = rms(h, w[b + "norm_1.weight"])
        q = torch.stack([n @ view[x, j].T for x in range(groups) for j in range(heads // groups)])
        k, v = (
            torch.stack([n @ view[x, at].T for x in range(groups) for _ in range(heads // groups)]) for at in (-2, -1)
        )
        h = h + attended(q, k, v, torch.arange(length), 10000.0, may) @ w[b + "attn.proj.weight"].T
        n = rms(h, w[b + "norm_2.weight"])
        inner = silu(n @ w[b + "mlp.swiglu.w1.weight"].T) * (n @ w[b + "mlp.swiglu.w2.weight"].T)
        h = h + inner @ w[b + "mlp.swiglu.w3.weight"].T
    return rms(h, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T


def llada_weights(rows: int, depth: int = 2, width: int = 32, heads: int = 4, groups: int = 4, hidden: int = 48,
                  tied: bool = False, seed: int = 0) -> Weights:  # fmt: skip
    """peers.md 5.1."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g) * 0.2

    keys = groups * (width // heads)
    w: Weights = {"model.transformer.wte.weight": draw(rows, width)}
    for i in range(depth):
        b = f"model.transformer.blocks.{i}."
        w |= {b + "attn_norm.weight": 1 + draw(width), b + "ff_norm.weight": 1 + draw(width)}
        w |= {b + "q_proj.weight": draw(width, width), b + "k_proj.weight": draw(keys, width)}
        w |= {b + "v_proj.weight": draw(keys, width), b + "attn_out.weight": draw(width, width)}
        w |= {b + "ff_proj.weight": draw(hidden, width), b + "up_proj.weight": draw(hidden, width)}
        w[b + "ff_out.weight"] = draw(width, hidden)
    w["model.transformer.ln_f.weight"] = 1 + draw(width)
    return w if tied else w | {"model.transformer.ff_out.weight": draw(rows, width)}


def llada_logits(w: Mapping[str, Tensor], ids: Tensor, config: Mapping[str, Any]) -> Tensor:
    """OLMo's Llama block with attention both ways."""
    w = {k.removeprefix("model."): v.double() for k, v in w.items()}
    heads, groups, eps = config["n_heads"], config["n_kv_heads"], config["rms_norm_eps"]
    h = w["transformer.wte.weight"][ids]
    length, width = h.shape
    size = width // heads
    for i in range(config["n_layers"]):
        b = f"transformer.blocks.{i}."
        n = rms(h, w[b + "attn_norm.weight"], eps)
        q = (n @ w[b + "q_proj.weight"].T).view(length, heads, size).transpose(0, 1)
        k, v = (
            (n @ w[b + f"{x}_proj.weight"].T)
            .view(length, groups, size)
            .transpose(0, 1)
            .repeat_interleave(heads // groups, 0)
            for x in "kv"
        )
        mixed = attended(q, k, v, torch.arange(length), config["rope_theta"], everything(length))
        h = h + mixed @ w[b + "attn_out.weight"].T
        n = rms(h, w[b + "ff_norm.weight"], eps)
        h = h + (silu(n @ w[b + "ff_proj.weight"].T) * (n @ w[b + "up_proj.weight"].T)) @ w[b + "ff_out.weight"].T
    head = w["transformer.wte.weight" if config["weight_tying"] else "transformer.ff_out.weight"]
    return rms(h, w["transformer.ln_f.weight"], eps) @ head.T


def llada_config(w: Weights, heads: int = 4, groups: int = 4, **over: Any) -> dict[str, Any]:
    rows, width = w["model.transformer.wte.weight"].shape
    return {
        "model_type": "llada", "d_model": width, "n_layers": 2, "n_heads": heads, "n_kv_heads": groups, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "vocab_size": rows, "embedding_size": rows, "max_sequence_length": 64, "block_type": "llama",
        "weight_tying": "model.transformer.ff_out.weight" not in w, "include_bias": False, **over,
    }  # fmt: skip


# Containers.


@contextmanager
def strangers() -> Iterator[dict[str, type]]:
    """Classes of modules that the reader does not have: OmegaConf's nodes and a tokenizer, as Lightning pickles them."""
    wanted = {
        "omegaconf.dictconfig": "DictConfig", "omegaconf.nodes": "AnyNode", "omegaconf.base": "ContainerMetadata",
        "dataloader": "TinyLLamaTokenizer",
    }  # fmt: skip
    before = {name: sys.modules.get(name) for name in ("omegaconf", *wanted)}
    made = {}
    sys.modules["omegaconf"] = ModuleType("omegaconf")
    for module, name in wanted.items():
        sys.modules[module] = ModuleType(module)
        made[name] = type(name, (), {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, made[name])
    try:
        yield made
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


def as_omegaconf(value: Any, classes: dict[str, type]) -> Any:
    node = classes["DictConfig" if isinstance(value, dict) else "AnyNode"]()
    node._metadata = classes["ContainerMetadata"]()
    node._metadata.ref_type, node._metadata.object_type = Any, dict
    node._parent = None
    if isinstance(value, dict):
        node._content = {key: as_omegaconf(inner, classes) for key, inner in value.items()}
    else:
        node._val = value
    return node


def hydra(algo: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "algo": dict(algo),
        "model": dict(model),
        "data": {"tokenizer_name_or_path": "gpt2"},
        "noise": {"type": "log-linear"},
    }


def save_lightning(
    path: Path, weights: Mapping[str, Tensor], config: dict[str, Any], *, prefix: str = "backbone.", version: str = "2.2.1",
    shadow: list[Tensor] | None = None, extra: Mapping[str, Tensor] | None = None, buffers: int = 0,
) -> Path:  # fmt: skip
    """families.md 1.4: state_dict, ema, and hyper_parameters with a pickled config and tokenizer."""
    state: dict[str, Tensor] = OrderedDict()
    for name, tensor in weights.items():
        state[prefix + name] = tensor
        if name.startswith("vocab_embed") and buffers:
            state[f"{prefix}rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(buffers) / buffers)
    state |= extra or {}
    with strangers() as classes:
        tokenizer = classes["TinyLLamaTokenizer"]()
        tokenizer.vocabulary = {"a": 0, "b": 1}  # type: ignore[attr-defined]
        torch.save(
            {
                "epoch": 0, "global_step": 10, "pytorch-lightning_version": version, "state_dict": state,
                "loops": {"fit_loop": {}}, "callbacks": {},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}], "lr_schedulers": [],
                "hyper_parameters": {"config": as_omegaconf(config, classes), "tokenizer": tokenizer},
                "ema": None if shadow is None else {"decay": 0.9999, "num_updates": 10, "shadow_params": shadow},
            },
            path,
        )  # fmt: skip
    return path


def save_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], *, shards: int = 1,
                kind: str = "safetensors") -> Path:  # fmt: skip
    """A folder of transformers, in one file or in shards with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    names = sorted(weights)
    parts = [names[i::shards] for i in range(shards)]
    where = {}
    for i, part in enumerate(parts):
        file = f"{stem}{suffix}" if shards == 1 else f"{stem}-{i + 1:05}-of-{shards:05}{suffix}"
        held = {name: weights[name].clone() for name in part}
        save_file(held, folder / file) if kind == "safetensors" else torch.save(held, folder / file)
        where |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
