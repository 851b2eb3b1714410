"""Train one model, score it on held-out text, and leave a folder with weights and a record.

  redraft train --into runs/first --family mdlm --size 1M --flops 1e13
  redraft train recipe.toml --into runs/second --train.lr 3e-4
  redraft train --into runs/fewsteps --from runs/duo --family.objective distillation --steps 5000
  redraft train adapt --into runs/mdlm --from runs/ar --family mdlm --family.shift true --steps 2000
  redraft train --into runs/chat --from runs/duo --data chat.jsonl --data.format chat --steps 2000
  redraft train recipe.toml --into runs/huge --nodes 16 --gpus-per-node 8 --launcher slurm --slurm partition=gpu account=lab
  torchrun --nproc-per-node 8 -m redraft train --into runs/large --size 1B --flops 1e20

Any key of a run can be set by a dotted flag (redraft list keys). The same command continues an interrupted run.
"""

from __future__ import annotations

import shutil
import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands.plan import foreseen, run_table
from redraft.commands.plan_sentences import cluster_sentences, exports, run_sentences, time_sentence
from redraft.commands.starting import started
from redraft.config import RunConfig, merge, validated
from redraft.display import Line, duration, emit, lost_sentence, monte_carlo, perplexity, quantity, tokenising
from redraft.errors import UserError
from redraft.numbers import WIDEST, real, whole
from redraft.planning.budget import GPU, plan_run

if TYPE_CHECKING:
    from redraft.text.shards.shards import Corpus
    from redraft.training.distributed.ranks import Ranks
    from redraft.training.setup import Setup

OVERRIDES = True


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", help="a TOML file or the name of a shipped recipe")
    parser.add_argument("--into", required=True, type=Path, help="folder of the run: new, empty, or this run's own")
    parser.add_argument(
        "--from", dest="start", help="a model folder: start from its weights, network, family and tokens"
    )
    parser.add_argument(
        "--timeout",
        type=real(0, 1e9, above=True),
        default=600,
        help="seconds after which a rank that does not answer counts as lost",
    )
    parser.add_argument(
        "--track", nargs="*", default=[], metavar="NAME", help="show curves in wandb, tensorboard, trackio"
    )
    parser.add_argument("--launcher", choices=("slurm",), help="submit the run as a job, requeued until it is done")
    parser.add_argument("--nodes", type=whole(1, WIDEST), help="of the job; 1 if left out")
    parser.add_argument("--gpus-per-node", type=whole(0, WIDEST), help="of the job, a rank each; 8 if left out")
    parser.add_argument(
        "--slurm", nargs="*", default=[], metavar="NAME=VALUE", help="partition=gpu timeout_min=1440 ..."
    )
    parser.add_argument(
        "--compile",
        action=BooleanOptionalAction,
        help="torch.compile each block (train.compile true or false); on a GPU if left out",
    )
    parser.add_argument("--json", action="store_true", help="print the record as JSON")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    from redraft.training.trackers import check

    if options.compile is not None:
        overrides = merge(overrides, {"train": {"compile": options.compile}})

    check(options.track)
    if options.launcher:
        submit(options, overrides)
        return
    if options.nodes is not None or options.gpus_per_node is not None or options.slurm:
        raise UserError("--nodes, --gpus-per-node and --slurm are for --launcher slurm; on one machine use torchrun")
    from redraft.training.distributed.environment import told

    if told() is None:  # of several ranks the first will say it, once
        foreseen(_table(options, overrides))
    from redraft.training.distributed.ranks import joined, rank_zero_errors

    with joined(options.timeout) as ranks, rank_zero_errors(ranks):
        lead(options, overrides, ranks) if ranks.first else assist(options.into, ranks)


def _table(options: Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """The recipe with flags over it, and under it what the model that the run starts from says."""
    return started(options.start, run_table(options.recipe, overrides))


def submit(options: Namespace, overrides: dict[str, Any]) -> None:
    """Hand the run to Slurm. What is wrong with it and what it will cost is said here, and not in a job's log."""
    from redraft.text.tokenizers.tokenizer import load_tokenizer
    from redraft.training.distributed.launch import launch, log_of, options_of, words_of

    table = _table(options, overrides)
    nodes, gpus = (1 if options.nodes is None else options.nodes), options.gpus_per_node
    slurm, gpus = options_of(options.slurm), 8 if gpus is None else gpus
    config = validated(RunConfig, merge({"train": {"device": GPU if gpus else "cpu"}}, table))
    budget = plan_run(config, load_tokenizer(config.data.tokenizer).size)
    words = words_of(options.recipe, options.into, options.start, options.track, overrides, options.timeout)
    each = gpus or int(slurm.get("tasks_per_node", 1))
    told = [*run_sentences(config, budget), *cluster_sentences(config, budget, max(1, nodes * each), max(1, each))]
    job = launch(words, options.into, nodes, gpus, slurm)
    log = log_of(options.into, job)
    told += [f"Job {job} is in the queue for {options.into}. What its first rank prints: {log}"]
    emit({"job": job, "log": str(log)}) if options.json else print("\n".join(told))


def lead(options: Namespace, overrides: dict[str, Any], ranks: Ranks) -> None:
    """The first rank, or the only one: it prints, and writes all but its ranks' parts of a checkpoint."""
    from redraft.runs.run import carry_out, read_record
    from redraft.training.trackers import open_trackers

    setup = opened(options, overrides, ranks)
    if not options.json:
        sentences = run_sentences(setup.config, setup.budget)
        print("\n".join([*sentences, *data_sentences(setup), *_time(setup)]), flush=True)
    line, began, start, measured = Line(quiet=options.json), 0.0, None, False
    watching = open_trackers(options.track, options.into, setup.config.model_dump())
    scoring = lambda done, total: line.show(f"scoring validation text: {done} of {total} passes")
    for at in carry_out(setup, options.into, scoring=scoring):
        watching.log(asdict(at))
        if start is None:  # what comes before is warming up, and no measure of what is left
            start, began = at.step, time.monotonic()
        pace = (time.monotonic() - began) / (at.step - start) if at.step > start else 0.0
        if pace and not measured and not options.json:
            print(pace_sentence(setup, at.step, pace, at.step - start), flush=True)
        measured = measured or pace > 0
        line.show(
            f"step {at.step} of {setup.budget.steps}   objective {at.loss:.4f} nats/token   lr {at.lr:.2e}"
            + (_pace(setup, at.step, pace) if pace else ""),
            force=at.step == setup.budget.steps,
        )
    line.close()
    ranks.agree(patiently=True)  # the others wait while it scores
    shutil.rmtree(options.into / "checkpoints", ignore_errors=True)
    record = read_record(options.into)
    watching.close(record)
    emit(record) if options.json else print(result_sentence(record))


def time_left(setup: Setup, step: int, seconds: float) -> float:
    """Seconds to the end, scoring included, at so many seconds a step."""
    from redraft.planning.pace import scoring_flops

    rate = setup.budget.flops["full"] / setup.budget.steps / seconds
    return (setup.budget.steps - step) * seconds + scoring_flops(setup.config, setup.budget) / rate


def pace_sentence(setup: Setup, step: int, seconds: float, steps: int) -> str:
    """What the first steps say of the others: it replaces what was expected before them."""
    left = duration(time_left(setup, step, seconds))
    return f"Time: about {left} from step {step} on, scoring included (measured on {steps} steps)."


def _pace(setup: Setup, step: int, seconds: float) -> str:
    """Tokens a second and what is left, at so many seconds a step."""
    left = time_left(setup, step, seconds)
    return f"   {quantity(setup.budget.tokens_per_step / seconds)} tokens/s   {duration(left)} left"


def opened(options: Namespace, overrides: dict[str, Any], ranks: Ranks) -> Setup:
    """The run in its folder, which the other ranks are told of once its data are there. An error of one is an error of all."""
    from redraft.runs.claim import open_run
    from redraft.text.shards.shards import Corpus, spot

    try:
        setup = open_run(validated(RunConfig, _table(options, overrides)), options.into, tokenising(options.json))
    except UserError as error:
        ranks.agree(error, patiently=True)
        raise
    ranks.agree(patiently=True)
    ranks.tell((setup.config, setup.corpus.sha256, (options.into / "record.json").exists()))
    ranks.tell((setup.corpus, spot(setup.corpus)) if isinstance(setup.corpus, Corpus) else None)
    ranks.agree(patiently=True)
    return setup


def assist(folder: Path, ranks: Ranks) -> None:
    """Any other rank: trains and is silent. What goes wrong for all is the first rank's to say."""
    from redraft.runs.run import train
    from redraft.training.trainer import Trainer

    ranks.agree(patiently=True)
    setup, finished = followed(ranks)
    if not finished:
        trainer = Trainer.start(setup, folder)
        for _ in train(trainer, folder):
            pass
        trainer.final_weights()
    ranks.agree(patiently=True)


def followed(ranks: Ranks) -> tuple[Setup, bool]:
    """The run that the first rank opened, set up here too; whether it is finished. Its corpus is taken over as it is where the
    same files are seen here, for a walk over all of them by every rank is more than a file system takes."""
    from redraft.training.setup import set_up

    config, sha256, finished = ranks.tell()
    corpus, error = _seen(ranks.tell()), None
    try:
        setup = set_up(config, corpus=corpus)
        if setup.corpus.sha256 != sha256:
            error = UserError(f"{config.data.source} holds other data here than for rank 0: give all ranks the same")
    except UserError as refused:
        error = refused
    ranks.agree(error, patiently=True)
    return setup, finished


def _seen(told: tuple[Corpus, str] | None) -> Corpus | None:
    """The first rank's corpus, if its files are those that this machine has under their names."""
    from redraft.text.shards.shards import spot

    if told is None:
        return None
    try:
        return told[0] if spot(told[0]) == told[1] else None
    except OSError:
        return None


def data_sentences(setup: Setup) -> list[str]:
    """What fine-tuning reads and leaves out; of a run on text, a validation split that is too small to tell its error."""
    from redraft.planning.repetition import repetition
    from redraft.text.examples.examples import PromptCorpus
    from redraft.text.shards.shards import Corpus

    said = [*_gguf_sentence(setup), f"Validation: {_held_out(setup)}."]
    if lost := setup.corpus.split("validation").lost_share:
        said = [*said, f"Validation: {lost_sentence(lost)}."]
    if isinstance(setup.corpus, Corpus) and setup.corpus.shared:
        said = [*said, f"Validation: {setup.corpus.shared} of its documents are in the training text too."]
    if not isinstance(setup.corpus, PromptCorpus):
        return [repetition(setup.budget.tokens, setup.corpus.split("train").count).sentence, *said]
    data, (train, held_out) = setup.config.data, (setup.corpus.split(name) for name in ("train", "validation"))
    epochs = setup.budget.steps * setup.config.train.batch / train.count
    left_out = f"{train.skipped} longer than {data.length} tokens skipped, {train.truncated} truncated"
    dropped = f", {data.cfg_dropout:.3g} of the prompts blanked" if data.cfg_dropout else ""
    return [
        f"Examples: {train.count} to train on ({left_out}), {held_out.count} to validate on; {epochs:.3g} epochs. "
        f"Rows of {setup.budget.row:.4g} tokens in the mean, padding not counted, of which "
        f"{train.paid.sum() / train.count:.4g} are completion and paid for{dropped}.",
        *said,
    ]


def _held_out(setup: Setup) -> str:
    from redraft.text.examples.examples import PromptCorpus

    if setup.validation_rows == 1:
        return "one row, so that the error of its choice will not be known; hold out more by data.validation"
    examples = isinstance(setup.corpus, PromptCorpus)
    return f"{setup.validation_rows} {'examples' if examples else f'rows of {setup.config.data.length} tokens'}"


def _gguf_sentence(setup: Setup) -> list[str]:
    """Where the tokenizer alone keeps a run from becoming a GGUF file."""
    from redraft.hub.export.gguf import vocabulary_of

    try:
        if "gguf" in exports(setup.config):
            vocabulary_of(setup.tokenizer)
    except UserError as error:
        return [f"GGUF: {error}"]
    return []


def _time(setup: Setup) -> list[str]:
    """How long to expect; only a CPU's rate is measured."""
    from redraft.planning.pace import cpu_rate, scoring_flops, seconds

    if setup.config.train.device != "cpu":
        return []
    rate = cpu_rate([setup.budget], setup.config.train.threads)
    scoring = scoring_flops(setup.config, setup.budget) / rate
    return [time_sentence(seconds([setup.budget], rate), scoring, rate)]


def result_sentence(record: dict[str, Any]) -> str:
    """One line: the loss on validation text, what kind it is, and its error. What training descended is another number."""
    bits = f", {record['bits_per_byte']:.4f} bits/byte" if record["bits_per_byte"] is not None else ""
    kind = "exact" if record["loss_kind"] == "exact" else f"a bound, {monte_carlo(record['loss_se'])}"
    loss = f"validation loss {record['loss']:.4f} nats/token ({kind}){bits}, perplexity {perplexity(record['ppl'])}"
    return f"{record['name']}: {loss}, {record['windows']} windows of validation text"
