"""The shape of a network: the published size ladder (SMDM's names), and a solver for any other size. No torch.

The names are SMDM's (arXiv:2410.18514), reused by "Scaling Beyond Masked Diffusion" (arXiv:2602.15014). They count
16 d^2 N and are *not* the size of the `dit` network of that name: print the counts, do not read them off the name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from redraft.errors import UserError, unknown

if TYPE_CHECKING:
    from redraft.config import NetworkConfig

# name: (depth N, heads h, width d). Both papers; 717M and 1028M are SMDM's alone.
LADDER: dict[str, tuple[int, int, int]] = {
    "6M": (6, 4, 256), "19M": (8, 6, 384), "34M": (8, 8, 512), "48M": (9, 9, 576), "66M": (10, 10, 640),
    "75M": (16, 8, 640), "85M": (13, 10, 640), "113M": (12, 12, 768), "142M": (15, 12, 768), "170M": (18, 12, 768),
    "180M": (14, 14, 896), "206M": (16, 14, 896), "231M": (18, 14, 896), "268M": (16, 16, 1024),
    "302M": (18, 16, 1024), "336M": (20, 16, 1024), "472M": (18, 10, 1280), "551M": (21, 10, 1280),
    "571M": (18, 11, 1408), "629M": (24, 10, 1280), "666M": (21, 11, 1408), "717M": (19, 12, 1536),
    "761M": (24, 11, 1408), "831M": (22, 12, 1536), "944M": (25, 12, 1536), "1028M": (20, 14, 1792),
    "1233M": (24, 14, 1792), "1476M": (22, 16, 2048), "1678M": (25, 16, 2048), "2121M": (28, 17, 2176),
}  # fmt: skip
DEFAULT = "3M"
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class Shape:
    """Everything that decides a network's tensors.

    `block`: "dit" (LayerNorm, GELU, adaLN; arXiv:2602.15014) or "llama" (RMSNorm, SwiGLU; SMDM).
    `vocab`: V text ids, the head's rows; the embedding has V + 1, the last for [MASK] or BOS.
    `hidden`: the MLP's inner width. `cond`: width of the time conditioning of "dit"; 0 means no adaLN.
    Foreign networks alone differ in `theta`, the base of the rotary angles, and `clock`: None, the time conditioning reads
    the noise level sigma; else GIDD's time t, under its mixing schedule with that share of uniform noise.
    """

    block: str
    depth: int
    heads: int
    width: int
    hidden: int
    vocab: int
    cond: int = 128
    theta: float = 10000.0
    clock: float | None = None

    def __post_init__(self) -> None:
        if self.block not in ("dit", "llama"):
            raise unknown("network.block", self.block, ("dit", "llama"))
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(
                f"network.width {self.width} must be an even multiple of network.heads {self.heads}: "
                f"rotary embeddings pair the dimensions of a head"
            )

    @property
    def adaln(self) -> bool:
        return self.block == "dit" and self.cond > 0

    @property
    def block_weights(self) -> int:
        """Weights of the blocks' matrices: 12 d^2 N for "dit", N (4 d^2 + 3 d hidden) for "llama"."""
        mlp = 2 if self.block == "dit" else 3
        return self.depth * (4 * self.width**2 + mlp * self.width * self.hidden)


def from_config(config: NetworkConfig, vocab: int) -> Shape:
    """The shape that a configuration asks for, over `vocab` text ids."""
    cond = config.cond if config.block == "dit" else 0
    if config.size and (config.depth or config.heads or config.width or config.mlp_width):
        raise UserError(f"network: give either size (here {config.size}) or all of depth, heads and width, not both")
    if config.depth and config.heads and config.width:
        hidden = config.mlp_width or 4 * config.width
        return Shape(
            config.block, config.depth, config.heads, config.width, hidden, vocab, cond, config.theta, config.clock
        )
    if config.depth or config.heads or config.width or config.mlp_width:
        raise UserError("network: give either size, or all of depth, heads and width")
    return replace(from_size(config.size or DEFAULT, config.block, vocab, cond), theta=config.theta, clock=config.clock)


def from_size(size: str, block: str, vocab: int, cond: int = 128) -> Shape:
    """The network of a ladder name, or one whose block matrices hold nearly `size` weights ("150k", "3M", "1.5B")."""
    if size in LADDER:
        depth, heads, width = LADDER[size]
        hidden = 1600 if (size, block) == ("75M", "llama") else 4 * width
        return Shape(block, depth, heads, width, hidden, vocab, cond)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", size)
    if not match:
        raise UserError(f"unknown size {size!r}: give a name ({', '.join(LADDER)}) or a number such as 150k, 3M, 1.5B")
    return _solve(float(match[1]) * _UNITS[match[2]], block, vocab, cond)


def _solve(weights: float, block: str, vocab: int, cond: int) -> Shape:
    """The width and depth nearest to `weights` and to the ladder's proportions; widths in steps of 8, 16, then 64.

    The ladder's width / depth grows from about 43 at 6M to 78 at 2121M; below it we keep falling by the same law,
    width / depth ~ weights^0.1 (a rule read off the ladder, not a result).
    """
    per_layer = 12 if block == "dit" else 16
    if weights < per_layer * 16**2:
        raise UserError(f"a size of {weights:g} weights is too small: the smallest network has {per_layer * 16**2}")
    aspect = 43 * (weights / 5e6) ** 0.1
    best: tuple[float, Shape] | None = None
    for width in [*range(16, 64, 8), *range(64, 256, 16), *range(256, 16385, 64)]:
        depth = max(1, round(weights / (per_layer * width**2)))
        off = abs(math.log(per_layer * width**2 * depth / weights))
        score = 4 * off + 0.5 * abs(math.log(width / depth / aspect))
        if best is None or score < best[0]:
            best = score, Shape(block, depth, _heads(width), width, 4 * width, vocab, cond)
    assert best is not None
    return best[1]


def _heads(width: int) -> int:
    """Heads of `head_width`, or of the greatest part of it that divides the width: at least 8, for the widths are multiples of
    8, to which attention kernels pad a head."""
    return width // math.gcd(width, head_width(width))


def size_sentence(size: str | None, shape: Shape) -> str:
    """Which count a size is, and what the network of this one has."""
    count = f"they have {shape.block_weights:,} weights"
    if size in LADDER:
        return f"Size {size} is a name of SMDM's ladder and no count of the blocks' matrices: {count}."
    return f"Size {size or DEFAULT} counts the blocks' matrices, not head, embedding or modulation: {count}."


def head_width(width: int) -> int:
    """Of a solved size: 64 from width 256 and 128 from 1280, as in the ladder; 32 from 128 and 16 below it."""
    return next(size for least, size in ((1280, 128), (256, 64), (128, 32), (0, 16)) if width >= least)
