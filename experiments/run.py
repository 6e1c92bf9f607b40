"""From names of encoders and datasets to a report: fetch, convert, extract, evaluate, report.

What is there and fits is skipped, so that the same command goes on where a killed one stopped. A
step that fails costs only what needs it; the run then ends with a table that says which and why,
and with exit code 1. Without flags: synthetic tiles and three demo encoders, which need no network.
"""

import importlib
from typing import TYPE_CHECKING, cast

from absl import flags, logging

from pathorob_jax.cli import names, start
from pathorob_jax.core import checks
from pathorob_jax.evaluation import early_checks
from pathorob_jax.models import names as model_names

from . import choices, common

if TYPE_CHECKING:
    from pathorob_jax.runs.steps import Converter

_MODEL = flags.DEFINE_list(
    "model",
    [],
    "Encoders, comma-separated; python -m converters.convert --list has the table. Unset, and no "
    f"--spec: {', '.join(choices.RUN_MODELS)}.",
)
_SPEC = flags.DEFINE_list("spec", [], "YAML files of encoders of your own, comma-separated.")
_DATASET = flags.DEFINE_list(
    "dataset",
    [choices.RUN_DATASET],
    "camelyon, tcga, tolkach_esca (fetched), synthetic (drawn), or <name> of a tileset of yours, "
    "<data_dir>/<name>; comma-separated.",
)
_OUTPUT = flags.DEFINE_string(
    "output", "runs", "Local folder of everything: tiles, data, weights, embeddings, ..., report."
)
_PLAN = flags.DEFINE_bool(
    "plan", False, "Say what is there, what would be downloaded and how long it takes, and end."
)
_METRICS = flags.DEFINE_list(
    "metrics",
    list(choices.RUN_METRICS),
    f"Metrics to compute, of {', '.join(choices.METRICS)}.",
)
_K = flags.DEFINE_string(
    "k",
    None,
    "Neighbours: default (the published k), auto or a number; unset: default, and "
    f"{choices.RUN_SYNTHETIC_K} of the synthetic tiles.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of fetched data and tilesets of yours; unset: <output>/data."
)
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Folder of all converted weights; unset: <output>/weights."
)
_CHECKPOINT = flags.DEFINE_list(
    "checkpoint",
    [],
    "Checkpoints that are here already, <model>=<file or folder>, comma-separated; unset: from the "
    "Hugging Face hub.",
)
_PRESET = flags.DEFINE_enum(
    "preset", "authors", choices.PRESETS, "pathorob: its pooling and preprocessing, where known."
)
_BATCH_SIZE = common.define_batch_size()
_WORKERS = common.define_workers()
_ON_BAD_IMAGE = common.define_on_bad_image("the dataset fails")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace weights and stores of another configuration."
)
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is finished is kept; give the same command of experiments.run again"


def main() -> None:
    """Turn the flags into one ``run`` or ``make_plan`` call."""
    k = None if _K.value is None else common.parse_k(_K.value)
    if k is not None:
        early_checks.check_k(k)
    for name in _MODEL.value:
        model_names.check_name(name)
    for metric in _METRICS.value:
        checks.check_known(metric, choices.METRICS, what="metrics")
    from pathorob_jax.data.tile_batches import OnBadImage
    from pathorob_jax.runs.execute import run
    from pathorob_jax.runs.plan import make_plan
    from pathorob_jax.runs.request import make_request

    request = make_request(
        output=_OUTPUT.value,
        models=_MODEL.value,
        spec_files=_SPEC.value,
        datasets=_DATASET.value,
        metrics=_METRICS.value,
        k=k,
        data_dir=_DATA_DIR.value,
        weights_dir=_WEIGHTS.value,
        checkpoints=_CHECKPOINT.value,
        preset=_PRESET.value,
        batch_size=_BATCH_SIZE.value,
        workers=_WORKERS.value,
        on_bad_image=cast(OnBadImage, _ON_BAD_IMAGE.value),
        overwrite=_OVERWRITE.value,
    )
    engine = cast("Converter", importlib.import_module(names.find_module("convert", "engine")))
    if _PLAN.value:
        logging.info("%s", make_plan(request, engine))
        return
    ran = run(request, engine)
    logging.info("%s", ran.status)
    ran.raise_failure()


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
