"""Two real processes of two devices each write one store, fail together, and resume."""

import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from extraction import CONFIG, REPOSITORY, N, files_of, mesh_of, run, shard_bytes

from pathorob_jax import hosts, images, store, synthetic
from pathorob_jax.checks import InputError
from pathorob_jax.models import registry

pytestmark = pytest.mark.multiprocess
BATCH_SIZE = 3
DEADLINE_S = 180
# The script, with a reader that takes its time where a test wants to kill a process meanwhile.
SLOW = """
import runpy, sys, time
from pathorob_jax import batches
decode, delay_s = batches.decode_tile, float(sys.argv.pop(1))
def slow(data, name):
    time.sleep(delay_s)
    return decode(data, name)
batches.decode_tile = slow
runpy.run_module("experiments.extract", run_name="__main__")
"""


@pytest.fixture(scope="module")
def tiles_dir(tmp_path_factory):
    """A tileset of image files, one of which tests can break."""
    path = tmp_path_factory.mktemp("tiles")
    assert synthetic.write_tileset(str(path / "parquet"), CONFIG) == N
    tileset = images.open_tileset(str(path / "parquet"))
    folder = path / "folder"
    folder.mkdir()
    lines = ["slide_id,patch_id,biological_class,medical_center,path"]
    table = tileset.manifest.table.to_pylist()
    for row, patch in enumerate(table):
        (folder / f"{row}.png").write_bytes(tileset.reader.read(row)[0])
        names = ("slide_id", "patch_id", "biological_class", "medical_center")
        lines.append(",".join([*(patch[name] for name in names), f"{row}.png"]))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def alone(tiles_dir, tmp_path_factory):
    """The stores of one process with one device."""
    root = tmp_path_factory.mktemp("alone")
    tileset = images.open_tileset(str(tiles_dir))
    made = {}
    for name in ("color_stats", "vit_random"):
        encoder = registry.load_encoder(name)
        made[name] = run(tileset, root, encoder, batch_size=BATCH_SIZE, mesh=mesh_of()).path
    return made


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _start(tiles_dir, root, logs, *, n=2, delay_s=0.0, ids=None, more=()):
    """Start ``n`` processes of two CPU devices; their words go to files, not pipes."""
    port = _free_port()
    children = []
    for index in range(n):
        log = open(logs / f"{index}.txt", "w")  # noqa: SIM115 - the child writes it
        with log:
            children.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-W", "ignore", "-c", SLOW, str(delay_s)),
                        *(f"--tileset={tiles_dir}", f"--output={root}", "--dataset=d"),
                        *("--model=color_stats,vit_random", f"--batch_size={BATCH_SIZE}"),
                        *("--multihost", f"--coordinator=localhost:{port}"),
                        *(f"--num_processes={n}", f"--process_id={index}", *more),
                    ],
                    cwd=REPOSITORY,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(),
                )
            )
    return children


def _environment():
    import os

    flags = "--xla_force_host_platform_device_count=2"
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _wait(children, logs):
    """Exit codes, and what each process said."""
    deadline_s = time.monotonic() + DEADLINE_S
    codes = []
    try:
        for child in children:
            codes.append(child.wait(max(1.0, deadline_s - time.monotonic())))
    finally:
        for child in children:
            child.kill()
            child.wait()
    return codes, [(logs / f"{i}.txt").read_text() for i in range(len(children))]


def _assert_equal_to(root, alone):
    for name, path in alone.items():
        assert shard_bytes(root / name / "d") == shard_bytes(path), name
        assert files_of(root / name / "d")["manifest.parquet"] == files_of(path)["manifest.parquet"]


def test_two_processes_write_the_bytes_of_one(tiles_dir, alone, tmp_path):
    root = tmp_path / "out"
    codes, logs = _wait(_start(tiles_dir, root, tmp_path), tmp_path)
    assert codes == [0, 0], logs
    _assert_equal_to(root, alone)
    opened = store.open_store(str(root / "vit_random" / "d"))
    assert opened.info["settings"]["device"] == {"kind": "cpu", "count": 4}
    # 11 chunks of 3 rows: each process read its own and not the other's.
    tiles = [int(log.split(" tiles in ")[0].rsplit(" ", 1)[1]) for log in logs]
    assert tiles == [15, 17]


def test_one_process_fails_and_all_end_with_a_message(tiles_dir, alone, tmp_path):
    root, victim = tmp_path / "out", tiles_dir / f"{N - 1}.png"
    good = victim.read_bytes()
    # Of the same length, so that the tileset stays the same.
    victim.write_bytes(b"x" * len(good))
    try:
        codes, logs = _wait(_start(tiles_dir, root, tmp_path), tmp_path)
    finally:
        victim.write_bytes(good)
    assert codes == [1, 1], logs
    assert "error: embedding: process 1 failed; its own log says why" in logs[0]
    assert f"{N - 1}.png: cannot be decoded as an image" in logs[1]
    assert all("Traceback" not in log for log in logs)
    with pytest.raises(InputError, match="unfinished"):
        store.open_store(str(root / "color_stats" / "d"))
    codes, logs = _wait(_start(tiles_dir, root, tmp_path), tmp_path)
    assert codes == [0, 0], logs
    _assert_equal_to(root, alone)


def test_a_killed_process_ends_the_other_and_one_process_can_finish(tiles_dir, alone, tmp_path):
    root = tmp_path / "out"
    children = _start(tiles_dir, root, tmp_path, delay_s=0.3)
    shards = root / "color_stats" / "d" / "embeddings" / "c"
    deadline_s = time.monotonic() + DEADLINE_S
    while not (shards.is_dir() and len(list(shards.iterdir())) >= 1):
        assert time.monotonic() < deadline_s
        assert all(child.poll() is None for child in children), _wait(children, tmp_path)
        time.sleep(0.02)
    children[1].send_signal(signal.SIGKILL)
    codes, logs = _wait(children, tmp_path)
    assert codes == [1, -signal.SIGKILL], logs
    assert "another process was lost" in logs[0]
    assert "same command" in logs[0]
    # Another number of processes and devices goes on, with the same blocks.
    tileset = images.open_tileset(str(tiles_dir))
    for name in alone:
        run(tileset, root, registry.load_encoder(name), batch_size=8, mesh=mesh_of(8))
    _assert_equal_to(root, alone)


def test_processes_that_do_not_find_each_other_say_what_to_give(tiles_dir, tmp_path, monkeypatch):
    def initialize(*args, **kwargs):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=r"\(coordinator_address should .*--coordinator"):
        hosts.join()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 7, 24])
def test_shares_are_consecutive_disjoint_and_even(n, count, monkeypatch):
    items, shares = list(range(n)), []
    monkeypatch.setattr(jax, "process_count", lambda: count)
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(hosts.share(items))
    assert sum(shares, []) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_that_sees_no_store_of_the_first_says_so(tiles_dir, tmp_path):
    rows = images.open_tileset(str(tiles_dir)).manifest
    options = {"manifest": rows, "dim": 3, "chunk_rows": 4, "identity": {}}
    path = str(tmp_path / "m" / "d")
    with pytest.raises(InputError, match="finds none there. All need one folder"):
        store.create_store(path, lead=False, **options)
    with store.create_store(path, **options):
        joined = store.create_store(path, lead=False, **options)
        assert joined.missing_chunks == list(range(8))
        with pytest.raises(InputError, match="finds another there"):
            store.create_store(path, lead=False, **options | {"dim": 4})
