"""Flags of a whole run, which ``run`` does here and ``submit`` brings to a cluster."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from absl import flags

from pathorob_jax.core import checks, files
from pathorob_jax.evaluation import early_checks
from pathorob_jax.models import names as model_names

from . import choices, common

if TYPE_CHECKING:
    from pathorob_jax.runs.request import RunRequest


def define() -> Mapping[str, flags.FlagHolder[Any]]:
    """Define the flags; their holders by name."""
    holders: list[flags.FlagHolder[Any]] = [
        flags.DEFINE_list(
            "model",
            [],
            "Encoders, comma-separated; python -m converters.convert --list has the table. Unset, "
            f"and no --spec: {', '.join(choices.RUN_MODELS)}.",
        ),
        flags.DEFINE_list("spec", [], "YAML files of encoders of your own, comma-separated."),
        flags.DEFINE_list(
            "dataset",
            [choices.RUN_DATASET],
            "camelyon, tcga, tolkach_esca (fetched), synthetic (drawn), or <name> of a tileset of "
            "yours, <data_dir>/<name>; comma-separated.",
        ),
        flags.DEFINE_string(
            "output",
            "runs",
            "Local folder of everything: tiles, data, weights, embeddings, ..., report.",
        ),
        flags.DEFINE_list(
            "metrics",
            list(choices.RUN_METRICS),
            f"Metrics to compute, of {', '.join(choices.METRICS)}.",
        ),
        flags.DEFINE_string(
            "k",
            None,
            "Neighbours: default (the published k), auto or a number; unset: default, and "
            f"{choices.RUN_SYNTHETIC_K} of the synthetic tiles.",
        ),
        flags.DEFINE_string(
            "data_dir", None, "Folder of fetched data and tilesets of yours; unset: <output>/data."
        ),
        flags.DEFINE_string(
            "weights", None, "Folder of all converted weights; unset: <output>/weights."
        ),
        flags.DEFINE_list(
            "checkpoint",
            [],
            "Checkpoints that are here already, <model>=<file or folder>, comma-separated; unset: "
            "from the Hugging Face hub.",
        ),
        flags.DEFINE_enum(
            "preset",
            "authors",
            choices.PRESETS,
            "pathorob: its pooling and preprocessing, where known.",
        ),
        common.define_batch_size(),
        common.define_workers(),
        common.define_on_bad_image("the dataset fails"),
        common.define_maps_at(),
        common.define_tiles(),
        flags.DEFINE_bool(
            "overwrite", False, "Replace weights and stores of another configuration."
        ),
    ]
    return {holder.name: holder for holder in holders}


def make_request(holders: Mapping[str, flags.FlagHolder[Any]]) -> "RunRequest":
    """The request of the flags; names and numbers are checked before JAX is imported."""
    value = {name: holder.value for name, holder in holders.items()}
    k = None if value["k"] is None else common.parse_k(value["k"])
    if k is not None:
        early_checks.check_k(k)
    for name in value["model"]:
        model_names.check_name(name)
    for metric in value["metrics"]:
        checks.check_known(metric, choices.METRICS, what="metrics")
    if value["tiles"] is not None:
        files.check_there(value["tiles"])
    from pathorob_jax.data.tile_batches import OnBadImage
    from pathorob_jax.runs import request

    return request.make_request(
        output=value["output"],
        models=value["model"],
        spec_files=value["spec"],
        datasets=value["dataset"],
        metrics=value["metrics"],
        k=k,
        data_dir=value["data_dir"],
        weights_dir=value["weights"],
        checkpoints=value["checkpoint"],
        preset=value["preset"],
        batch_size=value["batch_size"],
        workers=value["workers"],
        on_bad_image=cast(OnBadImage, value["on_bad_image"]),
        overwrite=value["overwrite"],
        maps=value["maps"],
        tiles_shown=value["tiles"],
    )
