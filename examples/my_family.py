"""A family of one's own in one file: ARDM, order-agnostic autoregressive diffusion (Hoogeboom et al. 2021, arXiv:2110.02037).

Masked diffusion trained by counts: of the n tokens of a text l are hidden, l uniform on 1..n, and the loss is n / l times the
cross-entropy of the hidden ones. Its expectation is MDLM's bound, which it reports; it writes a token a call, in random order.
Predicts: p(x0 at l | visible tokens).

  python examples/my_family.py --steps 500          trains it and MDLM on the same text, compares, writes a sample
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from redraft.cli import main as redraft
from redraft.families.base import Absorbing, full_view, masked_cross_entropy
from redraft.noise import counter_rng
from redraft.noise.counter_rng import Key
from redraft.noise.schedules import Linear, Schedule
from redraft.registry import Entry, register
from redraft.types import Batch, Network, TokenLoss, View


@dataclass(frozen=True)
class ARDM(Absorbing):
    """`Absorbing` has the process (corrupt, step, posterior), and derives the bound from `token_nelbo`."""

    name: ClassVar[str] = "ardm"
    sampler: ClassVar[str] = "first_hitting"
    exported: ClassVar[str] = "absorbing"
    vocab: int
    schedule: Schedule = field(default_factory=Linear)

    def loss(self, network: Network, batch: Batch, *, key: Key, progress: float) -> TokenLoss:
        scored, noise = batch.scored, counter_rng.field(key, batch.index, batch.tokens.shape[1])
        n = scored.sum(1, keepdim=True)
        count = (counter_rng.times(key.fold_in("count"), batch.index)[:, None] * n).ceil()
        rank = noise("order").masked_fill(~scored, 1.0).argsort(1).argsort(1)
        hide = scored & (rank < count)
        hidden = network.trunk(full_view(batch.tokens.masked_fill(hide, self.mask_id)))
        return TokenLoss(masked_cross_entropy(network, hidden, hide, batch.tokens, n / count.clamp(min=1)), scored)

    def view(self, tokens: Tensor, t: Tensor) -> View:
        return full_view(tokens)

    def token_nelbo(self, network: Network, hidden: Tensor, xt: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        return masked_cross_entropy(network, hidden, xt == self.mask_id, x0, self.weight(t))


ENTRY = Entry("my_family:ARDM", "masked diffusion trained by counts (Hoogeboom et al. 2021)")


def main(arguments: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--into", type=Path, default=Path("runs/my-family"))
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--size", default="25k")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--length", type=int, default=64)
    options = parser.parse_args(arguments)
    register("ardm", ENTRY)
    folders = {name: str(options.into / name) for name in ("mdlm", "ardm")}
    for name, folder in folders.items():
        what = ["--family", name, "--data", options.data, "--size", options.size, "--length", str(options.length)]
        budget = ["--steps", str(options.steps), "--train.lr", "3e-3", "--network.cond", "16"]
        redraft(["train", "--into", folder, *what, *budget])
    redraft(["compare", *folders.values()])
    redraft(["sample", folders["ardm"], "-n", "1", "--length", str(options.length)])


if __name__ == "__main__":
    main()
