"""PathoROB in JAX: does a pathology encoder see biology, or the hospital?

Data goes one way: tileset -> ``extract`` -> embedding store -> ``evaluate`` -> results ->
``report``. Every step reads the previous one's artefact from disk; see ``docs/architecture.md``.
Inside a program that has the encoder in hand, a training loop say, the names of ``__all__`` do the
same in memory; see ``docs/training.md``. They are imported when first asked for, so that the
package itself stays light.
"""

from typing import TYPE_CHECKING, Any

from pathorob_jax.version import __version__

if TYPE_CHECKING:
    from pathorob_jax.embeddings.embed_in_memory import Tiles, load_tiles
    from pathorob_jax.evaluation.apd import ApdSettings
    from pathorob_jax.evaluation.clustering_score import ClusteringSettings
    from pathorob_jax.evaluation.in_memory import evaluate, evaluate_embeddings, scalars
    from pathorob_jax.evaluation.neighborhood import Settings

__all__ = [
    "__version__",
    "ApdSettings",
    "ClusteringSettings",
    "Settings",
    "Tiles",
    "evaluate",
    "evaluate_embeddings",
    "load_tiles",
    "scalars",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pathorob_jax.embeddings import embed_in_memory
    from pathorob_jax.evaluation import in_memory

    return getattr(embed_in_memory if name in ("Tiles", "load_tiles") else in_memory, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
