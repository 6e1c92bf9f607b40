"""Areas of drawn rows: scikit-learn's weighted area, draw by draw."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.bootstrap import draws
from pathorob_jax.kernels.bootstrap.auc import count_ordered_pairs, weighted_auc


@pytest.mark.parametrize("decimals", [6, 1])
def test_equals_the_weighted_area_of_each_draw(rng, decimals):
    n, n_groups = 200, 9
    group = rng.choice([0, 1, 2, 4, 5, 6, 7, 8], n)  # group 3 has no row
    positive = rng.random(n) < 0.4
    scores = np.round(rng.normal(size=n) + positive, decimals)  # one decimal: many ties
    weights = draws.draw_group_weights(n_groups, draws=50, seed=1)
    got = weighted_auc(weights, scores, positive, group)
    expected = [roc_auc_score(positive, scores, sample_weight=w[group]) for w in weights]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_pairs_are_counted_between_groups():
    scores = np.array([3.0, 1.0, 2.0, 1.0])
    positive = np.array([True, True, False, False])
    got = count_ordered_pairs(scores, positive, np.array([0, 1, 0, 1]), n_groups=2)
    assert got.tolist() == [[1.0, 1.0], [0.0, 0.5]]


@pytest.mark.slow
def test_a_draw_without_one_of_the_labels_is_undefined():
    weights = np.array([[1, 1], [2, 0], [0, 2]], np.int32)
    got = weighted_auc(weights, np.array([0.2, 0.9]), np.array([False, True]), np.array([0, 1]))
    assert got[0] == 1.0
    assert np.isnan(got[1:]).all()
    with pytest.raises(InputError, match="group_id"):
        weighted_auc(weights, np.zeros(2), np.zeros(2, bool), np.zeros(3, int))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_rank_nothing_are_refused(bad):
    scores, label = np.array([0.2, bad, 0.9]), np.array([False, True, True])
    with pytest.raises(InputError, match=r"scores: .*found 1 .*row 1"):
        weighted_auc(np.ones((1, 1), int), scores, label, np.zeros(3, int))
