"""What a run or a study will be and cost, before anything is spent. Loads no torch.

redraft plan --family duo --size 170M --data books.jsonl --tokenizer tokenizer.json --length 2048 --batch 256 --flops 1e19
redraft plan demo
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from importlib import resources
from pathlib import Path
from typing import Any

from redraft.config import RunConfig, merge, read_toml, validated
from redraft.display import duration, emit, quantity
from redraft.errors import UserError, unknown
from redraft.training.budget import Budget, cpu_rate, plan_run, seconds

OVERRIDES = True


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a TOML file or the name of a shipped recipe, of a run or a study")
    parser.add_argument("--rate", type=float, help="useful FLOP/s to expect; this CPU's is measured if left out")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.text.tokenizer import load_tokenizer

    table = recipe_table(options.recipe, {})
    rate = options.rate or cpu_rate()
    if rate <= 0:
        raise UserError(f"--rate must be positive, got {rate}")
    if "arm" in table:
        from redraft.studies.plan import plan_study, study_sentences

        study = plan_study(merge(table, {"base": merge(table.get("base", {}), overrides)}))
        return emit(study.to_json()) if options.json else print("\n".join(study_sentences(study, rate)))
    config = validated(RunConfig, merge(table, overrides))
    budget = plan_run(config, load_tokenizer(config.data.tokenizer).size)
    if options.json:
        return emit({**budget.to_json(), "seconds": seconds([budget], rate), "flops_per_second": rate})
    print("\n".join([*run_sentences(config, budget), time_sentence(seconds([budget], rate), rate)]))
    return None


def recipes() -> dict[str, Path]:
    """The recipes shipped with redraft, by name."""
    folder = Path(str(resources.files("redraft") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_table(name: str | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """A recipe (file, or shipped by that name) with flags over it."""
    if name is None:
        return overrides
    shipped = recipes()
    if name in shipped:
        return merge(read_toml(shipped[name]), overrides)
    if not Path(name).exists() and not name.endswith(".toml"):
        raise unknown("recipe", name, shipped)
    return merge(read_toml(Path(name)), overrides)


def run_sentences(config: RunConfig, budget: Budget) -> list[str]:
    """The plan of one run in sentences."""
    shape, counts = budget.shape, budget.parameters
    groups = ", ".join(f"{name} {quantity(count)}" for name, count in counts.items())
    flops = ", ".join(f"{quantity(value, 'FLOPs')} under {name}" for name, value in budget.flops.items())
    return [
        f"{config.family.name} on {config.data.source} ({config.data.tokenizer}, {shape.vocab} text ids), seed {config.seed}.",
        f"Network: {shape.block}, {shape.depth} layers of width {shape.width}, {shape.heads} heads; "
        f"{quantity(sum(counts.values()))} parameters ({groups}).",
        f"Training: {budget.steps} steps of {config.train.batch} rows x {config.data.length} tokens "
        f"= {quantity(budget.tokens)} tokens, {budget.tokens / budget.params:.3g} per parameter.",
        f"Compute: {flops}.",
        f"Memory: about {quantity(budget.memory_bytes, 'B')} above the idle process.",
    ]


def time_sentence(total: float, rate: float) -> str:
    return f"Time: about {duration(total)} at {quantity(rate, 'FLOP/s')} (everything counted)."
