"""Import embeddings made by other software: files -> <output>/<model>/<dataset>/."""

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.embeddings import import_formats

from . import common

_FORMAT = flags.DEFINE_enum("format", None, sorted(import_formats.FORMATS), "Form.", required=True)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "pathorob_npz: the folder that holds one .npz per medical centre; npy: the array.",
    required=True,
)
_MANIFEST = flags.DEFINE_list(
    "manifest", None, "CSV or Parquet manifests; the store holds their union.", required=True
)
_MODEL = flags.DEFINE_string("model", None, "Name of the encoder.", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "Name of the dataset.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Root of all embedding stores.", required=True)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a store that is complete or that another configuration made."
)
_LABEL_COLUMN, _CENTER_COLUMN = common.define_columns()
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is imported is kept; give the same command again"


def main() -> None:
    """Turn the flags into one ``import_embeddings`` call."""
    columns = {CLASS: _LABEL_COLUMN.value, CENTER: _CENTER_COLUMN.value}
    store = import_formats.import_embeddings(
        _SOURCE.value,
        _MANIFEST.value,
        form=_FORMAT.value,
        root=_OUTPUT.value,
        model=_MODEL.value,
        dataset=_DATASET.value,
        columns=columns,
        overwrite=_OVERWRITE.value,
    )
    logging.info("%s: %d embeddings of %d dimensions", store.path, len(store), store.dim)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
