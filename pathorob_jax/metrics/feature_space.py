"""Where class and centre lie in embedding space: variance by principal component, and cosines.

Rows are balanced: every class has as many rows at every centre. Variance then splits without
overlap into that of the class, of the centre, of their interaction, and the rest within cells (a
balanced two-way analysis of variance). ``measure_space`` does that for each principal component and
for all of space; ``measure_cosines`` measures angles between rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.kernels.pca import principal_axes
from pathorob_jax.metrics.robustness_index import mean_defined, ratio

# Components of largest variance that are summarised together.
FIRST = 10
# Rows that lie no further apart, beside their length, are equal within float32's rounding.
EQUAL = 2.0**-22
# Numbers of a space, each a share in [0, 1]; the sums over space need no components.
NUMBERS = (
    *("class_variance", "center_variance", "interaction_variance", "class_share"),
    *("variance_in_first", "class_in_first", "center_in_first"),
    *("first_eta2_class", "first_eta2_center"),
)


class Effects(NamedTuple):
    """Variance between the cells of a balanced table: mean squares of the effects.

    Attributes:
        class_: float64[...] of the class.
        center: float64[...] of the centre.
        interaction: float64[...] of both together, beyond their sum.
    """

    class_: Float[np.ndarray, "..."]
    center: Float[np.ndarray, "..."]
    interaction: Float[np.ndarray, "..."]


class Space(NamedTuple):
    """Variance of balanced rows, C components in order of decreasing variance.

    Attributes:
        variance_share: float64[C] share of the total variance, all above 0.
        eta2_class: float64[C] share of a component's variance between classes; NaN if there are
            no balanced cells.
        eta2_center: float64[C] between centres.
        eta2_interaction: float64[C] of the interaction.
        numbers: each of ``NUMBERS``; NaN where undefined.
        replicates: float64[B] of each number without each block of slides, its cells weighted
            equally again and the directions of the components kept; NaN without a whole cell.
    """

    variance_share: Float[np.ndarray, " C"]
    eta2_class: Float[np.ndarray, " C"]
    eta2_center: Float[np.ndarray, " C"]
    eta2_interaction: Float[np.ndarray, " C"]
    numbers: dict[str, float]
    replicates: dict[str, Float[np.ndarray, " B"]]

    @property
    def effective_rank(self) -> float:
        """Exp of the entropy of the variance shares; NaN without variance."""
        shares = self.variance_share
        return float(np.exp(-(shares * np.log(shares)).sum())) if shares.size else np.nan

    @property
    def participation_ratio(self) -> float:
        """1 / sum of the squared variance shares; NaN without variance."""
        return float(ratio(1.0, (self.variance_share**2).sum()))


class Cosines(NamedTuple):
    """Cosines between rows: of all pairs, and means of pairs of different slides by type.

    Attributes:
        mean: over all pairs of two rows.
        sd: their standard deviation.
        same_class_same_center: mean over pairs of different slides; NaN without such a pair.
        same_class_other_center: the same.
        other_class_same_center: the same.
        other_class_other_center: the same.
    """

    mean: float
    sd: float
    same_class_same_center: float
    same_class_other_center: float
    other_class_same_center: float
    other_class_other_center: float


class _Sums(NamedTuple):
    """Sums over the rows of each of n cells (or parts of cells)."""

    n: np.ndarray
    rows: np.ndarray
    squares: np.ndarray
    first_squares: np.ndarray

    def minus(self, part: "_Sums", cells: np.ndarray) -> "_Sums":
        """Without parts of some cells."""
        out = _Sums(*(a.copy() for a in self))
        for whole, less in zip(out, part, strict=True):
            whole[cells] -= less
        return out

    def take(self, which: np.ndarray) -> "_Sums":
        """Some of the cells."""
        return _Sums(*(a[which] for a in self))


def split_effects(means: Float[np.ndarray, "C M ..."]) -> Effects:
    """Mean squares of the effects of the cells' means, each cell of equal weight."""
    grand = means.mean((0, 1))
    of_class, of_center = means.mean(1) - grand, means.mean(0) - grand
    rest = means - of_class[:, None] - of_center[None, :] - grand
    return Effects((of_class**2).mean(0), (of_center**2).mean(0), (rest**2).mean((0, 1)))


def measure_space(
    x: Float[ArrayLike, "n D"],
    class_id: Int[np.ndarray, " n"],
    center_id: Int[np.ndarray, " n"],
    block_id: Int[np.ndarray, " n"],
    *,
    n_blocks: int,
    is_balanced: bool = True,
) -> Space:
    """Variance by class and centre, of each principal component and of all of space.

    Rows are centred and not scaled. eta^2 = variance between the means of the classes (or centres)
    / variance of the component.

    Args:
        x: float[n, D], finite; every class has as many rows at every centre.
        class_id: int[n] in [0, C), each present.
        center_id: int[n] in [0, M), each present.
        block_id: int[n] block of slides of each row, in [0, B).
        n_blocks: B.
        is_balanced: False: rows are taken as they are, and only variance shares are defined.
    """
    rows, is_collapsed = _center(x)
    n_classes, n_centers = int(class_id.max()) + 1, int(center_id.max()) + 1
    axes = principal_axes(np.zeros_like(rows) if is_collapsed else rows)
    undefined = np.full(len(axes.explained), np.nan)
    if is_collapsed or not is_balanced:
        replicates = {name: np.full(n_blocks, np.nan) for name in NUMBERS}
        numbers = dict.fromkeys(NUMBERS, np.nan)
        if axes.explained.size:
            numbers["variance_in_first"] = float(axes.explained[:FIRST].sum())
        return Space(axes.explained, undefined, undefined, undefined, numbers, replicates)
    cell_id = class_id.astype(np.int64) * n_centers + center_id
    shape = (n_classes, n_centers)
    first = axes.directions[:, :FIRST]
    pieces, parts = _sum_parts(rows, rows @ first, cell_id, block_id)
    n_cells = n_classes * n_centers
    cells = _Sums(*(_collect(a, pieces % n_cells, n_cells) for a in parts))
    means = cells.rows / cells.n[:, None]
    effects = split_effects((means @ axes.directions).reshape(*shape, -1))
    variance = axes.explained * ((rows**2).sum() / len(rows))
    numbers = _summarise(cells, first, shape)
    replicates = {name: np.full(n_blocks, numbers[name]) for name in NUMBERS}
    for block in np.unique(block_id):
        own = np.flatnonzero(pieces // n_cells == block)
        left = cells.minus(parts.take(own), pieces[own] % n_cells)
        for name, value in _summarise(left, first, shape).items():
            replicates[name][block] = value
    class_, center, interaction = (effect / variance for effect in effects)
    return Space(axes.explained, class_, center, interaction, numbers, replicates)


def average_spaces(spaces: Sequence[Space]) -> Space:
    """The mean over scopes, each of equal weight whatever its total variance and size.

    Variance shares are means over scopes; eta^2 of component j is the mean of the scopes' weighted
    by their variance shares, so that the shares times eta^2 still sum to the mean of the numbers.
    Scopes whose rows are all equal are left out.
    """
    spaces = [space for space in spaces if space.variance_share.size] or spaces[:1]
    n = len(max((space.variance_share for space in spaces), key=len))

    def stack(name: str) -> np.ndarray:
        padded = (np.pad(v, (0, n - len(v))) for v in (getattr(s, name) for s in spaces))
        return np.stack(list(padded))

    shares = stack("variance_share")
    weighted = [
        ratio((shares * stack(name)).sum(0), shares.sum(0))
        for name in ("eta2_class", "eta2_center", "eta2_interaction")
    ]
    numbers = {
        name: float(mean_defined([space.numbers[name] for space in spaces])) for name in NUMBERS
    }
    replicates = {
        name: mean_defined([space.replicates[name] for space in spaces]) for name in NUMBERS
    }
    numbers["class_share"] = float(_share_of_class(numbers))
    replicates["class_share"] = _share_of_class(replicates)
    class_, center, interaction = weighted
    return Space(shares.mean(0), class_, center, interaction, numbers, replicates)


def _share_of_class(found: Mapping[str, Any]) -> np.ndarray:
    class_, center = found["class_variance"], found["center_variance"]
    return ratio(class_, class_ + center)


def measure_cosines(
    x: Float[ArrayLike, "n D"],
    class_id: Int[np.ndarray, " n"],
    center_id: Int[np.ndarray, " n"],
    group_id: Int[np.ndarray, " n"],
    *,
    is_centered: bool,
) -> Cosines:
    """Cosines between rows as they are, or between centred rows, from sums of unit rows.

    Args:
        x: float[n, D], finite. A row of no length has the cosine 0 with every other.
        class_id: int[n].
        center_id: int[n].
        group_id: int[n] slides.
        is_centered: whether the mean of the rows is subtracted first.
    """
    if is_centered:
        rows, is_collapsed = _center(x)
        if is_collapsed:
            return Cosines(*[np.nan] * 6)
    else:
        rows = np.array(x, np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    rows /= np.where(lengths > 0, lengths, 1.0)[:, None]
    n, n_there = len(rows), int((lengths > 0).sum())
    pairs = n * (n - 1)
    total = rows.sum(0)
    mean = ratio(total @ total - n_there, pairs)
    products = rows @ rows.T if n < rows.shape[1] else rows.T @ rows
    second = ratio((products**2).sum() - n_there, pairs)
    ids = np.stack([class_id, center_id, group_id])
    parts, piece = np.unique(ids, axis=1, return_inverse=True)
    piece = piece.reshape(-1)
    sums, counts = _sum_by(rows, piece), np.bincount(piece)
    # Squared sums over equal keys are sums over pairs of rows with equal keys; those of one slide
    # (and of a row with itself) are taken out.
    found = [
        _pairs(sums, counts, parts[which]) - _pairs(sums, counts, parts[[*which, 2]])
        for which in ([], [0], [1], [0, 1])
    ]
    everything, of_class, of_center, cell = found
    types = (
        cell,
        of_class - cell,
        of_center - cell,
        everything - of_class - of_center + cell,
    )
    spread = np.sqrt(np.maximum(second - mean**2, 0.0))
    return Cosines(float(mean), float(spread), *(float(ratio(s, k)) for s, k in types))


def _center(x: Float[ArrayLike, "n D"]) -> tuple[np.ndarray, bool]:
    """float64 rows less their mean, and whether nothing but rounding is left."""
    rows = np.array(x, np.float64)
    size = np.sqrt((rows**2).sum())
    rows -= rows.mean(0)
    return rows, not np.sqrt((rows**2).sum()) > EQUAL * size


def _sum_by(values: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Sums of the values of each key in [0, K), [K, ...]."""
    n = len(key)
    chosen = sparse.csr_matrix((np.ones(n), (key, np.arange(n))))
    return np.asarray(chosen @ values)


def _collect(values: np.ndarray, key: np.ndarray, n_keys: int) -> np.ndarray:
    out = np.zeros((n_keys, *values.shape[1:]))
    np.add.at(out, key, values)
    return out


def _sum_parts(
    rows: np.ndarray, on_first: np.ndarray, cell_id: np.ndarray, block_id: np.ndarray
) -> tuple[np.ndarray, _Sums]:
    """Sums of the rows of each block in each cell, and block * cells + cell of each sum."""
    n_cells = int(cell_id.max()) + 1
    pieces, piece = np.unique(block_id.astype(np.int64) * n_cells + cell_id, return_inverse=True)
    return pieces, _Sums(
        np.bincount(piece).astype(float),
        _sum_by(rows, piece),
        np.bincount(piece, (rows**2).sum(1)),
        np.bincount(piece, (on_first**2).sum(1)),
    )


def _summarise(cells: _Sums, first: np.ndarray, shape: tuple[int, int]) -> dict[str, float]:
    """``NUMBERS`` from sums of cells, each cell of equal weight."""
    if not (cells.n > 0.5).all():
        return dict.fromkeys(NUMBERS, np.nan)
    means = cells.rows / cells.n[:, None]
    on_first = means @ first
    total, first_total = (
        (squares / cells.n).mean() - (m.mean(0) ** 2).sum()
        for squares, m in ((cells.squares, means), (cells.first_squares, on_first))
    )
    everywhere = [part.sum() for part in split_effects(means.reshape(*shape, -1))]
    in_first = [part.sum() for part in split_effects(on_first.reshape(*shape, -1))]
    class_, center, interaction = everywhere
    values = (
        *(ratio(part, total) for part in (class_, center, interaction)),
        *(ratio(class_, class_ + center), ratio(first_total, total)),
        *(ratio(part, whole) for part, whole in zip(in_first[:2], everywhere[:2], strict=True)),
        *(ratio(part, first_total) for part in in_first[:2]),
    )
    return {name: float(value) for name, value in zip(NUMBERS, values, strict=True)}


def _pairs(sums: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Sum of the cosines, and number, of ordered pairs of rows with equal keys."""
    key = np.zeros(len(counts), np.int64)
    if len(keys):
        key = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
    return np.array([(_sum_by(sums, key) ** 2).sum(), (np.bincount(key, counts) ** 2).sum()])
