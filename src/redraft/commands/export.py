"""A trained model as a folder for other programs.

redraft export runs/first --to native --into out/first           (data alone, for redraft.load(DIR); with a model card)
redraft export runs/first --to transformers --into out/first     (with its code, which trust_remote_code=True lets run)
redraft export runs/ar --to hf --into out/ar                     (a stock folder of transformers: Llama, Qwen2, Qwen3, GPT-2)
redraft export runs/mdlm --to hf --into out/mdlm                 (LLaDA's layout; with family.shift Dream's; block llama)
redraft export runs/ar --to gguf --into out/ar-gguf              (model.gguf in float32; the same models, block llama)

A run that still trains, on whatever number of ranks, comes out as its newest whole checkpoint has it.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from redraft.display import emit, quantity
from redraft.errors import unknown
from redraft.hub.config import located
from redraft.registry import TARGETS


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder, an exported model folder, or owner/name on the hub")
    parser.add_argument("--to", required=True, help="transformers, hf, llama (hf, where that is Llama), gguf or native")
    parser.add_argument("--into", required=True, type=Path, help="a new folder")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if options.to not in TARGETS:
        raise unknown("target", options.to, TARGETS)
    folder = located(options.model)
    from redraft.hub.export.export import export
    from redraft.runs.snapshot import snapshot, still_trains

    folder = export(snapshot(folder) if still_trains(folder) else folder, options.to, options.into)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    listed = ", ".join(f"{name} ({quantity(size, 'B')})" for name, size in files.items())
    told = {"folder": str(folder), "to": options.to, "files": files}
    emit(told) if options.json else print(f"{folder}: {listed}")
