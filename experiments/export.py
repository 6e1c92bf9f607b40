"""Write embeddings or results in the formats of other tools: stores or results -> <output>/."""

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core.checks import UsageError
from pathorob_jax.results import folders

from . import choices, common

_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    [*choices.EMBEDDING_FORMATS, *choices.RESULT_FORMATS],
    "Of --embeddings: anndata (.h5ad), parquet or npz, as <output>/<model>/<dataset>.<ending>. Of "
    "--results: histoboard (results.json, rankings.json, models.json).",
)
_LAYOUT = common.define_layout(
    "pathorob: PathoROB's own files; of --embeddings <output>/features/<model>/<dataset>/, of "
    "--results <output>/robustness_index, apd and clustering_score."
)
_EMBEDDINGS = flags.DEFINE_list(
    "embeddings",
    None,
    "<root> of all stores, <root>/<model> or <root>/<model>/<dataset>; several comma-separated.",
)
_RESULTS = flags.DEFINE_string("results", None, "Root of all results.")
_DATASET = flags.DEFINE_list("dataset", [], "Datasets; unset: all in --embeddings.")
_OUTPUT = flags.DEFINE_string("output", None, "Local folder to write to.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there.")
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is written is whole; give the same command again with --overwrite"


def main() -> None:
    """Turn the flags into one export of embeddings, of results, or of both."""
    form = _check_flags()
    if _RESULTS.value is not None:
        folders.check_any(_RESULTS.value)
    if _EMBEDDINGS.value:
        from pathorob_jax.embeddings import export_formats

        if _LAYOUT.value is not None:
            export_formats.export_features(
                _EMBEDDINGS.value,
                output=_OUTPUT.value,
                datasets=_DATASET.value,
                overwrite=_OVERWRITE.value,
            )
        else:
            export_formats.export_embeddings(
                _EMBEDDINGS.value,
                form=form,
                output=_OUTPUT.value,
                datasets=_DATASET.value,
                overwrite=_OVERWRITE.value,
            )
    if _RESULTS.value is not None:
        from pathorob_jax.results import export_results

        written = export_results.export_results(
            _RESULTS.value, form=form, output=_OUTPUT.value, overwrite=_OVERWRITE.value
        )
        logging.info("%s: %d files of results", _OUTPUT.value, len(written))


def _check_flags() -> str:
    """The format or layout; combinations that would do nothing, or that none has, are rejected."""
    form = _FORMAT.value or _LAYOUT.value
    if form is None or None not in (_FORMAT.value, _LAYOUT.value):
        raise UsageError("format: expected either --format or --layout=pathorob.")
    if not _EMBEDDINGS.value and _RESULTS.value is None:
        raise UsageError("embeddings: expected --embeddings=<stores> or --results=<results>.")
    for flag, given, formats in (
        ("embeddings", bool(_EMBEDDINGS.value), choices.EMBEDDING_FORMATS),
        ("results", _RESULTS.value is not None, choices.RESULT_FORMATS),
    ):
        if given and _FORMAT.value is not None and _FORMAT.value not in formats:
            raise UsageError(
                f"format: {_FORMAT.value} is none of --{flag}, which has {', '.join(formats)} "
                "and --layout=pathorob."
            )
    if _DATASET.value and not _EMBEDDINGS.value:
        raise UsageError("dataset: it belongs to --embeddings; leave it out.")
    return form


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
