"""Searches in many databases that share parts against float64, with ties and near ties."""

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.neighbors import near_ties
from pathorob_jax.kernels.neighbors.exact_rows import Rows
from pathorob_jax.kernels.neighbors.parts import Parts, find_in_parts

N_PARTS, PER_PART, N_QUERIES, K = 9, 8, 70, 6


def case(rng, kind):
    n = N_PARTS * PER_PART + N_QUERIES
    if kind == "integers":
        x = rng.integers(0, 2, (n, 5)).astype(np.float32)
        x[x.sum(1) == 0] = 1
        x *= 2.0 ** rng.integers(-3, 4, (n, 1)).astype(np.float32)
    elif kind == "one direction":
        x = (rng.normal(size=12) + 1e-6 * rng.normal(size=(n, 12))).astype(np.float32)
    else:
        x = rng.normal(size=(n, 12)).astype(np.float32)
    places = rng.permutation(n)
    rows, queries = places[:-N_QUERIES].reshape(N_PARTS, PER_PART), places[-N_QUERIES:]
    members = rng.random((4, N_PARTS)) < 0.5
    members[0], members[1] = True, np.arange(N_PARTS) == 3
    parts = Parts(rows, np.arange(N_PARTS) // 2, members)
    return x, queries, rng.integers(0, 8, N_QUERIES), parts


def brute(x, queries, query_group, parts, k):
    """Order (distance to 13 digits, row)."""
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    out = np.full((len(parts.members), len(queries), k), -1)
    for s, member in enumerate(parts.members):
        for q, (query, group) in enumerate(zip(queries, query_group, strict=True)):
            held = parts.rows[member & (parts.group_id != group)].reshape(-1)
            apart = ((unit[held] - unit[query]) ** 2).sum(1) / 2
            apart = apart if apart.max(initial=0) < 1e-9 else np.round(apart, 13)
            order = np.lexsort((held, apart))[:k]
            out[s, q, : len(order)] = held[order]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["integers", "one direction", "far"])
def test_lists_equal_a_brute_force(rng, kind):
    x, *rest = case(rng, kind)
    got = find_in_parts(Rows(x), *rest, k=K)
    expected = brute(x, *rest, K)
    np.testing.assert_array_equal(got, expected)
    # More than a database holds, and tiles of 64 queries.
    many = find_in_parts(Rows(x), *rest, k=100, budget_bytes=1)
    np.testing.assert_array_equal(many, brute(x, *rest, 100))
    assert (many[1] < 0).any()
    assert (many[1][:, PER_PART:] < 0).all()


def test_queries_whose_groups_all_have_rows_there(rng):
    x, queries, group, parts = case(rng, "integers")
    rest = (queries, group % (parts.group_id.max() + 1), parts)
    np.testing.assert_array_equal(find_in_parts(Rows(x), *rest, k=K), brute(x, *rest, K))


def test_without_queries_or_databases_there_are_no_lists(rng):
    x, queries, group, parts = case(rng, "integers")
    none = find_in_parts(Rows(x), queries[:0], group[:0], parts, k=K)
    assert (none.shape, none.dtype) == ((len(parts.members), 0, K), np.int32)
    parts = parts._replace(members=parts.members[:0])
    assert find_in_parts(Rows(x), queries, group, parts, k=K).shape == (0, len(queries), K)


def test_what_float32_leaves_undecided_is_searched_again(rng, monkeypatch):
    """Without settling, the lists of small integers are others."""
    x, *rest = case(rng, "integers")
    expected = brute(x, *rest, K)
    monkeypatch.setattr(near_ties, "rounding_error", lambda *_: -1.0)
    assert (find_in_parts(Rows(x), *rest, k=K) != expected).any()


@pytest.mark.slow
def test_bad_input(rng):
    x, queries, group, parts = case(rng, "far")
    with pytest.raises(InputError, match="group_id: expected shape"):
        find_in_parts(Rows(x), queries, group, parts._replace(group_id=np.arange(3)), k=1)
    x[queries[0]] = 0
    with pytest.raises(InputError, match="1 of 142 rows have no direction"):
        find_in_parts(Rows(x), queries, group, parts, k=1)
