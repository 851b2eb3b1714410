"""A foreign checkpoint is the same function here as in its own code, in float64; what is not whole or known is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import redraft
from redraft.errors import UserError
from redraft.families.ar import AR
from redraft.families.gidd import GIDD
from redraft.hub import shards
from redraft.hub.convert.convert import Converted, convert
from redraft.hub.convert.layouts.plan import Choices
from redraft.hub.model import Model
from redraft.types import Attention, View
from tests.hub import foreign
from tests.hub.foreign import Weights
from tests.rounding import CLOSE, in_float64, logits_apart

BYTES, L, HEADS = 257, 9, 2
MODEL = {"n_heads": HEADS, "length": 16, "hidden_size": 32}


def ids(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, rows, (L,), generator=torch.Generator().manual_seed(seed))


def logits(model: Model, tokens: Tensor, sigma: float | None = None, causal: bool = False) -> Tensor:
    """Ours, of one row, straight from the network."""
    view = View(
        tokens[None], torch.arange(len(tokens))[None], Attention.CAUSAL if causal else Attention.FULL,
        None if sigma is None else torch.tensor([[sigma]], dtype=torch.float64),
    )  # fmt: skip
    with torch.no_grad():
        return model.network.head(model.network.trunk(view))[0]


def same(ours: Tensor, theirs: Tensor, columns: list[int] | slice = slice(None), off: float = CLOSE["atol"]) -> None:
    assert (ours[:, columns] - theirs[:, columns]).abs().max() <= off


def same_log_p(ours: Tensor, theirs: Tensor, off: float = CLOSE["atol"]) -> None:
    """Twice the error of the logits: a log-probability is a logit less the log of a sum of them."""
    assert (ours - theirs.log_softmax(-1)).abs().max() <= 2 * off


def rounded(model: Model, theirs: Tensor) -> float:
    """What logits may be off by where a conversion computes weights, which it writes in float32: no more than if all were."""
    return logits_apart(model.network.shape, L, float(theirs.abs().max()))


def causal_may() -> Tensor:
    return torch.ones(L, L, dtype=torch.bool).tril()


def lightning(tmp: Path, weights: Weights, algo: dict[str, Any], **how: Any) -> Path:
    return foreign.save_lightning(tmp / "a.ckpt", weights, foreign.hydra(algo, MODEL), **how)


def converted(tmp: Path, source: Path, tokenizer: str = "bytes", **how: Any) -> tuple[Converted, Model]:
    choices = Choices(**{k: how.pop(k) for k in list(how) if k in Choices.__dataclass_fields__})
    return convert(source, tmp / "out", tokenizer=tokenizer, choices=choices, **how), loaded(tmp / "out")


def loaded(folder: Path) -> Model:
    """A model's weights are read in float32; it computes in float64 from there."""
    model = redraft.load(folder, "cpu")
    in_float64(model.network)
    return model


# The DiT of the Lightning files and of the hub, in every family.

DIT: dict[str, tuple[dict[str, Any], int, float]] = {  # algo, cond, sigma
    "ar": ({"name": "ar", "causal_attention": True}, 0, 0.0),
    "ar with adaLN": ({"name": "ar", "adaLN": True, "causal_attention": True}, 24, 0.0),
    "mdlm": ({"name": "mdlm", "time_conditioning": False}, 24, 0.0),
    "duo": ({"name": "duo", "time_conditioning": True}, 24, 1.7),
    "duo_base": ({"name": "duo_base", "time_conditioning": True}, 24, 0.4),
    "sedd": ({"name": "sedd", "time_conditioning": True}, 24, 0.9),
    "d3pm": ({"name": "d3pm", "time_conditioning": True}, 24, 2.2),
    "esolm": ({"name": "esolm", "alpha_0": 0.25, "diffusion_attn_mode": "causal"}, 24, 0.0),
    "bd3lm": ({"name": "bd3lm", "block_size": 4}, 24, 0.0),
}


@pytest.mark.parametrize("name", DIT)
@pytest.mark.parametrize(
    "prefix", ["backbone.", "backbone._orig_mod.", "_forward_module.backbone.", "module.backbone."]
)
def test_lightning_checkpoint_is_the_same_function(name: str, prefix: str, tmp_path: Path) -> None:
    algo, cond, sigma = DIT[name]
    family = {"duo_base": "duo"}.get(name, name.split(maxsplit=1)[0])
    weights = foreign.dit_weights(rows=BYTES if family == "duo" else BYTES + 1, cond=cond)
    extra = {"sampling_eps_min": torch.zeros(()), "teacher.blocks.0.x": torch.ones(3), "noise.sigma_max": torch.ones(1),
             "valid_metrics.nll.weight": torch.ones(())}  # fmt: skip
    _, model = converted(tmp_path, lightning(tmp_path, weights, algo, prefix=prefix, extra=extra, buffers=8))
    assert model.family.name == family and model.length == 16 and model.network.shape.heads == HEADS
    tokens, clocked = ids(len(weights["vocab_embed.embedding"])), model.family.clocked
    causal = family == "ar"
    theirs = foreign.dit_logits(weights, tokens, HEADS, sigma, causal_may() if causal else None)
    same(logits(model, tokens, sigma if clocked else None, causal), theirs, slice(BYTES))


@pytest.mark.parametrize("raw", [False, True])
def test_moving_average_is_read_in_the_order_of_the_parameters(raw: bool, tmp_path: Path) -> None:
    weights, average = foreign.dit_weights(rows=BYTES + 1), foreign.dit_weights(rows=BYTES + 1, seed=1)
    source = lightning(tmp_path, weights, DIT["mdlm"][0], shadow=list(average.values()), buffers=8)
    done, model = converted(tmp_path, source, raw=raw)
    tokens = ids(BYTES + 1)
    same(logits(model, tokens), foreign.dit_logits(weights if raw else average, tokens, HEADS), slice(BYTES))
    assert raw or any("moving average" in note for note in done.plan.notes)


def test_average_with_the_noise_schedules_parameters_after_it(tmp_path: Path) -> None:
    weights, average = foreign.dit_weights(rows=BYTES + 1), foreign.dit_weights(rows=BYTES + 1, seed=1)
    source = lightning(tmp_path, weights, DIT["mdlm"][0], shadow=[*average.values(), torch.ones(1)])
    tokens = ids(BYTES + 1)
    same(logits(converted(tmp_path, source)[1], tokens), foreign.dit_logits(average, tokens, HEADS), slice(BYTES))


def test_average_that_is_too_short_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    shadow = list(weights.values())
    for broken, message in ((shadow[:-1], "EMA of"), ([shadow[1], shadow[0], *shadow[2:]], "does not fit")):
        source = lightning(tmp_path, weights, DIT["mdlm"][0], shadow=broken)
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "out", tokenizer="bytes")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("parts", [1, 3])
def test_hub_folder_is_the_same_function(kind: str, parts: int, tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    config = {"model_type": "mdlm", "hidden_dim": 32, "cond_dim": 24, "n_blocks": 2, "n_heads": HEADS, "model_length": 32,
              "vocab_size": BYTES + 1, "time_conditioning": False}  # fmt: skip
    named = {f"backbone.{k}": v for k, v in weights.items()}
    source = foreign.save_folder(tmp_path / "hub", named, config, shards=parts, kind=kind)
    done, model = converted(tmp_path, source)
    assert done.plan.format == "dit-hf" and model.length == 32
    same(logits(model, ids(BYTES + 1)), foreign.dit_logits(weights, ids(BYTES + 1), HEADS), slice(BYTES))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_what_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    """Half precision is kept on disk, and is exact in float32, in which networks are read."""
    weights = {k: v.to(dtype) for k, v in foreign.dit_weights(rows=BYTES + 1).items()}
    _, model = converted(tmp_path, lightning(tmp_path, weights, DIT["mdlm"][0], buffers=8))
    stored = load_file(tmp_path / "out" / "model.safetensors")["blocks.0.qkv.weight"].dtype
    assert stored == (torch.float32 if dtype == torch.float64 else dtype)
    assert all(p.dtype == torch.float32 for p in redraft.load(tmp_path / "out").network.parameters())
    same(logits(model, ids(BYTES + 1)), foreign.dit_logits(weights, ids(BYTES + 1), HEADS), slice(BYTES))


@pytest.mark.parametrize("family", ["mdlm", "ar"])
@pytest.mark.parametrize("mask", [3, 103])
def test_mask_in_the_middle_keeps_the_ids_of_the_tokenizer(mask: int, family: str, tmp_path: Path) -> None:
    """Logits stand in the columns of the tokenizer's ids, the spare row embeds as [MASK], and [MASK] is never predicted."""
    causal, cond = family == "ar", 0 if family == "ar" else 24
    weights = foreign.dit_weights(rows=BYTES, cond=cond)
    _, model = converted(tmp_path, lightning(tmp_path, weights, DIT[family][0], buffers=8), mask=mask, bos=7)
    assert model.family.vocab == model.tokenizer.size == BYTES
    tokens = ids(BYTES).index_fill(0, torch.tensor([2, 5]), mask)
    theirs = foreign.dit_logits(weights, tokens, HEADS, 0.0, causal_may() if causal else None)
    others = [i for i in range(BYTES) if i != mask]
    same(logits(model, tokens, causal=causal), theirs, others)
    begins = mask if family == "mdlm" else 7
    assert torch.equal(model.network.embedding[BYTES], model.network.embedding[begins])
    assert float(logits(model, tokens, causal=causal).softmax(-1)[:, mask].max()) == 0
    if not causal:
        foreign_ids, ours = model.log_p(tokens[None])[0], model.log_p(tokens.where(tokens != mask, BYTES)[None])[0]
        assert torch.equal(foreign_ids, ours)
        same_log_p(foreign_ids[[2, 5]][:, others], theirs[[2, 5]][:, others])


def test_ids_beyond_the_tokenizers_are_kept_and_no_text_becomes_them(tmp_path: Path) -> None:
    """Duo is uniform over a [PAD] too: K is the checkpoint's."""
    weights = foreign.dit_weights(rows=BYTES + 4)
    _, model = converted(tmp_path, lightning(tmp_path, weights, DIT["duo"][0], buffers=8))
    assert model.family.vocab == model.tokenizer.size == BYTES + 4
    text = "Grüße, plain text\n\x00 and <|unused_257|>"
    assert (
        model.tokenizer.encode(text).tolist() == list(text.encode()) and model.tokenizer.decode(text.encode()) == text
    )
    tokens = ids(BYTES + 4)
    same(logits(model, tokens, 1.1), foreign.dit_logits(weights, tokens, HEADS, 1.1))


def test_rows_that_the_configuration_does_not_count_are_padding(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=320)
    config = {"model_type": "mdlm", "n_heads": HEADS, "vocab_size": BYTES + 1, "time_conditioning": False}
    source = foreign.save_folder(tmp_path / "hub", weights, config)
    _, model = converted(tmp_path, source)
    assert model.family.vocab == BYTES
    same(logits(model, ids(BYTES)), foreign.dit_logits(weights, ids(BYTES), HEADS), slice(BYTES))


def test_uniform_model_that_holds_a_mask_draws_it_and_never_predicts_it(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    algo = {"name": "duo_base", "adaLN": True, "time_conditioning": True}
    done, model = converted(tmp_path, lightning(tmp_path, weights, algo, buffers=8))
    assert model.family.vocab == BYTES + 1 and done.plan.silent == (BYTES,)
    tokens = ids(BYTES + 1)
    same(logits(model, tokens, 0.5), foreign.dit_logits(weights, tokens, HEADS, 0.5), slice(BYTES))
    assert float(logits(model, tokens, 0.5).softmax(-1)[:, BYTES].max()) == 0


def test_network_without_its_clock_reads_none(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES)
    _, model = converted(tmp_path, lightning(tmp_path, weights, {"name": "duo", "time_conditioning": False}, buffers=8))
    theirs = foreign.dit_logits(weights, ids(BYTES), HEADS, 0.0)
    for sigma in (0.0, 0.3, 5.0):
        same(logits(model, ids(BYTES), sigma), theirs, off=rounded(model, theirs))


def test_rotary_base_is_read_off_its_buffer(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    source = lightning(tmp_path, weights, DIT["mdlm"][0],
                       extra={"backbone.rotary_emb.inv_freq": 5000.0 ** (-torch.arange(8) / 8)})  # fmt: skip
    _, model = converted(tmp_path, source)
    tokens = ids(BYTES + 1)
    same(logits(model, tokens), foreign.dit_logits(weights, tokens, HEADS, base=5000.0), slice(BYTES))


def test_gidd_reads_the_time_itself(tmp_path: Path) -> None:
    """Its network is given t; our family gives it -log alpha(t), which the network turns back."""
    weights = foreign.dit_weights(rows=384)
    config = {"model_type": "dit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS,
              "timestep_cond_dim": 24, "max_seq_len": 48, "p_uniform": 0.2, "vocab_size": BYTES + 1}  # fmt: skip
    source = foreign.save_folder(tmp_path / "gidd", {**weights, "logit_bias": torch.full((1, 1, 1), 0.25)}, config)
    done, model = converted(tmp_path, source)
    assert done.plan.format == "gidd" and model.length == 48 and model.family == GIDD(BYTES, uniform=0.2)
    tokens = ids(BYTES + 1)
    for t in (0.001, 0.3, 0.75, 0.98):
        theirs = foreign.dit_logits(weights, tokens, HEADS, t)[:, :BYTES] + 0.25
        same_log_p(model.log_p(tokens[None], t=t)[0], theirs, rounded(model, theirs))


# SMDM and LLaDA.


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("family", ["mdlm", "ar"])
def test_smdm_is_the_same_function(family: str, groups: int, tmp_path: Path) -> None:
    weights = foreign.smdm_weights(BYTES + (family == "mdlm"), BYTES, heads=4, groups=groups)
    save_file(weights, tmp_path / "x.safetensors")
    done, model = converted(tmp_path, tmp_path / "x.safetensors", heads=4)
    assert model.family.name == family and done.plan.format == "smdm" and model.length == 2048
    tokens = ids(BYTES + (family == "mdlm"))
    same(logits(model, tokens, causal=family == "ar"), foreign.smdm_logits(weights, tokens, 4, family == "ar"))


def test_smdm_training_checkpoint_and_the_papers_heads(tmp_path: Path) -> None:
    """`model` beside an optimizer in a .pth; the 6M network's four heads are in the table, not in the file."""
    weights = foreign.smdm_weights(BYTES + 1, BYTES, depth=6, width=256, heads=4, groups=4, hidden=1024)
    torch.save(
        {"model": weights, "optimizer": {"state": {}}, "iter_num": 5, "hparams": {"batch": 8}},
        tmp_path / "mdm-6M-1e18.pth",
    )
    done, model = converted(tmp_path, tmp_path / "mdm-6M-1e18.pth")
    assert model.network.shape.heads == 4 and any("table" in note for note in done.plan.notes)
    tokens = ids(BYTES + 1)
    same(logits(model, tokens), foreign.smdm_logits(weights, tokens, 4, False))


def test_unknown_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    save_file(foreign.smdm_weights(BYTES + 1, BYTES), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="give --heads"):
        convert(tmp_path / "x.safetensors", tmp_path / "out", tokenizer="bytes")


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_llada_is_the_same_function(groups: int, tied: bool, eps: float, tmp_path: Path) -> None:
    """Its [MASK] stays in the softmax, as in its own code: log p at [MASK] is theirs over all ids."""
    weights = foreign.llada_weights(BYTES, groups=groups, tied=tied)
    config = foreign.llada_config(weights, groups=groups, mask_token_id=100, rms_norm_eps=eps)
    source = foreign.save_folder(tmp_path / "llada", {k: v.bfloat16() for k, v in weights.items()}, config, shards=3)
    _, model = converted(tmp_path, source)
    assert model.length == 64 and model.network.shape.theta == 500000.0
    tokens = ids(BYTES).index_fill(0, torch.tensor([1, 6]), 100)
    theirs = foreign.llada_logits({k: v.bfloat16() for k, v in weights.items()}, tokens, config)
    off = CLOSE["atol"] if eps == 1e-5 else rounded(model, theirs)  # another epsilon is taken into the weights
    same(logits(model, tokens), theirs, off=off)
    same_log_p(model.log_p(tokens[None])[0, [1, 6]], theirs[[1, 6]], off)


@pytest.mark.parametrize(
    ("key", "value"), [("block_type", "sequential"), ("include_qkv_bias", True), ("clip_qkv", 8.0)]
)
def test_llada_of_another_kind_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    weights = foreign.llada_weights(BYTES)
    source = foreign.save_folder(
        tmp_path / "llada", weights, foreign.llada_config(weights, mask_token_id=100, **{key: value})
    )
    with pytest.raises(UserError, match=key):
        convert(source, tmp_path / "out", tokenizer="bytes")


# Strictness.


def spoiled(change: Callable[[Weights], Any]) -> Weights:
    weights = foreign.dit_weights(rows=BYTES + 1)
    change(weights)
    return weights


FAULTS: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "missing": (lambda w: w.pop("blocks.1.mlp.0.bias"), "lacks blocks.1.mlp.0.bias"),
    "extra": (lambda w: w.update({"blocks.1.gate.weight": torch.ones(2)}), "has blocks.1.gate.weight"),
    "misshaped": (
        lambda w: w.update({"blocks.1.norm2.weight": torch.ones(31)}),
        r"norm2.weight of shape \[31\], not \[32\]",
    ),
    "integers": (lambda w: w.update({"blocks.0.norm1.weight": torch.ones(32, dtype=torch.int64)}), "in int64"),
    "float8": (lambda w: w.update({"blocks.0.attn_out.weight": torch.ones(32, 32).to(torch.float8_e4m3fn)}), "float8"),
    "a hole": (lambda w: [w.pop(k) for k in list(w) if k.startswith("blocks.0.")], "lacks blocks.0.norm1.weight"),
    "not finite": (lambda w: w["blocks.1.mlp.2.weight"].fill_(float("nan")), "blocks.1.mlp.2.weight holds numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_named_and_nothing_is_written(fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    config = {"model_type": "mdlm", "n_heads": HEADS, "time_conditioning": False}
    source = foreign.save_folder(tmp_path / "hub", spoiled(change), config)
    with pytest.raises(UserError, match=message) as refused:
        convert(source, tmp_path / "out", tokenizer="bytes")
    assert "\n" not in str(refused.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hub"]


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    whole = lightning(tmp_path, weights, DIT["mdlm"][0]).read_bytes()
    save_file(weights, tmp_path / "whole.safetensors")
    tensors = (tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut"
    for data, suffix in ((whole, ".ckpt"), (tensors, ".safetensors")):
        for size in (0, 1, 7, 100, len(data) // 2, len(data) - 1):
            file = cut.with_suffix(suffix)
            file.write_bytes(data[:size])
            with pytest.raises(UserError, match="cut"):
                convert(file, tmp_path / "out", tokenizer="bytes", choices=Choices(family="mdlm", heads=HEADS))
    assert not (tmp_path / "out").exists()


def test_unknown_formats_are_refused_by_the_names_they_have(tmp_path: Path) -> None:
    save_file({"encoder.layer.0.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"encoder.layer.0.weight.*Known: dit-lightning"):
        convert(tmp_path / "x.safetensors", tmp_path / "out", tokenizer="bytes")
    save_file(foreign.smdm_weights(BYTES + 1, BYTES), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is not llada: the names of its tensors are those of smdm"):
        convert(tmp_path / "x.safetensors", tmp_path / "out", "llada", tokenizer="bytes")


def test_folder_in_use_and_wrong_tokenizer_are_refused(tmp_path: Path) -> None:
    source = lightning(tmp_path, foreign.dit_weights(rows=100), DIT["mdlm"][0], buffers=8)
    with pytest.raises(UserError, match="the checkpoint names 'gpt2'"):
        convert(source, tmp_path / "out")
    with pytest.raises(UserError, match="has 257 ids and the checkpoint"):
        convert(source, tmp_path / "out", tokenizer="bytes")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(UserError, match="is not empty"):
        convert(source, tmp_path / "out", tokenizer="bytes")


# Verification.


def golden(path: Path, weights: Weights, sigma: float = 0.0) -> Path:
    tokens = torch.stack([ids(BYTES + 1, seed) for seed in range(3)])
    theirs = torch.stack([foreign.dit_logits(weights, row, HEADS, sigma) for row in tokens])
    save_file({"tokens": tokens, "logits": theirs, "sigma": torch.full((3,), sigma)}, path)
    return path


def apart(stored: Path, folder: Path) -> float:
    """What log-probabilities in float32 may differ by: twice what logits do."""
    return 2 * rounded(redraft.load(folder, "cpu"), load_file(stored)["logits"])


def test_verified_conversion_says_how_near_it_is(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    source = lightning(tmp_path, weights, DIT["mdlm"][0], buffers=8)
    stored = golden(tmp_path / "g.safetensors", weights)
    done = convert(source, tmp_path / "out", tokenizer="bytes", golden=stored)
    assert done.difference is not None and done.difference < apart(stored, tmp_path / "out")


SWAPS = [
    ("blocks.0.norm1.weight", "blocks.0.norm2.weight"),
    ("blocks.0.attn_out.weight", "blocks.1.attn_out.weight"),
    ("blocks.0.mlp.2.bias", "blocks.1.mlp.2.bias"),
    ("blocks.0.adaLN_modulation.bias", "blocks.1.adaLN_modulation.bias"),
]


@pytest.mark.parametrize(("one", "other"), SWAPS)
def test_swapped_tensors_of_equal_shape_are_seen(one: str, other: str, tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    stored = golden(tmp_path / "g.safetensors", weights)
    source = lightning(tmp_path, {**weights, one: weights[other], other: weights[one]}, DIT["mdlm"][0], buffers=8)
    with pytest.raises(UserError, match="nothing was written"):
        convert(source, tmp_path / "out", tokenizer="bytes", golden=stored)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_verification_with_a_clock_and_of_eso_lm_in_an_order(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    source = lightning(tmp_path, weights, DIT["sedd"][0], buffers=8)
    stored = golden(tmp_path / "g.safetensors", weights, 1.3)
    done = convert(source, tmp_path / "sedd", tokenizer="bytes", golden=stored)
    assert done.difference is not None and done.difference < apart(stored, tmp_path / "sedd")
    source = lightning(tmp_path, weights, DIT["esolm"][0], buffers=8)
    tokens, order = ids(BYTES + 1), torch.randperm(L, generator=torch.Generator().manual_seed(4))
    shuffled = foreign.dit_logits(weights, tokens[order], HEADS, 0.0, causal_may(), places=order)
    save_file(
        {"tokens": tokens[None], "order": order[None], "logits": shuffled[order.argsort()][None].contiguous()}, stored
    )
    done = convert(source, tmp_path / "eso", tokenizer="bytes", golden=stored)
    assert done.difference is not None and done.difference < apart(stored, tmp_path / "eso")


def test_gidd_is_verified_at_its_own_time(tmp_path: Path) -> None:
    weights = foreign.dit_weights(rows=BYTES + 1)
    config = {
        "model_type": "dit",
        "p_uniform": 0.1,
        "hidden_size": 32,
        "num_attention_heads": HEADS,
        "vocab_size": BYTES + 1,
    }
    source = foreign.save_folder(tmp_path / "gidd", weights, config)
    stored = golden(tmp_path / "g.safetensors", weights, 0.6)
    done = convert(source, tmp_path / "out", tokenizer="bytes", golden=stored)
    assert done.difference is not None and done.difference < apart(stored, tmp_path / "out")


# What a converted model is good for.


@pytest.mark.parametrize("name", [*DIT, "gidd", "smdm", "llada"])
def test_converted_model_scores_and_samples(name: str, tmp_path: Path) -> None:
    _, model = converted(tmp_path, sample_of(name, tmp_path), heads=HEADS if name == "smdm" else None)
    (score,) = model.score("some text", draws=2)
    assert score.nats > 0 and score.tokens == 9
    texts = model.sample("ab", n=2, length=12, steps=4)
    assert len(texts) == 2


def sample_of(name: str, tmp: Path) -> Path:
    if name == "smdm":
        save_file(foreign.smdm_weights(BYTES + 1, BYTES), tmp / "x.safetensors")
        return tmp / "x.safetensors"
    if name == "llada":
        weights = foreign.llada_weights(BYTES)
        return foreign.save_folder(
            tmp / "llada", weights, foreign.llada_config(weights, mask_token_id=100, rope_theta=10000.0)
        )
    if name == "gidd":
        config = {"model_type": "dit", "p_uniform": 0.0, "hidden_size": 32, "num_attention_heads": HEADS}
        return foreign.save_folder(tmp / "gidd", foreign.dit_weights(rows=BYTES + 1), config)
    algo, cond, _ = DIT[name]
    rows = BYTES if algo["name"].startswith("duo") else BYTES + 1
    return lightning(tmp, foreign.dit_weights(rows=rows, cond=cond), algo, buffers=8)


def test_converted_ar_model_begins_with_the_foreign_beginning(tmp_path: Path) -> None:
    """log p of the first token is what theirs gives after its own BOS."""
    weights = foreign.dit_weights(rows=BYTES + 1, cond=0)
    _, model = converted(tmp_path, lightning(tmp_path, weights, DIT["ar"][0], buffers=8), bos=65)
    assert isinstance(model.family, AR)
    tokens = torch.cat([torch.tensor([65]), ids(256)[:-1]])
    theirs = foreign.dit_logits(weights, tokens, HEADS, 0.0, causal_may())[:, :BYTES]
    same_log_p(model.log_p(tokens[None, 1:])[0], theirs[1:])
    text = "a few words"
    (score,) = model.score(text)
    read = torch.cat([torch.tensor([65]), torch.as_tensor(model.tokenizer.encode(text))])
    may = torch.ones(len(read), len(read), dtype=torch.bool).tril()
    log_p = foreign.dit_logits(weights, read, HEADS, 0.0, may)[:, :BYTES].log_softmax(-1)
    assert score.nats == pytest.approx(-float(log_p[:-1].gather(1, read[1:, None]).sum()), rel=1e-9)


def test_conversion_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is read at once than a chunk of rows, whatever the tensor's size; shards come out whole."""
    from redraft.hub import lazy_tensor

    monkeypatch.setattr(lazy_tensor, "CHUNK", 1 << 14)
    monkeypatch.setattr(shards, "SHARD_BYTES", 100_000)
    seen: list[int] = []
    rows = lazy_tensor.LazyTensor.rows
    monkeypatch.setattr(
        lazy_tensor.LazyTensor,
        "rows",
        lambda self, a, b: seen.append((b - a) * 32 * 4) or rows(self, a, b),  # type: ignore[func-returns-value]
    )
    weights = foreign.smdm_weights(4001, 4000)
    save_file(weights, tmp_path / "x.safetensors")
    convert(tmp_path / "x.safetensors", tmp_path / "out", tokenizer="bytes", choices=Choices(heads=2))
    assert max(seen) <= 1 << 14
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    tokens = ids(4001)
    same(logits(loaded(tmp_path / "out"), tokens), foreign.smdm_logits(weights, tokens, 2, False))
