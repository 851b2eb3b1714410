"""Colours that all readers can tell apart, in colour and in grey, and marks that are told apart without either."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from redraft.report.theme import COLOURS, MARKERS, PAPERS, colours, model_keys

# Machado, Oliveira and Fernandes 2009: how linear RGB looks to a dichromat.
SIGHT = {
    "all three cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB, D65."""
    t = XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_in_grey_no_two_are_within_eight_of_lightness() -> None:
    lightness = {colour: lab(linear(colour))[0] for colour in COLOURS}
    assert min(abs(lightness[a] - lightness[b]) for a, b in combinations(COLOURS, 2)) > 8


@pytest.mark.parametrize("sight", SIGHT)
def test_no_reader_confuses_two(sight: str) -> None:
    """CIE76 difference above 15 (2.3 is just noticeable side by side)."""
    seen = {colour: lab(np.array(SIGHT[sight]) @ linear(colour)) for colour in COLOURS}
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in combinations(COLOURS, 2)) > 15


def test_all_are_seen_on_white() -> None:
    """Contrast against white of 1.8 at least, and of the five papers' families no two share a marker."""
    assert min(1.05 / (0.05 + float(XYZ[1] @ linear(colour))) for colour in COLOURS) > 1.8
    assert len(set(MARKERS)) == len(MARKERS) >= len(COLOURS)


def test_a_family_has_its_colour_whoever_else_is_drawn() -> None:
    few, many = colours(["ar", "duo"]), colours(["ar", "mdlm", "duo", "bd3lm", "gidd"])
    assert all(few[name] == many[name] for name in PAPERS)
    assert len({many[name] for name in (*PAPERS, "bd3lm", "gidd")}) == len(PAPERS) + 2


def test_models_have_the_colours_of_their_families_and_no_two_the_same() -> None:
    families = {"mdlm-6k-s0": "mdlm", "mdlm-6k-s1": "mdlm", "small": "ar", "mine": "my_family"}
    colour, shape = (keys.to_dict()["scale"] for keys in model_keys(families))
    assert colour["domain"] == ["MDLM-6k-s0", "MDLM-6k-s1", "small", "mine"]
    named = colours(families.values())
    assert (colour["range"][0], colour["range"][2:]) == (named["mdlm"], [named["ar"], named["my_family"]])
    assert len(set(colour["range"])) == len(set(shape["range"])) == 4


def test_many_models_of_one_family_are_told_apart_by_colour_or_marker() -> None:
    colour, shape = (keys.to_dict()["scale"]["range"] for keys in model_keys({f"m{i}": "duo" for i in range(12)}))
    assert len(set(colour[:8])) == 8 and len(set(zip(colour, shape))) == 12
