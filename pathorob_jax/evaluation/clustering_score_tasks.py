"""The combinations of a clustering score as tasks: clustered on any device, kept on disk.

Enters: a plan (rows, embeddings, combinations, settings). Leaves: for each combination of two
classes and two centres the clusters of all its runs. A combination is one task; all that its labels
depend on is in the fingerprint.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import digests, files, tasks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.manifest import SLIDE, Manifest
from pathorob_jax.data.protocols import ClusteringProtocol
from pathorob_jax.kernels.clustering.kmeans import DEFAULT_BUDGET_BYTES, Init
from pathorob_jax.metrics import clustering_score
from pathorob_jax.metrics.clustering_score import Clustering, Combination, Metric

TASK_VERSION = 1
N_CLASSES = 2


@dataclass(frozen=True)
class ClusteringSettings:
    """What a user may choose; the defaults are the protocol's.

    Attributes:
        trials: fits at the chosen number of clusters; None: the protocol's 50.
        k_min: least number of clusters tried; None: the protocol's 2.
        k_max: largest; None: the protocol's 30. Equal to ``k_min``: no choice.
        metric: ``cosine`` (the protocol's), ``euclidean`` or ``spherical``; see
            ``cluster_combination``.
        init: first centres, ``random`` (the protocol's) or ``k-means++``.
        cluster_seed: of k-means; None: the protocol's 1337.
        group_column: rows that share its value are drawn together by the bootstrap.
        seed: of the bootstrap over groups.
        draws: of the bootstrap.
        budget_bytes: memory on each device for a batch of runs. Beside it lie the inner products
            of a combination's rows, up to half as much, or where they would be larger the rows; the
            host holds the dataset's embeddings. None of it grows with the combinations.
    """

    trials: int | None = None
    k_min: int | None = None
    k_max: int | None = None
    metric: Metric = "cosine"
    init: Init = "random"
    cluster_seed: int | None = None
    group_column: str = SLIDE
    seed: int = 0
    draws: int = 2000
    budget_bytes: int = DEFAULT_BUDGET_BYTES


@dataclass(frozen=True, eq=False)
class Plan:
    """All that the tasks of a dataset share: rows, combinations, the protocol as chosen."""

    view: Manifest
    x: np.ndarray
    combinations: list[Combination]
    protocol: ClusteringProtocol
    settings: ClusteringSettings

    @property
    def k_grid(self) -> range:
        """Numbers of clusters that are tried."""
        return range(self.protocol.k_min, self.protocol.k_max + 1)

    @property
    def runs_each(self) -> int:
        """Runs of k-means of a combination, at most."""
        p = self.protocol
        return clustering_score.count_runs(
            self.k_grid,
            trials=p.trials,
            selection_inits=p.selection_inits,
            trial_inits=p.trial_inits,
        )


def fingerprint(plan: Plan, mesh: Mesh) -> str:
    """Of all that the labels of a combination depend on."""
    protocol = {k: v for k, v in asdict(plan.protocol).items() if k != "view"}
    facts = {
        "version": TASK_VERSION,
        "rows": plan.view.fingerprint(),
        "embeddings": digests.digest_array(plan.x),
        "protocol": protocol,
        "metric": plan.settings.metric,
        "init": plan.settings.init,
        # Both decide last bits, on which a row between two centres may hang.
        "budget_bytes": plan.settings.budget_bytes,
        "jax": [software_versions()["jax"], mesh.devices.flat[0].device_kind],
    }
    return digests.digest(json.dumps(facts, sort_keys=True).encode())


def run(
    plan: Plan, fingerprint: str, *, name: str, work_dir: str | None, mesh: Mesh
) -> list[Clustering]:
    """The clusters of every combination, in order; those on disk are not computed again."""
    combinations = tasks.Tasks(
        name=f"clusters {name}",
        n_tasks=len(plan.combinations),
        noun="combinations",
        compute=lambda number, tell: _compute(plan, number, tell),
        n_steps=plan.runs_each,
        unit="run",
        read=lambda number: _read(work_dir, number, fingerprint),
        write=lambda number, clusters: _write(work_dir, number, fingerprint, clusters),
    )
    return tasks.run_tasks(combinations, work_dir=work_dir, mesh=mesh)


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


def _path(work_dir: str, number: int) -> str:
    return files.join(work_dir, f"combination_{number:04d}.npz")


def _write(work_dir: str | None, number: int, fingerprint: str, clusters: Clustering) -> None:
    if work_dir is None:
        return
    sink = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in _packed(clusters).items()}
    np.savez_compressed(sink, fingerprint=np.array(fingerprint), **arrays)
    files.write_bytes(_path(work_dir, number), sink.getvalue())


def _packed(clusters: Clustering) -> dict[str, Any]:
    """Labels in the least bytes that hold them."""
    kept = clusters._asdict()
    for name in ("best", "trials", "trials_at_classes"):
        kept[name] = kept[name].astype(np.min_scalar_type(int(kept[name].max())))
    return kept


def _read(work_dir: str | None, number: int, fingerprint: str) -> Clustering | None:
    """A finished combination; None, with a word where there is one of other data, or a damaged."""
    if work_dir is None or not files.exists(_path(work_dir, number)):
        return None
    path = _path(work_dir, number)
    try:
        kept = dict(np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False))
        if str(kept.pop("fingerprint")) != fingerprint:
            logging.warning("%s: of other data or settings; it is computed again.", path)
            return None
        for name in ("best", "trials", "trials_at_classes"):
            kept[name] = kept[name].astype(np.int32)
        return Clustering(**kept | {"k": int(kept["k"])})
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile):
        logging.warning("%s: damaged; the combination is computed again.", path)
        return None
