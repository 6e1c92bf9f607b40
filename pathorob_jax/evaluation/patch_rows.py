"""The patches of a view, each once, with the labels by which the view was searched."""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Float, Int
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.evaluation.neighborhood import Neighborhood


class PatchRows(NamedTuple):
    """The patches of a view, each once; ids are of all of them.

    Attributes:
        view: int64[U] position in the view.
        store: int64[U] row of the store's manifest.
        class_id: int64[U].
        center_id: int64[U].
        classes: names of the classes.
        centers: names of the centres.
        group_id: int32[U] slides that are left out together, and never neighbours.
        split_id: int32[U] slides, or cases, that are never on both sides of a probe.
    """

    view: Int[np.ndarray, " U"]
    store: Int[np.ndarray, " U"]
    class_id: Int[np.ndarray, " U"]
    center_id: Int[np.ndarray, " U"]
    classes: list[str]
    centers: list[str]
    group_id: Int[np.ndarray, " U"]
    split_id: Int[np.ndarray, " U"]

    def embeddings(self, hood: Neighborhood) -> Float[np.ndarray, "U D"]:
        """float32[U, D]."""
        return hood.searched.take(hood.searched.row_of[self.view])


def list_patches(hood: Neighborhood) -> PatchRows:
    """Each patch of a view once, in the order of the view."""
    n = len(hood.store_rows)
    names = {label: np.empty(n, object) for label in (CLASS, CENTER)}
    for found in hood.scopes:
        scope = found.scope
        names[CLASS][scope.rows] = np.array(scope.classes, object)[scope.bio_id]
        names[CENTER][scope.rows] = np.array(scope.centers, object)[scope.center_id]
    view = np.sort(np.unique(hood.store_rows, return_index=True)[1])
    ids = {}
    labels = {}
    for label, column in names.items():
        labels[label], ids[label] = np.unique(column[view].astype(str), return_inverse=True)
    return PatchRows(
        view=view,
        store=hood.store_rows[view],
        class_id=ids[CLASS].reshape(-1),
        center_id=ids[CENTER].reshape(-1),
        classes=labels[CLASS].tolist(),
        centers=labels[CENTER].tolist(),
        group_id=hood.group_id[view],
        split_id=hood.probe_group_id[view],
    )
