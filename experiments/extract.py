"""Embed a tileset with one or several encoders: tileset -> <output>/<model>/<dataset>/."""

from typing import Any, cast

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core import files, folder_names, hosts, replacing
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import decode
from pathorob_jax.data import tileset as images
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.data.tile_paths import AllowPaths
from pathorob_jax.models import names

from . import choices, common

_MODEL = flags.DEFINE_list(
    "model", [], "Encoders, comma-separated; python -m converters.convert --list has the table."
)
_SPEC = flags.DEFINE_list("spec", [], "YAML files of encoders of your own, comma-separated.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of all converted weights.")
_TILESET = flags.DEFINE_string(
    "tileset", None, "Folder (or gs://, s3:// prefix) of images.", required=True
)
_DATASET = flags.DEFINE_string("dataset", None, "Name of the dataset.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Root of all embedding stores.", required=True)
_BATCH_SIZE = common.define_batch_size()
_POOLING = flags.DEFINE_list(
    "pooling",
    ["default"],
    "default (the authors'), cls, mean, clsmean or head, comma-separated: a store each, from one "
    "forward pass.",
)
_PRESET = flags.DEFINE_enum(
    "preset", "authors", choices.PRESETS, "pathorob: its pooling and preprocessing, where known."
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "default", ["default", *choices.COMPUTE_DTYPES], "Operands of products."
)
_PARAM_DTYPE = flags.DEFINE_enum(
    "param_dtype", "float32", choices.COMPUTE_DTYPES, "In which parameters are held."
)
_WORKERS = common.define_workers()
_ON_BAD_IMAGE = common.define_on_bad_image("stop")
_STAIN = flags.DEFINE_string(
    "stain",
    None,
    "Folder of a robustifier of images, which normalises tiles before the encoder; the store is "
    "then that of <model>+<method>.",
)
_PARAM_SHARDING = flags.DEFINE_enum(
    "param_sharding",
    "auto",
    choices.PARAM_SHARDINGS,
    "Parameters on each device, or split over all of the process; auto: split if they must be.",
)
_HOSTS = common.define_hosts()
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a store that is complete or that another configuration made."
)
_LAYOUT = common.define_layout(
    "pathorob: also write the embeddings as PathoROB does, as "
    "<output>/features/<model>/<dataset>/<centre>.npz."
)
_LABEL_COLUMN, _CENTER_COLUMN = common.define_columns()
_IMAGE_RANGE, _ALLOW_PATHS = common.define_tile_access()
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is embedded is kept; give the same command of experiments.extract again"


def main() -> None:
    """Turn the flags into one ``extract`` call for all encoders."""
    common.join_hosts(_HOSTS)
    if not _MODEL.value and not _SPEC.value:
        raise UsageError("model: expected --model=<names> or --spec=<file.yaml>.")
    tileset = _open_tileset()
    from pathorob_jax.core import devices
    from pathorob_jax.data.tile_batches import OnBadImage
    from pathorob_jax.embeddings import export_formats, extraction, store_search
    from pathorob_jax.models import registry
    from pathorob_jax.models.registry import ParamSharding
    from pathorob_jax.robustify.stain_files import load_stain

    specs = [registry.get_spec(name) for name in _MODEL.value]
    specs += [spec for path in _SPEC.value for spec in registry.read_specs(path).values()]
    options: dict[str, Any] = {
        "poolings": _POOLING.value,
        "preset": _PRESET.value,
        "compute_dtype": _COMPUTE_DTYPE.value,
        "weights_dir": _WEIGHTS.value,
    }
    for spec in specs:
        registry.check_encoder(spec, **options)
    if _LAYOUT.value is not None:
        folder_names.check_layout_names([spec.name for spec in specs], [export_formats.FEATURES])
        replacing.check_place(_OUTPUT.value, overwrite=True)
    stain = None if _STAIN.value is None else load_stain(_STAIN.value)
    mesh = devices.local_mesh()
    dtype, how = _PARAM_DTYPE.value, cast(ParamSharding, _PARAM_SHARDING.value)
    encoders = [
        encoder
        for spec in specs
        for encoder in registry.load_encoders(
            spec,
            **options,
            param_dtype=dtype,
            sharding=registry.choose_sharding(spec, mesh, param_dtype=dtype, how=how),
        )
    ]
    with hosts.kept_memory():
        extracted = extraction.extract(
            tileset,
            encoders,
            root=_OUTPUT.value,
            dataset=_DATASET.value,
            batch_size=_BATCH_SIZE.value,
            workers=_WORKERS.value,
            on_bad_image=cast(OnBadImage, _ON_BAD_IMAGE.value),
            stain=stain,
            mesh=mesh,
            overwrite=_OVERWRITE.value,
        )
    for store in extracted.stores:
        logging.info("%s: %d embeddings of %d dimensions", store.path, len(store), store.dim)
        if stain is not None:
            kept = store.info["settings"]["stain"]["n_unchanged"]
            logging.info("%s: %d tiles as they were (blank, or of one stain)", store.path, kept)
        if _LAYOUT.value is not None and hosts.is_lead():
            place = store_search.find_datasets(store.path)[0]
            export_formats.write_features(_OUTPUT.value, place)


def _open_tileset() -> images.Tileset:
    """The images, after all that can be refused before JAX is imported."""
    folder_names.check_dataset_name(_DATASET.value)
    for name in _MODEL.value:
        names.check_name(name)
        names.check_weights_given(name, _WEIGHTS.value)
    for path in _SPEC.value:
        files.check_there(path)
    if _STAIN.value is not None:
        files.check_there(_STAIN.value, "folder of a robustifier")
    return images.open_tileset(
        _TILESET.value,
        columns={CLASS: _LABEL_COLUMN.value, CENTER: _CENTER_COLUMN.value},
        image_range=decode.parse_image_range(_IMAGE_RANGE.value),
        allow_paths=cast(AllowPaths, _ALLOW_PATHS.value),
    )


if __name__ == "__main__":
    start.run_main(main, resume=RESUME, encodes=True)
