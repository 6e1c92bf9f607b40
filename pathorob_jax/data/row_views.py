"""The rows that a metric uses: a protocol's view of the metadata, and its scopes.

A view is a ``Manifest`` in the row order of the protocol, read from metadata files or derived from
a manifest. Its scopes are the sets of rows within which neighbours are searched.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import protocols
from pathorob_jax.data.manifest import (
    CENTER,
    CLASS,
    SLIDE,
    SUBSET,
    Categories,
    Manifest,
    read_manifest,
)
from pathorob_jax.data.names import join_names


class Scope(NamedTuple):
    """Rows of a view among which neighbours are searched.

    Attributes:
        name: name of the subset; "" for all rows.
        rows: int64[n] positions in the view, ascending.
        bio_id: int32[n] class of each row, numbered within the scope.
        center_id: int32[n] centre of each row, numbered within the scope.
        classes: names of the classes, ascending.
        centers: names of the centres, ascending.
    """

    name: str
    rows: np.ndarray
    bio_id: np.ndarray
    center_id: np.ndarray
    classes: tuple[str, ...]
    centers: tuple[str, ...]


def read_view(
    view: protocols.View,
    *,
    metadata_dir: str | None,
    dataset: str,
    columns: Mapping[str, str] | None = None,
) -> Manifest:
    """The rows of a protocol's view, in file order.

    Raises:
        UsageError: no metadata folder was given.
        FileNotFoundError: the folder lacks the file.
    """
    if metadata_dir is None:
        raise UsageError(
            f"metadata_dir: dataset {dataset} reads {view.metadata}; give the folder that holds "
            "PathoROB's metadata files."
        )
    path = files.join(metadata_dir, view.metadata)
    if not files.exists(path):
        raise FileNotFoundError(
            f"{path}: no such file; dataset {dataset} needs it (data/metadata of "
            "github.com/bifold-pathomics/PathoROB)."
        )
    return read_manifest(path, columns=columns).without_subsets(view.exclude_subsets)


def shuffle(view: Manifest, seed: int) -> Manifest:
    """Shuffle like the reference (``RandomState(seed).permutation``); this only affects ties."""
    return view.take(np.random.RandomState(seed).permutation(len(view)))


def first_of_each_cell(view: Manifest, n: int) -> Manifest:
    """The first n rows of each (subset, class, centre), in row order."""
    names = [name for name in (SUBSET, CLASS, CENTER) if name in view]
    cells = np.stack([view.factorize(name).ids for name in names])
    cell_id = np.unique(cells, axis=1, return_inverse=True)[1].reshape(-1)
    return view.take(_first_of_each(cell_id, n))


def _first_of_each(cell_id: np.ndarray, n: int) -> np.ndarray:
    """Ascending positions of the first n rows of each cell."""
    order = np.argsort(cell_id, kind="stable")
    first = np.concatenate([[True], np.diff(cell_id[order]) != 0])
    place = np.arange(len(cell_id))
    within = place - np.maximum.accumulate(np.where(first, place, 0))
    return np.sort(order[within < n])


def cut_to_equal_cells(scope: Scope) -> np.ndarray | None:
    """Ascending positions in a scope of the first rows of each class at each centre.

    As many of each cell as the smallest one has; None: a cell is empty.
    """
    cell_id = scope.bio_id.astype(np.int64) * len(scope.centers) + scope.center_id
    sizes = np.bincount(cell_id, minlength=len(scope.classes) * len(scope.centers))
    return _first_of_each(cell_id, int(sizes.min())) if sizes.all() else None


def derive_pairs(view: Manifest, min_cell_size: int) -> Manifest:
    """The 2 x 2 subsets of a manifest; a patch appears once in every subset it belongs to.

    A subset is made for every two classes and two centres whose four cells all have at least
    ``min_cell_size`` patches. Every cell is cut to the size of the smallest one (keeping its first
    rows), so that neither side of the index has more neighbours to choose from.

    Args:
        view: rows; a ``subset`` column is replaced.
        min_cell_size: least number of patches in a cell.

    Returns:
        A view with a ``subset`` column, ``"class|class|centre|centre"``.

    Raises:
        InputError: there are no two classes and two centres with four such cells.
    """
    bio, center = view.factorize(CLASS), view.factorize(CENTER)
    sizes = np.zeros((len(bio.names), len(center.names)), np.int64)
    np.add.at(sizes, (bio.ids, center.ids), 1)
    cells = {
        (b, c): np.flatnonzero((bio.ids == b) & (center.ids == c))
        for b, c in zip(*np.nonzero(sizes >= min_cell_size), strict=True)
    }
    rows, names = [], []
    for classes in itertools.combinations(range(len(bio.names)), 2):
        for centers in itertools.combinations(range(len(center.names)), 2):
            corners = [(b, c) for b in classes for c in centers]
            if not all(corner in cells for corner in corners):
                continue
            size = min(len(cells[corner]) for corner in corners)
            rows += [cells[corner][:size] for corner in corners]
            labels = [*(bio.names[b] for b in classes), *(center.names[c] for c in centers)]
            names += [join_names(labels, "|")] * (4 * size)
    if not rows:
        raise InputError(
            f"{view.source}: no two classes and two centres have four cells of {min_cell_size} "
            f"patches or more; the largest cells are {sorted(sizes.ravel().tolist())[-4:]}. Lower "
            "--min_cell_size, or use --design=all."
        )
    pairs = view.take(np.concatenate(rows))
    table = pairs.table.drop_columns([SUBSET]) if SUBSET in pairs else pairs.table
    return replace(pairs, table=table.append_column(SUBSET, pa.array(names)))


def make_scopes(view: Manifest, design: protocols.Design) -> list[Scope]:
    """Scopes of a design: all rows, or one per ``subset`` of two classes and two centres.

    Raises:
        InputError: fewer than two classes or centres; for ``paired``, no ``subset`` column, or a
            subset that is not 2 x 2 with patches in all four cells.
    """
    if design == "all":
        scope = _scope(view, "", np.arange(len(view)))
        if len(scope.classes) < 2 or len(scope.centers) < 2:
            raise InputError(
                f"{view.source}: expected at least two biological classes and two medical centres, "
                f"found {list(scope.classes)} and {list(scope.centers)}; with one of either, "
                "biology cannot be told from the centre."
            )
        return [scope]
    if SUBSET not in view:
        raise InputError(
            f"{view.source}: design paired expects a column {SUBSET!r} that names the subsets of "
            f"two classes and two centres, found {view.table.column_names}. Give it with "
            "--manifest (a store keeps no subsets), or use --design=all."
        )
    subsets = view.factorize(SUBSET)
    order = np.argsort(subsets.ids, kind="stable")
    borders = np.searchsorted(subsets.ids[order], np.arange(1, len(subsets.names)))
    scopes = [
        _scope(view, name, rows)
        for name, rows in zip(subsets.names, np.split(order, borders), strict=True)
    ]
    for scope in scopes:
        cells = np.unique(np.stack([scope.bio_id, scope.center_id]), axis=1).shape[1]
        if (len(scope.classes), len(scope.centers), cells) != (2, 2, 4):
            raise InputError(
                f"{view.source}: subset {scope.name!r}: expected two classes, two centres and four "
                f"filled cells, found {list(scope.classes)}, {list(scope.centers)} and {cells} "
                "filled. Mend the subset, or use --design=all."
            )
    return scopes


def read_groups(view: Manifest, column: str) -> Categories:
    """Groups whose rows are never each other's neighbours and are drawn together.

    Every metric that uses groups calls this before any work.

    Raises:
        InputError: there is no such column, a value is empty, or a slide lies in several groups, so
            that its rows would be each other's neighbours.
    """
    groups = view.factorize(column)
    if "" in groups.names:
        raise InputError(
            f"{view.source}: column {column!r} is empty in some rows; they would all be one group. "
            "Fill it, or name another with --group_column."
        )
    slides = view.factorize(SLIDE)
    _, first = np.unique(slides.ids, return_index=True)
    split = np.flatnonzero(groups.ids[first][slides.ids] != groups.ids)
    if split.size:
        raise InputError(
            f"{view.source}: slide {slides.names[slides.ids[split[0]]]!r} lies in several groups "
            f"of column {column!r}; rows of one slide would be each other's neighbours. A group "
            "holds whole slides (a case, a batch)."
        )
    return groups


def _scope(view: Manifest, name: str, rows: np.ndarray) -> Scope:
    inside = view.take(rows)
    bio, center = inside.factorize(CLASS), inside.factorize(CENTER)
    return Scope(name, rows, bio.ids, center.ids, bio.names, center.names)
