"""One repetition of the average performance drop: ours, scikit-learn's loop, croma's sweep.

Each peer is measured in a separate process on the same arrays (the shape of TCGA, Camelyon or
Tolkach: classes, centres, slides, splits): wall time of the first call with compilation, median of
the other calls, and peak resident memory. scikit-learn's loop is that of the reference: split by
split, 15 values of C, then a refit with the best one. croma's ``probe_sweep`` draws the rows and
fits by itself, in domain only; its splits have as many slides as those of the others. Agreement is
measured on the balanced accuracies of every split. ``--repetitions`` above 1 only repeats ours.
"""

import os
import tempfile

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax.core import cost, devices
from pathorob_jax.data import manifest, protocols
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.data.training_splits import draw_repetitions
from pathorob_jax.embeddings import store, store_writer
from pathorob_jax.embeddings.chunk_plan import chunk_rows
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.metrics import apd

_SHAPE = flags.DEFINE_enum("shape", "tcga", sorted(PROTOCOLS), "Whose shape the arrays have.")
_DIM = flags.DEFINE_integer("dim", 3_072, "Dimensions D.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows_per_slide", 0, "Patches of a slide; 0: the protocol's.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 1, "Of ours.", lower_bound=1)
_STOPPING = flags.DEFINE_enum("stopping", "reference", ["reference", "converged"], "Of ours.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Calls after the first, of ours.", lower_bound=0)
_PEERS = flags.DEFINE_list("peers", ["ours", harness.AGAIN, "sklearn", "croma"], "Rows to measure.")
_PEER = flags.DEFINE_string("peer", None, "Measure this one on --folder (internal).")
_FOLDER = flags.DEFINE_string("folder", None, "Arrays (internal).")

STORE, BATCH = "store", 64
MODULE = "experiments.benchmarks.apd"
# Slides of a cell, as in the datasets.
SLIDES = {"camelyon": 17, "tcga": 12, "tolkach_esca": 9}
STOPPINGS: dict[str, Stopping] = {"reference": "reference", "converged": "converged"}
PASSED = (_SHAPE, _DIM, _ROWS, _REPETITIONS, _STOPPING, _REPEATS)


def make_schedule(shape: str, rows_per_slide: int) -> AssociationSchedule:
    """The splits of the protocol, with another number of patches if ``rows_per_slide`` is set."""
    published = PROTOCOLS[shape].apd.schedule
    return AssociationSchedule(
        published.classes,
        published.centers,
        published.slides,
        rows_per_slide or published.rows_per_slide,
    )


def make_arrays(shape: str, schedule: AssociationSchedule, dim: int, folder: str) -> None:
    """Write features with class, centre and slide effects; variances decay as in embeddings."""
    rng = np.random.default_rng(0)
    n_classes, n_centers, n = len(schedule.classes), len(schedule.centers), SLIDES[shape]
    slide = np.repeat(np.arange(n_centers * n_classes * n), schedule.rows_per_slide)
    center, bio = slide // (n_classes * n), slide // n % n_classes
    x = 0.3 * rng.standard_normal((len(slide), dim), np.float32)
    for effect, ids in ((0.15, bio), (0.15, center), (0.35, slide)):
        x += np.float32(effect) * rng.standard_normal((int(ids.max()) + 1, dim), np.float32)[ids]
    spread = (1 + np.arange(dim)) ** -0.7
    x *= (spread * np.sqrt(dim / (spread**2).sum())).astype(np.float32)
    np.save(os.path.join(folder, "embeddings.npy"), x)
    np.save(os.path.join(folder, "labels.npy"), np.stack([bio, center, slide]))


def make_store(folder: str, schedule: AssociationSchedule) -> None:
    """Write the arrays as ``extract`` does, for ours to read as the peers read the arrays."""
    x = np.load(os.path.join(folder, "embeddings.npy"))
    rows, n_rows = make_manifest(folder, schedule), chunk_rows(len(x), BATCH)
    writer = store_writer.create_store(
        os.path.join(folder, STORE),
        manifest=rows,
        dim=x.shape[1],
        chunk_rows=n_rows,
        identity={"encoder": "benchmark"},
    )
    for number, start in enumerate(range(0, len(x), n_rows)):
        writer.wait(writer.write(number, x[start : start + n_rows]))
    writer.commit()


def make_manifest(folder: str, schedule: AssociationSchedule) -> manifest.Manifest:
    """Manifest of the rows."""
    bio, center, slide = np.load(os.path.join(folder, "labels.npy"))
    return manifest.as_manifest(
        {
            "slide_id": slide.astype(str),
            "patch_id": np.arange(len(slide)).astype(str),
            "biological_class": np.array(schedule.classes)[bio],
            "medical_center": np.array(schedule.centers)[center],
        }
    )


def run_ours(folder: str, schedule: AssociationSchedule) -> list[list[float]]:
    """Balanced accuracies [split][repetition]."""
    settings = ApdSettings(
        repetitions=_REPETITIONS.value, stopping=STOPPINGS[_STOPPING.value], schedule=schedule
    )
    results = evaluate_store(
        store.open_store(os.path.join(folder, STORE)),
        model="benchmark",
        dataset="benchmark",
        metrics=["apd"],
        settings=Settings(apd=settings),
        mesh=devices.make_mesh(jax.local_devices()),
    )
    accuracies: list[list[float]] = results.apd.id_accuracies
    return accuracies


def run_sklearn(folder: str, schedule: AssociationSchedule) -> list[list[float]]:
    """The reference's loop on the rows of the first repetition."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.utils._testing import ignore_warnings

    x = np.load(os.path.join(folder, "embeddings.npy"))
    label = np.load(os.path.join(folder, "labels.npy"))[0]
    seed = protocols.ApdProtocol.seed
    [task] = draw_repetitions(make_manifest(folder, schedule), schedule, seed=seed, repetitions=1)

    @ignore_warnings(category=ConvergenceWarning)
    def fit(rows: np.ndarray, c: float) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=100, tol=1e-4).fit(x[rows], label[rows])

    out = []
    for s in range(schedule.n_splits):
        training, validation, test = task.training(s), task.validation(s), task.test()
        scores = [
            balanced_accuracy_score(label[validation], fit(training, c).predict(x[validation]))
            for c in protocols.ApdProtocol.c_grid
        ]
        best = fit(training, protocols.ApdProtocol.c_grid[int(np.argmax(scores))])
        out.append([float(balanced_accuracy_score(label[test], best.predict(x[test])))])
    return out


def run_croma(folder: str, schedule: AssociationSchedule) -> list[list[float]]:
    """The sweep of croma; a split is (centre, class, rows) by cell and the largest slide count."""
    import croma

    x = np.load(os.path.join(folder, "embeddings.npy"))
    bio, center, _ = np.load(os.path.join(folder, "labels.npy"))
    size, most = schedule.rows_per_slide, schedule.most_slides
    plans = [
        ([(j, i, n * size) for i, row in enumerate(table) for j, n in enumerate(row)], most)
        for table in schedule.slides
    ]
    scores = croma.probe_sweep(x, center, bio, schedule=plans, rows_per_slide=size, iterations=1)
    return scores.tolist()


def measure(peer: str, folder: str, schedule: AssociationSchedule) -> dict[str, object]:
    """Time one peer on the arrays of a folder."""
    run = {"sklearn": run_sklearn, "croma": run_croma}.get(peer, run_ours)
    accuracies: list[list[list[float]]] = []
    times = harness.time_calls(
        lambda: accuracies.append(run(folder, schedule)),
        repeats=_REPEATS.value if run is run_ours else 0,
    )
    values = np.array(accuracies[-1])
    return {
        "task": "apd",
        "peer": peer,
        "shape": _SHAPE.value,
        "n_training_rows": schedule.n_training_rows,
        "dim": _DIM.value,
        "splits": schedule.n_splits,
        "repetitions": values.shape[1],
        "stopping": _STOPPING.value if run is run_ours else "reference",
        **times,
        "peak_bytes": cost.peak_bytes(),
        "accuracies": values[:, 0].tolist(),
        "apd": apd.average_performance_drop(values),
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count() if run is run_ours else 0,
    }


def main(argv: list[str]) -> None:
    """Measure one peer, or all peers in separate processes."""
    del argv
    schedule = make_schedule(_SHAPE.value, _ROWS.value)
    if _PEER.value and _FOLDER.value:
        harness.answer(measure(_PEER.value, _FOLDER.value, schedule))
        return
    passed = [f"--{holder.name}={holder.value}" for holder in PASSED]
    with tempfile.TemporaryDirectory() as folder:
        harness.keep_programs(folder)
        make_arrays(_SHAPE.value, schedule, _DIM.value, folder)
        make_store(folder, schedule)
        rows = {}
        for peer in _PEERS.value:
            rows[peer] = harness.run_peer(MODULE, [f"--peer={peer}", f"--folder={folder}", *passed])
            harness.emit(rows[peer])
        for peer in {"sklearn", "croma"} & set(rows) if "ours" in rows else ():
            ours, other = rows["ours"], rows[peer]
            per_repetition = ours["median_s"] / ours["repetitions"]
            difference = np.abs(np.subtract(ours["accuracies"], other["accuracies"]))
            harness.emit(
                {
                    "task": "apd",
                    "shape": _SHAPE.value,
                    "compare": f"{peer} / ours, one repetition",
                    **harness.compare_first_calls(rows, peer),
                    "speedup": other["first_s"] / per_repetition,
                    "memory_ratio": other["peak_bytes"] / ours["peak_bytes"],
                    "max_accuracy_difference": float(difference.max()),
                }
            )


if __name__ == "__main__":
    app.run(main)
