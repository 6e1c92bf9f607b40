"""Compute metrics of stored embeddings: stores -> <output>/<model>/<dataset>/<metric>.json.

A metric that fails does not cost the others: the run ends with a table of what is done and what
failed and why, and with exit code 1 if anything failed.
"""

from typing import TYPE_CHECKING, cast

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core import checks, files, folder_names, hosts
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE
from pathorob_jax.embeddings import store_search
from pathorob_jax.evaluation import early_checks

from . import choices, common

if TYPE_CHECKING:
    from pathorob_jax.evaluation.run_many import Step

_EMBEDDINGS = flags.DEFINE_list(
    "embeddings",
    None,
    "<root> of all stores, <root>/<model> or <root>/<model>/<dataset>; several comma-separated.",
    required=True,
)
_DATASET = flags.DEFINE_list(
    "dataset", [], "Datasets; unset: all in --embeddings. PathoROB's names select its protocols."
)
_METADATA_DIR = flags.DEFINE_string(
    "metadata_dir", None, "Folder of PathoROB's metadata files, which its datasets need."
)
_MANIFEST = flags.DEFINE_string(
    "manifest", None, "Rows and labels of a custom dataset; unset: the store's."
)
_OUTPUT = flags.DEFINE_string("output", None, "Root of all results.", required=True)
_REPORT = flags.DEFINE_string(
    "report", None, "Also write the report of all results to this folder; unset: none."
)
_METRICS = flags.DEFINE_list(
    "metrics", ["robustness_index"], f"Metrics to compute, of {', '.join(choices.METRICS)}."
)
_K = flags.DEFINE_string(
    "k", "default", "Neighbours: default (the published k), auto (best of the k grid) or a number."
)
_DESIGN = flags.DEFINE_enum(
    "design", "auto", choices.DESIGNS, "auto: the dataset's protocol, else all."
)
_MAX_PATCHES = flags.DEFINE_integer(
    "max_patches_per_combi", None, "First n patches of each subset, class, centre.", lower_bound=1
)
_GROUP_COLUMN = flags.DEFINE_string(
    "group_column", SLIDE, "Rows that share its value are never neighbours."
)
_MIN_CELL = flags.DEFINE_integer(
    "min_cell_size",
    None,
    "--design=paired on a manifest without subsets: patches that each cell of a 2 x 2 subset has; "
    f"unset: {choices.MIN_CELL_SIZE}.",
    lower_bound=1,
)
_NEIGHBORS = flags.DEFINE_string(
    "neighbors", None, "Neighbours found elsewhere (.npy, .npz); unset: searched for, and kept."
)
_PRECISION = flags.DEFINE_enum(
    "precision",
    choices.PRECISIONS[0],
    choices.PRECISIONS,
    "Search precision: float32, or bfloat16 with the result verified in float32.",
)
_SEARCH = flags.DEFINE_enum(
    "search",
    choices.SEARCHES[0],
    choices.SEARCHES,
    "Where the rows of the neighbour search lie: in memory, in shards over devices (ring), or in a "
    "scratch file in TMPDIR, read in blocks (stream); auto: as size and devices ask.",
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the bootstrap over slides and of permutations.", lower_bound=0
)
_DRAWS = flags.DEFINE_integer(
    "draws", 2000, "Draws of slides for intervals, 200 or more; 0: no intervals.", lower_bound=0
)
_REPETITIONS = flags.DEFINE_integer(
    "repetitions",
    None,
    "splits: how often they are drawn; unset: the protocol's 20.",
    lower_bound=1,
)
_STOPPING = flags.DEFINE_enum(
    "stopping",
    choices.STOPPINGS[0],
    choices.STOPPINGS,
    "apd: the linear probe stops as scikit-learn does in the reference, or converged.",
)
_HEADS = flags.DEFINE_list(
    "heads", [], f"apd: other classifiers on the same splits, of {', '.join(choices.HEADS)}."
)
_APD_CLASSES = flags.DEFINE_list(
    "apd_classes", None, "splits, custom dataset: classes of the splits; unset: all."
)
_APD_CENTERS = flags.DEFINE_list(
    "apd_centers",
    None,
    "splits, custom dataset: centres of the splits, the others are out of domain; unset: chosen "
    "by what they hold.",
)
_SLIDES_PER_CELL = flags.DEFINE_integer(
    "slides_per_cell",
    None,
    "splits, custom dataset: training slides of each class and centre; unset: as many as fit.",
    lower_bound=1,
)
_ROWS_PER_SLIDE = flags.DEFINE_integer(
    "rows_per_slide",
    None,
    "splits, custom dataset: patches of each slide; unset: what gives the most training patches.",
    lower_bound=1,
)
_TEST_SLIDES = flags.DEFINE_integer(
    "test_slides",
    None,
    "splits, custom dataset: slides of each class and centre that only test; unset: 2, or 1 where "
    "there are few.",
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
    choices.CLUSTERING_METRIC,
    choices.CLUSTERING_METRICS,
    "clustering_score: the distance.",
)
_OPTIMISTIC_VOTE = flags.DEFINE_bool(
    "optimistic_vote",
    False,
    "retrieval: also votes that count as right if the class is among the most frequent ones.",
)
_PRESETS = flags.DEFINE_list(
    "presets",
    list(choices.DEFAULT_SLIDE_PRESETS),
    f"slide_prediction: classifiers of slides, of {', '.join(choices.SLIDE_PRESETS)}.",
)
_EPOCHS = flags.DEFINE_integer(
    "epochs",
    None,
    "slide_prediction: epochs of the networks; unset: 20 of gated, 1,000 of xmil.",
    lower_bound=1,
)
_NETWORK_SEEDS = flags.DEFINE_integer(
    "network_seeds",
    1,
    "slide_prediction: networks of different starts for each split; their numbers are averaged.",
    lower_bound=1,
)
_SLIDE_TABLE = flags.DEFINE_string(
    "slide_table",
    None,
    "slide_prediction, custom dataset: slides (CSV, Parquet) with slide_id, and label or time and "
    "event; split (train, validation, test) instead of a schedule. Unset: the patches' classes.",
)
_ADDED_CENTERS = flags.DEFINE_list(
    "added_centers",
    [],
    "slide_prediction: centres of --slide_table without which classifiers are trained as well.",
)
_MAPS = common.define_maps()
_TILES = common.define_tiles()
_HOSTS = common.define_hosts()
_BUDGET_MB = flags.DEFINE_integer(
    "budget_mb", choices.BUDGET_MB, "Memory for blocks of scores, MiB.", lower_bound=1
)
_STOP_ON_FAILURE = flags.DEFINE_bool(
    "stop_on_failure", False, "End with the first metric that fails; unset: go on with the others."
)
_LAYOUT = common.define_layout(
    "pathorob: also write the results of its three metrics as PathoROB does, as "
    "<output>/robustness_index, apd and clustering_score."
)
_LABEL_COLUMN = common.define_label_column()
_CENTER_COLUMN = flags.DEFINE_list(
    "center_column",
    [CENTER],
    "Manifest column of the medical centre; of several, comma-separated (scanner,stain), each gets "
    "separate results, <dataset>@<column>. A name with a comma stands in double quotes.",
)
flags.adopt_module_key_flags(common)


# Flags that do not apply to all metrics, and the metrics that read them.
_SCHEDULE = ("apd", "retrieval", "slide_prediction")
_METRICS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("repetitions", "apd_classes", "apd_centers"), _SCHEDULE),
    **dict.fromkeys(("slides_per_cell", "test_slides"), _SCHEDULE),
    "rows_per_slide": ("apd", "retrieval"),
    "stopping": ("apd", "slide_prediction"),
    "heads": ("apd",),
    **dict.fromkeys(("trials", "k_min", "k_max", "clustering_metric"), ("clustering_score",)),
    "optimistic_vote": ("retrieval",),
    **dict.fromkeys(("presets", "epochs", "network_seeds"), ("slide_prediction",)),
    **dict.fromkeys(("slide_table", "added_centers"), ("slide_prediction",)),
}

# How to go on after an interruption.
RESUME = (
    "what is finished is kept; give the same command of experiments.evaluate again, and it "
    "goes on with the neighbours, repetitions and combinations that are missing"
)


def main() -> None:
    """Turn the flags into one ``evaluate_stores`` call."""
    _check_flags()
    k = common.parse_k(_K.value)
    _check_before_jax(k)
    mesh = common.join_hosts(_HOSTS)
    from pathorob_jax.evaluation.embedding_maps import MapSettings
    from pathorob_jax.evaluation.run_many import evaluate_stores
    from pathorob_jax.evaluation.settings import (
        ApdSettings,
        ClusteringSettings,
        DesignChoice,
        RetrievalSettings,
        SearchChoice,
        Settings,
        SlideSettings,
    )
    from pathorob_jax.kernels.logistic.fit import Stopping
    from pathorob_jax.kernels.neighbors.search import Precision
    from pathorob_jax.metrics.clustering_score import Metric as ClusteringMetric

    confounders = _CENTER_COLUMN.value
    several = len(confounders) > 1
    settings = Settings(
        k=k,
        design=cast(DesignChoice, _DESIGN.value),
        max_patches_per_combi=_MAX_PATCHES.value,
        columns={CLASS: _LABEL_COLUMN.value, CENTER: CENTER if several else confounders[0]},
        confounders=tuple(confounders) if several else (),
        group_column=_GROUP_COLUMN.value,
        min_cell_size=_MIN_CELL.value,
        neighbors=_NEIGHBORS.value,
        precision=cast(Precision, _PRECISION.value),
        search=cast(SearchChoice, _SEARCH.value),
        seed=_SEED.value,
        draws=_DRAWS.value,
        budget_bytes=_BUDGET_MB.value * 2**20,
        apd=ApdSettings(
            repetitions=_REPETITIONS.value,
            stopping=cast(Stopping, _STOPPING.value),
            heads=tuple(_HEADS.value),
            classes=tuple(_APD_CLASSES.value) if _APD_CLASSES.value else None,
            centers=tuple(_APD_CENTERS.value) if _APD_CENTERS.value else None,
            slides_per_cell=_SLIDES_PER_CELL.value,
            rows_per_slide=_ROWS_PER_SLIDE.value,
            test_slides=_TEST_SLIDES.value,
        ),
        clustering_score=ClusteringSettings(
            trials=_TRIALS.value,
            k_min=_K_MIN.value,
            k_max=_K_MAX.value,
            metric=cast(ClusteringMetric, _CLUSTERING_METRIC.value),
        ),
        retrieval=RetrievalSettings(optimistic_vote=_OPTIMISTIC_VOTE.value),
        slide_prediction=SlideSettings(
            presets=tuple(_PRESETS.value),
            epochs=_EPOCHS.value,
            seeds=_NETWORK_SEEDS.value,
            table=_SLIDE_TABLE.value,
            added_centers=tuple(_ADDED_CENTERS.value),
        ),
    )
    run = evaluate_stores(
        _EMBEDDINGS.value,
        output=_OUTPUT.value,
        datasets=_DATASET.value,
        metrics=_METRICS.value,
        settings=settings,
        metadata_dir=_METADATA_DIR.value,
        manifest=_MANIFEST.value,
        maps=MapSettings() if _MAPS.value else None,
        mesh=mesh,
        stop_on_failure=_STOP_ON_FAILURE.value,
        on_step=_tell,
    )
    if len(run.steps) > 1:
        logging.info("done and failed:\n%s", run)
    leads = hosts.leads(mesh)
    if _LAYOUT.value is not None and leads:
        _write_layout({step.model for step in run.steps if step.record is not None})
    if _REPORT.value is not None and run.records and leads:
        from pathorob_jax.report import write

        places = {} if _MAPS.value is None else {"maps": _MAPS.value}
        page = write.write_report(_OUTPUT.value, _REPORT.value, tiles=_TILES.value, **places)
        logging.info("%s", page)
    run.raise_failure()


def _write_layout(models: set[str]) -> None:
    from pathorob_jax.results import pathorob_layout, result_files

    for model in sorted(models):
        outcomes = result_files.read_model_outcomes(_OUTPUT.value, model)
        pathorob_layout.write_tree([o.record for o in outcomes], _OUTPUT.value)


def _tell(number: int, total: int, step: "Step") -> None:
    from pathorob_jax.evaluation.run_many import FAILED

    level = logging.ERROR if step.state == FAILED else logging.INFO
    logging.log(level, "%d of %d: %s", number, total, step.describe())


def _check_flags() -> None:
    """Reject flags of a metric that is not computed."""
    for flag, metrics in _METRICS_OF.items():
        if flags.FLAGS[flag].present and not {*metrics} & {*_METRICS.value}:
            raise UsageError(
                f"{flag}: it belongs to {' and '.join(metrics)}, which "
                f"--metrics={','.join(_METRICS.value)} does not compute; add the metric, or leave "
                "the flag out."
            )
    if _REPORT.value is None and _TILES.value is not None:
        raise UsageError("tiles: they are shown in the report; add --report, or leave it out.")


def _check_before_jax(k: int | str) -> None:
    """Refuse what the work would refuse after an import that takes seconds."""
    early_checks.check_k(k)
    early_checks.check_draws(_DRAWS.value, choices.MIN_DRAWS)
    early_checks.check_confounders(_CENTER_COLUMN.value)
    for names, known, what in (
        (_METRICS.value, choices.METRICS, "metrics"),
        (_HEADS.value, choices.HEADS, "heads"),
        (_PRESETS.value, choices.SLIDE_PRESETS, "presets"),
    ):
        for name in names:
            checks.check_known(name, known, what=what)
    for path, what in (
        (_MANIFEST.value, "manifest"),
        (_SLIDE_TABLE.value, "manifest"),
        (_NEIGHBORS.value, "file"),
        (_TILES.value, "folder"),
        (_METADATA_DIR.value, "folder"),
    ):
        if path is not None:
            files.check_there(path, what)
    places = store_search.find_all(_EMBEDDINGS.value, _DATASET.value, warn=False)
    if _LAYOUT.value is not None:
        folder_names.check_layout_names({p.model for p in places}, choices.LAYOUT_FOLDERS)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
