"""Words and numbers that flags take or name, apart from the modules that mean them.

Those modules import JAX, which takes seconds; so scripts need none of them for ``--help`` and for
refusals. ``tests/experiments/test_choices.py`` holds both sides equal.
"""

METRICS = (
    "robustness_index",
    "apd",
    "clustering_score",
    "feature_space",
    "margins",
    "probes",
    "retrieval",
    "robustification",
    "slide_prediction",
)
RUN_MODELS = ("color_stats", "nuclear_texture", "vit_random")
RUN_DATASET = "synthetic"
RUN_METRICS = ("robustness_index", "margins", "probes")
RUN_SYNTHETIC_K = 61
RUN_STEPS = ("fetch", "convert", "extract", "evaluate", "report")
CLUSTERS = ("local", "slurm")
KS = ("default", "auto")
MIN_DRAWS = 200
DESIGNS = ("auto", "all", "paired")
PRECISIONS = ("float32", "fast")
SEARCHES = ("auto", "memory", "ring", "stream")
MIN_CELL_SIZE = 30
BUDGET_MB = 256
STOPPINGS = ("reference", "converged")
HEADS = ("knn", "mlp", "dann")
CLUSTERING_METRICS = ("cosine", "euclidean", "spherical")
CLUSTERING_METRIC = "cosine"
SLIDE_PRESETS = ("mean", "gated", "xmil")
DEFAULT_SLIDE_PRESETS = ("mean", "gated")
PRESETS = ("authors", "pathorob")
COMPUTE_DTYPES = ("float32", "bfloat16")
PARAM_SHARDINGS = ("auto", "replicated", "split")
METHODS = {
    "identity": "Changes nothing; the control of all others.",
    "center_means": "Shifts the mean of every centre to the common mean.",
    "class_adjusted_means": (
        "Shifts every centre by its effect, with that of the classes held apart."
    ),
    "combat": "Location and scale of every centre, shrunk by parametric empirical Bayes.",
    "combat_nonparametric": "ComBat whose prior is the other dimensions' own effects.",
    "combat_mean_only": "ComBat's location alone.",
    "mean_projection": "Projects orthogonally off the differences between centre means.",
    "leace": "Least-squares erasure of the centre from all linear probes.",
    "pca_removal": "Projects off the first principal components; a control that knows no centre.",
    "coral": "Aligns the covariance of every centre.",
    "paired_subspace": (
        "Projects off the directions in which the same tissue differs between acquisitions."
    ),
}
STAIN_METHODS = {
    "reinhard": "Gives the tissue of tiles the target's mean and spread of colour (CIELAB).",
    "macenko": "Restains tiles with the target's haematoxylin and eosin.",
}
LAYOUTS = ("pathorob",)
LAYOUT_FOLDERS = ("robustness_index", "apd", "clustering_score")
EMBEDDING_FORMATS = ("anndata", "parquet", "npz")
RESULT_FORMATS = ("histoboard",)
MAPS_AT = ("inside", "beside")
RANK = 8
FIT_ON = ("all", "train", "cross_fit")
UNSEEN = ("refuse", "identity", "estimate")
COVARIATES = ("none", "biological_class")
SCOPES = ("tile", "slide", "center")
TARGET = "mean"
