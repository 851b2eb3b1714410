"""One evaluation on tasks, from loading to results: lm-eval scores, and the settings that define its numbers are recorded.

Two results over the same documents can be compared document by document (`against`): McNemar's exact test of their
disagreements for right-or-wrong metrics, which needs far fewer documents than two separate standard errors.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from redraft.errors import UserError
from redraft.evaluation.lm_eval.tasks import Suite, quiet
from redraft.evaluation.provenance import versions

BOOTSTRAP = 1000  # resamples, of metrics whose error has no closed form
_RATIOS = ("word_perplexity", "byte_perplexity", "bits_per_byte")


def evaluate(lm: Any, suite: Suite, limit: int | None = None) -> dict[str, Any] | None:
    """The result of `lm` (a `RedraftLM`) on each task: metrics with standard errors, versions, sources, and every document's
    outcome. None on ranks other than the first, which gathers."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    began = time.perf_counter()
    # What lm-eval prints would stand in the middle of our JSON.
    with quiet(), contextlib.redirect_stdout(sys.stderr), unasked():
        out: Any = simple_evaluate(
            model=lm,
            tasks=suite.items,
            limit=limit,
            bootstrap_iters=BOOTSTRAP,
            task_manager=TaskManager(include_defaults=False),
        )
    gathered = lm.gather_object(lm.counts())
    if out is None:
        return None
    tasks = {name: _task(name, out, suite) for name in sorted(out["samples"])}
    return {
        "settings": lm.settings(),
        "limit": limit,
        "tasks": tasks,
        "groups": {name: _metrics(out["results"][name]) for name in out.get("group_subtasks", {}) if name not in tasks},
        "requests": added(gathered),
        "ranks": lm.world_size,
        "versions": versions() | {"lm_eval": importlib.metadata.version("lm_eval")},
        "seconds": time.perf_counter() - began,
    }


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """lm-eval asks git for the commit of the folder it is started in, which is not ours to say, and git complains aloud; and a
    dozen programs what machine this is, which takes them a second and is not in our result."""
    from lm_eval import evaluator

    asked: tuple[Any, Any] = evaluator.get_git_commit_hash, evaluator.add_env_info
    evaluator.get_git_commit_hash, evaluator.add_env_info = lambda: None, lambda results: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash, evaluator.add_env_info = asked


def added(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of all ranks; their Monte Carlo errors averaged by requests."""
    sums: dict[str, Any] = {name: sum(c[name] for c in counts) for name in ("scored", "truncated", "tokens_cut")}
    known = [(c["monte_carlo_error"], c["scored"]) for c in counts if c["monte_carlo_error"] is not None]
    weight = sum(scored for _, scored in known)
    return sums | {"monte_carlo_error": sum(e * n for e, n in known) / weight if weight else None}


def against(result: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each right-or-wrong metric of the tasks that both have, document by document.

    Raises `UserError` where they did not see the same documents.
    """
    out = []
    for task in sorted(result["tasks"].keys() & other["tasks"].keys()):
        ours, theirs = result["tasks"][task], other["tasks"][task]
        if ours["documents"] != theirs["documents"]:
            raise UserError(f"the two results saw different documents of task {task!r}: use the same data and --limit")
        for metric in sorted(ours["outcomes"].keys() & theirs["outcomes"].keys()):
            out.append(
                {"task": task, "metric": metric, **mcnemar(ours["outcomes"][metric], theirs["outcomes"][metric])}
            )
    if not out:
        raise UserError("the two results have no task and right-or-wrong metric in common")
    return out


def mcnemar(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Of two lists of 0 and 1: the difference of their means, its standard error, and the exact two-sided p-value of as many
    documents that only one of them got right (McNemar 1947)."""
    from scipy.stats import binomtest

    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    n = len(difference)
    return {
        "difference": float(difference.mean()),
        "stderr": float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        "better": better,
        "worse": worse,
        "p": float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
    }


def ratio_error(pairs: Sequence[tuple[float, float]]) -> float | None:
    """One standard error of sum a / sum b over documents (a, b), by linearising the ratio."""
    a, b = np.asarray(pairs, float).T
    if len(a) < 2:
        return None
    beyond = a - a.sum() / b.sum() * b
    return float(math.sqrt(len(a) / (len(a) - 1) * (beyond**2).sum()) / b.sum())


def _task(name: str, out: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    samples = sorted(out["samples"][name], key=lambda sample: sample["doc_id"])
    metrics = _metrics(out["results"][name])
    for metric in set(_RATIOS) & metrics.keys():
        error = ratio_error([sample[metric] for sample in samples])
        metrics[metric]["stderr"] = None if error is None else _scaled(metric, metrics[metric]["value"] or 0.0, error)
    return {
        "version": out["versions"].get(name),
        "shots": out["n-shot"].get(name),
        "n": len(samples),
        "metrics": metrics,
        "higher_is_better": out["higher_is_better"].get(name),
        "documents": [sample["doc_hash"][:16] for sample in samples],
        "outcomes": {m: [s[m] for s in samples] for m in metrics if all(s.get(m) in (0, 1) for s in samples)},
        **suite.sources[name],
    }


def _scaled(metric: str, value: float, error: float) -> float:
    """The error of exp(-ratio), or of bits, from that of the ratio."""
    return error / math.log(2) if metric == "bits_per_byte" else value * error


def _metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """lm-eval's flat "acc,none" and "acc_stderr,none" as {"acc": {"value", "stderr"}}; other filters keep their names."""
    out = {}
    for key, value in results.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = results.get(f"{metric}_stderr,{kind}")
        name = metric if kind == "none" else f"{metric},{kind}"
        out[name] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else None}
    return out
