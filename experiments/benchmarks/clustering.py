"""Clustering score of a combination: ours, scikit-learn's loops, and others for speed only.

The benchmark runs the whole protocol of a combination of two classes and two centres: K from 2 to
30 by silhouette with 20 inits each, then 50 trials of 5 inits at the chosen K, and agreement with
class and centre. With ``--combinations`` there are several, one after the other: two classes and
each pair of three or more centres. Each peer runs in a separate process on the same arrays. Their
groups overlap, so that k-means takes as many iterations as on embeddings of real encoders (the
lines of scikit-learn report how many). ``sklearn`` is the reference's own loop, by Lloyd's
algorithm; ``sklearn_elkan`` leaves out distances that cannot decide, and finds the same labels.
``cuml`` is that loop with cuML's classes, on a GPU. faiss and, on a GPU, flash-kmeans run a number
of iterations that is given (``--peer_iterations``). These three draw other initial centres, so that
only their times are comparable. ``cpu_s`` is the processor time of a call over all threads, for
comparisons on a machine that others use at the same time.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import gpu_peers, harness
from pathorob_jax.core import cost
from pathorob_jax.metrics import clustering_score

_SAMPLES = flags.DEFINE_integer(
    "samples", 2_000, "Rows N of a combination, a multiple of 40.", lower_bound=40
)
# Pairs of so many centres; the key is their number.
N_CENTERS = {n * (n - 1) // 2: n for n in range(2, 8)}
_COMBINATIONS = flags.DEFINE_enum("combinations", "1", list(map(str, N_CENTERS)), "Combinations.")
_DIM = flags.DEFINE_integer("dim", 3_072, "Dimensions D.", lower_bound=1)
_K_MAX = flags.DEFINE_integer("k_max", 30, "Largest number of clusters.", lower_bound=2)
_TRIALS = flags.DEFINE_integer("trials", 50, "Trials.", lower_bound=1)
_INITS = flags.DEFINE_integer("selection_inits", 20, "Inits of each K.", lower_bound=1)
_ITERATIONS = flags.DEFINE_integer(
    "peer_iterations", 30, "Iterations of a run of faiss and flash-kmeans.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer("repeats", 1, "Calls of ours after the first.", lower_bound=0)
_PEERS = flags.DEFINE_list(
    "peers",
    ["ours", harness.AGAIN, "sklearn", "sklearn_elkan", "faiss", "cuml", "flash_kmeans"],
    "Rows to measure.",
)
PEERS = harness.Peers("experiments.benchmarks.clustering")
SEED, TRIAL_INITS = 1337, 5


def make_arrays(n: int, dim: int, n_centers: int, folder: str) -> None:
    """Write unit rows of 2 classes x centres x 10 slides, blurred by spectrum and slides."""
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(20 * n_centers), n // 40)
    bio, center = slide // (10 * n_centers), slide // 10 % n_centers
    spectrum = (1 + np.arange(dim, dtype=np.float32)) ** -0.6
    x = rng.standard_normal((len(slide), dim), np.float32)
    for effect, ids in ((0.5, bio), (0.5, center), (0.6, slide)):
        x += effect * rng.standard_normal((int(ids.max()) + 1, dim), np.float32)[ids]
    x = (x + 3 * rng.standard_normal(dim, np.float32)) * spectrum
    np.save(os.path.join(folder, "embeddings.npy"), x / np.linalg.norm(x, axis=1, keepdims=True))
    np.save(os.path.join(folder, "labels.npy"), np.stack([bio, center]))


def measure(peer: str, folder: str) -> dict[str, object]:
    """Time one peer on the arrays of a folder."""
    embeddings = np.load(os.path.join(folder, "embeddings.npy"))
    combinations = clustering_score.find_combinations(
        *np.load(os.path.join(folder, "labels.npy")).astype(str)
    )
    k_grid, trials, inits = range(2, _K_MAX.value + 1), _TRIALS.value, _INITS.value
    chosen = _K_MAX.value // 2  # of peers that do not choose
    answers: list[dict[str, Any]] = []

    def ours(x: np.ndarray, cell: np.ndarray) -> None:
        # The protocol only, without the additional trials at K = 2.
        clusters = clustering_score.cluster_combination(
            x,
            metric="cosine",
            k_grid=k_grid,
            trials=trials,
            seed=SEED,
            selection_inits=inits,
            trial_inits=TRIAL_INITS,
            n_classes=None,
        )
        tables = clustering_score.count_clusters(clusters.trials, cell, n_clusters=_K_MAX.value)
        agreement = clustering_score.measure_agreement(tables)
        answers.append(
            {
                "k": clusters.k,
                "silhouettes": clusters.silhouettes.tolist(),
                "ari": [agreement.ari_biology.tolist(), agreement.ari_center.tolist()],
            }
        )

    def sklearn(x: np.ndarray, cell: np.ndarray, algorithm: str) -> None:
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score

        loop(x, cell, functools.partial(KMeans, algorithm=algorithm), silhouette_score)

    def cuml(x: np.ndarray, cell: np.ndarray) -> None:
        loop(x, cell, *gpu_peers.cuml_parts())

    def loop(
        x: np.ndarray,
        cell: np.ndarray,
        kmeans: Callable[..., Any],
        silhouette_score: Callable[..., float],
    ) -> None:
        """The reference's loop."""
        from sklearn.metrics import adjusted_rand_score

        def fit(k: int, seed: int, n_init: int) -> np.ndarray:
            model = kmeans(n_clusters=k, random_state=seed, init="random", n_init=n_init).fit(x)
            iterations.append(model.n_iter_)
            return model.labels_

        iterations: list[int] = []
        scores = [silhouette_score(x, fit(k, SEED, inits), metric="cosine") for k in k_grid]
        k = k_grid[int(np.argmax(scores))]
        labels = [fit(k, SEED + t, TRIAL_INITS) for t in range(trials)]
        ari = [
            [adjusted_rand_score(truth, clusters) for clusters in labels]
            for truth in (cell // 2, cell % 2)
        ]
        answers.append(
            {
                "k": k,
                "silhouettes": [float(s) for s in scores],
                "ari": ari,
                "mean_iterations": float(np.mean(iterations)),
            }
        )

    def faiss(x: np.ndarray, cell: np.ndarray) -> None:
        import faiss as library

        del cell
        selection = [(k, inits, SEED) for k in k_grid]
        for k, n_init, seed in selection + [(chosen, TRIAL_INITS, SEED + t) for t in range(trials)]:
            model = library.Kmeans(
                x.shape[1],
                k,
                niter=_ITERATIONS.value,
                nredo=n_init,
                seed=seed,
                max_points_per_centroid=len(x),
                min_points_per_centroid=1,
            )
            model.train(x)
            model.index.search(x, 1)

    def flash_kmeans(x: np.ndarray, cell: np.ndarray) -> None:
        del cell
        for k, n_runs in [(k, inits) for k in k_grid] + [(chosen, trials * TRIAL_INITS)]:
            gpu_peers.cluster_with_flash(x, k, n_runs, seed=SEED, iterations=_ITERATIONS.value)

    calls: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
        "ours": ours,
        harness.AGAIN: ours,
        "sklearn": functools.partial(sklearn, algorithm="lloyd"),
        "sklearn_elkan": functools.partial(sklearn, algorithm="elkan"),
        "faiss": faiss,
        "cuml": cuml,
        "flash_kmeans": flash_kmeans,
    }

    def cluster_all() -> None:
        answers.clear()
        for one in combinations:
            calls[peer](embeddings[one.rows], one.cell_id)

    repeats = _REPEATS.value if calls[peer] is ours else 0
    start = time.process_time()
    times = harness.time_calls(cluster_all, repeats=repeats)
    cpu_s = (time.process_time() - start) / (1 + repeats)
    return {
        "task": "clustering_score",
        "peer": peer,
        "n": len(combinations[0].rows),
        "dim": embeddings.shape[1],
        "combinations": len(combinations),
        "k_max": _K_MAX.value,
        "trials": trials,
        "runs": len(combinations) * (len(k_grid) * inits + trials * TRIAL_INITS),
        **times,
        "cpu_s": cpu_s,
        "peak_bytes": cost.peak_bytes(),
        **{name: [one[name] for one in answers] for name in (answers[0] if answers else ())},
        "device": jax.devices()[0].device_kind,
    }


def compare(rows: dict[str, dict[str, Any]], peer: str) -> dict[str, object]:
    """Speedup, and the differences between our numbers and those of scikit-learn."""
    ours, theirs = rows["ours"], rows[peer]
    ari = [np.asarray(row["ari"]) for row in (ours, theirs)]
    silhouettes = [np.asarray(row["silhouettes"]) for row in (ours, theirs)]
    same_k = ours["k"] == theirs["k"]
    return {
        "task": "clustering_score",
        "compare": f"{theirs['peer']} / ours",
        **harness.compare_first_calls(rows, peer),
        "speedup": theirs["median_s"] / ours["median_s"],
        "speedup_cpu": theirs["cpu_s"] / ours["cpu_s"],
        "same_k": same_k,
        "max_silhouette_difference": float(np.abs(silhouettes[0] - silhouettes[1]).max()),
        "equal_trials": float((np.abs(ari[0] - ari[1]) < 1e-9).all(1).mean()) if same_k else None,
    }


def run_all(run: harness.Run, folder: str) -> None:
    """Measure all peers and compare them."""
    del folder
    rows: dict[str, dict[str, Any]] = {}
    for peer in _PEERS.value:
        if reason := gpu_peers.why_left_out(peer):
            harness.emit({"task": "clustering_score", "peer": peer, "skipped": reason})
            continue
        rows[peer] = run(
            peer,
            k_max=_K_MAX.value,
            trials=_TRIALS.value,
            selection_inits=_INITS.value,
            peer_iterations=_ITERATIONS.value,
            repeats=_REPEATS.value,
        )
    for peer in ("sklearn", "sklearn_elkan"):
        if {"ours", peer} <= set(rows):
            harness.emit(compare(rows, peer))


def main(argv: list[str]) -> None:
    """Measure one peer, or all peers in separate processes."""
    del argv
    PEERS.main(
        make=lambda folder: make_arrays(
            _SAMPLES.value, _DIM.value, N_CENTERS[int(_COMBINATIONS.value)], folder
        ),
        measure=measure,
        run_all=run_all,
    )


if __name__ == "__main__":
    app.run(main)
