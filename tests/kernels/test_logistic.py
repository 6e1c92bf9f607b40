"""Batched logistic regression against scikit-learn, problem by problem."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.logistic import fit, group_rows
from pathorob_jax.kernels.logistic import lbfgs as steps
from pathorob_jax.kernels.logistic.fit import fit_logistic, predict_logits

# Last bits decide here, and they depend on how XLA compiles.
pytestmark = pytest.mark.optimized

# The grid of the average performance drop, DESIGN section 3 of the reference.
STRENGTHS = 10.0 ** np.linspace(-8, 4, 15)
TOLERANCE = 1e-4


def make_data(rng, *, n, d, n_classes, signal=0.6):
    """Gaussian classes that overlap, around a mean other than 0."""
    y = rng.integers(0, n_classes, n)
    means = signal * rng.normal(size=(n_classes, d)) * np.sqrt(8 / d)
    return (rng.normal(size=(n, d)) + means[y] + 0.5).astype(np.float32), y


def fit_sklearn(x, y, c, **options):
    """scikit-learn in float64; running out of iterations is no news here."""
    options = {"max_iter": 100, "tol": TOLERANCE, **options}
    return LogisticRegression(C=c, **options).fit(np.asarray(x, np.float64), y)


def predict(logits):
    """Labels of one problem, [N, L] -> [N]."""
    return (logits[:, 0] > 0).astype(int) if logits.shape[1] == 1 else logits.argmax(1)


def loss(x, y, coef, intercept, c):
    """The objective that scikit-learn states, in plain float64."""
    z = np.asarray(x, np.float64) @ np.asarray(coef, np.float64) + intercept
    if z.shape[1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=1)
    own = z[np.arange(len(y)), y]
    top = z.max(1)
    rows = top + np.log(np.exp(z - top[:, None]).sum(1)) - own
    return rows.mean() + (np.asarray(coef, np.float64) ** 2).sum() / (2 * c * len(y))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d", "n_classes"),
    [
        pytest.param(250, 40, 2, marks=pytest.mark.campaign),
        (100, 200, 4),
        pytest.param(300, 30, 6, marks=pytest.mark.campaign),
    ],
)
def test_reference_mode_predicts_as_scikit_learn_at_every_strength(rng, n, d, n_classes):
    x, y = make_data(rng, n=3 * n, d=d, n_classes=n_classes)
    train = np.arange(3 * n) < n
    masks = np.tile(train, (len(STRENGTHS), 1))
    # Some need about 100 iterations, the default: how rounding falls would say which of them end.
    most = {"max_iter": 200}
    got = fit_logistic(x, y, n_classes=n_classes, c=STRENGTHS, row_weights=masks, **most)
    logits = predict_logits(x[~train], got)
    ours, theirs, n_iter = [], [], []
    for i, c in enumerate(STRENGTHS):
        oracle = fit_sklearn(x[train], y[train], c, **most)
        ours.append((predict(logits[i]) == y[~train]).mean())
        theirs.append(oracle.score(x[~train], y[~train]))
        n_iter.append(oracle.n_iter_[0])
        # One loss, since both stop at the same place: much closer than the optimum is.
        args = (x[train], y[train])
        np.testing.assert_allclose(
            loss(*args, got.coef[i], got.intercept[i], c),
            loss(*args, oracle.coef_.T, oracle.intercept_, c),
            rtol=1e-4,
        )
    assert max(theirs) > 1.5 / n_classes  # there is something to learn
    np.testing.assert_allclose(ours, theirs, atol=0.01)
    assert abs(np.mean(ours) - np.mean(theirs)) < 0.002
    # The same path, up to rounding: most end at the same iteration.
    np.testing.assert_allclose(got.n_iter, n_iter, rtol=0.1, atol=2)
    assert got.converged.all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d", "n_classes", "signal"),
    [
        pytest.param(200, 30, 2, 0.6, marks=pytest.mark.campaign),
        pytest.param(120, 150, 4, 0.6, marks=pytest.mark.campaign),
        (90, 120, 2, 6.0),
        pytest.param(240, 40, 6, 0.3, marks=pytest.mark.campaign),
    ],
)
def test_converged_mode_is_the_optimum(rng, n, d, n_classes, signal):
    # Fewer and more rows than features; with a strong signal, separable rows.
    x, y = make_data(rng, n=2 * n, d=d, n_classes=n_classes, signal=signal)
    x, y, x_test, y_test = x[:n], y[:n], x[n:], y[n:]
    got = fit_logistic(
        x, y, n_classes=n_classes, c=STRENGTHS, max_iter=5000, tol=1e-6, stopping="converged"
    )
    assert got.coef.dtype == np.float64
    assert got.converged.all()
    logits = predict_logits(x_test, got)
    for i, c in enumerate(STRENGTHS):
        oracle = fit_sklearn(x, y, c, solver="newton-cholesky", tol=1e-12, max_iter=1000)
        if c <= 100:
            error = np.linalg.norm(got.coef[i] - oracle.coef_.T) / np.linalg.norm(oracle.coef_)
            assert error < 1e-4
            if n_classes > 2:  # adding a constant to all intercepts changes nothing
                oracle.intercept_ = oracle.intercept_ - oracle.intercept_.mean()
            intercept = got.intercept[i] - (got.intercept[i].mean() if n_classes > 2 else 0)
            np.testing.assert_allclose(intercept, oracle.intercept_, atol=1e-3)
        # Above, the oracle's own optimum is ill-defined on separable rows: ours is no worse.
        ours = loss(x, y, got.coef[i], got.intercept[i], c)
        assert ours <= loss(x, y, oracle.coef_.T, oracle.intercept_, c) * (1 + 1e-6)
        assert abs((predict(logits[i]) == y_test).mean() - oracle.score(x_test, y_test)) <= 0.01


@pytest.mark.slow
def test_turned_rows_are_the_rows(rng):
    for n, d in ((30, 12), (12, 30)):
        x = rng.normal(size=(n, d)) * np.linspace(0.1, 3, d) + 5
        with jax.enable_x64(True):
            turned = group_rows.turn_rows(jnp.asarray(x), center=True)
            mean, basis, variances, rows = (np.asarray(a) for a in turned)
        assert rows.shape == (n, min(n, d))
        np.testing.assert_allclose(mean, x.mean(0))
        np.testing.assert_allclose(basis.T @ basis, np.eye(min(n, d)), atol=1e-12)
        np.testing.assert_allclose(rows @ basis.T + mean, x, atol=1e-10)
        np.testing.assert_allclose(variances[0, 0, :-1], (rows**2).mean(0), atol=1e-10)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(
    "stopping", ["reference", pytest.param("converged", marks=pytest.mark.campaign)]
)
def test_a_batch_that_shrinks_gives_what_its_problems_do_alone(rng, stopping):
    x, y = make_data(rng, n=120, d=15, n_classes=3)
    masks = rng.random((4, 120)) < 0.7
    c = np.tile(STRENGTHS, 4)
    weights = np.repeat(masks, 15, axis=0)
    labels = np.repeat(np.stack([y, (y + 1) % 3, y, rng.permutation(y)]), 15, axis=0)
    options = {"n_classes": 3, "stopping": stopping, "max_iter": 2000}
    sizes = []
    pick = steps.pick_problems

    def watched(problems, state, idx):
        sizes.append(len(idx))
        return pick(problems, state, idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "pick_problems", watched)
        patch.setattr(fit, "LEAST_OPERATIONS", 1)
        together = fit_logistic(x, labels, c=c, row_weights=weights, **options)
    assert sizes == [32, 16]  # 96 and 48 columns, of three logits
    for k in range(4):
        own = slice(15 * k, 15 * (k + 1))
        alone = fit_logistic(x, labels[own], c=c[own], row_weights=weights[own], **options)
        # A last bit may decide about an iteration more.
        np.testing.assert_allclose(together.n_iter[own], alone.n_iter, atol=3)
        for a, b in zip(together.coef[own], alone.coef, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())
    assert together.converged.all()


@pytest.mark.parametrize(
    ("shape", "n_problems", "n_logits", "n_left"),
    [
        ((12_600, 3_072), 120, 1, 48),  # Camelyon: a third is 40
        ((12_600, 3_072), 48, 1, 16),
        ((12_600, 3_072), 16, 1, 0),  # a third fills registers no better
        ((5_400, 1_536), 60, 6, 24),  # Tolkach: 24 of six logits are nine times 16 columns
        ((5_400, 1_536), 24, 6, 8),
        ((7, 960, 960), 15, 4, 5),  # TCGA in spans, of each group
        ((1_680, 384), 96, 4, 0),  # 0.99 GFLOP an iteration
        ((1_680, 384), 97, 4, 32),
        ((1_680, 3_072), 2, 32, 0),
    ],
)
def test_a_batch_continues_with_a_third_that_fills_registers(
    shape, n_problems, n_logits, n_left, monkeypatch
):
    x = jax.ShapeDtypeStruct(shape, np.float32)
    rows = SimpleNamespace(x=x, n_groups=shape[0] if len(shape) == 3 else 1)
    assert fit._count_left(rows, n_problems, n_logits) == n_left
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fit._count_left(rows, n_problems, n_logits) == 0


@pytest.mark.campaign
@pytest.mark.slow
def test_a_budget_changes_no_more_than_last_bits(rng):
    x, y = make_data(rng, n=80, d=12, n_classes=2)
    # Above the strengths at which last bits decide about an iteration more.
    c = STRENGTHS[4:]
    whole = fit_logistic(x, y, n_classes=2, c=c)
    for n_together in (0, 4, 100):
        budget = max(1, n_together * fit.problem_bytes(80, 12, 2))
        parts = fit_logistic(x, y, n_classes=2, c=c, budget_bytes=budget)
        np.testing.assert_array_equal(parts.n_iter, whole.n_iter)
        for a, b in zip(parts.coef, whole.coef, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


@pytest.mark.slow
def test_a_batch_is_what_its_problems_are_alone(rng):
    # Masks, strengths and labels differ; problems end after different numbers of iterations.
    x, y = make_data(rng, n=240, d=20, n_classes=3)
    masks = rng.random((3, 240)) < 0.6
    labels = np.stack([y, (y + 1) % 3, rng.permutation(y)])
    c = np.array([1e-3, 0.1, 10.0])
    together = fit_logistic(x, labels, n_classes=3, c=c, row_weights=masks)
    assert len(set(together.n_iter.tolist())) == 3
    for i in range(3):
        alone = fit_sklearn(x[masks[i]], labels[i][masks[i]], c[i])
        assert together.n_iter[i] == alone.n_iter_[0]
        scale = np.abs(alone.coef_).max()
        np.testing.assert_allclose(together.coef[i], alone.coef_.T, atol=2e-4 * scale)


@pytest.mark.slow
def test_row_weights_are_sample_weights(rng):
    x, y = make_data(rng, n=100, d=10, n_classes=2)
    weights = rng.integers(0, 4, (2, 100))
    got = fit_logistic(x, y, n_classes=2, c=[0.5, 0.5], row_weights=weights)
    for i in range(2):
        oracle = LogisticRegression(C=0.5).fit(x.astype(float), y, sample_weight=weights[i])
        np.testing.assert_allclose(got.coef[i], oracle.coef_.T, atol=1e-4)
        np.testing.assert_allclose(got.intercept[i], oracle.intercept_, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_classes", "fit_intercept"), [pytest.param(2, True, marks=pytest.mark.campaign), (3, False)]
)
def test_standardizing_is_folded_into_the_products(rng, n_classes, fit_intercept):
    x, y = make_data(rng, n=200, d=12, n_classes=n_classes)
    x = x * np.linspace(0.1, 5, 12, dtype=np.float32) + 2
    masks = rng.random((2, 200)) < 0.5
    scalers = [StandardScaler().fit(x[m].astype(float)) for m in masks]
    fold = {
        "shift": np.stack([s.mean_ for s in scalers]),
        "scale": np.stack([s.scale_ for s in scalers]),
    }
    got = fit_logistic(
        x,
        y,
        n_classes=n_classes,
        c=[1.0, 1.0],
        row_weights=masks,
        fit_intercept=fit_intercept,
        **fold,
    )
    logits = predict_logits(x, got, **fold)
    for i, (mask, scaler) in enumerate(zip(masks, scalers, strict=True)):
        scaled = scaler.transform(x.astype(float))
        oracle = fit_sklearn(scaled[mask], y[mask], 1.0, fit_intercept=fit_intercept)
        np.testing.assert_allclose(got.coef[i], oracle.coef_.T, atol=2e-3)
        expected = oracle.decision_function(scaled).reshape(len(x), -1)
        np.testing.assert_allclose(logits[i], expected, atol=1e-2)
        assert (got.intercept[i] == 0).all() == (not fit_intercept)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, pytest.param(3, marks=pytest.mark.campaign)])
def test_separable_rows_with_hardly_a_penalty(rng, n_classes):
    y = np.arange(60) % n_classes
    x = (10 * np.eye(n_classes)[y] + 0.1 * rng.normal(size=(60, n_classes))).astype(np.float32)
    got = fit_logistic(x, y, n_classes=n_classes, c=[1e4, 1e12])
    assert got.converged.all()
    assert np.isfinite(got.coef).all()
    for logits in predict_logits(x, got):
        np.testing.assert_array_equal(predict(logits), y)
    oracle = fit_sklearn(x, y, 1e4)
    np.testing.assert_allclose(got.coef[0], oracle.coef_.T, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_limit_of_iterations_is_reported(rng):
    x, y = make_data(rng, n=100, d=10, n_classes=2)
    got = fit_logistic(x, y, n_classes=2, c=[1e-8, 1.0], max_iter=7)
    np.testing.assert_array_equal(got.converged, [True, False])
    assert got.n_iter[1] == 7
    assert got.max_gradient[1] > TOLERANCE
    none = fit_logistic(x, y, n_classes=2, c=[1.0], max_iter=0)
    assert not none.converged.any()
    assert (none.coef == 0).all()
    assert none.n_iter[0] == 0


def test_a_constant_feature_has_no_weight(rng):
    x, y = make_data(rng, n=100, d=10, n_classes=2)
    x[:, 2] = 0
    got = fit_logistic(x, y, n_classes=2, c=[1.0])
    assert (got.coef[0, 2] == 0).all()
    assert (np.delete(got.coef[0], 2, axis=0) != 0).all()


@pytest.mark.campaign
def test_one_trace_per_shape(rng):
    x, y = make_data(rng, n=90, d=7, n_classes=2)
    before = steps.iterate._cache_size()
    for c, tol, max_iter in (([1.0, 2.0], 1e-4, 100), ([3.0, 0.1], 1e-2, 7)):
        masks = rng.random((2, 90)) < 0.7
        fit_logistic(
            jnp.asarray(x), y, n_classes=2, c=c, row_weights=masks, tol=tol, max_iter=max_iter
        )
    assert steps.iterate._cache_size() == before + 1


@pytest.mark.slow
def test_logits_of_sure_rows_have_accurate_losses():
    # In float32, log-sum-exp less the own logit would be 0 here.
    logits = jnp.asarray([[[25.0], [0.0], [-3.0]]])
    row_loss, slope = steps._row_terms(logits, jnp.asarray([[0]]), 3)
    expected = np.log1p(np.exp(-25.0) + np.exp(-28.0))
    np.testing.assert_allclose(row_loss[0, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(slope[0, 0, 0], -expected, rtol=1e-5)
    row_loss, slope = steps._row_terms(logits[:, :1], jnp.asarray([[1]]), 1)
    np.testing.assert_allclose(row_loss[0, 0], np.exp(-25.0), rtol=1e-5)
    np.testing.assert_allclose(slope[0, 0, 0], -np.exp(-25.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_classes": 1}, "n_classes"),
        ({"c": [1.0, 0.0]}, "positive"),
        ({"c": []}, "positive"),
        ({"c": 1.0}, "c: expected shape"),
        ({"y": np.array([0, 1, 2, 0])}, r"\[0, 2\)"),
        ({"y": np.array([0, 1, 0])}, "y: expected shape"),
        ({"row_weights": np.ones((1, 4))}, "row_weights: expected shape"),
        ({"row_weights": np.array([[1, 1, 1, 1], [0, 0, 0, 0]])}, "empty"),
        ({"row_weights": np.array([[1, 1, 1, 1], [1, 1, 1, -1]])}, "-1"),
        ({"shift": np.zeros((2, 2))}, "shift: expected shape"),
        ({"scale": np.zeros((2, 3))}, "scale: expected positive"),
    ],
)
def test_refusals(changes, message):
    arguments = {"x": np.ones((4, 3)), "y": np.array([0, 1, 0, 1]), "n_classes": 2, "c": [1.0, 2.0]}
    arguments |= changes
    with pytest.raises(InputError, match=message):
        fit_logistic(arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.slow
def test_labels_are_integers():
    with pytest.raises(TypeError, match="y: expected an integer dtype"):
        fit_logistic(np.ones((2, 1)), np.array([0.0, 1.0]), n_classes=2, c=[1.0])


@pytest.mark.parametrize("stopping", ["reference", "converged"])
def test_rows_that_are_not_finite_are_refused(rng, stopping):
    x, y = make_data(rng, n=40, d=5, n_classes=2)
    for bad, where in ((np.nan, "float"), (np.inf, "float")):
        rows = x.copy()
        rows[7, 2] = bad
        with pytest.raises(InputError, match=rf"x: 1 of 40 rows hold NaN .* {where}.* row 7"):
            fit_logistic(rows, y, n_classes=2, c=[1.0], stopping=stopping)
    beyond = x.astype(np.float64)
    beyond[3] = 1e200  # infinite as float32, in which the reference mode computes
    if stopping == "reference":
        with pytest.raises(InputError, match="row 3"):
            fit_logistic(beyond, y, n_classes=2, c=[1.0], stopping=stopping)


@pytest.mark.slow
def test_the_largest_gradient_is_that_of_float64_whatever_its_sign(rng):
    """The two classes exchanged, its sign is the other."""
    x, y = make_data(rng, n=60, d=5, n_classes=2)
    for label in (y, 1 - y):
        got = fit_logistic(x, label, n_classes=2, c=[0.1], max_iter=2)
        coef, intercept = got.coef[0, :, 0].astype(np.float64), float(got.intercept[0, 0])
        residual = (1 / (1 + np.exp(-(x @ coef + intercept))) - label) / len(label)
        gradient = np.append(x.T @ residual + coef / (0.1 * len(label)), residual.sum())
        # Float32's rounding of 60 terms of up to 3 / 60.
        np.testing.assert_allclose(got.max_gradient[0], np.abs(gradient).max(), atol=1e-6)
        assert got.max_gradient[0] > 100e-6


@pytest.mark.slow
def test_converged_mode_with_a_scale_is_that_of_scaled_rows(rng):
    x, y = make_data(rng, n=40, d=3, n_classes=2)
    scale = np.array([[0.5, 2.0, 4.0]])
    options = {"n_classes": 2, "c": [1.0], "stopping": "converged", "tol": 1e-8, "max_iter": 500}
    got = fit_logistic(x, y, scale=scale, **options)
    assert got.converged.all()
    model = LogisticRegression(C=1.0, tol=1e-12, max_iter=5000).fit(x / scale, y)
    np.testing.assert_allclose(got.coef[0], model.coef_.T, rtol=1e-5)
    np.testing.assert_allclose(got.intercept[0], model.intercept_, rtol=1e-5)


@pytest.mark.campaign
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e9])
def test_converged_mode_ends_on_features_of_any_scale(rng, scale):
    x, y = make_data(rng, n=200, d=12, n_classes=3)
    rows = scale * x.astype(np.float64)
    got = fit_logistic(rows, y, n_classes=3, c=[1.0, 1e3], stopping="converged", max_iter=500)
    assert got.converged.all()
    for i, c in enumerate((1.0, 1e3)):
        # The same problem with features of scale 1 and a penalty that is weaker by scale^2.
        other = fit_logistic(
            x, y, n_classes=3, c=[c * scale**2], stopping="converged", max_iter=5000, tol=1e-7
        )
        ours = loss(rows, y, got.coef[i], got.intercept[i], c)
        theirs = loss(rows, y, other.coef[0] / scale, other.intercept[0], c)
        assert ours <= theirs * (1 + 1e-7)


@pytest.mark.parametrize("stopping", ["reference", "converged"])
def test_loops_of_fixed_length_change_nothing(rng, stopping, monkeypatch):
    """What accelerators take: all slots of the memory, of which the first steps filled few."""
    x, y = make_data(rng, n=83, d=19, n_classes=3)
    c = np.array([1e-2, 1.0, 50.0])
    by_used_slots = fit_logistic(x, y, n_classes=3, c=c, stopping=stopping)
    steps.iterate.clear_cache()
    monkeypatch.setattr(steps, "loops_are_fixed", lambda: True)
    by_all_slots = fit_logistic(x, y, n_classes=3, c=c, stopping=stopping)
    steps.iterate.clear_cache()
    assert by_used_slots.n_iter.max() > steps.MEMORY
    for used, every in zip(by_used_slots, by_all_slots, strict=True):
        np.testing.assert_array_equal(every, used)
