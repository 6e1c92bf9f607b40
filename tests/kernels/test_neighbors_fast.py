"""bfloat16 candidates, proven and ranked in float32, are the float32 answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pathorob_jax.kernels.neighbors import fast as neighbors_fast
from pathorob_jax.kernels.neighbors import search, tiles
from pathorob_jax.kernels.neighbors.tiles import Block

BUDGET = 128**2 * tiles.BYTES_PER_SCORE
K, M = 5, 3


def make_case(kind, n=900, dim=64):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(n, dim))
    group = rng.integers(0, n // 10, n)
    if kind == "near":  # distances of 1e-4, far below bfloat16's step
        x = x[rng.integers(0, n // 50, n)] + 1e-2 * x
    elif kind == "equal":
        x = x[rng.integers(0, n // 3, n)]
    elif kind == "scaled":
        x *= 10.0 ** rng.uniform(-6, 6, (n, 1))
    labels = np.stack([group, rng.integers(0, 3, n), rng.integers(0, 2, n)])
    return x.astype(np.float32), labels


# Shares of rows that are searched again: none where neighbours are told apart, all where not.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("far", 0, 0.2),
        pytest.param("scaled", 0, 0.2, marks=pytest.mark.campaign),
        pytest.param("equal", 0, 0.5, marks=pytest.mark.campaign),
        ("near", 0.5, 1),
    ],
)
def test_equals_float32(kind, least, most):
    x, labels = make_case(kind)
    expected = search.search(x, labels, (K, M, M), budget_bytes=BUDGET)
    found, n_unproven = neighbors_fast.search(x, labels, (K, M, M), budget_bytes=BUDGET)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.distances, b.distances)
    assert least <= n_unproven / len(x) <= most


@pytest.mark.slow
def test_front_door_takes_the_precision():
    x, labels = make_case("far")
    seen = []
    kwargs = {"k": K, "budget_bytes": BUDGET}
    expected = search.find_neighbors(x, labels[0], **kwargs)
    found = search.find_neighbors(x, labels[0], precision="fast", on_progress=seen.append, **kwargs)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)
    assert sum(seen) == len(x)


@pytest.mark.slow
def test_rows_with_few_neighbours_are_proven_by_having_them_all():
    x, labels = make_case("near", n=90)
    groups = np.where(np.arange(90) < 80, 0, labels[0] + 1)
    [expected] = search.search(x, groups[None], (K,), budget_bytes=BUDGET)
    [found], n_unproven = neighbors_fast.search(x, groups[None], (K,), budget_bytes=BUDGET)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert n_unproven <= 10  # the 80 rows of one group have 10 neighbours each, all candidates


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["far", "near", "scaled"])
def test_bound_holds_for_every_pair_and_is_not_idle(kind):
    x, _ = make_case(kind, n=256, dim=300)
    # Adversarial: residuals all of one sign, as large as rounding allows.
    x[:64] = np.abs(x[:64]).astype(jnp.bfloat16).astype(np.float32) * np.float32(1 + 2.0**-9)
    block = Block(
        jnp.asarray(x),
        np.zeros((1, 256), np.int32),
        tiles.inverse_norms(x),
        np.arange(256),
    )
    rounded, bound = neighbors_fast._round(block)
    exact, fast = (
        np.asarray(jax.jit(tiles.score_tiles)(t, t), np.float64)
        for t in (tiles.cut_tile(b, 0, 256) for b in (block, rounded))
    )
    error = np.abs(exact - fast)
    bound = np.asarray(bound, np.float64)
    assert (error <= bound[:, None]).all()
    # Cauchy-Schwarz is attained by the adversarial rows up to a small factor.
    assert error[:64, :64].max() > 0.3 * bound[:64].max()


@pytest.mark.slow
def test_an_unproven_row_is_searched_again(monkeypatch):
    """Without the second search the answer would be wrong: margins of none, bound of all."""
    x, labels = make_case("near")
    monkeypatch.setattr(neighbors_fast, "MARGIN", 0)
    [expected] = search.search(x, labels[:1], (K,), budget_bytes=BUDGET)
    [found], n_unproven = neighbors_fast.search(x, labels[:1], (K,), budget_bytes=BUDGET)
    assert n_unproven > 0.5 * len(x)
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.slow
def test_a_few_unproven_rows_are_queries_of_their_own():
    """A dense cluster in a wide set: its rows alone cannot be proven."""
    x, labels = make_case("far")
    x[100:160] = x[100] + np.float32(1e-3) * x[100:160]
    labels[0] = np.arange(len(x))
    [expected] = search.search(x, labels[:1], (K,), budget_bytes=BUDGET)
    [found], n_unproven = neighbors_fast.search(x, labels[:1], (K,), budget_bytes=BUDGET)
    assert 60 <= n_unproven < len(x) / 2
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.slow
def test_everything_is_searched_in_float32_where_products_round_otherwise(monkeypatch):
    x, labels = make_case("far", n=300)
    monkeypatch.setattr(neighbors_fast, "_rounds_alike", lambda block, tile: False)
    [expected] = search.search(x, labels[:1], (K,), budget_bytes=BUDGET)
    [found], n_unproven = neighbors_fast.search(x, labels[:1], (K,), budget_bytes=BUDGET)
    assert n_unproven == 300
    np.testing.assert_array_equal(found.distances, expected.distances)


@pytest.mark.slow
def test_products_of_candidates_round_as_tiles_do():
    x, labels = make_case("far", n=512, dim=100)
    block = Block(jnp.asarray(x), labels.astype(np.int32), tiles.inverse_norms(x), np.arange(512))
    assert bool(neighbors_fast._rounds_alike(block, tile=128))
    assert jax.devices()[0].platform == "cpu"
