"""Embed a tileset with one or several encoders: tileset -> <output>/<model>/<dataset>/."""

from absl import flags, logging

from experiments import common
from pathorob_jax import extract, images
from pathorob_jax.manifest import CENTER, CLASS
from pathorob_jax.models import registry

_MODEL = flags.DEFINE_list(
    "model", None, f"Encoders, comma-separated, of {', '.join(registry.MODELS)}.", required=True
)
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
_COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "default", ["default", "float32", "bfloat16"], "Operands of products."
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
    encoders = [
        registry.load_encoder(name, pooling=_POOLING.value, compute_dtype=_COMPUTE_DTYPE.value)
        for name in _MODEL.value
    ]
    columns = {CLASS: _LABEL_COLUMN.value, CENTER: _CENTER_COLUMN.value}
    tileset = images.open_tileset(_TILESET.value, columns=columns)
    for encoder in encoders:
        store = extract.extract(
            tileset,
            encoder,
            root=_OUTPUT.value,
            dataset=_DATASET.value,
            batch_size=_BATCH_SIZE.value,
            workers=_WORKERS.value,
            overwrite=_OVERWRITE.value,
        )
        logging.info("%s: %d embeddings of %d dimensions", store.path, *store.array.shape)


if __name__ == "__main__":
    common.run_main(main)
