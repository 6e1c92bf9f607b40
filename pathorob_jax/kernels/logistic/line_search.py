"""MINPACK-2's line search (Moré and Thuente), for many problems at once.

Given a function from steps to changes of the loss and slopes, the search returns one step per
problem. It tries exactly the steps that SciPy's L-BFGS-B tries, because the point at which a
stopping rule stops depends on the path. The first steps of all problems are tried together; few
problems need another, and those are tried a few at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pathorob_jax.core.typing import Array

# The settings with which SciPy's L-BFGS-B calls it.
DECREASE, CURVATURE, WIDTH, LARGEST_STEP = 1e-3, 0.9, 0.1, 1e10
MAX_EVALUATIONS = 50

Terms = tuple[Array, ...]


class _Bracket(NamedTuple):
    """State of MINPACK-2's dcsrch; every field is [B]."""

    x: Array  # the best step so far
    fx: Array  # the change of the loss at x
    gx: Array  # the slope at x
    y: Array  # the other end of the interval
    fy: Array
    gy: Array
    low: Array  # bounds of the next steps
    high: Array
    width: Array
    width_before: Array
    bracketed: Array
    second_stage: Array
    step: Array  # the step to evaluate next
    f: Array  # change of the loss at the step evaluated last
    g: Array  # slope at the step evaluated last
    n_evaluations: Array
    done: Array


def search(
    evaluate: Callable[[Array, Array | None], tuple[Array, Array, Terms]],
    first: Array,
    slope: Array,
    active: Array,
    *,
    n_together: int,
) -> tuple[Array, Array, Array, Array, Terms]:
    """Find a step per problem that meets the strong Wolfe conditions, or the best within rounding.

    Args:
        evaluate: function from steps [K] and their problems, int[K] or None for all B, to the
            change of the loss and the slope, [K] each, and arrays [K, ...] of which those at the
            step found are wanted.
        first: [B] first step to try.
        slope: [B] slope at 0, negative where active.
        active: bool[B] problems to search.
        n_together: K, number of problems of which a step after the first is tried at once.

    Returns:
        The step, the change of the loss and the slope at the step, whether a step was found, and
        the arrays at the step, [B, ...]. As in L-BFGS-B, a step with a dcsrch warning counts as
        found; a search that runs out of evaluations does not.
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
        n_evaluations=jnp.zeros_like(active, jnp.int32),
        done=~active,
    )

    def try_steps(
        s: _Bracket, problems: Array | None, slope_there: Array
    ) -> tuple[_Bracket, Terms]:
        change, along, terms = evaluate(s.step, problems)
        after = _advance(s, change, along, slope_there)
        return jax.tree.map(lambda old, new: jnp.where(s.done, old, new), s, after), terms

    def is_open(s: _Bracket) -> Array:
        return ~s.done & (s.n_evaluations < MAX_EVALUATIONS)

    def body(carry: tuple[_Bracket, Terms]) -> tuple[_Bracket, Terms]:
        s, _ = carry
        if n_together >= len(slope):
            # Of problems that are done it is the same step once more, with the same terms.
            return try_steps(s, None, slope)
        # Where fewer are open, the first of them fills the places left: it is tried again at the
        # same step, with the same result.
        order = jnp.argsort(~is_open(s), stable=True)[:n_together]
        problems = jnp.where(is_open(s)[order], order, order[0])
        part = try_steps(jax.tree.map(lambda a: a[problems], s), problems, slope[problems])
        return jax.tree.map(lambda whole, a: whole.at[problems].set(a), carry, part)

    end, terms = lax.while_loop(
        lambda carry: is_open(carry[0]).any(), body, try_steps(start, None, slope)
    )
    return end.step, end.f, end.g, active & end.done & jnp.isfinite(end.f), terms


def _advance(s: _Bracket, f: Array, g: Array, slope: Array) -> _Bracket:
    """One call of dcsrch, with the change of the loss and the slope at ``s.step``."""
    step, test = s.step, DECREASE * slope
    enough = f <= step * test
    second_stage = s.second_stage | (enough & (g >= 0))
    warned = s.bracketed & ((step <= s.low) | (step >= s.high) | (s.high - s.low <= WIDTH * s.high))
    warned |= (step == LARGEST_STEP) & enough & (g <= test)
    warned |= (step == 0) & (~enough | (g >= test))
    done = warned | (enough & (jnp.abs(g) <= -CURVATURE * slope))

    # In the first stage, a modified function is used if the loss decreased, but not sufficiently.
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
        jnp.where(done, step, new), f, g, s.n_evaluations + 1, done,
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

    # Case 1: a higher value. The minimum lies between x and t.
    turned = jnp.where(t < x, -gamma, gamma)
    cubic = x + (turned - gx + theta) / (turned - gx + turned + g) * (t - x)
    quadratic = x + gx / ((fx - f) / (t - x) + gx) / 2 * (t - x)
    near = jnp.abs(cubic - x) <= jnp.abs(quadratic - x)
    higher_step = jnp.where(near, cubic, cubic + (quadratic - cubic) / 2)

    # Case 2: a lower value, slopes of opposite sign. The minimum also lies between x and t.
    turned = jnp.where(t > x, -gamma, gamma)
    cubic = t + (turned - g + theta) / (turned - g + turned + gx) * (x - t)
    opposite_step = jnp.where(jnp.abs(cubic - t) > jnp.abs(secant - t), cubic, secant)

    # Case 3: a lower value, slopes of the same sign, flatter at t.
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

    # Case 4: a lower value, slopes of the same sign, not flatter at t.
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
