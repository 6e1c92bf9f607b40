"""Rows of logistic regressions by the splits that use them: as all rows, with fewer operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pathorob_jax.core.aligned import empty_aligned
from pathorob_jax.kernels.logistic import fit, group_rows, row_segments
from pathorob_jax.kernels.logistic import lbfgs as steps
from pathorob_jax.kernels.logistic.fit import fit_logistic
from pathorob_jax.kernels.logistic.group_rows import GroupRows
from pathorob_jax.kernels.logistic.row_segments import cut_bytes, cut_rows, order_rows

# Last bits decide where fits stop, and they depend on how XLA compiles.
pytestmark = pytest.mark.optimized

# Strengths from which on scikit-learn's stopping rule does not hang on last bits.
STRENGTHS = np.array([1e-3, 1e-2, 0.1, 1.0, 10.0])


def make_case(rng, *, n=240, d=48, n_classes=3):
    """Rows and labels, and which of three splits use which rows; some rows no split uses."""
    y = np.arange(n) % n_classes
    x = rng.normal(size=(n, d)) + 0.4 * rng.normal(size=(n_classes, d))[y]
    kinds = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    return x.astype(np.float32), y, kinds[rng.integers(0, len(kinds), n)].T


@pytest.fixture
def segmented(monkeypatch):
    """Let few rows be segments too; what each fit had."""
    monkeypatch.setattr(row_segments, "LEAST_SAVED", 0)
    monkeypatch.setattr(group_rows, "EXPECTED_ITERATIONS", 0)  # no spans
    seen, arrange = [], group_rows.arrange

    def watched(*args, **kwargs):
        found = arrange(*args, **kwargs)
        seen.append(found[1].segments)
        return found

    monkeypatch.setattr(group_rows, "arrange", watched)
    return seen


def test_rows_are_ordered_by_who_uses_them(rng):
    _, _, is_used = make_case(rng)
    order = order_rows(is_used)
    wanted = np.flatnonzero(is_used.any(axis=0))
    assert len(wanted) < is_used.shape[1]
    np.testing.assert_array_equal(np.sort(order.row_idx), wanted)
    assert len(order.starts) == len(set(order.groups)) == 4
    for idx, groups in zip(np.split(order.row_idx, order.starts[1:]), order.groups, strict=True):
        assert (np.diff(idx) > 0).all()
        expected = np.isin(np.arange(3), groups)
        np.testing.assert_array_equal(is_used[:, idx], np.tile(expected[:, None], len(idx)))
    assert order.groups == order_rows(is_used[:, ::-1]).groups  # whichever comes first
    again = order_rows(is_used[:, order.row_idx])
    np.testing.assert_array_equal(again.row_idx, np.arange(len(wanted)))


@pytest.mark.parametrize("n_logits", [1, 3])
def test_products_leave_out_rows_that_are_not_used(rng, n_logits):
    x, _, is_used = make_case(rng)
    order = order_rows(is_used)
    ordered, segments = cut_rows(jnp.asarray(x), order)
    wide, used = x[order.row_idx].astype(np.float64), is_used[:, order.row_idx]
    np.testing.assert_array_equal(ordered, x[order.row_idx])
    coef = rng.normal(size=(6, n_logits, x.shape[1])).astype(np.float32)
    weights = rng.normal(size=(6, n_logits, len(wide))).astype(np.float32)
    own = np.repeat(used, 2, axis=0)[:, None, :]
    expected = np.einsum("bld,nd->bln", coef.astype(np.float64), wide) * own
    np.testing.assert_allclose(segments.multiply(jnp.asarray(coef)), expected, atol=1e-4)
    expected = np.einsum("bln,nd->bld", weights.astype(np.float64) * own, wide)
    np.testing.assert_allclose(segments.sum_rows(jnp.asarray(weights)), expected, atol=1e-4)


@pytest.mark.parametrize(("d", "shared"), [(48, True), (46, False)])
def test_ordered_rows_are_not_copied_where_xla_can_use_parts_of_them(rng, d, shared):
    values, _, is_used = make_case(rng, d=d)
    order = order_rows(is_used)
    x = empty_aligned((len(order.row_idx), d))
    x[:] = values[order.row_idx]
    rows = jax.device_put(x)
    ordered, segments = cut_rows(rows, order_rows(is_used[:, order.row_idx]))
    start = rows.unsafe_buffer_pointer()
    assert ordered.unsafe_buffer_pointer() == start
    assert cut_bytes(rows) == rows.nbytes * (1 if shared else 2)
    places = [part.unsafe_buffer_pointer() - start for part in segments.rows]
    assert (places == (4 * d * order.starts).tolist()) == shared
    np.testing.assert_array_equal(np.concatenate(segments.rows), x)


@pytest.mark.slow
@pytest.mark.parametrize(("n_classes", "fit_intercept"), [(2, True), (3, False), (3, True)])
def test_fits_stop_where_scikit_learn_stops(rng, segmented, n_classes, fit_intercept):
    x, y, is_used = make_case(rng, n_classes=n_classes)
    # Problems of a split do not lie together, and have labels and weights of their own.
    order = rng.permutation(3 * len(STRENGTHS))
    split, c = np.repeat(np.arange(3), len(STRENGTHS))[order], np.tile(STRENGTHS, 3)[order]
    labels = np.stack([(y + s) % n_classes for s in range(3)])[split]
    weights = is_used[split] * rng.integers(1, 4, (len(split), len(y)))
    fitted = fit_logistic(
        x, labels, n_classes=n_classes, c=c, row_weights=weights, fit_intercept=fit_intercept
    )
    assert [s is not None for s in segmented] == [True]
    for i, s in enumerate(split):
        own = is_used[s]
        alone = LogisticRegression(C=c[i], fit_intercept=fit_intercept)
        alone.fit(x[own].astype(np.float64), labels[i][own], sample_weight=weights[i][own])
        assert fitted.n_iter[i] == alone.n_iter_[0]
        # Iterates of float32 and float64 drift apart by some units of their last digits.
        atol = 1e-3 * np.abs(alone.coef_).max()
        np.testing.assert_allclose(fitted.coef[i], alone.coef_.T, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("standardized", [False, True])
def test_fits_are_those_of_all_rows(rng, segmented, monkeypatch, standardized):
    """Also when the batch shrinks, with features that are shifted and scaled by problem."""
    x, y, is_used = make_case(rng)
    c = np.tile(10.0 ** np.linspace(-4, 3, 15), 3)
    kwargs = {"n_classes": 3, "c": c, "row_weights": np.repeat(is_used, 15, axis=0)}
    if standardized:
        kwargs["shift"] = 0.1 * rng.normal(size=(45, x.shape[1]))
        kwargs["scale"] = rng.uniform(0.9, 1.1, (45, x.shape[1]))
    picked, pick = [], steps.pick_problems

    def watched(problems, state, idx):
        picked.append(len(idx))
        return pick(problems, state, idx)

    monkeypatch.setattr(steps, "pick_problems", watched)
    monkeypatch.setattr(fit, "LEAST_OPERATIONS", 1)
    found = fit_logistic(x, y, **kwargs)
    assert segmented[0] is not None
    assert picked == [16]
    monkeypatch.setattr(row_segments, "LEAST_SHARE", 1)
    whole = fit_logistic(x, y, **kwargs)
    assert segmented[1] is None
    np.testing.assert_allclose(found.n_iter, whole.n_iter, atol=1)
    same = found.n_iter == whole.n_iter
    assert same.mean() > 0.9
    for a, b in zip(found.coef[same], whole.coef[same], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(b).max())


@pytest.mark.slow
def test_draws_of_equal_sizes_share_programs(rng, segmented):
    x, y, is_used = make_case(rng)
    c, n_programs = np.tile(STRENGTHS, 3), set()
    for _ in range(3):
        fit_logistic(x, y, n_classes=3, c=c, row_weights=np.repeat(is_used, 5, axis=0), max_iter=3)
        n_programs.add(steps.iterate._cache_size())
        is_used = is_used[:, rng.permutation(len(x))]
    assert len(n_programs) == len({s.groups for s in segmented}) == 1


@pytest.mark.parametrize(
    "why", ["", "small", "little saved", "many segments", "a budget", "an accelerator"]
)
def test_all_rows_where_segments_do_not_serve(rng, segmented, monkeypatch, why):
    x, y, is_used = make_case(rng)
    n_bytes = 15 * fit.problem_bytes(*x.shape, 3) + x.nbytes
    saved = 4 * x.size * 45 * (1 - is_used.mean())  # of 45 columns, three logits of 15 problems
    monkeypatch.setattr(row_segments, "LEAST_SAVED", saved - 1)
    if why == "small":
        monkeypatch.setattr(row_segments, "LEAST_SAVED", saved + 1)
    elif why == "little saved":
        is_used[:, :200] = True
    elif why == "many segments":
        monkeypatch.setattr(row_segments, "MOST_SEGMENTS", 3)
    elif why == "an accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fit_logistic(
        x,
        y,
        n_classes=3,
        c=np.tile(STRENGTHS, 3),
        row_weights=np.repeat(is_used, 5, axis=0),
        budget_bytes=n_bytes - (why == "a budget"),
        max_iter=2,
    )
    assert [s is not None for s in segmented] == [not why]


def test_a_batch_with_segments_is_an_argument_of_a_program(rng):
    x, _, is_used = make_case(rng)
    _, segments = cut_rows(jnp.asarray(x), order_rows(is_used))
    leaves, tree = jax.tree.flatten(GroupRows(jnp.asarray(x), segments=segments))
    assert [leaf.shape for leaf in leaves[1:]] == [part.shape for part in segments.rows]
    assert jax.tree.unflatten(tree, leaves).segments.groups == segments.groups
