"""The modes of JAX that the numbers are computed in, whatever the program around has set.

Enters: nothing. Leaves: a context. Modes belong to the thread that sets them, so each thread that
computes enters it itself.
"""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def default_modes() -> Iterator[None]:
    """JAX's defaults: a training program may have set others for its own code.

    64-bit values would move last bits, a mesh in context is refused by programs over another one,
    strict promotion, transfer guards and NaN checks stop what is meant here (undefined is NaN).
    """
    with (
        jax.set_mesh(None),
        jax.default_matmul_precision(None),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.transfer_guard("allow"),
    ):
        yield
