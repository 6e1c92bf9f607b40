"""Where the tests of accelerators run: on an accelerator, or on the CPU to rehearse them."""

import os

import jax
import pytest

from pathorob_jax.core import devices


@pytest.fixture(scope="session")
def accelerator():
    """A mesh of all devices of the default kind; REHEARSE=1 takes CPU devices for accelerators."""
    if jax.default_backend() == "cpu" and not os.environ.get("REHEARSE"):
        pytest.skip(
            "JAX sees no accelerator (make accelerator leaves JAX_PLATFORMS to JAX); REHEARSE=1 "
            "runs these tests on CPU devices"
        )
    return devices.make_mesh(jax.local_devices())


@pytest.fixture(autouse=True)
def on_accelerator(accelerator):
    """What a test computes without a mesh is computed on the first of them."""
    with jax.default_device(accelerator.local_devices[0]):
        yield
