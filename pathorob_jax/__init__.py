"""PathoROB in JAX: does a pathology encoder see biology, or the hospital?

Data goes one way: tileset -> ``extract`` -> embedding store -> ``evaluate_store`` -> results ->
``write_report``. Each step reads the artefact of the one before. In a program that has the encoder
or its embeddings, ``evaluate`` and ``evaluate_embeddings`` do the same in memory;
``robustness_index``, ``margins``, ``performance_drop``, ``clustering_score``, ``feature_space``,
``retrieval`` and ``slide_prediction`` are plain functions of arrays.

>>> import numpy as np
>>> import pathorob_jax as pr
>>> bio, center = np.arange(80) % 2, np.arange(80) // 40
>>> x = np.random.default_rng(0).normal(size=(80, 8)) + 4 * np.eye(8)[bio]
>>> index = pr.robustness_index(x, biology=bio, center=center, slide=np.arange(80) // 5, k=7)
>>> index.value > 0.9
True

The names are imported when they are first used, so that importing the package stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from pathorob_jax.version import __version__

if TYPE_CHECKING:
    from pathorob_jax.data.tileset import open_tileset
    from pathorob_jax.embeddings.embed_in_memory import Tiles, load_tiles
    from pathorob_jax.embeddings.export_formats import export_embeddings
    from pathorob_jax.embeddings.extraction import extract
    from pathorob_jax.embeddings.import_formats import import_embeddings
    from pathorob_jax.embeddings.store import open_store
    from pathorob_jax.evaluation.arrays import (
        clustering_score,
        feature_space,
        margins,
        performance_drop,
        retrieval,
        robustness_index,
        slide_prediction,
    )
    from pathorob_jax.evaluation.in_memory import evaluate, evaluate_embeddings
    from pathorob_jax.evaluation.run import evaluate_store
    from pathorob_jax.evaluation.run_many import evaluate_stores
    from pathorob_jax.evaluation.settings import (
        ApdSettings,
        ClusteringSettings,
        RetrievalSettings,
        Settings,
        SlideSettings,
    )
    from pathorob_jax.models.registry import load_encoder
    from pathorob_jax.report.leaderboard.write import write_leaderboard
    from pathorob_jax.report.write import write_report
    from pathorob_jax.results.analyse_models import analyse_models
    from pathorob_jax.results.export_results import export_results
    from pathorob_jax.results.flatten import scalars
    from pathorob_jax.results.result_files import read_results
    from pathorob_jax.results.result_set import Results
    from pathorob_jax.robustify.robustifier import fit_robustifier
    from pathorob_jax.robustify.robustifier_files import load_robustifier, save_robustifier
    from pathorob_jax.robustify.stain_files import load_stain, save_stain
    from pathorob_jax.robustify.stain_fit import fit_stain
    from pathorob_jax.robustify.stain_tileset import normalize_tileset

_HOME = {
    "data.tileset": ("open_tileset",),
    "embeddings.embed_in_memory": ("Tiles", "load_tiles"),
    "embeddings.export_formats": ("export_embeddings",),
    "embeddings.extraction": ("extract",),
    "embeddings.import_formats": ("import_embeddings",),
    "embeddings.store": ("open_store",),
    "evaluation.arrays": (
        *("clustering_score", "feature_space", "margins", "performance_drop", "retrieval"),
        *("robustness_index", "slide_prediction"),
    ),
    "evaluation.in_memory": ("evaluate", "evaluate_embeddings"),
    "evaluation.run": ("evaluate_store",),
    "evaluation.run_many": ("evaluate_stores",),
    "evaluation.settings": (
        *("ApdSettings", "ClusteringSettings", "RetrievalSettings", "Settings"),
        "SlideSettings",
    ),
    "models.registry": ("load_encoder",),
    "report.leaderboard.write": ("write_leaderboard",),
    "report.write": ("write_report",),
    "results.analyse_models": ("analyse_models",),
    "results.export_results": ("export_results",),
    "results.flatten": ("scalars",),
    "results.result_files": ("read_results",),
    "results.result_set": ("Results",),
    "robustify.robustifier": ("fit_robustifier",),
    "robustify.robustifier_files": ("load_robustifier", "save_robustifier"),
    "robustify.stain_files": ("load_stain", "save_stain"),
    "robustify.stain_fit": ("fit_stain",),
    "robustify.stain_tileset": ("normalize_tileset",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ApdSettings",
    "ClusteringSettings",
    "Results",
    "RetrievalSettings",
    "Settings",
    "SlideSettings",
    "Tiles",
    "__version__",
    "analyse_models",
    "clustering_score",
    "evaluate",
    "evaluate_embeddings",
    "evaluate_store",
    "evaluate_stores",
    "export_embeddings",
    "export_results",
    "extract",
    "feature_space",
    "fit_robustifier",
    "fit_stain",
    "import_embeddings",
    "load_encoder",
    "load_robustifier",
    "load_stain",
    "load_tiles",
    "margins",
    "normalize_tileset",
    "open_store",
    "open_tileset",
    "performance_drop",
    "read_results",
    "retrieval",
    "robustness_index",
    "save_robustifier",
    "save_stain",
    "scalars",
    "slide_prediction",
    "write_leaderboard",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
