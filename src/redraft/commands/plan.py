"""What a run or a study will be and cost, before anything is spent. Loads no torch.

redraft plan --family duo --size 170M --data books.jsonl --tokenizer tokenizer.json --length 2048 --batch 256 --flops 1e19
redraft plan demo --resolve 0.01 --like studies/first        ... of a study: what it can tell apart, and the seeds for .01 nats
redraft plan 1.7B-mdlm-phase1 --tokenizer my.json --gpus 128 --gpus-per-node 8 --like runs/first   memory and time on a cluster
redraft plan --budget 1e21 --latency 2 --generate 1e12       which family, size, tokens and steps (the published laws)
redraft plan --quality 2.4 --study studies/first             the cheapest model that reaches a loss, by your own study
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands.plan_sentences import cluster_sentences, exports, passes_of, run_sentences, time_sentence
from redraft.commands.starting import started
from redraft.config import DataConfig, RunConfig, merge, read_toml, validated
from redraft.display import emit
from redraft.errors import UserError, unknown
from redraft.files import read_json, whereabouts
from redraft.numbers import WIDEST, real, several, whole
from redraft.planning.budget import GPU, memory_plan, plan_run
from redraft.planning.serving_cost import USEFUL, Calls, hardware

if TYPE_CHECKING:
    from redraft.planning.study import Study

OVERRIDES = True


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a TOML file or the name of a shipped recipe, of a run or a study")
    parser.add_argument("--from", dest="start", help="a model folder that the run starts from")
    parser.add_argument("--rate", type=real(above=True), help="useful FLOP/s to expect of a rank; a guess if left out")
    parser.add_argument(
        "--like",
        type=Path,
        help="a finished run: expect the FLOP/s that its record says it had; of a study: an earlier study (folder or table), "
        "for the noise of its runs and the slope of its losses",
    )
    parser.add_argument(
        "--noise",
        type=real(above=True, most=1e3),
        help="of a study: standard deviation of a run's loss over seeds, nats/token",
    )
    parser.add_argument(
        "--correlation",
        type=real(0, 0.99),
        help="of the losses of two arms over the same seeds, stated for the plan of a study",
    )
    parser.add_argument(
        "--resolve",
        type=real(above=True, most=1e3),
        help="of a study: a difference in nats/token; how many seeds see it",
    )
    parser.add_argument(
        "--gpus",
        type=whole(1, WIDEST),
        help="that share the run, a rank each; --rate and --like are of one of them; none: a CPU",
    )
    parser.add_argument("--gpus-per-node", type=whole(1, WIDEST), default=8, help="of those on one machine")
    advice = parser.add_argument_group("recommendation (give --budget, --quality or both)")
    advice.add_argument("--budget", type=real(above=True), help="FLOPs to spend on training and on generating")
    advice.add_argument("--quality", type=real(above=True), help="nats per token to reach")
    advice.add_argument("--latency", type=real(above=True), help="seconds a text may take, alone on one device")
    advice.add_argument("--generate", type=real(), default=0.0, help="tokens that the model will write in its life")
    advice.add_argument("--text", type=whole(1, WIDEST), default=1024, help="tokens of a text")
    advice.add_argument(
        "--sampling-steps",
        type=several(whole(1, WIDEST)),
        help="steps to choose from, where a family has a choice: 16,64,256,1024",
    )
    advice.add_argument("--study", default="published:scaling-beyond", help="study, table or published:NAME to go by")
    advice.add_argument("--hardware", default="h100", help="device that generates, or trains: a100, h100 or h200")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if any(value is not None for value in (options.budget, options.quality, options.latency)):
        return _recommend(options, overrides)
    table = recipe_table(options.recipe)
    if options.start is not None:
        if is_study(table):
            raise UserError("--from is for one run: a study trains networks of its own")
        table = started(options.start, merge(table, overrides))
    if options.gpus is not None:
        overrides = merge({"train": {"device": GPU}}, overrides)
    rate, source = expected_rate(options)
    return (_study if is_study(table) else _run)(options, table, overrides, rate, source)


def _study(
    options: Namespace, table: dict[str, Any], overrides: dict[str, Any], rate: float | None, source: str
) -> None:
    """Print the plan of a study."""
    from redraft.planning.repetition import repetition_foreseen
    from redraft.planning.study import plan_study, study_rate, study_sentences
    from redraft.planning.validation_rows import foreseen

    _refuse_arms(overrides)
    study = plan_study(merge(table, {"base": merge(table.get("base", {}), overrides)}))
    devices = None if rate is None else options.gpus or 1  # of a CPU, each run has its threads
    rate = rate or study_rate(study)
    told, words = _power(study, options)
    longest = max(study.runs, key=lambda run: run.budget.tokens)
    repeated = repetition_foreseen(longest.config.data, longest.budget.tokens)
    if options.json:
        rates = {"flops_per_second": rate, "rate_from": source}
        return emit({**study.to_json(), **rates, "power": told, "repetition": asdict(repeated)})
    largest = max(study.runs, key=lambda run: sum(run.budget.parameters.values()))
    first = study.runs[0].config
    held_out = foreseen(first.data, first.evaluate.rows).sentence
    shared = cluster_sentences(largest.config, largest.budget, *ranks_of(options))
    read = f"{repeated.sentence} (The longest run.)"
    return print(
        "\n".join([*study_sentences(study, rate, devices), read, *words, held_out, f"Its rate: {source}.", *shared])
    )


def _power(study: Study, options: Namespace) -> tuple[Mapping[str, Any], list[str]]:
    """What the study can tell apart, as JSON and as sentences."""
    from redraft.planning.study_power import STATED, contrasts, power_json, power_sentences, prior_of, stated
    from redraft.scaling.records import load_points

    like = options.like if options.like is not None and not _is_run(options.like) else None
    before = STATED if like is None else prior_of(load_points(like), str(like))
    prior = stated(options.noise, before, options.correlation)
    found = contrasts(study, prior, options.resolve)
    return power_json(prior, found, options.resolve), power_sentences(prior, found, options.resolve)


def _is_run(folder: Path) -> bool:
    """Whether `--like` names a run, whose record has a rate, and not a study or a table of runs. `UserError` for neither."""
    if not folder.exists():
        raise UserError(f"--like {folder}: there is no such run, study or table{whereabouts(folder)}")
    return not folder.is_file() and not (folder / "runs").is_dir()


def _run(options: Namespace, table: dict[str, Any], overrides: dict[str, Any], rate: float | None, source: str) -> None:
    """Print the plan of one run."""
    if options.like is not None and not _is_run(options.like):
        raise UserError(
            f"--like {options.like} is no finished run: a study is for the plan of a study, whose noise it tells"
        )
    for flag in ("noise", "correlation", "resolve"):
        if getattr(options, flag) is not None:
            raise UserError(
                f"--{flag} is for the plan of a study, and this is the recipe of a run: it compares nothing"
            )
    from redraft.text.tokenizers.tokenizer import vocabulary

    config = validated(RunConfig, merge(table, overrides))
    budget = plan_run(config, vocabulary(config.data.tokenizer))
    from redraft.planning.pace import cpu_rate, scoring_flops, seconds
    from redraft.planning.repetition import repetition_foreseen
    from redraft.planning.validation_rows import foreseen

    rate = rate or cpu_rate([budget], config.train.threads)
    scoring = scoring_flops(config, budget) / rate
    training = seconds([budget], rate)
    rows = foreseen(config.data, config.evaluate.rows)
    repeated = repetition_foreseen(config.data, budget.tokens)
    ranks, per_node = ranks_of(options)
    if options.json:
        memory = memory_plan(config, budget.shape, passes_of(config), ranks, per_node)
        return emit({
            **budget.to_json(), "memory": {**asdict(memory), "total": memory.total}, "gpus": ranks,
            "seconds": training, "scoring_seconds": scoring, "flops_per_second": rate, "rate_from": source,
            "validation": asdict(rows), "repetition": asdict(repeated), "exports": exports(config),
        })  # fmt: skip
    sentences = [
        *run_sentences(config, budget),
        repeated.sentence,
        rows.sentence,
        time_sentence(training, scoring, rate, source),
    ]
    return print("\n".join([*sentences, *cluster_sentences(config, budget, ranks, per_node)]))


def ranks_of(options: Namespace) -> tuple[int, int]:
    """Ranks in all, and of them on one machine."""
    ranks = options.gpus or 1
    return ranks, min(ranks, options.gpus_per_node)


def is_study(table: dict[str, Any]) -> bool:
    """Whether a recipe is meant for a study. Nothing else is loaded for one that has the keys of a run alone."""
    if RunConfig.model_fields.keys() >= table.keys():
        return False
    from redraft.planning import study

    return study.is_study(table)


def _refuse_arms(overrides: dict[str, Any]) -> None:
    """`UserError` for a setting that the arms of a study give each of its runs."""
    given: list[str] = [key for key in overrides if key in ("family", "seed")]
    given += ["network.size"] if "size" in overrides.get("network", {}) else []
    given += ["budget.flops"] if "flops" in overrides.get("budget", {}) else []
    if given:
        raise UserError(f"--{given[0]}: the arms of a study say that for each of its runs: change the recipe")


def expected_rate(options: Namespace) -> tuple[float | None, str]:
    """Useful FLOP/s of all ranks and their source: `--rate` or a finished run's, times the ranks; for GPUs a share of the data
    sheet; else None, since a CPU's rate depends on the network. Linear scaling over ranks is assumed, unless the record is
    of as many ranks."""
    hardware(options.hardware)  # known, or refused
    gpus = 1 if options.gpus is None else options.gpus
    if options.like is not None and _is_run(options.like):
        record = read_json(options.like / "record.json")
        if not (isinstance(record, dict) and {"timing", "tokens", "flops_by_convention"} <= record.keys()):
            raise UserError(f"{options.like} holds no record of a run: name the folder of a finished one")
        if not record["timing"]["tokens_per_second"]:
            raise UserError(f"{options.like} did not train a step when it last ran: name another run, or give --rate")
        per_token = record["flops_by_convention"]["full"] / record["tokens"]
        ranks = record.get("ranks", 1)
        rate = record["timing"]["tokens_per_second"] * per_token * gpus / ranks
        return rate, f"as {options.like} had on {ranks} x {gpus / ranks:g}"
    if options.rate is None and options.gpus is not None:
        sheet = f"{USEFUL:.0%} of the data sheet of {gpus} {options.hardware}, a guess: --like RUN measures"
        return hardware(options.hardware).rate * gpus, sheet
    if options.rate is None:
        return None, "measured on this CPU"
    return options.rate * gpus, "--rate"


def _recommend(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.planning.recommend import STEPS, Demand, recommend
    from redraft.planning.recommend_text import recommendation_json, recommendation_lines
    from redraft.scaling.fit import fit
    from redraft.scaling.records import load_points

    if options.recipe or overrides:
        extra = options.recipe or f"--{next(iter(overrides))}"
        raise UserError(f"a recommendation plans no run, so it takes no {extra}: leave it out, or leave out --budget")
    steps = tuple(options.sampling_steps or STEPS)
    demand = Demand(options.budget, options.quality, options.latency, options.generate, options.text, steps)
    calls = _measured_calls(Path(options.study))
    found = recommend(fit(load_points(options.study)), demand, hardware(options.hardware, options.rate), calls)
    emit(recommendation_json(found)) if options.json else print("\n".join(recommendation_lines(found, options.study)))


def _measured_calls(study: Path) -> Calls | None:
    """What the frontier of a study folder says of samples by calls, at its common entropy; None where none was measured."""
    from redraft.frontier.matched_entropy import match
    from redraft.frontier.pareto import load_frontier
    from redraft.report.report import stated_entropy

    found = load_frontier(study) if study.is_dir() else None
    matching = match(found, stated_entropy(study)) if found else None
    if found is None or matching is None or not matching.matches:
        return None
    length, curves = found.places[0].speed.length, dict[str, list[tuple[float, float]]]()
    for one in matching.matches:
        curves.setdefault(one.family, []).append((one.steps / length, one.quality.value))
    said = (
        f"nats/token under the judge of {study}, at entropy {matching.entropy.value:.3g}, above the family's best calls"
    )
    return Calls({name: sorted(set(curve)) for name, curve in curves.items()}, said)


def recipes() -> dict[str, Path]:
    """The recipes shipped with redraft, by name."""
    folder = Path(str(resources.files("redraft") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def recipe_table(name: str | None) -> dict[str, Any]:
    """A recipe (file, or shipped by that name); empty without one."""
    if name is None:
        return {}
    shipped = recipes()
    if name not in shipped and not Path(name).exists() and not name.endswith(".toml"):
        raise unknown("recipe", name, shipped)
    return read_toml(shipped.get(name, Path(name)))


def run_table(name: str | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run with flags over it; `UserError` for that of a study."""
    table = recipe_table(name)
    if is_study(table):
        raise UserError(f"{name} is the recipe of a study: `redraft study run {name} --into FOLDER` trains its runs")
    return merge(table, overrides)


def foreseen(table: dict[str, Any]) -> RunConfig:
    """The configuration of a run. `UserError` for what is wrong with it and is seen without torch and without reading data:
    a key, the family, the size, the budget, a tokenizer, a path."""
    from redraft.text.tokenizers.tokenizer import load_tokenizer

    config = validated(RunConfig, table)
    check_sources(config.data)
    plan_run(config, load_tokenizer(config.data.tokenizer).size)
    return config


def check_sources(data: DataConfig) -> None:
    """`UserError` for a file or folder of text that is not here."""
    from redraft.text.shards.mixture import phases_of
    from redraft.text.sources.corpus import check_named

    for phase in phases_of(data):
        for one in phase.mixture:
            check_named(one.source)
            check_named(one.validation)
