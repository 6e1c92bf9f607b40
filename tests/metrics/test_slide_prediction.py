"""Scores of bags, areas, drops, and the classifier of mean-pooled bags, against scikit-learn."""

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from pathorob_jax.core.checks import UsageError
from pathorob_jax.kernels.mil.bags import BagRows
from pathorob_jax.kernels.mil.survival import SurvivalTarget
from pathorob_jax.metrics import apd, slide_heads, slide_scores
from pathorob_jax.metrics.slide_heads import BagSplits
from pathorob_jax.metrics.slide_prediction import macro_auc, measure_drops, score_classes

GRID = (1e-3, 1e-1, 1e1)


def test_areas_equal_scikit_learn(rng):
    label = np.array([0, 1, 2, 3] * 6)
    logits = rng.normal(size=(3, 2, 24, 4)).round(1)  # rounded: with ties
    found = macro_auc(score_classes(logits), label)
    assert found.shape == (3, 2)
    for place in np.ndindex(3, 2):
        chances = special.softmax(logits[place], axis=-1)
        expected = roc_auc_score(label, chances, multi_class="ovr", average="macro")
        np.testing.assert_allclose(found[place], expected, rtol=1e-12)
    one = rng.normal(size=(24, 1)).round(1)
    expected = roc_auc_score(label > 1, one[:, 0])
    np.testing.assert_allclose(macro_auc(score_classes(one), label > 1), expected, rtol=1e-12)
    assert expected != 0.5


def test_areas_are_not_flipped_and_need_every_class():
    scores = score_classes(np.array([[3.0], [2.0], [-1.0], [-2.0]]))
    assert macro_auc(scores, [0, 0, 1, 1]) == 0.0
    assert macro_auc(scores, [1, 1, 0, 0]) == 1.0
    assert np.isnan(macro_auc(scores, [1, 1, 1, 1]))
    assert np.isnan(macro_auc(np.zeros((5, 4, 3)), [0, 1, 0, 1])).all()
    assert np.isnan(macro_auc(np.zeros((5, 0, 3)), np.zeros(0, int))).all()


def test_scores_are_log_odds_and_do_not_saturate():
    logits = np.array([[1.0, -0.5, 2.0]])
    chances = special.softmax(logits)
    np.testing.assert_allclose(score_classes(logits), special.logit(chances), rtol=1e-12)
    np.testing.assert_array_equal(score_classes([[0.25]]), [[-0.25, 0.25]])
    far = score_classes([[0.0, 900.0, 1.0], [0.0, 950.0, 1.0]])
    assert far[0, 1] < far[1, 1] < np.inf


def test_drops_are_those_of_patches():
    values = np.array([[0.9, 0.8], [0.7, 0.8], [0.6, 0.4]])
    sizes = {"n_training": 8, "n_test": 4}
    found = measure_drops(values, [0, 0.5, 1], n_levels=2, in_domain=True, **sizes)
    assert found.drop == apd.average_performance_drop(values)
    assert found.nipd == apd.normalized_integrated_drop(values, [0, 0.5, 1], n_classes=2)
    assert found.ci95 == apd.drop_interval(values, in_domain=True, **sizes)
    partly = measure_drops(values, [0, 0.5, 0.9], n_levels=2, in_domain=True, **sizes)
    assert np.isnan(partly.nipd)
    assert partly.drop == found.drop
    empty = measure_drops(values * np.nan, [0, 0.5, 1], n_levels=2, in_domain=False, **sizes)
    assert np.isnan([empty.drop, empty.nipd]).all()
    assert empty.ci95 is None


def make_splits(rng, *, n_bags=20, n_classes=2):
    """Bags of 1 to 5 rows; the first twelve train, in two splits, the next four validate."""
    sizes = rng.integers(1, 6, n_bags)
    label = np.arange(n_bags) % n_classes
    starts = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.normal(size=(starts[-1], 6)) + np.repeat(1.2 * np.eye(6)[label], sizes, axis=0)
    bags = BagRows(x.astype(np.float32), starts)
    validation = np.zeros((2, n_bags), bool)
    validation[:, 12:16] = True
    return BagSplits(
        bags=bags,
        target=label,
        training=np.array([[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 8, 9, 10, 11]]),
        validation=validation,
        tests=[(bags, np.arange(16, n_bags))],
        n_classes=n_classes,
        seed=3,
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 4])
def test_mean_pooling_equals_scikit_learn(rng, n_classes):
    splits = make_splits(rng, n_classes=n_classes)
    head, settings = slide_heads.make_head(
        "mean", epochs=None, seeds=1, c_grid=GRID, stopping="converged", budget_bytes=2**28
    )
    calls = head(splits)
    assert settings == {"c_grid": list(GRID), "stopping": "converged"}
    x, starts = np.asarray(splits.bags.x, np.float64), splits.bags.starts
    means = np.stack([x[a:b].mean(axis=0) for a, b in zip(starts, starts[1:], strict=False)])
    assert calls.logits[0].shape == (2, 1, 4, 1 if n_classes == 2 else 4)
    for split, training in enumerate(splits.training):
        held = splits.validation[split]
        fits = [
            LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(
                means[training], splits.target[training]
            )
            for c in GRID
        ]
        accuracy = [
            np.mean(
                [
                    (fit.predict(means[held]) == splits.target[held])[
                        splits.target[held] == c
                    ].mean()
                    for c in np.unique(splits.target[held])
                ]
            )
            for fit in fits
        ]
        loss = [
            log_loss(splits.target[held], f.predict_proba(means[held]), labels=range(n_classes))
            for f in fits
        ]
        best = min(range(3), key=lambda i: (-accuracy[i], loss[i]))
        assert calls.chosen[split, 0] == GRID[best]
        expected = fits[best].decision_function(means[16:])
        found = score_classes(calls.logits[0][split, 0])
        expected = score_classes(expected[:, None] if n_classes == 2 else expected)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_equal_accuracies_leave_the_choice_to_the_loss():
    label = np.array([0, 1])
    odds = np.array([[[1.0], [1.0]], [[-1.0], [1.0]], [[-3.0], [3.0]], [[-2.0], [2.0]]])
    assert slide_heads._best(score_classes(odds), label, 2) == 2
    assert slide_heads._best(score_classes(odds[[0, 1, 3]]), label, 2) == 2


def test_unknown_presets_are_named():
    with pytest.raises(UsageError, match="unknown name 'means'. Did you mean 'mean'"):
        slide_heads.make_head(
            "means", epochs=None, seeds=1, c_grid=GRID, stopping="reference", budget_bytes=1
        )


def test_means_predict_no_survival(rng):
    head, _ = slide_heads.make_head(
        "mean", epochs=None, seeds=1, c_grid=GRID, stopping="reference", budget_bytes=2**28
    )
    splits = make_splits(rng)
    n = len(splits.target)
    target = SurvivalTarget(splits.target, np.ones(n, bool), np.arange(1.0, n + 1))
    with pytest.raises(UsageError, match="presets: mean predicts classes alone; leave it out"):
        head(splits._replace(target=target))


@pytest.mark.slow
def test_the_likelihood_of_survival_is_that_of_float64():
    rng = np.random.default_rng(0)
    logits, bins = rng.normal(size=(2, 9, 4)) * 3, rng.integers(0, 4, 9)
    event = rng.random(9) < 0.5
    hazard = special.expit(logits)
    expected = []
    for k in range(2):
        for t, (b, seen) in enumerate(zip(bins, event, strict=True)):
            passed = hazard[k, t, : b if seen else b + 1]
            expected.append(-np.log1p(-passed).sum() - (np.log(hazard[k, t, b]) if seen else 0))
    measure = slide_scores.measure_survival(logits, np.arange(9.0), event, bins)
    kept = np.arange(9) != 4
    found = measure(kept)[slide_scores.NLL]
    np.testing.assert_allclose(found, np.reshape(expected, (2, 9))[:, kept].mean(), rtol=1e-12)
