"""Every method of robustification on PathoROB's rows, before and after: tables in Markdown.

Reads embeddings with the reference's rows (``embeddings_<dataset>.npz`` with ``features``,
``slide_id`` and ``patch_id``), robustifies them with each method, and evaluates each beside its
parent. What is done is kept: give the same command again after an interruption. A method whose fit
is refused is named below the tables.
"""

import os

import numpy as np
from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.privacy import without_folders
from pathorob_jax.data import manifest as manifests
from pathorob_jax.embeddings.import_formats import import_embeddings
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.report.markdown import format_robustification
from pathorob_jax.results.result_files import read_result
from pathorob_jax.robustify import methods
from pathorob_jax.robustify.run import robustify

MODEL = "golden"
METADATA = {
    "camelyon": ("camelyon.csv",),
    "tcga": ("tcga_2x2.csv", "tcga_4x4.csv"),
    "tolkach_esca": ("tolkach_esca.csv", "tolkach_esca_reduced.csv"),
}
ROBUSTIFICATION = "robustification"
# Needs the same tissue under several acquisitions, which these rows do not have.
LEFT_OUT = (methods.PAIRED,)

_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "Folder of the .npz files.", required=True)
_METADATA_DIR = flags.DEFINE_string(
    "metadata_dir", None, "Folder of PathoROB's metadata files.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of stores, results, tables.", required=True)
_DATASETS = flags.DEFINE_list("dataset", sorted(METADATA), "Datasets.")
_METHODS = flags.DEFINE_list(
    "methods", [m for m in methods.METHODS if m not in LEFT_OUT], "Methods."
)
_FIT_ON = flags.DEFINE_list("fit_on", ["all", "cross_fit"], "What each method is fitted on.")
_METRICS = flags.DEFINE_list(
    "metrics", ["robustness_index"], "Metrics that are paired before and after."
)

RESUME = "what is done is kept; give the same command again"


def main() -> None:
    """Import, robustify, evaluate, and write ``<output>/robustification.md``."""
    root, results = (files.join(_OUTPUT.value, name) for name in ("embeddings", "results"))
    refused = []
    for dataset in _DATASETS.value:
        parent = _import(dataset, root)
        _evaluate(parent, _METRICS.value, results)
        for method in _METHODS.value:
            for fit_on in _FIT_ON.value:
                logging.info("%s, %s, fit on %s", dataset, method, fit_on)
                try:
                    [store] = robustify(
                        [(parent.path, MODEL, dataset)],
                        root=root,
                        method=method,
                        fit_on=fit_on,
                        robustifier=files.join(root, f"{method}-{fit_on}", dataset),
                    )
                except InputError as error:
                    refused.append(f"{dataset}, {method}, fit on {fit_on}: {error}")
                    continue
                _evaluate(store, [*_METRICS.value, ROBUSTIFICATION], results)
    lines = [format_robustification(results), *(f"Refused: {text}\n" for text in refused)]
    path = files.join(_OUTPUT.value, "robustification.md")
    files.write_bytes(path, "\n".join(lines).encode())
    logging.info("%s", path)


def _import(dataset: str, root: str) -> Store:
    """The embeddings of a dataset as a store of the rows of its metadata files."""
    path = files.join(root, MODEL, dataset)
    if files.exists(path):
        return open_store(path)
    paths = [files.join(_METADATA_DIR.value, name) for name in METADATA[dataset]]
    rows = manifests.union([manifests.read_manifest(path) for path in paths])
    with np.load(files.join(_EMBEDDINGS.value, f"embeddings_{dataset}.npz")) as arrays:
        pairs = zip(arrays["slide_id"].tolist(), arrays["patch_id"].tolist(), strict=True)
        places = {(str(slide), str(patch)): i for i, (slide, patch) in enumerate(pairs)}
        keys = zip(rows.column(manifests.SLIDE), rows.column(manifests.PATCH), strict=True)
        features = arrays["features"][[places[key] for key in keys]].astype(np.float32)
    source = files.join(_OUTPUT.value, f"{dataset}.npy")
    os.makedirs(_OUTPUT.value, exist_ok=True)
    np.save(source, features)
    return import_embeddings(source, rows, root=root, model=MODEL, dataset=dataset)


def _evaluate(store: Store, metrics: list[str], results: str) -> None:
    """Compute the metrics that have no record of this store yet."""
    left = [name for name in metrics if not _is_done(store, name, results)]
    if left:
        evaluate_store(store, metrics=left, metadata_dir=_METADATA_DIR.value, output=results)


def _is_done(store: Store, metric: str, results: str) -> bool:
    *_, model, dataset = store.path.split("/")
    path = files.join(results, model, dataset, f"{metric}.json")
    if not files.exists(path):
        return False
    found = read_result(path).provenance["store"]["identity"]
    return bool(found == without_folders(dict(store.info["identity"])))


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
