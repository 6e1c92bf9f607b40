"""Neighbours at chance: found where rows were shuffled, and nowhere else."""

import numpy as np
import oracles
import pytest

from pathorob_jax.metrics.chance import NEAREST, measure_agreement


def design(n_slides, rows, n_bio, n_center):
    """Slides of one class at one centre each: class, centre and slide of each row."""
    bio, center, _, _ = np.indices((n_bio, n_center, n_slides, rows)).reshape(4, -1)
    return bio, center, np.arange(len(bio)) // rows


def embed(rng, bio, center, slide, *, biology, hospital, dim=16, slides=0.5):
    x = rng.normal(size=(len(bio), dim)) + slides * rng.normal(size=(slide.max() + 1, dim))[slide]
    x += biology * rng.normal(size=(bio.max() + 1, dim))[bio]
    x += hospital * rng.normal(size=(center.max() + 1, dim))[center]
    return x.astype(np.float32)


def is_at_chance(x, labels, slide, k=NEAREST):
    neighbors, _ = oracles.nearest(x, slide, k)
    return all(measure_agreement([neighbors], [label], [slide]).at_chance for label in labels)


def test_the_expected_share_is_the_mean_over_rows_of_other_slides(rng):
    label, slide = rng.integers(0, 3, 60), rng.integers(0, 7, 60)
    neighbors, _ = oracles.nearest(rng.normal(size=(60, 4)), slide, 5)
    found = measure_agreement([neighbors], [label], [slide])
    others = [np.flatnonzero(slide != s) for s in slide]
    expected = [np.mean(label[rows] == own) for rows, own in zip(others, label, strict=True)]
    assert found.expected == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.observed == np.mean(label[neighbors] == label[:, None])


def test_absent_neighbours_do_not_count():
    label, slide = np.array([0, 0, 1]), np.array([0, 1, 2])
    neighbors = np.array([[1, -1], [0, 2], [-1, -1]])
    found = measure_agreement([neighbors], [label], [slide])
    assert found.observed == 2 / 3
    nothing = measure_agreement([np.full((3, 2), -1)], [label], [slide])
    assert np.isnan(nothing.observed)
    assert not nothing.at_chance


def test_the_deviation_is_that_of_shuffled_rows(rng):
    """Over many shuffles, the share spreads about its expectation as the one shuffle says."""
    bio, center, slide = design(3, 6, 2, 3)
    x = embed(rng, bio, center, slide, biology=2, hospital=2)
    shares = []
    for seed in range(50):
        order = rng.permutation(len(x))
        neighbors, _ = oracles.nearest(x[order], slide, NEAREST)
        found = measure_agreement([neighbors], [center], [slide], seed=seed)
        shares.append((found.observed - found.expected) / found.deviation)
    assert abs(np.mean(shares)) < 0.5
    assert 0.7 < np.std(shares) < 1.4


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        (3, 8, 2, 2),
        pytest.param((3, 8, 2, 3), marks=pytest.mark.campaign),
        pytest.param((6, 20, 2, 2), marks=pytest.mark.campaign),
        (4, 10, 4, 3),
    ],
)
def test_shuffled_rows_are_at_chance(rng, shape):
    bio, center, slide = design(*shape)
    x = embed(rng, bio, center, slide, biology=2, hospital=2)
    shuffled = [is_at_chance(x[rng.permutation(len(x))], (bio, center), slide) for _ in range(10)]
    assert all(shuffled)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        (3, 8, 2, 2),
        pytest.param((3, 8, 2, 3), marks=pytest.mark.campaign),
        pytest.param((6, 20, 2, 2), marks=pytest.mark.campaign),
        (4, 10, 4, 3),
    ],
)
@pytest.mark.parametrize(("biology", "hospital"), [(2, 0), (0, 2), (0.7, 0.7), (0, 0.7)])
def test_rows_of_a_model_that_sees_either_are_not(rng, shape, biology, hospital):
    bio, center, slide = design(*shape)
    for _ in range(5):
        x = embed(rng, bio, center, slide, biology=biology, hospital=hospital)
        assert not is_at_chance(x, (bio, center), slide)


def test_few_rows_say_nothing(rng):
    bio, center, slide = design(1, 3, 2, 2)
    x = rng.normal(size=(len(bio), 4))
    assert not is_at_chance(x, (bio, center), slide, k=5)


@pytest.mark.slow
def test_patches_that_recur_in_scopes_are_no_further_evidence(rng):
    bio, _, slide = design(4, 10, 2, 2)
    neighbors, _ = oracles.nearest(rng.normal(size=(len(bio), 8)), slide, NEAREST)
    once = measure_agreement([neighbors], [bio], [slide])
    nine = measure_agreement([neighbors] * 9, [bio] * 9, [slide] * 9, occurrences=9)
    assert nine.observed == once.observed
    assert 0.6 < nine.deviation / once.deviation < 1.6
