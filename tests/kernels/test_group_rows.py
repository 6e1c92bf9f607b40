"""Groups of logistic regressions with the same rows, their products, and spans of few rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pathorob_jax.kernels.logistic import fit, group_rows, products
from pathorob_jax.kernels.logistic import lbfgs as steps
from pathorob_jax.kernels.logistic.fit import fit_logistic, predict_logits
from pathorob_jax.kernels.logistic.group_rows import GroupRows

# Last bits decide here, and they depend on how XLA compiles.
pytestmark = pytest.mark.optimized

# Strengths from which on scikit-learn's stopping rule does not hang on last bits.
STRENGTHS = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0, 1e3])

# Of two groups of 30 of 40 rows with 120 features: coordinates and inverse factors on host and
# device, and the inner products of all rows beside the rows themselves, in float64.
SPAN_BYTES = 20 * 2 * 30**2 + 8 * 40 * (40 + 120)


def make_wide(rng, *, n=90, d=300, n_classes=3):
    """Classes that overlap, far from 0, in fewer rows than features of unequal spread."""
    y = np.arange(n) % n_classes
    means = 0.3 * rng.normal(size=(n_classes, d))
    x = (rng.normal(size=(n, d)) + means[y] + 0.5) * (1 + np.arange(d)) ** -0.3
    return x.astype(np.float32), y


def splits_of(rng, y, sizes):
    """Masks of rows, [S, N], of each size, with all classes."""
    masks = np.zeros((len(sizes), len(y)), bool)
    for mask, size in zip(masks, sizes, strict=True):
        mask[rng.permutation(len(y))[:size]] = True
    return masks


def watch_spans(patch):
    """List that tells of each fit whether it was one in spans."""
    seen: list[bool] = []
    arrange = group_rows.arrange

    def watched(*args, **kwargs):
        groups, rows = arrange(*args, **kwargs)
        seen.append(rows.span is not None)
        return groups, rows

    patch.setattr(group_rows, "arrange", watched)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_classes", "sizes", "fit_intercept"),
    [(2, (60, 60, 60), True), (3, (70, 50, 64), True), (3, (60, 60, 60), False)],
)
def test_fits_in_spans_stop_where_scikit_learn_stops(
    rng, monkeypatch, n_classes, sizes, fit_intercept
):
    x, y = make_wide(rng, n_classes=n_classes)
    masks = splits_of(rng, y, sizes)
    # Problems of a split do not lie together, and have labels and weights of their own.
    order = rng.permutation(len(sizes) * len(STRENGTHS))
    split, c = (np.repeat(np.arange(3), len(STRENGTHS))[order], np.tile(STRENGTHS, 3)[order])
    labels = np.stack([(y + s) % n_classes for s in range(3)])[split]
    weights = masks[split] * rng.integers(1, 4, (len(split), len(y)))
    seen = watch_spans(monkeypatch)
    fitted = fit_logistic(
        x, labels, n_classes=n_classes, c=c, row_weights=weights, fit_intercept=fit_intercept
    )
    assert seen == [True]
    logits = predict_logits(x, fitted)
    for i, s in enumerate(split):
        own = masks[s]
        alone = LogisticRegression(C=c[i], fit_intercept=fit_intercept)
        alone.fit(x[own].astype(np.float64), labels[i][own], sample_weight=weights[i][own])
        assert fitted.n_iter[i] == alone.n_iter_[0]
        scale = np.abs(alone.coef_).max()
        # Iterates of float32 and float64 drift apart by some units of their last digits.
        np.testing.assert_allclose(fitted.coef[i], alone.coef_.T, atol=1e-3 * scale)
        expected = alone.decision_function(x.astype(np.float64)).reshape(len(x), -1)
        np.testing.assert_allclose(logits[i], expected, atol=2e-3 * np.abs(expected).max())
    assert fit_intercept or not fitted.intercept.any()


@pytest.mark.slow
@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_rows_that_nearly_depend_on_each_other(rng, monkeypatch, apart):
    """Twins differ by ``apart``: shares of rows cancel, and what is left is as exact as ever."""
    x, y = make_wide(rng)
    x[45:] = x[:45] + apart * rng.normal(size=(45, x.shape[1])).astype(np.float32)
    y[45:] = y[:45]
    masks = splits_of(rng, y, (80, 80))
    seen = watch_spans(monkeypatch)
    c = np.tile(STRENGTHS, 2)
    fitted = fit_logistic(x, y, n_classes=3, c=c, row_weights=np.repeat(masks, 6, axis=0))
    assert seen == [True]
    for i, own in enumerate(np.repeat(masks, 6, axis=0)):
        alone = LogisticRegression(C=c[i]).fit(x[own].astype(np.float64), y[own])
        assert abs(fitted.n_iter[i] - alone.n_iter_[0]) <= 1
        if fitted.n_iter[i] == alone.n_iter_[0]:
            scale = np.abs(alone.coef_).max()
            np.testing.assert_allclose(fitted.coef[i], alone.coef_.T, atol=2e-3 * scale)


@pytest.mark.slow
def test_spans_and_features_take_the_same_path(rng, monkeypatch):
    x, y = make_wide(rng)
    masks = splits_of(rng, y, (60, 60))
    rest = {"n_classes": 3, "c": np.tile(STRENGTHS, 2), "row_weights": np.repeat(masks, 6, axis=0)}
    seen = watch_spans(monkeypatch)
    in_spans = fit_logistic(x, y, **rest)
    monkeypatch.setattr(group_rows, "EXPECTED_ITERATIONS", 0)
    plain = fit_logistic(x, y, **rest)
    assert seen == [True, False]
    np.testing.assert_array_equal(in_spans.n_iter, plain.n_iter)
    np.testing.assert_array_equal(in_spans.converged, plain.converged)
    for a, b in zip(in_spans.coef, plain.coef, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-4 * np.abs(b).max())


@pytest.mark.slow
def test_a_batch_in_spans_shrinks_group_by_group(rng, monkeypatch):
    x, y = make_wide(rng)
    masks = splits_of(rng, y, (60, 60, 60, 60))
    c = 10.0 ** np.linspace(-4, 4, 15)
    picked = []
    pick = steps.pick_problems

    def watched(problems, state, idx):
        picked.append(np.asarray(idx))
        return pick(problems, state, idx)

    monkeypatch.setattr(steps, "pick_problems", watched)
    monkeypatch.setattr(fit, "LEAST_OPERATIONS", 10 * 4 * 4 * 60**2 * 3)  # of ten problems a group
    together = fit_logistic(
        x, y, n_classes=3, c=np.tile(c, 4), row_weights=np.repeat(masks, 15, axis=0)
    )
    [idx] = picked
    np.testing.assert_array_equal(np.bincount(idx // 15), [5, 5, 5, 5])
    monkeypatch.setattr(fit, "LEAST_OPERATIONS", np.inf)
    whole = fit_logistic(
        x, y, n_classes=3, c=np.tile(c, 4), row_weights=np.repeat(masks, 15, axis=0)
    )
    assert len(picked) == 1
    np.testing.assert_allclose(together.n_iter, whole.n_iter, atol=1)
    for a, b in zip(together.coef, whole.coef, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "why", ["", "equal rows", "groups of unequal size", "two problems", "a budget", "many rows"]
)
def test_features_where_spans_do_not_serve(rng, monkeypatch, why):
    x, y = make_wide(rng, **({"n": 200, "d": 20} if why == "many rows" else {"n": 40, "d": 120}))
    masks = splits_of(rng, y, (30, 30))
    strengths = [0.1, 1.0] if why == "two problems" else [0.1, 1.0, 3.0]
    c = np.tile(strengths, 2)
    weights, budget = np.repeat(masks, len(strengths), axis=0), None
    if why == "equal rows":
        x[np.flatnonzero(masks[1])[:2]] = x[np.flatnonzero(masks[1])[0]]
    elif why == "groups of unequal size":
        weights[1] = masks[1]
    elif why == "a budget":  # for all problems, but not for the factors of two groups
        budget = 6 * fit.problem_bytes(40, 120, 3) + SPAN_BYTES - 1
    factorize, factors = group_rows._factorize, []
    monkeypatch.setattr(
        group_rows,
        "_factorize",
        lambda products: factors.append(factorize(products)) or factors[-1],
    )
    seen = watch_spans(monkeypatch)
    fitted = fit_logistic(x, y, n_classes=3, c=c, row_weights=weights, budget_bytes=budget)
    assert seen == [not why]
    assert [f is not None for f in factors] in {
        "": ([True, True],),
        "equal rows": ([False], [True, False]),  # whichever group comes first
    }.get(why, ([],))
    for i, own in enumerate(weights > 0):
        alone = LogisticRegression(C=c[i]).fit(x[own].astype(np.float64), y[own])
        assert fitted.n_iter[i] == alone.n_iter_[0]
        np.testing.assert_allclose(fitted.coef[i], alone.coef_.T, atol=1e-3)


@pytest.mark.slow
def test_a_budget_that_holds_problems_and_spans(rng, monkeypatch):
    x, y = make_wide(rng, n=40, d=120)
    weights = np.repeat(splits_of(rng, y, (30, 30)), 3, axis=0)
    seen = watch_spans(monkeypatch)
    budget = 6 * fit.problem_bytes(40, 120, 3) + SPAN_BYTES
    fit_logistic(x, y, n_classes=3, c=[0.1, 1.0, 3.0] * 2, row_weights=weights, budget_bytes=budget)
    assert seen == [True]


def make_spans(rng):
    """Rows of two groups in their spans, the basis in float64, and the rows' features."""
    x, y = make_wide(rng, n=50, d=200)
    weights = np.repeat(splits_of(rng, y, (40, 33)), 4, axis=0).astype(np.float32)
    with jax.enable_x64(True):
        groups, rows = group_rows.arrange(
            GroupRows(jnp.asarray(x)), weights, n_logits=3, can_turn=True
        )
    basis = []
    for g, is_row in zip(groups.row_idx, groups.is_row, strict=True):
        wide = x[g[is_row]].astype(np.float64)
        basis.append(np.linalg.inv(np.linalg.cholesky(wide @ wide.T)) @ wide)
    return x, groups, rows, basis


@pytest.mark.parametrize("shared", [True, False])
def test_coordinates_and_basis_are_the_rows(rng, monkeypatch, shared):
    monkeypatch.setattr(group_rows, "_shares_products", lambda groups, n: shared)
    x, groups, rows, basis = make_spans(rng)
    assert rows.x.shape == (2, 40, 40)
    for g, vectors in enumerate(basis):
        n = len(vectors)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(n), atol=1e-10)
        own = np.asarray(rows.x[g])
        np.testing.assert_allclose(own[:n, :n] @ vectors, x[groups.row_idx[g, :n]], atol=1e-5)
        assert not own[n:].any()
    weights = rng.normal(size=(8, 3, 40)).astype(np.float32)
    with jax.enable_x64(True):
        turned = np.asarray(group_rows.turn_back(rows.span, jnp.asarray(weights)))
    assert turned.dtype == np.float32
    for b in range(8):
        vectors = basis[b // 4]
        expected = weights[b, :, : len(vectors)] @ vectors
        np.testing.assert_allclose(turned[b], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n_open", [1, 2, 4])
def test_the_rule_looks_at_all_features(rng, monkeypatch, n_open):
    """The features that are looked at first may be small; another decides then, or none."""
    monkeypatch.setattr(group_rows, "TELLING_FEATURES", 2)
    _, _, rows, basis = make_spans(rng)
    gradient = rng.normal(size=(8, 3, 41)).astype(np.float32)
    for b in range(8):  # one group has fewer rows
        gradient[b, :, len(basis[b // 4]) :] = 0
    largest, telling = np.zeros(8), np.zeros(8)
    for b in range(8):
        features = np.abs(gradient[b, :, : len(basis[b // 4])] @ basis[b // 4])
        largest[b] = features.max()
        seen = np.asarray(rows.span.telling[b // 4])[: len(basis[b // 4])]
        telling[b] = np.abs(gradient[b, :, : len(seen)] @ seen).max()
    assert 3 <= np.count_nonzero(telling < 0.99 * largest) < 8
    asked = np.arange(8) % 4 < n_open
    with jax.enable_x64(True):
        for factor, expected in ((1 + 1e-4, True), (1 - 1e-4, False)):
            for b in range(8):
                tol = jnp.float64(largest[b] * factor)
                flat = np.asarray(group_rows.is_flat(rows, jnp.asarray(gradient), tol, asked))
                if asked[b]:
                    assert flat[b] == expected
        # One open problem, more than few, and all: the answer is the same.
        tol = jnp.float64(np.median(largest))
        flat = np.asarray(group_rows.is_flat(rows, jnp.asarray(gradient), tol, asked))
        np.testing.assert_array_equal(flat[asked], (largest <= np.median(largest))[asked])
        gradient[:, 0, -1] = 1e3
        flat = np.asarray(group_rows.is_flat(rows, jnp.asarray(gradient), tol, asked))
        assert not flat[asked].any()


def test_groups_are_problems_with_the_same_rows(rng):
    masks = splits_of(rng, np.arange(20) % 2, (12, 9))
    weights = masks[[0, 1, 1, 0, 1, 0]] * rng.uniform(0.5, 2, (6, 20))
    groups = group_rows._find_groups(weights)
    np.testing.assert_array_equal(groups.problem_idx, [[0, 3, 5], [1, 2, 4]])
    for idx, rows, is_row in zip(*groups, strict=True):
        used = weights[idx] > 0
        np.testing.assert_array_equal(used[0], used[1])
        np.testing.assert_array_equal(np.flatnonzero(used[0]), rows[is_row])
    taken = groups.take(weights)
    np.testing.assert_allclose(taken.sum(1), weights[groups.problem_idx.reshape(-1)].sum(1))
    assert not taken[~np.repeat(groups.is_row, 3, axis=0)].any()
    of_rows = groups.take(np.arange(20))
    np.testing.assert_array_equal(of_rows, np.repeat(groups.row_idx, 3, axis=0))
    assert group_rows._find_groups(weights[:5]) is None
    assert group_rows._find_groups(weights[:4]) is None  # two of each: too few


def test_products_of_few_columns_are_those_of_many(rng, monkeypatch):
    x = jnp.asarray(rng.normal(size=(2, 70, 30)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(2, 12, 30)), jnp.float32)
    sums = jnp.asarray(rng.normal(size=(2, 12, 70)), jnp.float32)
    plain = products.multiply_rows(x, w), products.sum_rows(x, sums)
    monkeypatch.setattr(products, "LARGE_ROWS", 0)
    assert products._is_thin(x, w)
    thin = products.multiply_rows(x, w), products.sum_rows(x, sums)
    wide = np.asarray(x, np.float64)
    expected = (
        np.einsum("gcd,gnd->gcn", np.asarray(w, np.float64), wide),
        np.einsum("gcn,gnd->gcd", np.asarray(sums, np.float64), wide),
    )
    for a, b, c in zip(plain, thin, expected, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-4)
        np.testing.assert_allclose(b, c, atol=1e-4)
