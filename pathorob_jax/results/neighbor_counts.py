"""On how many neighbours the numbers of a robustness index rest.

A share of three neighbours is 0, 1/3, 2/3 or 1 and says nothing, however large the dataset: an
embedding that is ruled by the centre has hardly a neighbour from another one, and an OOD
performance of 1.000.
"""

import math

from pathorob_jax.results.robustness_index import NeighborTypes, RobustnessIndexResult

# Numbers that rest on fewer neighbours, or on a smaller share of all, are shown as weak.
FEW, FEW_SHARE = 100, 0.01
_DENOMINATORS = {
    "robustness_index": ("so", "os"),
    "prediction_performance": ("ss", "so", "os", "oo"),
    "id_performance": ("ss", "os"),
    "ood_performance": ("so", "oo"),
    "bio_vs_confounding": ("ss", "os"),
    "confounder_insensitivity": ("ss", "os"),
    "normalized_confounder_insensitivity": ("ss", "os"),
}


def count_neighbors(record: RobustnessIndexResult, field: str) -> int | None:
    """Neighbours in the denominator of a number; None if it is no share of neighbours.

    The generalisation index is a ratio of two shares: the smaller denominator counts.
    """
    if field == "generalization_index":
        counts = [count_neighbors(record, f"{side}_performance") for side in ("id", "ood")]
        return None if None in counts else min(count for count in counts if count is not None)
    if field not in _DENOMINATORS:
        return None
    share = _share(record.neighbor_types, field)
    return round(share * record.n_samples * record.k) if math.isfinite(share) else None


def rests_on_few(record: RobustnessIndexResult, field: str) -> bool:
    """Whether fewer than 100 neighbours, or 1 % of them, decide a number."""
    count = count_neighbors(record, field)
    return count is not None and count < max(FEW, FEW_SHARE * record.n_samples * record.k)


def _share(types: NeighborTypes, field: str) -> float:
    return float(sum(getattr(types, name) for name in _DENOMINATORS[field]))
