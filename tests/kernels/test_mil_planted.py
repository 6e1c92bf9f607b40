"""A label that a twentieth of a bag's tiles carries: learned, and found by attention."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from pathorob_jax.kernels.mil import fit
from pathorob_jax.kernels.mil.bags import BagRows
from pathorob_jax.kernels.mil.presets import PRESETS

BAGS, TRAINING, TILES, DIM = 220, 100, 40, 16
SIGNAL, SPREAD = 10.0, 1.5


@pytest.fixture(scope="module")
def planted():
    """Two carriers in bags of label 1; along their direction, bags differ as wholes (stains do)."""
    rng = np.random.default_rng(7)
    label = np.arange(BAGS) % 2
    direction = np.full(DIM, 1 / np.sqrt(DIM))
    x = rng.normal(size=(BAGS, TILES, DIM))
    x += SPREAD * rng.normal(size=(BAGS, 1, 1)) * direction
    carries = np.zeros((BAGS, TILES), bool)
    for bag in np.flatnonzero(label):
        carries[bag, rng.choice(TILES, TILES // 20, replace=False)] = True
    x += SIGNAL * carries[:, :, None] * direction
    bags = BagRows(x.reshape(-1, DIM).astype(np.float32), np.arange(BAGS + 1) * TILES)
    return bags, label, carries


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated", pytest.param("xmil", marks=pytest.mark.campaign)])
def test_the_label_is_learned_and_its_tiles_are_found(planted, name):
    """With the presets' optimisers on a smaller network, where a mean of tiles sees little."""
    bags, label, carries = planted
    settings = PRESETS[name]._replace(projection=64, attention=32)
    if name == "xmil":
        settings = settings._replace(epochs=150, learning_rate=0.02)
    validation = np.arange(BAGS) // 20 == TRAINING // 20
    test = np.arange(TRAINING + 20, BAGS)
    trained = fit.train_mil(
        bags, label, np.arange(TRAINING)[None], validation[None], n_classes=2, settings=settings,
        seeds=np.array([0]),
    )  # fmt: skip
    logits = fit.predict_mil(trained, bags, test)[0]
    attention = fit.attend(trained, bags, test)[0].reshape(-1, TILES)
    positive = label[test] == 1
    found = roc_auc_score(carries[test][positive].ravel(), attention[positive].ravel())
    area = roc_auc_score(label[test], logits[:, 1] - logits[:, 0])
    assert area >= 0.95
    assert found >= 0.9


@pytest.mark.slow
def test_the_mean_of_tiles_does_not_show_the_label(planted):
    bags, label, _ = planted
    means = bags.x.reshape(BAGS, TILES, DIM).mean(1)
    probe = LogisticRegression(C=1.0).fit(means[:TRAINING], label[:TRAINING])
    test = np.arange(TRAINING + 20, BAGS)
    assert roc_auc_score(label[test], probe.decision_function(means[test])) < 0.7
