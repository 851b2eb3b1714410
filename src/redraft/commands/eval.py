"""The likelihood of held-out text under a trained model (exact for ar, else its bound), with its errors; or scores on tasks.

redraft eval runs/first
redraft eval runs/first --data "corpus/*.txt" --rows 1000 --draws 8
redraft eval runs/first --data wikitext.txt --wrap documents --detokenize wikitext --stride 64
redraft eval runs/first --estimator importance_weighted --k 16
redraft eval runs/first --estimator chain_rule --order random
redraft eval runs/first --estimator chain_rule --order margin --k 4
redraft eval runs/first --tasks hellaswag,piqa,blimp --data-dir data --out scores.json
redraft eval runs/first --tasks continuation_choice --text books.jsonl --guidance 1 --against scores.json

Estimators: the family's own, continuous_time or (where its times are a grid) discrete_time; mask_count (mdlm); chain_rule (ar,
mdlm, esolm, bd3lm; --order left_to_right, random or generative; mdlm also --order confidence, margin or entropy, the exact
likelihood of what writes the surest positions first, --k a step); importance_weighted (mdlm, esolm, bd3lm; --k); path_weighted
(families with a clock; --k, --steps). The last three take many passes through the network: what they cost is said beforehand.

Tasks (lm-evaluation-harness, offline): hellaswag, piqa, arc_easy, arc_challenge, openbookqa, social_iqa, winogrande, boolq,
lambada_openai, blimp, wikitext from the folder --data-dir or REDRAFT_DATA; continuation_choice from --text; or a task file
of your own, FILE.yaml. Fixed in advance: 32 draws of mask_count for mdlm, of its own bound for any other family, no guidance.
"""

from __future__ import annotations

import math
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redraft.commands import device_flags
from redraft.display import Left, Line, emit, lost_sentence, monte_carlo, over_windows, perplexity, tokenising
from redraft.errors import UserError, unknown
from redraft.numbers import WIDEST, real, seed, whole
from redraft.registry import CHAIN_ORDERS, ESTIMATORS
from redraft.text.sources.corpus import check_named, open_source

if TYPE_CHECKING:
    from redraft.config import DataConfig
    from redraft.evaluation.likelihood.estimators import Estimator
    from redraft.evaluation.likelihood.nelbo import Bound
    from redraft.evaluation.likelihood.perplexity import Scored
    from redraft.hub.model import Model

SETTINGS = ("k", "order", "steps")
ROWS_HELP = (
    "windows or examples at most, spread evenly: of its own validation split as many as training scored, else 512, or of an "
    "estimator of many passes what takes seconds"
)
TASKS_ONLY = ("data_dir", "text", "limit", "guidance", "guidance_kind", "truncate", "cache", "against")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a run folder or an exported model folder")
    parser.add_argument("--data", help="a source to score; the validation split it was trained with if left out")
    parser.add_argument("--rows", type=whole(1, WIDEST), help=ROWS_HELP)
    parser.add_argument("--wrap", default="stream", help="stream, or documents: each with windows of its own")
    parser.add_argument(
        "--length", type=whole(1, WIDEST), help="tokens of a window of --data; those of a row in training if left out"
    )
    parser.add_argument("--stride", type=whole(1, WIDEST), help="new tokens a window of --data; no overlap if left out")
    parser.add_argument("--framed", action="store_true", help="windows begin and end with the end-of-document id")
    parser.add_argument("--detokenize", default="none", help="none, wikitext, ptb, lm1b or lambada")
    parser.add_argument("--data-format", help="text, prompts, chat or traces; read off the file if left out")
    parser.add_argument("--template", help="of chat or traces")
    parser.add_argument(
        "--draws",
        type=whole(1, WIDEST),
        help="noise draws a window (4, or 1 of many passes) or a request of a task (32), where needed",
    )
    parser.add_argument("--estimator", help="how -log p is estimated (see above)")
    parser.add_argument(
        "--k",
        type=whole(1, WIDEST),
        help="orders or paths averaged in a draw of importance_weighted, path_weighted; tokens a step of chain_rule (1)",
    )
    parser.add_argument("--order", help=f"of chain_rule: {', '.join(CHAIN_ORDERS)}")
    parser.add_argument("--steps", type=whole(1, WIDEST), help="of the chain of path_weighted")
    parser.add_argument(
        "--batch", type=whole(1, WIDEST), help="rows a pass: 32, and of tasks, whose rows are short, 256"
    )
    parser.add_argument("--seed", type=seed, default=0)
    device_flags.arguments(parser)
    parser.add_argument("--out", type=Path, help="write the whole result here, as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", help="names and task files, parted by commas (see above)")
    tasks.add_argument("--data-dir", help="the folder of the public sets; REDRAFT_DATA if left out")
    tasks.add_argument("--text", help="the source that continuation_choice is made from")
    tasks.add_argument("--limit", type=whole(), help="the first so many documents of each task")
    tasks.add_argument("--guidance", type=real(-1e6, 1e6), help="weight of classifier-free guidance; 0 is none")
    tasks.add_argument("--guidance-kind", help="unsupervised, or standard: for a model trained with data.cfg_dropout")
    tasks.add_argument("--truncate", action="store_true", help="cut contexts on the left where they do not fit")
    tasks.add_argument("--cache", type=Path, help="a file that keeps answers: a killed evaluation goes on from it")
    tasks.add_argument("--against", type=Path, help="an earlier --out: compare with it, document by document")


def run(options: Namespace, overrides: dict[str, Any]) -> None:
    if options.out is not None and (options.out.is_dir() or not _folder_above(options.out).is_dir()):
        raise UserError(f"--out {options.out} cannot be a file: it is a folder, or lies below a file")
    if options.out is not None and not os.access(_folder_above(options.out), os.W_OK):
        raise UserError(f"--out {options.out} cannot be written: {_folder_above(options.out)} is not ours to write in")
    device_flags.model(options)
    if options.estimator is not None and options.estimator not in ESTIMATORS:
        raise unknown("estimator", options.estimator, ESTIMATORS)
    if options.order is not None and options.order not in CHAIN_ORDERS:
        raise unknown("order", options.order, CHAIN_ORDERS)
    given = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    if options.tasks is not None:
        if options.data:
            raise UserError(
                "--data is for held-out text: tasks have documents of their own (see --data-dir and --text)"
            )
        return _tasks(options, given)
    if stray := [name for name in TASKS_ONLY if getattr(options, name) not in (None, False)]:
        raise UserError(f"--{stray[0].replace('_', '-')} is for tasks: name some with --tasks")
    if options.data is not None:
        check_named(options.data)
    return _text(options, given)


def _folder_above(path: Path) -> Path:
    """The nearest thing above it that exists."""
    return next(above for above in path.absolute().parents if above.exists())


def _text(options: Namespace, given: dict[str, Any]) -> None:
    from redraft.evaluation.likelihood.estimators import build, own_bound

    compute = device_flags.compute(options)
    model = compute.load(options.model)
    own = "chain_rule" if model.family.exact else own_bound(model.family).name
    estimator = build(options.estimator or own, given, model.family)
    options.rows, options.draws = _most(options, model, estimator)
    source, scored = _windows(options, model)
    result = _estimated(options, model, estimator, scored)
    table = {
        **{name: None if value == math.inf else value for name, value in asdict(result).items()},
        **scored.per_text(result),
        "family": model.family.name,
        "estimator": estimator.record(),
        **compute.record(model),
        "data": source,
        "text_sha256": scored.sha256,
        "share": scored.share,
        "lost": scored.lost,
        "tokens": scored.tokens,
        "tokenizer": model.tokenizer.fingerprint[:12],
        "convention": scored.convention,
    }
    if options.out is not None:
        from redraft.files import make_folder, write_json

        make_folder(options.out.parent)
        write_json(options.out, table)
    if options.json:
        return emit(table)
    how = " ".join(
        [estimator.name, *(f"{name}={value}" for name, value in estimator.record().items() if name != "name")]
    )
    length = scored.convention["length"]
    kind = "exact" if result.exact else f"a bound; {monte_carlo(result.monte_carlo_error)}"
    bits = "" if table["bits_per_byte"] is None else f"{table['bits_per_byte']:.4f} bits/byte, "
    print(
        f"{result.nats:.4f} nats/token by {how} ({kind}; {over_windows(result.sampling_error)}), "
        f"{bits}perplexity {perplexity(result.perplexity)}, {result.windows} windows of at most {length} tokens"
    )
    print(
        "; ".join(f"{name} {value}" for name, value in scored.convention.items())
        + f"; {scored.share:.1%} of the text"
        + (f"; {lost_sentence(scored.lost)}" if scored.lost else "")
    )
    return None


def _most(options: Namespace, model: Model, estimator: Estimator) -> tuple[int, int]:
    """Windows and draws of each: of its own validation split by its own bound those that training scored, so that the number
    is the record's; else what takes seconds."""
    from redraft.evaluation.likelihood.cost import affordable

    rows, draws = affordable(estimator, model.family, model.length)
    record = model.record if options.data in (None, model.record.get("data", {}).get("source")) else {}
    windows = record.get("windows") or rows
    if options.estimator is None:
        rows, draws = windows, record.get("draws") or draws
    return options.rows or min(rows, windows), options.draws or draws  # none of them can be 0


def _estimated(options: Namespace, model: Model, estimator: Estimator, scored: Scored) -> Bound:
    """The bound of the windows: first its cost is said, then how much is left of it."""
    from redraft.evaluation.likelihood.cost import cost, cost_sentence, seconds
    from redraft.evaluation.likelihood.nelbo import batches, estimate

    network, family, rows = model.network, model.family, scored.rows
    batch, draws, line = options.batch or 32, options.draws, Line(quiet=options.json)
    price = cost(rows, estimator, family, draws, batch)
    if not options.json:
        expected = seconds(price, network, family, next(batches(rows, 1, batch, model.device)))
        print(cost_sentence(price, f"windows of at most {model.length} tokens", expected), file=sys.stderr, flush=True)
    left = Left(price.passes, "passes")
    told = lambda done: line.show(left(done))
    result = estimate(network, family, rows, estimator, draws, batch, options.seed, told)
    line.close()
    return result


def _windows(options: Namespace, model: Model) -> tuple[str, Scored]:
    """What is scored, and where it is from: the validation split of the run, or the whole of --data."""
    from redraft.config import DataConfig
    from redraft.evaluation.likelihood.perplexity import Convention, of_examples, windows
    from redraft.text.examples.examples import PromptCorpus
    from redraft.text.examples.prompts import detected
    from redraft.text.shards.shards import packed_sources
    from redraft.training.setup import prepared, resolved

    record = model.record.get("data", {})
    how = Convention(
        options.length or model.length, options.wrap, options.stride or 0, options.framed, options.detokenize
    )
    if options.data is None or options.data == record.get("source"):
        if how != Convention(model.length):
            raise UserError("--length, --wrap, --stride, --framed and --detokenize are for a text of --data")
        return _split(resolved(_trained_on(options, model)), options, model)
    form = options.data_format or detected(options.data)
    packed = packed_sources(options.data, options.data) is not None
    if options.length and (packed or form != "text"):
        raise UserError(f"--length is for text, and {options.data} has rows of its own: leave it out")
    if packed:  # tokens already: their own validation files
        return _split(DataConfig(source=options.data, format="text", length=model.length), options, model)
    if form == "text":
        texts = (document.text for document in open_source(options.data).documents())
        for told in filter(None, (model.beyond(how.length), _seen(options.data, record.get("source")))):
            print(f"Note: {told}", file=sys.stderr)
        return options.data, windows(texts, model.tokenizer, how, options.rows, model.family.begins)
    data = DataConfig(source=options.data, format=form, template=options.template, length=model.length)
    examples = prepared(data, model.tokenizer, tokenising(options.json))
    assert isinstance(examples, PromptCorpus)
    scored = of_examples(examples, model.length, form, options.rows)
    return options.data, scored if model.family.begins else scored.given_first()


def _seen(data: str, source: str | None) -> str | None:
    """A remark on text that the model was trained on; None where no file of it is one of the training source."""
    from redraft.text.sources.corpus import inode, local_files

    trained = {inode(path) for path in local_files(source)} if source else set()
    files = local_files(data)
    common = [path for path in files if inode(path) in trained]
    if not common:
        return None
    which = common[0] if len(files) == 1 else f"{len(common)} of the {len(files)} files of {data}"
    return f"{which}: the model was trained on it; its own held-out text is scored if --data is left out"


def _split(data: DataConfig, options: Namespace, model: Model) -> tuple[str, Scored]:
    from redraft.evaluation.likelihood.perplexity import of_split
    from redraft.training.setup import held_out, prepared

    corpus = prepared(data, model.tokenizer, tokenising(options.json))
    rows = held_out(corpus, data.model_copy(update={"length": model.length}), model.tokenizer.eos, options.rows)
    source = (data.source, data.validation)
    scored = of_split(corpus.split("validation"), rows, source, model.length, data.format)
    return data.source, scored if model.family.begins else scored.given_first()


def _trained_on(options: Namespace, model: Model) -> DataConfig:
    """The data of the run: whole where its folder says them, else text by its source."""
    from redraft.config import DataConfig, RunConfig, read_toml, validated

    if (options.model / "config.toml").exists():
        return validated(RunConfig, read_toml(options.model / "config.toml")).data
    record = model.record.get("data", {})
    if not record.get("source") or record.get("format", "text") != "text":
        raise UserError(f"{options.model} does not say all of what it was trained on: give --data")
    return DataConfig(source=record["source"], validation=record.get("validation"), format="text", length=model.length)


def _tasks(options: Namespace, given: dict[str, Any]) -> None:
    """The tasks are read before the model, so that a mistake in their files is soon told."""
    from redraft.evaluation.lm_eval import tasks
    from redraft.files import make_folder, read_json, write_json

    earlier = None if options.against is None else read_json(options.against)
    if earlier is not None and not (isinstance(earlier, dict) and isinstance(earlier.get("tasks"), dict)):
        raise UserError(f"{options.against} holds no scores of tasks: give what `redraft eval --tasks ... --out` wrote")
    names = [name for name in options.tasks.split(",") if name]
    if not names:
        raise UserError(f"--tasks names no task: give some of {', '.join(tasks.NAMES)}, or a FILE.yaml")
    tasks.check(names, options.data_dir, options.text)
    compute = device_flags.compute(options)
    suite = tasks.load(names, options.data_dir, options.text)
    from redraft.evaluation.likelihood.continuations import DRAWS
    from redraft.evaluation.lm_eval.harness import RedraftLM
    from redraft.evaluation.lm_eval.suite import against, evaluate

    line, say = Line(quiet=options.json), None if options.json else partial(print, file=sys.stderr, flush=True)
    lm = RedraftLM(
        options.model,
        estimator=options.estimator or "",
        draws=options.draws or DRAWS,
        guidance=options.guidance or 0.0,
        guidance_kind=options.guidance_kind or "unsupervised",
        seed=options.seed,
        batch_size=options.batch or 256,
        device=compute.device,
        precision=compute.precision,
        truncate=options.truncate,
        greedy=tasks.ask_greedy(suite),
        cache=options.cache,
        progress=progress_on(line),
        say=say,
        **given,
    )
    result = evaluate(lm, suite, options.limit)
    line.close()
    if result is None:
        return None  # not the first rank
    result = {"model": str(options.model), **compute.record(lm.scorer.model), **result}
    if earlier is not None:
        result["against"] = {"file": str(options.against), "comparisons": against(result, earlier)}
    if options.out is not None:
        make_folder(options.out.parent)
        write_json(options.out, result)
    return emit(result) if options.json else print("\n".join(lines(result)))


def progress_on(line: Line) -> Callable[[str, int, int], None]:
    """What shows how many requests of a kind are answered, and how long the others will take."""
    counts = dict[tuple[str, int], Left]()

    def show(doing: str, done: int, total: int) -> None:
        left = counts.setdefault((doing, total), Left(total, "requests"))
        line.show(f"{doing} {left(done)}", force=done == total)

    return show


def lines(result: dict[str, Any]) -> list[str]:
    """A result for people."""
    settings, requests = result["settings"], result["requests"]
    scored = [(name, task["metrics"], f", {task['n']} documents") for name, task in result["tasks"].items()]
    grouped = [(name, metrics, ", mean of its tasks") for name, metrics in result["groups"].items()]
    out = [
        f"{name}: {', '.join(f'{metric} {_number(m)}' for metric, m in metrics.items())}{what}"
        for name, metrics, what in (*scored, *grouped)
    ]
    out += [f"{name}: {task['note']}" for name, task in result["tasks"].items() if "note" in task]
    how = " ".join(f"{name}={value}" for name, value in settings["estimator"].items())
    guidance = f"guidance {settings['guidance']['weight']:g} ({settings['guidance']['kind']})"
    noise = requests["monte_carlo_error"]
    error = f", Monte Carlo s.e. of a request {noise:.3f} nats" if noise else ""
    out.append(f"estimator {how}, {settings['draws']} draws, {guidance}, seed {settings['seed']}{error}")
    if requests["truncated"]:
        out.append(f"{requests['truncated']} contexts lost {requests['tokens_cut']} tokens of their left ends")
    for c in result.get("against", {}).get("comparisons", []):
        out.append(
            f"{c['task']} {c['metric']}: {c['difference']:+.4f} (s.e. {_plain(c['stderr'])}) against the earlier result; "
            f"{c['better']} documents better, {c['worse']} worse, exact McNemar p = {c['p']:.2g}"
        )
    return out


def _number(metric: dict[str, float | None]) -> str:
    value, error = metric["value"], metric["stderr"]
    assert value is not None
    return f"{value:.4g}" if error is None or math.isnan(error) else f"{value:.4f} (s.e. {error:.4f})"


def _plain(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
