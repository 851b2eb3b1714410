"""lm-eval tasks without network access: its own prompts and metrics, over documents from local files.

A public set is lm-eval's own definition, of the installed version, with the documents taken from a data folder: so numbers
compare with those of others. Where the local file is not the same text, `note` says how, and the result repeats it.

`continuation_choice` is made from any text: its true next words against three others from elsewhere in it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redraft.errors import UserError, unknown
from redraft.evaluation.lm_eval import task_data
from redraft.files import sha256, whereabouts
from redraft.text.sources.corpus import check_named, open_source

NEEDED = "tasks need lm-evaluation-harness 0.4.13 or newer: pip install 'redraft[harness]'"
QUESTIONS, CONTEXT, CONTINUATION = 1000, 72, 32  # of continuation_choice: how many, and characters
TEXT = "books/test.jsonl.xz"
CONTINUATION_CHOICE = "continuation_choice"
_INSTRUCTION = "from an instruction form, whose options were parsed out; its test split, where lm-eval may use another"


@dataclass(frozen=True)
class Local:
    """A public set: its file below the data folder, its reader, and lm-eval's definition below its folder of tasks."""

    file: str
    read: Callable[[Path], task_data.Docs]
    definition: str
    note: str = ""
    change: tuple[tuple[str, Any], ...] = ()


PUBLIC = {
    "hellaswag": Local(
        "hellaswag/hellaswag_val_full.txt.bz2", task_data.hellaswag, "hellaswag/hellaswag.yaml",
        "from a text form with WikiHow's brackets already replaced; where the unfinished sentence begins is guessed",
    ),
    "piqa": Local("piqa/valid.jsonl.xz", task_data.piqa, "piqa/piqa.yaml"),
    "arc_easy": Local("choice/ARC-Easy.test.json.xz", task_data.science, "arc/arc_easy.yaml", _INSTRUCTION),
    "arc_challenge": Local(
        "choice/ARC-Challenge.test.json.xz", task_data.science, "arc/arc_challenge.yaml", _INSTRUCTION
    ),
    "openbookqa": Local(
        "choice/openbookqa.test.json.xz", task_data.science, "openbookqa/openbookqa.yaml", _INSTRUCTION
    ),
    "social_iqa": Local("choice/social_i_qa.test.json.xz", task_data.social_iqa, "siqa/siqa.yaml", _INSTRUCTION),
    "winogrande": Local(
        "choice/winogrande.test.json.xz", task_data.winogrande, "winogrande/default.yaml", _INSTRUCTION
    ),
    "boolq": Local(
        "choice/boolq.test.json.xz", task_data.boolq, "super_glue/boolq/default.yaml",
        "without the passages, which the file lacks: not comparable with BoolQ as lm-eval asks it",
        (("doc_to_text", "Question: {{question}}?\nAnswer:"),),
    ),
    "lambada_openai": Local("lambada/lambada_test.jsonl.xz", task_data.lambada, "lambada/lambada_openai.yaml"),
    "wikitext": Local(
        "wikitext2/test.txt.xz", task_data.wikitext, "wikitext/wikitext.yaml",
        "WikiText-2 with <unk>, not the raw text that lm-eval uses: not comparable with it",
    ),
}  # fmt: skip
BLIMP = "blimp/blimp.tar.xz"
NAMES = (*PUBLIC, "blimp", CONTINUATION_CHOICE)


@dataclass(frozen=True)
class Suite:
    """What lm-eval evaluates, and of each task by name: where its documents came from."""

    items: list[Any]
    sources: dict[str, dict[str, Any]]


def load(names: Sequence[str], folder: str | Path | None = None, text: str | None = None) -> Suite:
    """Tasks by name, or by the path of a task file of one's own. `folder`: the data, else $REDRAFT_DATA; `text`: the source
    that `continuation_choice` is made from.

    Raises `UserError` for a name that is unknown, a file that is missing or malformed, and where lm-eval is not installed.
    """
    items, sources = list[Any](), dict[str, dict[str, Any]]()
    check(names, folder, text)
    with quiet():
        for name in dict.fromkeys(names):
            if Path(name).suffix in (".yaml", ".yml"):
                item, about = _own(Path(name))
            elif name == CONTINUATION_CHOICE:
                item, about = _continuation_choice(text or str(data_file(folder, TEXT)))
            elif name == "blimp":
                item, about = _blimp(data_file(folder, BLIMP))
            else:
                item, about = _public(name, data_file(folder, PUBLIC[name].file))
            items += item
            sources |= dict.fromkeys([each.task_name for each in _leaves(item)], about)
    return Suite(items, sources)


def check(names: Sequence[str], folder: str | Path | None = None, text: str | None = None) -> None:
    """Raises what `load` does for names and for files of a folder that is given, before anything is read or imported."""
    given = bool(folder or os.environ.get("REDRAFT_DATA"))
    for name in names:
        if Path(name).suffix in (".yaml", ".yml"):
            _own_file(Path(name))
        elif name == CONTINUATION_CHOICE:
            check_named(text or (str(data_file(folder, TEXT)) if given else None))
        elif name in NAMES:
            if given:
                data_file(folder, BLIMP if name == "blimp" else PUBLIC[name].file)
        else:
            raise unknown("task", name, [*NAMES, "FILE.yaml"])


def data_file(folder: str | Path | None, name: str) -> Path:
    """A file below the data folder. Raises `UserError` where either is missing."""
    root = folder or os.environ.get("REDRAFT_DATA")
    if not root:
        raise UserError("tasks are read from local files: say where they are with --data-dir, or set REDRAFT_DATA")
    path = Path(root).expanduser() / name
    if not path.is_file():
        raise UserError(
            f"no such task file: {path}{whereabouts(path)} (--data-dir or REDRAFT_DATA names the folder that holds {name})"
        )
    return path


def continuations(
    documents: Sequence[str], questions: int = QUESTIONS, context: int = CONTEXT, continuation: int = CONTINUATION
) -> task_data.Docs:
    """Evenly spread places of a text, each with the `continuation` characters that follow `context` others, and three rivals:
    what follows the places a quarter, a half and three quarters of the text further on. All four begin with a space.

    The place of the right answer goes around. Raises `UserError` for a text with too few places.
    """
    places = [
        (number, start)
        for number, text in enumerate(documents)
        for start in _places(text, context, continuation)
    ]  # fmt: skip
    count = min(questions, len(places))
    if count < 8:
        raise UserError(
            f"the text has {count} places for a question of {context} + {continuation} characters: use more of it"
        )
    chosen = [places[i * len(places) // count] for i in range(count)]
    ends = [documents[n][at : at + continuation] for n, at in chosen]
    docs = task_data.Docs()
    for i, (n, at) in enumerate(chosen):
        others = [ends[(i + quarter * count // 4) % count] for quarter in (1, 2, 3)]
        choices = [*others[: i % 4], ends[i], *others[i % 4 :]]
        docs.append({"context": documents[n][at - context : at], "choices": choices, "gold": i % 4})
    return docs


def _places(text: str, context: int, continuation: int) -> Iterator[int]:
    """Spaces between words, a whole question apart."""
    at = text.find(" ", context)
    while 0 <= at <= len(text) - continuation:
        if text[at - 1 : at + 2].strip() and not text[at - 1].isspace() and not text[at + 1].isspace():
            yield at
            at = text.find(" ", at + context + continuation)
        else:
            at = text.find(" ", at + 1)


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval, and what it loads, without its bars and its chatter, and without a network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    try:
        import datasets
        import lm_eval.api.task as definitions
    except ImportError as error:
        raise UserError(f"{NEEDED} ({error})") from None
    log, bar = logging.getLogger("lm_eval"), definitions.tqdm
    before = log.level
    datasets.disable_progress_bars()
    log.setLevel(logging.CRITICAL)
    definitions.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        log.setLevel(before)
        definitions.tqdm = bar


def _public(name: str, path: Path) -> tuple[list[Any], dict[str, Any]]:
    local = PUBLIC[name]
    config = _definition(local.definition) | {"task": name, **dict(local.change)}
    return [_task(config, local.read(path))], _about(path, local.note)


def _blimp(path: Path) -> tuple[list[Any], dict[str, Any]]:
    from lm_eval.api.group import Group
    from lm_eval.config.group import GroupConfig

    template, group = _definition("blimp/_template_yaml"), _definition("blimp/_blimp.yaml")
    whole = Group.from_config(GroupConfig(**group))
    for name, docs in task_data.blimp(path).items():
        whole.add(_task(template | {"task": f"blimp_{name}"}, docs))
    return [whole], _about(path)


def _continuation_choice(text: str) -> tuple[list[Any], dict[str, Any]]:
    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True}
        for metric in ("acc", "acc_norm", "acc_mutual_info")
    ]
    config = {
        "task": CONTINUATION_CHOICE,
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }
    source = open_source(text)
    docs = continuations([document.text for document in source.documents()])
    return [_task(config, docs)], {"source": text, "questions": len(docs), "characters": [CONTEXT, CONTINUATION]}


def _own(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """A task file of the user's. Whatever is wrong with it is one line: every request is built before any is scored."""
    from lm_eval.tasks import TaskManager

    _own_file(path)
    try:
        loaded = TaskManager(include_path=None, include_defaults=False).load([str(path)])
        tasks = list(loaded["tasks"].values())
        for task in tasks:
            task.set_config("num_fewshot", task.get_config("num_fewshot") or 0)
            task.set_fewshot_seed(0)
            task.build_all_requests()
    except Exception as error:  # lm-eval, YAML, Jinja and datasets raise whatever they like
        what = " ".join(str(error).split())[:300] or "no reason given"
        raise UserError(f"task file {path} cannot be used: {type(error).__name__}: {what}") from None
    return list(loaded.get("groups", {}).values()) or tasks, _about(path)


def _own_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no such task file: {path}{whereabouts(path)}")


def _task(config: dict[str, Any], docs: task_data.Docs) -> Any:
    """lm-eval's task over these documents, all of them for testing."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    source = ("dataset_path", "dataset_name", "dataset_kwargs")
    other = ("training_split", "validation_split", "fewshot_split", "tag")
    kept = {key: value for key, value in config.items() if key not in (*source, *other)}
    own = {"test_split": "test", "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}}
    return ConfigurableTask(config=kept | own)


def _definition(name: str) -> dict[str, Any]:
    """A file of lm-eval's own tasks."""
    try:
        import lm_eval.tasks
        from lm_eval.tasks._yaml_loader import load_yaml

        table: dict[str, Any] = load_yaml(Path(lm_eval.tasks.__file__).parent / name)
    except (ImportError, OSError) as error:
        raise UserError(f"{NEEDED} ({error})") from None
    return table


def _leaves(items: list[Any]) -> Iterator[Any]:
    for item in items:
        yield from (_leaves([*item]) if hasattr(item, "get_all_tasks") else [item])


def _about(path: Path, note: str = "") -> dict[str, Any]:
    return {"source": str(path), "sha256": sha256(path)} | ({"note": note} if note else {})


def ask_greedy(suite: Suite) -> frozenset[str]:
    """The tasks with a metric that asks if greedy decoding writes an answer: that is a decoding for each request."""
    asking = (
        task
        for task in _leaves(suite.items)
        if task.OUTPUT_TYPE == "loglikelihood" or "exact_match" in task.aggregation()
    )
    return frozenset(str(task.config.task) for task in asking)
