"""What a block cost: its time, its memory, its machine, and whether it did all of the work."""

import os
import resource
import time
import types

import jax
import numpy as np
import pytest

from pathorob_jax.core import cost, devices
from pathorob_jax.core.cost import describe_duration


@pytest.fixture(scope="module")
def two():
    """A mesh of two devices."""
    return devices.make_mesh(jax.devices()[:2])


def test_a_block_is_measured_with_its_machine(two):
    with cost.measured(two) as found:
        time.sleep(0.02)
    assert 0.02 <= found["seconds"] < 20
    assert found["is_whole"] is True
    assert (found["device"], found["devices"], found["processes"]) == ("cpu", 2, 1)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["processor"]
    assert found["device_peak_bytes"] is None
    assert cost.is_of(found, cost.machine(two))
    assert not cost.is_of(found | {"devices": 1}, cost.machine(two))
    assert not cost.is_of({}, cost.machine(two))


@pytest.mark.campaign
@pytest.mark.slow
def test_the_peak_counts_what_was_given_back(two):
    before = cost.peak_bytes()
    with cost.measured(two) as found:
        held = np.ones(before // 8 + 2**23)
        del held
    assert found["peak_bytes"] >= before + 2**25


@pytest.mark.parametrize("told", [None, "Name:\tpython\n"])
@pytest.mark.parametrize(("system", "unit"), [("darwin", 1), ("freebsd14", 1024)])
def test_without_proc_the_system_is_asked_in_its_own_unit(
    tmp_path, monkeypatch, told, system, unit
):
    status = tmp_path / "status"
    if told is not None:
        status.write_text(told)
    monkeypatch.setattr(cost, "pathlib", types.SimpleNamespace(Path=lambda _: status))
    monkeypatch.setattr(cost, "sys", types.SimpleNamespace(platform=system))
    usage = types.SimpleNamespace(ru_maxrss=7000)
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert cost.peak_bytes() == 7000 * unit


def test_reuse_is_of_the_innermost_block(two):
    cost.note_reused()  # nothing is measured: nothing happens
    with cost.measured(two) as outer:
        with cost.measured(two) as inner:
            cost.note_reused()
        with pytest.raises(KeyError), cost.measured(two) as failed:
            raise KeyError
    assert [one["is_whole"] for one in (outer, inner, failed)] == [True, False, True]


def test_fullest_device_counts():
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    class Mesh:
        local_devices = [Device({"peak_bytes_in_use": 5}), Device(None), Device({"other": 9})]

    assert cost.device_peak_bytes(Mesh) == 5
    Mesh.local_devices = [Device({})]
    assert cost.device_peak_bytes(Mesh) is None


@pytest.mark.slow
def test_durations_are_read_at_a_glance():
    seconds = (0, 0.0341, 4, 9.6, 89, 90, 5399, 5400, 3 * 86400)
    assert [describe_duration(s) for s in seconds] == [
        *("0 s", "0.034 s", "4 s", "10 s", "89 s", "1.5 min", "90.0 min", "1.5 h", "3.0 days")
    ]
