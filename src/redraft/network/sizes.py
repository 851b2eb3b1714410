"""The shape of a network: the published size ladder (SMDM's names), and a solver for any other size. No torch.

The names are SMDM's (arXiv:2410.18514), reused by "Scaling Beyond Masked Diffusion" (arXiv:2602.15014). They count
16 d^2 N and are *not* the size of the `dit` network of that name: print the counts, do not read them off the name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from redraft.errors import UserError, unknown

if TYPE_CHECKING:
    from redraft.config_network import NetworkConfig

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
CONTEXT = 1024  # GPT-2's
# Of a configuration, under its names.
PARTS = ("theta", "clock", "kv_heads", "head_dim", "qkv_bias", "qk_norm", "tied", "eps")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}


SCALINGS = ("linear", "llama3", "yarn")
BLOCKS = ("dit", "llama", "gpt2")


@dataclass(frozen=True)
class Scaling:
    """How rotary frequencies are scaled (`network/rope.py`). `original`: tokens in a row before. `low`, `high`: waves within
    them, of "llama3"; `fast`, `slow`: turns, of "yarn", which also multiplies cos and sin by `attention`, 0: as it derives."""

    kind: str
    factor: float
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise unknown("network.scaling.kind", self.kind, SCALINGS)
        if self.kind != "linear" and self.original < 1:
            raise UserError(f"network.scaling.original must be given for {self.kind}: the tokens in a row before")
        if not (0 < self.factor < math.inf and self.high > self.low and self.fast > self.slow > 0):
            raise UserError("network.scaling: factor and slow must be above 0, high above low, and fast above slow")

    @property
    def gain(self) -> float:
        """Of cos and sin: sqrt(1/t) = 0.1 ln s + 1 (arXiv:2309.00071, eq. 22)."""
        if self.kind != "yarn":
            return 1.0
        return self.attention or (0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0)


@dataclass(frozen=True)
class Shape:
    """Everything that decides a network's tensors.

    `block`: "dit" (LayerNorm, GELU, adaLN; arXiv:2602.15014), "llama" (RMSNorm, SwiGLU; SMDM) or "gpt2" (LayerNorm, GELU,
    biases, learned positions). `vocab`: V text ids, the head's rows; the embedding has V + 1, the last for [MASK] or BOS.
    `hidden`: the MLP's inner width. `cond`: width of the time conditioning of "dit"; 0 means no adaLN. `theta`: base of the
    rotary angles. `clock`, of foreign networks: None, the time conditioning reads the noise level sigma; else GIDD's time t,
    under its mixing schedule with that share of uniform noise.

    `kv_heads`: heads of keys and values, 0: `heads`. `head_dim`: width of a head, 0: width / heads. `qkv_bias`, `qk_norm`
    (an RMSNorm over each head's queries and keys), `tied` (the head is the embedding) and `eps` of the norms are of "llama",
    `tied` and `eps` of "gpt2" too. `context`: rows of its table of positions.
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
    kv_heads: int = 0
    head_dim: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    eps: float = 1e-5
    context: int = 0
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scaling, dict):  # as config.json has it
            object.__setattr__(self, "scaling", Scaling(**self.scaling))
        if self.block not in BLOCKS:
            raise unknown("network.block", self.block, BLOCKS)
        if (not self.head_dim and self.width % self.heads) or (self.block != "gpt2" and self.head % 2):
            raise UserError(
                f"network.width {self.width} must be an even multiple of network.heads {self.heads}: "
                f"rotary embeddings pair the dimensions of a head"
            )
        if self.heads % self.keys:
            raise UserError(f"network.kv_heads {self.kv_heads} must divide network.heads {self.heads}")
        self._check_block()

    def _check_block(self) -> None:
        """`UserError` where the block has no such part."""
        of = {
            "qkv_bias": self.qkv_bias, "qk_norm": self.qk_norm, "tied": self.tied, "eps": self.eps != 1e-5,
            "context": self.context, "scaling": self.scaling is not None,
        }  # fmt: skip
        without = {"dit": ("qkv_bias", "qk_norm", "tied", "eps", "context"), "llama": ("context",)}
        for name in without.get(self.block, ("qkv_bias", "qk_norm", "scaling")):
            if of[name]:
                raise UserError(f"network.{name} is not of block {self.block!r}: leave it out")
        if self.block == "gpt2" and not self.context:
            raise UserError("network.context must be given for block 'gpt2': the rows of its table of positions")

    @property
    def adaln(self) -> bool:
        return self.block == "dit" and self.cond > 0

    @property
    def keys(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def qkv_biased(self) -> bool:
        return self.qkv_bias or self.block == "gpt2"

    @property
    def grown(self) -> list[str]:
        """What it has beyond the two blocks of version 0.2, by name."""
        plain = Shape("llama", 1, 1, 2, 1, 1)
        own = ("kv_heads", "head_dim", "qkv_bias", "qk_norm", "tied", "eps", "context", "scaling")
        return [name for name in own if getattr(self, name) != getattr(plain, name)]

    @property
    def block_weights(self) -> int:
        """Weights of the blocks' matrices: 12 d^2 N for "dit", N (4 d^2 + 3 d hidden) for "llama" with as many heads of keys
        as of queries."""
        mlp = 3 if self.block == "llama" else 2
        attention = 2 * (self.heads + self.keys) * self.head * self.width
        return self.depth * (attention + mlp * self.width * self.hidden)


def from_config(config: NetworkConfig, vocab: int) -> Shape:
    """The shape that a configuration asks for, over `vocab` text ids."""
    cond = config.cond if config.block == "dit" else 0
    if config.size and (config.depth or config.heads or config.width or config.mlp_width):
        raise UserError(f"network: give either size (here {config.size}) or all of depth, heads and width, not both")
    if config.depth and config.heads and config.width:
        hidden = config.mlp_width or 4 * config.width
        # what the block lacks is told of the whole, so it comes with all the rest
        return Shape(config.block, config.depth, config.heads, config.width, hidden, vocab, cond, **_parts(config))
    if config.depth or config.heads or config.width or config.mlp_width:
        raise UserError("network: give either size, or all of depth, heads and width")
    found = from_size(config.size or DEFAULT, config.block, vocab, cond)
    return replace(found, **_parts(config))


def _parts(config: NetworkConfig) -> dict[str, Any]:
    """What a configuration says beside sizes."""
    context = config.context or (CONTEXT if config.block == "gpt2" else 0)
    scaling = None if config.scaling is None else Scaling(**config.scaling.model_dump())
    own = {name: getattr(config, name) for name in PARTS}
    return own | {"context": context, "scaling": scaling}


def from_size(size: str, block: str, vocab: int, cond: int = 128) -> Shape:
    """The network of a ladder name, or one whose block matrices hold nearly `size` weights ("150k", "3M", "1.5B").

    >>> shape = from_size("3M", "dit", vocab=257)
    >>> shape.depth, shape.width, shape.block_weights
    (5, 224, 3010560)
    """
    if size in LADDER:
        depth, heads, width = LADDER[size]
        hidden = 1600 if (size, block) == ("75M", "llama") else 4 * width
        return _made(block, depth, heads, width, hidden, vocab, cond)
    return _solve(weights_of(size), block, vocab, cond)


def weights_of(size: str) -> float:
    """A size as a number: 1.7e8 for 170M."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", size)
    if not match:
        raise UserError(f"unknown size {size!r}: give a name ({', '.join(LADDER)}) or a number such as 150k, 3M, 1.5B")
    return float(match[1]) * _UNITS[match[2]]


def _solve(weights: float, block: str, vocab: int, cond: int) -> Shape:
    """The width and depth nearest to `weights` and to the ladder's proportions; widths in steps of 8, 16, then 64.

    The ladder's width / depth grows from about 43 at 6M to 78 at 2121M; below it we keep falling by the same law,
    width / depth ~ weights^0.1 (a rule read off the ladder, not a result).
    """
    per_layer = 16 if block == "llama" else 12
    if weights < per_layer * 8**2:
        raise UserError(f"a size of {weights:g} weights is too small: the smallest network has {per_layer * 8**2}")
    aspect = 43 * (weights / 5e6) ** 0.1
    best: tuple[float, Shape] | None = None
    narrowest = 16 if weights >= per_layer * 16**2 else 8
    for width in [*range(narrowest, 64, 8), *range(64, 256, 16), *range(256, 16385, 64)]:
        depth = max(1, round(weights / (per_layer * width**2)))
        off = abs(math.log(per_layer * width**2 * depth / weights))
        score = 4 * off + 0.5 * abs(math.log(width / depth / aspect))
        if best is None or score < best[0]:
            best = score, _made(block, depth, _heads(width), width, 4 * width, vocab, cond)
    assert best is not None
    return best[1]


def _made(block: str, depth: int, heads: int, width: int, hidden: int, vocab: int, cond: int) -> Shape:
    return Shape(block, depth, heads, width, hidden, vocab, cond, context=CONTEXT if block == "gpt2" else 0)


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
