"""Variance of class and centre by component, and cosines, against plain loops in float64."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pathorob_jax.kernels.pca import principal_axes
from pathorob_jax.metrics import feature_space as fs
from pathorob_jax.metrics.feature_space import NUMBERS, measure_cosines, measure_space

# Relative, of every component. The smallest carries about 1e-3 of the variance of the largest.
RTOL = 1e-10


def make_rows(n_classes, n_centers, slides, per_slide, dim, seed=0):
    """Balanced rows with effects of class, centre, both and slide; slides lie in one cell."""
    rng = np.random.default_rng(seed)
    bio, center, slide, _ = (
        a.ravel() for a in np.indices((n_classes, n_centers, slides, per_slide))
    )
    slide = slide + slides * (center + n_centers * bio)
    x = rng.normal(size=(len(bio), dim)) * np.geomspace(3, 0.3, dim)
    x += rng.normal(size=(n_classes, dim))[bio] + 2 * rng.normal(size=(n_centers, dim))[center]
    x += 0.5 * rng.normal(size=(n_classes, n_centers, dim))[bio, center]
    x += 0.3 * rng.normal(size=(slide.max() + 1, dim))[slide] + 5
    order = rng.permutation(len(x))
    return x[order], bio[order], center[order], slide[order]


def mean_by(values, *labels):
    """Each row's mean over the rows with its labels."""
    out = np.empty_like(values)
    keys = list(zip(*(label.tolist() for label in labels), strict=True))
    for key in set(keys):
        own = [i for i, other in enumerate(keys) if other == key]
        out[own] = values[own].mean(0)
    return out


def anova(values, bio, center):
    """Sums of squares by hand: class, centre, interaction, total, each per column."""
    values = values - values.mean(0)
    by_class, by_center = mean_by(values, bio), mean_by(values, center)
    both = mean_by(values, bio, center) - by_class - by_center
    return [(part**2).sum(0) for part in (by_class, by_center, both, values)]


def expected_components(x, bio, center):
    centered = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, lengths, directions = np.linalg.svd(centered, full_matrices=False)
    real = lengths > 1e-9 * lengths[0]
    class_, of_center, both, total = anova(centered @ directions[real].T, bio, center)
    share = lengths[real] ** 2 / (lengths**2).sum()
    return share, class_ / total, of_center / total, both / total


@pytest.mark.parametrize("dim", [12, 300], ids=["many rows", "many dimensions"])
@pytest.mark.parametrize(("n_classes", "n_centers"), [(2, 2), (3, 4)])
def test_components_equal_a_decomposition_and_an_analysis_by_hand(dim, n_classes, n_centers):
    x, bio, center, slide = make_rows(n_classes, n_centers, 3, 7, dim)
    got = measure_space(x, bio, center, slide, n_blocks=slide.max() + 1)
    share, class_, of_center, both = expected_components(x, bio, center)
    assert len(got.variance_share) == min(dim, len(x) - 1)
    assert_allclose(got.variance_share, share, rtol=RTOL)
    assert_allclose(got.eta2_class, class_, rtol=RTOL, atol=1e-13)
    assert_allclose(got.eta2_center, of_center, rtol=RTOL, atol=1e-13)
    assert_allclose(got.eta2_interaction, both, rtol=RTOL, atol=1e-13)
    assert_allclose(got.effective_rank, np.exp(-(share * np.log(share)).sum()), rtol=RTOL)
    assert_allclose(got.participation_ratio, 1 / (share**2).sum(), rtol=RTOL)


def test_numbers_are_sums_over_components_and_over_space():
    x, bio, center, slide = make_rows(3, 2, 4, 5, 20)
    got = measure_space(x, bio, center, slide, n_blocks=slide.max() + 1)
    class_, of_center, both, total = (part.sum() for part in anova(x, bio, center))
    assert_allclose(got.numbers["class_variance"], class_ / total, rtol=RTOL)
    assert_allclose(got.numbers["center_variance"], of_center / total, rtol=RTOL)
    assert_allclose(got.numbers["interaction_variance"], both / total, rtol=RTOL)
    assert_allclose(got.numbers["class_share"], class_ / (class_ + of_center), rtol=RTOL)
    carried = got.variance_share * got.eta2_center
    assert_allclose(carried.sum(), got.numbers["center_variance"], rtol=RTOL)
    assert_allclose(carried[:10].sum() / carried.sum(), got.numbers["center_in_first"], rtol=RTOL)
    first = got.variance_share[:10]
    assert_allclose(first.sum(), got.numbers["variance_in_first"], rtol=RTOL)
    assert_allclose(
        (first * got.eta2_class[:10]).sum() / first.sum(),
        got.numbers["first_eta2_class"],
        rtol=RTOL,
    )


def test_without_a_slide_the_cells_are_weighted_equally():
    x, bio, center, slide = make_rows(2, 3, 3, 4, 6)
    got = measure_space(x, bio, center, slide, n_blocks=slide.max() + 1)
    for left_out in (0, 7):
        kept = slide != left_out
        weight = np.zeros(len(x))
        for b, c in np.ndindex(2, 3):
            own = kept & (bio == b) & (center == c)
            weight[own] = 1 / own.sum() / 6
        rows = x - (weight[:, None] * x).sum(0)
        total = (weight[:, None] * rows**2).sum()
        means = [
            [rows[kept & (bio == b) & (center == c)].mean(0) for c in range(3)] for b in (0, 1)
        ]
        means = np.array(means)
        of_class = (means.mean(1) ** 2).sum(1).mean()
        assert_allclose(got.replicates["class_variance"][left_out], of_class / total, rtol=1e-9)
    # A block that holds all of a cell leaves nothing to compare.
    cell = bio * 3 + center
    whole = measure_space(x, bio, center, cell, n_blocks=7)
    assert np.isnan(whole.replicates["class_variance"][:6]).all()
    assert whole.replicates["class_variance"][6] == whole.numbers["class_variance"]


def test_tied_variances_are_found_up_to_a_rotation():
    """Two directions of equal variance: each alone is arbitrary, the sum of their eta^2 is not."""
    bio, center = (a.ravel() for a in np.indices((2, 2)).repeat(2, axis=2))
    signs = np.array([bio, center, np.arange(8) % 2, bio ^ center]).T * 2.0 - 1
    x = signs * np.array([1.0, 1.0, 0.5, 0.5])
    got = measure_space(x, bio, center, np.arange(8), n_blocks=8)
    assert_allclose(got.variance_share, [0.4, 0.4, 0.1, 0.1], rtol=1e-12)
    for eta2, pair, expected in (
        (got.eta2_class, slice(0, 2), 1),
        (got.eta2_center, slice(0, 2), 1),
        (got.eta2_class, slice(2, 4), 0),
        (got.eta2_interaction, slice(2, 4), 1),
    ):
        assert_allclose(eta2[pair].sum(), expected, atol=1e-12)
    turned = measure_space(
        x @ np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0],
        bio,
        center,
        np.arange(8),
        n_blocks=8,
    )
    assert_allclose([turned.numbers[n] for n in NUMBERS], [got.numbers[n] for n in NUMBERS])
    assert_allclose(turned.eta2_class[:2].sum(), 1, rtol=1e-12)


@pytest.mark.slow
def test_axes_have_unit_length_and_leave_out_what_has_no_variance():
    rng = np.random.default_rng(0)
    for shape in ((40, 6), (6, 40)):
        x = rng.normal(size=shape)
        x[:, 1] = x[:, 0]
        found = principal_axes(x)
        assert found.directions.shape == (shape[1], 5)
        assert_allclose(found.directions.T @ found.directions, np.eye(5), atol=1e-12)
        assert_allclose(found.explained.sum(), 1, rtol=1e-12)
    assert principal_axes(np.ones((5, 3))).directions.shape == (3, 0)


def test_equal_rows_and_empty_cells_are_undefined():
    bio, center, slide = (a.ravel() for a in np.indices((2, 2, 4)))
    x = np.full((16, 5), 1e3, np.float32) * (1 + np.arange(5))
    x[3] = np.nextafter(x[3], np.float32(np.inf))
    same = measure_space(x, bio, center, slide, n_blocks=4)
    assert same.variance_share.size == 0
    assert np.isnan([same.effective_rank, same.participation_ratio]).all()
    assert np.isnan(list(same.numbers.values())).all()
    assert np.isnan(measure_cosines(x, bio, center, slide, is_centered=True)).all()
    rows = np.random.default_rng(0).normal(size=(16, 5))
    as_they_are = measure_space(rows, bio, center, slide, n_blocks=4, is_balanced=False)
    assert_allclose(as_they_are.variance_share.sum(), 1)
    assert np.isnan(as_they_are.eta2_class).all()
    assert np.isnan(as_they_are.numbers["center_variance"])


def test_scopes_count_the_same_whatever_their_variance():
    parts = []
    for scale, dim, seed in ((1.0, 4, 0), (100.0, 9, 1)):
        x, bio, center, slide = make_rows(2, 2, 3, 4, dim, seed)
        parts.append(measure_space(scale * x, bio, center, slide, n_blocks=12))
    got = fs.average_spaces(parts)
    assert len(got.variance_share) == 9
    assert_allclose(got.variance_share.sum(), 1)
    for name, eta2 in (("class_variance", got.eta2_class), ("center_variance", got.eta2_center)):
        mean = np.mean([part.numbers[name] for part in parts])
        assert_allclose(got.numbers[name], mean)
        assert_allclose((got.variance_share * eta2).sum(), mean)
        assert_allclose(got.replicates[name][5], np.mean([p.replicates[name][5] for p in parts]))


@pytest.mark.slow
@pytest.mark.parametrize("is_centered", [False, True])
@pytest.mark.parametrize("dim", [6, 90])
def test_cosines_equal_those_of_all_pairs(is_centered, dim):
    x, bio, center, slide = make_rows(2, 3, 2, 4, dim)
    slide[:5] = 0  # a slide of several classes and centres
    rows = x - x.mean(0) if is_centered else x
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    other = ~np.eye(len(x), dtype=bool)
    apart = slide[:, None] != slide
    same_class, same_center = bio[:, None] == bio, center[:, None] == center
    got = measure_cosines(x, bio, center, slide, is_centered=is_centered)
    expected = [cosines[other].mean(), cosines[other].std()]
    expected += [
        cosines[apart & (same_class == first) & (same_center == second)].mean()
        for first in (True, False)
        for second in (True, False)
    ]
    assert_allclose(got, expected, rtol=1e-9, atol=1e-13)
