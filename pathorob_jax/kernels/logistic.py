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
from pathorob_jax.typing import Array, ArrayLike, Bool, Float, Int

Stopping = Literal["reference", "converged"]
MEMORY = 10
# SciPy's L-BFGS-B as scikit-learn calls it: line search, its evaluations, and the relative decrease
# under which it stops (in units of float64, whatever the dtype here).
DECREASE, CURVATURE, WIDTH, LARGEST_STEP = 1e-3, 0.9, 0.1, 1e10
MAX_EVALUATIONS = 50
LOSS_TOLERANCE = 64 * float(np.finfo(np.float64).eps)
_ACTIVE, _CONVERGED, _STOPPED = range(3)


class LogisticFit(NamedTuple):
    """Fitted problems, L = 1 logit for two classes (that of class 1), else one per class.

    Attributes:
        coef: float[B, D, L], of the standardised features where they were standardised.
        intercept: float[B, L]; 0 where none was fitted.
        n_iter: int32[B].
        converged: bool[B] the stopping rule was met; False: ``max_iter`` reached, or no step along
            the gradient lowers the loss any more at this precision.
        max_gradient: float[B] largest absolute gradient entry at the end, of the mean loss.
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
        stopping: ``reference``: float32, scikit-learn's rule: largest absolute gradient entry at
            most ``tol``, or a decrease of at most 64 float64 eps relative to max(loss, 1).
            ``converged``: float64, |gradient| c n <= tol |w|, which bounds the relative error of w
            at a given intercept (the penalty curves the loss by 1 / (c n) at least).

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
    with jax.enable_x64(True):
        dtype = jnp.float64 if exact else jnp.float32
        fit = _fit(
            jnp.asarray(x, dtype),
            jnp.asarray(np.atleast_2d(y), jnp.int32),
            jnp.asarray(weights / totals[:, None], dtype),
            jnp.asarray(1 / (c * totals), jnp.float64),
            None if shift is None else jnp.asarray(shift, dtype),
            None if scale is None else jnp.asarray(scale, dtype),
            jnp.asarray(max_iter, jnp.int32),
            jnp.asarray(tol, jnp.float64),
            n_classes=n_classes,
            fit_intercept=fit_intercept,
            exact=exact,
        )
        return LogisticFit(*(np.asarray(a) for a in fit))


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


@functools.partial(jax.jit, static_argnames=("n_classes", "fit_intercept", "exact"))
def _fit(
    x: Array,
    y: Array,
    weights: Array,
    penalty: Array,
    shift: Array | None,
    scale: Array | None,
    max_iter: Array,
    tol: Array,
    *,
    n_classes: int,
    fit_intercept: bool,
    exact: bool,
) -> tuple[Array, ...]:
    """``fit_logistic`` on the device; weights sum to 1 per problem, penalty = 1 / (c n)."""
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

    def step(s: _State) -> _State:
        active = s.status == _ACTIVE
        direction = -_precondition(s)
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

        first = jnp.minimum(lax.rsqrt(_dot(direction, direction)), LARGEST_STEP)
        first = jnp.where(s.n_iter == 0, first, jnp.ones_like(first))
        size, change, along, found = _search(evaluate, first, slope, active & (slope < 0))
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
        spread = jnp.where(curved, curvature / _dot(difference, difference), s.spread)

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
    end = lax.while_loop(lambda s: (s.status == _ACTIVE).any(), step, start)
    return (
        end.weights[:, :, :d].swapaxes(1, 2),
        end.weights[:, :, d],
        end.n_iter,
        end.status == _CONVERGED,
        _largest(end.gradient),
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


def _precondition(s: _State) -> Array:
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
    return lax.fori_loop(MEMORY - used, MEMORY, oldest_first, _column(s.spread, q) * q)


class _Bracket(NamedTuple):
    """MINPACK-2's dcsrch, [B] each but for the count."""

    x: Array  # the best step so far,
    fx: Array  # the change of the loss
    gx: Array  # and the slope there
    y: Array  # the other end of the interval
    fy: Array
    gy: Array
    low: Array  # of the steps to be tried next
    high: Array
    width: Array
    width_before: Array
    bracketed: Array
    second_stage: Array
    step: Array  # to be evaluated next
    f: Array  # at the step evaluated last
    g: Array
    n_evaluations: Array
    done: Array


def _search(
    evaluate: Callable[[Array], tuple[Array, Array]], first: Array, slope: Array, active: Array
) -> tuple[Array, Array, Array, Array]:
    """A step of each problem that meets the strong Wolfe conditions, or the best within rounding.

    Args:
        evaluate: steps [B] -> change of the loss and slope, [B] each.
        first: [B] step to try first.
        slope: [B] at 0, negative where active.
        active: bool[B] problems to be searched.

    Returns:
        Step, change of the loss and slope there, and whether a step was found (as in L-BFGS-B, a
        warning of dcsrch counts as found; too many evaluations do not).
    """
    zero, no = jnp.zeros_like(slope), jnp.zeros_like(active)
    start = _Bracket(
        x=zero,
        fx=zero,
        gx=slope,
        y=zero,
        fy=zero,
        gy=slope,
        low=zero,
        high=5 * first,
        width=jnp.full_like(zero, LARGEST_STEP),
        width_before=jnp.full_like(zero, 2 * LARGEST_STEP),
        bracketed=no,
        second_stage=no,
        step=first,
        f=zero,
        g=slope,
        n_evaluations=jnp.zeros((), jnp.int32),
        done=~active,
    )

    def body(s: _Bracket) -> _Bracket:
        after = _advance(s, *evaluate(s.step), slope)
        kept = jax.tree.map(lambda old, new: jnp.where(s.done, old, new), s, after)
        return kept._replace(n_evaluations=s.n_evaluations + 1, done=s.done | after.done)

    end = lax.while_loop(lambda s: ~s.done.all() & (s.n_evaluations < MAX_EVALUATIONS), body, start)
    return end.step, end.f, end.g, active & end.done & jnp.isfinite(end.f)


def _advance(s: _Bracket, f: Array, g: Array, slope: Array) -> _Bracket:
    """One call of dcsrch, given the change of the loss and the slope at ``s.step``."""
    step, test = s.step, DECREASE * slope
    enough = f <= step * test
    second_stage = s.second_stage | (enough & (g >= 0))
    warned = s.bracketed & ((step <= s.low) | (step >= s.high) | (s.high - s.low <= WIDTH * s.high))
    warned |= (step == LARGEST_STEP) & enough & (g <= test)
    warned |= (step == 0) & (~enough | (g >= test))
    done = warned | (enough & (jnp.abs(g) <= -CURVATURE * slope))

    # In the first stage, with a lower loss but too small a decrease, a modified function is used.
    modified = ~second_stage & (f <= s.fx) & ~enough
    tilt = jnp.where(modified, test, jnp.zeros_like(test))
    x, fx, gx, y, fy, gy, new, bracketed = _cubic_step(
        s.x, s.fx - s.x * tilt, s.gx - tilt, s.y, s.fy - s.y * tilt, s.gy - tilt,
        step, f - step * tilt, g - tilt, s.bracketed, s.low, s.high,
    )  # fmt: skip
    fx, gx, fy, gy = fx + x * tilt, gx + tilt, fy + y * tilt, gy + tilt

    wide = bracketed & (jnp.abs(y - x) >= 0.66 * s.width_before)
    new = jnp.where(wide, x + 0.5 * (y - x), new)
    width_before = jnp.where(bracketed, s.width, s.width_before)
    width = jnp.where(bracketed, jnp.abs(y - x), s.width)
    low = jnp.where(bracketed, jnp.minimum(x, y), new + 1.1 * (new - x))
    high = jnp.where(bracketed, jnp.maximum(x, y), new + 4.0 * (new - x))
    new = jnp.clip(new, 0, LARGEST_STEP)
    stalled = bracketed & ((new <= low) | (new >= high) | (high - low <= WIDTH * high))
    new = jnp.where(stalled, x, new)
    return _Bracket(
        x, fx, gx, y, fy, gy, low, high, width, width_before, bracketed, second_stage,
        jnp.where(done, step, new), f, g, s.n_evaluations, done,
    )  # fmt: skip


def _cubic_step(
    x: Array, fx: Array, gx: Array, y: Array, fy: Array, gy: Array,
    t: Array, f: Array, g: Array, bracketed: Array, low: Array, high: Array,
) -> tuple[Array, ...]:  # fmt: skip
    """MINPACK-2's dcstep: the new interval (x, y) and a safeguarded step from the trial ``t``."""

    def root(a: Array, ga: Array, fa: Array) -> tuple[Array, Array]:
        """Theta and gamma of the cubic through a and t."""
        theta = 3 * (fa - f) / (t - a) + ga + g
        size = jnp.maximum(jnp.abs(theta), jnp.maximum(jnp.abs(ga), jnp.abs(g)))
        under = (theta / size) ** 2 - (ga / size) * (g / size)
        return theta, size * jnp.sqrt(jnp.maximum(under, 0))

    theta, gamma = root(x, gx, fx)
    opposite = jnp.sign(g) * jnp.sign(gx) < 0
    secant = t + (g / (g - gx)) * (x - t)

    # 1: a higher value. The minimum lies between x and t.
    turned = jnp.where(t < x, -gamma, gamma)
    cubic = x + (turned - gx + theta) / (turned - gx + turned + g) * (t - x)
    quadratic = x + gx / ((fx - f) / (t - x) + gx) / 2 * (t - x)
    near = jnp.abs(cubic - x) <= jnp.abs(quadratic - x)
    higher_step = jnp.where(near, cubic, cubic + (quadratic - cubic) / 2)

    # 2: a lower value, slopes of opposite sign. It lies between as well.
    turned = jnp.where(t > x, -gamma, gamma)
    cubic = t + (turned - g + theta) / (turned - g + turned + gx) * (x - t)
    opposite_step = jnp.where(jnp.abs(cubic - t) > jnp.abs(secant - t), cubic, secant)

    # 3: a lower value, the same sign, a flatter slope.
    ratio = (turned - g + theta) / (turned + (gx - g) + turned)
    limit = jnp.where(t > x, high, low)
    cubic = jnp.where((ratio < 0) & (turned != 0), t + ratio * (x - t), limit)
    near = jnp.abs(cubic - t) < jnp.abs(secant - t)
    inside = jnp.where(near, cubic, secant)
    border = t + 0.66 * (y - t)
    inside = jnp.where(t > x, jnp.minimum(border, inside), jnp.maximum(border, inside))
    far = jnp.abs(cubic - t) > jnp.abs(secant - t)
    outside = jnp.clip(jnp.where(far, cubic, secant), low, high)
    flatter_step = jnp.where(bracketed, inside, outside)

    # 4: a lower value, the same sign, a slope that is not flatter.
    theta, gamma = root(y, gy, fy)
    turned = jnp.where(t > y, -gamma, gamma)
    cubic = t + (turned - g + theta) / (turned - g + turned + gy) * (y - t)
    steeper_step = jnp.where(bracketed, cubic, limit)

    higher = f > fx
    flatter = jnp.abs(g) < jnp.abs(gx)
    new = jnp.where(flatter, flatter_step, steeper_step)
    new = jnp.where(higher, higher_step, jnp.where(opposite, opposite_step, new))
    to_y = [jnp.where(opposite, old, kept) for old, kept in ((x, y), (fx, fy), (gx, gy))]
    y, fy, gy = (
        jnp.where(higher, trial, moved) for trial, moved in zip((t, f, g), to_y, strict=True)
    )
    x, fx, gx = (jnp.where(higher, kept, trial) for kept, trial in ((x, t), (fx, f), (gx, g)))
    return x, fx, gx, y, fy, gy, new, bracketed | higher | opposite
