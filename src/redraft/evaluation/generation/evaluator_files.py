"""Evaluator models by where they are: a redraft or transformers folder, a GGUF file, a llama2.c file, a name on the hub.

Weights of `transformers` are used in float32, whatever they are stored in. A GGUF file may be quantised: it is then another
model than the one it was made from, and the file's name says so in every record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from redraft.errors import UserError, require
from redraft.evaluation.generation.evaluators import Evaluator, HFEvaluator, Identity, RedraftEvaluator, refuse_bound
from redraft.families.base import family_class
from redraft.files import read_json, sha256
from redraft.hub.folder import CONFIG, read_config
from redraft.hub.model import load
from redraft.hub.shards import weight_files
from redraft.network.device import pick_device

ACCEPTED = (
    "a judge is a redraft folder of an exact family, a folder or hub name of a causal model of `transformers`, "
    "a .gguf file, or a llama2.c .bin file"
)


def load_evaluator(
    spec: str | Path, *, source: bool = False, download: bool = False, device: str = "auto"
) -> Evaluator:
    """The judge in a folder or a file, or of that name on the hub.

    A hub name is looked up among the files already on this machine, unless `download`. `UserError` says what is wrong with
    anything else.
    """
    path = Path(spec).expanduser()
    judge = _loader(str(spec), path, download)(str(pick_device(device)))
    return replace(judge, identity=replace(judge.identity, source=source))


def check_evaluator(spec: str | Path, *, download: bool = False) -> None:
    """`UserError` where `load_evaluator` could not open it: its configuration, tokenizer and file names."""
    path = Path(spec).expanduser()
    _loader(str(spec), path, download)
    if path.suffix == ".bin" and path.is_file():
        _beside(path)
    elif path.is_dir() and _is_ours(path):
        config = read_config(path)
        weight_files(path)
        refuse_bound(config.family, family_class(config.family).exact)
    else:
        where = {"pretrained_model_name_or_path": str(spec)}
        if path.is_file():
            where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        with _library(str(spec), offline=not download) as library:
            library.AutoConfig.from_pretrained(**where, local_files_only=not download)
            library.AutoTokenizer.from_pretrained(**where, local_files_only=not download)


def _loader(spec: str, path: Path, download: bool) -> Callable[[str], RedraftEvaluator | HFEvaluator]:
    if path.is_dir():
        return lambda device: _redraft(path, device) if _is_ours(path) else _transformers(str(path), path.name, device)
    if path.is_file():
        readers = {".gguf": _gguf, ".bin": _llama2c}
        if path.suffix not in readers:
            raise UserError(f"{path} is no judge: {ACCEPTED}")
        return lambda device: readers[path.suffix](path, device)
    if spec.count("/") > 1 or spec.startswith((".", "~")) or path.suffix in (".gguf", ".bin"):
        raise UserError(f"no such judge: {spec}; {ACCEPTED}")
    return lambda device: _transformers(spec, spec, device, download)


def _is_ours(path: Path) -> bool:
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") == "redraft"


def _redraft(path: Path, device: str) -> RedraftEvaluator:
    return RedraftEvaluator.of(load(path, device), path.name, sha256(*weight_files(path)))


def _transformers(spec: str, name: str, device: str, download: bool = True) -> HFEvaluator:
    with _library(spec, offline=not download) as library:
        network = library.AutoModelForCausalLM.from_pretrained(spec, dtype=torch.float32, local_files_only=not download)
        tokenizer = library.AutoTokenizer.from_pretrained(spec, local_files_only=not download)
    files = (
        sorted(p for p in Path(spec).glob("*") if p.suffix in (".safetensors", ".bin")) if Path(spec).is_dir() else []
    )
    weights = sha256(*files) if files else str(network.config._commit_hash)
    return _causal(network, tokenizer, name, "transformers", weights, device)


def _gguf(path: Path, device: str) -> HFEvaluator:
    with _library(str(path)) as library:
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        network = library.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = library.AutoTokenizer.from_pretrained(**where)
    return _causal(network, tokenizer, path.name, "gguf", sha256(path), device)


def _llama2c(path: Path, device: str) -> HFEvaluator:
    from redraft.evaluation.generation.llama2c import BEGIN, read_network, read_tokenizer

    beside = _beside(path)
    with _library(str(path)):
        network, encode = read_network(path).to(device), read_tokenizer(beside)
    identity = Identity(path.name, "llama2.c", sha256(path), "float32", f"{beside.name}:{sha256(beside)[:8]}")
    return HFEvaluator(network, encode, BEGIN, network.config.max_position_embeddings, identity)


def _beside(path: Path) -> Path:
    """The tokenizer of a llama2.c model."""
    found = sorted(path.parent.glob("tok*.bin"))
    if not found:
        raise UserError(f"{path.parent} holds no tok*.bin: a llama2.c model needs its tokenizer beside it")
    return found[0]


def _causal(network: Any, tokenizer: Any, name: str, kind: str, weights: str, device: str) -> HFEvaluator:
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise UserError(f"judge {name}: its tokenizer has neither BOS nor EOS to put before a text")
    context = getattr(network.config, "max_position_embeddings", None) or 1024

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    spoken = f"{type(tokenizer).__name__}, {len(tokenizer)} ids"
    return HFEvaluator(
        network.eval().to(device), encode, begin, context, Identity(name, kind, weights, "float32", spoken)
    )


@contextmanager
def _library(spec: str, offline: bool = True) -> Iterator[Any]:
    """The library, quiet, and without a network unless it is asked for; what it raises about a judge becomes one line."""
    require(f"judge {spec}", "hf", "transformers")
    import transformers
    from huggingface_hub import constants

    reaching, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE or offline
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield transformers
    except ImportError as error:
        raise UserError(f"judge {spec} needs a package that is not here: {_first_line(error)}") from None
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        if not Path(spec).expanduser().exists():
            raise UserError(f"judge {spec} is not on this machine: give its folder, or allow a download") from None
        raise UserError(f"cannot load the judge {spec}: {_first_line(error)}; {ACCEPTED}") from None
    finally:
        constants.HF_HUB_OFFLINE = reaching
        if bars:
            transformers.utils.logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")[:200]
