"""Module names of version 0.1.0: importing one gives the module as it is called now, with a warning.

Scripts written for that version go on working. Modules whose old name is a package now (`hub.convert`, `hub.export`,
`evaluation.likelihood`, `evaluation.generation`, `text.shards`, `text.examples`) have to be imported from inside it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

# (package then, package now): the names that moved, `then=now` where the name changed too.
_MOVED = {
    ("evaluation", "evaluation.generation"): "diversity judge_files=evaluator_files judges=evaluators "
    "llama2c mauve memory mt_bench",
    ("evaluation", "evaluation.likelihood"): "cost estimators perplexity requests=continuations",
    ("evaluation", "evaluation.lm_eval"): "answers decoding harness suite task_data tasks",
    ("evaluation", "runs"): "compare record run snapshot",
    ("families", "families"): "mixture=softmax_mixture",
    ("hub", "hub"): "stored=lazy_tensor",
    ("hub", "hub.convert"): "archive formats=layouts globals=allow_list "
    "sources speakers=tokenizer_info unpickle verify=parity",
    ("hub", "hub.export"): "card exported=transformers_code gguf sentencepiece_model tokenizer_json",
    ("network", "network"): "cache=kv_cache fold=fuse_adaln ledger=flops",
    ("noise", "noise"): "bridge=gaussian_map draws=counter_rng",
    ("sampling", "sampling"): "blocks=bd3lm blockwise=semi_autoregressive confident=low_confidence",
    ("studies", "frontier"): "frontier=pareto matched=matched_entropy samples=measure",
    ("studies", "planning"): "frontier_config=frontier grid plan=study "
    "presets recommend recommend_text serving=serving_cost",
    ("studies", "report"): "comparison conclusions exports figures page report speed_figures theme",
    ("studies", "scaling"): "caveats contract=schema conventions engines=approaches extrapolation "
    "fit imports=import_runs published records surface=loss_surface",
    ("studies", "scaling.laws"): "bias=parabola_bias descent=least_squares isoflop joint "
    "looseness=elbo_gap multiplier parametric repeats=data_constrained robustness",
    ("studies", "studies"): "launch=workers",
    ("tasks", "tasks.puzzles"): "arithmetic",
    ("tasks", "tasks"): "answers=fill people=reversal_data "
    "stories=known_entropy sums=gsm8k_answers words=word_tokenizer",
    ("text", "planning"): "foreseen=validation_rows",
    ("text", "text.examples"): "chat prompts",
    ("text", "text.shards"): "mixture packed packing prepare tokens trove=datatrove",
    ("text", "text.sources"): "corpus detokenize formats",
    ("text", "text.tokenizers"): "encoders tokenizer",
    ("training", "planning"): "budget pace schedule=lr_schedule",
    ("training", "runs"): "loop=run",
    ("training", "training"): "data=loader transfer=completep watch=monitor",
    ("training", "training.distributed"): "environment launch parallel ranks sharded=sharded_checkpoint",
    ("verbs", "commands"): "answer compare convert demo doctor eval export list "
    "plan push sample study study_queue study_results task train where=device_flags",
    ("verbs", "report"): "task_figures",
}  # fmt: skip


def _former() -> dict[str, str]:
    found = {"redraft.verbs": "redraft.commands"}
    for (then, now), names in _MOVED.items():
        for name in names.split():
            old, _, new = name.partition("=")
            found[f"redraft.{then}.{old}"] = f"redraft.{now}.{new or old}"
    return found


FORMER = _former()


class _Former:
    """Finds a module by its former name, and loads it. The machinery stamps its spec on what it loads, so the module's own is
    put back. (The abstract classes of `importlib.abc` are left out: they take a third of the time of `redraft --help`.)"""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, cast(Any, self)) if name in FORMER else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        now = FORMER[spec.name]
        warnings.warn(f"{spec.name} is called {now} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Once; before every other finder, which would make a second module of a file in a package that has two names."""
    if not any(isinstance(finder, _Former) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Former())
