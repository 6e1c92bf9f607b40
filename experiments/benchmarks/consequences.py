"""Slide-level prediction, retrieval and feature space of PathoROB's rows: tables in Markdown.

Reads embeddings with the reference's rows (see ``golden_stores``) and evaluates them. What is done
is kept: give the same command again after an interruption, and it goes on with the repetitions that
are missing.
"""

from absl import flags, logging

from experiments.benchmarks.golden_stores import METADATA, open_golden
from pathorob_jax.cli import start
from pathorob_jax.core import files
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import ApdSettings, Settings, SlideSettings
from pathorob_jax.report.markdown import format_metrics
from pathorob_jax.results import registry

METRICS = ("slide_prediction", "retrieval", "feature_space")

_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "Folder of the .npz files.", required=True)
_METADATA_DIR = flags.DEFINE_string(
    "metadata_dir", None, "Folder of PathoROB's metadata files.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of stores, results, tables.", required=True)
_DATASETS = flags.DEFINE_list("dataset", sorted(METADATA), "Datasets.")
_METRICS = flags.DEFINE_list(
    "metrics", [name for name in METRICS if name in registry.KINDS], "Metrics."
)
_PRESETS = flags.DEFINE_list("presets", list(SlideSettings.presets), "Classifiers of slides.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Epochs of networks.", lower_bound=1)
_REPETITIONS = flags.DEFINE_integer("repetitions", None, "Draws of the splits.", lower_bound=1)

RESUME = "what is done is kept; give the same command again"


def main() -> None:
    """Import, evaluate, and write ``<output>/consequences.md``."""
    results = files.join(_OUTPUT.value, "results")
    settings = Settings(
        apd=ApdSettings(repetitions=_REPETITIONS.value),
        slide_prediction=SlideSettings(presets=tuple(_PRESETS.value), epochs=_EPOCHS.value),
    )
    for metric in _METRICS.value:
        for dataset in _DATASETS.value:
            logging.info("%s on %s", metric, dataset)
            store = open_golden(
                dataset,
                embeddings=_EMBEDDINGS.value,
                metadata_dir=_METADATA_DIR.value,
                output=_OUTPUT.value,
            )
            # Finished tasks are kept, and a record of other settings is replaced.
            evaluate_store(
                store,
                metrics=[metric],
                metadata_dir=_METADATA_DIR.value,
                output=results,
                settings=settings,
            )
    path = files.join(_OUTPUT.value, "consequences.md")
    files.write_bytes(path, format_metrics(results, _METRICS.value).encode())
    logging.info("%s", path)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
