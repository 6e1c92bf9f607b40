"""Silhouettes of many labelings against scikit-learn's, one by one."""

import numpy as np
import pytest
import sklearn.metrics

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.kernels.clustering import silhouette
from pathorob_jax.kernels.clustering.silhouette import silhouette_samples

METRICS = ["cosine", "euclidean"]


def theirs(x, labels, metric):
    return np.stack([sklearn.metrics.silhouette_samples(x, one, metric=metric) for one in labels])


@pytest.fixture
def labelings(rng):
    """Of 203 rows: by halves, many clusters, with a cluster of one row, with numbers left out."""
    x = (rng.normal(size=(203, 17)) + 0.5).astype(np.float32)
    few, many, alone = (rng.integers(k, size=203) for k in (2, 30, 5))
    alone[11] = 5
    return x, np.stack([x[:, 0] > 0.5, few, many, alone, 3 * few + 2]).astype(np.int32)


@pytest.mark.parametrize("metric", METRICS)
def test_samples_are_scikit_learns(labelings, metric):
    x, labels = labelings
    got = silhouette_samples(x, labels, metric=metric)
    np.testing.assert_allclose(got, theirs(x, labels, metric), atol=1e-6)
    assert got[3, 11] == 0  # alone
    np.testing.assert_allclose(got[4], got[1], atol=1e-7)
    assert got.dtype == np.float64


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows(rng, metric):
    # Distance 0 inside clusters: float32 differences of norms would leave noise of 1e-3.
    x = rng.normal(size=(4, 50)).astype(np.float32)[np.repeat(np.arange(4), 9)]
    labels = np.stack([np.repeat(np.arange(4), 9), np.repeat([0, 0, 1, 2], 9), np.arange(36) % 2])
    got = silhouette_samples(x, labels, metric=metric)
    np.testing.assert_allclose(got[0], 1, atol=1e-5)
    # At scikit-learn the cosine of equal rows is not exactly 1 either.
    np.testing.assert_allclose(got[1], theirs(x, labels[1:2], metric)[0], atol=1e-5)
    # Every kind half here, half there: within about what between.
    np.testing.assert_allclose(got[2], theirs(x, labels[2:], metric)[0], atol=1e-5)


def test_cosine_takes_rows_of_any_length(labelings, rng):
    x, labels = labelings
    length = np.exp(rng.normal(size=(len(x), 1))).astype(np.float32)
    np.testing.assert_allclose(
        silhouette_samples(x * length, labels), silhouette_samples(x, labels), atol=1e-6
    )


@pytest.mark.parametrize("metric", METRICS)
def test_undefined_labelings_are_nan(rng, metric):
    # scikit-learn raises there.
    x = rng.normal(size=(12, 3))
    got = silhouette_samples(x, [[0] * 12, range(12), [0, 1] * 6], metric=metric)
    assert np.isnan(got[:2]).all()
    assert np.isfinite(got[2]).all()


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_memory_is_bounded_and_changes_nothing(labelings, metric):
    x, labels = labelings
    n, width = len(x), labels.max() + 1
    if metric == "cosine":
        least = silhouette.BYTES_PER_MEAN * n * width
    else:
        least = silhouette.BYTES_PER_DISTANCE * (n + len(labels) * width)
    whole = silhouette_samples(x, labels, metric=metric)
    # One labeling at a time and two (five are no multiple); two rows and 37 of 203.
    for budget in (2 * least, 37 * least):
        got = silhouette_samples(x, labels, metric=metric, budget_bytes=budget)
        np.testing.assert_allclose(got, whole, atol=1e-6)
    with pytest.raises(InputError, match=rf"budget_bytes: .* {least} bytes, found {least - 1}"):
        silhouette_samples(x, labels, metric=metric, budget_bytes=int(least) - 1)


@pytest.mark.slow
def test_refusals(rng):
    x = rng.normal(size=(6, 2))
    with pytest.raises(UsageError, match="metric: unknown name 'cosin'"):
        silhouette_samples(x, [[0, 1] * 3], metric="cosin")
    with pytest.raises(TypeError, match="labels"):
        silhouette_samples(x, [[0.0, 1.0] * 3])
    with pytest.raises(InputError, match="labels: expected shape"):
        silhouette_samples(x, [[0, 1]])
    with pytest.raises(InputError, match="labels: expected numbers from 0, found -1"):
        silhouette_samples(x, [[0, -1] * 3])


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "dim"), [(37, 301), (90, 64), (150, 768)])
def test_two_clusters_of_equal_rows_are_zero(rng, metric, n, dim):
    x = np.tile(rng.normal(size=dim), (n, 1)).astype(np.float32)
    half = np.arange(n) % 3 > 0
    got = silhouette_samples(x, [half.astype(int)], metric=metric)
    np.testing.assert_allclose(got, 0, atol=1e-12)
    # The same beside a third cluster: the first two lie on each other.
    both = np.concatenate([x, rng.normal(size=(n, dim))]).astype(np.float32)
    labels = np.concatenate([half, np.full(n, 2)])
    got = silhouette_samples(both, [labels], metric=metric)
    np.testing.assert_allclose(got[0, :n], 0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [3, 100, 3000, 1e5])
def test_cosine_keeps_its_digits_where_rows_point_one_way(rng, offset):
    # 1 - cos cancels: the oracle takes differences of unit rows.
    x = (rng.normal(size=(90, 30)) + offset).astype(np.float32)
    x[:40, 0] += 2
    labels = np.stack([np.arange(90) < 40, np.arange(90) % 3]).astype(int)
    unit = x / np.linalg.norm(x.astype(np.longdouble), axis=1, keepdims=True)
    distance = (((unit[:, None] - unit[None]) ** 2).sum(2) / 2).astype(np.float64)
    expected = theirs(distance, labels, "precomputed")
    np.testing.assert_allclose(silhouette_samples(x, labels), expected, atol=1e-6)
