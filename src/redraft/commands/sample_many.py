"""`redraft sample --prompts`: texts for every prompt of a file, into a file of lines of JSON that can be continued."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from redraft.commands import device_flags
from redraft.display import Left, Line, emit
from redraft.errors import UserError
from redraft.files import clean, disk, lines, make_folder, read_text, whole_file, write_text

PARTIAL = ".partial"  # what is written so far: a line of settings, then a line for each finished text


class Prompt(NamedTuple):
    """A record of the file: `where` is for people. `tokens`: to write; None: what is left of --length."""

    where: str
    prompt: str
    suffix: str
    tokens: int | None


def check(options: Namespace) -> list[Prompt]:
    """The prompts, or what is wrong, before torch is loaded."""
    if options.into is None:
        raise UserError("--prompts needs --into, the file to write")
    given = {
        "--prompt": options.prompt,
        "--suffix": options.suffix,
        "--watch": options.watch,
        "--animate": options.animate,
    }
    if stray := [flag for flag, value in given.items() if value]:
        raise UserError(f"{stray[0]} is for one prompt: leave it out beside --prompts")
    if options.into.exists():
        raise UserError(f"{options.into} is there already: remove it, or name another file with --into")
    if find_spec("greenlet") is None:
        raise UserError("--prompts needs the package 'greenlet': pip install 'redraft[serve]'")
    prompts = list(read(options.prompts))
    if not prompts:
        raise UserError(f"{options.prompts} holds no prompts")
    return prompts


def read(path: Path) -> Iterator[Prompt]:
    """A line of text each, or an object: {"prompt": ..., "suffix": ..., "max_tokens": ...}, the last two if wanted."""
    from redraft.text.sources.formats import read_records

    if not path.is_file():
        raise UserError(f"no such file of prompts: {path}")
    for number, row in read_records(path):
        where = f"line {number} of {path}"
        if isinstance(row, str):
            yield Prompt(where, clean(row.rstrip("\r\n")), "", None)
            continue
        prompt, suffix, tokens = row.get("prompt"), row.get("suffix", ""), row.get("max_tokens")
        if not isinstance(prompt, str) or not isinstance(suffix, str):
            raise UserError(f"{where} must hold text in 'prompt' (and in 'suffix', if it has one)")
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
            raise UserError(f"{where}: 'max_tokens' must be a whole number of at least 1, got {tokens!r}")
        yield Prompt(where, clean(prompt), clean(suffix), tokens)


def run(options: Namespace, prompts: list[Prompt], further: dict[str, Any]) -> None:
    """Write what an earlier, interrupted try has not, then put the file in its place whole."""
    compute = device_flags.compute(options)
    model = compute.load(options.model)
    from redraft.serving.many import Wanted, written

    settings = {
        "sampler": options.sampler, "steps": 64 if options.steps is None else options.steps, "seed": options.seed,
        "temperature": options.temperature, "top_p": options.top_p, "options": further,
    }  # fmt: skip
    sizes = [_sizes(model, one, options) for one in prompts]
    texts = [Wanted(*own, number, settings) for own in sizes for number in range(options.n)]
    partial = options.into.with_name(options.into.name + PARTIAL)
    make_folder(options.into.parent)
    done = _kept(partial, header := _header(options, prompts, settings))
    left = [place for place in range(len(texts)) if place not in done]
    line, progress, tokens, began = Line(quiet=options.json), Left(max(1, len(left)), "texts"), 0, time.perf_counter()
    kept = [header, *({"place": place, "text": text} for place, text in done.items())]
    write_text(partial, "".join(json.dumps(entry) + "\n" for entry in kept))  # without a line that was cut short
    with disk(partial.parent), partial.open("a", encoding="utf-8") as file:
        for count, found in enumerate(written(model, [texts[p] for p in left], options.rows, compute.compiled)):
            done[left[found.place]] = found.text
            tokens += found.tokens
            file.write(json.dumps({"place": left[found.place], "text": found.text}) + "\n")
            file.flush()
            line.show(progress(count + 1))
    line.close()
    seconds = time.perf_counter() - began
    with whole_file(options.into) as out:
        for number, one in enumerate(prompts):
            own = [done[number * options.n + at] for at in range(options.n)]
            out.write(json.dumps({"prompt": one.prompt, "texts": own, "seed": options.seed}).encode() + b"\n")
    partial.unlink()
    counts = {"prompts": len(prompts), "texts": len(texts), "written_now": len(left), "new_tokens": tokens}
    rate = tokens / seconds if left else None
    if options.json:
        return emit(
            {"into": str(options.into), **counts, "seconds": seconds, "tokens_per_second": rate} | compute.record(model)
        )
    speed = f"; {tokens} tokens in {seconds:.1f} s, {rate:.0f} tokens/s" if rate else ""
    print(f"{len(texts)} texts of {len(prompts)} prompts in {options.into}{speed}", file=sys.stderr)
    return None


def _sizes(model: Any, one: Prompt, options: Namespace) -> tuple[Any, int, Any]:
    """The ids before, how many tokens to write, the ids after."""
    before, after = model.tokenizer.encode(one.prompt), model.tokenizer.encode(one.suffix)
    length = model.length if options.length is None else options.length
    new = length - len(before) - len(after) if one.tokens is None else one.tokens
    if new < 1 or len(before) + new + len(after) > length:
        raise UserError(
            f"{one.where}: prompt and suffix of {len(before) + len(after)} tokens leave no room for "
            f"{one.tokens or 'any'} more in a canvas of {length}: raise --length"
        )
    return before, new, after


def _header(options: Namespace, prompts: list[Prompt], settings: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted try must have in common with this one."""
    asked = json.dumps([[one.prompt, one.suffix, one.tokens] for one in prompts])
    own = {"model": str(options.model.resolve()), "n": options.n, "length": options.length, **settings}
    return {**own, "prompts": hashlib.sha256(asked.encode()).hexdigest()}


def _kept(partial: Path, header: dict[str, Any]) -> dict[int, str]:
    """The texts of an earlier try; a last line that was cut short is left out."""
    if not partial.exists():
        return {}
    first, *rest = [line for line in lines(read_text(partial)) if line.endswith("}")] or [""]
    if first != json.dumps(header):
        raise UserError(
            f"{partial} was begun with other prompts or settings: remove it, or name another file with --into"
        )
    return {entry["place"]: entry["text"] for entry in map(json.loads, rest)}
