"""Sentences that sections of the report share, and names of datasets."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.report.palette import LOW_SUPPORT
from pathorob_jax.results.collection import Collection


def name_dataset(dataset: str) -> str:
    """Name of a dataset on the page; ``data@column`` was scored with ``column`` as confounder."""
    name, confounder = split_confounder(dataset)
    return f"{name} by {confounder}" if confounder else name


def answer_by_confounder(collection: Collection, record: Any, answer: Callable[[str], str]) -> str:
    """One sentence for each confounder of a record class, each saying which one it is about."""
    confounders = collection.confounders(record)
    if len(confounders) == 1:
        return answer(confounders[0])
    return " ".join(f"By {c or 'medical centre'}: {answer(c)}" for c in confounders)


def name_ends(parts: Sequence[str], shown: Sequence[str]) -> str:
    """The least and the most of models in order; equal numbers are no order.

    Args:
        parts: a phrase for each model, such as ``with a by −3 %``.
        shown: the number of each as it is shown.
    """
    if len(parts) == 1:
        return parts[0]
    if shown[0] == shown[-1]:
        return f"equally for all {len(parts)} models, as {parts[0]}"
    return f"least {parts[0]}, most {parts[-1]}"


def is_weak(support: float) -> bool:
    """Whether the index covers less than half of the samples, or none."""
    return not support >= LOW_SUPPORT


def join_distinct(words: Iterable[str], *, limit: int = 4) -> str:
    """Distinct words in order of appearance, separated by commas."""
    words = list(dict.fromkeys(words))
    return ", ".join(words[:limit]) + (", …" if len(words) > limit else "")


def why_undefined(support: float, n_samples: int) -> str:
    """Reason why an index is undefined."""
    if support == 0:
        return (
            f"undefined: support 0, none of the {n_samples:,} samples has a neighbour of type SO "
            "or OS among its k nearest"
        )
    return "undefined: the result holds no value"
