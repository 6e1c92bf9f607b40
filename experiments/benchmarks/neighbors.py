"""Neighbour metrics on rows of Camelyon's shape: ours, croma's, and the products' own bound.

Each row is measured in its own process on the same arrays: wall time of the first call, median of
the others, peak resident memory. ``matmul`` is what the products alone take: the bound of any exact
search that forms all N^2 scores. ``--task=robustness_index`` is the index alone at one k;
``--task=all`` is index, MaRI and CRoMa from one search, with the curve over k to 100 and the votes
for class and centre, against croma's three calls.
"""

import os
import tempfile

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import harness
from pathorob_jax import datasets
from pathorob_jax.kernels.neighbors import find_neighbors, find_typed_neighbors
from pathorob_jax.kernels.pair_distances import refine_distances
from pathorob_jax.metrics import margins
from pathorob_jax.metrics import robustness_index as ri

_SAMPLES = flags.DEFINE_integer("samples", 20_400, "Rows N (a multiple of 68).", lower_bound=68)
_DIM = flags.DEFINE_integer("dim", 3_072, "Dimensions D.", lower_bound=1)
_K = flags.DEFINE_integer("k", 11, "Neighbours.", lower_bound=1)
_TASK = flags.DEFINE_enum("task", "robustness_index", ["robustness_index", "all"], "What to do.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Calls after the first.", lower_bound=0)
_PEERS = flags.DEFINE_list("peers", ["ours", "croma", "matmul"], "Rows to measure.")
_PEER = flags.DEFINE_string("peer", None, "Measure this one on --folder (internal).")
_FOLDER = flags.DEFINE_string("folder", None, "Arrays (internal).")

MODULE = "experiments.benchmarks.neighbors"


def make_arrays(n: int, dim: int, folder: str) -> None:
    """Camelyon's design, 2 classes x 2 centres x 17 slides; class, centre and slide effects."""
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(68), n // 68)
    bio, center = slide // 34, slide // 17 % 2
    x = rng.standard_normal((len(slide), dim), np.float32)
    for effect, ids in ((0.2, bio), (0.2, center), (0.3, slide)):
        x += effect * rng.standard_normal((int(ids.max()) + 1, dim), np.float32)[ids]
    np.save(os.path.join(folder, "embeddings.npy"), x)
    np.save(os.path.join(folder, "labels.npy"), np.stack([bio, center, slide]).astype(np.int32))


def measure(peer: str, folder: str, k: int, repeats: int, task: str) -> dict[str, object]:
    """Time one peer on the arrays of a folder."""
    x = np.load(os.path.join(folder, "embeddings.npy"))
    bio, center, slide = np.load(os.path.join(folder, "labels.npy"))
    n, dim = x.shape
    value: list[float] = []

    def ours() -> None:
        found = find_neighbors(x, slide, k=k)
        tally = ri.tally_neighbors(found, bio, center, slide, n_bio=2, n_center=2, k_grid=[k])
        value.append(float(ri.measure([tally], k).companions.robustness_index))

    def ours_all() -> None:
        grid = datasets.k_grid(101)
        found = find_typed_neighbors(x, slide, bio, center, k=grid[-1], m=5)
        tally = ri.tally_neighbors(found.any, bio, center, slide, n_bio=2, n_center=2, k_grid=grid)
        index = [ri.measure([tally], point) for point in grid]
        ri.count_hits(found.any, center, k=k, n_labels=2)
        refined = [refine_distances(x, one) for one in found]
        typed = margins.typed_distances(refined[0], bio, center)
        tau = margins.choose_tau([typed], k)
        mari = [margins.margin_robustness_index([typed], point, tau=tau).value for point in grid]
        values = margins.sample_margins(refined[1].distances, refined[2].distances)
        tail = margins.summarise_margins([values])
        at = grid.index(k)
        value.extend([float(index[at].companions.robustness_index), mari[at], tail.median])

    def croma() -> None:
        import croma
        import pandas as pd

        frame = pd.DataFrame(
            {"sample_id": np.arange(n), "group_id": slide, "label": bio, "center": center}
        ).astype(str)
        frame["image_path"] = frame["sample_id"]
        result = croma.RI.compute(x, frame, confounder_column="center", k_candidates=[k])
        value.append(float(result.value))
        if task == "all":
            result = croma.MaRI.compute(x, frame, confounder_column="center", k_candidates=[k])
            value.append(float(result.value))
            value.append(float(croma.CRoMa.compute(x, frame, confounder_column="center").value))

    def matmul() -> None:
        product = jax.jit(lambda q, x: jax.lax.dot_general(q, x, (((1,), (1,)), ((), ()))).sum(1))
        rows = jax.device_put(x)
        for start in range(0, n, 1020):
            jax.block_until_ready(product(rows[start : start + 1020], rows))

    calls = {"ours": ours_all if task == "all" else ours, "croma": croma, "matmul": matmul}
    times = harness.time_calls(calls[peer], repeats=repeats if peer != "croma" else 0)
    return {
        "task": task,
        "peer": peer,
        "n": n,
        "dim": dim,
        "k": k,
        **times,
        "gflop_per_s": 2 * n * n * dim / float(times["median_s"]) / 1e9,
        "peak_bytes": harness.peak_bytes(),
        "values": value[-3:] if task == "all" else value[-1:],
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
    }


def main(argv: list[str]) -> None:
    """Measure one peer, or all of them in processes of their own."""
    del argv
    if _PEER.value and _FOLDER.value:
        harness.emit(measure(_PEER.value, _FOLDER.value, _K.value, _REPEATS.value, _TASK.value))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_arrays(_SAMPLES.value, _DIM.value, folder)
        rows = {}
        for peer in _PEERS.value:
            rows[peer] = harness.run_peer(
                MODULE,
                [
                    f"--peer={peer}",
                    f"--folder={folder}",
                    f"--k={_K.value}",
                    f"--repeats={_REPEATS.value}",
                    f"--task={_TASK.value}",
                ],
            )
            harness.emit(rows[peer])
        if {"ours", "croma"} <= set(rows):
            ours, croma = rows["ours"], rows["croma"]
            harness.emit(
                {
                    "task": _TASK.value,
                    "compare": "croma / ours",
                    "speedup_first_call": croma["first_s"] / ours["first_s"],
                    "speedup": croma["median_s"] / ours["median_s"],
                    "memory_ratio": croma["peak_bytes"] / ours["peak_bytes"],
                    "abs_difference": [
                        abs(a - b) for a, b in zip(croma["values"], ours["values"], strict=True)
                    ],
                }
            )


if __name__ == "__main__":
    app.run(main)
