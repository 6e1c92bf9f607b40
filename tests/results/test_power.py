"""The number of slides that is said to tell two models apart does so, in 80 % of cases."""

import math

import numpy as np
import pytest
from scipy import stats

from pathorob_jax.kernels.bootstrap.draws import plan_jackknife
from pathorob_jax.results.compare_models import Entry, compare_all
from pathorob_jax.results.power import Part, Plan, count_slides, find_error, plan

# Deviations of what a slide does to both models, and to each of them alone.
SHARED, OWN = 0.2, 0.06


def find_power(n, effect):
    """Power of the two-sided t-test at 5 %, by the noncentral t: an independent oracle."""
    critical, shift = stats.t.ppf(0.975, n - 1), effect * math.sqrt(n)
    return stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)


@pytest.mark.parametrize("effect", [1.5, 1.0, 0.7, 0.5, 0.3, 0.1])
def test_one_dataset_needs_what_the_t_test_needs(effect):
    n = count_slides(-effect, [Part(1 / math.sqrt(17), 17)])
    assert find_power(n, effect) > 0.799
    assert find_power(n - 2, effect) < 0.8


def test_large_numbers_follow_the_normal_formula():
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    n = count_slides(0.001, [Part(0.02, 17)])
    assert n == pytest.approx(17 * (z * 0.02 / 0.001) ** 2, rel=1e-3)


def test_nothing_is_said_of_what_is_unknown():
    known = Part(0.1, 17)
    assert count_slides(0.0, [known]) is None
    assert count_slides(math.nan, [known]) is None
    assert count_slides(0.1, [known, Part(math.nan, 9)]) is None
    assert count_slides(0.1, []) is None
    assert count_slides(0.1, [Part(0.0, 17)]) is None  # no slide changes it: not certain
    assert plan(0.1, (math.nan, math.nan), [known]) == Plan(17, count_slides(0.1, [known]), None)
    assert plan(0.1, (-0.1, 0.3), [known]).at_least == count_slides(0.3, [known])


def make_slides(rng, n, lead):
    """A number of each slide for two models: float64[2, n]."""
    slides = 0.5 + SHARED * rng.normal(size=n) + OWN * rng.normal(size=(2, n))
    slides[0] += lead
    return slides


def compare(datasets, *, seed=0, draws=300):
    """Two models by the mean over slides, through jackknife, draws and comparison."""
    entries = {}
    for number, slides in enumerate(datasets):
        n = slides.shape[1]
        jackknife = plan_jackknife(n, draws=draws, seed=seed)
        entries[f"d{number}"] = [
            Entry(
                model,
                float(own.mean()),
                "key",
                jackknife.spread(own.mean(), (own.sum() - own) / (n - 1)),
                n,
            )
            for model, own in zip("ab", slides, strict=True)
        ]
    [pair] = compare_all("mean", entries)[0].pairs
    return pair


def test_the_error_of_a_difference_is_that_of_the_slides(rng):
    slides = make_slides(rng, 17, 0.02)
    jackknife = plan_jackknife(17, draws=4000, seed=1)
    drawn = [jackknife.spread(own.mean(), (own.sum() - own) / 16) for own in slides]
    wanted = stats.sem(slides[0] - slides[1])
    # 4,000 draws tell a deviation to 1.1 %.
    assert find_error(drawn[0] - drawn[1], 17) == pytest.approx(wanted, rel=0.05)
    assert np.isnan(find_error(np.array([0.1, np.nan, np.nan]), 17))
    assert np.isnan(find_error(drawn[0], 1))


def share_apart(rng, sizes, lead, *, n_draws):
    """How often fresh slides tell the two models apart, on the right side."""
    found = 0
    for number in range(n_draws):
        pair = compare([make_slides(rng, n, lead) for n in sizes], seed=number)
        found += pair.is_apart and (pair.difference > 0) == (pair.model_a == "a")
    return found / n_draws


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [(17,), pytest.param((12, 30), marks=pytest.mark.campaign)],
    ids=["one_dataset", "two_datasets"],
)
def test_the_stated_number_of_slides_tells_planted_models_apart_in_80_percent(rng, sizes):
    lead = 0.035
    errors = [Part(math.sqrt(2) * OWN / math.sqrt(n), n) for n in sizes]
    needed = count_slides(lead, errors)
    assert needed > 1.2 * sum(sizes)
    grown = [round(n * needed / sum(sizes)) for n in sizes]
    # 500 draws: a standard error of 1.8 %.
    assert 0.75 <= share_apart(rng, grown, lead, n_draws=500) <= 0.85
    # The pilot's own size does not do.
    assert share_apart(rng, sizes, lead, n_draws=100) < 0.7


@pytest.mark.slow
def test_pilots_state_the_number_about_the_true_one(rng):
    """The median over pilots; single pilots lie far from it (docs/report.md)."""
    true = count_slides(0.035, [Part(math.sqrt(2) * OWN / math.sqrt(17), 17)])
    stated = [compare([make_slides(rng, 17, 0.035)]).slides_needed for _ in range(200)]
    assert 0.75 * true < np.median(stated) < 1.33 * true
    assert np.quantile(stated, 0.1) < 0.6 * true
    assert np.quantile(stated, 0.9) > 2 * true
