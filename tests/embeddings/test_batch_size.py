"""The batch size is the smallest of the nearly fastest, by a clock that the program moves."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pathorob_jax.core import devices
from pathorob_jax.embeddings import batch_size


class Program:
    """A step that computes so many tiles a second, by size."""

    def __init__(self, rates):
        self.rates, self.now_s, self.sizes = rates, 0.0, []

    def lower(self, params, images):
        self.sizes.append(len(images))
        return self

    def compile(self):
        return self

    def memory_analysis(self):
        return None

    def __call__(self, params, images):
        self.now_s += len(images) / self.rates[len(images)]
        return images


@pytest.fixture
def choose(monkeypatch):
    def run(program):
        def clock():
            return program.now_s

        monkeypatch.setattr(
            batch_size, "time", SimpleNamespace(monotonic=clock, perf_counter=clock)
        )
        mesh = devices.make_mesh(jax.devices()[:1])
        return batch_size.find_batch_size(program, None, (1, 1, 3), mesh=mesh, n_tiles=10_000)

    return run


def test_speeds_are_measured_in_ascending_order_until_they_fall(choose):
    program = Program({8: 100.0, 16: 197.0, 32: 200.0, 64: 150.0})
    assert choose(program) == 16
    assert program.sizes == [8, 16, 32, 64]
    program = Program({8: 200.0, 16: 100.0, 32: 900.0})
    assert choose(program) == 8
    assert program.sizes == [8, 16]


def test_a_measurement_takes_a_minute_and_no_more(choose):
    program = Program({8: 0.1, 16: 1.0})
    assert choose(program) == 8
    assert program.sizes == [8]


def test_where_nothing_fits_the_smallest_is_tried(choose, monkeypatch):
    monkeypatch.setattr(batch_size, "_fits", lambda compiled, mesh: False)
    program = Program({})
    assert choose(program) == 8
    assert np.all(np.array(program.sizes) == 8)
