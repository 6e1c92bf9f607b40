"""Probes on held-out slides beside scikit-learn's classifiers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathorob_jax.kernels import mlp
from pathorob_jax.metrics import held_out_probes as held_out


def planted(rng, n, n_labels, *, spread=1.0):
    label = rng.integers(0, n_labels, n)
    means = np.random.default_rng(1).normal(size=(n_labels, 6))
    x = means[label] + spread * rng.normal(size=(n, 6))
    return x.astype(np.float32), label


@pytest.mark.slow
@pytest.mark.parametrize("n_labels", [2, 3])
def test_linear_equals_sklearn(rng, n_labels):
    (x, label), (x_test, true) = (planted(rng, n, n_labels, spread=2.0) for n in (120, 90))
    x[:, 0], x_test[:, 0] = 7.0, 7.0  # constant
    scores = held_out.score_linear(x, label[None], x_test, n_labels=n_labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    expected = model.fit(x, label).predict_proba(x_test)
    areas = held_out.find_areas(scores.values[0], true)
    each = [roc_auc_score(true == c, expected[:, c]) for c in range(n_labels)]
    np.testing.assert_allclose(areas, each, atol=2e-3)  # both stop at a gradient of 1e-4
    if n_labels > 2:
        np.testing.assert_allclose(scores.values[0], expected, atol=2e-3)
    assert scores.n_unconverged == 0


def test_votes_equal_sklearn(rng):
    x, label = planted(rng, 80, 3, spread=2.0)
    side = np.arange(80) % 2
    near = held_out.find_across(x, side, k=5)
    assert (side[near] != side[:, None]).all()
    scores = held_out.score_votes(near[side == 1], label[None], n_labels=3)
    model = KNeighborsClassifier(n_neighbors=5, metric="cosine", algorithm="brute")
    expected = model.fit(x[side == 0], label[side == 0]).predict_proba(x[side == 1])
    np.testing.assert_allclose(scores.values[0], expected, atol=1e-12)


def test_areas_with_ties_equal_sklearn(rng):
    scores, label = rng.integers(0, 4, (50, 3)).astype(float), rng.integers(0, 3, 50)
    expected = [roc_auc_score(label == c, scores[:, c]) for c in range(3)]
    np.testing.assert_allclose(held_out.find_areas(scores, label), expected, rtol=1e-12)
    np.testing.assert_allclose(held_out.macro_area(scores, label), np.mean(expected))
    # Below one half stays below.
    worst = -(label[:, None] == np.arange(3)).astype(float)
    assert held_out.macro_area(worst, label) == 0.0


def test_labels_without_rows_do_not_count(rng):
    scores, label = rng.normal(size=(20, 3)), np.arange(20) % 2
    areas = held_out.find_areas(scores, label)
    assert np.isnan(areas[2])
    unknown = held_out.find_areas(scores, label, np.array([True, False, True]))
    assert np.isnan(unknown).tolist() == [False, True, True]
    assert np.isnan(held_out.macro_area(scores[:0], label[:0]))


@pytest.mark.campaign
def test_the_network_sees_what_a_line_does_not(rng):
    x = rng.normal(size=(600, 4)).astype(np.float32)
    label = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(int)
    parts = x[:400], label[None, :400], x[400:]
    line = held_out.score_linear(*parts, n_labels=2).values[0]
    network = held_out.score_mlp(*parts, n_labels=2, seed=0).values[0]
    assert held_out.macro_area(line, label[400:]) < 0.65
    assert held_out.macro_area(network, label[400:]) > 0.9


@pytest.mark.campaign
@pytest.mark.slow
def test_each_network_learns_its_own_labels(rng):
    x, label = planted(rng, 64, 2)
    other = 1 - label
    rows, seen = np.tile(np.arange(64), (2, 1)), np.ones((2, 64), bool)

    def train(labels):
        return mlp.train_mlps(x, labels, rows, x, labels, seen, n_classes=2, seed=3)

    both = mlp.predict_logits(train(np.stack([label, other])), x)
    np.testing.assert_array_equal(both[0], mlp.predict_logits(train(label), x)[0])
    np.testing.assert_array_equal(both[1], mlp.predict_logits(train(other), x)[1])
    assert (both.argmax(2)[0] != both.argmax(2)[1]).mean() > 0.5


@pytest.mark.slow
def test_rows_are_spread_over_slides():
    part = np.repeat([0, 1], [12, 9])
    group = np.repeat([0, 1, 2, 3, 4], [8, 2, 2, 5, 4])
    rows = held_out.spread_rows(part, group, n_parts=2, limit=6)
    assert rows.shape == (2, 6)
    assert np.bincount(group[rows[0]], minlength=5).tolist() == [2, 2, 2, 0, 0]
    assert np.bincount(group[rows[1]], minlength=5).tolist() == [0, 0, 0, 3, 3]
    assert held_out.spread_rows(part, group, n_parts=2, limit=100).shape == (2, 9)
    assert held_out.spread_rows(part, group, n_parts=3, limit=6).shape == (3, 0)
