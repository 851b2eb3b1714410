"""Flags of every command that runs a model: device, precision, compilation."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redraft.evaluation.compute import Compute

DEVICES = "auto (an accelerator where there is one), cpu, or one by name: cuda, cuda:1"


def arguments(parser: ArgumentParser, *, train: bool = False, samples: bool = False) -> None:
    """`train`: the verb trains too, by a recipe that may name both. `samples`: it can be told to compile what samples."""
    left_out = "; what the recipe says if left out, else {}" if train else ""
    device, precision = (None, None) if train else ("auto", "float32")
    parser.add_argument("--device", default=device, help=DEVICES + left_out.format("auto"))
    parser.add_argument(
        "--precision",
        default=precision,
        help="in which matrices multiply: float32 or bfloat16" + left_out.format("float32"),
    )
    if samples:
        parser.add_argument(
            "--compile",
            action=BooleanOptionalAction,
            default=False,
            help="torch.compile what samples: for many texts, on a GPU",
        )


def model(options: Namespace) -> None:
    """The folder of `options.model`, found or fetched, before torch is loaded. `UserError` where it is no model."""
    from redraft.hub.config import located, read_config

    read_config(located(options.model))


def compute(options: Namespace) -> Compute:
    """What the flags ask for. `UserError` where it is not to be had here, before anything is read or written."""
    from redraft.evaluation.compute import Compute

    return Compute(options.device or "auto", options.precision or "float32", getattr(options, "compile", False)).here()


def trained(options: Namespace) -> dict[str, dict[str, str]]:
    """The settings of a run that the flags ask for."""
    given = {key: value for key in ("device", "precision") if (value := getattr(options, key)) is not None}
    return {"train": given} if given else {}
