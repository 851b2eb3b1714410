"""Stage 1: the device computes what the CPU computes, for every family, objective and sampler that is registered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_stages import runs
from gpu_stages.plan import Scale
from gpu_stages.record import Cases, Missed
from gpu_stages.waits import waits
from redraft.errors import UserError
from redraft.families import duo, mdlm
from redraft.families.base import Family, build
from redraft.hub.model import Model
from redraft.network.device import DTYPES
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.registry import FAMILIES, SAMPLERS
from redraft.sampling.base import build as build_sampler
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.training.trainer import LossModule
from redraft.types import Batch, last

V, L, ROWS = 257, 64, 4
SHAPE = Shape("dit", 2, 1, 64, 256, V, 32)
CPU = torch.device("cpu")
# Relative to the largest number compared: float64 agrees to rounding, float32 to the rounding of sums of a few thousand.
WITHIN = {"float64": 1e-5, "float32": 1e-4}
STEPS = 8


def run(cases: Cases, device: torch.device, size: Scale) -> None:
    for family, options in trained():
        label = " ".join([family, *(f"{key}={value}" for key, value in options.items())])
        for kind in WITHIN:
            cases.run(f"{label} {kind}", same_loss, family, options, kind, device)
    for family, sampler in pairs():
        cases.run(f"{family} by {sampler}", same_tokens, family, sampler, device)
    for family in FAMILIES:
        cases.run(f"waits of {family}", waited, family, device)
    runs.run(cases, device, size)


def trained() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every family under each of its objectives, and Eso-LM with and without its second phase."""
    known = {"duo": duo.OBJECTIVES}
    for name, entry in FAMILIES.items():
        if "objective" not in entry.options:
            yield name, {}
        for objective in known.get(name, mdlm.OBJECTIVES) if "objective" in entry.options else ():
            yield name, {"objective": objective}
    yield from (("esolm", {"alpha_0": alpha, "variant": variant}) for alpha in (0.0, 0.5) for variant in "BA")


def pairs() -> Iterator[tuple[str, str]]:
    """Every sampler with every family that it serves."""
    for name in FAMILIES:
        for sampler in SAMPLERS:
            try:
                build_sampler(sampler, {}, build(name, {}, V))
            except UserError:
                continue
            yield name, sampler


def network(kind: str, device: torch.device) -> Transformer:
    """The same random weights everywhere, drawn on the CPU; none is zero."""
    made = initialised(SHAPE, 0, DTYPES[kind])
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return (made.double() if kind == "float64" else made).to(device)


def batch(device: torch.device) -> Batch:
    tokens = torch.randint(0, V, (ROWS, L), generator=torch.Generator().manual_seed(1))
    scored = torch.rand(ROWS, L, generator=torch.Generator().manual_seed(2)) < 0.9
    return Batch(tokens.to(device), scored.to(device), torch.arange(ROWS, device=device))


def same_loss(name: str, options: dict[str, Any], kind: str, device: torch.device) -> dict[str, Any]:
    """Losses, gradients and bound on the device, beside the CPU's in float64."""
    family = build(name, options, V)
    ours, reference = numbers(family, options, kind, device), numbers(family, options, "float64", CPU)
    off = {what: apart(ours[what], reference[what]) for what in reference}
    if (worst := max(off, key=lambda what: off[what])) and not off[worst] <= WITHIN[kind]:
        raise Missed(f"{worst} is off by {off[worst]:.1e} of its largest number (allowed: {WITHIN[kind]:.0e})", **off)
    return off


def numbers(family: Family, options: dict[str, Any], kind: str, device: torch.device) -> dict[str, Tensor]:
    net, rows = network(kind, device), batch(device)
    teacher = None
    if FAMILIES[family.name].teachers(FAMILIES[family.name].options | options):
        teacher = network(kind, device).requires_grad_(False)
        for parameter in teacher.parameters():
            parameter.data.mul_(1.1)
    nats = LossModule(family, net, teacher, 0)(rows, 0.25)
    nats.sum().backward()
    found = {f"gradient of {n}": p.grad for n, p in net.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found |= {"loss": nats, "bound": family.nelbo(net, rows, key=Key.of(0)).nats}
    return {what: tensor.detach().double().cpu() for what, tensor in found.items()}


def apart(ours: Tensor, reference: Tensor) -> float:
    """The largest difference, in units of the largest number."""
    scale = float(reference.abs().max()) or 1.0
    return float((ours - reference).abs().max()) / scale


def same_tokens(name: str, sampler: str, device: torch.device) -> dict[str, Any]:
    """Every token drawn: uniforms are functions of counters, and a law in float64 is the same to rounding."""
    ours, reference = (sampled(name, sampler, place) for place in (device, CPU))
    equal = float((ours == reference).double().mean())
    if equal < 1:
        raise Missed(f"{1 - equal:.1%} of the tokens differ", equal=equal)
    return {"equal": equal, "distinct": len(reference.unique())}


@torch.no_grad()
def sampled(name: str, sampler: str, device: torch.device, compiled: bool = False) -> Tensor:
    model = Model(build(name, {}, V), network("float64", device).eval(), Bytes(), L, {})
    canvas = model.canvas("" if name == "ar" else "ab", 3, L)
    return last(model.frames(canvas, model.denoiser(0.9, 0.9, compiled), sampler, STEPS, 0)).tokens.cpu()


def waited(name: str, device: torch.device) -> dict[str, Any]:
    """Where the host waits for the device: in a loss with its gradients, and in sampling, a call."""
    family, net, rows = build(name, {}, V), network("float32", device), batch(device)
    model = Model(family, net, Bytes(), L, {})
    canvas, denoiser = model.canvas("", 3, L), model.denoiser()
    teachers = FAMILIES[name].teachers(FAMILIES[name].options)
    assert not teachers, "the default objective has none"

    def learn() -> None:
        LossModule(family, net, None, 0)(rows, 0.25).sum().backward()

    def write() -> None:
        last(model.frames(canvas, denoiser, "", STEPS, 0))

    found = {}
    for what, work in (("training", learn), ("sampling", write)):
        work()
        denoiser.calls = 0
        places = waits(work, device)
        calls = max(1, denoiser.calls) if what == "sampling" else 1
        found[what] = sum(places.values()) / calls
        found[f"{what}, where"] = dict(places.most_common(8))
    return found
