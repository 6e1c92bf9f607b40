"""Errors that follow the centre, as records hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pathorob_jax.core.plain import OMIT_EMPTY
from pathorob_jax.results.record import ListsRepr


@dataclass(frozen=True, repr=False)
class DirectionalError(ListsRepr):
    """Rows of one class and centre that are called what the centre stood for in training.

    ``share`` is their share at every split, ``pull`` how much it exceeds that of the first split,
    where class and centre are not associated. ``pull_ci95`` is the 95 % interval of the pull at the
    last split that has one, for other slides of the same centres
    (``metrics.directional_errors.pull_intervals``); None: there is none.
    """

    shapes: ClassVar[Mapping[str, str]] = dict.fromkeys(("share", "pull"), "splits")

    stood_for: str
    share: list[float]
    pull: list[float]
    pull_ci95: list[float] | None = field(default=None, metadata=OMIT_EMPTY)


# By centre and class; only where the share of some split is defined.
DirectionalErrors = dict[str, dict[str, DirectionalError]]
