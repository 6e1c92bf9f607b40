"""Published robustness indices, to compare with runs that follow the published procedure.

For each record, the module returns the published value, or the reason why no published value is
comparable. The values are from the leaderboard of PathoROB (Kömen et al., arXiv:2507.17845, Nature
Communications 17:5218), with four decimals from its result files.
"""

from collections.abc import Sequence

from pathorob_jax.results.robustness_index import RobustnessIndexResult

PUBLISHED = {
    "uni2_h": {"camelyon": 0.5445, "tcga": 0.8029, "tolkach_esca": 0.9226},
    "phikon_v2": {"camelyon": 0.0190, "tcga": 0.6188, "tolkach_esca": 0.7681},
}
PRESET = "pathorob"


def published_index(record: RobustnessIndexResult) -> float | None:
    """Published value for the same encoder, procedure and rows; None if there is none."""
    if why_not_beside(record):
        return None
    return PUBLISHED[record.model.removesuffix(f"_{PRESET}")][record.dataset]


def why_not_beside(record: RobustnessIndexResult) -> str:
    """Reason why a record has no comparable published value; empty if it has one."""
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
    """Each reason with its models, for records without a published value."""
    models_by_reason: dict[str, list[str]] = {}
    for record in records:
        why = why_not_beside(record)
        if why:
            models = models_by_reason.setdefault(why, [])
            models += [record.model] if record.model not in models else []
    return [(why, ", ".join(models)) for why, models in models_by_reason.items()]
