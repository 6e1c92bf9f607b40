"""The registry of metrics, in the order in which they are shown.

>>> from pathorob_jax.results import registry
>>> registry.get_kind("apd").title
'performance drop'
"""

import contextlib
from collections.abc import Iterator

from pathorob_jax.core import checks
from pathorob_jax.results import (
    apd,
    clustering_score,
    feature_space,
    margins,
    probes,
    retrieval,
    robustification,
    robustness_index,
    slide_prediction,
)
from pathorob_jax.results.metric_kind import MetricKind

KINDS: dict[str, MetricKind] = {
    kind.name: kind
    for kind in (
        robustness_index.KIND,
        apd.KIND,
        clustering_score.KIND,
        feature_space.KIND,
        margins.KIND,
        probes.KIND,
        retrieval.KIND,
        robustification.KIND,
        slide_prediction.KIND,
    )
}


def get_kind(name: str) -> MetricKind:
    """The ``MetricKind`` of a name.

    Raises:
        UsageError: the name is unknown.
    """
    checks.check_known(name, KINDS, what="metrics")
    return KINDS[name]


def register(kind: MetricKind) -> None:
    """Register a custom metric after the others.

    Raises:
        UsageError: there already is a metric of that name.
    """
    if kind.name in KINDS:
        raise checks.UsageError(
            f"metric: {kind.name!r} is registered already; choose another name."
        )
    KINDS[kind.name] = kind


@contextlib.contextmanager
def registered(kind: MetricKind) -> Iterator[None]:
    """Context in which a metric is registered."""
    register(kind)
    try:
        yield
    finally:
        del KINDS[kind.name]
