"""Warnings about the rows of an evaluation: their names, their design, and whether they belong.

They stand in the ``warnings`` of every record that they bear on. Whoever puts them there logs them.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pathorob_jax.data import names
from pathorob_jax.data.manifest import CENTER, CLASS, Manifest
from pathorob_jax.kernels.neighbors.label_counts import OTHER_SAME, SAME_OTHER, SAME_SAME
from pathorob_jax.metrics.chance import NEAREST, measure_agreement

if TYPE_CHECKING:
    from pathorob_jax.evaluation.neighborhood import ScopeNeighbors

MOST_NAMED = 5


def warn_of_names(view: Manifest) -> list[str]:
    """Classes, and centres, whose names differ so little that they may be one."""
    texts = []
    for what, column in (("biological classes", CLASS), ("medical centres", CENTER)):
        pairs = names.find_aliases(view.factorize(column).names)
        texts += [
            f"{what} {first!r} and {second!r} may be one: they count as different; give them one "
            "name in the manifest if they are."
            for first, second in pairs[:MOST_NAMED]
        ]
        if len(pairs) > MOST_NAMED:
            texts.append(f"{len(pairs) - MOST_NAMED} more pairs of {what} may each be one.")
    return texts


def warn_of_design(scopes: Sequence["ScopeNeighbors"]) -> list[str]:
    """Cells, classes and centres that lack a type of neighbour by design."""
    # Pairs of the type that a cell, class or centre should have, over all scopes.
    of_cell: Counter[tuple[str, str]] = Counter()
    of_class: Counter[str] = Counter()
    of_center: Counter[str] = Counter()
    for scope in scopes:
        eligible = scope.tally.eligible
        for i, j in zip(*np.nonzero(scope.tally.n_samples), strict=True):
            bio, center = scope.scope.classes[i], scope.scope.centers[j]
            of_cell[bio, center] += int(eligible[i, j, SAME_SAME])
            of_class[bio] += int(eligible[i, j, SAME_OTHER])
            of_center[center] += int(eligible[i, j, OTHER_SAME])
    single = sorted(cell for cell, n in of_cell.items() if not n)
    alone = sorted(name for name, n in of_class.items() if not n)
    uniform = sorted(name for name, n in of_center.items() if not n)
    texts = []
    if single:
        cells = _name([f"{bio} at {center}" for bio, center in single])
        texts.append(
            f"{len(single)} of {len(of_cell)} cells of a class at a centre have a single slide "
            f"({cells}): their patches have no SS neighbour, and what is special about that slide "
            "counts as biology or centre; add slides."
        )
    if alone:
        texts.append(
            f"the biological classes {_name(alone)} lie in one medical centre each: their "
            "patches have no SO neighbour and can only lower the index; leave them out, or add "
            "slides of other centres."
        )
    if uniform:
        texts.append(
            f"the medical centres {_name(uniform)} have one biological class each, or one "
            "slide: their patches have no OS neighbour and can only raise the index; leave them "
            "out, or add slides of other classes."
        )
    return texts


def warn_of_chance(scopes: Sequence["ScopeNeighbors"], *, n_patches: int, seed: int) -> list[str]:
    """Say so if neighbours tell neither the class nor the centre, as in a table that was shuffled.

    Args:
        scopes: scopes with their neighbours.
        n_patches: number of different patches in them.
        seed: seed of the permutations.
    """
    idx, groups = [s.any.indices for s in scopes], [s.group_id for s in scopes]
    occurrences = sum(len(group) for group in groups) / n_patches
    biology, center = (
        measure_agreement(idx, labels, groups, occurrences=occurrences, seed=seed)
        for labels in ([s.scope.bio_id for s in scopes], [s.scope.center_id for s in scopes])
    )
    if not (biology.at_chance and center.at_chance):
        return []
    return [
        f"biology and medical centre are both at chance: of the {NEAREST} nearest neighbours "
        f"{biology.observed:.1%} have the class of their patch (by chance {biology.expected:.1%}) "
        f"and {center.observed:.1%} its centre (by chance {center.expected:.1%}). Either the "
        "embeddings tell neither, or they belong to other rows of the manifest (one of the two was "
        "shuffled or sorted): compare some patches by hand."
    ]


def _name(found: Sequence[str]) -> str:
    """Some names of a list, and how many more there are."""
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(map(repr, found[:MOST_NAMED])) + more
