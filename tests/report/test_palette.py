"""Colours: classes and centres share none, and all are told apart with colour blindness."""

import itertools

import numpy as np
import pytest
from skimage.color import rgb2lab

from pathorob_jax.report import palette

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def see(colors, kind):
    """Lab colours of hex colours as they are seen."""
    srgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colors]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(BLINDNESS[kind]).T, 0, 1)
    back = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
    return rgb2lab(back)


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize(
    "colors",
    [
        palette.CLASS_COLORS,
        palette.CENTER_COLORS,
        palette.MODEL_COLORS,
        [k.color for k in palette.NEIGHBOR_TYPES],
        [palette.KEY_COLORS["biology"], palette.KEY_COLORS["centre"]],
        [palette.DARK_COLORS["biology"], palette.DARK_COLORS["centre"]],
    ],
    ids=["classes", "centres", "models", "neighbours", "light", "dark"],
)
def test_colours_are_told_apart(colors, kind):
    lab = see(colors, kind)
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
    assert least > 10


@pytest.mark.slow
def test_classes_and_centres_share_no_colour():
    assert not set(palette.CLASS_COLORS) & set(palette.CENTER_COLORS)
    lab = see([*palette.CLASS_COLORS, *palette.CENTER_COLORS], "none")
    n = len(palette.CLASS_COLORS)
    assert np.linalg.norm(lab[:n, None] - lab[None, n:], axis=2).min() > 25
