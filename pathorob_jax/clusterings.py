"""Clustering score of a store: its rows and combinations, and the record that comes of them.

Enters: an embedding store, a protocol. Leaves: ``ClusteringResult`` and its draws. A combination
of two classes and two centres is one task: it runs on one device, its labels are written as soon as
they are there, and a run that was killed goes on with the combinations that are missing. What a
task gives does not depend on the number of devices.
"""

import io
import json
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pathorob_jax import checks, files, sharding
from pathorob_jax.checks import InputError, UsageError
from pathorob_jax.datasets import ClusteringProtocol, View
from pathorob_jax.kernels import bootstrap
from pathorob_jax.kernels.kmeans import DEFAULT_BUDGET_BYTES, Init
from pathorob_jax.manifest import CENTER, CLASS, SLIDE, Manifest, locate
from pathorob_jax.metrics import clustering
from pathorob_jax.metrics.clustering import Clustering, Combination, Metric
from pathorob_jax.modes import default_modes
from pathorob_jax.progress import Progress
from pathorob_jax.provenance import software_versions
from pathorob_jax.records import ClusteringCombination, ClusteringResult
from pathorob_jax.results import Outcome, make_provenance, percentile_interval
from pathorob_jax.store import Store

TASK_VERSION = 1
N_CLASSES = 2
STD_MEANING = (
    "mean over combinations of the standard deviation over trials: what the seed of k-means does, "
    "and nothing of other slides; ci95 is over draws of whole slides, clusters kept"
)


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
class _Plan:
    """Rows, combinations and the protocol with what the user chose."""

    view: Manifest
    x: np.ndarray
    combinations: list[Combination]
    protocol: ClusteringProtocol
    settings: ClusteringSettings

    @property
    def k_grid(self) -> range:
        return range(self.protocol.k_min, self.protocol.k_max + 1)

    @property
    def runs_each(self) -> int:
        """Runs of k-means of a combination, at most."""
        p = self.protocol
        return clustering.count_runs(
            self.k_grid,
            trials=p.trials,
            selection_inits=p.selection_inits,
            trial_inits=p.trial_inits,
        )


def make_clustering(
    store: Store,
    *,
    model: str,
    dataset: str,
    protocol: ClusteringProtocol | None,
    view: Manifest,
    settings: ClusteringSettings | None = None,
    work_dir: str | None = None,
    mesh: Mesh | None = None,
) -> Outcome:
    """The clustering score of one store.

    Args:
        store: embeddings.
        model: name that the result carries.
        dataset: name that the result carries.
        protocol: grid, numbers of runs and seed; None: PathoROB's, on a dataset of one's own.
        view: rows in file order (their order decides the first centres that are drawn).
        settings: what a user may choose.
        work_dir: folder for finished combinations, shared by all processes; None: nothing is kept.
        mesh: its local devices share the combinations; None: all local devices.

    Returns:
        ``ClusteringResult`` with its draws.

    Raises:
        UsageError: an unknown metric, numbers that make no grid, or several processes without
            ``work_dir``.
        InputError: no combination of two classes and two centres has four filled cells, or
            embeddings that cannot be clustered.
    """
    settings = settings or ClusteringSettings()
    plan = _make_plan(store, view, protocol, settings)
    mesh = mesh or sharding.make_mesh(jax.local_devices())
    fingerprint = _fingerprint(plan, mesh)
    found = _run_tasks(plan, fingerprint, name=dataset, work_dir=work_dir, mesh=mesh)
    provenance = make_provenance(
        mesh=mesh,
        store={
            "identity": store.info["identity"],
            "manifest_sha256": store.info["manifest_sha256"],
            "versions": store.info["versions"],
        },
        settings=asdict(settings)
        | {"view": view.source, "view_sha256": view.fingerprint(), "tasks_sha256": fingerprint},
    )
    return _make_outcome(plan, found, model=model, dataset=dataset, provenance=provenance)


def _make_plan(
    store: Store, view: Manifest, protocol: ClusteringProtocol | None, settings: ClusteringSettings
) -> _Plan:
    checks.check_known(settings.metric, clustering.METRICS, what="clustering_metric")
    base = protocol or ClusteringProtocol(View(view.source))
    chosen = ClusteringProtocol(
        view=base.view,
        k_min=base.k_min if settings.k_min is None else settings.k_min,
        k_max=base.k_max if settings.k_max is None else settings.k_max,
        selection_inits=base.selection_inits,
        trials=base.trials if settings.trials is None else settings.trials,
        trial_inits=base.trial_inits,
        seed=base.seed if settings.cluster_seed is None else settings.cluster_seed,
    )
    if not 2 <= chosen.k_min <= chosen.k_max:
        raise UsageError(
            f"k_min, k_max: expected 2 <= k_min <= k_max, found {chosen.k_min} and {chosen.k_max}."
        )
    if chosen.trials < 1:
        raise UsageError(f"trials: expected 1 or more, found {chosen.trials}.")
    combinations = clustering.find_combinations(view.column(CLASS), view.column(CENTER))
    if not combinations:
        classes, centers = view.factorize(CLASS).names, view.factorize(CENTER).names
        raise InputError(
            f"{view.source}: expected two biological classes and two medical centres with patches "
            f"of both classes in both centres, found {list(classes)} and {list(centers)} and no "
            "such four cells; the clustering score cannot tell one from the other."
        )
    x = store.read(locate(view, store.manifest))
    bad, word = checks.find_bad_rows(x)
    if bad.size:
        key = view.keys[int(bad[0])]
        raise InputError(
            f"{store.path}: {bad.size} embeddings hold {word}, the first is patch {key}. Extract "
            "or import the store again."
        )
    return _Plan(view, x, combinations, chosen, settings)


def _fingerprint(plan: _Plan, mesh: Mesh) -> str:
    """Of all that the labels of a combination depend on."""
    protocol = {k: v for k, v in asdict(plan.protocol).items() if k != "view"}
    facts = {
        "version": TASK_VERSION,
        "rows": plan.view.fingerprint(),
        "embeddings": files.digest_array(plan.x),
        "protocol": protocol,
        "metric": plan.settings.metric,
        "init": plan.settings.init,
        # Both decide last bits, on which a row between two centres may hang.
        "budget_bytes": plan.settings.budget_bytes,
        "jax": [software_versions()["jax"], mesh.devices.flat[0].device_kind],
    }
    return files.digest(json.dumps(facts, sort_keys=True).encode())


def _run_tasks(
    plan: _Plan, fingerprint: str, *, name: str, work_dir: str | None, mesh: Mesh
) -> list[Clustering]:
    """The clusters of every combination, in order; those on disk are not computed again."""
    process, n_processes = jax.process_index(), jax.process_count()
    if n_processes > 1 and work_dir is None:
        raise UsageError(
            f"work_dir: expected a folder that all {n_processes} processes see, found none."
        )
    numbers = range(len(plan.combinations))
    found = {i: _read_task(work_dir, i, fingerprint) for i in numbers}
    missing = [i for i in numbers if found[i] is None]
    mine = missing[process::n_processes]
    devices: SimpleQueue[jax.Device] = SimpleQueue()
    n_devices = min(len(mesh.local_devices), max(1, len(mine)))
    for device in mesh.local_devices[:n_devices]:
        devices.put(device)
    lock = threading.Lock()
    done = len(numbers) - len(missing)
    total = (done + len(mine)) * plan.runs_each

    with Progress(
        f"clusters {name}", total=total, unit="run", done=done * plan.runs_each
    ) as progress:

        def tell(n_runs: int) -> None:
            with lock:
                progress.update(n_runs)

        def compute(number: int) -> tuple[int, Clustering]:
            device = devices.get()
            told = [0]

            def count(n_runs: int) -> None:
                told[0] += n_runs
                tell(n_runs)

            try:
                with default_modes(), jax.default_device(device):
                    clusters = _compute(plan, number, count)
            finally:
                devices.put(device)
            _write_task(work_dir, number, fingerprint, clusters)
            tell(plan.runs_each - told[0])
            return number, clusters

        found |= dict(_map(compute, mine, n_devices))
    if n_processes > 1:
        multihost_utils.sync_global_devices(f"clusters {fingerprint}")
        found = {i: _read_task(work_dir, i, fingerprint) for i in numbers}
    out = [clusters for clusters in found.values() if clusters is not None]
    if len(out) < len(numbers):
        raise InputError(
            f"{work_dir}: {len(numbers) - len(out)} combinations of other processes are missing; "
            "expected a folder that all processes see."
        )
    return out


def _map(compute: Any, numbers: Sequence[int], n_threads: int) -> Iterator[tuple[int, Clustering]]:
    """Results in order; the first error ends what has not begun."""
    if n_threads == 1:
        yield from map(compute, numbers)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        running = [pool.submit(compute, number) for number in numbers]
        try:
            for future in running:
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compute(plan: _Plan, number: int, on_progress: Any) -> Clustering:
    combination, protocol = plan.combinations[number], plan.protocol
    try:
        return clustering.cluster_combination(
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
            on_progress=on_progress,
        )
    except InputError as error:
        raise InputError(f"combination {combination.name}: {error}") from error


def _task_path(work_dir: str, number: int) -> str:
    return files.join(work_dir, f"combination_{number:04d}.npz")


def _write_task(work_dir: str | None, number: int, fingerprint: str, clusters: Clustering) -> None:
    if work_dir is None:
        return
    sink = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in _packed(clusters).items()}
    np.savez_compressed(sink, fingerprint=np.array(fingerprint), **arrays)
    files.write_bytes(_task_path(work_dir, number), sink.getvalue())


def _packed(clusters: Clustering) -> dict[str, Any]:
    """Labels in the least bytes that hold them."""
    kept = clusters._asdict()
    for name in ("best", "trials", "trials_at_classes"):
        kept[name] = kept[name].astype(np.min_scalar_type(int(kept[name].max())))
    return kept


def _read_task(work_dir: str | None, number: int, fingerprint: str) -> Clustering | None:
    """A finished combination; None, with a word where there is one of other data, or a damaged."""
    if work_dir is None or not files.exists(_task_path(work_dir, number)):
        return None
    path = _task_path(work_dir, number)
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


def _make_outcome(
    plan: _Plan,
    found: Sequence[Clustering],
    *,
    model: str,
    dataset: str,
    provenance: dict[str, Any],
) -> Outcome:
    groups = plan.view.factorize(plan.settings.group_column)
    weights = bootstrap.draw_group_weights(
        len(groups.names), draws=plan.settings.draws, seed=plan.settings.seed
    )
    drawn = np.stack(
        [
            clustering.bootstrap_score(
                weights,
                clusters.trials,
                of.cell_id,
                groups.ids[of.rows],
                n_clusters=plan.protocol.k_max,
            )
            for of, clusters in zip(plan.combinations, found, strict=True)
        ]
    )
    combinations = [
        _make_combination(of, clusters, draws, n_clusters=plan.protocol.k_max)
        for of, clusters, draws in zip(plan.combinations, found, drawn, strict=True)
    ]
    score = clustering.summarise_scores(
        [np.array(c.ari_biology) for c in combinations],
        [np.array(c.ari_center) for c in combinations],
    )
    # A draw that lacks a combination's class or centre says something of the others only.
    defined = np.isfinite(drawn)
    draws = np.where(
        defined.any(0), np.where(defined, drawn, 0).sum(0) / np.maximum(defined.sum(0), 1), np.nan
    )
    record = ClusteringResult(
        model=model,
        dataset=dataset,
        clustering_score=score.value,
        clustering_score_std=score.std,
        clustering_score_std_meaning=STD_MEANING,
        ci95=percentile_interval(draws),
        clustering_score_at_n_classes=_mean(combinations, "clustering_score_at_n_classes"),
        ari_biology=float(np.mean([np.mean(c.ari_biology) for c in combinations])),
        ari_center=float(np.mean([np.mean(c.ari_center) for c in combinations])),
        nmi_biology=_mean(combinations, "nmi_biology"),
        nmi_center=_mean(combinations, "nmi_center"),
        ami_biology=_mean(combinations, "ami_biology"),
        ami_center=_mean(combinations, "ami_center"),
        distance=plan.settings.metric,
        k_grid=list(plan.k_grid),
        trials=plan.protocol.trials,
        n_at_k_max=sum(c.k == c.k_max for c in combinations),
        n_samples=len(plan.view),
        n_slides=len(plan.view.factorize(SLIDE).names),
        combinations=combinations,
        warnings=_warn(plan, combinations, defined),
        provenance=provenance,
    )
    key = files.digest(
        plan.view.fingerprint().encode(),
        f"{plan.settings.group_column} {plan.settings.seed} {plan.settings.draws}".encode(),
    )
    return Outcome(record, key, {"clustering_score": draws})


def _mean(combinations: Sequence[ClusteringCombination], name: str) -> float:
    return float(np.mean([getattr(c, name) for c in combinations]))


def _make_combination(
    of: Combination, clusters: Clustering, draws: np.ndarray, *, n_clusters: int
) -> ClusteringCombination:
    # One number of clusters for all, so that they share a compilation: the rest are empty.
    tables, plain, best = (
        clustering.count_clusters(labels, of.cell_id, n_clusters=n_clusters)
        for labels in (clusters.trials, clusters.trials_at_classes, clusters.best)
    )
    agreement, at_two = (clustering.measure_agreement(t) for t in (tables, plain))
    score = clustering.summarise_scores([agreement.ari_biology], [agreement.ari_center])
    at_classes = clustering.summarise_scores([at_two.ari_biology], [at_two.ari_center])
    return ClusteringCombination(
        name=of.name,
        classes=list(of.classes),
        centers=list(of.centers),
        n_samples=len(of.rows),
        k=clusters.k,
        k_max=int(clusters.k_grid[-1]),
        silhouettes=clusters.silhouettes.tolist(),
        ari_biology=agreement.ari_biology.tolist(),
        ari_center=agreement.ari_center.tolist(),
        clustering_score=score.value,
        clustering_score_std=score.std,
        ci95=percentile_interval(draws),
        clustering_score_at_n_classes=at_classes.value,
        nmi_biology=float(agreement.nmi_biology.mean()),
        nmi_center=float(agreement.nmi_center.mean()),
        ami_biology=float(agreement.ami_biology.mean()),
        ami_center=float(agreement.ami_center.mean()),
        composition=best[0, : clusters.k].reshape(clusters.k, -1).tolist(),
    )


def _warn(
    plan: _Plan, combinations: Sequence[ClusteringCombination], defined: np.ndarray
) -> list[str]:
    """What a reader must know; also logged."""
    out = []
    at_end = [c for c in combinations if c.k == c.k_max]
    if at_end and len(plan.k_grid) > 1:
        out.append(
            f"K is at the end of its grid ({plan.k_grid[-1]}) in {len(at_end)} of "
            f"{len(combinations)} combinations: more clusters might fit better, and the score "
            "depends on K; compare the score at K = number of classes, or raise k_max."
        )
    short = [c for c in combinations if c.k_max < plan.k_grid[-1]]
    if short:
        out.append(
            f"{len(short)} combinations have no more than {plan.k_grid[-1]} patches; numbers of "
            "clusters that are not below the number of patches were left out there."
        )
    share = 1 - float(defined.mean())
    if share >= 0.005:
        out.append(
            f"{share:.0%} of the bootstrap's draws of a combination lack a class or a centre and "
            "are left out of its interval: it has few slides."
        )
    for text in out:
        logging.warning("%s", text)
    return out
