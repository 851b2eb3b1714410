"""`redraft study` new, run, tune, status, work: recipes and the queue."""

from __future__ import annotations

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands import device_flags
from redraft.config import merge
from redraft.display import Line, duration, emit, tokenising
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.planning.study import Study
    from redraft.studies.execute import Status

TUNED = "tuned.toml"
SILENCE = 15.0  # seconds without a line, at most


def new(options: Namespace, overrides: dict[str, Any]) -> None:
    """A commented recipe in a file that is not there yet."""
    from redraft.files import make_folder, write_text
    from redraft.planning.study import new_recipe

    path = Path(options.of)
    if path.suffix != ".toml":
        raise UserError(f"a recipe is a TOML file: name it {path.name}.toml")
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} is there already: give another name, or remove it")
    make_folder(path.parent)
    write_text(path, new_recipe())
    told = f"{path} is a recipe to begin with: change it, then `redraft plan {path}` and `redraft study run {path}`"
    emit({"recipe": str(path)}) if options.json else print(told)


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    carry_out(_table(options, overrides), into(options), options.json, options.launcher)
    if options.json:
        from redraft.studies import execute

        return emit([_row(s) for s in execute.status(execute.read_study(options.into), options.into)])
    folder = options.into
    print(
        f"Next: `redraft study frontier {folder}` (speed and quality of its samples), `redraft study report {folder}`."
    )
    return None


def into(options: Namespace) -> Path:
    if options.into is None:
        raise UserError(f"study {options.action} needs --into FOLDER")
    return Path(options.into)


def _table(options: Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe with flags over it: those of Slurm for the study, the others for every run."""
    from redraft.commands.plan import recipe_table
    from redraft.planning.study import check_study

    table = recipe_table(options.of)
    check_study(table)
    if options.workers is not None:
        table["workers"] = options.workers
    overrides = merge(overrides, device_flags.trained(options))
    slurm = merge(table.get("slurm", {}), overrides.pop("slurm", {}))
    return merge(table, {"base": merge(table.get("base", {}), overrides)} | ({"slurm": slurm} if slurm else {}))


def tune(options: Namespace, overrides: dict[str, Any]) -> None:
    import tomli_w

    from redraft.files import write_text
    from redraft.studies import execute
    from redraft.studies.tune import FACTORS, best_rates, tuned_table, tuning_sentences, tuning_table

    table, folder = _table(options, overrides), into(options)
    carry_out(tuning_table(table, options.factors or FACTORS), folder, options.json, options.launcher, diverged=True)
    study = execute.read_study(folder)
    losses = {s.run.name: s.loss for s in execute.status(study, folder) if s.state == "done" and s.loss is not None}
    best = best_rates(study, losses)
    if not best:
        raise UserError(f"no run of {folder} ended well, so no learning rate is known: try smaller --factors")
    write_text(folder / TUNED, tomli_w.dumps(tuned_table(table, best)))
    told = "\n".join([*tuning_sentences(best), f"Recipe with these rates: {folder / TUNED}"])
    emit({"rates": [asdict(b) for b in best], "recipe": str(folder / TUNED)}) if options.json else print(told)


Watcher = Callable[[list["Status"]], None]  # told where the runs stand, twice a second


def carry_out(
    table: dict[str, Any],
    folder: Path,
    quiet: bool = False,
    launcher: str = "local",
    diverged: bool = False,
    watcher: Watcher | None = None,
) -> None:
    """Plan, say the plan, train every run. `UserError` where runs failed (the others are kept), `diverged` ones apart."""
    from redraft.commands.plan import check_sources
    from redraft.planning.study import plan_study, study_rate, study_sentences
    from redraft.studies.execute import check_folder, execute, open_study
    from redraft.studies.workers import Jobs, Processes

    study = plan_study(table)
    check_folder(study, folder)
    for data in {repr(one.config.data): one.config.data for one in study.runs}.values():
        check_sources(data)
    elsewhere = launcher == "local" and _devices(table) != {"cpu"}
    if not quiet:
        print("\n".join(study_sentences(study, None if elsewhere else study_rate(study))), flush=True)
    _check_ends(study, quiet)
    study = open_study(table, folder)
    how, count = study.config, min(study.config.workers, len(study.runs))
    start = lambda: Jobs(folder, count, how.slurm) if launcher == "slurm" else Processes(folder, count, how.gpus)
    failed = follow(study, execute(study, folder, start), quiet, watcher)
    failed = [s for s in failed if not (diverged and s.state == "diverged")]
    if failed:
        raise UserError(f"{len(failed)} of {len(study.runs)} runs failed; {failed[0].run.name}: {failed[0].why}")


def _check_ends(study: Study, quiet: bool) -> None:
    """`UserError` for what a run, or the frontier after the last one, would be refused for: the judges are opened, the text is
    prepared and its rows of validation are counted before the study's folder is made."""
    from redraft.frontier.measure import check_judges
    from redraft.text.tokenizers.tokenizer import load_tokenizer
    from redraft.training.setup import prepared, resolved, validation_rows

    if study.config.frontier is not None:
        check_judges(study.config.frontier)
    every = {run.config.data.model_dump_json(): run.config for run in study.runs}
    for config in every.values():
        data = resolved(config.data)
        corpus = prepared(data, load_tokenizer(data.tokenizer), tokenising(quiet))
        validation_rows(corpus, config.model_copy(update={"data": data}))


def _devices(table: dict[str, Any]) -> set[str]:
    """The kinds of device on which the runs train when workers are processes here; only a CPU's rate is measured.

    `UserError` for one that is not on this machine, before the study's folder is made.
    """
    from redraft.network.device import pick_device
    from redraft.planning.study import plan_study

    named = {run.config.train.device for run in plan_study(table).runs}
    return {pick_device(name).type for name in sorted(named)}


def follow(study: Study, states: Iterator[list[Status]], quiet: bool, watcher: Watcher | None = None) -> list[Status]:
    """Show runs as they go: a live table on a terminal, a line for each finished run elsewhere. Returns the failed."""
    began = said = time.monotonic()
    told, now = set[str](), list["Status"]()
    table = _LiveTable(study) if not quiet and Line().live else None
    try:
        for now in states:
            spent = time.monotonic() - began
            if table:
                table.show(now, spent)
            for s in now:
                if s.settled and s.run.name not in told:
                    told.add(s.run.name)
                    said = time.monotonic()
                    if not quiet and not table:
                        print(f"[{len(told)}/{len(now)}, {duration(spent)}] {_sentence(s)}", flush=True)
            if not quiet and not table and time.monotonic() - said > SILENCE:
                said = time.monotonic()
                print(f"[{len(told)}/{len(now)}, {duration(spent)}] {_under_way(study, now, spent)}", flush=True)
            if watcher:
                watcher(now)
    finally:
        if table:
            table.close()
    return [s for s in now if s.settled and s.state != "done"]


def _under_way(study: Study, states: list[Status], spent: float) -> str:
    busy = ", ".join(f"{s.run.name} {_share(s):.0%}" for s in states if s.state == "running") or "workers begin"
    return f"{busy}; {_gone(study, states, spent)[1]}"


def _gone(study: Study, states: list[Status], spent: float) -> tuple[float, str]:
    """The share of the FLOPs that is done, and how long the rest takes."""
    share = sum(s.run.own.flops["full"] * _share(s) for s in states) / sum(r.own.flops["full"] for r in study.runs)
    return share, f"about {duration(spent / share * (1 - share))} left" if share > 0.02 else "time left not known yet"


class _LiveTable:
    """Progress by arm, and the runs under way."""

    def __init__(self, study: Study):
        from rich.live import Live

        self.study = study
        self.live = Live(refresh_per_second=4)
        self.live.start()

    def show(self, states: list[Status], spent: float) -> None:
        from rich.table import Table

        share, left = _gone(self.study, states, spent)
        table = Table(title=f"{share:.0%} done, {duration(spent)} gone, {left}", title_justify="left")
        for name in ("family", "runs done", "lowest loss", "training now"):
            table.add_column(name)
        for arm in dict.fromkeys(s.run.arm for s in sorted(states, key=lambda s: s.run.arm)):
            own = [s for s in states if s.run.arm == arm]
            losses = [s.loss for s in own if s.state == "done" and s.loss is not None]
            busy = ", ".join(f"{s.run.name} {_share(s):.0%}" for s in own if s.state == "running")
            done = sum(s.state == "done" for s in own)
            table.add_row(arm, f"{done} of {len(own)}", f"{min(losses):.3f}" if losses else "", busy)
        self.live.update(table)

    def close(self) -> None:
        self.live.stop()


def status(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies import execute

    study = execute.read_study(Path(options.of))
    if options.watch:
        follow(study, _looks(study, Path(options.of)), options.json)
    states = execute.status(study, Path(options.of))
    if options.json:
        return emit([_row(s) for s in states])
    print("\n".join(_sentence(s) for s in states))
    counts = Counter(s.state for s in states)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return None


def _looks(study: Study, folder: Path) -> Iterator[list[Status]]:
    """Where the runs stand, every second, until all are settled."""
    from redraft.studies import execute

    while True:
        states = execute.status(study, folder)
        yield states
        if all(s.settled for s in states):
            return
        time.sleep(1)


def _share(s: Status) -> float:
    """Of a run's own steps, those that are done."""
    return max(0, s.step - s.run.at) / s.run.own.steps


def work(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.studies import execute
    from redraft.studies.workers import take_gpu

    take_gpu()
    execute.work(Path(options.of))


def _row(s: Status) -> dict[str, Any]:
    return {
        "name": s.run.name,
        "state": s.state,
        "step": s.step,
        "steps": s.run.budget.steps,
        "loss": s.loss if s.state == "done" else None,
        "objective": None if s.state == "done" else s.loss,
        "why": s.why,
    }


def _sentence(s: Status) -> str:
    if s.settled and s.state != "done":
        return f"{s.run.name}: {s.state}: {s.why}"
    loss = "" if s.loss is None else f", {'validation loss' if s.state == 'done' else 'objective'} {s.loss:.4f}"
    return f"{s.run.name}: {s.state}, step {s.step} of {s.run.budget.steps}{loss}"
