"""Make a redraft model of a checkpoint of other code. Nothing in it is run, and nothing is fetched.

  redraft convert mdlm.ckpt models/mdlm --tokenizer gpt2/tokenizer.json
  redraft convert hub/duo models/duo                                   (a folder with config.json and tokenizer.json)
  redraft convert mdm-170M-100e18.safetensors models/smdm --tokenizer llama2/tokenizer.model
  redraft convert LLaDA-8B-Base models/llada --verify logits.safetensors

  redraft convert hub/SmolLM2-135M models/smollm2                      (a folder of transformers; or model.gguf)

Formats: dit-lightning (mdlm, bd3lms, duo, Eso-LMs, scaling-dllms), dit-hf, smdm, gidd, llada; of transformers llama, mistral,
qwen2, qwen3, gpt2, and what was made of these: dream, diffullama, sdar. GGUF files of llama, qwen2 and qwen3. --verify takes a
safetensors file with `tokens` [B, L], `logits` [B, L, V] and, where the network reads them, `sigma` [B] and `order` [B, L].
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.display import emit, quantity
from redraft.errors import UserError, unknown
from redraft.files import whereabouts
from redraft.numbers import WIDEST, real, whole
from redraft.registry import FAMILIES, find

OVERRIDES = True
FORMATS = (
    "auto", "dit-lightning", "dit-hf", "smdm", "gidd", "llada", "llama", "mistral", "qwen2", "qwen3", "gpt2", "dream",
    "diffullama", "sdar",
)  # fmt: skip


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a .ckpt, .pt, .pth, .bin, .safetensors or .gguf file, or a folder")
    parser.add_argument("into", type=Path, help="folder of the model: new or empty")
    parser.add_argument("--from", dest="form", default="auto", metavar="FORMAT", help=f"{', '.join(FORMATS)}")
    parser.add_argument("--tokenizer", help="a path, bytes, or a name on the hub; beside the weights if left out")
    parser.add_argument("--download", action="store_true", help="fetch a tokenizer that is named and not here")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="logits of the original; a mismatch writes nothing")
    parser.add_argument("--tolerance", type=real(), help="of --verify, of the largest logit (1e-4)")
    parser.add_argument("--raw", action="store_true", help="the weights themselves where there is a moving average")
    parser.add_argument("--heads", type=whole(1, WIDEST), help="attention heads, where nothing tells")
    parser.add_argument("--mask", help="id of [MASK], or none")
    parser.add_argument("--bos", help="ar: the id that begins a text, or none")
    parser.add_argument("--length", type=whole(1, WIDEST), help="tokens in a row when it was trained")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if options.form not in FORMATS:
        raise unknown("format", options.form, FORMATS)
    if stray := [key for key in overrides if key != "family"]:
        raise unknown("flag of `redraft convert`:", f"--{stray[0]}", ["--family", "--family.OPTION", "--tokenizer"])
    family = overrides.get("family")
    table = family if isinstance(family, dict) else {"name": family}
    if isinstance(name := table.get("name"), str):
        find("family", FAMILIES, name)
    if not options.source.exists():
        raise UserError(f"no such checkpoint: {options.source}{whereabouts(options.source)}")
    from redraft.hub.convert.convert import convert
    from redraft.hub.convert.layouts.plan import Choices

    choices = Choices(
        family=table.get("name"),
        heads=options.heads,
        mask=_id("--mask", options.mask),
        bos=_id("--bos", options.bos),
        length=options.length,
        raw=options.raw,
        options={key: value for key, value in table.items() if key != "name"},
    )
    done = convert(
        options.source, options.into, options.form, choices, options.tokenizer, options.download, options.verify,
        options.tolerance,
    )  # fmt: skip
    plan = done.plan
    if options.json:
        return emit({
            "into": str(options.into), "format": plan.format, "family": plan.family, "options": plan.options,
            "shape": vars(plan.shape), "length": plan.length, "mask": plan.mask, "assumptions": plan.notes,
            "bytes": done.bytes, "difference": done.difference,
        })  # fmt: skip
    shape = plan.shape
    print("\n".join(f"assumed: {note}" for note in plan.notes))
    checked = (
        "not verified (give --verify)" if done.difference is None else f"verified: within {done.difference:.2g} nats"
    )
    print(
        f"{options.source.name}: {plan.format}, family {plan.family}, {shape.depth} blocks, {shape.heads} heads, "
        f"width {shape.width}, {shape.vocab} ids, rows of {plan.length} tokens\n"
        f"{options.into}: {quantity(done.bytes, 'B')}; {checked}"
    )
    return None


def _id(flag: str, text: str | None) -> int | None:
    """-1 where there is none."""
    if text is None or text == "none":
        return None if text is None else -1
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UserError(f"{flag} must be an id or none, got {text!r}")
    return int(text)
