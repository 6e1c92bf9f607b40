"""Embeddings with the reference's rows as stores, and their metrics: what benchmarks start from.

The embeddings are files ``embeddings_<dataset>.npz`` with ``features``, ``slide_id`` and
``patch_id``. What is done is kept.
"""

import os

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.data import manifest as manifests
from pathorob_jax.embeddings.import_formats import import_embeddings
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.results.result_files import read_result

MODEL = "golden"
METADATA = {
    "camelyon": ("camelyon.csv",),
    "tcga": ("tcga_2x2.csv", "tcga_4x4.csv"),
    "tolkach_esca": ("tolkach_esca.csv", "tolkach_esca_reduced.csv"),
}


def open_golden(dataset: str, *, embeddings: str, metadata_dir: str, output: str) -> Store:
    """The embeddings of a dataset as a store of the rows of its metadata files.

    Args:
        dataset: of ``METADATA``.
        embeddings: folder of the ``.npz`` files.
        metadata_dir: folder of the metadata files.
        output: folder of the stores, in ``embeddings/``, and of what they are made from.
    """
    root = files.join(output, "embeddings")
    path = files.join(root, MODEL, dataset)
    if files.exists(path):
        return open_store(path)
    paths = [files.join(metadata_dir, name) for name in METADATA[dataset]]
    rows = manifests.union([manifests.read_manifest(path) for path in paths])
    with np.load(files.join(embeddings, f"embeddings_{dataset}.npz")) as arrays:
        pairs = zip(arrays["slide_id"].tolist(), arrays["patch_id"].tolist(), strict=True)
        places = {(str(slide), str(patch)): i for i, (slide, patch) in enumerate(pairs)}
        keys = zip(rows.column(manifests.SLIDE), rows.column(manifests.PATCH), strict=True)
        features = arrays["features"][[places[key] for key in keys]].astype(np.float32)
    source = files.join(output, f"{dataset}.npy")
    os.makedirs(output, exist_ok=True)
    np.save(source, features)
    return import_embeddings(source, rows, root=root, model=MODEL, dataset=dataset)


def evaluate_missing(store: Store, metrics: list[str], *, metadata_dir: str, results: str) -> None:
    """Compute the metrics that have no record of this store yet."""
    left = [name for name in metrics if not _is_done(store, name, results)]
    if left:
        evaluate_store(store, metrics=left, metadata_dir=metadata_dir, output=results)


def _is_done(store: Store, metric: str, results: str) -> bool:
    *_, model, dataset = store.path.split("/")
    path = files.join(results, model, dataset, f"{metric}.json")
    if not files.exists(path):
        return False
    found = read_result(path).provenance["store"]["identity"]
    return bool(found == without_folders(dict(store.info["identity"])))
