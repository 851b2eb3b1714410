"""Learning-rate schedules, and branches of a constant-rate run that decay at several budgets. No torch."""

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


def idle(config: TrainConfig, steps: int) -> list[str]:
    """Warnings on settings that have no effect, or not the intended one, in a run of so many steps; a sentence each."""
    warmup, out = warmup_steps(config, steps), list[str]()
    decay = math.ceil(config.decay * steps) - 1  # steps whose rate is below the flat one
    if warmup >= steps:
        out.append(
            f"train.warmup takes {warmup} steps and the run has {steps}: the peak rate train.lr is never reached."
        )
    if config.schedule == "wsd" and decay < 1:
        out.append(f"train.decay is {config.decay:g} of {steps} steps, less than two: the rate never falls.")
    elif config.schedule == "wsd" and warmup < steps < warmup + decay:
        out.append(
            f"train.decay begins at step {steps - decay}, within the warm-up of {warmup}: the rate leaps down there."
        )
    if config.ema and 1 / (1 - config.ema) > steps:
        out.append(f"train.ema averages over {1 / (1 - config.ema):.4g} steps, more than the {steps} of the run.")
    if config.save_every > max(steps, TrainConfig.model_fields["save_every"].default):
        out.append(f"train.save_every is {config.save_every}, beyond the {steps} steps: no state is saved on the way.")
    return out


def shared_steps(config: TrainConfig, steps: int, longer: int) -> int:
    """How many first steps a wsd run of `steps` has in common with one of `longer`: all before its decay.

    Warmup-stable-decay (Hu et al. 2024, arXiv:2404.06395; Haegele et al. 2024, arXiv:2405.18392): up to there the two are
    the same run, bit for bit (on a GPU with train.deterministic), so that the shorter can branch off the longer. 0 for
    schedules that depend on the number of steps from the start (cosine).
    """
    if config.schedule != "wsd" or warmup_steps(config, steps) != warmup_steps(config, longer):
        return 0
    # From the decay on the shorter run is always below the longer one.
    differ = lambda step: learning_rate(config, step, steps) != learning_rate(config, step, longer)
    return bisect_left(range(steps), True, key=differ)
