"""Distances of pairs that an accelerator measures, here on a CPU device: as those of the host."""

from types import SimpleNamespace

import numpy as np
import pytest

from pathorob_jax.core.devices import to_device
from pathorob_jax.kernels.neighbors import device_distances, exact_rows, host, search, tiles
from pathorob_jax.kernels.neighbors.exact_rows import Rows, distance_error

SMALL_BUDGET = tiles.MIN_TILE_ROWS**2 * host.BYTES_PER_SCORE


@pytest.fixture
def measured(monkeypatch):
    """Let this device measure pairs, however few; what was measured, call by call."""
    calls = []
    monkeypatch.setattr(search, "measures_pairs", lambda device: True)
    monkeypatch.setattr(exact_rows, "LEAST_PAIRS", 1)
    monkeypatch.setattr(device_distances, "CALL_PAIRS", 64)
    monkeypatch.setattr(device_distances, "TILE_PAIRS", 16)
    whole = device_distances.device_distances

    def note(x, scale, first, second, *, near):
        calls.append(len(first))
        return whole(x, scale, first, second, near=near)

    monkeypatch.setattr(exact_rows, "device_distances", note)
    return calls


@pytest.mark.parametrize("n_pairs", [1, 3, 64, 65, 300])
def test_distances_are_those_of_longdouble(rng, measured, n_pairs):
    x = rng.normal(size=(40, 96)).astype(np.float32)
    x[20:] = x[:20] * 3 + 0.1 * rng.normal(size=(20, 96)).astype(np.float32)
    first, second = rng.integers(0, 40, (2, n_pairs))
    second[::3] = (first[::3] + 20) % 40  # near ones, measured by differences
    found = Rows(x, placed=to_device(x)).distances(first, second)
    unit = x.astype(np.longdouble)
    unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
    exact = ((unit[first] - unit[second]) ** 2).sum(1) / 2
    assert found.dtype == np.float64
    assert (np.abs(found - exact) <= distance_error(found, 96)).all()
    assert (exact < exact_rows.NEAR).any()
    assert measured == [n_pairs]


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
