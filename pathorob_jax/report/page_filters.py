"""Filters of the page: what models, datasets and sections readers can choose among."""

from collections.abc import Mapping, Sequence
from typing import Any

from pathorob_jax.models.facts import ModelFacts, find_facts
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.families import name_family

UNKNOWN = "not known"


def build_filters(
    collection: Collection,
    sections: Sequence[tuple[str, str]],
    facts: Mapping[str, ModelFacts] | None = None,
) -> dict[str, Any]:
    """Facts of each model, the choices of each filter, and whether models have kin.

    Args:
        collection: results.
        sections: (id, words) of the sections.
        facts: facts of models beyond the registry.
    """
    by_model = {
        model: [name_family(model), find_facts(model, facts).value("licence") or UNKNOWN]
        for model in collection.models
    }
    families, licences = (sorted({pair[i] for pair in by_model.values()}) for i in range(2))
    has_kin = len(families) < len(by_model)
    datasets = [name_dataset(dataset) for dataset in collection.all_datasets()]
    choices = [
        ("dataset", [(name, name) for name in datasets]),
        ("metric", [*sections]),
        ("family", [(name, name) for name in families] if has_kin else []),
        ("licence", [(name, name if len(name) < 60 else f"{name[:59]}…") for name in licences]),
    ]
    # A filter of one value filters nothing.
    choices = [(name, options) for name, options in choices if len(options) > 1]
    return {"facts": by_model, "choices": choices, "has_kin": has_kin and len(families) > 1}
