"""Stage 3: what sampling costs: families, steps and batches; tokens a second, latency, calls, rows headed, how busy."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from typing import Any

import torch
import torch._dynamo
from measure import clocked

from gpu_stages.ceiling import BF16
from gpu_stages.networks import random_network
from gpu_stages.plan import FAMILIES, Scale
from gpu_stages.record import Cases
from gpu_stages.steps import compiles
from gpu_stages.timing import memory, profiled, sample_noise
from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.sizes import from_size
from redraft.network.transformer import Transformer
from redraft.registry import SAMPLERS
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.types import last

EVERY = 10**6  # more steps than tokens: a token a call
LOOKED_AT = 8  # frames under the profiler
torch._dynamo.config.recompile_limit = 64


def run(cases: Cases, device: torch.device, size: Scale) -> None:
    network = random_network(from_size(size.small, "dit", size.vocab), device, BF16).requires_grad_(False).eval()
    models = {family: model(family, network, size) for family in FAMILIES}

    def case(family: str, batch: int, steps: int, compiled: bool = False, needs: float = 4.0) -> None:
        name = f"{family} x{batch}, {words(steps)}{' by graphs' if compiled else ''}"
        cases.run(name, sampled, models[family], batch, steps, size, compiled, needs=needs)
        sample_noise(device)

    for batch in size.batches:  # what says most comes first: all families at one batch, then the next
        for family in ("mdlm", "duo", "esolm"):
            for steps in size.steps:
                case(family, batch, steps)
        if batch == size.batches[0]:
            case("ar", batch, EVERY)
            case("esolm", batch, EVERY)
            if compiles(device):
                for family in ("mdlm", "ar"):
                    case(family, batch, size.steps[-1] if family == "mdlm" else EVERY, True, 30)
    for batch in size.ar_batches[1:]:
        case("ar", batch, EVERY)
    case("esolm", size.batches[-1], EVERY)


def words(steps: int) -> str:
    return "a token a call" if steps == EVERY else f"{steps} steps"


def model(name: str, network: Transformer, size: Scale) -> Model:
    """As it is loaded: the matrices in their format for a family whose network reads the time; others are folded first."""
    family = build(name, {}, size.vocab)
    network = deepcopy(network).narrow() if family.clocked else network
    return Model(family, network, Bytes(), size.sampled, {})


def sampled(of: Model, batch: int, steps: int, size: Scale, compiled: bool) -> dict[str, Any]:
    """One batch from the empty canvas to the finished one, after a warm-up: a short one, or all of it where it is compiled."""
    denoiser, canvas = of.denoiser(compiled=compiled), of.canvas("", batch, size.sampled)
    frames = lambda: of.frames(canvas, denoiser, "", min(steps, size.sampled), 0, _options(of, steps))
    last(frames() if compiled else islice(frames(), 3))
    denoiser.calls = denoiser.rows = 0
    found: list[Any] = []
    seconds = 0.0

    def once() -> None:
        nonlocal seconds
        seconds = clocked(lambda: found.append(last(frames()).tokens), of.device)

    peaks, tokens = memory(once, of.device), batch * size.sampled
    calls, rows = denoiser.calls, denoiser.rows
    assert int(found[0].max()) < size.vocab
    numbers: dict[str, Any] = {"tokens_per_second": tokens / seconds, "latency": seconds, "calls": calls, "rows": rows}
    return numbers | {"batch": batch, "steps": steps, **peaks, **busy(frames, denoiser, seconds / max(calls, 1), of)}


def _options(of: Model, steps: int) -> dict[str, Any]:
    """Left to right takes no steps; a token a call is more steps than there are tokens."""
    return {"steps": steps} if "steps" in SAMPLERS[of.family.sampler].options else {}


def busy(frames: Callable[[], Any], denoiser: Any, each: float, of: Model) -> dict[str, Any]:
    """Of the first calls: the kernels' own time in one, beside the seconds that a call took without a profiler."""
    before = denoiser.calls

    def some() -> None:
        last(islice(frames(), LOOKED_AT))

    found = profiled(some, of.device)
    called = max(1, denoiser.calls - before)
    numbers = found.numbers(each * called)
    return {"busy": numbers["busy"], "top": numbers["top"][:3]}
