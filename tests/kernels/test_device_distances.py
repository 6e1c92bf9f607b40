"""Distances of pairs that a device measures, the GPU's programs on a CPU: as those of the host."""

from types import SimpleNamespace

import numpy as np
import pytest

from pathorob_jax.core.aligned import empty_aligned, is_aligned
from pathorob_jax.core.devices import to_device
from pathorob_jax.kernels.neighbors import device_distances, exact_rows, host, search, tiles
from pathorob_jax.kernels.neighbors.distinct_pairs import find_distinct
from pathorob_jax.kernels.neighbors.exact_rows import Rows, distance_error

SMALL_BUDGET = tiles.MIN_TILE_ROWS**2 * host.BYTES_PER_SCORE


@pytest.fixture
def measured(monkeypatch):
    """Let this device measure pairs, however few; what was measured, call by call."""
    monkeypatch.setattr(search, "measures_pairs", lambda device: True)
    monkeypatch.setattr(exact_rows, "LEAST_PAIRS", 1)
    monkeypatch.setattr(device_distances, "CALL_PAIRS", 64)
    monkeypatch.setattr(device_distances, "TILE_PAIRS", 16)
    return note_calls(monkeypatch, "gpu_distances")


def note_calls(monkeypatch, name):
    """Numbers of pairs that a function of ``device_distances`` measures, call by call."""
    calls, whole = [], getattr(device_distances, name)

    def note(x, scale, first, second, *, near):
        calls.append(len(first))
        return whole(x, scale, first, second, near=near)

    monkeypatch.setattr(exact_rows, name, note)
    return calls


@pytest.mark.parametrize("n_pairs", [1, 3, 64, 65, 300])
def test_distances_are_those_of_longdouble(rng, measured, n_pairs):
    x, first, second = make_pairs(rng, n_pairs)
    check_distances(x, first, second, Rows(x, placed=to_device(x)).distances(first, second))
    assert measured == [n_pairs]


@pytest.mark.parametrize("n_pairs", [16, 17, 40, 300])
def test_a_cpu_measures_pairs_where_they_lie(rng, monkeypatch, n_pairs):
    """40 rows: more pairs than that are measured once."""
    monkeypatch.setattr(exact_rows, "CPU_CALL_PAIRS", 16)
    monkeypatch.setattr(device_distances, "CPU_CALL_PAIRS", 16)
    calls = note_calls(monkeypatch, "cpu_distances")
    x, first, second = make_pairs(rng, n_pairs)
    shared = empty_aligned(x.shape)
    shared[:] = x
    found = Rows(shared).distances(first, second)
    check_distances(x, first, second, found)
    n_distinct = len({frozenset(pair) for pair in zip(first, second, strict=True)})
    assert calls == [n_pairs if n_pairs <= 40 else n_distinct]
    # Rows that would be copied are measured by NumPy.
    calls.clear()
    raw = np.empty(x.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + 4
    askew = raw[start : start + x.nbytes].view(np.float32).reshape(x.shape)
    askew[:] = x
    assert is_aligned(shared)
    assert not is_aligned(askew)
    for other in (askew, shared.astype(np.float64), shared[:, ::-1][:, ::-1].T.copy().T):
        check_distances(x, first, second, Rows(other).distances(first, second))
    assert not calls


def test_pairs_are_measured_once_whichever_way_round(rng):
    first, second = rng.integers(0, 7, (2, 90))
    pairs = find_distinct(first, second, 7)
    both = np.sort(np.stack([first, second], axis=1), axis=1)
    expected, place = np.unique(both, axis=0, return_inverse=True)
    np.testing.assert_array_equal(np.stack([pairs.first, pairs.second], axis=1), expected)
    np.testing.assert_array_equal(pairs.place, place.reshape(-1))
    assert len(expected) < 90
    none = find_distinct(first[:0], second[:0], 7)
    assert [len(part) for part in none] == [0, 0, 0]


def make_pairs(rng, n_pairs):
    x = rng.normal(size=(40, 96)).astype(np.float32)
    x[20:] = x[:20] * 3 + 0.1 * rng.normal(size=(20, 96)).astype(np.float32)
    first, second = rng.integers(0, 40, (2, n_pairs))
    second[::3] = (first[::3] + 20) % 40  # near ones, measured by differences
    return x, first, second


def check_distances(x, first, second, found):
    unit = x.astype(np.longdouble)
    unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
    exact = ((unit[first] - unit[second]) ** 2).sum(1) / 2
    assert found.dtype == np.float64
    assert (np.abs(found - exact) <= distance_error(found, 96)).all()
    assert (exact < exact_rows.NEAR).any()


@pytest.mark.parametrize(("platform", "expected"), [("cpu", False), ("gpu", True), ("tpu", False)])
def test_gpus_measure_pairs(platform, expected):
    """TPUs have no float64 of their own."""
    assert exact_rows.measures_pairs(SimpleNamespace(platform=platform)) == expected


def test_few_pairs_stay_on_the_host(rng, measured, monkeypatch):
    monkeypatch.setattr(exact_rows, "LEAST_PAIRS", 10)
    x = rng.normal(size=(20, 8)).astype(np.float32)
    first, second = rng.integers(0, 20, (2, 9))
    found = Rows(x, placed=to_device(x)).distances(first, second)
    np.testing.assert_array_equal(found, Rows(x).distances(first, second))
    assert measured == []


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_a_search_that_measures_on_the_device_is_exact(rng, measured, spread):
    """Near ties in the order of exact distances; equal rows in that of their numbers."""
    x = (rng.normal(size=24) + spread * rng.normal(size=(200, 24))).astype(np.float32)
    x[150:] = x[:50]
    group = np.arange(200) % 50
    found = search.find_neighbors(x, group, k=7, budget_bytes=SMALL_BUDGET)
    unit = x.astype(np.longdouble)
    unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
    distance = ((unit[:, None] - unit[None]) ** 2).sum(2)
    distance[group[:, None] == group[None]] = np.inf
    np.testing.assert_array_equal(found.indices, np.argsort(distance, axis=1, kind="stable")[:, :7])
    assert measured
    assert np.sum(measured) > 64
