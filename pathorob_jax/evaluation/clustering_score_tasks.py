"""The combinations of a clustering score as tasks: they run on any device and are kept on disk.

A combination of two classes and two centres is one task. Its result is the clusters of all its
runs. The fingerprint covers everything that the labels depend on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import digests, tasks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.task_files import TaskFiles, make_fingerprint
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.data.protocols import ClusteringProtocol
from pathorob_jax.evaluation.settings import ClusteringSettings
from pathorob_jax.kernels.clustering import kmeans
from pathorob_jax.metrics import clustering_score
from pathorob_jax.metrics.clustering_score import Clustering, Combination

TASK_VERSION = 1
# A step of k-means on some thousand rows seldom occupies more than one core.
MOST_PER_CPU = 4
N_CLASSES = 2
LABELS = ("best", "trials", "trials_at_classes")


@dataclass(frozen=True, eq=False)
class Plan:
    """The data that all tasks of a dataset share: rows, combinations, and the chosen protocol."""

    view: Manifest
    x: np.ndarray
    combinations: list[Combination]
    protocol: ClusteringProtocol
    settings: ClusteringSettings

    @property
    def k_grid(self) -> range:
        """Numbers of clusters to try."""
        return range(self.protocol.k_min, self.protocol.k_max + 1)

    @property
    def runs_each(self) -> int:
        """Largest number of k-means runs of a combination."""
        p = self.protocol
        return clustering_score.count_runs(
            self.k_grid,
            trials=p.trials,
            selection_inits=p.selection_inits,
            trial_inits=p.trial_inits,
        )


def fingerprint_tasks(plan: Plan, mesh: Mesh) -> str:
    """Hex sha256 of everything that the labels of a combination depend on."""
    protocol = {k: v for k, v in asdict(plan.protocol).items() if k != "view"}
    facts = {
        "version": TASK_VERSION,
        "rows": plan.view.fingerprint(),
        "embeddings": digests.digest_in_threads(plan.x),
        "protocol": protocol,
        "metric": plan.settings.metric,
        "init": plan.settings.init,
        # It changes last bits, which may decide the cluster of a row between two centres.
        "budget_bytes": plan.settings.budget_bytes,
    }
    return make_fingerprint(facts, mesh)


def run_combinations(
    plan: Plan, fingerprint: str, *, folder: str | None, mesh: Mesh
) -> list[Clustering]:
    """Clusters of every combination, in order; clusters on disk are not computed again."""
    kept = TaskFiles(folder, "combination", fingerprint)
    combinations = tasks.Tasks(
        name="clusters",
        n_tasks=len(plan.combinations),
        compute=lambda number, tell: _compute(plan, number, tell),
        n_steps=plan.runs_each,
        unit="run",
        read=lambda number: _unpack(
            kept.read_arrays(number, check=lambda arrays: _check_arrays(arrays, plan, number))
        ),
        write=lambda number, clusters: kept.write_arrays(number, _pack(clusters)),
        hold=kept.hold,
        drop_abandoned=kept.drop_abandoned,
        per_cpu=count_at_once(plan),
    )
    return tasks.run_tasks(combinations, mesh=mesh)


def count_at_once(plan: Plan) -> int:
    """Combinations that may run at once on one CPU device: as many as the budget of one holds."""
    n, dim = max(len(c.rows) for c in plan.combinations), plan.x.shape[1]
    # Inner products in float32, rows in float32 and float64, and a batch of runs.
    each = 4 * n * n + 12 * n * dim + kmeans.CPU_COLUMNS * n * kmeans.BYTES_PER_SCORE
    return max(1, min(MOST_PER_CPU, plan.settings.budget_bytes // each))


def _compute(plan: Plan, number: int, tell: tasks.Tell) -> Clustering:
    combination, protocol = plan.combinations[number], plan.protocol
    try:
        return clustering_score.cluster_combination(
            plan.x[combination.rows],
            metric=plan.settings.metric,
            k_grid=plan.k_grid,
            trials=protocol.trials,
            seed=protocol.seed,
            selection_inits=protocol.selection_inits,
            trial_inits=protocol.trial_inits,
            n_classes=N_CLASSES,
            init=plan.settings.init,
            budget_bytes=plan.settings.budget_bytes,
            on_progress=tell,
        )
    except InputError as error:
        raise InputError(f"combination {combination.name}: {error}") from error


def _pack(clusters: Clustering) -> dict[str, Any]:
    """Arrays to keep, with labels in the smallest dtype that holds them."""
    arrays = {name: np.asarray(value) for name, value in clusters._asdict().items()}
    for name in LABELS:
        arrays[name] = arrays[name].astype(np.min_scalar_type(int(arrays[name].max())))
    return arrays


def _check_arrays(arrays: Mapping[str, np.ndarray], plan: Plan, number: int) -> None:
    """Raise ValueError unless arrays have the form that ``_pack`` gives those of a combination."""
    n, trials = len(plan.combinations[number].rows), plan.protocol.trials
    grid = [k for k in plan.k_grid if k < n]
    shapes = {"k": (), "k_grid": (len(grid),), "silhouettes": (len(grid),), "best": (n,)}
    shapes |= {"trials": (trials, n), "trials_at_classes": (trials, n)}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise ValueError("shapes")
    if any(arrays[name].dtype.kind not in "iu" for name in ("k", "k_grid", *LABELS)):
        raise ValueError("dtypes")
    k = int(arrays["k"])
    if (
        arrays["k_grid"].tolist() != grid
        or k not in grid
        or arrays["silhouettes"].dtype.kind != "f"
    ):
        raise ValueError("numbers of clusters")
    for name, n_clusters in zip(LABELS, (k, k, N_CLASSES), strict=True):
        if arrays[name].min() < 0 or arrays[name].max() >= n_clusters:
            raise ValueError(name)


def _unpack(arrays: Mapping[str, np.ndarray] | None) -> Clustering | None:
    if arrays is None:
        return None
    values: dict[str, Any] = dict(arrays)
    values |= {name: arrays[name].astype(np.int32) for name in LABELS}
    values["k"] = int(arrays["k"])
    return Clustering(**values)
