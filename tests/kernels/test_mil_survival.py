"""Survival in discrete time: against scikit-survival, and a network trained on it."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.mil import fit, survival
from pathorob_jax.kernels.mil.bags import BagRows
from pathorob_jax.kernels.mil.presets import PRESETS
from pathorob_jax.metrics.concordance import concordance_index

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "data/survival/sksurv.json").read_text())
N, TRAINING, TILES, DIM = 150, 100, 6, 4


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_curve_and_likelihood_are_those_of_kaplan_and_meier(case):
    """With their hazards: the curve, and the likelihood of each, in float64."""
    curve = np.array(case["curve"])
    before = np.concatenate([[1], curve[:-1]])
    with jax.enable_x64(True):
        hazard = 1 - curve / before
        logits = np.log(np.maximum(hazard, 1e-300)) - np.log1p(-hazard)
        np.testing.assert_allclose(survival.survival_curve(logits), curve, rtol=1e-12)
        n = len(case["bin"])
        loss = survival.survival_loss(
            jnp.tile(jnp.asarray(logits), (n, 1)), jnp.array(case["bin"]), jnp.array(case["event"])
        )
        assert loss.dtype == np.float64
        np.testing.assert_allclose(loss, case["loss"], rtol=1e-12, atol=1e-12)
        # They are the maximum of the likelihood, hence its gradient is 0 there.
        gradient = jax.grad(
            lambda v: survival.survival_loss(
                jnp.tile(v, (n, 1)), jnp.array(case["bin"]), jnp.array(case["event"])
            ).sum()
        )(jnp.asarray(logits))
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_losses_of_large_logits_are_finite():
    logits = jnp.array([[200.0, -200.0, 0.0], [-200.0, 200.0, 0.0]])
    found = survival.survival_loss(logits, jnp.array([1, 0]), jnp.array([True, False]))
    np.testing.assert_allclose(found, [400, 0], atol=1e-6)


def test_risk_falls_with_survival():
    np.testing.assert_allclose(survival.risk(np.zeros((1, 2))), [-0.75], rtol=1e-15)
    early, late = np.array([3.0, 0, 0]), np.array([-3.0, 0, 0])
    assert survival.risk(early) > survival.risk(late)


def test_bins_hold_equally_many_events():
    time = np.array([9, 1, 2, 3, 4, 5, 6, 7, 8, 100.0])
    event = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 0], bool)
    edges = survival.find_bin_edges(time, event)
    np.testing.assert_array_equal(edges, [2.75, 4.5, 6.25])
    bins = survival.assign_bins(time, edges)
    np.testing.assert_array_equal(np.bincount(bins[event]), [2, 2, 2, 2])
    np.testing.assert_array_equal(bins[~event], [3, 3])
    np.testing.assert_array_equal(survival.assign_bins([2.75, 2.7, 1e9], edges), [1, 0, 3])


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="none of 2 training bags has an observed event"):
        survival.find_bin_edges(np.ones(2), np.zeros(2, bool))
    with pytest.raises(InputError, match=r"time: expected finite times of 0 or more, found -1.0"):
        survival.find_bin_edges(np.array([1, -1.0]), np.ones(2, bool))
    with pytest.raises(InputError, match="event: expected 0"):
        survival.find_bin_edges(np.ones(2), np.array([1, 2]))
    bags, target = planted(0)
    target = target._replace(event=np.zeros(N, bool))
    with pytest.raises(InputError, match="fit 0: no observed event among 100 training bags"):
        fit.train_mil(
            bags,
            target,
            np.arange(TRAINING)[None],
            n_classes=4,
            settings=SETTINGS,
            seeds=np.array([0]),
        )


SETTINGS = PRESETS["gated"]._replace(
    projection=16, attention=8, epochs=12, learning_rate=3e-3, dropout=0.0
)


def planted(seed):
    """Bags whose tiles tell how early their event comes; a third is censored before."""
    rng = np.random.default_rng(seed)
    hazard = rng.normal(size=N)
    x = rng.normal(size=(N, TILES, DIM))
    x[:, :, 0] += hazard[:, None]
    time = rng.exponential(np.exp(-1.5 * hazard))
    event = rng.random(N) < 2 / 3
    time = np.where(event, time, time * rng.random(N))
    bags = BagRows(x.reshape(-1, DIM).astype(np.float32), np.arange(N + 1) * TILES)
    edges = survival.find_bin_edges(time[:TRAINING], event[:TRAINING])
    return bags, survival.SurvivalTarget(survival.assign_bins(time, edges), event, time)


@pytest.mark.campaign
@pytest.mark.slow
def test_planted_risk_is_learned():
    """The last and the best epoch; its validation score is Harrell's concordance."""
    bags, target = planted(0)
    validation = (np.arange(N) >= TRAINING)[None]
    means = bags.x[:, 0].reshape(N, TILES).mean(1)[TRAINING:]
    oracle = concordance_index(target.time[TRAINING:], target.event[TRAINING:], means)
    assert oracle.value > 0.75
    chosen = SETTINGS._replace(choose="best_validation_auc", batch_bags=8)
    for settings in (SETTINGS, chosen):
        trained = fit.train_mil(
            bags, target, np.arange(TRAINING)[None], validation, n_classes=4, settings=settings,
            seeds=np.array([1]),
        )  # fmt: skip
        test = np.flatnonzero(validation[0])
        risk = survival.risk(fit.predict_mil(trained, bags, test)[0])
        found = concordance_index(target.time[test], target.event[test], risk)
        assert found.value > oracle.value - 0.05
        assert trained.loss[0, -1] < trained.loss[0, 0] - 0.15
    assert trained.epoch[0] == 12 - trained.validation_score[0][::-1].argmax()
    np.testing.assert_allclose(found.value, trained.validation_score[0].max(), atol=1e-6)


@pytest.mark.slow
def test_the_loss_of_a_step_is_that_of_survival():
    """At a learning rate of 0 the loss of an epoch is the mean of the bags'."""
    bags, target = planted(0)
    settings = SETTINGS._replace(epochs=1, learning_rate=1e-30, schedule="constant")
    trained = fit.train_mil(
        bags, target, np.arange(TRAINING)[None], n_classes=4, settings=settings, seeds=np.array([1])
    )
    logits = fit.predict_mil(trained, bags, np.arange(TRAINING))[0]
    loss = survival.survival_loss(
        jnp.asarray(logits),
        jnp.asarray(target.bin_id[:TRAINING]),
        jnp.asarray(target.event[:TRAINING]),
    )
    np.testing.assert_allclose(trained.loss[0, 0], np.mean(loss), rtol=1e-5)
