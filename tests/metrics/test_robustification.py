"""What a robustifier changed, beside NumPy and scikit-learn."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathorob_jax.kernels.bootstrap.draws import plan_jackknife
from pathorob_jax.metrics import robustification
from pathorob_jax.robustify.moments import measure_moments


def moments_of(x, center):
    zeros = np.zeros(len(x), int)
    return measure_moments(
        lambda rows: x[rows], zeros, center, n_classes=1, n_centers=3, scatter="total"
    )


@pytest.fixture
def case(rng):
    center = np.arange(90) % 3
    x = (rng.normal(size=(90, 5)) * [5, 2, 1, 1, 0.1]).astype(np.float32)
    return x, center


@pytest.mark.slow
def test_spread_equals_numpy(case):
    x, center = case
    spread = robustification.measure_spread(moments_of(x, center))
    values = np.linalg.eigvalsh(np.cov(x.T.astype(np.float64), bias=True))
    shares = values / values.sum()
    np.testing.assert_allclose(spread.total, values.sum() * 90, rtol=1e-10)
    np.testing.assert_allclose(
        spread.effective_rank, np.exp(-(shares * np.log(shares)).sum()), rtol=1e-8
    )
    round_ = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    equal = robustification.measure_spread(moments_of(round_, np.arange(8) % 3))
    np.testing.assert_allclose(equal.effective_rank, 4, rtol=1e-12)


def test_moments_without_products_have_no_spread(case):
    moments = dataclasses.replace(moments_of(*case), scatter=None)
    with pytest.raises(ValueError, match="products of dimensions were not measured"):
        robustification.measure_spread(moments)


def test_shifts_equal_numpy(case):
    x, center = case
    after = x.copy()
    after[center == 1] += np.array([3, 0, 4, 0, 0], np.float32)
    after[center == 2] *= 2
    moved = robustification.measure_shifts(moments_of(x, center), moments_of(after, center))
    unit = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose([moved.shift[0], moved.scale[0]], [0, 1], atol=1e-12)
    np.testing.assert_allclose(moved.shift[1], 5 / unit, rtol=1e-5)
    np.testing.assert_allclose(moved.scale[1:], [1, 2], rtol=1e-5)


def test_neighbours_that_stay():
    before = np.array([[1, 2, 3], [4, 5, -1], [-1, -1, -1]])
    after = np.array([[3, 1, 9], [6, 7, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(robustification.share_kept(before, after), [2 / 3, 0, np.nan])
    np.testing.assert_array_equal(robustification.share_kept(before, before), [1, 1, np.nan])


@pytest.mark.slow
def test_biology_equals_sklearn(rng):
    slide = np.repeat(np.arange(24), 5)
    bio, center, half = slide % 3, slide // 12, slide // 3 % 2
    x = rng.normal(size=(120, 6)).astype(np.float32)
    x[:, 0] += bio
    half_rows = np.stack([np.flatnonzero(half == h) for h in range(2)])
    jackknife = plan_jackknife(24, draws=200, seed=0)
    found = robustification.probe_biology(
        x, bio, center, half_rows, block_id=slide, weights=jackknife.left_out
    )
    whole, of_center, without = [], [], []
    for train, test in (half_rows, half_rows[::-1]):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
        scores = model.fit(x[train], bio[train]).predict_proba(x[test])

        def area(keep, scores=scores, test=test):
            return [roc_auc_score(bio[test][keep] == c, scores[keep, c]) for c in range(3)]

        whole.append(area(slice(None)))
        of_center.append([np.mean(area(center[test] == m)) for m in range(2)])
        without.append(np.mean(area(slide[test] != 7)))
    # Both solvers stop at a gradient of 1e-4, where a pair of rows may still change places.
    tolerance = {"atol": 3e-3}
    np.testing.assert_allclose(found.per_class, np.mean(whole, 0), **tolerance)
    np.testing.assert_allclose(found.auc, np.mean(whole), **tolerance)
    np.testing.assert_allclose(found.per_center, np.mean(of_center, 0), **tolerance)
    np.testing.assert_allclose(found.replicates[7], np.mean(without), **tolerance)
    assert found.replicates.shape == (24,)


@pytest.mark.slow
def test_one_class_has_no_area(rng):
    zeros = np.zeros(8, int)
    found = robustification.probe_biology(
        rng.normal(size=(8, 2)).astype(np.float32),
        zeros,
        np.arange(8) % 2,
        np.arange(8).reshape(2, 4),
        block_id=np.arange(8),
        weights=np.ones((3, 8), np.int32),
    )
    assert np.isnan([found.auc, *found.per_class, *found.per_center, *found.replicates]).all()
