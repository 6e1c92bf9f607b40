"""Two results as JSON, number by number."""

import math
from collections.abc import Iterator
from typing import Any

# By words in a number's name. An agreement or an accuracy moves by whole rows where optima or
# distances are nearly equal; what is not named here is a plain sum.
TOLERANCES = {"ari": 2e-2, "clustering_score": 2e-2, "accuracies": 1e-2, "apd": 5e-3, "nipd": 5e-3}
TOLERANCE = 1e-4
# What may differ between devices, or follows from a number that is compared.
APART = frozenset(
    {"provenance", "warnings", "chosen_c", "chosen", "converged", "converged_share"}
    | {"composition", "n_at_k_max"}
)


def numbers_of(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result with its place; null is NaN."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in APART:
                yield from numbers_of(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from numbers_of(part, f"{name}.{i}")
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield name, math.nan if value is None else float(value)


def tolerance_of(name: str) -> float:
    """What a number may differ by."""
    words = name.replace(".", "_").split("_")
    return max(
        [TOLERANCES[key] for key in TOLERANCES if key in words or key in name.split(".")],
        default=TOLERANCE,
    )


def compare(one: Any, other: Any) -> dict[str, Any]:
    """How many numbers there are, how many are out of tolerance, and the worst of them.

    A number that one side lacks, or that is undefined on one side alone, is out of tolerance.
    """
    here, there = dict(numbers_of(one)), dict(numbers_of(other))
    worst, at, out = 0.0, "", 0
    for name in sorted(here.keys() | there.keys()):
        a, b = here.get(name), there.get(name)
        if a is None or b is None or math.isnan(a) != math.isnan(b):
            share = math.inf
        else:
            share = 0.0 if math.isnan(a) else abs(a - b) / tolerance_of(name)
        out += share > 1
        if share > worst:
            worst, at = share, name
    return {
        "numbers": len(here),
        "out_of_tolerance": out,
        "worst_over_tolerance": worst if math.isfinite(worst) else None,
        "at": at,
    }
