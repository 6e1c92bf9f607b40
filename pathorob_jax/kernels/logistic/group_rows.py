"""Rows of logistic regressions on the device, their products and their bases.

The problems of a batch form G groups of B / G problems each, one after the other; the problems of a
group share its rows. Mostly there is one group. In shapes, L is the number of logits.

Where a group has fewer rows than features, its problems can be solved in the span of its rows:
gradients and weights are sums of rows, and an orthonormal basis changes no inner product, so that
L-BFGS takes the same path in fewer coordinates. Only scikit-learn's stopping rule looks at the
features themselves.
"""

import functools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pathorob_jax.core.devices import to_device
from pathorob_jax.core.typing import Array, Bool, Float, Int
from pathorob_jax.kernels.logistic import products
from pathorob_jax.kernels.logistic.products import product
from pathorob_jax.kernels.logistic.row_segments import (
    Segments,
    cut_bytes,
    cut_rows,
    order_rows,
    pays,
)

# Features that are looked at first when the largest entry of a gradient is compared.
TELLING_FEATURES = 128
# Iterations that a span should pay off in.
EXPECTED_ITERATIONS = 25
# Time of an operation for the bases, in float64 and of small matrices, by that of a product's. Of
# TCGA's shape, spans take 1.15 times as long as features at 1,536 dimensions, 0.65 times at 3,072.
BASIS_COST = 8
# Largest error of the basis: of random coordinates after they became features and back, relative.
BASIS_ERROR = 1e-6
# Problems of a group from which on it can continue with a third of them.
FEWEST_PROBLEMS = 3
_ONE_THREAD = threading.Lock()


class Span(NamedTuple):
    """How coordinates in an orthonormal basis of each group's rows become features."""

    rows: Array  # [N, D] all rows
    row_idx: Array  # [G, n] those of each group
    inverse: Array  # float64[G, n, n] basis vectors as sums of the group's rows
    telling: Array  # [G, n, F] entries of the basis vectors in the features that spread most


class GroupRows(NamedTuple):
    """The rows of each group: those of the only one, or coordinates in the spans of several."""

    x: Array  # [N, D] of the only group; with a span, n coordinates of each group's: [G, n, n]
    span: Span | None = None
    segments: Segments | None = None  # of x, for products of the whole batch

    @property
    def n_groups(self) -> int:
        """G."""
        return 1 if self.span is None else len(self.x)

    @property
    def by_group(self) -> Array:
        """[G, N, D]."""
        return self.x.reshape(self.n_groups, *self.x.shape[-2:])


class Groups(NamedTuple):
    """Problems that share rows."""

    problem_idx: Int[np.ndarray, "G b"]  # b = B / G
    row_idx: Int[np.ndarray, "G N"]  # [1, N] of segments, which all groups have in one order
    is_row: Bool[np.ndarray, "G N"]  # False where a group has fewer rows than another

    def take(self, values: np.ndarray) -> np.ndarray:
        """Values of the rows of each problem, [B, N] of those of all rows, [B, M] or [M].

        Problems are in the order of ``problem_idx``; [1, N] if they share rows and values.
        """
        is_shared = len(self.row_idx) == 1
        if is_shared and values.ndim == 1:
            return values[self.row_idx]
        rows = np.repeat(self.row_idx, self.problem_idx.size // len(self.row_idx), axis=0)
        if values.ndim == 1:
            return values[rows]
        return np.take_along_axis(values[self.problem_idx.reshape(-1)], rows, axis=1)


def arrange(
    rows: GroupRows,
    weights: Float[np.ndarray, "B N"],
    *,
    n_logits: int,
    can_turn: bool,
    budget_bytes: int | None = None,
) -> tuple[Groups | None, GroupRows]:
    """Rows of each group of problems as products of them take least; else the rows given.

    Few rows are turned into their span. Otherwise rows that not all groups use become segments.
    Never on an accelerator, which waits for its programs and not for their products.

    Args:
        rows: one group with all rows.
        weights: float[B, N] weights of the rows of each problem.
        n_logits: number of logits of a problem.
        can_turn: whether the features may be turned.
        budget_bytes: memory that spans or segments may take; None: any.
    """
    groups = None if jax.default_backend() != "cpu" else _find_groups(weights)
    if groups is None:
        return None, rows
    if can_turn and (spans := _find_spans(rows, groups, n_logits, budget_bytes)) is not None:
        return groups, spans
    is_used = weights[groups.problem_idx[:, 0]] > 0
    order = order_rows(is_used)
    n_columns = len(weights) * n_logits
    if not pays(order, rows.x.shape, n_groups=len(is_used), n_columns=n_columns):
        return None, rows
    if budget_bytes is not None and cut_bytes(rows.x) > budget_bytes:
        return None, rows
    row_idx = order.row_idx[None]
    shared = Groups(groups.problem_idx, row_idx, np.ones(row_idx.shape, bool))
    x, segments = cut_rows(rows.x, order)
    return shared, GroupRows(x, segments=segments)


def _find_spans(
    rows: GroupRows, groups: Groups, n_logits: int, budget_bytes: int | None
) -> GroupRows | None:
    """Rows of each group in their span, where that saves time and can be done."""
    if not _is_span_cheaper(groups, rows.x.shape, n_logits):
        return None
    (n, d), (n_groups, n_own) = rows.x.shape, groups.row_idx.shape
    at_once = n if _shares_products(groups, n) else n_own
    taken = 20 * n_groups * n_own**2 + 8 * at_once * (at_once + d)
    if budget_bytes is not None and taken > budget_bytes:
        return None
    return _span_rows(rows.x, groups)


def _find_groups(weights: Float[np.ndarray, "B N"]) -> Groups | None:
    """Groups of problems with the same rows.

    None if some have more problems than others, or all too few to continue as a smaller batch.
    """
    members: dict[bytes, list[int]] = {}
    for i, mask in enumerate(np.packbits(weights > 0, axis=1)):
        members.setdefault(mask.tobytes(), []).append(i)
    sizes = {len(group) for group in members.values()}
    if len(sizes) > 1 or min(sizes) < FEWEST_PROBLEMS:
        return None
    problem_idx = np.array(list(members.values()))
    used = weights[problem_idx[:, 0]] > 0
    row_idx = np.argsort(~used, axis=1, kind="stable")[:, : used.sum(axis=1).max()]
    return Groups(problem_idx, row_idx, np.take_along_axis(used, row_idx, axis=1))


def _shares_products(groups: Groups, n: int) -> bool:
    """Whether inner products of all rows are fewer than those of each group's."""
    return n**2 <= groups.row_idx.size * groups.row_idx.shape[1]


def _is_span_cheaper(groups: Groups, shape: tuple[int, ...], n_logits: int) -> bool:
    """Whether products of fewer operations pay for the bases of the spans."""
    (n, d), (n_groups, n_own) = shape, groups.row_idx.shape
    saved = 4 * groups.problem_idx.size * n_logits * (n * d - n_own**2)  # an iteration
    factors = n_groups * n_own**3 + min(n**2, n_groups * n_own**2) * d
    return n_own < d and EXPECTED_ITERATIONS * saved > BASIS_COST * factors


def _span_rows(rows: Array, groups: Groups) -> GroupRows | None:
    """Rows of each group in an orthonormal basis of their span; None if they are dependent.

    The coordinates are the triangular factor of the rows' inner products.
    """
    from threadpoolctl import threadpool_limits

    x = np.asarray(rows)
    telling = np.argsort(-np.var(x, axis=0, dtype=np.float64), kind="stable")[:TELLING_FEATURES]
    shared = x.astype(np.float64) if _shares_products(groups, len(x)) else None
    products = None if shared is None else shared @ shared.T
    n_groups, n = groups.row_idx.shape
    coordinates, inverse = np.zeros((n_groups, n, n), np.float32), np.zeros((n_groups, n, n))
    seen = np.zeros((n_groups, n, len(telling)), np.float32)
    # Two threads take longer for matrices so small. The limit is the process's, hence the lock.
    with _ONE_THREAD, threadpool_limits(1, user_api="blas"):
        for g, (row_idx, is_row) in enumerate(zip(groups.row_idx, groups.is_row, strict=True)):
            own = row_idx[is_row]
            if products is None:
                wide = x[own].astype(np.float64)
                factors = _factorize(wide @ wide.T)
            else:
                factors = _factorize(products[np.ix_(own, own)])
            if factors is None:
                return None
            there = slice(len(own))
            coordinates[g, there, there], inverse[g, there, there] = factors
            seen[g, there] = factors[1] @ x[np.ix_(own, telling)].astype(np.float64)
    span = Span(
        rows,
        jax.device_put(groups.row_idx.astype(np.int32)),
        jax.device_put(inverse),
        to_device(seen),
    )
    return GroupRows(to_device(coordinates), span)


def _factorize(
    products: Float[np.ndarray, "n n"],
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]] | None:
    """Triangular factor of inner products and its inverse; None if the basis is not orthonormal."""
    from scipy.linalg import lapack  # a fifth of a second, which most fits spare

    triangle, failed = lapack.dpotrf(products, lower=1)
    if failed:
        return None
    inverse, failed = lapack.dtrtri(triangle, lower=1)
    vector = np.random.default_rng(0).standard_normal(len(products))
    projected = inverse @ (products @ (vector @ inverse))
    error = np.linalg.norm(projected - vector)
    if failed or not error <= BASIS_ERROR * np.linalg.norm(vector):
        return None
    return triangle, inverse


@jax.jit
def turn_back(span: Span, weights: Array) -> Array:
    """Weights of the features, float32[B, L, D], from those of the basis, [B, L, n]."""
    (b, n_logits, n), g = weights.shape, len(span.row_idx)
    groups = (jnp.arange(g), weights.reshape(g, -1, n_logits, n))
    return lax.map(lambda group: _turn_group(span, *group), groups).reshape(b, n_logits, -1)


def _turn_group(span: Span, g: Array, weights: Array) -> Array:
    """``turn_back`` for some problems of one group: [b, L, D] of [b, L, n].

    The shares of the rows are large where rows nearly depend on each other, and cancel in the
    features. They are those of float64, so that they err by their last rounding alone.
    """
    b, n_logits, n = weights.shape
    columns = weights.reshape(-1, n).astype(span.inverse.dtype)
    shares = product("cn,nm->cm", columns, span.inverse[g]).astype(span.rows.dtype)
    of_all = jnp.zeros((len(columns), len(span.rows)), span.rows.dtype)
    of_all = of_all.at[:, span.row_idx[g]].set(shares)
    return product("cm,md->cd", of_all, span.rows).reshape(b, n_logits, -1)


@functools.partial(jax.jit, static_argnames=("center",))
def turn_rows(x: Array, *, center: bool) -> tuple[Array, Array, Array, Array]:
    """Rotate rows into the eigenbasis of their covariance, with r = min(N, D) coordinates.

    An orthogonal change of basis leaves the logits, the penalty and the norm of a gradient
    unchanged.

    Args:
        x: float[N, D].
        center: whether to subtract the mean first.

    Returns:
        mean [D] (0 unless ``center``), basis [D, r], variances [1, 1, r + 1] (1 for the intercept),
        (x - mean) basis [N, r].
    """
    mean = x.mean(0) if center else jnp.zeros_like(x[0])
    centered, basis = x - mean[None, :], None
    if x.shape[0] < x.shape[1]:
        basis, triangle = jnp.linalg.qr(centered.T)
        centered = triangle.T
    covariance = product("nd,ne->de", centered, centered) / len(x)
    variances, eigenvectors = jnp.linalg.eigh(covariance)
    basis = eigenvectors if basis is None else product("dr,rs->ds", basis, eigenvectors)
    rows = product("nd,dr->nr", centered, eigenvectors)
    return mean, basis, jnp.append(jnp.maximum(variances, 0), 1.0)[None, None, :], rows


def make_logits(rows: GroupRows, w: Array, shift: Array | None, scale: Array | None) -> Array:
    """Logits of rows: ((x - shift) / scale) . w + intercept.

    Args:
        rows: N rows of each group.
        w: float[B, L, D + 1] coefficients, the intercept last.
        shift: float[B, D], None: 0.
        scale: float[B, D], None: 1.

    Returns:
        float[B, L, N]; the intercept alone where a segment's rows are not those of a problem.
    """
    coef, intercept = w[:, :, :-1], w[:, :, -1:]
    if scale is not None:
        coef = coef / scale[:, None, :]
    if shift is not None:
        intercept = intercept - (coef * shift[:, None, :]).sum(2, keepdims=True)
    if rows.segments is not None:
        return rows.segments.multiply(coef) + intercept
    columns = coef.reshape(rows.n_groups, -1, coef.shape[2])
    logits = products.multiply_rows(rows.by_group, columns)
    return logits.reshape(*coef.shape[:2], -1) + intercept


def sum_rows(rows: GroupRows, weights: Array) -> Array:
    """Weighted sums of the rows of each group, [B, L, D] of [B, L, N]."""
    if rows.segments is not None:
        return rows.segments.sum_rows(weights)
    columns = weights.reshape(rows.n_groups, -1, weights.shape[2])
    return products.sum_rows(rows.by_group, columns).reshape(*weights.shape[:2], -1)


def is_flat(rows: GroupRows, gradient: Array, tol: Array, asked: Array) -> Array:
    """Whether no entry of the gradient exceeds ``tol`` in absolute value, bool[B].

    Where rows have a span, entries are those of the features. The features that spread most are
    looked at first: one of them nearly always decides. Groups with problems that are left open
    look at all features.

    Args:
        rows: rows of the groups.
        gradient: [B, L, P], the entry of the intercept last.
        tol: tolerance.
        asked: bool[B]; elsewhere the answer may be wrong.
    """
    span = rows.span
    if span is None:
        return find_largest(gradient) <= tol
    (b, n_logits, p), g = gradient.shape, len(span.row_idx)
    turned = gradient[:, :, :-1].reshape(g, b // g, n_logits, p - 1)
    n_few = max(1, b // g // 4)

    def is_small(features: Array) -> Array:
        return jnp.abs(features).max((-2, -1)) <= tol

    def look(group: tuple[Array, Array, Array]) -> Array:
        i, own, is_open = group
        few = jnp.argsort(~is_open, stable=True)[:n_few]
        nothing = jnp.zeros_like(is_open)
        n_open = is_open.sum()
        return lax.switch(
            (n_open > 0).astype(jnp.int32) + (n_open > n_few),
            (
                lambda: nothing,
                lambda: nothing.at[few].set(is_small(_turn_group(span, i, own[few]))),
                lambda: is_small(_turn_group(span, i, own)),
            ),
        )

    flat = is_small(product("gbln,gnf->gblf", turned, span.telling)).reshape(b)
    flat &= jnp.abs(gradient[:, :, -1]).max(1) <= tol
    is_open = (asked & flat).reshape(g, -1)
    return flat & lax.map(look, (jnp.arange(g), turned, is_open)).reshape(b)


def find_largest(a: Array) -> Array:
    """Largest absolute entry of each problem, [B] of [B, L, P]."""
    return jnp.abs(a).max((1, 2))
