"""Laws of the solved sizes: heads that attention kernels need not pad, and nearly as many weights as were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from redraft.errors import UserError
from redraft.network.sizes import LADDER, from_size, head_width

# |log(weights / size)| at most, read off a hundred sizes a decade: a layer more or less is much of a small network.
TOLERANCE = {4: 0.42, 5: 0.24, 6: 0.16, 7: 0.1, 8: 0.07, 10: 0.04}
DECADES = [(least, most) for least, most in zip((3, *TOLERANCE), TOLERANCE, strict=False)]


def sizes(least: int, most: int, block: str) -> list[int]:
    """Between two powers of ten, evenly in the logarithm, from the smallest network there is."""
    smallest = (12 if block == "dit" else 16) * 16**2
    return [round(n) for n in np.geomspace(max(10.0**least, smallest), 10.0**most, 100)]


@pytest.mark.parametrize("block", ["dit", "llama"])
@pytest.mark.parametrize(("least", "most"), DECADES)
def test_solved_heads_are_multiples_of_eight_wide(least: int, most: int, block: str) -> None:
    for size in sizes(least, most, block):
        shape = from_size(str(size), block, 257)
        width = shape.width // shape.heads
        assert width % 8 == 0 and head_width(shape.width) % width == 0, shape
        assert width % 16 == 0 or shape.width in (24, 40, 56), shape
        assert abs(math.log(shape.block_weights / size)) <= TOLERANCE[most], shape


def test_below_sixteen_wide_there_are_networks_of_eight() -> None:
    shapes = [from_size(size, "dit", 257) for size in ("0.8k", "1.5k", "3.1k")]
    assert [(shape.width, shape.heads, shape.depth) for shape in shapes] == [(8, 1, 1), (8, 1, 2), (16, 1, 1)]
    with pytest.raises(UserError, match="the smallest network has 768"):
        from_size("0.7k", "dit", 257)


@pytest.mark.parametrize("block", ["dit", "llama"])
def test_names_of_the_ladder_keep_their_heads(block: str) -> None:
    for name, (depth, heads, width) in LADDER.items():
        shape = from_size(name, block, 257)
        assert (shape.depth, shape.heads, shape.width) == (depth, heads, width)
