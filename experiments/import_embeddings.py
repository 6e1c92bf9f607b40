"""Import embeddings made by other software: files -> <output>/<model>/<dataset>/."""

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.embeddings import import_formats
from pathorob_jax.embeddings.imports.formats import FORMATS
from pathorob_jax.embeddings.imports.row_join import GROUP

from . import common

_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    sorted(FORMATS),
    "Which tool wrote the embeddings, or the kind of file; unset: it is recognised.",
)
_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "The file or folder as the tool left it: "
    + "; ".join(f"{name}: {form.source}" for name, form in FORMATS.items())
    + ".",
    required=True,
)
_MANIFEST = flags.DEFINE_list(
    "manifest",
    None,
    "CSV or Parquet manifests of patches, or of slides; the store holds their union. Unset: the "
    "labels that the tool wrote itself.",
)
_MODEL = flags.DEFINE_string("model", None, "Name of the encoder.", required=True)
_DATASET = flags.DEFINE_string("dataset", None, "Name of the dataset.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Root of all embedding stores.", required=True)
_ENCODER = flags.DEFINE_string(
    "encoder", None, "Which encoder's embeddings, where the source holds those of several."
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a store that is complete or that another configuration made."
)
_LABEL_COLUMN, _CENTER_COLUMN = common.define_columns()
_SLIDE_COLUMN = flags.DEFINE_string("slide_column", SLIDE, "Column of the slide.")
_PATCH_COLUMN = flags.DEFINE_string("patch_column", PATCH, "Column of the patch id.")
_GROUP_COLUMN = flags.DEFINE_string(
    "group_column", None, "Column that groups slides (patients); the slide, where there is none."
)
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is imported is kept; give the same command again"


def main() -> None:
    """Turn the flags into one ``import_embeddings`` call."""
    columns = {
        SLIDE: _SLIDE_COLUMN.value,
        PATCH: _PATCH_COLUMN.value,
        CLASS: _LABEL_COLUMN.value,
        CENTER: _CENTER_COLUMN.value,
    }
    if _GROUP_COLUMN.value is not None:
        columns[GROUP] = _GROUP_COLUMN.value
    store = import_formats.import_embeddings(
        _SOURCE.value,
        _MANIFEST.value,
        form=_FORMAT.value,
        root=_OUTPUT.value,
        model=_MODEL.value,
        dataset=_DATASET.value,
        columns=columns,
        encoder=_ENCODER.value,
        overwrite=_OVERWRITE.value,
    )
    logging.info("%s: %d embeddings of %d dimensions", store.path, len(store), store.dim)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
