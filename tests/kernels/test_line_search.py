"""The line search tries the very steps of SciPy's, and so do fits stop where scikit-learn's do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize._dcsrch import DCSRCH  # private; what L-BFGS-B runs is a translation of it

from pathorob_jax.kernels.logistic import line_search


def yanai(first, second):
    """Functions 4 to 6 of Moré and Thuente (1994)."""
    weight = [np.sqrt(1 + b * b) - b for b in (first, second)]

    def value(t):
        return weight[0] * np.sqrt((1 - t) ** 2 + second**2) + weight[1] * np.sqrt(t**2 + first**2)

    def slope(t):
        left = (t - 1) / np.sqrt((1 - t) ** 2 + second**2)
        return weight[0] * left + weight[1] * t / np.sqrt(t**2 + first**2)

    return value, slope


def wave(t, b=0.01, n=39):
    """Function 3 of Moré and Thuente, and its slope: a valley with ripples."""
    bend = (t - 1) ** 2 / (2 * b) + b / 2
    base = 1 - t if t <= 1 - b else t - 1 if t >= 1 + b else bend
    base_slope = -1 if t <= 1 - b else 1 if t >= 1 + b else (t - 1) / b
    ripple = 2 * (1 - b) / (n * np.pi) * np.sin(n * np.pi / 2 * t)
    return base + ripple, base_slope + (1 - b) * np.cos(n * np.pi / 2 * t)


FUNCTIONS = [
    (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    (
        lambda t: (t + 0.004) ** 5 - 2 * (t + 0.004) ** 4,
        lambda t: 5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3,
    ),
    (lambda t: wave(t)[0], lambda t: wave(t)[1]),
    yanai(0.001, 0.001),
    yanai(0.01, 0.001),
    yanai(0.001, 0.01),
    (lambda t: np.log1p(np.exp(3 - 5 * t)) + 0.01 * t * t,
     lambda t: -5 / (1 + np.exp(5 * t - 3)) + 0.02 * t),
    (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    (lambda t: -t, lambda t: -1.0),  # no end: both stop at the largest step
]  # fmt: skip
FIRST = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
CASES = [(*function, first) for function in FUNCTIONS for first in FIRST]


def trials_of_scipy(value, slope, first):
    """Steps that are evaluated, and whether the search ended as L-BFGS-B would accept."""
    steps = []

    def noted(t):
        steps.append(t)
        return value(t)

    search = DCSRCH(noted, slope, line_search.DECREASE, line_search.CURVATURE, line_search.WIDTH,
                    0.0, line_search.LARGEST_STEP)  # fmt: skip
    limit = line_search.MAX_EVALUATIONS
    *_, task = search(first, phi0=value(0.0), derphi0=slope(0.0), maxiter=limit + 1)
    return steps[:limit], len(steps) <= limit and not task.startswith(b"ERROR")


@pytest.fixture
def x64():
    """Of the whole process: a callback runs in a thread of XLA's."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.slow
@pytest.mark.parametrize("n_together", [1, 8, 11, len(CASES)])
@pytest.mark.filterwarnings("ignore:overflow")  # of the logarithm's slope, far out
def test_steps_are_those_of_scipy(n_together, x64):
    tried: list = [[] for _ in CASES]

    def evaluate_some(steps, problems):
        steps, problems = np.asarray(steps), np.asarray(problems)
        functions = [CASES[i] for i in problems]
        for i in np.unique(problems):
            tried[i].append(float(steps[problems == i][0]))
        changes = [f(t) - f(0.0) for (f, _, _), t in zip(functions, steps, strict=True)]
        slopes = [g(t) for (_, g, _), t in zip(functions, steps, strict=True)]
        return np.array(changes), np.array(slopes)

    def evaluate(steps, problems):
        problems = np.arange(len(CASES)) if problems is None else problems
        shape = jax.ShapeDtypeStruct(steps.shape, np.float64)
        found = jax.pure_callback(evaluate_some, (shape, shape), steps, problems)
        return *found, (jnp.stack([problems, steps], axis=1),)

    slope = jnp.array([g(0.0) for _, g, _ in CASES])
    assert (slope < 0).all()
    found = line_search.search(
        evaluate,
        jnp.array([first for *_, first in CASES]),
        slope,
        jnp.ones(len(CASES), bool),
        n_together=n_together,
    )
    step, change, at, is_found = map(np.asarray, found[:-1])
    [terms] = map(np.asarray, found[-1])
    # Those of each problem, at the step that was tried last.
    np.testing.assert_array_equal(terms[:, 0], np.arange(len(CASES)))
    np.testing.assert_array_equal(terms[is_found, 1], step[is_found])
    for i, (value, derivative, first) in enumerate(CASES):
        expected, is_accepted = trials_of_scipy(value, derivative, first)
        what = f"function {i // len(FIRST)} from {first}"
        np.testing.assert_allclose(tried[i][: len(expected)], expected, rtol=1e-7, err_msg=what)
        if n_together < len(CASES):  # steps of problems that are done are not tried again
            assert len(tried[i]) == len(expected), what
        assert is_found[i] == is_accepted, what
        np.testing.assert_allclose(step[i], expected[-1], rtol=1e-7, err_msg=what)
        np.testing.assert_allclose(change[i], value(step[i]) - value(0.0), rtol=1e-12)
        np.testing.assert_allclose(at[i], derivative(step[i]), rtol=1e-12)
