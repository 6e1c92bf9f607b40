"""Four CPU devices, warnings as errors (setup.cfg), and the folders that tests may read."""

import gc
import importlib.util
import os
import pathlib

import kept_programs
from machine import DEVICES

from pathorob_jax.cli import start
from pathorob_jax.core import hosts

flags = os.environ.get("XLA_FLAGS", "")
if hosts.visible_gpus():
    flags = start.with_gpu_products(flags)
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={DEVICES}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
kept_programs.set_environment()
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch and scikit-learn: a core for each worker

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from pathorob_jax.core import devices  # noqa: E402
from pathorob_jax.data import synthetic_tiles  # noqa: E402
from pathorob_jax.data import tileset as images  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
kept_programs.make_safe()


def pytest_addoption(parser):
    parser.addoption("--optimized", action="store_true", help="Compile all programs as users do.")


def pytest_configure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        kept_programs.drop_old()


def pytest_collection_modifyitems(items):
    """The longest files first, so that both processes work to the end; without torch, a skip."""
    # The sort is stable: a file's tests stay together and in order.
    items.sort(key=lambda item: LONGEST.get(item.path.name, len(LONGEST)))
    if importlib.util.find_spec("torch") is None:
        for item in items:
            if item.get_closest_marker("torch"):
                item.add_marker(pytest.mark.skip(reason="PyTorch is not installed"))


def pytest_collection_finish():
    """What was imported stays, so that the collection of garbage need not look at it again."""
    gc.collect()
    gc.freeze()


LONGEST = {
    name: place
    for place, name in enumerate(
        [
            "test_robustification.py",
            "test_parity_vit.py",
            "test_in_memory.py",
            "test_logistic.py",
            "test_face.py",
            "test_extraction.py",
            "test_apd.py",
            "test_mil.py",
            "test_browser.py",
            "test_stain_robustifier.py",
            "test_registry.py",
            "test_neighbors.py",
        ]
    )
}
MANY_MAPS = 20_000
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference data beside the project."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: no reference data to compare with")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def compiled(request):
    """How a module's programs are compiled, here and in processes that it starts.

    LLVM's optimisation takes most of the time of tests, whose arrays are small. Only modules
    marked ``optimized``, which compute at full size, and ``--optimized`` have it.

    Programs are dropped when there are many: each maps memory, and a process may map 65,530 times.
    """
    marked = request.node.get_closest_marker("optimized") is not None
    fast = not (marked or request.config.getoption("--optimized"))
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(fast))
    changes = fast != jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", fast)
    if changes or _count_maps() > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


def _count_maps() -> int:
    """How many pieces of memory this process has mapped; 0 where the system does not tell."""
    maps = pathlib.Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture(scope="module")
def tiles_dir(tmp_path_factory) -> str:
    """The folder of the tileset that tests of extraction share, written once for a module."""
    import extraction  # here, as few tests need what it imports

    path = str(tmp_path_factory.mktemp("tiles") / "synthetic")
    assert synthetic_tiles.write_tileset(path, extraction.CONFIG) == extraction.N
    return path


@pytest.fixture
def tileset(tiles_dir):
    """The same, open."""
    return images.open_tileset(tiles_dir)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20260101)


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.campaign), DEVICES])
def mesh(request):
    """Meshes of one, two and all devices."""
    return devices.make_mesh(jax.devices()[: request.param])
