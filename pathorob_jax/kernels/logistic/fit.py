"""L2-regularised logistic regression for many problems at once.

The input is one matrix of rows, labels, and per problem an inverse strength ``c``, row weights, and
shifts and scales that standardise the features. The result is the coefficients of each problem.

Problems (folds, values of C, splits) share the rows. They are solved in batches that fit a memory
budget; when most problems of a batch have finished, the remaining ones continue as a smaller batch.
The iterates follow scikit-learn's ``lbfgs`` one by one, up to rounding. This matters because its
stopping rule stops far from the optimum, and the point at which it stops depends on the path. The
module ``lbfgs`` runs the iterations on the device.
"""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Float, Int
from pathorob_jax.kernels.logistic import group_rows
from pathorob_jax.kernels.logistic import lbfgs as steps
from pathorob_jax.kernels.logistic.group_rows import GroupRows

Stopping = Literal["reference", "converged"]
# When a third of a batch is active, it continues as a batch of this size, unless an iteration has
# few operations, since each size is compiled separately. An accelerator does a hundred times as
# many meanwhile. XLA's products with few columns are fastest on CPU if these fill registers: 13
# columns with 12,600 x 3,072 rows take 13 ms, 16 take 8.
SHRINK, LEAST_OPERATIONS, ACCELERATION, REGISTER = 3, 1e9, 100, 16


class LogisticFit(NamedTuple):
    """Fitted problems. L = 1 logit for two classes (the logit of class 1), else one per class.

    Attributes:
        coef: float[B, D, L] coefficients; of the standardised features if shifts or scales were
            passed.
        intercept: float[B, L]; 0 if none was fitted.
        n_iter: int32[B] iterations.
        converged: bool[B] whether the stopping rule was met; False: ``max_iter`` was reached, or no
            step along the gradient lowers the loss any further at this precision.
        max_gradient: float[B] largest absolute entry of the final gradient of the mean loss, in the
            coordinates in which the problem was solved.
    """

    coef: Float[np.ndarray, "B D L"]
    intercept: Float[np.ndarray, "B L"]
    n_iter: Int[np.ndarray, " B"]
    converged: Bool[np.ndarray, " B"]
    max_gradient: Float[np.ndarray, " B"]


def fit_logistic(
    x: Float[ArrayLike, "N D"],
    y: Int[ArrayLike, "*B N"],
    *,
    n_classes: int,
    c: Float[ArrayLike, " B"],
    row_weights: Float[ArrayLike, "B N"] | None = None,
    shift: Float[ArrayLike, "B D"] | None = None,
    scale: Float[ArrayLike, "B D"] | None = None,
    fit_intercept: bool = True,
    max_iter: int = 100,
    tol: float = 1e-4,
    stopping: Stopping = "reference",
    budget_bytes: int | None = None,
) -> LogisticFit:
    """Minimise sum_i v_i loss_i / n + |w|^2 / (2 c n) for each problem, n = sum_i v_i.

    The loss is the log loss of one logit for two classes and of a softmax otherwise. The intercept
    is not penalised. All weights start at 0.

    Args:
        x: float[N, D] rows shared by all problems, finite; a JAX array is not copied if its dtype
            already fits.
        y: int[N] labels shared by all problems, or int[B, N] of each problem; in [0, n_classes).
        n_classes: at least 2. A class without rows in a problem keeps its logit, whereas
            scikit-learn would drop the class; leave such problems out.
        c: float[B] inverse strength of the penalty, positive. Its length is the number of problems.
        row_weights: float[B, N], not negative; a 0/1 mask selects the training rows. None: all 1.
        shift: float[B, D] subtracted from every row before the scaling; None: 0. Shift and scale
            are folded into the products, so that no problem needs a copy of x. In float32, centre x
            roughly beforehand: folded shifts that are many times the spread cancel digits.
        scale: float[B, D] by which the shifted rows are divided, positive; None: 1.
        fit_intercept: whether to fit an intercept.
        max_iter: maximum number of iterations per problem.
        tol: see ``stopping``.
        budget_bytes: problems are fitted in batches of one size whose memory on the device, not
            counting the rows, stays approximately below this (at least one at a time); None: all
            at once. The result of a problem depends on its batch only in the last bits.
        stopping: ``reference``: float32, scikit-learn's rule: largest absolute gradient entry at
            most ``tol``, or a decrease of at most 64 float64 eps relative to max(loss, 1). On CPU,
            problems that share few rows of many features are solved in the span of these rows
            (``group_rows.arrange``), and others leave out rows of weight 0 where many share these.
            ``converged``: float64, |gradient| c n <= tol |w|, which bounds the relative error of w
            at a fixed intercept (the curvature from the penalty is at least 1 / (c n)); or, without
            shifts and scales, a gradient that is no more than the rounding of its sum. Without
            shifts and scales, the rows are rotated into the eigenbasis of their covariance, in at
            most min(N, D) coordinates. There, the recursion starts from the inverse of the
            curvature that the loss would have if every row contributed equally.

    Returns:
        ``LogisticFit`` on the host, float32 or (``converged``) float64.

    Raises:
        InputError: shapes differ; a row is not finite; a label, strength, weight or scale is out of
            range; a problem has no rows.
        TypeError: y is not of integer dtype.

    Reference: sklearn.linear_model.LogisticRegression(solver="lbfgs", C=c) on the weighted rows.
    Differs: float32 in ``reference``; a correction pair without curvature, which L-BFGS-B skips,
    replaces the oldest pair here; scikit-learn has no ``converged`` mode.
    """
    if n_classes < 2:
        raise InputError(f"n_classes: expected at least 2, found {n_classes}.")
    c = np.asarray(c, np.float64)
    checks.check_shape(c.shape, (None,), name="c", why="(one per problem)")
    (n, d), (b,) = np.shape(x), c.shape
    if b == 0 or not ((c > 0) & np.isfinite(c)).all():
        raise InputError(f"c: expected one or more positive numbers, found {c}.")
    y = np.asarray(y)
    checks.check_integer(y, name="y")
    checks.check_shape(y.shape, (n,) if y.ndim == 1 else (b, n), name="y", why="to match x and c")
    if y.min() < 0 or y.max() >= n_classes:
        raise InputError(
            f"y: expected labels in [0, {n_classes}), found {y.min()} to {y.max()}; factorise them."
        )
    weights = np.ones((b, n), np.float32) if row_weights is None else np.asarray(row_weights)
    checks.check_shape(weights.shape, (b, n), name="row_weights", why="to match c and x")
    totals = weights.sum(axis=1, dtype=np.float64)
    if (weights < 0).any() or not (totals > 0).all():
        raise InputError(
            "row_weights: expected weights of 0 or more with a positive sum per problem, found "
            f"{weights.min()} as the least and sums from {totals.min()}; leave empty problems out."
        )
    for name, vectors in (("shift", shift), ("scale", scale)):
        if vectors is not None:
            checks.check_shape(np.shape(vectors), (b, d), name=name, why="to match c and x")
    if scale is not None and not (np.asarray(scale) > 0).all():
        raise InputError("scale: expected positive numbers, found others; 1 for constant features.")

    exact = stopping == "converged"
    itemsize = 8 if exact else 4
    n_logits = 1 if n_classes == 2 else n_classes
    size = b if budget_bytes is None else budget_bytes // problem_bytes(n, d, n_classes, itemsize)
    size = -(-b // -(-b // max(1, size)))  # batches of equal size share one trace
    with jax.enable_x64(True):
        put, dtype = jax.device_put, np.float64 if exact else np.float32
        with np.errstate(over="ignore"):  # infinite rows are refused below
            rows = to_device(x, dtype=dtype)
        finite = np.asarray(_are_finite(rows))
        if not finite.all():
            raise InputError(
                f"x: {np.count_nonzero(~finite)} of {n} rows hold NaN or infinite values as "
                f"{rows.dtype.name}, the first is row {np.argmin(finite)}; leave them out."
            )
        plain, groups = shift is None and scale is None, None
        if turned := exact and plain:
            mean, basis, variances, rows = group_rows.turn_rows(rows, center=fit_intercept)
        shared = GroupRows(rows)
        if not exact and size == b:
            left = None  # of the budget, beside the problems
            if budget_bytes is not None:
                left = budget_bytes - b * problem_bytes(n, d, n_classes, itemsize)
            groups, shared = group_rows.arrange(
                shared, weights, n_logits=n_logits, can_turn=plain, budget_bytes=left
            )
        del rows  # they may be there in another order by now
        fit = LogisticFit(
            coef=np.zeros((b, d, n_logits), dtype),
            intercept=np.zeros((b, n_logits), dtype),
            n_iter=np.zeros(b, np.int32),
            converged=np.zeros(b, bool),
            max_gradient=np.zeros(b, dtype),
        )
        for first in range(0, b, size):
            idx = np.arange(size) + min(first, b - size)
            if groups is None:
                label, weight = y[None] if y.ndim == 1 else y[idx], weights[idx]
            else:
                idx = groups.problem_idx.reshape(-1)
                label, weight = groups.take(y), groups.take(weights)
            problems = steps.Problems(
                put(np.asarray(label, np.int32)),
                put(np.asarray(weight / totals[idx, None], dtype)),
                put(1 / (c[idx] * totals[idx])),
                None if shift is None else put(np.asarray(shift, dtype)[idx]),
                None if scale is None else put(np.asarray(scale, dtype)[idx]),
                variances if turned else None,
            )
            solved = _solve(
                functools.partial(
                    steps.iterate,
                    max_iter=np.int32(max_iter),
                    tol=np.float64(tol),
                    n_classes=n_classes,
                    fit_intercept=fit_intercept,
                    exact=exact,
                ),
                shared,
                problems,
                n_logits=n_logits,
            )
            if shared.span is not None:
                coef = np.asarray(group_rows.turn_back(shared.span, solved.coef.swapaxes(1, 2)))
                solved = solved._replace(coef=coef.swapaxes(1, 2))
            if turned:
                coef = np.einsum("dr,brl->bdl", basis, solved.coef)
                intercept = solved.intercept - np.einsum("d,bdl->bl", mean, coef)
                solved = solved._replace(coef=coef, intercept=intercept)
            for whole, part in zip(fit, solved, strict=True):
                whole[idx] = part
        return fit


@jax.jit
def _make_logits(x: Array, w: Array, shift: Array | None, scale: Array | None) -> Array:
    return group_rows.make_logits(GroupRows(x), w, shift, scale)


@jax.jit
def _are_finite(rows: Array) -> Array:
    return jnp.isfinite(rows).all(axis=1)


def problem_bytes(n: int, d: int, n_classes: int, itemsize: int = 4) -> int:
    """Device memory of one problem while it is fitted, in addition to the shared rows.

    Args:
        n: number of rows, including those with weight 0.
        d: number of features.
        n_classes: at least 2.
        itemsize: 4 for ``reference``, 8 for ``converged``.
    """
    n_logits = 1 if n_classes == 2 else n_classes
    return itemsize * n_logits * ((2 * steps.MEMORY + 12) * (d + 1) + 10 * n)


def predict_logits(
    x: Float[ArrayLike, "N D"],
    fit: LogisticFit,
    *,
    shift: Float[ArrayLike, "B D"] | None = None,
    scale: Float[ArrayLike, "B D"] | None = None,
) -> Float[np.ndarray, "B N L"]:
    """Logits of rows under every problem of a fit, in the dtype of the coefficients.

    Args:
        x: float[N, D].
        fit: result of ``fit_logistic``.
        shift: as passed to the fit.
        scale: as passed to the fit.

    Returns:
        float[B, N, L], on the host. With L = 1, class 1 is predicted where the logit is positive.
    """
    dtype = fit.coef.dtype
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        weights = np.concatenate([fit.coef.swapaxes(1, 2), fit.intercept[:, :, None]], axis=2)
        out = _make_logits(
            to_device(x, dtype=dtype),
            weights,
            None if shift is None else np.asarray(shift, dtype),
            None if scale is None else np.asarray(scale, dtype),
        )
        return np.asarray(out).swapaxes(1, 2)


def _solve(
    iterate: Callable[..., steps.State],
    rows: GroupRows,
    problems: steps.Problems,
    *,
    n_logits: int,
) -> LogisticFit:
    """Run a batch to its end; when a third of each group is left, it continues as a batch."""
    state, out, n_groups = None, None, rows.n_groups
    position = np.arange(len(problems.penalty))  # of each problem of the batch in the result
    while True:
        n_left = _count_left(rows, len(position) // n_groups, n_logits)
        state = iterate(rows, problems, state, n_left=np.int32(n_left))
        weights, status = np.asarray(state.weights), np.asarray(state.status)
        current = LogisticFit(
            weights[:, :, :-1].swapaxes(1, 2),
            weights[:, :, -1],
            np.asarray(state.n_iter),
            status == steps.CONVERGED,
            np.abs(np.asarray(state.gradient)).max((1, 2)),
        )
        if out is None:
            out = LogisticFit(*(np.array(a) for a in current))
        for whole, part in zip(out, current, strict=True):
            whole[position] = part
        if not (status == steps.ACTIVE).any():
            return out
        # Active problems come first; finished problems, whose values no longer change, fill the
        # batch.
        is_over = (status != steps.ACTIVE).reshape(n_groups, -1)
        within = np.argsort(is_over, axis=1, kind="stable")[:, :n_left]
        idx = (within + is_over.shape[1] * np.arange(n_groups)[:, None]).reshape(-1)
        problems, state = steps.pick_problems(problems, state, idx)
        position = position[idx]
        rows = rows._replace(segments=None)  # of the whole batch


def _count_left(rows: GroupRows, n_problems: int, n_logits: int) -> int:
    """Active problems of each group with which a batch continues as a smaller one; 0: never.

    Args:
        rows: rows of the groups.
        n_problems: problems of each group now.
        n_logits: number of logits of a problem.
    """
    least = LEAST_OPERATIONS * (1 if jax.default_backend() == "cpu" else ACCELERATION)
    if 4 * rows.x.size * n_problems * n_logits < least:
        return 0
    n_left = n_problems // SHRINK
    if rows.n_groups == 1:
        whole = REGISTER // math.gcd(REGISTER, n_logits)
        n_left = -(-n_left // whole) * whole
    return n_left if n_left < n_problems else 0
