"""L-BFGS iterations of logistic regressions on the device, for a batch of problems at once.

The input is the rows and the ``Problems`` of a batch, or the state of a batch to continue. The
result is the state when all but a few problems have finished. In shapes, B is the number of
problems, L the number of logits, and P = D + 1 the weights of a logit, the intercept last.

The problems of a batch share the rows, or those of a group do, so one iteration of all problems
costs two large products: X.P for the directions and R.X for the gradients. Logits are linear in the
step, so the line search needs no further products. The search is MINPACK-2's dcsrch, and the
directions are L-BFGS with ten pairs: the path of SciPy's L-BFGS-B without bounds.

Arrays are float32; the scalars of a problem (losses, slopes, steps) are float64. With a strong
penalty the first trial step is a million times too long, and an interpolation over it in float32
would lose all digits. Changes of the loss are computed row by row instead of as a difference of
losses, so that they stay accurate when they are much smaller than the loss.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.typing import Array
from pathorob_jax.kernels.logistic import line_search
from pathorob_jax.kernels.logistic.group_rows import GroupRows, is_flat, make_logits, sum_rows

MEMORY = 10
SMALLEST_CURVATURE = 1e-12
# Problems whose steps after the first are tried at once. Of 100 problems, two to eight need one. An
# accelerator tries all: what takes its time is the number of calls.
SEARCHED_TOGETHER = 8
# XLA's sums of more terms take four times as long on CPU; then each logit is summed by itself.
LONGEST_SUM = 2**14
# The relative decrease below which L-BFGS-B stops as scikit-learn calls it (in float64 eps,
# whatever the dtype here).
LOSS_TOLERANCE = 64 * float(np.finfo(np.float64).eps)
ACTIVE, CONVERGED, STOPPED = range(3)


class Problems(NamedTuple):
    """The data in which the problems of a batch differ."""

    y: Array  # [1, N] or [B, N]
    weights: Array  # [B, N], the weights of each problem sum to 1
    penalty: Array  # [B] 1 / (c n)
    shift: Array | None  # [B, D]
    scale: Array | None  # [B, D]
    variances: Array | None  # [1, 1, P] of uncorrelated features; None: features are correlated


class State(NamedTuple):
    """State of all problems between two iterations; P = D + 1, the intercept last."""

    weights: Array  # [B, L, P]
    logits: Array  # [B, L, N]
    gradient: Array  # [B, L, P]
    row_loss: Array  # [B, N]
    residual: Array  # [B, L, N] derivative of the row loss by logit
    loss: Array  # [B]
    steps: Array  # [MEMORY, B, L, P] the last steps, written at turn % MEMORY
    changes: Array  # [MEMORY, B, L, P] changes of the gradient over these steps
    curvature: Array  # [MEMORY, B] 1 / (step . change), 0 where the slot is empty
    spread: Array  # [B] scale of the diagonal from which the recursion starts
    turn: Array  # number of iterations of the loop
    n_iter: Array  # [B]
    status: Array  # [B]


@functools.partial(jax.jit, static_argnames=("n_classes", "fit_intercept", "exact"))
def iterate(
    rows: GroupRows,
    problems: Problems,
    start: State | None,
    n_left: Array,
    max_iter: Array,
    tol: Array,
    *,
    n_classes: int,
    fit_intercept: bool,
    exact: bool,
) -> State:
    """Iterate from ``start`` until at most ``n_left`` problems of each group are active.

    Args:
        rows: rows of the groups.
        problems: problems of the batch.
        start: current state; None: all weights 0.
        n_left: int32.
        max_iter: int32 maximum number of iterations of a problem.
        tol: float64 tolerance of the stopping rule.
        n_classes: at least 2.
        fit_intercept: whether to fit an intercept.
        exact: whether to use the rule ``converged`` of ``fit_logistic`` instead of scikit-learn's.
    """
    y, weights, penalty, shift, scale, variances = problems
    (b, n), d, like = weights.shape, rows.x.shape[-1], weights
    n_logits = 1 if n_classes == 2 else n_classes
    is_penalized = (jnp.arange(d + 1) < d).astype(like.dtype)[None, None, :]
    is_fitted = is_penalized if not fit_intercept else jnp.ones_like(is_penalized)
    ridge = _column(penalty, like) * is_penalized

    def gradient_at(w: Array, residual: Array, rows: GroupRows = rows) -> Array:
        """Gradient [B, L, P] of the penalised loss from the weighted residual [B, L, N]."""
        total = residual.sum(axis=2, keepdims=True)
        raw = sum_rows(rows, residual)
        if shift is not None:
            raw = raw - total * shift[:, None, :]
        if scale is not None:
            raw = raw / scale[:, None, :]
        return jnp.concatenate([raw, total], axis=2) * is_fitted + ridge * w

    length = jnp.sqrt((rows.by_group[0] ** 2).sum(axis=1) + 1)[None, :]

    def is_done(w: Array, gradient: Array, residual: Array, asked: Array) -> Array:
        """Whether the stopping rule is met, where ``asked``."""
        if not exact:
            return is_flat(rows, gradient, tol, asked)
        left = jnp.sqrt(_dot(gradient, gradient))
        done = left <= tol * penalty * jnp.sqrt(_dot(w * is_penalized, w))
        if variances is None:
            return done
        # The sum over rows errs by about this much: a smaller gradient is rounding alone. Features
        # of 1e6 and more come here before they meet the tolerance.
        terms = jnp.sqrt((residual * residual).sum(axis=1)) * length
        return done | (left <= jnp.finfo(jnp.float64).eps * terms.sum(axis=1))

    def inverse_curvature_at(residual: Array) -> Array | None:
        """[B, 1, P] inverse of the curvature of the loss if every row contributed equally."""
        if variances is None:
            return None
        size = jnp.abs(residual)
        share = (weights * (size * (1 - size)).mean(1)).sum(1)[:, None, None]
        return 1 / (jnp.maximum(share, SMALLEST_CURVATURE) * variances + ridge)

    def step(s: State) -> State:
        active = s.status == ACTIVE
        diagonal = inverse_curvature_at(s.residual)
        direction = -_precondition(s, diagonal)
        slope = _dot(s.gradient, direction)
        moved = make_logits(rows, direction, shift, scale)
        bend = _dot(ridge * direction, direction)
        lean = _dot(ridge * s.weights, direction)

        def evaluate(size: Array, chosen: Array | None) -> tuple[Array, Array, tuple[Array, Array]]:
            """Change of the loss, its slope and the terms of rows, ``size`` along the direction."""

            def own(a: Array) -> Array:
                return a if chosen is None else a[chosen]

            ahead, share, labels = own(moved), own(weights), y if len(y) == 1 else own(y)
            moves = _column(size, like) * ahead
            row_loss, residual = _row_terms(own(s.logits) + moves, labels, n_logits)
            row_change = _row_changes(own(s.residual), moves, labels, row_loss - own(s.row_loss))
            change = (share * row_change).sum(1, dtype=jnp.float64)
            along = (share * (residual * ahead).sum(1)).sum(1, dtype=jnp.float64)
            tilt, bow = own(lean), own(bend)
            change += size * (tilt + size * bow / 2)
            return change, along + tilt + size * bow, (row_loss, residual)

        first = jnp.minimum(lax.rsqrt(_dot(direction, direction)), line_search.LARGEST_STEP)
        if diagonal is None:  # a preconditioned first direction already has a meaningful length
            first = jnp.where(s.n_iter == 0, first, jnp.ones_like(first))
        else:
            first = jnp.ones_like(first)
        size, change, along, found, terms = line_search.search(
            evaluate,
            first,
            slope,
            active & (slope < 0),
            n_together=SEARCHED_TOGETHER if jax.default_backend() == "cpu" else b,
        )
        accepted = active & found
        size = jnp.where(accepted, size, jnp.zeros_like(size))
        move = jnp.where(accepted[:, None, None], _column(size, like) * direction, 0)
        w = s.weights + move
        logits = s.logits + jnp.where(accepted[:, None, None], _column(size, like) * moved, 0)
        row_loss, residual = jax.tree.map(
            functools.partial(_choose, accepted), terms, (s.row_loss, s.residual)
        )
        weighted = residual * weights[:, None, :]
        gradient = gradient_at(w, weighted)
        gradient = _choose(accepted, gradient, s.gradient)
        loss = jnp.where(accepted, s.loss + change, s.loss)

        difference = gradient - s.gradient
        curvature = size * (along - slope)
        curved = accepted & (curvature > -jnp.finfo(jnp.float64).eps * size * slope)
        slot = s.turn % MEMORY
        entry = jnp.where(curved, 1 / curvature, jnp.zeros_like(curvature))
        # As in L-BFGS-B: a failed search clears the memory; if the memory was empty, the fit ends.
        failed = active & ~found
        stuck = failed & (s.curvature == 0).all(0)
        kept = jnp.where(failed[None, :], jnp.zeros_like(s.curvature), s.curvature)
        length2 = _dot(difference, _scaled(diagonal, difference))
        spread = jnp.where(curved, curvature / length2, s.spread)

        n_iter = s.n_iter + accepted
        settled = jnp.zeros_like(active)
        if not exact:
            largest = jnp.maximum(jnp.maximum(jnp.abs(s.loss), jnp.abs(loss)), 1.0)
            settled = -change <= LOSS_TOLERANCE * largest
        done = settled | is_done(w, gradient, weighted, accepted & ~settled)
        status = jnp.where(accepted & done, CONVERGED, s.status)
        out = (accepted & ~done & (n_iter >= max_iter)) | stuck
        return State(
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
            status=jnp.where(out, STOPPED, status),
        )

    if start is None:
        w = jnp.zeros((b, n_logits, d + 1), like.dtype)
        # Behind a barrier, or XLA computes what follows from zeros while it compiles: a second.
        logits = lax.optimization_barrier(jnp.zeros((b, n_logits, n), like.dtype))
        row_loss, residual = _row_terms(logits, y, n_logits)
        weighted = residual * weights[:, None, :]
        # Once: segments would take longer to compile than they save.
        gradient = gradient_at(w, weighted, rows._replace(segments=None))
        memory = jnp.zeros((MEMORY, *w.shape), like.dtype)
        start = State(
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
                is_done(w, gradient, weighted, jnp.ones(b, bool)),
                CONVERGED,
                jnp.where(max_iter > 0, ACTIVE, STOPPED),
            ),
        )

    def most_active(s: State) -> Array:
        return (s.status == ACTIVE).reshape(rows.n_groups, -1).sum(1).max()

    return lax.while_loop(lambda s: most_active(s) > n_left, step, start)


@jax.jit
def pick_problems(problems: Problems, state: State, idx: Array) -> tuple[Problems, State]:
    """Select problems of a batch, with their state, as a new batch.

    Args:
        problems: problems of the batch.
        state: state of the batch between two iterations.
        idx: int[b] positions of the problems to select.
    """

    def pick(a: Array) -> Array:
        return a[idx]

    y = problems.y if len(problems.y) == 1 else pick(problems.y)
    shift, scale = jax.tree.map(pick, (problems.shift, problems.scale))
    remembered = {name: getattr(state, name)[:, idx] for name in ("steps", "changes", "curvature")}
    shared = {"turn": state.turn} | remembered
    others = {name: pick(a) for name, a in state._asdict().items() if name not in shared}
    weights, penalty = pick(problems.weights), pick(problems.penalty)
    return (
        Problems(y, weights, penalty, shift, scale, problems.variances),
        State(**shared, **others),
    )


def _row_terms(logits: Array, y: Array, n_logits: int) -> tuple[Array, Array]:
    """Loss [B, N] and its derivatives [B, L, N] by logit, accurate even where the loss is tiny.

    Uses differences to the logit of the true class: loss = log(1 + sum exp(z_k - z_y)).
    """
    if n_logits == 1:
        sign = jnp.where(y == 1, -1, 1).astype(logits.dtype)
        against = logits[:, 0] * sign
        small = jnp.exp(-jnp.abs(against))
        share = jnp.where(against >= 0, jnp.ones_like(small), small) / (1 + small)
        loss = jnp.maximum(against, 0) + jnp.log1p(small)
        return loss, (share * sign)[:, None, :]
    is_label = y[:, None, :] == jnp.arange(n_logits)[None, :, None]
    behind = logits - jnp.where(is_label, logits, jnp.zeros_like(logits)).sum(1, keepdims=True)
    largest = behind.max(1, keepdims=True)  # at least 0, the value of the true class
    share = jnp.where(is_label, jnp.zeros_like(logits), jnp.exp(behind - largest))
    others = share.sum(1, keepdims=True)
    total = jnp.exp(-largest) + others
    loss = jnp.where(largest > 0, largest + jnp.log(total), jnp.log1p(others))
    return loss[:, 0], jnp.where(is_label, -others, share) / total


def _row_changes(residual: Array, moves: Array, y: Array, difference: Array) -> Array:
    """Change of the loss of each row, [B, N], accurate even where the change is tiny.

    It is log(1 + sum p_k (exp(m_k - m_y) - 1)) over the other classes where logits move by at most
    1; elsewhere the ``difference`` of the losses is accurate enough.
    """
    if residual.shape[1] == 1:
        sign = jnp.where(y == 1, -1, 1).astype(moves.dtype)[:, None, :]
        share, ahead = residual * sign, moves * sign
    else:
        is_label = y[:, None, :] == jnp.arange(moves.shape[1])[None, :, None]
        ahead = moves - jnp.where(is_label, moves, jnp.zeros_like(moves)).sum(1, keepdims=True)
        share = residual  # the entry of the true class is multiplied by 0
    change = jnp.log1p((share * jnp.expm1(jnp.clip(ahead, -1, 1))).sum(1))
    return jnp.where((jnp.abs(ahead) <= 1).all(1), change, difference)


def _precondition(s: State, diagonal: Array | None) -> Array:
    """L-BFGS two-loop recursion: approximate inverse Hessian times gradient, [B, L, P].

    ``diagonal`` is the inverse curvature from which the recursion starts; None: the identity.
    """

    def newest_first(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        q, shares = carry
        slot = (s.turn - 1 - i) % MEMORY
        share = s.curvature[slot] * _dot(s.steps[slot], q)
        return q - _column(share, q) * s.changes[slot], shares.at[slot].set(share)

    def oldest_first(i: Array, r: Array) -> Array:
        slot = (s.turn - MEMORY + i) % MEMORY
        share = s.curvature[slot] * _dot(s.changes[slot], r)
        return r + _column(shares[slot] - share, r) * s.steps[slot]

    used = MEMORY if loops_are_fixed() else jnp.minimum(s.turn, MEMORY)
    q, shares = lax.fori_loop(0, used, newest_first, (s.gradient, jnp.zeros_like(s.curvature)))
    return lax.fori_loop(
        MEMORY - used, MEMORY, oldest_first, _column(s.spread, q) * _scaled(diagonal, q)
    )


def loops_are_fixed() -> bool:
    """Whether the recursion takes all slots, also empty ones, which change nothing.

    An accelerator answers the host before each step of a loop whose length is not known: 1,030 of
    1,370 answers in a repetition of TCGA's. On CPU the products of empty slots cost more.
    """
    return jax.default_backend() != "cpu"


def _scaled(diagonal: Array | None, a: Array) -> Array:
    """[B, L, P] times the diagonal; None: unchanged."""
    return a if diagonal is None else diagonal * a


def _dot(a: Array, b: Array) -> Array:
    """float64[B] inner products per problem."""
    products = a.astype(jnp.float64) * b
    if a[0].size <= LONGEST_SUM or a.shape[1] == 1 or loops_are_fixed():
        return products.sum((1, 2))
    return lax.optimization_barrier(products.sum(2)).sum(1)


def _choose(is_first: Array, first: Array, second: Array) -> Array:
    """Values [B, ...] of the ``first`` for some problems, bool[B], and of the ``second`` else."""
    return jnp.where(is_first.reshape(-1, *[1] * (first.ndim - 1)), first, second)


def _column(a: Array, like: Array) -> Array:
    """[B] -> [B, 1, 1] in the dtype of ``like``."""
    return a.astype(like.dtype)[:, None, None]
