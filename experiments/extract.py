"""Embed a tileset with one or several encoders: tileset -> <output>/<model>/<dataset>/."""

from typing import Any

import jax
from absl import flags, logging

from experiments import common
from pathorob_jax import extract, images, sharding
from pathorob_jax.checks import UsageError
from pathorob_jax.manifest import CENTER, CLASS
from pathorob_jax.models import registry

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
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Tiles per device and step; unset: chosen by device.", lower_bound=1
)
_POOLING = flags.DEFINE_enum(
    "pooling", "default", ["default", "cls", "mean", "clsmean"], "default: the authors'."
)
_PRESET = flags.DEFINE_enum(
    "preset", "authors", registry.PRESETS, "pathorob: its pooling and preprocessing, where known."
)
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "default", ["default", "float32", "bfloat16"], "Operands of products."
)
_PARAM_DTYPE = flags.DEFINE_enum(
    "param_dtype", "float32", registry.COMPUTE_DTYPES, "In which parameters are held."
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes that decode images; 0: threads of this process.", lower_bound=0
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a store that is complete or that another configuration made."
)
_LABEL_COLUMN, _CENTER_COLUMN = common.define_columns()
flags.adopt_module_key_flags(common)


def main() -> None:
    """Flags -> one ``extract`` per encoder."""
    specs = [registry.get_spec(name) for name in _MODEL.value]
    specs += [spec for path in _SPEC.value for spec in registry.read_specs(path).values()]
    if not specs:
        raise UsageError("model: expected --model=<names> or --spec=<file.yaml>.")
    choices: dict[str, Any] = {
        "pooling": _POOLING.value,
        "preset": _PRESET.value,
        "compute_dtype": _COMPUTE_DTYPE.value,
        "weights_dir": _WEIGHTS.value,
    }
    for spec in specs:
        registry.check_encoder(spec, **choices)
    columns = {CLASS: _LABEL_COLUMN.value, CENTER: _CENTER_COLUMN.value}
    tileset = images.open_tileset(_TILESET.value, columns=columns)
    mesh = sharding.make_mesh(jax.local_devices())
    for spec in specs:
        encoder = registry.load_encoder(
            spec,
            **choices,
            param_dtype=_PARAM_DTYPE.value,
            sharding=sharding.replicated_sharding(mesh),
        )
        store = extract.extract(
            tileset,
            encoder,
            root=_OUTPUT.value,
            dataset=_DATASET.value,
            batch_size=_BATCH_SIZE.value,
            workers=_WORKERS.value,
            mesh=mesh,
            overwrite=_OVERWRITE.value,
        )
        logging.info("%s: %d embeddings of %d dimensions", store.path, *store.array.shape)


if __name__ == "__main__":
    common.run_main(main)
