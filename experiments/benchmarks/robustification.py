"""Every method of robustification on PathoROB's rows, before and after: tables in Markdown.

Reads embeddings with the reference's rows (``embeddings_<dataset>.npz`` with ``features``,
``slide_id`` and ``patch_id``), robustifies them with each method, and evaluates each beside its
parent. What is done is kept: give the same command again after an interruption. A method whose fit
is refused is named below the tables.
"""

from absl import flags, logging

from experiments.benchmarks.golden_stores import METADATA, MODEL, evaluate_missing, open_golden
from pathorob_jax.cli import start
from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.report.markdown import format_robustification
from pathorob_jax.robustify import methods
from pathorob_jax.robustify.run import robustify

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
    places = {"metadata_dir": _METADATA_DIR.value, "results": results}
    refused = []
    for dataset in _DATASETS.value:
        parent = open_golden(
            dataset,
            embeddings=_EMBEDDINGS.value,
            metadata_dir=_METADATA_DIR.value,
            output=_OUTPUT.value,
        )
        evaluate_missing(parent, _METRICS.value, **places)
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
                evaluate_missing(store, [*_METRICS.value, ROBUSTIFICATION], **places)
    lines = [format_robustification(results), *(f"Refused: {text}\n" for text in refused)]
    path = files.join(_OUTPUT.value, "robustification.md")
    files.write_bytes(path, "\n".join(lines).encode())
    logging.info("%s", path)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
