"""Where the rows of a neighbour search lie: in memory, in shards over devices, or in a file.

The neighbours, and all numbers, are the same to the last bit in each of the ways.
"""

from typing import Literal, get_args

from jax.sharding import Mesh

from pathorob_jax.core import hosts
from pathorob_jax.core.checks import UsageError
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.kernels.neighbors import search
from pathorob_jax.kernels.neighbors.search import Layout

Way = Literal["memory", "ring", "stream"]
WAYS: tuple[Way, ...] = get_args(Way)
# Share of the available memory that embeddings may take; lists and metrics use the rest.
MEMORY_SHARE = 0.5
LAYOUTS: dict[Way, Layout] = {"memory": "replicated", "ring": "ring", "stream": "auto"}


def choose_way(settings: Settings, *, n: int, dim: int, mesh: Mesh) -> Way:
    """The way that was asked for, or that n rows of D float32 need.

    ``stream`` if they take more than half of the memory that is available to the process, or more
    than the devices hold together; ``ring`` if they fit on several devices but not on each; else
    ``memory``. Neighbours of a file and the fast search are always in memory. With devices of
    several processes rows always go round a ring; ``stream`` then means that each process reads the
    rows of its devices from a file, and processes may differ in that.

    Raises:
        UsageError: the way that was asked for does not go with the other settings or the devices.
    """
    n_bytes = 4 * n * dim
    in_memory = settings.neighbors is not None or settings.precision == "fast"
    if settings.search == "auto":
        available = hosts.available_bytes()
        if in_memory:
            return "memory"
        if available is not None and n_bytes > MEMORY_SHARE * available:
            return "stream"
        if search.fits(n_bytes, mesh):
            return "memory"
        return "ring" if search.fits(n_bytes / mesh.size, mesh) else "stream"
    way: Way = settings.search
    if in_memory and way != "memory":
        other = "neighbors" if settings.neighbors is not None else "precision"
        raise UsageError(
            f"search: {way!r} does not go with --{other}, whose rows are in memory; leave one of "
            "the two out."
        )
    return way
