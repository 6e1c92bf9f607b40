"""L2-regularised logistic regression, many problems at once.

Enters: one matrix of rows, labels, and per problem a strength ``c``, row weights and shifts and
scales that standardise the features. Leaves: coefficients per problem.

Problems of a batch (folds, values of C, splits) share the rows, so that an iteration of all costs
two large products: X.P for the directions and R.X for the gradients. Logits are linear in the step,
hence the line search needs none. The search is MINPACK-2's dcsrch, in lockstep over problems, and
the directions are L-BFGS with ten pairs: the path of scikit-learn's ``lbfgs`` (SciPy's L-BFGS-B
without bounds), iterate by iterate up to rounding. That matters, because its stopping rule stops
far from the optimum, and where it stops depends on the path.

Arrays are float32, numbers of a problem (losses, slopes, steps) float64: at a strong penalty the
first trial step is a million times too long, and of an interpolation over it float32 keeps nothing.
Changes of the loss are computed row by row as such, so that they are seen when they are much
smaller than the loss.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax import checks
from pathorob_jax.checks import InputError
from pathorob_jax.kernels import line_search
from pathorob_jax.typing import Array, ArrayLike, Bool, Float, Int

Stopping = Literal["reference", "converged"]
MEMORY = 10
# scikit-learn's relative decrease under which L-BFGS-B stops (in units of float64, whatever the
# dtype here).
SMALLEST_CURVATURE = 1e-12
LOSS_TOLERANCE = 64 * float(np.finfo(np.float64).eps)
_ACTIVE, _CONVERGED, _STOPPED = range(3)
# A batch goes on as one of a third of its size when no more are active, not under the smallest:
# each size is compiled apart.
SHRINK, SMALLEST_BATCH = 3, 16


class LogisticFit(NamedTuple):
    """Fitted problems, L = 1 logit for two classes (that of class 1), else one per class.

    Attributes:
        coef: float[B, D, L], of the standardised features where they were standardised.
        intercept: float[B, L]; 0 where none was fitted.
        n_iter: int32[B].
        converged: bool[B] the stopping rule was met; False: ``max_iter`` reached, or no step along
            the gradient lowers the loss any more at this precision.
        max_gradient: float[B] largest absolute gradient entry at the end, of the mean loss, in the
            coordinates that it was solved in.
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

    The loss is the log loss of one logit for two classes, of a softmax otherwise; the intercept is
    not penalised. Everything starts at 0.

    Args:
        x: float[N, D] rows shared by all problems, finite; a JAX array is not copied when its
            dtype already fits.
        y: int[N] labels shared by all problems, or int[B, N] of each; in [0, n_classes).
        n_classes: at least 2. A class without rows in a problem keeps its logit, which scikit-learn
            would not even have: leave such problems out.
        c: float[B] inverse strength of the penalty, positive. Its length is the number of problems.
        row_weights: float[B, N], not negative; a 0/1 mask picks the training rows. None: all 1.
        shift: float[B, D] taken from every row before the scaling; None: 0. Both are folded into
            the products, so that no problem has a copy of x. With float32, centre x roughly
            beforehand: what is folded cancels digits when shifts are many times the spread.
        scale: float[B, D] that the shifted rows are divided by, positive; None: 1.
        fit_intercept: whether there is an intercept.
        max_iter: most iterations of a problem.
        tol: see ``stopping``.
        budget_bytes: problems are fitted in batches of one size whose memory on the device, the
            rows not counted, stays about under it (at least one at a time); None: all at once.
            What a problem gives depends on its batch in the last bits only.
        stopping: ``reference``: float32, scikit-learn's rule: largest absolute gradient entry at
            most ``tol``, or a decrease of at most 64 float64 eps relative to max(loss, 1).
            ``converged``: float64, |gradient| c n <= tol |w|, which bounds the relative error of w
            at a given intercept (the penalty curves the loss by 1 / (c n) at least). Unless there
            are shifts or scales, rows are turned into the eigenbasis of their covariance, in at
            most min(N, D) coordinates, where the recursion starts from the inverse of the curvature
            that the loss has if all rows curve it alike.

    Returns:
        ``LogisticFit`` on the host, float32 or (``converged``) float64.

    Raises:
        InputError: shapes differ; a label, strength, weight or scale is out of range; a problem has
            no rows.
        TypeError: y is not of integer dtype.

    Reference: sklearn.linear_model.LogisticRegression(solver="lbfgs", C=c) on the weighted rows.
    Differs: float32 in ``reference``; a pair without curvature, which L-BFGS-B skips, takes the
    place of the oldest here; no ``converged`` mode there.
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
    size = -(-b // -(-b // max(1, size)))  # batches of one size: one trace
    with jax.enable_x64(True):
        dtype = jnp.float64 if exact else jnp.float32
        rows = jnp.asarray(x, dtype)
        turned = exact and shift is None and scale is None
        if turned:
            mean, basis, variances, rows = _turn(rows, center=fit_intercept)
        fit = LogisticFit(
            coef=np.zeros((b, d, n_logits), dtype),
            intercept=np.zeros((b, n_logits), dtype),
            n_iter=np.zeros(b, np.int32),
            converged=np.zeros(b, bool),
            max_gradient=np.zeros(b, dtype),
        )
        for first in range(0, b, size):
            idx = np.arange(size) + min(first, b - size)
            problems = _Problems(
                jnp.asarray(y[None] if y.ndim == 1 else y[idx], jnp.int32),
                jnp.asarray(weights[idx] / totals[idx, None], dtype),
                jnp.asarray(1 / (c[idx] * totals[idx]), jnp.float64),
                None if shift is None else jnp.asarray(np.asarray(shift)[idx], dtype),
                None if scale is None else jnp.asarray(np.asarray(scale)[idx], dtype),
                variances if turned else None,
            )
            solved = _solve(
                functools.partial(
                    _iterate,
                    rows,
                    max_iter=jnp.asarray(max_iter, jnp.int32),
                    tol=jnp.asarray(tol, jnp.float64),
                    n_classes=n_classes,
                    fit_intercept=fit_intercept,
                    exact=exact,
                ),
                problems,
            )
            if turned:
                coef = np.einsum("dr,brl->bdl", basis, solved.coef)
                intercept = solved.intercept - np.einsum("d,bdl->bl", mean, coef)
                solved = solved._replace(coef=coef, intercept=intercept)
            for whole, part in zip(fit, solved, strict=True):
                whole[idx] = part
        return fit


def problem_bytes(n: int, d: int, n_classes: int, itemsize: int = 4) -> int:
    """Memory on the device that one problem takes while it is fitted, beside the shared rows.

    Args:
        n: rows, including those of no weight.
        d: features.
        n_classes: at least 2.
        itemsize: 4 for ``reference``, 8 for ``converged``.
    """
    n_logits = 1 if n_classes == 2 else n_classes
    return itemsize * n_logits * ((2 * MEMORY + 12) * (d + 1) + 10 * n)


def predict_logits(
    x: Float[ArrayLike, "N D"],
    fit: LogisticFit,
    *,
    shift: Float[ArrayLike, "B D"] | None = None,
    scale: Float[ArrayLike, "B D"] | None = None,
) -> Float[np.ndarray, "B N L"]:
    """Logits of rows under every problem of a fit, in the dtype of its coefficients.

    Args:
        x: float[N, D].
        fit: of ``fit_logistic``.
        shift: as in the fit.
        scale: as in the fit.

    Returns:
        float[B, N, L], on the host. With L = 1, class 1 is predicted where it is positive.
    """
    dtype = fit.coef.dtype
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        coef = jnp.asarray(fit.coef).swapaxes(1, 2)
        weights = jnp.concatenate([coef, jnp.asarray(fit.intercept)[:, :, None]], axis=2)
        out = _multiply(
            jnp.asarray(x, dtype),
            weights,
            None if shift is None else jnp.asarray(shift, dtype),
            None if scale is None else jnp.asarray(scale, dtype),
        )
        return np.asarray(out).swapaxes(1, 2)


class _Problems(NamedTuple):
    """What sets the problems of a batch apart."""

    y: Array  # [1, N] or [B, N]
    weights: Array  # [B, N], the sum of each problem 1
    penalty: Array  # [B] 1 / (c n)
    shift: Array | None  # [B, D]
    scale: Array | None  # [B, D]
    variances: Array | None  # [1, 1, P] of features without covariance; None: they have some


class _State(NamedTuple):
    """All problems between two iterations; P = D + 1, the intercept last."""

    weights: Array  # [B, L, P]
    logits: Array  # [B, L, N]
    gradient: Array  # [B, L, P]
    row_loss: Array  # [B, N]
    residual: Array  # [B, L, N] derivatives of it by logit
    loss: Array  # [B]
    steps: Array  # [MEMORY, B, L, P] the last ones, at turn % MEMORY
    changes: Array  # [MEMORY, B, L, P] of the gradient over them
    curvature: Array  # [MEMORY, B] 1 / (step . change), 0 where the place is empty
    spread: Array  # [B] the diagonal that the recursion starts from
    turn: Array  # how often the loop ran
    n_iter: Array  # [B]
    status: Array  # [B]


def _solve(iterate: Callable[..., _State], problems: _Problems) -> LogisticFit:
    """Run a batch to its end; when a third of it is left, that third goes on alone."""
    state, out = None, None
    position = np.arange(len(problems.penalty))  # in the result, of each problem of the batch
    while True:
        n_left = len(position) // SHRINK
        n_left = n_left if n_left >= SMALLEST_BATCH else 0
        state = iterate(problems, state, n_left=jnp.asarray(n_left, jnp.int32))
        weights, status = np.asarray(state.weights), np.asarray(state.status)
        now = LogisticFit(
            weights[:, :, :-1].swapaxes(1, 2),
            weights[:, :, -1],
            np.asarray(state.n_iter),
            status == _CONVERGED,
            np.asarray(_largest(state.gradient)),
        )
        if out is None:
            out = LogisticFit(*(np.array(a) for a in now))
        for whole, part in zip(out, now, strict=True):
            whole[position] = part
        if not (status == _ACTIVE).any():
            return out
        # Active ones first; finished ones, whose values stay, fill the batch.
        idx = np.argsort(status != _ACTIVE, kind="stable")[:n_left]
        problems, state = _pick(problems, state, jnp.asarray(idx))
        position = position[idx]


@functools.partial(jax.jit, static_argnames=("n_classes", "fit_intercept", "exact"))
def _iterate(
    x: Array,
    problems: _Problems,
    start: _State | None,
    n_left: Array,
    max_iter: Array,
    tol: Array,
    *,
    n_classes: int,
    fit_intercept: bool,
    exact: bool,
) -> _State:
    """Go on from ``start`` (None: from 0) until at most ``n_left`` problems are active."""
    y, weights, penalty, shift, scale, variances = problems
    (b, n), d = weights.shape, x.shape[1]
    n_logits = 1 if n_classes == 2 else n_classes
    is_penalized = (jnp.arange(d + 1) < d).astype(x.dtype)[None, None, :]
    is_fitted = is_penalized if not fit_intercept else jnp.ones_like(is_penalized)
    ridge = _column(penalty, x) * is_penalized
    row_terms = functools.partial(_row_terms, y=y, n_logits=n_logits)

    def gradient_at(w: Array, residual: Array) -> Array:
        """[B, L, P] of the whole loss; residual [B, L, N] is weighted."""
        total = residual.sum(axis=2, keepdims=True)
        raw = _product("blm,md->bld", residual, x)
        if shift is not None:
            raw = raw - total * shift[:, None, :]
        if scale is not None:
            raw = raw / scale[:, None, :]
        return jnp.concatenate([raw, total], axis=2) * is_fitted + ridge * w

    def is_done(w: Array, gradient: Array) -> Array:
        if not exact:
            return _largest(gradient) <= tol
        return jnp.sqrt(_dot(gradient, gradient)) <= tol * penalty * jnp.sqrt(
            _dot(w * is_penalized, w)
        )

    def metric_at(residual: Array) -> Array | None:
        """[B, 1, P] inverse of what the loss would curve if all rows did so alike."""
        if variances is None:
            return None
        size = jnp.abs(residual)
        share = (weights * (size * (1 - size)).mean(1)).sum(1)[:, None, None]
        return 1 / (jnp.maximum(share, SMALLEST_CURVATURE) * variances + ridge)

    def step(s: _State) -> _State:
        active = s.status == _ACTIVE
        metric = metric_at(s.residual)
        direction = -_precondition(s, metric)
        slope = _dot(s.gradient, direction)
        moved = _multiply(x, direction, shift, scale)
        bend = _dot(ridge * direction, direction)
        lean = _dot(ridge * s.weights, direction)

        def evaluate(size: Array) -> tuple[Array, Array]:
            """Change of the loss and its slope, [B] each, ``size`` along the direction."""
            moves = _column(size, x) * moved
            row_loss, residual = row_terms(s.logits + moves)
            row_change = _row_changes(s.residual, moves, y, row_loss - s.row_loss)
            change = (weights * row_change).sum(1, dtype=jnp.float64)
            along = (weights * (residual * moved).sum(1)).sum(1, dtype=jnp.float64)
            return change + size * (lean + size * bend / 2), along + lean + size * bend

        first = jnp.minimum(lax.rsqrt(_dot(direction, direction)), line_search.LARGEST_STEP)
        if metric is None:  # with a metric the first direction has a length that means something
            first = jnp.where(s.n_iter == 0, first, jnp.ones_like(first))
        else:
            first = jnp.ones_like(first)
        size, change, along, found = line_search.search(
            evaluate, first, slope, active & (slope < 0)
        )
        accepted = active & found
        size = jnp.where(accepted, size, jnp.zeros_like(size))
        move = jnp.where(accepted[:, None, None], _column(size, x) * direction, 0)
        w = s.weights + move
        logits = s.logits + jnp.where(accepted[:, None, None], _column(size, x) * moved, 0)
        row_loss, residual = row_terms(logits)
        gradient = gradient_at(w, residual * weights[:, None, :])
        gradient = jnp.where(accepted[:, None, None], gradient, s.gradient)
        loss = jnp.where(accepted, s.loss + change, s.loss)

        difference = gradient - s.gradient
        curvature = size * (along - slope)
        curved = accepted & (curvature > -jnp.finfo(jnp.float64).eps * size * slope)
        slot = s.turn % MEMORY
        entry = jnp.where(curved, 1 / curvature, jnp.zeros_like(curvature))
        # As in L-BFGS-B: a search that fails empties the memory; with none left, that is the end.
        failed = active & ~found
        stuck = failed & (s.curvature == 0).all(0)
        kept = jnp.where(failed[None, :], jnp.zeros_like(s.curvature), s.curvature)
        length2 = _dot(difference, _scaled(metric, difference))
        spread = jnp.where(curved, curvature / length2, s.spread)

        n_iter = s.n_iter + accepted
        done = is_done(w, gradient)
        if not exact:
            largest = jnp.maximum(jnp.maximum(jnp.abs(s.loss), jnp.abs(loss)), 1.0)
            done |= -change <= LOSS_TOLERANCE * largest
        status = jnp.where(accepted & done, _CONVERGED, s.status)
        out = (accepted & ~done & (n_iter >= max_iter)) | stuck
        return _State(
            weights=w,
            logits=logits,
            gradient=gradient,
            row_loss=row_loss,
            residual=residual,
            loss=loss,
            steps=s.steps.at[slot].set(move),
            changes=s.changes.at[slot].set(difference),
            curvature=kept.at[slot].set(entry),
            spread=jnp.where(failed, jnp.ones_like(spread), spread),
            turn=s.turn + 1,
            n_iter=n_iter,
            status=jnp.where(out, _STOPPED, status),
        )

    if start is None:
        w = jnp.zeros((b, n_logits, d + 1), x.dtype)
        logits = jnp.zeros((b, n_logits, n), x.dtype)
        row_loss, residual = row_terms(logits)
        gradient = gradient_at(w, residual * weights[:, None, :])
        memory = jnp.zeros((MEMORY, *w.shape), x.dtype)
        start = _State(
            weights=w,
            logits=logits,
            gradient=gradient,
            row_loss=row_loss,
            residual=residual,
            loss=(weights * row_loss).sum(1, dtype=jnp.float64),
            steps=memory,
            changes=memory,
            curvature=jnp.zeros((MEMORY, b), jnp.float64),
            spread=jnp.ones(b, jnp.float64),
            turn=jnp.zeros((), jnp.int32),
            n_iter=jnp.zeros(b, jnp.int32),
            status=jnp.where(
                is_done(w, gradient), _CONVERGED, jnp.where(max_iter > 0, _ACTIVE, _STOPPED)
            ),
        )
    return lax.while_loop(lambda s: (s.status == _ACTIVE).sum() > n_left, step, start)


@functools.partial(jax.jit, static_argnames=("center",))
def _turn(x: Array, *, center: bool) -> tuple[Array, Array, Array, Array]:
    """Rows in the eigenbasis of their covariance, r = min(N, D) coordinates.

    An orthogonal change of basis changes neither logits nor penalty, nor the norm of a gradient.

    Returns:
        mean [D] (0 unless ``center``), basis [D, r], variances [1, 1, r + 1] (1 for the intercept),
        (x - mean) basis [N, r].
    """
    mean = x.mean(0) if center else jnp.zeros_like(x[0])
    around, basis = x - mean[None, :], None
    if x.shape[0] < x.shape[1]:
        basis, triangle = jnp.linalg.qr(around.T)
        around = triangle.T
    covariance = _product("nd,ne->de", around, around) / len(x)
    spread, turn = jnp.linalg.eigh(covariance)
    basis = turn if basis is None else _product("dr,rs->ds", basis, turn)
    rows = _product("nd,dr->nr", around, turn)
    return mean, basis, jnp.append(jnp.maximum(spread, 0), 1.0)[None, None, :], rows


@jax.jit
def _pick(problems: _Problems, state: _State, idx: Array) -> tuple[_Problems, _State]:
    """The problems at ``idx``, int[b], as a batch of their own."""

    def own(a: Array) -> Array:
        return a[idx]

    y = problems.y if len(problems.y) == 1 else own(problems.y)
    shift, scale = jax.tree.map(own, (problems.shift, problems.scale))
    remembered = {name: getattr(state, name)[:, idx] for name in ("steps", "changes", "curvature")}
    shared = {"turn": state.turn} | remembered
    others = {name: own(a) for name, a in state._asdict().items() if name not in shared}
    weights, penalty = own(problems.weights), own(problems.penalty)
    return (
        _Problems(y, weights, penalty, shift, scale, problems.variances),
        _State(**shared, **others),
    )


def _product(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=lax.Precision.HIGHEST)


def _dot(a: Array, b: Array) -> Array:
    """float64[B] over everything but problems."""
    return (a.astype(jnp.float64) * b).sum((1, 2))


def _column(a: Array, like: Array) -> Array:
    """[B] -> [B, 1, 1] in the dtype of ``like``."""
    return a.astype(like.dtype)[:, None, None]


def _largest(a: Array) -> Array:
    return jnp.abs(a).max((1, 2))


@jax.jit
def _multiply(x: Array, w: Array, shift: Array | None, scale: Array | None) -> Array:
    """Logits [B, L, N] of weights [B, L, D + 1]: ((x - shift) / scale) . w + intercept."""
    coef, intercept = w[:, :, :-1], w[:, :, -1:]
    if scale is not None:
        coef = coef / scale[:, None, :]
    if shift is not None:
        intercept = intercept - (coef * shift[:, None, :]).sum(2, keepdims=True)
    return _product("bld,nd->bln", coef, x) + intercept


def _row_terms(logits: Array, y: Array, n_logits: int) -> tuple[Array, Array]:
    """Loss [B, N] and its derivatives [B, L, N] by logit, accurate also where the loss is tiny.

    Written in differences to the logit of the row's own class: loss = log(1 + sum exp(z_k - z_y)).
    """
    if n_logits == 1:
        sign = jnp.where(y == 1, -1, 1).astype(logits.dtype)
        against = logits[:, 0] * sign
        return jax.nn.softplus(against), (jax.nn.sigmoid(against) * sign)[:, None, :]
    own = y[:, None, :] == jnp.arange(n_logits)[None, :, None]
    behind = logits - jnp.where(own, logits, jnp.zeros_like(logits)).sum(1, keepdims=True)
    most = behind.max(1, keepdims=True)  # at least 0, that of the class itself
    share = jnp.where(own, jnp.zeros_like(logits), jnp.exp(behind - most))
    others = share.sum(1, keepdims=True)
    total = jnp.exp(-most) + others
    loss = jnp.where(most > 0, most + jnp.log(total), jnp.log1p(others))
    return loss[:, 0], jnp.where(own, -others, share) / total


def _row_changes(residual: Array, moves: Array, y: Array, difference: Array) -> Array:
    """How the loss of each row changes, [B, N], accurate also where that is tiny.

    log(1 + sum p_k (exp(m_k - m_y) - 1)) over the other classes, where logits move by at most 1;
    elsewhere the ``difference`` of the losses will do.
    """
    if residual.shape[1] == 1:
        sign = jnp.where(y == 1, -1, 1).astype(moves.dtype)[:, None, :]
        share, ahead = residual * sign, moves * sign
    else:
        own = y[:, None, :] == jnp.arange(moves.shape[1])[None, :, None]
        ahead = moves - jnp.where(own, moves, jnp.zeros_like(moves)).sum(1, keepdims=True)
        share = residual  # of the own class it is multiplied by 0
    change = jnp.log1p((share * jnp.expm1(jnp.clip(ahead, -1, 1))).sum(1))
    return jnp.where((jnp.abs(ahead) <= 1).all(1), change, difference)


def _scaled(metric: Array | None, a: Array) -> Array:
    """[B, L, P] times the metric."""
    return a if metric is None else metric * a


def _precondition(s: _State, metric: Array | None) -> Array:
    """L-BFGS two-loop recursion: approximate inverse Hessian times gradient, [B, L, P]."""

    def newest_first(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        q, shares = carry
        slot = (s.turn - 1 - i) % MEMORY
        share = s.curvature[slot] * _dot(s.steps[slot], q)
        return q - _column(share, q) * s.changes[slot], shares.at[slot].set(share)

    def oldest_first(i: Array, r: Array) -> Array:
        slot = (s.turn - MEMORY + i) % MEMORY
        share = s.curvature[slot] * _dot(s.changes[slot], r)
        return r + _column(shares[slot] - share, r) * s.steps[slot]

    used = jnp.minimum(s.turn, MEMORY)
    q, shares = lax.fori_loop(0, used, newest_first, (s.gradient, jnp.zeros_like(s.curvature)))
    return lax.fori_loop(
        MEMORY - used, MEMORY, oldest_first, _column(s.spread, q) * _scaled(metric, q)
    )
