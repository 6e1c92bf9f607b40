"""How time and memory grow: search, APD, clustering and slide-level networks at a ladder of sizes.

Each size is one call of the part's own benchmark (``--peers=ours``), in a process of its own. For
each ladder there is a line with the exponents of time and of peak memory: slopes of a line through
the logarithms of size and of seconds of later calls. ``bound`` is the exponent of the operations
that the part must do.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from experiments.benchmarks import harness

_PARTS = flags.DEFINE_list("parts", [], "Ladders to climb, such as search_n; empty: all.")
_RESULTS = flags.DEFINE_string("results", None, "File that lines are appended to; unset: none.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Calls after the first.", lower_bound=1)


class Ladder(NamedTuple):
    """Sizes at which a part is measured.

    Attributes:
        name: part and what grows.
        module: its benchmark.
        flag: what grows.
        sizes: its values.
        fixed: other flags.
        bound: exponent of the operations in what grows, and why.
    """

    name: str
    module: str
    flag: str
    sizes: Sequence[int]
    fixed: dict[str, Any]
    bound: str


LADDERS = (
    Ladder(
        "search_n",
        "neighbors",
        "samples",
        (5_100, 10_200, 20_400, 40_800),
        {"task": "search", "dim": 768},
        "2: N^2 D products",
    ),
    Ladder(
        "search_dim",
        "neighbors",
        "dim",
        (384, 768, 1_536, 3_072),
        {"task": "search", "samples": 20_400},
        "1: N^2 D products, and the selection, which does not depend on D",
    ),
    Ladder(
        "apd_rows",
        "apd",
        "rows_per_slide",
        (15, 30, 60),
        {"shape": "tcga", "dim": 1_536},
        "1: N D products for each step of a fit",
    ),
    Ladder(
        "apd_dim",
        "apd",
        "dim",
        (384, 768, 1_536, 3_072),
        {"shape": "tcga"},
        "1: N D products for each step of a fit",
    ),
    Ladder(
        "clustering_n",
        "clustering",
        "samples",
        (400, 800, 1_600),
        {"dim": 1_536, "trials": 10, "selection_inits": 5},
        "2: N^2 D inner products once, and rows of N for each row that moves",
    ),
    Ladder(
        "clustering_dim",
        "clustering",
        "dim",
        (384, 768, 1_536, 3_072),
        {"samples": 800, "trials": 10, "selection_inits": 5},
        "0: D enters the inner products once; 1 for these",
    ),
    Ladder(
        "clustering_combinations",
        "clustering",
        "combinations",
        (1, 3, 6, 10),
        {"samples": 800, "dim": 1_536, "trials": 10, "selection_inits": 5},
        "1: each combination by itself",
    ),
    Ladder(
        "slide_prediction_splits",
        "mil",
        "splits",
        (2, 4, 8),
        {"presets": "gated", "epochs": 5, "results": ""},
        "1: a network for each split",
    ),
    Ladder(
        "slide_prediction_dim",
        "mil",
        "dim",
        (384, 768, 1_536),
        {"presets": "gated", "epochs": 5, "splits": 4, "results": ""},
        "1: N D products of the first layer",
    ),
)
SECONDS, BYTES = "median_s", "peak_bytes"


def climb(ladder: Ladder) -> dict[str, Any]:
    """Measure each size; a line with the exponents."""
    found = [_measure(ladder, size) for size in ladder.sizes]
    line: dict[str, Any] = {
        "task": "scaling",
        "part": ladder.name,
        "sizes": list(ladder.sizes),
        "bound": ladder.bound,
    }
    for name in (SECONDS, "first_s", BYTES):
        values = [one.get(name, math.nan) for one in found]
        line[name] = values
        line[f"exponent_{name}"] = fit_exponent(ladder.sizes, values)
    return line


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of a line through the logarithms, by least squares; NaN with fewer than two values."""
    known = np.isfinite(values) & (np.asarray(values, float) > 0)
    if known.sum() < 2:
        return math.nan
    x, y = (np.log(np.asarray(a, float)[known]) for a in (sizes, values))
    return float(np.polyfit(x, y, 1)[0])


def _measure(ladder: Ladder, size: int) -> dict[str, Any]:
    given = ladder.fixed | {ladder.flag: size, "peers": "ours"}
    if ladder.module != "mil":
        given["repeats"] = _REPEATS.value
    arguments = [f"--{name}={value}" for name, value in given.items()]
    return harness.run_peer(f"experiments.benchmarks.{ladder.module}", arguments)


def main(argv: list[str]) -> None:
    """Climb the ladders."""
    del argv
    for ladder in LADDERS:
        if not _PARTS.value or ladder.name in _PARTS.value:
            harness.emit(climb(ladder), path=_RESULTS.value)


if __name__ == "__main__":
    app.run(main)
