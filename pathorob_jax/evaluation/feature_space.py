"""Feature space of a store: selects balanced rows, and builds the record with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from pathorob_jax.core import digests
from pathorob_jax.core.provenance import make_provenance
from pathorob_jax.data import row_views
from pathorob_jax.data.manifest import SLIDE, Manifest
from pathorob_jax.data.row_views import Scope
from pathorob_jax.evaluation.neighborhood import choose_rows, make_draws_key
from pathorob_jax.evaluation.row_warnings import warn_of_names
from pathorob_jax.evaluation.slide_intervals import find_all_ends, spread_all, warn_missing
from pathorob_jax.kernels.bootstrap.draws import Jackknife, plan_jackknife
from pathorob_jax.kernels.bootstrap.intervals import SHARE
from pathorob_jax.metrics import feature_space as metric
from pathorob_jax.metrics.feature_space import Cosines, Space
from pathorob_jax.metrics.robustness_index import mean_defined
from pathorob_jax.results.feature_space import CosineSpread, FeatureSpaceResult, SubsetSpace
from pathorob_jax.results.record import Outcome

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run import Evaluation

RAW, CENTERED = "raw", "centered"
# Settings that change the rows or the draws; those of the search do not.
SETTINGS = ("design", "max_patches_per_combi", "columns", "group_column", "min_cell_size")


class _Cut(NamedTuple):
    """Rows of a scope in equal cells.

    Attributes:
        scope: the scope.
        kept: int64[n] positions in the scope.
        is_balanced: False: a cell is empty, and all rows are kept.
    """

    scope: Scope
    kept: np.ndarray
    is_balanced: bool

    @property
    def rows(self) -> np.ndarray:
        """int64[n] positions in the view."""
        return self.scope.rows[self.kept]

    @property
    def cell_size(self) -> int:
        """Rows of each cell; 0 if they are not equal."""
        n_cells = len(self.scope.classes) * len(self.scope.centers)
        return len(self.kept) // n_cells if self.is_balanced else 0


class _Measured(NamedTuple):
    """What was measured in one scope."""

    space: Space
    cosines: dict[str, Cosines]


def make_feature_space(evaluation: Evaluation) -> Outcome:
    """Variance of class and centre by principal component, and cosines, of a store.

    Raises:
        UsageError: a setting would be ignored.
        InputError: there are fewer than two classes or centres, or the embeddings cannot be used.
    """
    settings = evaluation.settings
    protocol = evaluation.protocol.robustness_index if evaluation.protocol else None
    design, view = choose_rows(evaluation.neighbor_rows, protocol=protocol, settings=settings)
    groups = row_views.read_groups(view, settings.group_column)
    cuts = [_cut(scope) for scope in row_views.make_scopes(view, design)]
    rows = np.concatenate([cut.rows for cut in cuts])
    used = view.take(rows)
    patches = evaluation.store.read_unique_patches(used, relabelled=settings.renamed_columns)
    jackknife = plan_jackknife(len(groups.names), draws=settings.draws, seed=settings.seed)
    borders = np.cumsum([len(cut.kept) for cut in cuts])[:-1]
    measured = [
        _measure(cut, patches.embeddings[own], groups.ids[cut.rows], jackknife)
        for cut, own in zip(cuts, np.split(patches.row_of, borders), strict=True)
    ]
    space = metric.average_spaces([part.space for part in measured])
    draws = spread_all(jackknife, space.numbers, space.replicates)
    ends = find_all_ends(space.numbers, draws, dict.fromkeys(metric.NUMBERS, SHARE))
    is_balanced = all(cut.is_balanced for cut in cuts)
    missing = warn_missing(space.numbers, ends, settings.draws) if is_balanced else []
    chosen = {name: value for name, value in asdict(settings).items() if name in SETTINGS}
    chosen |= {"seed": settings.seed, "draws": settings.draws, "view_sha256": view.fingerprint()}
    record = FeatureSpaceResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        design=design,
        ci95=ends["class_share"],
        **_name_numbers(space, ends),
        **_list_components(space),
        first=metric.FIRST,
        effective_rank=_mean([part.space.effective_rank for part in measured]),
        participation_ratio=_mean([part.space.participation_ratio for part in measured]),
        n_samples=len(rows),
        n_available=sum(len(cut.scope.rows) for cut in cuts),
        n_slides=len(used.factorize(SLIDE).names),
        cell_size=min(cut.cell_size for cut in cuts),
        cosine={name: _average([m.cosines[name] for m in measured]) for name in (RAW, CENTERED)},
        per_subset=_list_subsets(cuts, measured),
        warnings=_warn(view, cuts, measured) + missing,
        provenance=make_provenance(
            mesh=evaluation.mesh,
            store=evaluation.store.provenance(
                digests.digest_arrays({"embeddings": patches.embeddings})
            ),
            settings=chosen,
            view=view.source,
        ),
    )
    return Outcome(record, make_draws_key(view, settings), draws)


def _cut(scope: Scope) -> _Cut:
    kept = row_views.cut_to_equal_cells(scope)
    if kept is None:
        return _Cut(scope, np.arange(len(scope.rows)), False)
    return _Cut(scope, kept, True)


def _measure(cut: _Cut, x: np.ndarray, group_id: np.ndarray, jackknife: Jackknife) -> _Measured:
    bio_id, center_id = cut.scope.bio_id[cut.kept], cut.scope.center_id[cut.kept]
    space = metric.measure_space(
        x,
        bio_id,
        center_id,
        jackknife.block_of[group_id],
        n_blocks=jackknife.n_blocks,
        is_balanced=cut.is_balanced,
    )
    cosines = {
        name: metric.measure_cosines(x, bio_id, center_id, group_id, is_centered=name == CENTERED)
        for name in (RAW, CENTERED)
    }
    return _Measured(space, cosines)


def _mean(values: Sequence[float]) -> float:
    return float(mean_defined(values))


def _average(cosines: Sequence[Cosines]) -> CosineSpread:
    return CosineSpread(*(_mean(values) for values in zip(*cosines, strict=True)))


def _name_numbers(space: Space, ends: dict[str, list[float] | None]) -> dict[str, Any]:
    named: dict[str, Any] = dict(space.numbers)
    return named | {f"{name}_ci95": found for name, found in ends.items() if name != "class_share"}


def _list_components(space: Space) -> dict[str, Any]:
    lists = {
        name: getattr(space, name)
        for name in ("eta2_class", "eta2_center", "eta2_interaction", "variance_share")
    }
    share = lists["variance_share"]
    lists["cumulative_variance"] = np.cumsum(share)
    for name in ("class", "center"):
        carried = np.cumsum(share * lists[f"eta2_{name}"])
        with np.errstate(invalid="ignore", divide="ignore"):
            lists[f"cumulative_{name}"] = carried / carried[-1:]
    return {
        name: found.tolist() if found.size and np.isfinite(found).all() else None
        for name, found in lists.items()
    }


def _list_subsets(cuts: Sequence[_Cut], measured: Sequence[_Measured]) -> dict[str, SubsetSpace]:
    return {
        cut.scope.name: SubsetSpace(
            cell_size=cut.cell_size,
            class_variance=part.space.numbers["class_variance"],
            center_variance=part.space.numbers["center_variance"],
            class_in_first=part.space.numbers["class_in_first"],
            center_in_first=part.space.numbers["center_in_first"],
            effective_rank=part.space.effective_rank,
        )
        for cut, part in zip(cuts, measured, strict=True)
        if cut.scope.name
    }


def _warn(view: Manifest, cuts: Sequence[_Cut], measured: Sequence[_Measured]) -> list[str]:
    """Warnings for the reader; they are also logged."""
    texts = []
    for cut in cuts:
        if not cut.is_balanced:
            empty = _name_empty(cut.scope)
            texts.append(
                f"no variance of class and centre: {empty}, so that cells cannot be made equal and "
                "the two cannot be told apart; variance shares, rank and cosines are of all rows "
                "as they are. Leave out that class or centre, or use --design=paired."
            )
    n = sum(not part.space.variance_share.size for part in measured)
    if n:
        where = "all embeddings are" if n == len(cuts) else f"{n} subsets hold embeddings that are"
        texts.append(
            f"{where} equal within float32's rounding: there is no variance to explain. The model "
            "has collapsed, or the embeddings are not those of the tiles."
        )
    texts += warn_of_names(view)
    for text in texts:
        logging.warning("%s", text)
    return texts


def _name_empty(scope: Scope) -> str:
    """Which cell has no rows, in words."""
    sizes = np.zeros((len(scope.classes), len(scope.centers)), np.int64)
    np.add.at(sizes, (scope.bio_id, scope.center_id), 1)
    empty = np.argwhere(sizes == 0)
    first = f"class {scope.classes[empty[0][0]]!r} has no patch at {scope.centers[empty[0][1]]!r}"
    more = len(empty) - 1
    return first + (f" ({more} more such cell{'s' if more > 1 else ''})" if more else "")
