"""Colours and terms that all tables and figures of the report share.

Orange always means the medical centre and blue always means biology, in tables and in figures. The
two can be told apart with colour blindness and in print.
"""

import math
from typing import NamedTuple

LOW_SUPPORT = 0.5
"""An index with a smaller share of defined samples is flagged."""


class NeighborType(NamedTuple):
    """One of the four types of neighbour."""

    key: str
    words: str
    color: str


NEIGHBOR_TYPES = (
    NeighborType("so", "SO: same class, other centre (biology rules)", "#0072B2"),
    NeighborType("ss", "SS: same class, same centre", "#A9D3EA"),
    NeighborType("oo", "OO: other class, other centre", "#F5D9B8"),
    NeighborType("os", "OS: other class, same centre (centre rules)", "#D55E00"),
)

# Lines of a few models in one panel.
MODEL_COLORS = ("#1F2328", "#117733", "#44AA99", "#C98A00", "#2F9FD8", "#332288")
# Classes are cool and centres are warm: a map by class cannot be taken for one by centre.
CLASS_COLORS = ("#332288", "#0072B2", "#56B4E9", "#009E73", "#004D40")
SHAPES = ("disc", "square", "small disc", "small square")
CENTER_COLORS = ("#D55E00", "#E69F00", "#CC79A7", "#661100", "#AA4499")

KEY_COLORS = {
    "biology": "#0072B2",
    "centre": "#D55E00",
    "ink": "#1F2328",
    "soft": "#57606A",
    **{kind.key: kind.color for kind in NEIGHBOR_TYPES},
    **{f"m{i}": color for i, color in enumerate(MODEL_COLORS)},
}
"""Colours of the keys of panels, on white."""

DARK_COLORS = {
    "biology": "#56B4E9",
    "centre": "#F08A4B",
    "so": "#2F8FCC",
    "ss": "#A9D3EA",
    "oo": "#F5D9B8",
    "os": "#E06A1B",
    "m0": "#E6EDF3",
    "m1": "#5FBF6F",
    "m2": "#9FE8DC",
    "m3": "#E5B84B",
    "m4": "#6CC3F0",
    "m5": "#A79BF0",
}
"""Colours of the same keys on a dark screen, where they differ."""

_HEAT = ((0xF0, 0xA0, 0x73), (0xFA, 0xF8, 0xF4), (0x76, 0xB7, 0xDE))


def heat(robustness_index: float) -> str:
    """Background colour from orange (0, centre) over near-white (0.5) to blue (1, biology).

    The colours are pale enough for black text. The result is empty if the index is undefined.
    """
    if not math.isfinite(robustness_index):
        return ""
    place = 2 * min(max(robustness_index, 0.0), 1.0)
    low = min(int(place), 1)
    share = place - low
    pairs = zip(_HEAT[low], _HEAT[low + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def tint(share: float) -> str:
    """Background colour from white (0 and less) to orange, the colour of the centre (1)."""
    depth = min(max(share, 0.0), 1.0)
    mixed = (round(255 + (end - 255) * depth) for end in _HEAT[0])
    return "#" + "".join(f"{part:02x}" for part in mixed)
