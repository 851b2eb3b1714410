"""The adapter to lm-evaluation-harness for every family: its four request types, and what defines their numbers.

    simple_evaluate(model=RedraftLM("runs/first"), tasks=[...])          # or `redraft eval runs/first --tasks hellaswag,piqa`

A question is the document that a request was made from, so all its answers (and its unconditional ones, for mutual
information) share their noise. Conventions are those of `conventions`, and are written into the result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  (so that the registry, which it fills only while empty, knows the others too)
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from torch import Tensor, distributed

from redraft.accelerator import accelerator
from redraft.display import quantity
from redraft.errors import UserError
from redraft.evaluation.likelihood.continuations import (
    DRAWS,
    Guidance,
    Nats,
    Progress,
    Request,
    Scorer,
    default_estimator,
    fitted,
    pair,
)
from redraft.evaluation.likelihood.cost import Cost, cost_sentence, seconds
from redraft.evaluation.likelihood.estimators import build
from redraft.evaluation.lm_eval.answers import Answers, fingerprint
from redraft.evaluation.lm_eval.decoding import Writing, greedy_way, is_greedy, write
from redraft.families.ar import AR
from redraft.hub.model import Model
from redraft.hub.model import load as load_model
from redraft.training.distributed.environment import local_rank, told
from redraft.training.distributed.ranks import meeting


@register_model("redraft")
class RedraftLM(LM):
    """`model`: a loaded one, or its folder. `estimator` "": the family's own (`default_estimator`). `draws` of it a request.
    `guidance`: its weight. `greedy`: whether to say if greedy decoding writes an answer, or the names of the tasks that want
    to know (it costs a decoding for each request); without, the flag is False.
    `truncate`: contexts may lose their left end. `cache`: a file of answers. A `device` that is not there is the CPU.
    `progress` hears how many requests are done, `say` beforehand what they will cost.
    """

    def __init__(
        self,
        model: Model | str | Path,
        *,
        estimator: str = "",
        draws: int = DRAWS,
        guidance: float = 0.0,
        guidance_kind: str = "unsupervised",
        seed: int = 0,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        precision: str = "float32",
        truncate: bool = False,
        greedy: bool | frozenset[str] = True,
        cache: str | Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        say: Callable[[str], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        told()  # a world that cannot be meant is refused before a model is read
        loaded = model if isinstance(model, Model) else load_model(model, present(device), precision)
        chosen = build(estimator, options, loaded.family) if estimator else default_estimator(loaded.family)
        if options and not estimator:
            raise UserError(f"{next(iter(options))} is a setting of an estimator: name one")
        batch = int(batch_size) if batch_size is not None and str(batch_size).isdigit() else 32  # "auto:4" and the like
        self.scorer = Scorer(loaded, chosen, draws, Guidance(float(guidance), guidance_kind), seed, batch)
        self.truncate, self.greedy, self.progress = truncate, greedy, progress
        self.fingerprint = fingerprint(loaded)
        self.answers = None if cache is None else Answers(Path(cache), self.settings())
        self.cuts: dict[Request, int] = {}
        self.errors: list[float] = []
        self._device = loaded.device
        self._rank, self._world_size = join()
        self.say = say if self._rank == 0 else None

    # What defines a number

    def settings(self) -> dict[str, Any]:
        model = self.scorer.model
        return {
            "family": repr(model.family),
            "fingerprint": self.fingerprint,
            "tokenizer": {"name": model.tokenizer.name, "fingerprint": model.tokenizer.fingerprint},
            "window": model.length,
            "compute": str(model.network.compute).removeprefix("torch."),
            "truncate": self.truncate,
            "greedy": greedy_way(model.family) if self.greedy else None,
            "conventions": conventions(model),
            **self.scorer.settings(),
        }

    def get_model_info(self) -> dict[str, Any]:
        """Merged by lm-eval into its own record."""
        return self.settings()

    def counts(self) -> dict[str, Any]:
        """What became of the requests of this rank: those cut, and the mean Monte Carlo error of the rest."""
        known = [error for error in self.errors if error != float("inf")]
        return {
            "scored": len(self.errors),
            "truncated": len(self.cuts),
            "tokens_cut": sum(self.cuts.values()),
            "monte_carlo_error": sum(known) / len(known) if known else None,
        }

    @property
    def tokenizer_name(self) -> str:
        return self.scorer.model.tokenizer.fingerprint

    @property
    def max_length(self) -> int:
        return self.scorer.model.length

    @property
    def batch_size(self) -> int:
        return self.scorer.batch

    # The requests

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        made = [self._request(instance) for instance in requests]
        nats = self._nats(made)
        wanted = [request for request, instance in zip(made, requests, strict=True) if self._asks_greedy(instance)]
        told = dict(zip(wanted, self._flags(wanted), strict=True))
        flags = [told.get(request, False) for request in made]
        out = [(-one.nats, flag) for one, flag in zip(nats, flags, strict=True)]
        return self._hooked("loglikelihood", requests, out)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """A text in windows, each token paid for once; the last window has as much context as fits."""
        made = [self._windows(instance) for instance in requests]
        nats = iter(self._nats([request for windows in made for request in windows]))
        out = [-sum(next(nats).nats for _ in windows) for windows in made]
        return self._hooked("loglikelihood_rolling", requests, out)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        jobs = self._numbered([self._job(instance) for instance in requests])
        keys = [
            "" if self.answers is None else self.answers.key("write", vars(job[0]), vars(job[1])) for job in jobs
        ]  # fmt: skip
        known = {} if self.answers is None else self.answers.known(keys)
        missing = [n for n, key in enumerate(keys) if key not in known]
        self._announce_texts([jobs[n][1] for n in missing])
        texts = write(self.scorer, [jobs[n] for n in missing], self._told("writing"))
        fresh = dict(zip(missing, texts, strict=True))
        if self.answers is not None:
            self.answers.keep({keys[n]: text for n, text in fresh.items()})
        out = [fresh[n] if n in fresh else known[key] for n, key in enumerate(keys)]
        return self._hooked("generate_until", requests, out)

    # Ranks: lm-eval shares the documents out, and gathers

    def all_gather(self, tensor: Tensor) -> Tensor:
        if self.world_size == 1:
            return tensor
        here = tensor.reshape(-1).cpu()
        parts = [torch.empty_like(here) for _ in range(self.world_size)]
        distributed.all_gather(parts, here)
        return torch.cat(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.world_size == 1:
            return [obj]
        parts: list[Any] = [None] * self.world_size
        distributed.gather_object(obj, parts if self.rank == dst else None, dst)
        return parts if self.rank == dst else None

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    # Parts

    def _request(self, instance: Any) -> Request:
        context, continuation = instance.args[:2]
        where, model = _where(instance), self.scorer.model
        given, rest = pair(model.tokenizer, context, continuation, where)
        request = fitted(given, rest, question_of(instance, context), model.length, self.truncate, where)
        return self._counted(request)

    def _windows(self, instance: Any) -> list[Request]:
        model, (text, *_) = self.scorer.model, instance.args
        ids = model.tokenizer.encode(text).tolist()
        if not ids:
            raise UserError(f"{_where(instance)} is an empty text: it has no likelihood")
        question, size = question_of(instance, text), model.length
        starts = range(0, len(ids), size)
        spans = [(max(0, min(start, len(ids) - size)), start, min(start + size, len(ids))) for start in starts]
        return [
            Request(tuple(ids[first:start]), tuple(ids[start:stop]), f"{question} window {number}")
            for number, (first, start, stop) in enumerate(spans)
        ]

    def _job(self, instance: Any) -> tuple[Request, Writing]:
        context, settings = instance.args[:2]
        model, where = self.scorer.model, _where(instance)
        writing = Writing.of(settings, model.length // 2)
        ids, room = model.tokenizer.encode(context).tolist(), model.length - writing.tokens
        if room < 1 or (len(ids) > room and not self.truncate):
            raise UserError(
                f"{where}: {len(ids)} tokens of prompt and max_gen_toks {writing.tokens} do not fit into the model's "
                f"{model.length}" + ("" if room < 1 else ": --truncate cuts prompts on the left, and counts them")
            )
        cut = max(0, len(ids) - room)
        return self._counted(Request(tuple(ids[cut:]), (), question_of(instance, context), cut)), writing

    def _numbered(self, jobs: Sequence[tuple[Request, Writing]]) -> list[tuple[Request, Writing]]:
        """Requests that are equal (lm-eval's `repeats`) are several draws: each after the first has a question of its own, and
        so noise and a kept answer of its own."""
        seen, out = Counter[tuple[Request, Writing]](), list[tuple[Request, Writing]]()
        for request, writing in jobs:
            number = seen[request, writing]
            seen[request, writing] += 1
            asked = replace(request, question=f"{request.question} repeat {number}") if number else request
            out.append((asked, writing))
        return out

    def _counted(self, request: Request) -> Request:
        if request.cut:
            self.cuts[request] = request.cut
        return request

    def _nats(self, requests: Sequence[Request]) -> list[Nats]:
        """From the file of answers where they are there; else scored, and kept batch by batch."""
        distinct = list(dict.fromkeys(requests))
        if self.answers is None:
            self._announce(distinct)
            found = dict(zip(distinct, self.scorer.score(distinct, self._told("scoring")), strict=True))
        else:
            keys = {request: self.answers.key("nats", vars(request)) for request in distinct}
            known = self.answers.known(keys.values())
            found = {request: Nats(*known[key]) for request, key in keys.items() if key in known}
            told, before = self._told("scoring"), len(found)
            missing = [request for request in distinct if request not in found]
            self._announce(missing)
            for some, nats in self.scorer.scored(missing):
                self.answers.keep({keys[r]: (n.nats, n.error) for r, n in zip(some, nats, strict=True)})
                found |= zip(some, nats, strict=True)
                told(len(found) - before, len(distinct) - before)
        self.errors += [found[request].error for request in distinct]
        return [found[request] for request in requests]

    def _announce(self, requests: Sequence[Request]) -> None:
        """What scoring them will cost, by a batch of some of them."""
        if self.say is None or not requests:
            return
        scorer, family = self.scorer, self.scorer.model.family
        sizes = [len(request.continuation) for request in requests]
        each = scorer.rows * (2 if scorer.guidance.weight else 1)
        passes = sum(scorer.estimator.passes(family, size) for size in sizes)
        headed = sum(scorer.estimator.headed(family, size) for size in sizes)
        some = list(requests[:: max(1, len(requests) // scorer.batch)][: scorer.batch])
        part = next(replace(scorer, draws=1, batch=len(some)).passes(some))
        price = Cost(len(requests), scorer.rows, passes * each, headed * each)
        self.say(cost_sentence(price, "requests", seconds(price, scorer.model.network, family, part)))

    def _announce_texts(self, ways: Sequence[Writing]) -> None:
        if self.say is not None and ways:
            most = sum(way.steps or way.tokens for way in ways)
            self.say(f"Writing {len(ways)} texts: at most {quantity(most)} passes of a row through the network.")

    def _asks_greedy(self, instance: Any) -> bool:
        return self.greedy if isinstance(self.greedy, bool) else instance.task_name in self.greedy

    def _flags(self, requests: Sequence[Request]) -> list[bool]:
        distinct = list(dict.fromkeys(requests))
        found = dict(zip(distinct, is_greedy(self.scorer, distinct, self._told("decoding")), strict=True))
        return [found[request] for request in requests]

    def _hooked(self, kind: str, requests: Sequence[Any], out: list[Any]) -> list[Any]:
        for instance, answer in zip(requests, out, strict=True):
            self.cache_hook.add_partial(kind, instance.args, answer)
        return out

    def _told(self, doing: str) -> Progress:
        told = self.progress
        return lambda done, total: None if told is None else told(doing, done, total)


def question_of(instance: Any, context: str) -> str:
    """What stands for the question of a request: its document, or its context where it has none."""
    return json.dumps(instance.doc, sort_keys=True, default=str) if instance.doc else context


def conventions(model: Model) -> dict[str, str]:
    """How text becomes what is scored."""
    first = "none: rows begin with the text"
    if isinstance(model.family, AR) and model.family.begins:
        first = "BOS before every row, as in training"
    return {
        "first_token": first,
        "empty_context": "nothing is given" if model.family.begins else "the id that ends a document stands for it",
        "boundary": "encoded in one piece, cut where the context ends; apart where a token lies across; spaces at the "
        "context's end belong to the continuation",
        "end_of_text": "none is added",
        "rolling": "windows that do not overlap, the last with as much context as fits",
    }


def present(device: str | None) -> str:
    """The device that lm-eval asks for, or the CPU where no accelerator is there; None and "auto" take one. Of several ranks
    on a machine each has its own."""
    there = accelerator()
    if there is None:
        return device if device is not None and device.startswith("cpu") else "cpu"
    kind = there.type if device in (None, "auto") else str(device)
    return f"{kind}:{local_rank() or 0}" if kind == there.type else kind


def join() -> tuple[int, int]:
    """This process's rank and the number of ranks, when torchrun started it; joins them on first use."""
    if not distributed.is_initialized() and (place := told()) is not None and place.size > 1:
        with meeting(place):
            distributed.init_process_group("gloo")
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _where(instance: Any) -> str:
    return f"document {instance.doc_id} of task {instance.task_name}"
