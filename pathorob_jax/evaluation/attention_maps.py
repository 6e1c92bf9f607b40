"""Maps of what classifiers of slides see: written where it is known where patches lie.

The columns ``x`` and ``y`` of the evaluated rows, or else of the store's manifest, are the places
of patches on their slides, in any unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from pathorob_jax.core import files
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE, Manifest, locate
from pathorob_jax.data.slide_table import PLACE
from pathorob_jax.kernels.mil.bags import BagRows, bag_sizes
from pathorob_jax.metrics.slide_heads import BagCalls
from pathorob_jax.results.attention_files import FOLDER, write_attention

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation


@dataclass(frozen=True, eq=False)
class SlideMaps:
    """Where maps of slides are written.

    Attributes:
        folder: for the files.
        classes: names of the scores.
    """

    folder: str
    classes: tuple[str, ...]

    def write(
        self,
        calls: BagCalls,
        split: int,
        *,
        preset: str,
        trained: str,
        bags: BagRows,
        patches: Manifest,
        places: np.ndarray,
        subset: np.ndarray,
    ) -> None:
        """Write a file for each of some bags, by the first network of a split.

        Args:
            calls: classifiers.
            split: which of them.
            preset: its name.
            trained: how it was trained, in a word that can be a folder.
            bags: bags.
            patches: rows of ``bags.x``.
            places: float[N, 2] of these rows.
            subset: numbers of bags.
        """
        seen = calls.read_tiles(split, bags, subset)
        ends = np.cumsum(bag_sizes(bags)[subset])
        for bag, end in zip(subset, ends, strict=True):
            rows = np.arange(bags.starts[bag], bags.starts[bag + 1])
            here = slice(end - len(rows), end)
            own = patches.take(rows)
            names = {name: own.column(name).tolist() for name in (SLIDE, PATCH)}
            write_attention(
                files.join(self.folder, preset, trained, f"slide_{bag:05d}.parquet"),
                f"{names[SLIDE][0]} ({own.column(CLASS)[0]}), {preset}, {trained}",
                names=names,
                places=places[rows],
                attention=seen.attention[here],
                scores=seen.scores[here],
                classes=self.classes,
            )


def plan_maps(evaluation: Evaluation, classes: Sequence[str]) -> SlideMaps | None:
    """Where maps go; None: results are not written."""
    request = evaluation.request
    if request.output is None:
        return None
    folder = files.join(request.output, request.model, evaluation.dataset, FOLDER)
    return SlideMaps(folder, tuple(classes))


def find_places(evaluation: Evaluation, patches: Manifest) -> np.ndarray | None:
    """float64[N, 2] x and y of patches; None: they are not known, or not numbers."""
    known = patches
    if not all(name in patches for name in PLACE):
        known = evaluation.store.manifest
        if not all(name in known for name in PLACE):
            return None
        known = known.take(locate(patches, known, relabelled=(CLASS, CENTER)))
    try:
        places = np.stack([known.column(name).astype(np.float64) for name in PLACE], axis=1)
    except ValueError:
        places = np.array([[np.nan, np.nan]])
    if not np.isfinite(places).all():
        logging.warning(
            "%s: columns x and y hold more than numbers; no maps of slides are written.",
            known.source,
        )
        return None
    return places
