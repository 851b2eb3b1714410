"""The texts of a race under an evaluator model, and the racers compared at one entropy (`matched_entropy.py`).

Of a text only what was written counts: its nats are those of the whole less those of the prompt, its entropy is that of the
written tokens. Where the evaluator cuts text otherwise than the racers, a token that spans the end of the prompt is shared
between both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.evaluation.generation.diversity import ngrams, unigram_entropy
from redraft.evaluation.generation.evaluators import Evaluator, mean, ratio
from redraft.frontier.extend import TRIES, next_temperature
from redraft.frontier.matched_entropy import Matching, match
from redraft.frontier.pareto import REAL, Frontier, Key, Real, Scored, Speed, frontier
from redraft.frontier.race import Lap, Racer, Written, batches, written
from redraft.text.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Bench:
    """`real`: rows of held-out ids, as long as what is written of each sample. `temperatures`: the sweep, which goes on until
    a curve has the entropy. `entropy`: nats at which racers are compared; None: that of `real`."""

    evaluator: Evaluator
    real: Sequence[Tensor]
    temperatures: tuple[float, ...]
    entropy: float | None = None


@dataclass(frozen=True)
class Judged:
    """All settings, and the comparison at one entropy; None where there is no entropy to compare at."""

    speeds: Frontier
    matching: Matching | None


def judged(laps: Sequence[Lap], temperature: float, bench: Bench, done: Callable[[], object]) -> Judged:
    """Score what the laps wrote at `temperature`, and what they write at others until each curve has the entropy."""
    speeds, scores, real = list[Speed](), dict[Key, Scored](), None
    if bench.real:
        real, scores[REAL] = _real(bench, laps[0].racer.model.tokenizer)
    level = bench.entropy if bench.entropy is not None else real.entropy if real else None
    for lap in laps:
        curve, pending, further = dict[float, float](), [temperature, *bench.temperatures], 0
        while pending:
            now = pending.pop(0)
            if now not in curve:
                made = lap.batches if now == temperature else _swept(lap.racer, lap.steps, now, done)
                speed, scored = _setting(lap, now, made, bench.evaluator)
                speeds.append(speed)
                scores[speed.key] = scored
                curve[now] = speed.entropy
            if not pending and level is not None and further < TRIES:
                found = next_temperature(curve, level)
                pending, further = [found] if found is not None else [], further + 1
    whole = Frontier(tuple(frontier(speeds, scores)), real, asdict(bench.evaluator.identity), None, scores)
    return Judged(whole, match(whole, bench.entropy))


def _swept(racer: Racer, steps: int, temperature: float, done: Callable[[], object]) -> tuple[Written, ...]:
    out = []
    for numbers in batches(racer.course):
        out.append(written(racer, numbers, steps, temperature))
        done()
    return tuple(out)


def _setting(lap: Lap, temperature: float, made: Sequence[Written], evaluator: Evaluator) -> tuple[Speed, Scored]:
    racer, tokens = lap.racer, torch.cat([one.tokens for one in made])
    given = [len(racer.prompts[number % len(racer.prompts)]) for number in range(len(tokens))]
    scored, per_byte = _scored(tokens, racer, evaluator)
    seconds, new = [one.seconds for one in made], sum(one.new for one in made)
    calls = sum(one.calls for one in made) / len(made)
    inner = tokens[:, max(given) :]  # of one length, as n-grams need them
    (quality, quality_se), (entropy, entropy_se) = _quality(scored), mean(scored.entropy)
    middle, slow = (float(q) for q in np.percentile(seconds, [50, 95]))
    speed = Speed(
        family=racer.name, name=racer.name, sampler=racer.sampler or racer.model.family.sampler, steps=lap.steps,
        temperature=temperature, top_p=1.0, batch=racer.course.batch, samples=len(tokens), length=racer.course.length,
        tokens_per_second=new / sum(seconds), latency_p50=middle, latency_p95=slow, timed=len(made), nfe=calls,
        tokens_per_forward=new / len(tokens) / calls, flops_per_token=float("nan"), peak_bytes=None, mauve=None, mauve_sd=None,
        quality=quality, quality_se=quality_se, nats_per_byte=per_byte[0], nats_per_byte_se=per_byte[1],
        entropy=entropy, entropy_se=entropy_se, source_quality=None, source_quality_se=None, **ngrams(inner),
    )  # fmt: skip
    return speed, scored


def _scored(tokens: Tensor, racer: Racer, evaluator: Evaluator) -> tuple[Scored, tuple[float, float]]:
    """Of rows [n, L], sample i in row i: what was written, without the prompts; and nats per byte with their error."""
    tokenizer = racer.model.tokenizer
    whole = evaluator.score(tokens, tokenizer)
    before = torch.stack([_cost(ids, evaluator, tokenizer) for ids in racer.prompts])
    picks = torch.arange(len(tokens)) % len(racer.prompts)
    nats, count, size = (
        part.double().cpu() - before[picks, at] for at, part in enumerate((whole.nats, whole.tokens, whole.bytes))
    )
    entropy = [
        float(unigram_entropy(row[len(racer.prompts[at]) :])) for row, at in zip(tokens, picks.tolist(), strict=True)
    ]
    return Scored(nats.numpy(), count.numpy(), np.array(entropy)), ratio(nats, size)


def _cost(prompt: Tensor, evaluator: Evaluator, tokenizer: Tokenizer) -> Tensor:
    """[3]: nats, tokens and bytes of a prompt."""
    if not len(prompt):
        return torch.zeros(3, dtype=torch.float64)
    found = evaluator.score(prompt[None], tokenizer)
    return torch.stack([part[0].double().cpu() for part in (found.nats, found.tokens, found.bytes)])


def _real(bench: Bench, tokenizer: Tokenizer) -> tuple[Real, Scored]:
    sizes = sorted({len(row) for row in bench.real})
    groups = [torch.stack([row for row in bench.real if len(row) == size]) for size in sizes]
    found = [bench.evaluator.score(rows, tokenizer) for rows in groups]
    join = lambda part: torch.cat([getattr(one, part).double().cpu() for one in found])
    entropy = np.array([float(unigram_entropy(row)) for rows in groups for row in rows])
    nats, count, size = join("nats"), join("tokens"), join("bytes")
    inner = torch.cat([rows[:, : sizes[0]] for rows in groups])
    scored = Scored(nats.numpy(), count.numpy(), entropy)
    (quality, quality_se), (middle, error) = _quality(scored), mean(entropy)
    real = Real(
        quality=quality, quality_se=quality_se, nats_per_byte=ratio(nats, size)[0], entropy=middle, entropy_se=error,
        source_quality=None, **ngrams(inner),
    )  # fmt: skip
    return real, scored


def _quality(scored: Scored) -> tuple[float, float]:
    return ratio(torch.as_tensor(scored.nats), torch.as_tensor(scored.tokens))
