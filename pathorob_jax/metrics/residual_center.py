"""How much of the medical centre is left in embeddings that were made more robust.

A robustifier that was fitted on the very slides that are then probed has removed their chance
differences too, so that centres look anti-correlated between slides and a probe scores far below
0.5. The rows must therefore come from a fit on other slides: those of each half of the slides from
the fit on the other half. Within a half all rows share one map; a probe is trained on one quarter
of the slides and scored on the other quarter of the same half. Rows of different halves are never
compared, as the chance differences of one half's fit are the negative of the other's.
"""

from typing import NamedTuple

import numpy as np

from pathorob_jax.core.typing import Float, Int
from pathorob_jax.metrics import held_out_probes as held_out
from pathorob_jax.metrics.robustness_index import mean_defined

PROBES = ("linear", "knn", "mlp")
N_QUARTERS = 4
QUARTER_ROWS = 2048
PERMUTATIONS = 20


class Residual(NamedTuple):
    """Area under the ROC curve of one probe of the centre.

    Attributes:
        auc: macro one-vs-rest, mean over the four test quarters; 0.5 is chance, and less is
            possible. NaN if no centre is in both quarters of a half.
        permuted: float64[P] the same for each permuted labelling.
        n_unconverged: fits that ended before they met their stopping rule.
    """

    auc: float
    permuted: Float[np.ndarray, " P"]
    n_unconverged: int


def permute_within(
    center_id: Int[np.ndarray, " N"],
    group_id: Int[np.ndarray, " N"],
    stratum_id: Int[np.ndarray, " N"],
    *,
    permutations: int,
    seed: int,
) -> Int[np.ndarray, "P N"]:
    """Permute centres over whole groups (slides) of one stratum; over rows if a group has several.

    Args:
        center_id: int[N] centre of each row.
        group_id: int[N] slide of each row.
        stratum_id: int[N] rows among whose slides centres are exchanged: quarter and class. A slide
            is in the stratum of its first row.
        permutations: P.
        seed: of the permutations.
    """
    _, first, position = np.unique(group_id, return_index=True, return_inverse=True)
    if (center_id[first][position] != center_id).any():
        first, position = np.arange(len(center_id)), np.arange(len(center_id))
    rng = np.random.default_rng(seed)
    strata = [np.flatnonzero(stratum_id[first] == s) for s in np.unique(stratum_id[first])]
    out = np.empty((permutations, len(center_id)), np.int64)
    for i in range(permutations):
        dealt = center_id[first].copy()
        for mine in strata:
            dealt[mine] = dealt[rng.permutation(mine)]
        out[i] = dealt[position]
    return out


def probe_center(
    x: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, "B N"],
    quarter_rows: Int[np.ndarray, "4 n"],
    *,
    n_centers: int,
    seed: int,
) -> dict[str, Residual]:
    """Probe the centre by logistic regression, votes of neighbours and a small network.

    Args:
        x: float32[N, D] embeddings.
        labels: int[B, N] centre of each row in [0, n_centers): the true labelling first, then
            permuted ones.
        quarter_rows: int[4, n] rows of each quarter of the slides; two quarters make a half.
        n_centers: M.
        seed: of the networks.

    Returns:
        ``Residual`` by probe.
    """
    n = quarter_rows.shape[1]
    areas: dict[str, list[np.ndarray]] = {name: [] for name in PROBES}
    unconverged = dict.fromkeys(PROBES, 0)
    if n < 2 or n_centers < 2:
        nothing = Residual(np.nan, np.full(len(labels) - 1, np.nan), 0)
        return dict.fromkeys(PROBES, nothing)
    for half in range(2):
        pair = quarter_rows[2 * half : 2 * half + 2]
        rows, side = pair.ravel(), np.repeat([0, 1], n)
        near = held_out.find_across(x[rows], side)
        for train, test in ((0, 1), (1, 0)):
            known, true = labels[:, pair[train]], labels[:, pair[test]]
            x_train, x_test = x[pair[train]], x[pair[test]]
            found = {
                "linear": held_out.score_linear(x_train, known, x_test, n_labels=n_centers),
                "knn": held_out.score_votes(
                    near[side == test], labels[:, rows], n_labels=n_centers
                ),
                "mlp": held_out.score_mlp(x_train, known, x_test, n_labels=n_centers, seed=seed),
            }
            has_rows = np.stack([(known == m).any(1) for m in range(n_centers)], axis=1)
            for name, scores in found.items():
                unconverged[name] += scores.n_unconverged
                areas[name].append(
                    np.array(
                        [
                            held_out.macro_area(*one)
                            for one in zip(scores.values, true, has_rows, strict=True)
                        ]
                    )
                )
    means = {name: mean_defined(parts) for name, parts in areas.items()}
    return {
        name: Residual(float(mean[0]), mean[1:], unconverged[name]) for name, mean in means.items()
    }
