"""Learning-rate schedules, and how long a run with a flat rate is the beginning of a longer one. No torch."""

from __future__ import annotations

import math
from bisect import bisect_left

from redraft.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warmup, then cosine to min_lr x lr, or flat and a linear decay over the last share (wsd)."""
    warmup = warmup_steps(config, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    floor = config.lr * config.min_lr
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    left = (steps - step) / max(1.0, config.decay * steps)
    return floor + (config.lr - floor) * min(1.0, left)


def warmup_steps(config: TrainConfig, steps: int) -> int:
    return round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)


def shared_steps(config: TrainConfig, steps: int, longer: int) -> int:
    """How many first steps a wsd run of `steps` has in common with one of `longer`: all before its decay.

    Warmup-stable-decay (Hu et al. 2024, arXiv:2404.06395; Haegele et al. 2024, arXiv:2405.18392): up to there the two are
    the same run, bit for bit (on a GPU with train.deterministic), so that the shorter can branch off the longer. 0 for
    schedules that know the end all along.
    """
    if config.schedule != "wsd" or warmup_steps(config, steps) != warmup_steps(config, longer):
        return 0
    # From the decay on the shorter run is always below the longer one.
    differ = lambda step: learning_rate(config, step, steps) != learning_rate(config, step, longer)
    return bisect_left(range(steps), True, key=differ)
