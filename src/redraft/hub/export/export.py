"""Exports: a `transformers` folder, a stock Llama folder, a GGUF file, or our own folder, written whole or not at all.

transformers   every family; the code in transformers_code/ goes along, so redraft is not needed to read it
hf             a layout of others (stock.py): Llama, Qwen2, Qwen3, GPT-2 of `transformers`; LLaDA's, Dream's
llama          the same, where that is Llama
gguf           the same in one file for llama.cpp and its kin
native         config.json, weights and tokenizer without the rest of a run
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from redraft.errors import UserError, unknown
from redraft.families.ar import AR, SPARE
from redraft.families.base import PROCESSES, Family, exported_process
from redraft.files import whole_folder, write_json, write_text
from redraft.hub.export.card import card
from redraft.hub.export.stock import Stock, stock_config, stock_of, stock_tensors
from redraft.hub.export.tokenizer_json import byte_level, own_tokenizer_files
from redraft.hub.export.tokenizer_json import exported as tokenizer_files
from redraft.hub.folder import CONFIG, ModelConfig, save_model
from redraft.hub.model import Model, load
from redraft.hub.shards import write_weights
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
    if target in ("hf", "llama", "gguf"):
        return _no_layout(model, target)
    return None


def _no_layout(model: Model, target: str) -> str | None:
    """Why no other program has a layout for it."""
    if target == "llama" and exported_process(model.family) != "left_to_right":
        return f"family {model.family.name!r} does not write left to right"
    stock = stock_of(model)
    if isinstance(stock, str):
        return stock
    if target == "llama" and stock.layout != "llama":
        return f"its layout is {stock.layout}"
    return "GGUF is written of llama blocks" if target == "gguf" and stock.layout == "gpt2" else None


def _no_code(model: Model) -> str | None:
    """Why the code that goes along cannot be the network."""
    if model.network.shape.clock is not None:
        return "the code that goes along does not know the clock of converted GIDD"
    shape, family = model.network.shape, model.family
    grown = "block 'gpt2'" if shape.block == "gpt2" else " and ".join(f"network.{name}" for name in shape.grown)
    grown = grown or ("" if getattr(family, "bos", SPARE) == SPARE else "family.bos")
    grown = grown or ("family.shift" if getattr(family, "shift", False) else "")
    return f"the code that goes along does not know {grown}" if grown else None


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


def to_hf(model: Model, folder: Path) -> None:
    """A folder in a layout of others: no code goes along."""
    stock = _stock(model)
    if stock.spare:
        _save_tokenizer(model, folder)
    else:
        _save_own_tokenizer(model, stock, folder)
    write_weights(folder, stock_tensors(model, stock))
    if isinstance(model.family, AR):
        silent = {"suppress_tokens": [model.family.vocab]} if stock.spare else {}
        write_json(folder / "generation_config.json", _generation(model) | {"bos_token_id": stock.special} | silent)
    write_json(folder / CONFIG, stock_config(model, stock))


def to_gguf(model: Model, folder: Path) -> None:
    """model.gguf, float32."""
    from redraft.hub.export.gguf import write_gguf

    write_gguf(folder / "model.gguf", model, _stock(model))


def _stock(model: Model) -> Stock:
    stock = stock_of(model)
    assert isinstance(stock, Stock), "refused before"
    return stock


def _save_own_tokenizer(model: Model, stock: Stock, folder: Path) -> None:
    """The tokenizer with its ids alone; an AR model's BOS, where it is one of them, is put before a text."""
    causal = isinstance(model.family, AR)
    files = own_tokenizer_files(model.tokenizer, stock.special, causal, model.length)
    if not files:
        model.tokenizer.save(folder)
        files = {"tokenizer_config.json": {"add_bos_token": causal and stock.special is not None}}
    for name, table in files.items():
        write_json(folder / name, table)


TARGETS: dict[str, Callable[[Model, Path], None]] = {
    "transformers": to_transformers,
    "hf": to_hf,
    "llama": to_hf,
    "gguf": to_gguf,
    "native": to_native,
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
