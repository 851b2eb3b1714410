"""The configuration of a run: a recipe file overridden by flags, validated, unknown keys refused with the nearest name.

seed = 0
family = "mdlm"                              # or { name = "mdlm", objective = "nelbo" }
network = { size = "3M", block = "dit" }
data = { source = "stdlib", tokenizer = "bytes", length = 256 }
budget = { flops = 1e15 }                    # or tokens, or steps
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import tomli_w
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from redraft.config_network import NetworkConfig, Part
from redraft.errors import UserError, unknown
from redraft.files import read_text, whereabouts
from redraft.numbers import LONGEST, WIDEST, Amount, BelowOne, Count, Many, Positive, Seed, Share
from redraft.registry import FAMILIES, checked_options

T = TypeVar("T", bound=BaseModel)
# What keys of a run are called elsewhere.
CALLED = {
    "learning_rate": "lr",
    "batch_size": "batch",
    "max_steps": "steps",
    "seq_len": "length",
    "max_length": "length",
    "hidden_size": "width",
    "num_layers": "depth",
    "num_heads": "heads",
    "dropout_rate": "dropout",
}
Convention = Literal["6ND", "blocks+head", "full"]


class FamilyConfig(Part):
    """Which family, and its options (`redraft list` shows them)."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and "name" in value:
            options = {**value.get("options", {}), **{k: v for k, v in value.items() if k not in ("name", "options")}}
            return {"name": value["name"], "options": checked_options("family", FAMILIES, value["name"], options)}
        return value


class SourceConfig(Part):
    """One source of a mixture. Without `validation`, a share of its documents is held out."""

    source: str
    weight: Positive = Field(1.0, description="its share of the samples is weight / the sum of the weights")
    validation: str | None = None


class PhaseConfig(Part):
    """A mixture, and the share of the run's samples at which it ends."""

    until: float = Field(1.0, gt=0, le=1)
    mixture: list[SourceConfig] = Field(min_length=1)


class DataConfig(Part):
    """Which text, cut how."""

    renamed: ClassVar[Mapping[str, str]] = {
        "drop": "cfg_dropout",
        "short": "random_length",
        "documents": "intra_document_mask",
    }

    source: str = Field("stdlib", description="stdlib, a path or glob (.txt .jsonl .parquet .bin), or hf:DATASET")
    mixture: list[SourceConfig] = Field([], description="several sources of text by weight, instead of `source`")
    phases: list[PhaseConfig] = Field([], description="mixtures one after another, instead of `mixture`")
    intra_document_mask: bool = Field(
        False, description="whether attention in a row of text stops at the ends of documents"
    )
    validation: str | None = Field(None, description="a source of its own; else a share of the documents is held out")
    tokenizer: str = Field(
        "bytes",
        description="bytes, or a path to tokenizer.json, a sentencepiece .model, or the folder of GPT-2's encoder.json and "
        "vocab.bpe",
    )
    length: int = Field(256, gt=1, le=WIDEST, description="tokens in a row; of prompt formats, the most")
    format: Literal["auto", "text", "prompts", "chat", "traces"] = Field(
        "auto", description="text, or what to fine-tune on; auto reads it off the fields of .jsonl and .parquet"
    )
    template: str | None = Field(
        None, description="of chat: vicuna, chatml, plain or a Jinja file; of traces: whole or staged"
    )
    eos: Literal["one", "fill", "none"] = Field(
        "one", description="end-of-text tokens after a completion that are included in the loss"
    )
    overlong: Literal["skip", "truncate"] = Field("skip", description="what becomes of examples longer than a row")
    cfg_dropout: float = Field(
        0.0, ge=0, le=1, description="share of the prompts that are blanked, for classifier-free guidance"
    )
    random_length: float = Field(
        0.0, ge=0, le=1, description="share of the steps whose rows of text get a random shorter length"
    )

    @field_validator("intra_document_mask", mode="before")
    @classmethod
    def _as_once_written(cls, value: Any) -> Any:
        return {"cross": False, "within": True}.get(value, value) if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Beside a mixture there is no source, and a file does not name one."""
        table: dict[str, Any] = handler(self)
        return {key: value for key, value in table.items() if key != "source" or not (self.mixture or self.phases)}

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        text = self.format == "text"
        if self.random_length and not text and self.format != "auto":
            raise UserError("data.random_length cuts rows of text: prompts have lengths of their own, so leave it out")
        if self.cfg_dropout and text:
            raise UserError("data.cfg_dropout blanks prompts, and data.format text has none: leave it out")
        if self.intra_document_mask and not text and self.format != "auto":
            raise UserError(
                "data.intra_document_mask is for rows of text: examples are rows of their own, so leave it out"
            )
        return self

    @model_validator(mode="after")
    def _mixes(self) -> DataConfig:
        """`UserError` where it is not one of a source, a mixture, or phases that end in order, the last at 1."""
        if not (self.mixture or self.phases):
            return self
        if self.mixture and self.phases:
            raise UserError("data: give either mixture or phases, not both")
        if self.source != "stdlib" or self.validation is not None:
            key = "source" if self.source != "stdlib" else "validation"
            raise UserError(f"data.{key} beside a mixture: each source of a mixture names its own, so leave it out")
        if self.format not in ("auto", "text"):
            raise UserError(f"data.format {self.format} takes one source: mixtures are of text")
        ends = [phase.until for phase in self.phases]
        if ends and (ends[-1] != 1 or any(a >= b for a, b in pairwise(ends))):
            raise UserError(f"data.phases end at {', '.join(map(str, ends))}: shares must rise, and the last be 1")
        return self


class BudgetConfig(Part):
    """How much training: one of FLOPs (under `convention`, or by `forward`), tokens or steps."""

    flops: Amount | None = None
    tokens: Amount | None = None
    steps: Many | None = None
    convention: Convention = "blocks+head"
    forward: Amount | None = Field(
        None, description="FLOPs of a row's forward pass by another code's count, to derive the number of steps from"
    )

    @model_validator(mode="after")
    def _one(self) -> BudgetConfig:
        given = [n for n in ("flops", "tokens", "steps") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError(f"budget: give one of flops, tokens or steps, not {' and '.join(given)}")
        if self.forward and given and self.flops is None:
            raise UserError(f"budget.forward tells how many steps budget.flops buys: leave it out beside {given[0]}")
        return self


class CompletePConfig(Part):
    """The network on which lr, eps and weight_decay were chosen; CompleteP carries them to this one."""

    width: Count
    depth: Count


class LoraConfig(Part):
    """Adapters of low rank that are trained in the place of the weights (Hu et al. 2021, arXiv:2106.09685)."""

    rank: Count = 8
    alpha: Positive = Field(16.0, description="the adapters' output is multiplied by alpha / rank")
    targets: list[Literal["qkv", "out", "up", "down", "gate"]] = Field(["qkv", "out"], min_length=1)


class AdaptConfig(Part):
    """An AR network made one of another family (DiffuLLaMA, arXiv:2410.17891); `family.shift` says where predictions stand."""

    mask: Literal["mean", "keep"] = Field(
        "mean", description="the row of [MASK]: the mean of the others, or what BOS was"
    )
    open: Share = Field(0.0, description="share of the steps over which attention opens both ways; 0: at once")


class ParallelConfig(Part):
    """How the ranks that torchrun starts share a network."""

    kind: Literal["auto", "ddp", "fsdp", "hsdp"] = Field(
        "auto", description="ddp: whole on each; fsdp: in shards; hsdp: shards in groups that are copies; auto: by size"
    )
    shards: Count | None = Field(None, description="ranks that hold one copy, of hsdp; those of a machine if left out")
    reshard: bool = Field(True, description="free a block's weights after its forward pass: less memory, more traffic")


class TrainConfig(Part):
    """The optimiser, its schedule, and how ranks and devices are used."""

    renamed: ClassVar[Mapping[str, str]] = {"start": "init_from", "transfer": "completep"}

    batch: Count = Field(16, description="rows a step, over all micro-batches")
    accumulate: Count = Field(1, description="micro-batches a step")
    lr: Amount = Field(1e-3, description="peak learning rate")
    min_lr: Share = Field(0.1, description="final learning rate, as a share of the peak")
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay: float = Field(0.2, gt=0, le=1, description="share of the steps that wsd decays over")
    warmup: float = Field(0.01, ge=0, le=LONGEST, description="share of the steps if below 1, else steps")
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.95
    eps: Positive = 1e-8
    weight_decay: float = Field(0.1, ge=0, le=1e6)
    dropout: BelowOne = Field(
        0.0, description="share dropped of what attention and MLP add, in training alone; 0 is off"
    )
    clip: float = Field(1.0, gt=0, allow_inf_nan=True, description="global gradient norm; inf leaves it as it is")
    ema: BelowOne = Field(0.0, description="decay of the weights' moving average; 0 is off")
    precision: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    compile: bool | Literal["auto", "graphs"] = Field(
        "auto",
        description="fuse each block with torch.compile; auto: on a GPU; graphs: fuse the whole network and replay it as CUDA "
        "graphs, on one GPU or by ddp",
    )
    deterministic: bool = Field(False, description="the same bits at every run on a GPU; slower")
    device: str = "auto"
    threads: int = Field(0, ge=0, le=4096, description="CPU threads; 0 leaves it to torch")
    completep: CompletePConfig | None = Field(
        None, description="the small network whose settings these are (CompleteP)"
    )
    init_from: str | None = Field(
        None, description="model folder whose weights training starts from; fresh if left out"
    )
    adapt: AdaptConfig | None = Field(None, description="how an AR model becomes one of another family")
    lora: LoraConfig | None = Field(None, description="train adapters of low rank, merged into the weights at the end")
    save_every: Many = Field(200, description="steps between checkpoints")
    keep: Count = Field(2, description="checkpoints of several ranks that are kept, the newest")
    parallel: ParallelConfig = ParallelConfig()
    checkpointing: Literal["none", "blocks"] = Field(
        "none", description="blocks: activations are computed again in the backward pass, for memory"
    )
    on_nan: Literal["stop", "skip", "rollback"] = Field(
        "stop", description="what to do when the gradient is NaN or infinite"
    )
    on_spike: Literal["record", "stop", "rollback"] = Field(
        "record", description="what to do when the loss jumps and stays high"
    )


class EvaluateConfig(Part):
    """How the final bound is measured, on validation windows spread evenly over the split."""

    rows: Count = Field(256, description="validation windows")
    draws: Count = Field(4, description="noise draws a window, for the families that need them")
    batch: Count = 32


class RunConfig(Part):
    """One training run and its measurement."""

    seed: Seed = 0
    family: FamilyConfig = FamilyConfig(name="mdlm", options={})
    network: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    budget: BudgetConfig = BudgetConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _divisible(self) -> RunConfig:
        if self.train.batch % self.train.accumulate:
            raise UserError(
                f"train.batch {self.train.batch} must be a multiple of train.accumulate {self.train.accumulate}"
            )
        if self.train.completep and (self.network.tied or self.network.block == "gpt2"):
            raise UserError("train.completep scales embedding and head apart, of blocks dit and llama: leave it out")
        if self.network.block == "gpt2" and self.data.length > (context := self.network.context or 1024):
            raise UserError(f"data.length {self.data.length} is more than the {context} rows of network.context")
        if self.train.lora and self.train.completep:
            raise UserError("train.completep scales the learning rates of whole weights: leave it or train.lora out")
        return self


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, tables merged key by key. A family named anew drops the old one's options."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        named = isinstance(value, str) or (isinstance(value, Mapping) and "name" in value)
        if key == "family" and named:
            out[key] = value
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            out[key] = merge(old, value)
        elif key == "family" and isinstance(old, str) and isinstance(value, Mapping):
            out[key] = {"name": old, **value}
        else:
            out[key] = value
    return out


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a table, or a `UserError` that names what is wrong with it."""
    if not path.exists():
        raise UserError(f"no such recipe: {path}{whereabouts(path)}")
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"cannot read {path} as TOML: {error}") from None


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key.

    >>> flat({"train": {"lr": 0.1}, "seed": 0})
    {'train.lr': 0.1, 'seed': 0}
    """
    out: dict[str, Any] = {}
    for key, value in table.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def validated(model: type[T], table: Mapping[str, Any]) -> T:
    """The model of a table; the first thing wrong is one line naming the key and what would work."""
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise _one_line(error, model) from None


def _one_line(error: ValidationError, model: type[BaseModel]) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        path = first["loc"][:-1]
        known = unknown("key", key, (".".join(map(str, (*path, name))) for name in _fields_at(model, path)))
        own = _home(str(first["loc"][-1]), arm="arm" in path)
        return UserError(f"{known} {own}") if own else known
    return UserError(f"{key or 'configuration'}: {first['msg'].removeprefix('Value error, ')} (got {first['input']!r})")


def _home(name: str, arm: bool) -> str:
    """Where a key of a run belongs, by its last word or what else it is called; nothing where no table has it, or several."""
    name = CALLED.get(name, name)
    tables = {key: table_of(field.annotation) for key, field in RunConfig.model_fields.items()}
    found = [key for key, table in tables.items() if table is not None and name in table.model_fields]
    if len(found) != 1:
        return ""
    return f"A run has {found[0]}.{name}" + (
        f": in an arm, set = {{ {found[0]} = {{ {name} = ... }} }}." if arm else "."
    )


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        if isinstance(part, str):  # a number is a place in a list, whose elements the field's own type names
            table = table_of(model.model_fields[part].annotation)
            assert table is not None
            model = table
    return list(model.model_fields)


def table_of(kind: Any) -> type[BaseModel] | None:
    """The class of the table that a field of this type holds; None where it holds none."""
    return next((k for k in (*get_args(kind), kind) if isinstance(k, type) and issubclass(k, BaseModel)), None)


def dump_toml(model: BaseModel) -> str:
    """The resolved configuration as TOML that reads back equal."""
    return tomli_w.dumps(said(model.model_dump()))


def said(value: Any) -> Any:
    """The value without what is None: TOML has no word for it, and it reads back as the default."""
    if isinstance(value, Mapping):
        return {k: said(v) for k, v in value.items() if v is not None}
    return [said(v) for v in value] if isinstance(value, list) else value
