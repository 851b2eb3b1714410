"""Conversion of a foreign checkpoint to a model folder: recognise the layout, plan, stream the tensors, check, rename."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from redraft.errors import UserError
from redraft.families.base import build
from redraft.files import check_new, whole_folder, write_json
from redraft.hub.convert.layouts import causal, dit, gpt2, llada, smdm
from redraft.hub.convert.layouts.facts import Facts, facts_of
from redraft.hub.convert.layouts.names import belonging, numbered, plain_names, recognised, unwrapped
from redraft.hub.convert.layouts.plan import Choices, Plan
from redraft.hub.convert.layouts.vocabulary import TokenizerInfo
from redraft.hub.convert.parity import parity_check
from redraft.hub.convert.source import Source
from redraft.hub.convert.sources import open_source
from redraft.hub.convert.tokenizer_info import fill_up, find_tokenizer, tokenizer_info
from redraft.hub.folder import CONFIG, ModelConfig, load_model
from redraft.hub.shards import write_weights
from redraft.registry import FAMILIES, checked_options, find
from redraft.text.tokenizers.tokenizer import Tokenizer, parsed

FORMATS = {
    "dit-lightning": "dit", "dit-hf": "dit", "gidd": "dit", "smdm": "smdm", "llada": "llada", "gpt2": "gpt2",
    **dict.fromkeys(causal.KINDS, "causal"),
}  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """What was made of what. `difference`: of log-probabilities from the logits it was verified with, in nats."""

    plan: Plan
    bytes: int
    difference: float | None


def convert(
    source: Path,
    into: Path,
    form: str = "auto",
    choices: Choices | None = None,
    tokenizer: str | None = None,
    download: bool = False,
    golden: Path | None = None,
    tolerance: float | None = None,
) -> Converted:
    """Convert the checkpoint at `source` into the model folder `into`, which is new or empty. `UserError` says what is
    missing, extra, unknown or different; then nothing is left behind."""
    choices = choices or Choices()
    if choices.family is not None:
        find("family", FAMILIES, choices.family)
    check_new(into)
    opened = open_source(source)
    facts = facts_of(opened.config)
    named = facts.text("data.tokenizer_name_or_path", "tokenizer_name_or_path")
    with whole_folder(into) as folder:
        speaks = tokenizer_in(opened, tokenizer) or find_tokenizer(opened.folder, tokenizer, named, download)
        speaks.save(folder)
        plan = plan_of(opened, form, facts, choices, tokenizer_info(speaks, folder))
        speaks = fill_up(speaks, folder, plan.shape.vocab)
        family = build(plan.family, plan.options, plan.shape.vocab)
        write_weights(folder, plan.targets)
        options = checked_options("family", FAMILIES, plan.family, plan.options)
        config = ModelConfig(plan.family, options, plan.shape, plan.length, speaks.fingerprint, _record(source, plan))
        write_json(folder / CONFIG, config.to_json())
        worst = None
        if golden is not None:
            network = load_model(folder, torch.device("cpu"))[1]
            worst = parity_check(network, family, golden, plan.silent, tolerance)
    return Converted(plan, sum(target.bytes for target in plan.targets.values()), worst)


def tokenizer_in(source: Source, given: str | None) -> Tokenizer | None:
    """The tokenizer that is in the file itself, where there is one and none is given."""
    if source.tokenizer is None or given is not None:
        return None
    return parsed(json.dumps(source.tokenizer, ensure_ascii=False), str(source.path))


def plan_of(source: Source, form: str, facts: Facts, choices: Choices, speaker: TokenizerInfo) -> Plan:
    """What will be done, by the layout that the names of the tensors tell."""
    source.tensors = unwrapped(source.path, source.tensors)
    source.tensors = plain_names(source.tensors)
    layout, prefix = recognised(source.path, source.tensors)
    name = _name(source, layout, form, facts)
    have = belonging(source.tensors, prefix)
    if layout == "causal":
        return causal.plan(source, have, facts, choices, speaker, name)
    if layout == "gpt2":
        return gpt2.plan(source, have, numbered(have, "h."), facts, choices, speaker)
    if layout == "smdm":
        return smdm.plan(source, have, numbered(have, "transformer.h."), facts, choices, speaker)
    if layout == "llada":
        return llada.plan(source, have, numbered(have, "transformer.blocks."), facts, choices, speaker)
    return dit.plan(source, have, prefix, numbered(have, "blocks."), facts, choices, speaker, name)


def _name(source: Source, layout: str, form: str, facts: Facts) -> str:
    """The format by name; one that was asked for must have the layout that the tensors have."""
    if form != "auto":
        if FORMATS[form] != layout:
            fits = " or ".join(name for name, of in FORMATS.items() if of == layout)
            raise UserError(f"{source.path} is not {form}: the names of its tensors are those of {fits}")
        return form
    if layout == "causal":
        return causal.kind_of(source, facts, form)
    if layout != "dit":
        return layout
    if source.lightning:
        return "dit-lightning"
    return "gidd" if facts.has("p_uniform") or facts.text("model_type") == "dit" else "dit-hf"


def _record(source: Path, plan: Plan) -> dict[str, Any]:
    made = {"from": source.name, "format": plan.format, "mask": plan.mask, "silent": list(plan.silent)}
    return {"converted": {**made, "notes": plan.notes, "shape": asdict(plan.shape)}}
