"""Colours and terms that all tables and figures of the report share.

The functions map an index or a position to a colour. Orange always means the medical centre and
blue always means biology, in tables and in figures. The two can be told apart with colour blindness
and in print.
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

_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#B5478C", "#C98A00", "#2F9FD8", "#4D4D4D")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

_HEAT = ((0xF0, 0xA0, 0x73), (0xFA, 0xF8, 0xF4), (0x76, 0xB7, 0xDE))


def line_style(position: int) -> dict[str, object]:
    """Colour and dashes of the model at ``position``; they repeat after 28 models."""
    dashes = _DASHES[position // len(_CYCLE) % len(_DASHES)]
    return {"color": _CYCLE[position % len(_CYCLE)], "linestyle": dashes}


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
