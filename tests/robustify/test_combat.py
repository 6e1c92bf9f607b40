"""ComBat against neuroCombat, and what the reference packages get wrong."""

import json
import pathlib
import warnings

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.robustify import combat
from pathorob_jax.robustify.moments import measure_moments
from pathorob_jax.robustify.transform import apply_maps


def make_rows(rng, *, n=160, dim=24, n_centers=3, n_classes=2, confounded=0.5):
    """Rows with a class direction, and shift and scale of each centre."""
    class_id = rng.integers(0, n_classes, n)
    follows = rng.random(n) < confounded
    center_id = np.where(follows, class_id % n_centers, rng.integers(0, n_centers, n))
    x = rng.normal(size=(n, dim)) + class_id[:, None] * rng.normal(size=dim)
    x = x * rng.uniform(0.6, 1.6, (n_centers, dim))[center_id]
    x += rng.normal(size=(n_centers, dim))[center_id]
    return x.astype(np.float32), class_id, center_id


def moments_of(x, class_id, center_id):
    return measure_moments(
        lambda rows: x[rows],
        class_id,
        center_id,
        n_classes=int(class_id.max()) + 1,
        n_centers=int(center_id.max()) + 1,
    )


def our_combat(x, class_id, center_id, **options):
    maps = combat.fit_combat(moments_of(x, class_id, center_id), **options)
    return apply_maps(maps, x, center_id, class_id)


def their_combat(x, class_id, center_id, *, with_classes, prior, reference, monkeypatch):
    neurocombat = pytest.importorskip("neuroCombat", reason="neuroCombat is not installed")
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    # Its reference batch asks for a name that NumPy dropped.
    monkeypatch.setattr(np, "int", int, raising=False)
    covariates = pandas.DataFrame({"center": center_id, "class": class_id})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = neurocombat.neuroCombat(
            dat=x.astype(np.float64).T,
            covars=covariates,
            batch_col="center",
            categorical_cols=["class"] if with_classes else [],
            parametric=prior != "nonparametric",
            mean_only=prior == "mean_only",
            ref_batch=reference,
        )
    return answer["data"].T


# neuroCombat stops at a relative change of 1e-4, of which it looks at positive locations only;
# rows are float32.
PARAMETRIC, EXACT = 1e-4, 2e-6
DATA = pathlib.Path(__file__).resolve().parents[1] / "data"


@pytest.mark.parametrize("case", ["plain", "classes", "reference"])
def test_fitted_rows_and_new_ones_as_neuroharmonize(case):
    # Its own numbers, from tests/data/combat/make_golden.py: it cannot be installed here.
    golden = json.loads((DATA / "combat" / "neuroharmonize.json").read_text())
    fit, new = golden["fit"], golden["new"]
    centers = sorted(set(fit["center"]))
    x, y = (np.array(part["x"], np.float32) for part in (fit, new))
    center_x, center_y = (
        np.array([centers.index(c) for c in part["center"]]) for part in (fit, new)
    )
    class_x, class_y = np.array(fit["class"]), np.array(new["class"])
    maps = combat.fit_combat(
        moments_of(x, class_x, center_x),
        with_classes=case == "classes",
        reference=centers.index("B") if case == "reference" else None,
    )
    sigma = x.std(0)
    for rows, center, bio, name in ((x, center_x, class_x, "fit"), (y, center_y, class_y, "new")):
        found = apply_maps(maps, rows, center, bio)
        np.testing.assert_allclose(found / sigma, golden[case][name] / sigma, atol=PARAMETRIC)


@pytest.mark.parametrize("shape", [(160, 24), (40, 90)], ids=["N>D", "D>N"])
@pytest.mark.parametrize("with_classes", [False, True], ids=["plain", "classes"])
@pytest.mark.parametrize("prior", ["parametric", "nonparametric", "mean_only"])
@pytest.mark.parametrize("reference", [None, 1])
def test_as_neurocombat(rng, shape, with_classes, prior, reference, monkeypatch, capsys):
    if reference is not None and prior != "parametric":
        pytest.skip("neuroCombat's reference batch is compared for the parametric prior")
    x, class_id, center_id = make_rows(rng, n=shape[0], dim=shape[1])
    ours = our_combat(
        x, class_id, center_id, prior=prior, with_classes=with_classes, reference=reference
    )
    theirs = their_combat(
        x,
        class_id,
        center_id,
        with_classes=with_classes,
        prior=prior,
        reference=reference,
        monkeypatch=monkeypatch,
    )
    sigma = x.std(0)
    off = np.abs(ours - theirs).max(0) / sigma
    assert off.max() < (PARAMETRIC if prior == "parametric" else EXACT)
    assert np.abs(theirs - x).max() > 0.3  # it did something


def test_reference_centre_stays(rng):
    x, class_id, center_id = make_rows(rng)
    ours = our_combat(x, class_id, center_id, reference=2)
    mine = center_id == 2
    np.testing.assert_allclose(ours[mine], x[mine], rtol=1e-6, atol=1e-6)
    assert np.abs(ours[~mine] - x[~mine]).max() > 0.3


def test_a_constant_dimension_stays_and_changes_no_other(rng):
    x, class_id, center_id = make_rows(rng)
    alone = our_combat(x, class_id, center_id)
    wider = np.concatenate([x, np.full((len(x), 1), 3.25, np.float32)], axis=1)
    ours = our_combat(wider, class_id, center_id)
    np.testing.assert_array_equal(ours[:, -1], wider[:, -1])
    np.testing.assert_array_equal(ours[:, :-1], alone)


def test_constant_within_one_centre(rng):
    x, class_id, center_id = make_rows(rng)
    x[center_id == 0, 3] = 1.5
    for prior in ("parametric", "nonparametric"):
        assert np.isfinite(our_combat(x, class_id, center_id, prior=prior)).all()


def test_nonparametric_with_many_rows(rng):
    """Products of 1,200 densities underflow: the reference gives NaN, or uniform weights."""
    x, class_id, center_id = make_rows(rng, n=3600, dim=12)
    wide = x.astype(np.longdouble)
    parts = combat.standardise(moments_of(x, class_id, center_id))
    location, scale = combat._shrink_nonparametric(parts)
    z = (wide - parts.base[0]) / parts.sigma
    for m in range(3):
        mine = z[center_id == m]
        g, d = mine.mean(0), mine.var(0, ddof=1)
        for f in range(12):
            others = np.delete(np.arange(12), f)
            distance = ((mine[:, f, None] - g[None, others]) ** 2).sum(0)
            log = -distance / (2 * d[others]) - len(mine) / 2 * np.log(d[others])
            weight = np.exp(log - log.max())
            weight /= weight.sum()
            assert abs(location[m, f] - (weight * g[others]).sum()) < 1e-9
            assert abs(scale[m, f] - (weight * d[others]).sum()) < 1e-9


def test_converged(rng):
    """Location and scale solve their two equations."""
    parts = combat.standardise(moments_of(*make_rows(rng)))
    priors = combat.estimate_priors(parts)
    g, d = combat.shrink(parts, priors)
    n = parts.n[:, None]
    prior_mean, t2, shape, rate = (p[:, None] for p in priors)
    np.testing.assert_allclose(g, (n * t2 * parts.mean + d * prior_mean) / (n * t2 + d), rtol=1e-8)
    squares = (n - 1) * parts.variance + n * (parts.mean - g) ** 2
    np.testing.assert_allclose(d, (squares / 2 + rate) / (n / 2 + shape - 1), rtol=1e-8)


def test_shift_and_scale_are_undone(rng):
    x, class_id, center_id = make_rows(rng, n=3000, dim=40, confounded=0)
    ours = our_combat(x, class_id, center_id).astype(np.float64)
    means = np.stack([ours[center_id == m].mean(0) for m in range(3)])
    stds = np.stack([ours[center_id == m].std(0) for m in range(3)])
    assert np.abs(means - means[0]).max() < 0.05
    assert np.abs(stds / stds[0] - 1).max() < 0.05


@pytest.mark.parametrize("prior", ["parametric", "nonparametric", "mean_only"])
def test_one_dimension_has_no_prior(rng, prior):
    x, class_id, center_id = make_rows(rng, dim=1)
    with pytest.raises(InputError, match="over 1 dimensions that vary do not tell a prior"):
        our_combat(x, class_id, center_id, prior=prior)


def test_equal_variances_have_no_prior(rng):
    x, class_id, center_id = make_rows(rng, dim=1)
    with pytest.raises(InputError, match="over 2 dimensions that vary do not tell a prior"):
        our_combat(np.repeat(x, 2, axis=1), class_id, center_id)


def test_iterations_that_do_not_settle(rng, monkeypatch):
    monkeypatch.setattr(combat, "MAX_ITERATIONS", 1)
    with pytest.raises(InputError, match="do not settle in 1 iterations"):
        our_combat(*make_rows(rng))


def test_class_determined_by_centre(rng):
    x, _, center_id = make_rows(rng, n_centers=2)
    with pytest.raises(InputError, match="determined by the centre"):
        our_combat(x, center_id, center_id, with_classes=True)


@pytest.mark.slow
def test_classes_are_needed_only_where_scales_change(rng):
    moments = moments_of(*make_rows(rng))
    assert combat.fit_combat(moments, with_classes=True).needs_class
    assert not combat.fit_combat(moments, with_classes=True, prior="mean_only").needs_class
    assert not combat.fit_combat(moments).needs_class
