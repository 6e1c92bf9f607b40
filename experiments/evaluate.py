"""Compute metrics of stored embeddings: stores -> <output>/<model>/<dataset>/<metric>.json."""

from typing import cast

from absl import flags, logging

from experiments import common
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.embeddings.store import find_datasets, open_store
from pathorob_jax.evaluation import run
from pathorob_jax.evaluation.apd import HEADS, ApdSettings
from pathorob_jax.evaluation.clustering_score import ClusteringSettings
from pathorob_jax.evaluation.embedding_maps import MapSettings
from pathorob_jax.evaluation.neighborhood import DesignChoice, Settings
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.kernels.neighbors.search import DEFAULT_BUDGET_BYTES, Precision
from pathorob_jax.metrics.clustering_score import METRICS as CLUSTERING_METRICS
from pathorob_jax.metrics.clustering_score import Metric as ClusteringMetric
from pathorob_jax.results import result_files

_EMBEDDINGS = flags.DEFINE_list(
    "embeddings",
    None,
    "<root>/<model>/<dataset>, or <root>/<model> for several datasets; several models "
    "comma-separated.",
    required=True,
)
_DATASET = flags.DEFINE_list(
    "dataset", [], "Datasets; unset: all in --embeddings. PathoROB's names select its protocols."
)
_METADATA_DIR = flags.DEFINE_string(
    "metadata_dir", None, "Folder of PathoROB's metadata files, which its datasets need."
)
_MANIFEST = flags.DEFINE_string(
    "manifest", None, "Rows and labels for a dataset of one's own; unset: the store's."
)
_OUTPUT = flags.DEFINE_string("output", None, "Root of all results.", required=True)
_METRICS = flags.DEFINE_list(
    "metrics", ["robustness_index"], f"Metrics to compute, of {', '.join(run.METRICS)}."
)
_K = flags.DEFINE_string(
    "k", "default", "Neighbours: default (the published k), auto (best of the k grid) or a number."
)
_DESIGN = flags.DEFINE_enum(
    "design", "auto", ["auto", "all", "paired"], "auto: the dataset's protocol, else all."
)
_MAX_PATCHES = flags.DEFINE_integer(
    "max_patches_per_combi", None, "First n patches of each subset, class, centre.", lower_bound=1
)
_GROUP_COLUMN = flags.DEFINE_string(
    "group_column", SLIDE, "Rows that share its value are never neighbours."
)
_MIN_CELL = flags.DEFINE_integer(
    "min_cell_size",
    Settings.min_cell_size,
    "--design=paired on a manifest without subsets: patches that each cell of a 2 x 2 subset has.",
    lower_bound=1,
)
_NEIGHBORS = flags.DEFINE_string(
    "neighbors", None, "Neighbours found elsewhere (.npy, .npz); unset: searched for, and kept."
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    Settings.precision,
    ["float32", "fast"],
    "Of the search: float32, or bfloat16 candidates whose order is proved in float32.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the bootstrap over slides and of permutations.")
_DRAWS = flags.DEFINE_integer("draws", 2000, "Draws of the bootstrap.", lower_bound=1)
_REPETITIONS = flags.DEFINE_integer(
    "repetitions", None, "apd: how often splits are drawn; unset: the protocol's 20.", lower_bound=1
)
_STOPPING = flags.DEFINE_enum(
    "stopping",
    ApdSettings.stopping,
    ["reference", "converged"],
    "apd: the linear probe stops as scikit-learn does in the reference, or converged.",
)
_HEADS = flags.DEFINE_list(
    "heads", [], f"apd: other classifiers on the same splits, of {', '.join(HEADS)}."
)
_APD_CLASSES = flags.DEFINE_list(
    "apd_classes", None, "apd, dataset of one's own: classes of the splits; unset: all."
)
_APD_CENTERS = flags.DEFINE_list(
    "apd_centers",
    None,
    "apd, dataset of one's own: centres of the splits, the others are out of domain; unset: chosen "
    "by what they hold.",
)
_SLIDES_PER_CELL = flags.DEFINE_integer(
    "slides_per_cell",
    None,
    "apd, dataset of one's own: training slides of each class and centre; unset: as many as fit.",
    lower_bound=1,
)
_TRIALS = flags.DEFINE_integer(
    "trials",
    None,
    "clustering_score: fits at the chosen K; unset: the protocol's 50.",
    lower_bound=1,
)
_K_MIN = flags.DEFINE_integer(
    "k_min", None, "clustering_score: least number of clusters; unset: 2.", lower_bound=1
)
_K_MAX = flags.DEFINE_integer(
    "k_max", None, "clustering_score: largest number of clusters; unset: 30.", lower_bound=1
)
_CLUSTERING_METRIC = flags.DEFINE_enum(
    "clustering_metric",
    ClusteringSettings.metric,
    list(CLUSTERING_METRICS),
    "clustering_score: the distance.",
)
_MAPS = flags.DEFINE_bool(
    "maps", False, "Also lay the embeddings out in the plane (PCA, t-SNE), for the report."
)
_BUDGET_MB = flags.DEFINE_integer(
    "budget_mb", DEFAULT_BUDGET_BYTES // 2**20, "Memory for blocks of scores, MiB.", lower_bound=1
)
_LABEL_COLUMN, _CENTER_COLUMN = common.define_columns(
    "; of several, comma-separated (scanner,stain), each gets results of its own, "
    "<dataset>@<column>"
)
flags.adopt_module_key_flags(common)


def main() -> None:
    """Flags -> one ``evaluate`` per store."""
    confounders = _CENTER_COLUMN.value.split(",")
    settings = Settings(
        k=_parse_k(_K.value),
        design=cast(DesignChoice, _DESIGN.value),
        max_patches_per_combi=_MAX_PATCHES.value,
        columns={CLASS: _LABEL_COLUMN.value, CENTER: confounders[0]},
        confounders=tuple(confounders) if len(confounders) > 1 else (),
        group_column=_GROUP_COLUMN.value,
        min_cell_size=_MIN_CELL.value,
        neighbors=_NEIGHBORS.value,
        precision=cast(Precision, _PRECISION.value),
        seed=_SEED.value,
        draws=_DRAWS.value,
        budget_bytes=_BUDGET_MB.value * 2**20,
    )
    stores = [found for path in _EMBEDDINGS.value for found in find_datasets(path, _DATASET.value)]
    for path, model, dataset in stores:
        written = run.evaluate(
            open_store(path),
            model=model,
            dataset=dataset,
            root=_OUTPUT.value,
            metrics=_METRICS.value,
            metadata_dir=_METADATA_DIR.value,
            manifest=_MANIFEST.value,
            settings=settings,
            apd=ApdSettings(
                repetitions=_REPETITIONS.value,
                stopping=cast(Stopping, _STOPPING.value),
                heads=tuple(_HEADS.value),
                classes=tuple(_APD_CLASSES.value) if _APD_CLASSES.value else None,
                centers=tuple(_APD_CENTERS.value) if _APD_CENTERS.value else None,
                slides_per_cell=_SLIDES_PER_CELL.value,
            ),
            clustering=ClusteringSettings(
                trials=_TRIALS.value,
                k_min=_K_MIN.value,
                k_max=_K_MAX.value,
                metric=cast(ClusteringMetric, _CLUSTERING_METRIC.value),
            ),
            maps=MapSettings() if _MAPS.value else None,
        )
        for result in map(result_files.read_result, written):
            logging.info("%s", result_files.headline(result))


def _parse_k(text: str) -> int | str:
    if text in ("default", "auto"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"k: expected default, auto or a positive number, found {text!r}.")
    return int(text)


if __name__ == "__main__":
    common.run_main(main)
