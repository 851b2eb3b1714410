"""Data parallelism of one network: replicated (DDP), sharded (FSDP2), or sharded within replicated groups (HSDP).

DDP    Li et al. 2020, arXiv:2006.15704.       FSDP   Zhao et al. 2023, arXiv:2304.11277; here `fully_shard`, FSDP2.

All of them average gradients over ranks. Ours must be summed over a step's tokens, so the loss is multiplied by world size.

Dtypes of communication: a block's matrices are gathered in the compute dtype (a `Linear` would cast them after the
gather anyway, so results equal those of one process), all else in float32: norms, time conditioning, embedding and
head. Those belong to the outermost group, which is gathered once a step. Gradients are summed in float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from redraft.config import ParallelConfig, TrainConfig
from redraft.errors import UserError
from redraft.network.transformer import Block, Transformer
from redraft.planning.budget import SMALL
from redraft.training.distributed.ranks import Ranks


def parallelize(
    loss_module: nn.Module, network: Transformer, teacher: Transformer | None, config: TrainConfig, ranks: Ranks
) -> nn.Module:
    """A loss module, and the networks in it, on its device or devices. In place; optimisers come after it."""
    kind = chosen(config.parallel, ranks, sum(p.numel() for p in network.parameters()))
    networks = [network] if teacher is None else [network, teacher]
    alone = kind in ("alone", "ddp")
    if config.compile == "graphs" and not alone:
        raise UserError(f"train.compile graphs replays a whole network, and {kind} gathers its parts: give true")
    if alone:
        loss_module.to(config.device)
    for one in networks:
        fuse(one, config)
    if alone:
        return loss_module if kind == "alone" else DistributedDataParallel(loss_module, gradient_as_bucket_view=True)
    mesh = mesh_of(kind, config.parallel, ranks, torch.device(config.device).type)
    shard(loss_module, networks, mesh, config)
    return loss_module


def fuse(network: Transformer, config: TrainConfig) -> None:
    """Compile and recompute as configured. Block by block, what recomputes a block or gathers its weights stays outside."""
    if config.compile is True:
        network.compile_blocks()
    if config.checkpointing == "blocks":
        for block in network.blocks:
            # Nothing in a block is random: all noise is a counter's.
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    if config.compile == "graphs":
        network.compile_trunk(graphs=True)


def chosen(config: ParallelConfig, ranks: Ranks, parameters: int) -> str:
    """alone, ddp, fsdp or hsdp. auto: ddp up to SMALL weights; shards beyond, within a machine if there are several."""
    if not ranks.several:
        return "alone"
    if config.kind != "auto":
        return config.kind
    if ranks.size == 1:
        return "alone"
    if parameters <= SMALL:
        return "ddp"
    return "hsdp" if ranks.per_node < ranks.size else "fsdp"


def mesh_of(kind: str, config: ParallelConfig, ranks: Ranks, device: str) -> DeviceMesh:
    if kind == "fsdp":
        return init_device_mesh(device, (ranks.size,), mesh_dim_names=("shard",))
    shards = config.shards or ranks.per_node
    if ranks.size % shards:
        raise UserError(f"train.parallel.shards {shards} must divide the {ranks.size} ranks")
    return init_device_mesh(device, (ranks.size // shards, shards), mesh_dim_names=("replicate", "shard"))


def shard(loss_module: nn.Module, networks: Sequence[Transformer], mesh: DeviceMesh, config: TrainConfig) -> None:
    """`fully_shard` on each block, then on the whole; the next block's weights travel while one computes."""
    compute = networks[0].compute
    # Adapters multiply in the format of their weights: casting those would change the numbers.
    low = compute if compute == torch.bfloat16 and config.lora is None else None
    policy = MixedPrecisionPolicy(low, torch.float32 if low else None, cast_forward_inputs=False)
    blocks = [[block for block in network.blocks if isinstance(block, Block)] for network in networks]
    # What stays in float32 belongs to the outermost group, which finds it here.
    loss_module.wide = nn.ModuleList(part for own in blocks for block in own for part in apart(block))
    for own in blocks:
        for block in own:
            ignored = {p for part in apart(block) for p in part.parameters()}
            fully_shard(
                block,
                mesh=mesh,
                reshard_after_forward=config.parallel.reshard,
                mp_policy=policy,
                ignored_params=ignored,
            )
    fully_shard(loss_module, mesh=mesh, reshard_after_forward=False)
    for own in blocks:
        for one, following in pairwise(own):
            _ahead(one, following)


def apart(block: Block) -> list[nn.Module]:
    """The parts of a block that compute in float32."""
    parts = (block.norm1, block.norm2, block.norm_q, block.norm_k, block.modulation)
    return [part for part in parts if part is not None]


def _ahead(one: nn.Module, following: nn.Module) -> None:
    assert isinstance(one, FSDPModule) and isinstance(following, FSDPModule)
    one.set_modules_to_forward_prefetch([following])
    following.set_modules_to_backward_prefetch([one])


@contextmanager
def micro_batch(loss_module: nn.Module, last: bool, keep: bool) -> Iterator[None]:
    """Gradients are reduced once a step, after the last micro-batch; `keep`: gathered weights are kept until then."""
    if isinstance(loss_module, DistributedDataParallel) and not last:
        with loss_module.no_sync():
            yield
        return
    if isinstance(loss_module, FSDPModule):
        loss_module.set_requires_gradient_sync(last)
        loss_module.set_reshard_after_backward(last or not keep)
        loss_module.set_reshard_after_backward(last, recurse=False)  # the outermost group travels once a step
    yield


def to_local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, or the tensor where it is in one piece."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor in one piece. All ranks ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, source: Tensor) -> None:
    """`source`, in one piece, into `target` or this rank's part of it; nothing travels."""
    if isinstance(target, DTensor):
        from torch.distributed.tensor import distribute_tensor

        source = source.to(target.device)
        part = distribute_tensor(source, target.device_mesh, target.placements, src_data_rank=None)
        target.to_local().copy_(part.to_local())
    else:
        target.copy_(source)
