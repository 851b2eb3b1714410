"""The adapter under lm-eval's own evaluator: four kinds of request, every family, one rank or two, killed or not."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from redraft.cli import main
from redraft.errors import UserError
from redraft.evaluation.likelihood.continuations import Request
from redraft.evaluation.lm_eval.decoding import Writing, cut, greedy_way
from redraft.evaluation.lm_eval.harness import RedraftLM
from redraft.evaluation.lm_eval.suite import added, evaluate, mcnemar, ratio_error
from redraft.evaluation.lm_eval.tasks import Suite, quiet
from redraft.hub.model import Model
from redraft.registry import FAMILIES
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from tests.evaluation.models import model
from tests.processes import ended, redraft
from tests.small_runs import corpus, tiny
from tests.training.spawned import environment, free_port

DOCS = [{"q": f"Is {n} odd?", "c": ["yes", "no", "who knows"], "gold": n % 3} for n in range(7)]
TEXTS = [{"t": f"A text of number {n}, " * (1 + 2 * n)} for n in range(4)]
CHOICE = {"doc_to_text": "q", "doc_to_choice": "c", "doc_to_target": "gold"}
METRICS = [
    {"metric": name, "aggregation": "mean", "higher_is_better": True}
    for name in ("acc", "acc_norm", "acc_mutual_info", "exact_match")
]
FORMS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "multiple_choice": (DOCS, CHOICE | {"metric_list": METRICS}),
    "loglikelihood": (DOCS, {"doc_to_text": "q", "doc_to_target": " {{c[gold]}}"}),
    "loglikelihood_rolling": (TEXTS, {"doc_to_text": "", "doc_to_target": "t"}),
    "generate_until": (
        DOCS,
        {
            "doc_to_text": "q",
            "doc_to_target": "{{c[gold]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
}  # fmt: skip


def suite(*kinds: str) -> Suite:
    items = []
    with quiet():
        for kind in kinds or FORMS:
            docs, form = FORMS[kind]
            made = {"task": kind, "output_type": kind, "test_split": "test", "metadata": {"version": 1}}
            items.append(
                ConfigurableTask(
                    config=made | form | {"custom_dataset": lambda docs=docs, **_: {"test": Dataset.from_list(docs)}}
                )
            )
    return Suite(items, {kind: {} for kind in FORMS})


def result_of(whole: Model, *kinds: str, limit: int | None = None, **settings: Any) -> dict[str, Any]:
    result = evaluate(RedraftLM(whole, **{"draws": 2, **settings}), suite(*kinds), limit)
    assert result is not None
    return result


def numbers(result: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(t, m): v["value"] for t, task in result["tasks"].items() for m, v in task["metrics"].items()}


def asked(context: str, *continuations: str, kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {"q": context}, (context, c), n, ("task", 0, 1)) for n, c in enumerate(continuations)]


@pytest.fixture(autouse=True)
def _resampled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval would start a pool of processes for each bootstrap, however short."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")


# Every family, every kind


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_every_kind(name: str) -> None:
    result = result_of(model(name), limit=2)
    assert set(result["tasks"]) == set(FORMS)
    for task in result["tasks"].values():
        assert task["n"] == 2 and task["version"] == 1
        for metric in task["metrics"].values():
            assert metric["stderr"] is not None and math.isfinite(metric["value"])
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("name", ["ar", "mdlm", "duo", "esolm"])
def test_numbers_do_not_depend_on_batch_size(name: str) -> None:
    first, *others = (numbers(result_of(model(name), limit=4, batch_size=size)) for size in (1, 5, 64))
    for other in others:
        assert first == pytest.approx(other, rel=1e-9)


def test_a_result_holds_what_defines_it() -> None:
    settings = result_of(model("mdlm"), "multiple_choice", limit=1, guidance=0.5, seed=3)["settings"]
    assert settings["estimator"] == {"name": "mask_count"} and settings["draws"] == 2 and settings["seed"] == 3
    assert settings["guidance"] == {"weight": 0.5, "kind": "unsupervised"} and settings["window"] == 64
    assert settings["greedy"] == "confidence" and len(settings["fingerprint"]) == 64
    assert settings["conventions"]["first_token"].startswith("none")
    exact = result_of(model("ar"), "multiple_choice", limit=1)
    assert exact["settings"]["draws"] == 1 and exact["settings"]["conventions"]["first_token"].startswith("BOS")
    assert exact["requests"]["monte_carlo_error"] == 0


def test_scores_are_log_likelihoods_and_their_parts_add_up() -> None:
    """Of a continuation in two parts, left to right; and a rolling text is the sum of its windows."""
    lm = RedraftLM(model("ar"))
    (whole, _), (first, _) = lm.loglikelihood(asked("abc", " de fg", " de"))
    ((second, _),) = lm.loglikelihood(asked("abc de", " fg"))
    assert whole == pytest.approx(first + second, rel=1e-9) and whole < first < 0
    text = "0123456789" * 10
    (rolled,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0, ("task", 0, 1))])
    scorer = lm.scorer
    parts = [
        Request((), tuple(text[:64].encode()), ""),
        Request(tuple(text[36:64].encode()), tuple(text[64:].encode()), ""),
    ]
    assert rolled == pytest.approx(-sum(n.nats for n in scorer.score(parts)), rel=1e-9)


def test_a_question_is_its_document() -> None:
    """The unconditional request of mutual information shares the noise of its question; another document's does not."""
    lm = RedraftLM(model("mdlm"), draws=4)
    same = [Instance("loglikelihood", {"q": "x"}, ("", " yes"), 0, ("task", 0, 1)) for _ in range(2)]
    other = replace(same[0], doc={"q": "y"})
    (a, _), (b, _), (c, _) = lm.loglikelihood([*same, other])
    assert a == b != c


# Greedy


@pytest.mark.parametrize("name", FAMILIES)
def test_what_greedy_decoding_writes_is_greedy(name: str) -> None:
    """One that it writes is, and one that differs in a token is not."""
    lm = RedraftLM(model(name), draws=1)
    canvas_of = [Instance("generate_until", {"q": "abc"}, ("abc", {"until": [], "max_gen_toks": 3}), 0, ("task", 0, 1))]
    scorer, request = lm.scorer, lm._job(canvas_of[0])[0]
    from redraft.evaluation.lm_eval.decoding import _canvas_of, _frames, is_greedy
    from redraft.types import last

    writing = Writing(3)
    (row,) = last(_frames(scorer, _canvas_of(scorer, [request], writing), (request, writing))).tokens.tolist()
    if greedy_way(scorer.model.family) == "argmax_chain" and name != "ar":
        row = [*request.context]
        for _ in range(3):  # one token after another
            scores = [replace(request, continuation=(*row[3:], i)) for i in range(257)]
            row.append(is_greedy(scorer, scores).index(True))
    written = replace(request, continuation=tuple(row[3:]))
    wrong = replace(request, continuation=(*row[3:5], (row[5] + 1) % 257))
    assert is_greedy(scorer, [written, wrong]) == [True, False]


# Generation


@pytest.mark.parametrize("name", ["ar", "mdlm", "duo", "esolm", "bd3lm"])
def test_writing_does_not_depend_on_what_is_asked_beside_it(name: str) -> None:
    lm = RedraftLM(model(name), seed=2)
    settings = {"until": ["q"], "max_gen_toks": 8}
    for more in ({}, {"do_sample": True, "temperature": 0.8}):
        jobs = [
            Instance("generate_until", {"q": q}, (q, settings | more), 0, ("task", 0, 1))
            for q in ("ab", "cde", "fg", "h")
        ]
        together = lm.generate_until(jobs)
        assert together == [lm.generate_until([job])[0] for job in jobs]
        assert all("q" not in text for text in together)


def test_text_stops_before_the_first_stop_string() -> None:
    assert cut("one. two\nthree", ["\n", "."]) == "one" and cut("one", ["\n", ""]) == "one"
    assert Writing.of({"until": "x", "max_gen_toks": 4}, 9) == Writing(4, ("x",))
    assert Writing.of({"temperature": 0.7, "do_sample": True, "top_p": 0.9}, 9) == Writing(9, (), 0.7, 0.9)
    with pytest.raises(UserError, match="unknown generation setting 'top_k'"):
        Writing.of({"top_k": 5}, 9)


# What cannot be done


SETTINGS: list[tuple[dict[str, Any], Writing]] = [
    ({}, Writing(9)),
    ({"do_sample": False, "temperature": 1.0, "top_p": 0.5}, Writing(9)),
    ({"temperature": 0.7}, Writing(9, (), 0.7)),
    ({"do_sample": True}, Writing(9, (), 1.0)),
    ({"do_sample": True, "temperature": 0}, Writing(9)),
    ({"do_sample": True, "temperature": 0.0, "top_p": 0.0}, Writing(9)),
    ({"max_gen_toks": 0}, Writing(0)),
    ({"max_new_tokens": 3}, Writing(3)),
    ({"temperature": None, "until": None, "max_gen_toks": None}, Writing(9)),
]


@pytest.mark.parametrize(("settings", "read"), SETTINGS, ids=[str(settings) for settings, _ in SETTINGS])
def test_settings_are_read_as_the_harness_reads_them(settings: dict[str, Any], read: Writing) -> None:
    """Zero and false are values, and null is none."""
    assert Writing.of(settings, 9) == read


@pytest.mark.parametrize(
    "settings",
    [
        {"max_gen_toks": -1},
        {"do_sample": True, "top_p": 0},
        {"temperature": -1, "do_sample": True},
        {"do_sample": "no"},
        {"temperature": "warm"},
        {"do_sample": True, "temperature": math.nan},
        {"steps": -1},
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Writing.of(settings, 9)


@pytest.mark.parametrize("name", FAMILIES)
def test_repeats_are_independent_draws_and_the_same_ones_again(name: str, tmp_path: Path) -> None:
    """Four repeats of a question are four texts; asked again, or from a file of answers, they are the same four."""
    kwargs = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    once = [Instance("generate_until", doc, (doc["q"], kwargs), 0, ("t", n, 4)) for n, doc in enumerate(DOCS[:2])]
    requests = [one for one in once for _ in range(4)]
    lm = RedraftLM(model(name, length=32), cache=tmp_path / "answers")
    texts = lm.generate_until(requests)
    assert len(set(texts[:4])) == len(set(texts[4:])) == 4
    assert lm.generate_until(requests) == texts == RedraftLM(model(name, length=32)).generate_until(requests)
    assert RedraftLM(model(name, length=32)).generate_until(once) == [texts[0], texts[4]]


def test_a_text_of_no_tokens_is_empty() -> None:
    asked = Instance("generate_until", DOCS[0], ("a", {"until": [], "max_gen_toks": 0}), 0, ("t", 0, 1))
    assert RedraftLM(model("ar")).generate_until([asked]) == [""]


def test_a_request_that_does_not_fit_is_an_error_and_never_a_score() -> None:
    lm, long = RedraftLM(model("mdlm")), "x" * 70
    with pytest.raises(UserError, match=r"document 0 of task task has 70 tokens of context .* --truncate"):
        lm.loglikelihood(asked(long, " yes"))
    with pytest.raises(UserError, match="continuation of 70 tokens"):
        RedraftLM(model("mdlm"), truncate=True).loglikelihood(asked("a", long))
    with pytest.raises(UserError, match="document 0 of task task has an empty continuation"):
        lm.loglikelihood(asked("a", ""))
    with pytest.raises(UserError, match="empty text"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0, ("task", 0, 1))])
    with pytest.raises(UserError, match="max_gen_toks 64 do not fit"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": 64}), 0, ("task", 0, 1))])


def test_cut_contexts_are_counted() -> None:
    lm = RedraftLM(model("mdlm"), truncate=True, draws=2)
    lm.loglikelihood(asked("x" * 70, " yes", " no"))
    assert lm.counts()["truncated"] == 2 and lm.counts()["tokens_cut"] == 70 + 4 - 64 + 70 + 3 - 64


def test_an_absent_device_is_the_cpu_and_the_device_cannot_be_set() -> None:
    lm = RedraftLM(model("mdlm"), device="cuda:0", batch_size="auto")
    assert str(lm.device) == "cpu" and lm.batch_size == 32
    with pytest.raises(AttributeError):
        lm.device = "cpu"  # type: ignore[misc]


# Answers are kept


class Refusing:
    """A network that must not be asked."""

    def __init__(self, network: Any):
        self.network = network

    def trunk(self, view: Any) -> Any:
        raise AssertionError("asked again")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def test_a_second_evaluation_asks_nothing_of_the_network(tmp_path: Path) -> None:
    whole, kinds = model("mdlm"), ("multiple_choice", "loglikelihood_rolling", "generate_until")
    settings: dict[str, Any] = {"cache": tmp_path / "answers.db", "greedy": False}
    first = result_of(whole, *kinds, **settings)
    again = result_of(replace(whole, network=Refusing(whole.network)), *kinds, **settings)
    assert numbers(first) == numbers(again) and first["requests"] == again["requests"]
    for other in ({"seed": 1}, {"draws": 3}, {"guidance": 0.5}):
        with pytest.raises(AssertionError, match="asked again"):
            result_of(replace(whole, network=Refusing(whole.network)), *kinds, **(settings | other))
    with pytest.raises(AssertionError, match="asked again"):
        result_of(replace(model("mdlm", objective="nelbo"), network=Refusing(whole.network)), *kinds, **settings)


def test_a_killed_evaluation_keeps_what_it_scored(tmp_path: Path) -> None:
    whole, seen = model("mdlm"), list[int]()

    def kill(doing: str, done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"cache": tmp_path / "answers.db", "greedy": False, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        result_of(whole, "multiple_choice", progress=kill, **settings)
    rest: list[int] = []
    result_of(whole, "multiple_choice", progress=lambda doing, done, total: rest.append(total), **settings)
    assert rest[0] == len(DOCS) * 3 + len(DOCS) * 3 - seen[-1]


def test_a_file_that_is_no_file_of_answers_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello, this is not a database of anything")
    with pytest.raises(UserError, match="cannot be used as a file of answers"):
        RedraftLM(model("mdlm"), cache=tmp_path / "x")


# Errors and comparisons


def test_mcnemar_counts_disagreements_alone() -> None:
    """10 of 10 one way: 2 / 2^10."""
    ours, theirs = [1] * 10 + [1, 0] * 5, [0] * 10 + [1, 0] * 5
    found = mcnemar(ours, theirs)
    assert found["better"] == 10 and found["worse"] == 0 and found["p"] == pytest.approx(2 / 2**10)
    assert found["difference"] == 0.5 and mcnemar(ours, ours)["p"] == 1.0


def test_errors_of_ratios_are_those_of_the_jackknife() -> None:
    """To first order in 1/n."""
    pairs = [(-(n % 7) * 3.0 - n % 3, 5.0 + n % 4) for n in range(200)]
    a, b = (sum(p[i] for p in pairs) for i in (0, 1))
    left_out = [(a - x) / (b - y) for x, y in pairs]
    mean = sum(left_out) / len(pairs)
    jackknife = math.sqrt((len(pairs) - 1) / len(pairs) * sum((r - mean) ** 2 for r in left_out))
    assert ratio_error(pairs) == pytest.approx(jackknife, rel=0.01)


def test_counts_of_ranks_are_added() -> None:
    one = {"scored": 3, "truncated": 1, "tokens_cut": 2, "monte_carlo_error": 1.0}
    two = {"scored": 1, "truncated": 0, "tokens_cut": 0, "monte_carlo_error": 5.0}
    assert added([one, two]) == {"scored": 4, "truncated": 1, "tokens_cut": 2, "monte_carlo_error": 2.0}


# The command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    config = tiny(corpus(folder / "text"), data={"source": str(folder / "text"), "length": 128})
    for _ in carry_out(open_run(config, folder / "run"), folder / "run"):
        pass
    return folder


def command(trained: Path, *more: str) -> list[str]:
    text = str(trained / "text")
    return ["eval", str(trained / "run"), "--tasks", "continuation_choice", "--text", text, "--draws", "2", *more]


def test_the_command_writes_and_compares(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained / "a.json"
    main(command(trained, "--limit", "9", "--out", str(out)))
    said = capsys.readouterr().out
    assert "continuation_choice: acc" in said and "mask_count, 2 draws, guidance 0 (unsupervised)" in said
    assert json.loads(out.read_text())["tasks"]["continuation_choice"]["n"] == 9
    main(command(trained, "--limit", "9", "--guidance", "1", "--against", str(out), "--json"))
    result = json.loads(capsys.readouterr().out)
    assert {c["metric"] for c in result["against"]["comparisons"]} == {"acc", "acc_norm", "acc_mutual_info"}
    with pytest.raises(SystemExit):
        main(command(trained, "--limit", "8", "--against", str(out)))
    assert "different documents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--guidance", "1"], "--guidance is for tasks"),
        (["--tasks", "nothing"], "unknown task 'nothing'"),
        (["--tasks", "piqa", "--data", "x"], "--data is for held-out text"),
        (["--tasks", "piqa", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    flags: Sequence[str], expected: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(trained / "run"), *flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and expected in said and said.count("\n") == 1


def test_without_lm_eval_the_command_says_what_to_install(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.task", None)
    with pytest.raises(SystemExit):
        main(command(trained))
    assert "redraft[harness]" in capsys.readouterr().err


def test_two_ranks_have_the_numbers_of_one(trained: Path, tmp_path: Path) -> None:
    main(command(trained, "--limit", "9", "--out", str(tmp_path / "one")))
    flags, port = command(trained, "--limit", "9", "--out", str(tmp_path / "two")), free_port()
    ranks = [redraft(*flags, **environment(rank, 2, port)) for rank in range(2)]
    assert [ended(rank) for rank in ranks] == [0, 0]
    one, both = (json.loads((tmp_path / name).read_text()) for name in ("one", "two"))
    assert (
        both["ranks"] == 2 and one["tasks"] == both["tasks"] and one["requests"]["scored"] == both["requests"]["scored"]
    )
