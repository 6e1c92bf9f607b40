"""Residual centre: the permutations, and what is read where nothing or everything is left."""

import numpy as np
import pytest

from pathorob_jax.metrics import residual_center


@pytest.fixture
def case():
    """Four quarters of nine slides; three centres; four rows a slide."""
    slide = np.repeat(np.arange(36), 4)
    return slide // 9, slide, slide % 3  # quarter, slide, centre


def quarter_rows(quarter):
    return np.stack([np.flatnonzero(quarter == q) for q in range(4)])


def test_centres_are_dealt_to_whole_slides_of_a_stratum(case):
    quarter, slide, center = case
    permuted = residual_center.permute_within(center, slide, quarter, permutations=5, seed=0)
    assert permuted.shape == (5, len(slide))
    assert any((p != center).any() for p in permuted)
    for dealt in permuted:
        for s in range(36):
            assert len(set(dealt[slide == s])) == 1
        for q in range(4):
            np.testing.assert_array_equal(
                np.bincount(dealt[quarter == q]), np.bincount(center[quarter == q])
            )


def test_a_slide_of_several_centres_is_permuted_by_rows(case):
    quarter, slide, _ = case
    center = np.arange(len(slide)) % 2
    [dealt] = residual_center.permute_within(center, slide, quarter, permutations=1, seed=0)
    assert (dealt != center).any()
    assert dealt.sum() == center.sum()


@pytest.mark.slow
def test_a_planted_centre_is_read_and_noise_is_not(case, rng):
    quarter, slide, center = case
    permuted = residual_center.permute_within(center, slide, quarter, permutations=4, seed=0)
    labels = np.concatenate([center[None], permuted])
    options = {"n_centers": 3, "seed": 0}
    noise = rng.normal(size=(len(slide), 5)).astype(np.float32)
    nothing = residual_center.probe_center(noise, labels, quarter_rows(quarter), **options)
    planted = noise + 6 * rng.normal(size=(3, 5)).astype(np.float32)[center]
    found = residual_center.probe_center(planted, labels, quarter_rows(quarter), **options)
    for name in residual_center.PROBES:
        assert found[name].auc > 0.95
        assert found[name].permuted.max() < 0.9
        assert abs(nothing[name].auc - 0.5) < 0.2


@pytest.mark.slow
def test_too_few_slides_have_no_area(case, rng):
    quarter, slide, center = case
    x = rng.normal(size=(len(slide), 2)).astype(np.float32)
    found = residual_center.probe_center(
        x, center[None], np.zeros((4, 0), int), n_centers=3, seed=0
    )
    assert all(np.isnan(found[name].auc) for name in residual_center.PROBES)
