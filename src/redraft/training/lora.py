"""LoRA (Hu et al. 2021, arXiv:2106.09685) by the `peft` library: W x + alpha / rank B A x, B and A trained, W fixed.

Only the adapters are trained, and the row of [MASK] where an AR model is adapted, which had none; at the end all is merged
into the weights, so the saved model is an ordinary one.
FLOPs are counted as if all weights were trained; the true cost of a step is between two thirds of that and all of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from redraft.config import LoraConfig, RunConfig
from redraft.errors import UserError, require
from redraft.families.base import family_class
from redraft.network.transformer import Transformer

MATRICES = {"dit": ("qkv", "out", "up", "down"), "llama": ("qkv", "out", "gate", "up", "down")}
MATRICES["gpt2"] = MATRICES["dit"]


def check(config: LoraConfig, block: str) -> None:
    """`UserError` where the library is missing, or such a block has no matrix of a target's name."""
    _library()
    for target in config.targets:
        if target not in MATRICES[block]:
            have = ", ".join(MATRICES[block])
            raise UserError(f"train.lora.targets: a {block} block has no matrix {target!r}; its matrices: {have}")


def adapt(network: Transformer, config: RunConfig) -> None:
    """Adapters beside the named matrices of every block, in place: B zero, A a function of the seed; all else is frozen, but
    for a difference from the row of [MASK], zero, where `train.adapt` makes that row new."""
    assert config.train.lora is not None
    peft, lora = _library(), config.train.lora
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    peft.inject_adapter_in_model(settings, network)
    if config.train.adapt is not None and family_class(config.family.name).spare == "mask":
        network.spare_delta = torch.nn.Parameter(torch.zeros_like(network.embedding[-1]))
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_A" in name:  # PyTorch's default for a linear map, as in the paper's code
                drawn = torch.empty(parameter.shape)
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def merge(network: Transformer) -> None:
    """Add the adapters to the weights, in place: the network is then as one that never had any."""
    if network.spare_delta is not None:
        with torch.no_grad():
            network.embedding[-1] += network.spare_delta
        network.spare_delta = None
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            owner, _, child = name.rpartition(".")
            setattr(network.get_submodule(owner), child, module.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def _library() -> Any:
    require("train.lora", "lora", "peft")
    import peft

    return peft
