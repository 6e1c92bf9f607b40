"""Make embeddings or images more robust.

With --embeddings: a store -> <output>/<model>+<method>/<dataset>/. With --tileset: a tileset ->
<output>/, a tileset.
"""

from typing import cast

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core import files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import decode
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.data.tile_paths import AllowPaths
from pathorob_jax.data.tileset import open_tileset
from pathorob_jax.embeddings.store_search import find_datasets

from . import choices, common

_SUMMARIES = choices.METHODS | choices.STAIN_METHODS
_METHOD = flags.DEFINE_enum(
    "method",
    None,
    sorted(_SUMMARIES),
    "How to fit: " + " ".join(f"{name}: {text}" for name, text in _SUMMARIES.items()),
)
_EMBEDDINGS = flags.DEFINE_string("embeddings", None, "<root>/<model>/<dataset> or <root>/<model>.")
_TILESET = flags.DEFINE_string(
    "tileset",
    None,
    f"In place of --embeddings: the images that {' or '.join(choices.STAIN_METHODS)} normalises.",
)
_DATASET = flags.DEFINE_list("dataset", [], "Datasets of the model; empty: all.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Root of all embedding stores; with --tileset the folder of the new tileset, or nothing, to "
    "fit and save the robustifier alone.",
)
_ROBUSTIFIER = flags.DEFINE_string(
    "robustifier",
    None,
    "Folder of the robustifier: where to keep it, or without --method the one to apply. Empty: "
    "<output>/<model>+<method>/robustifier, or with --tileset <output>/robustifier.",
)
_FIT_DATASET = flags.DEFINE_string(
    "fit_dataset", None, "Dataset of the same model to fit on; empty: each on its own rows."
)
_FIT_ROWS = flags.DEFINE_string(
    "fit_rows", None, "Rows of the fit: a manifest, or column=value,...; empty: all."
)
_FIT_ON = flags.DEFINE_enum(
    "fit_on",
    None,
    choices.FIT_ON,
    "all (default): one fit on all rows; train: one fit on the rows of --fit_rows, the training "
    "rows; cross_fit: the slides of one half are transformed by the fit on the other.",
)
_COVARIATES = flags.DEFINE_enum(
    "covariates",
    None,
    choices.COVARIATES,
    "What the fit holds apart from the centre; default: none.",
)
_REFERENCE = flags.DEFINE_string("reference", None, "Centre that stays as it is.")
_RANK = flags.DEFINE_integer(
    "rank", None, f"Directions that are taken out; default: {choices.RANK}.", lower_bound=1
)
_PAIRS = flags.DEFINE_string("pairs", None, "Column of the tissue, for paired_subspace.")
_TARGET = flags.DEFINE_string(
    "target",
    None,
    f"Of images: {choices.TARGET} (default) of the rows of the fit, a centre, a row of the "
    "tileset, or an image file.",
)
_SCOPE = flags.DEFINE_enum(
    "scope",
    None,
    choices.SCOPES,
    "Of images: whose stains are mapped to the target's; default: tile.",
)
_HOSTS = common.define_hosts()
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Of images: processes that decode; 0: threads of this process.", lower_bound=0
)
_LABEL_COLUMN, _CENTER_COLUMN = common.define_columns()
_IMAGE_RANGE, _ALLOW_PATHS = common.define_tile_access()
flags.adopt_module_key_flags(common)
_UNSEEN = flags.DEFINE_enum(
    "unseen", "refuse", choices.UNSEEN, "What to do with centres that were not in the fit."
)
_NAME = flags.DEFINE_string("name", None, "Name of the new model; empty: <model>+<method>.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a store or robustifier that another configuration made."
)
# How to go on after an interruption.
RESUME = "what is written is kept; give the same command of experiments.robustify again"


# Flags that only one of the two kinds obeys.
OF_EMBEDDINGS = (
    *(_DATASET, _FIT_DATASET, _FIT_ON, _COVARIATES, _REFERENCE, _RANK, _PAIRS, _UNSEEN, _NAME),
)
OF_IMAGES = (
    *(_TARGET, _SCOPE, _WORKERS, _LABEL_COLUMN, _CENTER_COLUMN, _IMAGE_RANGE, _ALLOW_PATHS),
)
# What a flag of the other kind is called here.
INSTEAD = {
    "reference": "give --target=<centre>, whose stain all tiles then take",
    "target": "give --reference=<centre>, which then stays as it is",
}


def main() -> None:
    """Turn the flags into one ``robustify`` or ``robustify_tileset`` call."""
    if (_TILESET.value is None) == (_EMBEDDINGS.value is None):
        raise UsageError("embeddings: give either --embeddings or --tileset.")
    kind, others = ("--tileset", OF_EMBEDDINGS) if _TILESET.value else ("--embeddings", OF_IMAGES)
    for flag in others:
        if flag.present:
            instead = INSTEAD.get(flag.name, "leave it out")
            raise UsageError(f"{flag.name}: {kind} does not use it; {instead}.")
    if _METHOD.value is None:
        if _ROBUSTIFIER.value is None:
            raise UsageError(
                "method: give --method to fit a robustifier, or --robustifier to apply one."
            )
        files.check_there(_ROBUSTIFIER.value, "folder of a robustifier")
    if _TILESET.value is not None:
        _robustify_images(_TILESET.value)
    elif _EMBEDDINGS.value is not None:
        _robustify_embeddings(_EMBEDDINGS.value)


def _robustify_images(path: str) -> None:
    if _METHOD.value is not None and _METHOD.value not in choices.STAIN_METHODS:
        raise UsageError(
            f"method: {_METHOD.value} changes embeddings; give --embeddings, or a method for "
            f"images ({', '.join(choices.STAIN_METHODS)})."
        )
    tileset = open_tileset(
        path,
        columns={CLASS: _LABEL_COLUMN.value, CENTER: _CENTER_COLUMN.value},
        image_range=decode.parse_image_range(_IMAGE_RANGE.value),
        allow_paths=cast(AllowPaths, _ALLOW_PATHS.value),
    )
    mesh = common.join_hosts(_HOSTS)
    from pathorob_jax.core import devices
    from pathorob_jax.robustify import stain_tileset

    fitted, written = stain_tileset.robustify_tileset(
        tileset,
        output=_OUTPUT.value,
        method=_METHOD.value,
        robustifier=_ROBUSTIFIER.value,
        fit_rows=_FIT_ROWS.value,
        target=_TARGET.value,
        scope=_SCOPE.value,
        workers=_WORKERS.value,
        overwrite=_OVERWRITE.value,
        mesh=mesh or devices.local_mesh(),
    )
    logging.info("%s: target of %d of %d tiles", fitted, fitted.n_usable, fitted.n_measured)
    if written is not None:
        logging.info(
            "%s: %d tiles, of which %d are as they were (blank, or of one stain)", *written
        )


def _robustify_embeddings(path: str) -> None:
    if _OUTPUT.value is None:
        raise UsageError("output: give the root of all embedding stores.")
    if _METHOD.value in choices.STAIN_METHODS:
        raise UsageError(f"method: {_METHOD.value} changes images; give --tileset.")
    found = find_datasets(path, _DATASET.value)
    mesh = common.join_hosts(_HOSTS)
    from pathorob_jax.robustify import run

    stores = run.robustify(
        found,
        root=_OUTPUT.value,
        method=_METHOD.value,
        robustifier=_ROBUSTIFIER.value,
        fit_dataset=_FIT_DATASET.value,
        fit_rows=_FIT_ROWS.value,
        fit_on=_FIT_ON.value,
        covariates=_COVARIATES.value,
        reference=_REFERENCE.value,
        rank=_RANK.value,
        pairs=_PAIRS.value,
        unseen=_UNSEEN.value,
        name=_NAME.value,
        overwrite=_OVERWRITE.value,
        mesh=mesh,
    )
    for store in stores:
        fit = store.info["settings"]["fit"]
        v = fit["cramers_v"]
        logging.info("%s: %d embeddings; Cramer's V of the fit: %s", store.path, len(store), v)
        for text in fit["warnings"]:
            logging.warning("%s", text)


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
