"""Make embeddings more robust: a store -> <output>/<model>+<method>/<dataset>/."""

from absl import flags, logging

from experiments import common
from pathorob_jax.embeddings.store_search import find_datasets
from pathorob_jax.robustify import methods, run
from pathorob_jax.robustify.robustifier import COVARIATES, FIT_ON, UNSEEN

_METHOD = flags.DEFINE_enum(
    "method",
    None,
    sorted(methods.METHODS),
    "How to fit: " + " ".join(f"{name}: {m.summary}" for name, m in methods.METHODS.items()),
)
_EMBEDDINGS = flags.DEFINE_string(
    "embeddings", None, "<root>/<model>/<dataset> or <root>/<model>.", required=True
)
_DATASET = flags.DEFINE_list("dataset", [], "Datasets of the model; empty: all.")
_OUTPUT = flags.DEFINE_string("output", None, "Root of all embedding stores.", required=True)
_ROBUSTIFIER = flags.DEFINE_string(
    "robustifier",
    None,
    "Folder of the robustifier: where to keep it, or without --method the one to apply. Empty: "
    "<output>/<model>+<method>/robustifier.",
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
    FIT_ON,
    "all (default): one fit on all rows; train: one fit on the rows of --fit_rows, the training "
    "rows; cross_fit: the slides of one half are transformed by the fit on the other.",
)
_COVARIATES = flags.DEFINE_enum(
    "covariates", None, COVARIATES, "What the fit holds apart from the centre; default: none."
)
_REFERENCE = flags.DEFINE_string("reference", None, "Centre that stays as it is.")
_RANK = flags.DEFINE_integer(
    "rank", None, f"Directions that are taken out; default: {methods.DEFAULT_RANK}.", lower_bound=1
)
_PAIRS = flags.DEFINE_string("pairs", None, "Column of the tissue, for paired_subspace.")
_UNSEEN = flags.DEFINE_enum(
    "unseen", "refuse", UNSEEN, "What to do with centres that were not in the fit."
)
_NAME = flags.DEFINE_string("name", None, "Name of the new model; empty: <model>+<method>.")
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a store or robustifier that another configuration made."
)
# How to go on after an interruption.
RESUME = "what is written is kept; give the same command of experiments.robustify again"


def main() -> None:
    """Turn the flags into one ``robustify`` call."""
    stores = run.robustify(
        find_datasets(_EMBEDDINGS.value, _DATASET.value),
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
    )
    for store in stores:
        fit = store.info["settings"]["fit"]
        v = fit["cramers_v"]
        logging.info("%s: %d embeddings; Cramer's V of the fit: %s", store.path, len(store), v)
        for text in fit["warnings"]:
            logging.warning("%s", text)


if __name__ == "__main__":
    common.run_main(main, resume=RESUME)
