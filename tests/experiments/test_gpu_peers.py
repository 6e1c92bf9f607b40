"""Peers on GPUs, called as their packages say: stand-ins with the same signatures, on the host."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from sklearn.cluster import KMeans

from experiments.benchmarks import gpu_peers

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In a process of its own: the flags of a benchmark have the names of those of the scripts.
STAND_INS = """
import json, sys, types
import numpy as np
import sklearn.cluster, sklearn.metrics
from absl import flags

def add(name, **members):
    sys.modules[name] = module = types.ModuleType(name)
    vars(module).update(members)
    if "." in name:
        setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)

class OnDevice:
    def __init__(self, a):
        self.a = a
    def copy_to_host(self):
        return self.a

class OnGpu(sklearn.cluster.KMeans):
    # As cuML's: only keywords, and an output type.
    def __init__(self, *, n_clusters, random_state, init, n_init, output_type=None):
        assert output_type == "numpy"
        self.output_type = output_type
        super().__init__(n_clusters, random_state=random_state, init=init, n_init=n_init)

def build(dataset, metric="sqeuclidean"):
    assert metric == "cosine"
    return dataset.a / np.linalg.norm(dataset.a, axis=1, keepdims=True)

def search(index, queries, k):
    unit = build(queries, "cosine")
    order = np.argsort(-unit @ index.T, axis=1, kind="stable")[:, :k]
    return OnDevice(None), OnDevice(order)

add("pylibraft")
add("pylibraft.common", device_ndarray=OnDevice)
add("cuvs")
add("cuvs.neighbors")
add("cuvs.neighbors.brute_force", build=build, search=search)
add("cuml")
add("cuml.cluster", KMeans=OnGpu)
add("cuml.metrics")
add("cuml.metrics.cluster", silhouette_score=sklearn.metrics.silhouette_score)
"""
CLUSTERING = """
from experiments.benchmarks import clustering
flags.FLAGS(["", "--k_max=4", "--trials=3", "--selection_inits=2"])
clustering.make_arrays(80, 16, 3, ".")
found = [clustering.measure(peer, ".") for peer in ("cuml", "sklearn")]
print(json.dumps([{name: one[name] for name in ("k", "silhouettes", "ari")} for one in found]))
"""
SEARCH = """
from experiments.benchmarks import camelyon_rows, neighbors
camelyon_rows.make_arrays(68 * 6, 512, ".")
for peer in ("ours", "cuvs"):
    neighbors.measure(peer, ".", 11, 0, "search")
print(json.dumps(neighbors.agree(".", "cuvs")))
"""


def run(code: str, folder: pathlib.Path) -> object:
    """What the code prints, with the stand-ins."""
    done = subprocess.run(
        [sys.executable, "-c", STAND_INS + code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_cuml_takes_scikit_learns_place_in_the_loop(tmp_path):
    cuml, sklearn = run(CLUSTERING, tmp_path)
    assert cuml == sklearn
    assert len(cuml["k"]) == 3  # pairs of three centres


@pytest.mark.slow
@pytest.mark.multiprocess
def test_cuvs_finds_the_neighbours_of_other_slides(tmp_path):
    assert run(SEARCH, tmp_path) == 1.0


@pytest.mark.parametrize("budget", [gpu_peers.BATCH_BYTES, 3 * 200 * 8 * 4])
def test_flash_kmeans_runs_from_random_rows(monkeypatch, budget):
    """Each run is Lloyd's from its own rows, also where a batch holds three of them."""
    torch = pytest.importorskip("torch")
    sizes = []

    def lloyd(x, n_clusters, max_iters, tol, init_centroids):
        sizes.append(len(x))
        out = []
        for rows, centers in zip(x.numpy(), init_centroids.numpy(), strict=True):
            fit = KMeans(n_clusters, init=centers, n_init=1, max_iter=max_iters, tol=tol)
            out.append(fit.fit(rows).labels_)
        return torch.from_numpy(np.stack(out)), init_centroids, max_iters

    if importlib.util.find_spec("flash_kmeans") is None:
        stand_in = types.ModuleType("flash_kmeans")
        stand_in.batch_kmeans_Euclid = lloyd
        monkeypatch.setitem(sys.modules, "flash_kmeans", stand_in)
    monkeypatch.setattr(gpu_peers, "BATCH_BYTES", budget)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8)) + 4 * rng.standard_normal((5, 8))[rng.integers(0, 5, 200)]
    x = x.astype(np.float32)
    labels = gpu_peers.cluster_with_flash(x, 5, 7, seed=3, iterations=30)
    assert labels.shape == (7, 200)
    if sizes:
        assert sizes == ([7] if budget == 2**33 else [3, 3, 1])
    drawn = np.random.default_rng(3)
    for run_labels in labels:
        start = x[drawn.choice(200, 5, replace=False)]
        fit = KMeans(5, init=start, n_init=1, max_iter=30, tol=0).fit(x)
        np.testing.assert_array_equal(run_labels, fit.labels_)


def test_a_peer_that_cannot_be_measured_is_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(gpu_peers, "visible_gpus", lambda: 0)
    monkeypatch.setattr(gpu_peers.importlib.util, "find_spec", lambda name: None)
    assert gpu_peers.why_left_out("ours") is None
    assert gpu_peers.why_left_out("sklearn") is None
    assert gpu_peers.why_left_out("cuvs") == "not installed"
    assert gpu_peers.why_left_out("faiss") == "not installed"
    monkeypatch.setattr(gpu_peers.importlib.util, "find_spec", lambda name: name)
    assert gpu_peers.why_left_out("faiss") is None
    assert gpu_peers.why_left_out("flash_kmeans") == "needs an NVIDIA GPU"
    monkeypatch.setattr(gpu_peers, "visible_gpus", lambda: 1)
    assert gpu_peers.why_left_out("flash_kmeans") is None
