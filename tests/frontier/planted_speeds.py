"""A planted frontier: quality is a straight line in entropy, so what a family has at a common entropy is known exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

REAL_ENTROPY, TEMPERATURES, LENGTH, SAMPLES = 2.95, (0.8, 1.0, 1.2), 64, 32
RATE = {"ar": 9e4, "mdlm": 7e5, "duo": 6.4e5, "esolm": 1.5e6}
BASE = {"ar": 2.25, "mdlm": 2.6, "duo": 2.4, "esolm": 2.75}
JUDGE = {"name": "judge-150k", "kind": "redraft", "weights": "cd" * 32, "dtype": "float32", "tokenizer": "bytes"}


def matched_quality(family: str, steps: int, entropy: float = REAL_ENTROPY) -> float:
    """The planted law, nats per token: 1.5 / steps above the family's best, 0.8 for each nat of entropy."""
    return BASE[family] + 1.5 / steps + 0.8 * (entropy - REAL_ENTROPY)


def steps_of(family: str) -> tuple[int, ...]:
    return (LENGTH,) if family == "ar" else (2, 4, 16, 64)


def rows_and_samples() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines of frontier.jsonl and samples.jsonl."""
    real, sample = _setting("text", 0, 1.0, 2.05, REAL_ENTROPY, 4 * SAMPLES, 7)
    rows, samples = [real | {"batch": 0}], [sample]
    for number, family in enumerate(BASE):
        for steps in steps_of(family):
            for temperature in TEMPERATURES:
                entropy = REAL_ENTROPY + 0.9 * (temperature - 1) + 0.05 * number - 0.1 / steps
                quality = matched_quality(family, steps, entropy)
                row, sample = _setting(family, steps, temperature, quality, entropy, SAMPLES, number)
                samples.append(sample)
                rows += [row | _costs(family, steps, batch) for batch in (32, 1)]
    return rows, samples


def _setting(
    family: str, steps: int, temperature: float, quality: float, entropy: float, n: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Noise of single samples is the same at every setting of a family, and has mean zero."""
    rng = np.random.default_rng(seed)
    error, spread = (x - x.mean() for x in 0.1 * rng.standard_normal((2, n)))
    name = family if family == "text" else f"{family}-75k"
    about = {
        "family": family,
        "name": name,
        "sampler": "ancestral",
        "steps": steps,
        "temperature": temperature,
        "top_p": 1.0,
    }
    scores = {
        "quality": quality, "quality_se": 0.1 / n**0.5, "nats_per_byte": quality, "nats_per_byte_se": 0.1 / n**0.5,
        "entropy": entropy, "entropy_se": 0.1 / n**0.5, "distinct_1": 0.02, "distinct_2": 0.2, "distinct_3": 0.5,
        "distinct_4": 0.8, "repetition_2": 0.3, "repetition_3": 0.1, "repetition_4": 0.04, "mauve": None, "mauve_sd": None,
        "source_quality": None, "source_quality_se": None, "samples": n, "length": LENGTH, "judge": JUDGE, "source": None,
    }  # fmt: skip
    each = {
        "nats": (LENGTH * (quality + error)).tolist(),
        "tokens": [LENGTH] * n,
        "entropy": (entropy + spread).tolist(),
    }
    return about | scores, about | {"nfe": steps, "text": f"text of {name}", "texts": [f"text of {name}"], **each}


def _costs(family: str, steps: int, batch: int) -> dict[str, Any]:
    rate = RATE[family] * (1 if family == "ar" else 8 / steps) * (1.0 if batch > 1 else 0.1)
    seconds = batch * LENGTH / rate
    return {
        "batch": batch, "tokens_per_second": rate, "latency_p50": seconds, "latency_p95": 1.2 * seconds, "timed": 4,
        "nfe": steps, "tokens_per_forward": LENGTH / steps, "flops_per_token": 1e5 * steps, "peak_bytes": None,
    }  # fmt: skip


def write_speeds(folder: Path, texts: dict[str, str]) -> None:
    """`texts`: what the samples of a family say."""
    rows, samples = rows_and_samples()
    samples = [s | ({"text": text} if (text := texts.get(s["family"])) else {}) for s in samples]
    for name, lines in (("frontier.jsonl", rows), ("samples.jsonl", samples)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
