"""Families, samplers and estimators by name. An entry is `module:attribute`, imported when used, so listing loads no torch.

A new family is one new file and one entry: here, or in a package of one's own as an entry point of the group
`redraft.families`, or by `register` in a script. It then gets training, sampling, scoring, studies and every law test.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from redraft.errors import UserError, unknown


@dataclass(frozen=True)
class Entry:
    """`target` is `module:attribute`; `options` are the settings it takes, with their defaults;
    `renamed`: options of earlier versions, which still load, and what they are called now.

    For the count of FLOPs: `forward_tokens`, tokens that the network reads in training for each token of text, and
    `effort`, the cost of a step when one pass forward and back is 1. `teachers`: how often training renews a frozen copy
    of the network to learn from; 0: there is none. `paced`: the loss depends on the share of the budget that is spent, not
    on the step alone. `causal`: it writes left to right, and on blocks "llama" can become a stock Llama. For the cost of
    serving: `writing(length, steps)`, in how many calls a text is written and how many tokens each reads.
    """

    target: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    forward_tokens: Callable[[Mapping[str, Any]], float] = lambda options: 1.0
    effort: Callable[[Mapping[str, Any]], float] = lambda options: 1.0
    teachers: Callable[[Mapping[str, Any]], int] = lambda options: 0
    paced: Callable[[Mapping[str, Any]], bool] = lambda options: False
    causal: bool = False
    writing: Callable[[int, int], tuple[int, float]] = lambda length, steps: (steps, float(length))

    def load(self) -> Any:
        module, attribute = self.target.split(":")
        return getattr(importlib.import_module(module), attribute)


def _esolm_forward_tokens(alpha_0: float) -> float:
    """The sequential phase reads the text and its share 1 - alpha_0 of masks; with both phases, half the rows do."""
    return {0.0: 2.0, 1.0: 1.0}.get(alpha_0, 1.5 - alpha_0 / 2)


def _read_twice(length: int, steps: int) -> tuple[int, float]:
    """With a cache, every token is read as a mask and as itself, in however many calls."""
    calls = min(steps, length)
    return calls, 2 * length / calls


# Of every family that draws times, in training (noise/time_density.py).
TIME: dict[str, Any] = {"time": "uniform", "time_mean": 0.5, "time_width": 0.2}

FAMILIES: dict[str, Entry] = {
    "ar": Entry(
        "redraft.families.ar:AR",
        "left to right, one token at a time; exact likelihood",
        {"bos": "spare"},
        causal=True,
        writing=lambda length, steps: (length, 1.0),
    ),
    "mdlm": Entry(
        "redraft.families.mdlm:MDLM",
        "masked diffusion (Sahoo et al. 2024, Shi et al. 2024; SMDM)",
        {"objective": "low_variance", "schedule": "linear", "grid": 0, "shift": False, **TIME},
    ),
    "duo": Entry(
        "redraft.families.duo:Duo",
        "uniform-state diffusion, with its curriculum and distillation (Sahoo et al. 2025)",
        {
            "schedule": "log_linear",
            "objective": "nelbo",
            "gamma_low": None,
            "gamma_high": None,
            "degree": 0,
            "curriculum_end": 0.5,
            "tau": 1e-3,
            "tau_end": 1e-3,
            "top_k": 3,
            "rounds": 5,
            "stride": 512,
            "kl": "backward",
            **TIME,
            "shift": False,
        },
        renamed={"until": "curriculum_end", "rivals": "top_k"},
        # A teacher goes forward beside its student.
        effort=lambda o: 4 / 3 if o["objective"] == "distillation" else 1.0,
        teachers=lambda o: o["rounds"] if o["objective"] == "distillation" else 0,
        paced=lambda o: o["objective"] != "nelbo",
    ),
    "esolm": Entry(
        "redraft.families.esolm:EsoLM",
        "between masked diffusion and left to right, with a KV cache (Sahoo et al. 2025)",
        {"alpha_0": 1.0, "objective": "low_variance", "variant": "B", **TIME},
        forward_tokens=lambda o: _esolm_forward_tokens(o["alpha_0"]),
        writing=_read_twice,
    ),
    "sedd": Entry(
        "redraft.families.sedd:SEDD",
        "masked diffusion by ratios of probabilities: score entropy (Lou et al. 2023)",
        {"schedule": "linear", **TIME},
    ),
    "d3pm": Entry(
        "redraft.families.d3pm:D3PM",
        "masked diffusion in `grid` steps, with its hybrid loss (Austin et al. 2021)",
        {"grid": 1000, "auxiliary": 0.01, "schedule": "linear", **TIME},
    ),
    "gidd": Entry(
        "redraft.families.gidd:GIDD",
        "mask and uniform noise mixed (von Ruette et al. 2025)",
        {"uniform": 0.1, "weights": "dynamic", **TIME},
    ),
    "xdlm": Entry(
        "redraft.families.xdlm:XDLM",
        "mask and uniform noise mixed in fixed shares: between mdlm and duo (Liu et al. 2026)",
        {"uniform": 0.1, "schedule": "linear", **TIME},
    ),
    "bd3lm": Entry(
        "redraft.families.bd3lm:BD3LM",
        "block diffusion: masked diffusion in blocks from left to right, with a KV cache (Arriola et al. 2025)",
        {"block": 4, "objective": "nelbo", "clip_low": 0.0, "clip_high": 1.0, **TIME},
        forward_tokens=lambda o: 2.0,
    ),
}

SAMPLERS: dict[str, Entry] = {
    "left_to_right": Entry(
        "redraft.sampling.left_to_right:LeftToRight", "one token after another, with a KV cache", {}
    ),
    "ancestral": Entry(
        "redraft.sampling.ancestral:Ancestral", "the reverse chain on a grid of `steps` times", {"steps": 64}
    ),
    "greedy_tail": Entry(
        "redraft.sampling.ancestral:GreedyNoiseRemoval",
        "ancestral, the last step taking the likeliest tokens",
        {"steps": 64},
    ),
    "first_hitting": Entry(
        "redraft.sampling.first_hitting:FirstHitting", "masked families: one random position a call; ancestral's limit"
    ),
    "psi": Entry(
        "redraft.sampling.psi:Psi",
        "predictor-corrector: written tokens may change; on mdlm, ReMDM",
        {
            "steps": 64,
            "kappa": "cap",
            "eta": 0.01,
            "profile": "linear",
            "alpha": 0.9,
            "high": 0.45,
            "middle": 0.5,
            "on": 1.0,
            "off": 0.0,
        },
    ),
    "analytic": Entry(
        "redraft.sampling.analytic:Analytic",
        "masked families: Tweedie's step from the score, as in SEDD",
        {"steps": 64},
    ),
    "low_confidence": Entry(
        "redraft.sampling.low_confidence:LowConfidence",
        "masked families: the surest positions first, so many a step",
        {"steps": 64, "order": "top_probability"},
    ),
    "entropy_bounded": Entry(
        "redraft.sampling.low_confidence:EntropyBounded",
        "masked families: the surest positions first, as many a call as `gamma` nats allow",
        {"gamma": 0.1, "order": "entropy"},
    ),
    "semi_autoregressive": Entry(
        "redraft.sampling.semi_autoregressive:SemiAutoregressive",
        "blocks from left to right, each by the `inner` sampler",
        {"steps": 64, "block": 32, "inner": "ancestral"},
    ),
    "ordered": Entry(
        "redraft.sampling.ordered:Ordered",
        "Eso-LM: many tokens a call in an order drawn beforehand, with a KV cache",
        {"steps": 64, "alpha_0": None, "order": "random", "super_blocks": 1},
    ),
    "bd3lm": Entry(
        "redraft.sampling.bd3lm:BlockDiffusion",
        "BD3-LM: `steps` a block (0: one token a call), with a KV cache, looking back `context` tokens (0: all)",
        {"steps": 64, "context": 0},
    ),
}


# What estimates -log p of a text: as `estimators.py` has them, told here without torch.
ESTIMATORS = (
    "continuous_time", "discrete_time", "mask_count", "chain_rule", "importance_weighted", "path_weighted",
)  # fmt: skip
# Orders of generation that `chain_rule` scores: fixed beforehand or drawn, or, of masked families, chosen step by step.
CHAIN_ORDERS = ("left_to_right", "random", "generative", "confidence", "margin", "entropy")
# What a model can be exported to: as `hub.export` has them.
TARGETS = ("transformers", "hf", "llama", "gguf", "native")


RENAMED = {"confident": "low_confidence", "blockwise": "semi_autoregressive", "blocks": "bd3lm"}
"""Samplers of earlier versions: their names still load."""


def register(name: str, entry: Entry) -> None:
    """Makes a family known by that name in this process. `UserError` where another family has it.

    Workers are other processes: a study needs families of installed packages (docs/guides/add-a-family.md).

    >>> entry = Entry("my_family:ARDM", "masked diffusion trained by counts")  # module:class, imported when used
    >>> register("ardm", entry)
    >>> find("family", FAMILIES, "ardm").target
    'my_family:ARDM'
    """
    if FAMILIES.setdefault(name, entry) != entry:
        raise UserError(f"there is a family {name!r} already ({FAMILIES[name].target}): choose another name")


def add_installed() -> None:
    """Registers the families of installed packages: entry points of the group `redraft.families`, each naming an `Entry`."""
    from importlib.metadata import entry_points

    for point in entry_points(group="redraft.families"):
        entry = point.load()
        if not isinstance(entry, Entry):
            raise UserError(f"the entry point {point.name} = {point.value} is no redraft.registry.Entry")
        register(point.name, entry)


def find(kind: str, entries: Mapping[str, Entry], name: str) -> Entry:
    """The entry of that name, or a `UserError` with the nearest names."""
    if name not in entries and entries is FAMILIES:
        add_installed()
    if name not in entries and entries is SAMPLERS:
        name = RENAMED.get(name, name)
    if name not in entries:
        raise unknown(kind, name, entries)
    return entries[name]


def with_new_names(table: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """The table with keys of earlier versions under their new names. `UserError` where both are there."""
    for old, new in renamed.items():
        if old in table and new in table:
            raise UserError(f"{old} is called {new} now, and both are given: leave {old} out")
    return {renamed.get(key, key): value for key, value in table.items()}


def steps_remark(sampler: str, given: int | None) -> str | None:
    """What is said where steps were `given` and the sampler has none; None where there is nothing to say."""
    entry = find("sampler", SAMPLERS, sampler)
    if given is None or "steps" in entry.options:
        return None
    return f"sampler {sampler!r} takes no steps ({entry.summary}), so --steps {given} changes nothing"


def checked_options(kind: str, entries: Mapping[str, Entry], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The entry's defaults with `given` over them; a key that it does not take is refused."""
    entry = find(kind, entries, name)
    given = with_new_names(given, entry.renamed)
    for key in given:
        if key not in entry.options:
            raise unknown(f"option of {kind} {name}:", key, entry.options)
    return {**entry.options, **given}
