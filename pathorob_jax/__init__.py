"""PathoROB in JAX: does a pathology encoder see biology, or the hospital?

Data goes one way: tileset -> ``extract`` -> embedding store -> ``evaluate`` -> results ->
``report``. Every step reads the previous one's artefact from disk; see ``docs/architecture.md``.
Inside a program that has the encoder in hand, a training loop say, the names of ``__all__`` do the
same in memory; see ``docs/training.md``. They are imported when first asked for, so that the
package itself stays light.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathorob_jax.clusterings import ClusteringSettings
    from pathorob_jax.downstream import ApdSettings
    from pathorob_jax.neighborhoods import Settings
    from pathorob_jax.training import Tiles, evaluate, evaluate_embeddings, load_tiles, scalars

__all__ = [
    "ApdSettings",
    "ClusteringSettings",
    "Settings",
    "Tiles",
    "evaluate",
    "evaluate_embeddings",
    "load_tiles",
    "scalars",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pathorob_jax import training

    return getattr(training, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
