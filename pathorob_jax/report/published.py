"""Published robustness indices, to stand beside runs that repeat the published way of use.

Enters: records. Leaves: the published value of those that may be compared, and why not of others.
Values: leaderboard of PathoROB (Kömen et al., arXiv:2507.17845, Nature Communications 17:5218),
four decimals from its result files.
"""

from collections.abc import Sequence

from pathorob_jax.results.robustness_index import RobustnessIndexResult

PUBLISHED = {
    "uni2_h": {"camelyon": 0.5445, "tcga": 0.8029, "tolkach_esca": 0.9226},
    "phikon_v2": {"camelyon": 0.0190, "tcga": 0.6188, "tolkach_esca": 0.7681},
}
PRESET = "pathorob"


def published_index(record: RobustnessIndexResult) -> float | None:
    """The published value of the same encoder, used in the same way on the same rows, or None."""
    if why_not_beside(record):
        return None
    return PUBLISHED[record.model.removesuffix(f"_{PRESET}")][record.dataset]


def why_not_beside(record: RobustnessIndexResult) -> str:
    """Why no published value stands beside a record; empty where one does."""
    if all(record.dataset not in values for values in PUBLISHED.values()):
        return "not on a dataset of PathoROB"
    encoder = record.model.removesuffix(f"_{PRESET}")
    identity = record.provenance.get("store", {}).get("identity", {}).get("encoder", {})
    preset = identity.get("preset") or {}
    if encoder == record.model or preset.get("name") != PRESET:
        return f"not extracted with --preset={PRESET}"
    if record.dataset not in PUBLISHED.get(encoder, {}):
        return "its value is not among those quoted here"
    settings = record.provenance.get("settings", {})
    by_hand = settings.get("max_patches_per_combi") or settings.get("design", "auto") != "auto"
    if record.k_rule != "published" or by_hand:
        return "not with the published k, rows and design"
    return ""


def list_reasons(records: Sequence[RobustnessIndexResult]) -> list[tuple[str, str]]:
    """Each reason and the models on which it holds, of records without a published value."""
    found: dict[str, list[str]] = {}
    for record in records:
        why = why_not_beside(record)
        if why:
            models = found.setdefault(why, [])
            models += [record.model] if record.model not in models else []
    return [(why, ", ".join(models)) for why, models in found.items()]
