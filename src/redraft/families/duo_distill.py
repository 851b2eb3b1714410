"""Discrete consistency distillation of Duo: Sahoo et al. 2025, arXiv:2506.10892, section 4.

Along the Gaussian bridge a text has one path in time: z_t = argmax(A_t onehot(x) + S_t eps) for every t with the same eps.
The student's prediction at t is trained to match the teacher's at t - stride; the teacher is the student at the round's start.
The stride doubles every round, so that the trained model needs fewer sampling steps.

    loss = KL(student(z_t) || teacher(z_s))   ("backward", the paper's), or the other way round ("forward")
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.families.base import TeacherStudent, in_place, picked, scored_places
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.gaussian_map import GaussianMap, race
from redraft.types import Batch, Network, TokenLoss, View

DIRECTIONS = ("backward", "forward")


def consistency(
    bridge: GaussianMap,
    view: Callable[[Tensor, Tensor], View],
    network: Network,
    batch: Batch,
    *,
    key: Key,
    stride: float,
    kl: str,
) -> TokenLoss:
    """Nats of divergence by token. `view(tokens, alpha [B, 1])`; `stride` in time. Only the two best of V Gaussians matter
    to an argmax, the token's own and its best rival, so nothing is V wide but the predictions."""
    if not isinstance(network, TeacherStudent):
        raise UserError("distillation compares two networks: call its loss with TeacherStudent(student, teacher)")
    x0 = batch.tokens
    t = (counter_rng.times(key.fold_in("time"), batch.index)[:, None] + stride).clamp(max=1)
    s = t - stride
    run = race(x0, bridge.vocab, 1, counter_rng.field(key.fold_in("race"), batch.index, x0.shape[1]))
    z_t, z_s = (run.argmax(x0, bridge.gamma(at)).where(batch.scored, x0) for at in (t, s))
    learns = network.trunk(view(z_t, bridge(t)[0]))
    with torch.no_grad():
        teaches = network.teacher.trunk(view(z_s, bridge(s)[0]))

    def divergence(logits: Tensor, taught: Tensor) -> Tensor:
        student = logits.log_softmax(-1)
        with torch.no_grad():
            teacher = network.teacher.head(taught).log_softmax(-1)
        p, q = (student, teacher) if kl == "backward" else (teacher, student)
        return (p.exp() * (p - q)).sum(-1)

    places = scored_places(batch)
    rows, taught = picked(batch, places, learns, teaches)
    nats = network.by_rule(divergence, rows[0], taught[0], fuse=False)
    return TokenLoss(in_place(nats[None], batch, places), batch.scored)
