"""How much of the centre is left in slides that a robustifier did not see: finds them, and probes.

The method is fitted anew on each half of the slides, with the options of the store's robustifier,
and the other half is mapped by it (a cross-fitted store holds just that). See
``metrics.residual_center``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import Float, Int
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation.patch_rows import PatchRows
from pathorob_jax.metrics import held_out_probes, residual_center
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.results.robustification import (
    AFTER,
    BEFORE,
    CROSS_FIT,
    STORED,
    Null,
    ResidualCenter,
)
from pathorob_jax.robustify.parent import Fit, read_fit
from pathorob_jax.robustify.robustifier import split_slides
from pathorob_jax.robustify.run import fit_on_store


class FoundResidual(NamedTuple):
    """Residual centre of a store.

    Attributes:
        probes: areas by probe.
        rows: ``cross_fit``: of the method fitted anew on each half of the slides for the other (NaN
            where a half cannot be fitted); ``stored``: of the embeddings as they are.
        warnings: what the reader should know.
    """

    probes: dict[str, ResidualCenter]
    rows: str
    warnings: list[str]


def find_residual(
    store: Store,
    parent: Store,
    rows: PatchRows,
    x: Mapping[str, Float[np.ndarray, "U D"]],
    *,
    seed: int,
) -> FoundResidual:
    """Probe the centre in rows that the fit did not see.

    Args:
        store: a robustified store.
        parent: its parent.
        rows: patches of the evaluation.
        x: float32[U, D] of each patch before and after.
        seed: of the split of slides and of the permutations.
    """
    fit = read_fit(store)
    warnings: list[str] = []
    honest, halves, source = x[AFTER], None, STORED
    if not fit.can_be_repeated:
        warnings.append(
            f"method {fit.method} cannot be fitted anew from embeddings alone; the residual centre "
            "is that of the embeddings as they are, and too low if rows of the fit are among them."
        )
    elif fit.rows_sha256 != parent.manifest.fingerprint():
        warnings.append(
            "the robustifier was fitted on other rows than those of the store; the residual centre "
            "is that of the embeddings as they are, and too low if rows of the fit are among them."
        )
    else:
        source = CROSS_FIT
        try:
            honest, halves = _fit_across(parent, fit, rows)
        except InputError as error:
            why = str(error).splitlines()[0].rstrip(".")
            warnings.append(f"no residual centre: the method cannot be fitted on half ({why}).")
            nothing = ResidualCenter(np.nan, np.nan, Null(np.nan, np.nan))
            return FoundResidual(dict.fromkeys(residual_center.PROBES, nothing), source, warnings)
    if halves is None:
        halves = split_slides(rows.split_id, rows.center_id, rows.class_id, seed=seed)
    quarters = 2 * halves
    for half in range(2):
        mine = np.flatnonzero(halves == half)
        columns = (a[mine] for a in (rows.split_id, rows.center_id, rows.class_id))
        quarters[mine] += split_slides(*columns, seed=seed + 1) if len(mine) else 0
    chosen = held_out_probes.spread_rows(
        quarters,
        rows.split_id,
        n_parts=residual_center.N_QUARTERS,
        limit=residual_center.QUARTER_ROWS,
    )
    permuted = residual_center.permute_within(
        rows.center_id,
        rows.split_id,
        quarters * len(rows.classes) + rows.class_id,
        permutations=residual_center.PERMUTATIONS,
        seed=seed,
    )
    true = rows.center_id[None, :]
    options: dict[str, Any] = {"n_centers": len(rows.centers), "seed": seed}
    was = residual_center.probe_center(x[BEFORE], true, chosen, **options)
    labels = np.concatenate([true, permuted])
    now = residual_center.probe_center(honest, labels, chosen, **options)
    if not np.isfinite(now["linear"].auc):
        warnings.append(
            "no residual centre: it needs four slides or more of two centres, in quarters of the "
            "slides."
        )
    cut = now["linear"].n_unconverged
    if cut:
        warnings.append(
            f"residual centre, linear: {cut} fits ended at max_iter = {held_out_probes.MAX_ITER} "
            "before they met their stopping rule."
        )
    return FoundResidual(
        {
            name: ResidualCenter(
                residual.auc,
                was[name].auc,
                Null(
                    float(ri.mean_defined(residual.permuted)),
                    float(np.quantile(residual.permuted, 0.95)),
                ),
            )
            for name, residual in now.items()
        },
        source,
        warnings,
    )


def _fit_across(
    parent: Store, fit: Fit, rows: PatchRows
) -> tuple[Float[np.ndarray, "U D"], Int[np.ndarray, " U"]]:
    """Embeddings whose slides are mapped by the fit on the other half, and those halves."""
    robustifier = fit_on_store(
        parent,
        method=fit.method,
        fit_on="cross_fit",
        covariates=fit.covariates,
        reference=fit.reference,
        rank=fit.rank,
    )
    columns = {name: parent.manifest.column(name)[rows.store] for name in (CENTER, SLIDE, CLASS)}
    honest = robustifier.transform(
        parent.read(rows.store),
        columns[CENTER],
        slide=columns[SLIDE],
        biological_class=columns[CLASS],
    )
    halves = np.array([robustifier.half_of[slide] for slide in columns[SLIDE]], np.int64)
    return honest, halves
