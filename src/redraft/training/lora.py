"""LoRA (Hu et al. 2021, arXiv:2106.09685) by the `peft` library: W x + alpha / rank B A x, B and A trained, W fixed.

Only the adapters are trained; at the end they are merged into the weights, so the saved model is an ordinary one.
FLOPs are counted as if all weights were trained; the true cost of a step is between two thirds of that and all of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from redraft.config import LoraConfig
from redraft.errors import UserError, require
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


def adapt(network: Transformer, config: LoraConfig, seed: int) -> None:
    """Adapters beside the named matrices of every block, in place: B zero, A a function of the seed; all else is frozen."""
    peft = _library()
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets))
    peft.inject_adapter_in_model(settings, network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_A" in name:  # PyTorch's default for a linear map, as in the paper's code
                drawn = torch.empty(parameter.shape)
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def merge(network: Transformer) -> None:
    """Add the adapters to the weights, in place: the network is then as one that never had any."""
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
