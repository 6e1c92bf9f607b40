"""Neighbour metrics on rows of Camelyon's shape: ours, its peers, and the cost of the products.

Each peer is measured in a separate process on the same arrays: wall time of the first call, median
of the other calls, and peak resident memory. ``matmul`` is the time of all N^2 scores without a
selection.

- ``--task=search``: the k nearest neighbours from other slides by ours (float32 and fast),
  scikit-learn, FAISS, torch and, on a GPU, cuVS. All but torch, which masks them, fetch k + (rows
  of the largest slide) neighbours and drop those of the query's slide afterwards.
- ``--task=robustness_index``: only the index at one k, against croma's.
- ``--task=all``: index, MaRI and CRoMa from one search, with the curve over k up to 100, the votes
  for class and centre, and 2,000 bootstrap draws of each, against croma's three calls.
  ``ours_again`` is a second process, which reuses the programs that the first has compiled.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks import gpu_peers, harness
from experiments.benchmarks.camelyon_rows import make_arrays, multiply
from pathorob_jax.core import aligned, cost, devices
from pathorob_jax.data import protocols
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.data.row_views import make_scopes
from pathorob_jax.embeddings.embed_in_memory import store_in_memory
from pathorob_jax.evaluation.margins import make_margins
from pathorob_jax.evaluation.neighbor_graph import SearchInput, find_graph
from pathorob_jax.evaluation.neighborhood import Neighborhood, tally_scopes
from pathorob_jax.evaluation.robustness_index import make_robustness_index
from pathorob_jax.evaluation.run import Evaluation, Request
from pathorob_jax.kernels.neighbors.search import DEFAULT_BUDGET_BYTES, find_neighbors
from pathorob_jax.metrics import robustness_index as ri
from pathorob_jax.metrics.neighbor_tally import available_neighbors, tally_neighbors

_SAMPLES = flags.DEFINE_integer("samples", 20_400, "Rows N (a multiple of 68).", lower_bound=68)
_DIM = flags.DEFINE_integer("dim", 3_072, "Dimensions D.", lower_bound=1)
_K = flags.DEFINE_integer("k", 11, "Neighbours.", lower_bound=1)
_TASK = flags.DEFINE_enum(
    "task", "robustness_index", ["search", "robustness_index", "all"], "What to do."
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Calls after the first.", lower_bound=0)
_PEERS = flags.DEFINE_list("peers", [], "Rows to measure; empty: all of the task.")
_PEER = flags.DEFINE_string("peer", None, "Measure this one on --folder (internal).")
_FOLDER = flags.DEFINE_string("folder", None, "Arrays (internal).")

MODULE = "experiments.benchmarks.neighbors"
PEERS = {
    "search": ["ours", "ours_fast", "scikit-learn", "faiss", "torch", "cuvs", "matmul"],
    "robustness_index": ["ours", "croma", "matmul"],
    "all": ["ours", "ours_again", "croma"],
}


def measure(peer: str, folder: str, k: int, repeats: int, task: str) -> dict[str, object]:
    """Time one peer on the arrays of a folder."""
    stored = np.load(os.path.join(folder, "embeddings.npy"), mmap_mode="r")
    x = aligned.empty_aligned(stored.shape)  # like the arrays that a store returns
    x[:] = stored
    del stored
    labels = np.load(os.path.join(folder, "labels.npy"))
    n, dim = x.shape
    answer: list[Any] = []
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        ("search", "ours"): lambda: find_neighbors(x, labels[2], k=k).indices,
        ("search", "ours_fast"): lambda: (
            find_neighbors(x, labels[2], k=k, precision="fast").indices
        ),
        ("search", "scikit-learn"): lambda: search_sklearn(x, labels[2], k),
        ("search", "faiss"): lambda: search_faiss(x, labels[2], k),
        ("search", "torch"): lambda: search_torch(x, labels[2], k),
        ("search", "cuvs"): lambda: search_cuvs(x, labels[2], k),
        ("robustness_index", "ours"): lambda: measure_index(x, labels, k),
        ("robustness_index", "croma"): lambda: measure_croma(x, labels, k, ("RI",)),
        ("all", "ours"): lambda: measure_all(x, labels, k),
        ("all", "ours_again"): lambda: measure_all(x, labels, k),
        ("all", "croma"): lambda: measure_croma(x, labels, k, ("RI", "MaRI", "CRoMa")),
    }
    call = calls.get((task, peer), lambda: multiply(x))
    slow = peer in ("croma", "scikit-learn")
    times = harness.time_calls(lambda: answer.append(call()), repeats=0 if slow else repeats)
    line: dict[str, object] = {
        "task": task,
        "peer": peer,
        "n": n,
        "dim": dim,
        "k": k,
        **times,
        "gflop_per_s": 2 * n * n * dim / float(times["median_s"]) / 1e9,
        "peak_bytes": cost.peak_bytes(),
        "embeddings_bytes": x.nbytes,
        "device": jax.devices()[0].device_kind,
    }
    if task == "search" and answer[-1] is not None:
        np.save(os.path.join(folder, f"{peer}.npy"), answer[-1])
    elif answer[-1] is not None:
        line["values"] = answer[-1]
    return line


def measure_index(x: np.ndarray, labels: np.ndarray, k: int) -> list[float]:
    """The robustness index at one k."""
    bio, center, slide = labels
    indices = find_neighbors(x, slide, k=k).indices
    tally = tally_neighbors(indices, bio, center, slide, n_bio=2, n_center=2, k_grid=[k])
    return [float(ri.measure([tally], k).companions.robustness_index)]


def measure_all(x: np.ndarray, labels: np.ndarray, k: int) -> list[float]:
    """Index, MaRI and CRoMa with curves, votes and intervals, computed as in ``evaluate``."""
    bio, center, slide = labels
    view = as_manifest(
        {
            "slide_id": slide.astype(str),
            "patch_id": np.arange(len(slide)).astype(str),
            "biological_class": [f"class{i}" for i in bio],
            "medical_center": [f"center{i}" for i in center],
        }
    )
    [scope] = make_scopes(view, "all")
    searched = SearchInput(x, np.arange(len(x)), view.factorize("slide_id").ids, [scope])
    grid = protocols.k_grid(101)
    mesh = devices.make_mesh(jax.local_devices())
    graph = find_graph(
        searched, k=grid[-1], m=5, precision="float32", budget_bytes=DEFAULT_BUDGET_BYTES, mesh=mesh
    )
    neighborhood = Neighborhood(
        design="all",
        scopes=tally_scopes(graph, searched, grid),
        searched=searched,
        store_rows=np.arange(len(x)),
        probe_group_id=searched.group_id,
        probe_seed=0,
        k=k,
        k_rule="given",
        k_available=available_neighbors(searched.group_id),
        grid=grid,
        n_slides=int(searched.group_id.max()) + 1,
        equal_rows=0.0,
        collapsed=False,
        seed=0,
        draws=2000,
        draws_key="",
        row_warnings=[],
        provenance={"neighbors": graph.info},
    )
    request = Request("benchmark", "rows", keep_graph=False)
    evaluation = Evaluation(store_in_memory(x, view, "benchmark"), request, "rows")
    # This replaces the search of a protocol, because the curve extends beyond the operating k.
    vars(evaluation)["_searched"] = neighborhood
    index = make_robustness_index(evaluation).record
    margins = make_margins(evaluation).record
    return [index.robustness_index, margins.mari, margins.croma]


def measure_croma(x: np.ndarray, labels: np.ndarray, k: int, names: Sequence[str]) -> list[float]:
    """The calls from croma's documentation."""
    import croma
    import pandas as pd

    bio, center, slide = labels
    columns = {"sample_id": np.arange(len(x)), "group_id": slide, "label": bio, "center": center}
    frame = pd.DataFrame(columns).astype(str)
    frame["image_path"] = frame["sample_id"]
    out = []
    for name in names:
        more = {} if name == "CRoMa" else {"k_candidates": [k]}
        metric = getattr(croma, name)
        out.append(float(metric.compute(x, frame, confounder_column="center", **more).value))
    return out


def count_fetched(slide: np.ndarray, k: int) -> int:
    """Neighbours of which k are from other slides, whatever the slide."""
    return k + int(np.bincount(slide).max())


def drop_own_slide(candidates: np.ndarray, slide: np.ndarray, k: int) -> np.ndarray:
    """The first k candidates of each row that are from other slides."""
    other = slide[candidates] != slide[:, None]
    order = np.argsort(~other, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, axis=1)


def search_sklearn(x: np.ndarray, slide: np.ndarray, k: int) -> np.ndarray:
    """scikit-learn's brute-force search."""
    from sklearn.neighbors import NearestNeighbors

    fetched = count_fetched(slide, k)
    search = NearestNeighbors(n_neighbors=fetched, metric="cosine", algorithm="brute").fit(x)
    return drop_own_slide(search.kneighbors(x, return_distance=False), slide, k)


def search_faiss(x: np.ndarray, slide: np.ndarray, k: int) -> np.ndarray:
    """FAISS's exact flat index of unit vectors."""
    import faiss

    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(unit)
    return drop_own_slide(index.search(unit, count_fetched(slide, k))[1], slide, k)


def search_cuvs(x: np.ndarray, slide: np.ndarray, k: int) -> np.ndarray:
    """Brute-force search by cuVS."""
    return drop_own_slide(gpu_peers.search_cuvs(x, count_fetched(slide, k)), slide, k)


def search_torch(x: np.ndarray, slide: np.ndarray, k: int) -> np.ndarray:
    """torch: products and topk in blocks of rows, with the query's slide masked."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    unit = torch.nn.functional.normalize(torch.from_numpy(x).to(device))
    slides = torch.from_numpy(slide).to(device)
    out = []
    for start in range(0, len(x), 1024):
        scores = unit[start : start + 1024] @ unit.T
        scores[slides[start : start + 1024, None] == slides[None]] = -torch.inf
        out.append(scores.topk(k).indices.cpu())
    return torch.cat(out).numpy()


def agree(folder: str, peer: str) -> float | None:
    """Share of rows with the same set of neighbours as ours; None if there is no result."""
    paths = [os.path.join(folder, f"{name}.npy") for name in ("ours", peer)]
    if not all(map(os.path.exists, paths)):
        return None
    ours, theirs = (np.sort(np.load(path), axis=1) for path in paths)
    return float((ours == theirs).all(1).mean())


def main(argv: list[str]) -> None:
    """Measure one peer, or all peers in separate processes."""
    del argv
    if _PEER.value and _FOLDER.value:
        harness.answer(measure(_PEER.value, _FOLDER.value, _K.value, _REPEATS.value, _TASK.value))
        return
    with tempfile.TemporaryDirectory() as folder:
        harness.keep_programs(folder)
        make_arrays(_SAMPLES.value, _DIM.value, folder)
        rows = {}
        for peer in _PEERS.value or PEERS[_TASK.value]:
            if reason := gpu_peers.why_left_out(peer):
                harness.emit({"task": _TASK.value, "peer": peer, "skipped": reason})
                continue
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
            rows[peer]["agreement"] = agree(folder, peer)
            harness.emit(rows[peer])
        if {"ours", "croma"} <= set(rows):
            ours, croma = rows["ours"], rows["croma"]
            harness.emit(
                {
                    "task": _TASK.value,
                    "compare": "croma / ours",
                    **harness.compare_first_calls(rows, "croma"),
                    "speedup": croma["median_s"] / ours["median_s"],
                    "memory_ratio": croma["peak_bytes"] / ours["peak_bytes"],
                    "abs_difference": [
                        abs(a - b) for a, b in zip(croma["values"], ours["values"], strict=True)
                    ],
                }
            )


if __name__ == "__main__":
    app.run(main)
