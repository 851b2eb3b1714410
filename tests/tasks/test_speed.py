"""Speed at equal quality: between two numbers of steps, and among texts as varied as the source's."""

from __future__ import annotations

from typing import Any

import pytest

from redraft.tasks.speed import at_quality, claims, curves


def row(model: str, sampler: str, steps: int, nats: float, entropy: float = 2.6) -> dict[str, Any]:
    """A call takes a hundredth of a second, alone a thousandth."""
    own = {"cpu_seconds": 0.01 * steps, "cpu_latency": 0.001 * steps, "batch": 16}
    return {"model": model, "sampler": sampler, "steps": steps, "nats": nats, "entropy": entropy, **own}


AR = row("ar", "left_to_right", 96, 2.0)
CURVE = [row("mdlm", "ancestral", steps, nats) for steps, nats in ((4, 3.0), (16, 2.5), (64, 1.5))]
PLAIN = [row("mdlm", "low_confidence", 4, 1.0, entropy=1.9)]


def test_steps_of_equal_quality_are_interpolated() -> None:
    at = at_quality(CURVE, 2.0, "cpu_seconds")
    assert at is not None and at.steps == pytest.approx(32) and at.seconds == pytest.approx(0.32)
    assert at_quality(CURVE, 3.5, "cpu_seconds") == (4, pytest.approx(0.04))
    assert at_quality(CURVE, 1.0, "cpu_seconds") is None


def test_plain_texts_do_not_count() -> None:
    assert list(curves([AR, *CURVE, *PLAIN], 2.6)) == ["mdlm ancestral"]
    said = claims([AR, *CURVE, *PLAIN], 2.6)
    assert said == [
        "As good as ar (2.000 nats/token), in batches of 16: mdlm ancestral in 32 steps, 3.00 times its speed.",
        "As good as ar (2.000 nats/token), alone: mdlm ancestral in 32 steps, 3.00 times its speed.",
    ]
    (none,) = claims([AR, *PLAIN], 2.6)
    assert none.startswith("No diffusion setting of full variety is as good as ar")
