"""Speed against quality on text of known entropy: a KV-cached AR against diffusion of equal size.  SMDM, section 4.3.

The paper: an MDM trained with 16 times the compute of an AR is as good and 1.4 times as fast; its timing counts loading and
the making of the tokenizer. Here a clock runs around sampling alone, on one thread; settings take turns in one process, and
medians are told. Beside it stands the thread's own time, which other work on the machine does not lengthen.
Quality is exact: nats per token of the samples under the source itself, beside the entropy that the source has. Nats below
that entropy are no virtue: the samples are then too plain, which their unigram entropy shows.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from redraft.evaluation.compute import AUTO, Compute, wait
from redraft.files import read_json, write_json
from redraft.tasks import known_entropy
from redraft.tasks.runs import Job, job

BASE: dict[str, Any] = {
    "network": {"block": "dit", "depth": 3, "heads": 4, "width": 80, "cond": 32},
    "train": {"batch": 16, "lr": 3e-3, "precision": "float32", "threads": 1, "save_every": 200},
    "evaluate": {"rows": 128, "draws": 4},
}

VARIED = 0.98  # of the source's unigram entropy: texts below it are too plain to count
COMPUTED = asdict(Compute("cpu"))  # of measurements that do not say so


@dataclass(frozen=True)
class Setting:
    """How one model samples."""

    model: str
    sampler: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.sampler} {self.steps}"


@dataclass(frozen=True)
class Speed:
    """`shares`: further ARs are trained for 1 / share of the steps, so that diffusion has `share` times their compute."""

    into: Path
    source: Path
    families: tuple[str, ...] = ("ar", "mdlm", "duo", "esolm")
    training: int = 600
    shares: tuple[int, ...] = (4, 16)
    rows: int = 2500
    length: int = 96
    batch: int = 16
    rounds: int = 8
    steps: tuple[int, ...] = (4, 8, 16, 32, 64)
    over: dict[str, Any] | None = None
    compute: Compute = AUTO

    @cached_property
    def data(self) -> dict[str, Any]:
        """The draws, made if they are not there."""
        return known_entropy.written(known_entropy.opened(self.source), self.into / "data", self.rows, self.length)

    def jobs(self) -> list[Job]:
        of = {family: (family, self.training) for family in self.families}
        if "ar" in of:
            of |= {f"ar-1of{share}": ("ar", max(1, self.training // share)) for share in self.shares}
        base = {**BASE, "data": self.data}
        return [
            job(label, base | {"family": family, "budget": {"steps": steps}}, self.over or {}, self.into / "runs")
            for label, (family, steps) in of.items()
        ]

    def settings(self) -> list[Setting]:
        out = []
        for each in self.jobs():
            family = each.config.family.name
            if family == "ar":
                out.append(Setting(each.label, "left_to_right", self.length))
            for sampler in SAMPLERS.get(family, ("",)) if family != "ar" else ():
                out += [Setting(each.label, sampler, steps) for steps in self.steps]
        return out

    def measure(self) -> dict[str, Any]:
        """Every setting timed and judged; kept in the folder, and not measured again."""
        path = self.into / "measured.json"
        what = {"settings": [asdict(s) for s in self.settings()], "rounds": self.rounds, "batch": self.batch}
        what["runs"] = [each.folder.name for each in self.jobs()]
        what |= asdict(self.compute.here())
        if not path.exists() or COMPUTED | read_json(path)["what"] != what:
            write_json(path, {"what": what, "rows": list(self.measured())})
        runs = [{"model": j.label} | _kept(read_json(j.folder / "record.json")) for j in self.jobs()]
        return {"source": known_entropy.entropy(self.data), "runs": runs, "settings": read_json(path)["rows"]}

    def measured(self) -> Iterator[dict[str, Any]]:
        import torch

        from redraft.types import last

        torch.set_num_threads(1)
        source, models = known_entropy.opened(self.source), {j.label: self.compute.load(j.folder) for j in self.jobs()}
        settings, order = self.settings(), random.Random(0)
        seconds: dict[tuple[Setting, int], list[float]] = {(s, n): [] for s in settings for n in (self.batch, 1)}
        own: dict[tuple[Setting, int], list[float]] = {key: [] for key in seconds}
        written: dict[Setting, list[Any]] = {s: [] for s in settings}
        calls: dict[Setting, int] = {}
        for number in range(-1, self.rounds):  # the first round warms up and is not counted
            for setting, batch in order.sample(sorted(seconds, key=str), len(seconds)):
                model = models[setting.model]
                canvas, denoiser = model.canvas("", batch, self.length), model.denoiser()
                wait(model.device)
                began, busy = time.perf_counter(), time.process_time()
                tokens = last(model.frames(canvas, denoiser, setting.sampler, setting.steps, 100 + number)).tokens
                wait(model.device)
                spent, worked = time.perf_counter() - began, time.process_time() - busy
                if number >= 0:
                    seconds[setting, batch].append(spent)
                    own[setting, batch].append(worked)
                    if batch == self.batch:
                        written[setting].append(known_entropy.source_ids(tokens.cpu()))
                        calls[setting] = denoiser.calls
        for setting in settings:
            together, alone = (median(seconds[setting, n]) for n in (self.batch, 1))
            said = self.compute.record(models[setting.model])
            yield asdict(setting) | said | _judged(source, torch.cat(written[setting])) | {
                "calls": calls[setting], "batch": self.batch, "seconds": together, "latency": alone,
                "seconds_all": seconds[setting, self.batch], "latency_all": seconds[setting, 1],
                "tokens_per_second": self.batch * self.length / together,
                "cpu_seconds": median(own[setting, self.batch]), "cpu_latency": median(own[setting, 1]),
            }  # fmt: skip
        yield {"model": "source", "sampler": "", "steps": 0} | _judged(
            source, torch.cat(list(source.sample(128, self.length, 1)))
        )


def _judged(source: Any, tokens: Any) -> dict[str, Any]:
    """Nats per token under the source, and unigram entropy, of rows [n, L] of its ids."""
    import torch

    from redraft.evaluation.generation.diversity import unigram_entropy

    nats = source.nats(tokens) / tokens.shape[1]
    entropies = torch.stack([unigram_entropy(row) for row in tokens])
    return {
        "nats": float(nats.mean()), "nats_se": float(nats.std() / math.sqrt(len(nats))),
        "entropy": float(entropies.mean()), "texts": len(tokens), "length": tokens.shape[1],
    }  # fmt: skip


SAMPLERS = {"mdlm": ("ancestral", "low_confidence"), "duo": ("ancestral",), "esolm": ("ordered",)}


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    keep = ("family", "params", "parameters", "steps", "tokens", "flops", "loss", "loss_se", "loss_kind", "machine")
    return {key: record[key] for key in keep} | {"seconds": record["timing"]["seconds"]}


def lines(found: dict[str, Any]) -> list[str]:
    """The models, the settings, and who is faster at equal quality."""
    from redraft.tasks.table import table

    source = found["source"]
    runs = table(
        ["model", "parameters", "steps", "FLOPs", "nats/token", "less the entropy", "kind"],
        [
            [r["model"], f"{r['params']:,}", f"{r['steps']}", f"{r['flops']:.2g}", f"{r['loss']:.3f}",
             f"{r['loss'] - source['held_out']:.3f}", r["loss_kind"]]
            for r in found["runs"]
        ],
    )  # fmt: skip
    rows = [r for r in found["settings"] if r["model"] != "source"]
    real = next(r for r in found["settings"] if r["model"] == "source")
    settings = table(
        ["model", "sampler", "steps", "calls", "nats/token", "±", "entropy", "tokens/s", "CPU s a batch", "CPU s alone"],
        [
            [r["model"], r["sampler"], f"{r['steps']}", f"{r['calls']}", f"{r['nats']:.3f}", f"{r['nats_se']:.3f}",
             f"{r['entropy']:.3f}", f"{r['tokens_per_second']:,.0f}", f"{r['cpu_seconds']:.3f}", f"{r['cpu_latency']:.3f}"]
            for r in rows
        ],
    )  # fmt: skip
    known = (
        f"Source: {source['entropy']:.4f} ± {source['entropy_se']:.4f} nats/token; "
        f"unigram entropy of its texts {real['entropy']:.3f}."
    )
    return [known, "", *runs, "", *settings, "", *claims(rows, real["entropy"])]


def claims(rows: Sequence[dict[str, Any]], entropy: float) -> list[str]:
    """For each AR: when each sampler of diffusion is as good (`nats` under the source, between its numbers of steps), and how
    many times as fast it is then. Only settings whose texts are as varied as the source's (of unigram `entropy`) count."""
    out = []
    for ar in (r for r in rows if r["sampler"] == "left_to_right"):
        # The thread's own time tells what a CPU did; of an accelerator it tells how long the host waited.
        own = "cpu_" if ar.get("device", "cpu") == "cpu" else ""
        head = f"As good as {ar['model']} ({ar['nats']:.3f} nats/token)"
        for key, unit in ((f"{own}seconds", f"in batches of {ar['batch']}"), (f"{own}latency", "alone")):
            found = {name: at_quality(curve, ar["nats"], key) for name, curve in curves(rows, entropy).items()}
            out += [
                f"{head}, {unit}: {name} in {at.steps:.0f} steps, {ar[key] / at.seconds:.2f} times its speed."
                for name, at in found.items()
                if at is not None
            ]
        if not out or not out[-1].startswith(head):
            out.append(
                f"No diffusion setting of full variety is as good as {ar['model']} ({ar['nats']:.3f} nats/token)."
            )
    return out


def curves(rows: Sequence[dict[str, Any]], entropy: float) -> dict[str, list[dict[str, Any]]]:
    """Settings of each model and sampler of diffusion by steps, without those whose texts are plainer than the source's."""
    out: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["steps"]):
        if row["sampler"] != "left_to_right" and row["entropy"] >= VARIED * entropy:
            out.setdefault(f"{row['model']} {row['sampler']}", []).append(row)
    return out


class At(NamedTuple):
    steps: float
    seconds: float


def at_quality(curve: Sequence[dict[str, Any]], nats: float, key: str) -> At | None:
    """The fewest steps at which a sampler is as good as `nats`, and the time `row[key]` it then takes: logarithms of both are
    interpolated between two settings. None where no setting is."""
    for before, row in zip([None, *curve], curve):
        if row["nats"] > nats:
            continue
        if before is None:
            return At(row["steps"], row[key])
        part = (before["nats"] - nats) / (before["nats"] - row["nats"])
        steps, seconds = (before[name] ** (1 - part) * row[name] ** part for name in ("steps", key))
        return At(steps, seconds)
    return None
