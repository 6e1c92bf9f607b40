"""Iterations on the device: what is kept where a search fails, and losses of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathorob_jax.kernels.logistic import lbfgs as steps
from pathorob_jax.kernels.logistic.group_rows import GroupRows


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_failed_search_leaves_all_but_the_memory(rng, n_classes):
    """A direction that leads uphill is dropped; the next is that of a start without memory."""
    n, d, n_problems = 60, 5, 2
    y = rng.integers(0, n_classes, n)
    x = (rng.normal(size=(n, d)) + y[:, None]).astype(np.float32)

    def go(start, max_iter):
        return steps.iterate(
            GroupRows(jnp.asarray(x)),
            steps.Problems(
                y=jnp.asarray(y[None], jnp.int32),
                weights=jnp.full((n_problems, n), 1 / n, jnp.float32),
                penalty=jnp.array([0.1, 0.01]),
                shift=None,
                scale=None,
                variances=None,
            ),
            start,
            n_left=np.int32(0),
            max_iter=np.int32(max_iter),
            tol=np.float64(1e-5),
            n_classes=n_classes,
            fit_intercept=True,
            exact=False,
        )

    with jax.enable_x64(True):
        begun = go(None, 3)._replace(status=jnp.full(n_problems, steps.ACTIVE))
        empty = begun._replace(
            curvature=jnp.zeros_like(begun.curvature), spread=jnp.ones(n_problems)
        )
        uphill = begun._replace(
            curvature=jnp.full_like(begun.curvature, 1e-300), spread=-jnp.ones(n_problems)
        )
        expected, found = go(empty, 100), go(uphill, 100)
    assert int(found.turn) == int(expected.turn) + 1
    assert (np.asarray(expected.status) == steps.CONVERGED).all()
    for name in ("weights", "logits", "row_loss", "residual", "loss", "n_iter", "status"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)


def test_losses_of_two_classes_far_from_0(rng):
    z = np.concatenate([[0.0, -0.0, 1e-6, 88, -88, 200, -200], rng.normal(size=50) * 10])
    logits, y = z.astype(np.float32)[None, None, :], rng.integers(0, 2, len(z))[None]
    loss, slope = steps._row_terms(jnp.asarray(logits), jnp.asarray(y), 1)
    against = np.where(y == 1, -1, 1) * logits[:, 0].astype(np.float64)
    share = np.exp(-np.logaddexp(0, -against))
    np.testing.assert_allclose(loss, np.logaddexp(0, against), rtol=5e-7, atol=1e-37)
    np.testing.assert_allclose(slope[:, 0], np.where(y == 1, -share, share), rtol=5e-7, atol=1e-37)
