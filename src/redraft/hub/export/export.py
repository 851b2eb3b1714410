"""Exports: a `transformers` folder, a stock Llama folder, a GGUF file, or our own folder, written whole or not at all.

transformers   every family; the code in transformers_code/ goes along, so redraft is not needed to read it
llama          family ar on the llama block, as LlamaForCausalLM
gguf           the same, one file for llama.cpp and its kin
native         config.json, weights and tokenizer without the rest of a run
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError, unknown
from redraft.families.ar import SPARE
from redraft.families.base import PROCESSES, Family, exported_process
from redraft.files import disk, make_folder, write_json, write_text
from redraft.hub.export.card import card
from redraft.hub.export.tokenizer_json import byte_level
from redraft.hub.export.tokenizer_json import exported as tokenizer_files
from redraft.hub.folder import CONFIG, ModelConfig, save_model
from redraft.hub.model import Model, load
from redraft.hub.shards import write_weights
from redraft.network.sizes import Shape
from redraft.noise.schedules import SCHEDULES, Schedule
from redraft.registry import FAMILIES
from redraft.text.tokenizers.tokenizer import Bytes

CODE = ("configuration_redraft.py", "modeling_redraft.py", "network_redraft.py", "sampling_redraft.py")


def export(source: str | Path | Model, target: str, into: str | Path) -> Path:
    """Write a model, or that in `source` (a folder or a hub name), as a folder of the kind `target`. Returns the folder.

    `UserError` where the family or block cannot become that, naming what can, and where `into` is not empty.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    model, into = source if isinstance(source, Model) else load(source, "cpu"), Path(into)
    if why := refusal(model, target):
        fitting = [name for name in TARGETS if refusal(model, name) is None]
        what = "it" if isinstance(source, Model) else source
        raise UserError(f"{what} cannot be exported to {target}: {why}. Try: {', '.join(fitting)}.")
    with whole_folder(into) as folder:
        TARGETS[target](model, folder)
        write_text(folder / "README.md", card(model, target))
    return into


def refusal(model: Model, target: str) -> str | None:
    """Why the model cannot become that, in a few words; None when it can."""
    if target == "transformers":
        return _no_code(model) or _no_process(model.family)
    if target in ("llama", "gguf"):
        if exported_process(model.family) != "left_to_right":
            return f"family {model.family.name!r} does not write left to right"
        if model.network.shape.block != "llama":
            return f"its blocks are {model.network.shape.block!r}, not 'llama'"
        if grown := _grown(model.network.shape) or ("" if _spare_bos(model.family) else "family.bos"):
            return f"it does not write {grown}"
    return None


def _no_code(model: Model) -> str | None:
    """Why the code that goes along cannot be the network."""
    if model.network.shape.clock is not None:
        return "the code that goes along does not know the clock of converted GIDD"
    grown = _grown(model.network.shape) or ("" if _spare_bos(model.family) else "family.bos")
    grown = grown or ("family.shift" if getattr(model.family, "shift", False) else "")
    return f"the code that goes along does not know {grown}" if grown else None


def _spare_bos(family: Family) -> bool:
    """Whether nothing but the spare id stands before a text."""
    return getattr(family, "bos", SPARE) == SPARE


def _grown(shape: Shape) -> str:
    """What the network has that versions 0.1 and 0.2 did not know, in a few words; "" where there is nothing."""
    return "block 'gpt2'" if shape.block == "gpt2" else " and ".join(f"network.{name}" for name in shape.grown)


def _no_process(family: Family) -> str | None:
    """Why the code that goes along cannot write as the family does."""
    if exported_process(family) not in PROCESSES:
        return f"the code that goes along has no sampler that family {family.name!r} states as its own"
    schedule = getattr(family, "schedule", None)
    if "schedule" in PROCESSES[exported_process(family)] and _schedule_name(schedule) is None:
        return f"the code that goes along knows the schedules {', '.join(SCHEDULES)}, not {schedule}"
    return None


def to_native(model: Model, folder: Path) -> None:
    """Our own folder, as a run leaves it; bytes get a tokenizer.json too, for other programs."""
    config = ModelConfig(
        model.family.name, _options(model), model.network.shape, model.length, model.tokenizer.fingerprint, model.record
    )
    save_model(folder, config, model.network, model.tokenizer)
    if isinstance(model.tokenizer, Bytes):
        write_json(folder / "tokenizer.json", byte_level())


def to_transformers(model: Model, folder: Path) -> None:
    """RedraftForCausalLM or RedraftForMaskedLM, with its code."""
    for name in CODE:
        write_text(folder / name, (resources.files("redraft.hub.export.transformers_code") / name).read_text("utf-8"))
    _save_tokenizer(model, folder)
    write_weights(folder, {_trunk_name(name): tensor for name, tensor in model.network.named_parameters()})
    if model.family.spare == "bos":
        write_json(folder / "generation_config.json", _generation(model))
    write_json(folder / CONFIG, _redraft_config(model))


def to_llama(model: Model, folder: Path) -> None:
    """A stock LlamaForCausalLM: reads BOS (the spare id V), then text."""
    _save_tokenizer(model, folder)
    write_weights(folder, llama_tensors(model.network.state_dict(), model.network.shape))
    write_json(folder / "generation_config.json", _generation(model) | {"suppress_tokens": [model.family.vocab]})
    write_json(folder / CONFIG, llama_config(model))


def to_gguf(model: Model, folder: Path) -> None:
    """model.gguf, float32."""
    from redraft.hub.export.gguf import write_gguf

    write_gguf(folder / "model.gguf", model, llama_tensors(model.network.state_dict(), model.network.shape))


TARGETS: dict[str, Callable[[Model, Path], None]] = {
    "transformers": to_transformers,
    "llama": to_llama,
    "gguf": to_gguf,
    "native": to_native,
}


def llama_tensors(tensors: dict[str, Tensor], shape: Shape) -> dict[str, Tensor]:
    """Our tensors under Llama's names. RoPE pairs the halves of a head in both, so nothing is turned.

    Llama's head has a row for every embedding, and no bias that could rule out the spare id. That row is the mean of the
    others: the spare id's logit is then the mean logit, so its probability is at most 1 / (V + 1) whatever the network says,
    and log p of text differs by at most log(1 + 1 / V). The logits of the V text ids are ours.
    """
    head = tensors["output.weight"]
    out = {
        "model.embed_tokens.weight": tensors["embedding"],
        "model.norm.weight": tensors["norm.weight"],
        "lm_head.weight": torch.cat([head, head.mean(0, keepdim=True)]),
    }
    for layer in range(shape.depth):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        qkv = tensors[f"{ours}.qkv.weight"].chunk(3)
        out |= {f"{theirs}.self_attn.{part}_proj.weight": w for part, w in zip("qkv", qkv, strict=True)}
        out[f"{theirs}.self_attn.o_proj.weight"] = tensors[f"{ours}.out.weight"]
        out |= {f"{theirs}.mlp.{p}_proj.weight": tensors[f"{ours}.mlp.{p}.weight"] for p in ("gate", "up", "down")}
        out[f"{theirs}.input_layernorm.weight"] = tensors[f"{ours}.norm1.weight"]
        out[f"{theirs}.post_attention_layernorm.weight"] = tensors[f"{ours}.norm2.weight"]
    return out


def llama_config(model: Model) -> dict[str, Any]:
    shape = model.network.shape
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **_sizes(model),
        "num_key_value_heads": shape.heads,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.theta,
        "attention_bias": False,
        "mlp_bias": False,
    }


def _redraft_config(model: Model) -> dict[str, Any]:
    causal, shape = model.family.spare == "bos", model.network.shape
    name = "RedraftForCausalLM" if causal else "RedraftForMaskedLM"
    heads = ("AutoModel", "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM")
    return {
        "model_type": "redraft_lm",
        "architectures": [name],
        "auto_map": {
            "AutoConfig": "configuration_redraft.RedraftConfig",
            **dict.fromkeys(heads, f"modeling_redraft.{name}"),
        },
        "family": model.family.name,
        "family_options": _options(model),
        "process": _process(model.family),
        "block": shape.block,
        "cond_size": shape.cond if shape.adaln else 0,
        "rotary_base": shape.theta,
        **_sizes(model),
    }


def _sizes(model: Model) -> dict[str, Any]:
    """What both kinds of config.json say alike. A row of a left-to-right model has BOS before its text."""
    shape, causal = model.network.shape, model.family.spare == "bos"
    spare: dict[str, Any] = {}
    if model.family.spare:
        spare["bos_token_id" if causal else "mask_token_id"] = shape.vocab
    return {
        "vocab_size": shape.vocab + 1,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": model.length + causal,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "eos_token_id": model.tokenizer.eos,
        "pad_token_id": model.tokenizer.eos,
        **spare,
    }


def _generation(model: Model) -> dict[str, Any]:
    """Draws from the model itself: no top-k, which the library would add."""
    ids = {"bos_token_id": model.family.vocab, "eos_token_id": model.tokenizer.eos, "pad_token_id": model.tokenizer.eos}
    return {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, **ids}


def _options(model: Model) -> dict[str, Any]:
    """All settings of the family, as config.json can hold them: a schedule goes by its name."""
    return _settings(model.family, FAMILIES[model.family.name].options)


def _process(family: Family) -> dict[str, Any]:
    """What the exported code is told of how the family writes."""
    kind = exported_process(family)
    return {"kind": kind, "clocked": family.clocked, **_settings(family, PROCESSES[kind])}


def _settings(family: Family, keys: Iterable[str]) -> dict[str, Any]:
    settings = {key: getattr(family, key) for key in keys}
    return {key: _schedule_name(value) if isinstance(value, Schedule) else value for key, value in settings.items()}


def _schedule_name(schedule: Any) -> str | None:
    """Equal settings too: a name stands for the schedule as it is by default."""
    return next((name for name, kind in SCHEDULES.items() if kind() == schedule), None)


def _trunk_name(name: str) -> str:
    """Our name of a tensor -> the exported one."""
    return name if name.startswith("output.") else {"embedding": "model.embedding.weight"}.get(name, f"model.{name}")


def _save_tokenizer(model: Model, folder: Path) -> None:
    """tokenizer.json with its settings; a sentencepiece model as it is, which the card says."""
    files = tokenizer_files(model.tokenizer, model.family.spare == "bos", model.length)
    if not files:
        model.tokenizer.save(folder)
    for name, table in files.items():
        write_json(folder / name, table)


@contextmanager
def whole_folder(into: Path) -> Iterator[Path]:
    """A folder to fill beside `into`, which takes its name when it is done. `UserError` where something is there already."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UserError(f"{into} is not empty: give a new folder with --into")
    make_folder(into.parent)
    aside = into.with_name(f"{into.name}.tmp-{os.getpid()}")
    with disk(into.parent):
        try:
            try:
                aside.mkdir()
            except FileNotFoundError:  # such places as /proc take no folders, and say so oddly
                raise UserError(f"cannot write in {into.parent}: give another folder with --into") from None
            yield aside
            if into.is_dir():
                into.rmdir()
            aside.rename(into)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
