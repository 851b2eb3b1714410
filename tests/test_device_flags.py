"""The device that is asked for reaches the network in every verb and task, and every result says what it was computed on.

"cpu:1" is a device of its own to who asks, and the CPU to who computes: a network that is loaded without being told where, or
by a default, shows. What is loaded is loaded on "cpu", for safetensors knows no other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.cli import main
from redraft.commands.task import TASKS
from redraft.commands.task_puzzles import PUZZLES
from redraft.config import merge
from redraft.errors import UserError
from redraft.evaluation.compute import Compute, recorded
from redraft.evaluation.generation.evaluators import RedraftEvaluator
from redraft.frontier.measure import Bench, Checkpoint, measure_models
from redraft.frontier.pareto import FRONTIER, load_frontier
from redraft.hub import model as hub
from redraft.hub.folder import load_model
from redraft.network import device as devices
from redraft.network.device import pick_device
from redraft.planning.frontier import FrontierConfig
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.tasks import known_entropy
from tests.small_runs import corpus, tiny

ASKED = "cpu:1"
WORDS = ["--device", ASKED, "--precision", "bfloat16", "--json"]
SMALL = ["--network.depth", "1", "--network.heads", "1", "--network.width", "16", "--batch", "4", "--workers", "1"]
SMALL += ["--evaluate.rows", "8", "--evaluate.draws", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    source, out = corpus(tmp_path_factory.mktemp("prose")), {"source": tmp_path_factory.mktemp("prose")}
    out["source"] = source
    for family in ("ar", "mdlm"):
        out[family] = tmp_path_factory.mktemp("models") / family
        run = open_run(tiny(source, family=family, budget={"steps": 4}, data={"length": 64}), out[family])
        for _ in carry_out(run, out[family]):
            pass
    return out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The devices on which networks were loaded, in turn."""
    found: list[str] = []

    def spied(folder: Path, device: torch.device) -> Any:
        found.append(str(device))
        return load_model(folder, torch.device("cpu"))

    monkeypatch.setattr(hub, "load_model", spied)
    monkeypatch.setenv("REDRAFT_CACHE", str(tmp_path / "cache"))
    yield found


def said(row: dict[str, Any], precision: str = "bfloat16") -> None:
    """What every result must say. The tensors of "cpu:1" call themselves "cpu"."""
    assert (row["device"], row["precision"], row["compiled"]) == ("cpu", precision, False) and row["device_name"]


def table(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    main([str(word) for word in words])
    return json.loads(capsys.readouterr().out)


def test_samples(trained: dict[str, Path], asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said(table(capsys, "sample", trained["mdlm"], "--length", 16, "--steps", 2, *WORDS))
    assert asked == [ASKED]


def test_likelihoods(
    trained: dict[str, Path], asked: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said(table(capsys, "eval", trained["mdlm"], "--rows", 4, "--out", tmp_path / "out.json", *WORDS))
    said(json.loads((tmp_path / "out.json").read_text()))
    assert asked == [ASKED]


def test_task_scores(
    trained: dict[str, Path], asked: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"It was the {i} of {i + 1} that he had as they are." for i in range(60))
    )
    words = [
        "--tasks",
        "continuation_choice",
        "--text",
        tmp_path / "text.txt",
        "--limit",
        2,
        "--draws",
        1,
        "--truncate",
    ]
    said(table(capsys, "eval", trained["mdlm"], *words, *WORDS))
    assert asked == [ASKED]


def test_answers(trained: dict[str, Path], asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "question.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["Hi"]}) + "\n")
    words = ["--questions", tmp_path / "question.jsonl", "--into", tmp_path / "a.jsonl", "--template", "plain"]
    main([str(w) for w in ("answer", trained["mdlm"], *words, "--length", 64, "--steps", 2, *WORDS)])
    said(json.loads((tmp_path / "a.jsonl").read_text()))
    assert asked == [ASKED]


class Known:
    """A source of text whose draws cost nothing."""

    vocab, sha256 = 5, "0" * 64

    def __init__(self, folder: Path):
        pass

    def sample(self, n: int, length: int, seed: int) -> Iterator[Tensor]:
        return iter([torch.randint(self.vocab, (n, length), generator=torch.Generator().manual_seed(seed))])

    def nats(self, tokens: Tensor) -> Tensor:
        return torch.arange(len(tokens), dtype=torch.float64)


def task_words(task: str, trained: dict[str, Path], folder: Path) -> list[object]:
    traces, books = folder / "traces.txt", folder / "books.jsonl"
    traces.write_text("".join(f"What is {a} + {a}?||<<{a}+{a}={2 * a}>> #### {2 * a}\n" for a in range(40)))
    rows = [{"year": year, "text": f"you are {i} " * 150} for year in (1800, 1920) for i in range(20)]
    books.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = ["--families", "mdlm", "--seeds", 1, *SMALL]
    words: dict[str, list[object]] = {
        "reversal": ["--steps", 2, "--people", 2, *one],
        "gsm8k": ["--from", trained["mdlm"], "--train", traces, "--test", traces, "--limit", 2, "--sampling-steps", 2,
                  "--steps", 2, "--workers", 1],
        "shift": ["--data", books, "--before", 1850, "--after", 1900, "--steps", 2, "--length", 16, *one],
        "arithmetic": ["--steps", 2, "--digits", 1, *one],
        "graphs": ["--steps", 2, "--edges", 2, "--examples", 20, "--asked", 4, *one],
        "sudoku": ["--steps", 2, "--examples", 20, "--asked", 4, *one],
        "lists": ["--steps", 2, "--items", 3, "--examples", 20, "--asked", 4, *one],
        "wordproblems": ["--steps", 2, "--chain", 1, "--examples", 20, "--asked", 4, *one],
        "speed": ["--source", folder, "--steps", 2, "--sampling-steps", 2, "--rounds", 1, *one],
    }  # fmt: skip
    return words[task]


RESULTS: dict[str, Callable[[dict[str, Any]], list[dict[str, Any]]]] = {
    "reversal": lambda record: record["runs"],
    "gsm8k": lambda record: record["rows"],
    "shift": lambda record: record["runs"],
    **dict.fromkeys(PUZZLES, lambda record: record["runs"]),
    "speed": lambda record: [row for row in record["settings"] if row["model"] != "source"],
}


@pytest.mark.parametrize("task", [task for task in TASKS if task != "ranks"])  # which works with no model
def test_tasks(
    task: str,
    trained: dict[str, Path],
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(known_entropy, "Stories", Known)
    into, words = tmp_path / "task", task_words(task, trained, tmp_path)
    record = table(capsys, "task", task, "--into", into, *words, *WORDS)
    assert asked and set(asked) == {ASKED}
    results = RESULTS[task](record)
    assert results
    for row in results:
        said(row)
    for path in into.glob("runs/*/record.json"):
        run = json.loads(path.read_text())
        assert (run["device"], run["precision"], run["compiled"]) == (ASKED, "bfloat16", False)


def test_a_study_and_its_frontier(
    asked: list[str], trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = {"families": ["mdlm"], "sizes": ["3.1k"], "flops": [2e8]}
    judge = {"families": ["ar"], "sizes": ["3.1k"], "flops": [2e8], "seeds": [1]}
    over = {"train": {"batch": 2, "threads": 1}, "data": {"source": str(trained["source"]), "length": 16}}
    over |= {"network": {"cond": 8}, "evaluate": {"rows": 4, "draws": 1}}
    study = {"base": over, "arm": [arm], "frontier": {"judge": judge, "samples": 4, "length": 16, "steps": [2]}}
    import tomli_w

    (tmp_path / "study.toml").write_text(tomli_w.dumps(study))
    rows = table(capsys, "study", "run", tmp_path / "study.toml", "--into", tmp_path / "s", *WORDS)
    assert {row["state"] for row in rows} == {"done"}
    records = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("runs/*/record.json")]
    assert len(records) == 2
    for record in records:
        assert (record["device"], record["precision"], record["compiled"]) == (ASKED, "bfloat16", False)
    _, row = table(capsys, "study", "frontier", tmp_path / "s", *WORDS)
    said(row)
    assert len(asked) >= 3 and set(asked) == {ASKED}  # the judge's too


def bench(folder: Path, compute: Compute) -> Bench:
    model = hub.load(folder, "cpu")
    settings = FrontierConfig(judge="judge", samples=4, length=16, steps=[2])
    real = torch.tensor([list(("the of and a to in " * 2)[i : i + 16].encode()) for i in range(16)])
    return Bench(settings, compute, RedraftEvaluator.of(model, "ar", "w"), None, real, model.tokenizer)


def test_a_frontier_is_of_one_kind_of_hardware(trained: dict[str, Path], tmp_path: Path) -> None:
    """Times of a CPU in float32 and of anything else do not belong in one file. A file that does not say is of a CPU."""
    models = [Checkpoint("mdlm", "m", trained["mdlm"])]
    measured = list(measure_models(models, tmp_path, bench(trained["ar"], Compute("cpu"))))
    file = tmp_path / FRONTIER
    own = ("device", "device_name", "precision", "compiled")
    old = [{k: v for k, v in json.loads(line).items() if k not in own} for line in file.read_text().splitlines()]
    for rows in (measured, old):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert not list(measure_models(models, tmp_path, bench(trained["ar"], Compute("cpu"))))
        with pytest.raises(UserError, match=r"measured with cpu.* in float32, and this is cpu .* in bfloat16: ask for"):
            list(measure_models(models, tmp_path, bench(trained["ar"], Compute("cpu", "bfloat16"))))
        found = load_frontier(tmp_path)
        assert found and found.places[0].speed.device == "cpu" and found.places[0].speed.precision == "float32"


def test_compiled_samples_say_so(trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is the compiled network that is timed."""
    compiled: list[bool] = []
    monkeypatch.setattr(
        "redraft.network.transformer.Transformer.compile_trunk", lambda self, graphs=False: compiled.append(graphs)
    )
    models = [Checkpoint("mdlm", "m", trained["mdlm"])]
    _, row = measure_models(models, tmp_path, bench(trained["ar"], Compute("cpu", compiled=True)))
    assert row["compiled"] is True and compiled == [False]


class Accelerator:
    """A machine with one accelerator of that kind, as far as asking goes."""

    def __init__(self, kind: str):
        self.kind = kind

    def is_available(self) -> bool:
        return True

    def current_accelerator(self) -> torch.device:
        return torch.device(self.kind)

    def device_count(self) -> int:
        return 1


def test_auto_takes_the_accelerator_unless_it_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, taken in (("cuda", "cuda"), ("mps", "cpu")):
        monkeypatch.setattr(devices.torch, "accelerator", Accelerator(kind))
        assert pick_device("auto").type == taken


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        (None, "cuda", "device 'cuda' is not there. torch sees no accelerator that it could use here. Try: auto, cpu"),
        ("cuda", "cuda:7", "device 'cuda:7' is not there. This machine has 1 of the kind cuda. Try: auto, cpu, cuda:0"),
        (None, "gpu", "unknown device 'gpu'. torch sees no accelerator"),
        ("mps", "mps", "device 'mps' is not used: it has no float64, in which tokens are drawn."),
    ],
)
def test_a_device_that_is_not_there_is_one_line_with_those_that_are(
    kind: str | None, name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind is None:
        monkeypatch.setattr(devices, "accelerator", lambda: None)
    else:
        monkeypatch.setattr(devices.torch, "accelerator", Accelerator(kind))
    if torch.accelerator.is_available() and name == "cuda" and kind is None and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UserError) as refused:
        pick_device(name)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


VERBS: list[list[object]] = [
    ["sample", "RUN"],
    ["eval", "RUN"],
    ["eval", "RUN", "--tasks", "piqa"],
    ["answer", "RUN", "--questions", "Q", "--into", "never/a.jsonl"],
    ["task", "reversal", "--into", "never"],
    ["study", "run", "demo", "--into", "never"],
    ["study", "tune", "demo", "--into", "never"],
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("words", VERBS, ids=lambda words: " ".join(words[:2]))
def test_every_verb_refuses_it_before_anything_is_done(
    words: list[Any], trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["Hi"]}) + "\n")
    names = {"RUN": str(trained["mdlm"]), "Q": str(tmp_path / "q.jsonl")}
    given = [names.get(word, word.replace("never", str(tmp_path / "never"))) for word in words]
    with pytest.raises(SystemExit) as stop:
        main([*given, "--device", "cuda"])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1 and "device 'cuda' is not there" in told
    assert not (tmp_path / "never").exists()


def test_flags_for_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["study", "fit", "x.csv", "--device", "cpu"], ["study", "run", "demo", "--compile"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "takes no --" in capsys.readouterr().err


def test_results_that_do_not_say_are_read_as_before(trained: dict[str, Path]) -> None:
    from redraft.files import read_json, write_json
    from redraft.runs.compare import read_result

    file = trained["mdlm"] / "record.json"
    record = read_json(file)
    new = read_result(trained["mdlm"])
    assert recorded("cpu", "float32").keys() <= record.keys()
    write_json(file, {k: v for k, v in record.items() if k not in recorded("cpu", "float32")})
    assert read_result(trained["mdlm"]) == new
    write_json(file, merge(record, {}))
