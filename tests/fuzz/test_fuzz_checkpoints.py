"""A part of the campaigns of ``fuzz_checkpoints``; the whole of them is run by ``make fuzz``."""

import pytest
import torch_oracles

torch_oracles.import_torchvision()
pytest.importorskip("safetensors.torch")
fuzz_checkpoints = pytest.importorskip("fuzz_checkpoints")

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    import socket

    def refuse(*_):
        raise AssertionError("a checkpoint or a spec opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _check(outcomes, n):
    assert sum(outcomes[x] for x in ("clean error", "equal to the oracle")) == n, outcomes
    assert outcomes["clean error"] > n / 4
    assert outcomes["equal to the oracle"] > 0


@pytest.mark.slow
def test_checkpoints():
    _check(fuzz_checkpoints.fuzz_checkpoints(63, 1), 63)


@pytest.mark.slow
def test_specs():
    _check(fuzz_checkpoints.fuzz_specs(40, 2), 40)
