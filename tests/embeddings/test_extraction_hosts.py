"""Real processes of two devices each share a store as they go; they join, die, fail and resume."""

import random
import signal
import time

import jax
import pytest
from extraction import CONFIG, N, files_of, mesh_of, run, shard_bytes
from machine import DEVICES
from workers import Workers, free_port

import pathorob_jax
from pathorob_jax.core import hosts
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import synthetic_tiles
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings import store, store_writer
from pathorob_jax.models import registry

pytestmark = pytest.mark.multiprocess
BATCH_SIZE = 3
DEADLINE_S = 180
# The script, with a reader that takes its time where a test wants to kill a process meanwhile.
SLOW = """
import runpy, sys, time
from pathorob_jax.data import tile_batches
decode, delay_s = tile_batches.decode_tile, float(sys.argv.pop(1))
def slow(data, name, **options):
    time.sleep(delay_s)
    return decode(data, name, **options)
tile_batches.decode_tile = slow
runpy.run_module("experiments.extract", run_name="__main__")
"""


@pytest.fixture(scope="module")
def tiles_dir(tmp_path_factory):
    """A tileset of image files, one of which tests can break."""
    path = tmp_path_factory.mktemp("tiles")
    assert synthetic_tiles.write_tileset(str(path / "parquet"), CONFIG) == N
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
    return _embed_alone(tiles_dir, tmp_path_factory.mktemp("alone"), batch_size=BATCH_SIZE)


def _embed_alone(tiles_dir, root, *, batch_size):
    tileset = images.open_tileset(str(tiles_dir))
    made = {}
    for name in ("color_stats", "vit_random"):
        encoder = registry.load_encoder(name)
        made[name] = run(tileset, root, encoder, batch_size=batch_size, mesh=mesh_of()).path
    return made


def _start(tiles_dir, root, folder, *, delay_s=0.0, more=()):
    """Two processes of one run that extract into one folder of stores."""
    port = free_port()
    common = [
        *_command(tiles_dir, root, delay_s=delay_s, more=more),
        *("--multihost", f"--coordinator=localhost:{port}", "--num_processes=2"),
    ]
    return Workers(SLOW, [[*common, f"--process_id={i}"] for i in range(2)], folder)


def _command(tiles_dir, root, *, delay_s=0.0, more=()):
    return [
        *(delay_s, f"--tileset={tiles_dir}", f"--output={root}", "--dataset=d"),
        *("--model=color_stats,vit_random", f"--batch_size={BATCH_SIZE}"),
        *more,
    ]


def _n_embedded(logs):
    """Tiles that each process embedded, by its own word."""
    return [int(log.split(" tiles in ")[0].rsplit(" ", 1)[1]) for log in logs]


def _assert_equal_to(root, alone):
    for name, path in alone.items():
        assert shard_bytes(root / name / "d") == shard_bytes(path), name
        assert files_of(root / name / "d")["manifest.parquet"] == files_of(path)["manifest.parquet"]


@pytest.mark.campaign
@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tiles_dir, alone, tmp_path):
    root = tmp_path / "out"
    logs = _start(tiles_dir, root, tmp_path).finish([0, 0], within_s=DEADLINE_S)
    _assert_equal_to(root, alone)
    opened = store.open_store(str(root / "vit_random" / "d"))
    assert opened.info["settings"]["device"] == {"kind": "cpu", "count": 2}
    assert sum(_n_embedded(logs)) == N, "no tile was embedded twice"


@pytest.mark.campaign
@pytest.mark.slow
def test_two_processes_normalise_the_tiles_of_one(tiles_dir, tmp_path):
    """With ``--stain``: bytes, counts and pictures are those of one process with one device."""
    tileset = images.open_tileset(str(tiles_dir))
    stain = pathorob_jax.fit_stain(tileset, method="macenko")
    pathorob_jax.save_stain(stain, str(tmp_path / "stain"))
    alone = {
        f"{name}+macenko": run(
            tileset,
            tmp_path / "alone",
            registry.load_encoder(name),
            batch_size=BATCH_SIZE,
            stain=stain,
        )
        for name in ("color_stats", "vit_random")
    }
    root = tmp_path / "out"
    more = [f"--stain={tmp_path / 'stain'}"]
    _start(tiles_dir, root, tmp_path, more=more).finish([0, 0], within_s=DEADLINE_S)
    _assert_equal_to(root, {name: made.path for name, made in alone.items()})
    for name, made in alone.items():
        opened = store.open_store(str(root / name / "d"))
        assert opened.info["settings"]["stain"] == made.info["settings"]["stain"]
        ours, theirs = files_of(opened.path), files_of(made.path)
        pictures = [path for path in theirs if path.startswith("examples/")]
        assert len(pictures) == 1 + 4
        assert all(ours[path] == theirs[path] for path in pictures)


@pytest.mark.campaign
@pytest.mark.slow
def test_one_process_fails_and_all_end_with_a_message(tiles_dir, alone, tmp_path):
    root, victim = tmp_path / "out", tiles_dir / f"{N - 1}.png"
    good = victim.read_bytes()
    # Of the same length, so that the tileset stays the same.
    victim.write_bytes(b"x" * len(good))
    try:
        logs = _start(tiles_dir, root, tmp_path).finish([1, 1], within_s=DEADLINE_S)
    finally:
        victim.write_bytes(good)
    # What the first one leaves the other takes, and fails there, too.
    assert all(f"{N - 1}.png: cannot be decoded as an image" in log for log in logs)
    assert all("Traceback" not in log for log in logs)
    with pytest.raises(InputError, match="unfinished"):
        store.open_store(str(root / "color_stats" / "d"))
    _start(tiles_dir, root, tmp_path).finish([0, 0], within_s=DEADLINE_S)
    _assert_equal_to(root, alone)


@pytest.mark.slow
@pytest.mark.campaign
def test_a_killed_process_ends_the_other_and_one_process_can_finish(tiles_dir, alone, tmp_path):
    root = tmp_path / "out"
    shards = root / "color_stats" / "d" / "embeddings" / "c"
    with _start(tiles_dir, root, tmp_path, delay_s=0.3) as workers:
        workers.wait_until(lambda: list(shards.glob("*")), within_s=DEADLINE_S)
        workers.processes[1].send_signal(signal.SIGKILL)
        logs = workers.finish([1, -signal.SIGKILL], within_s=DEADLINE_S)
    assert "another process was lost" in logs[0]
    assert "same command" in logs[0]
    # Another number of processes and devices goes on, with the same blocks.
    tileset = images.open_tileset(str(tiles_dir))
    for name in alone:
        run(tileset, root, registry.load_encoder(name), batch_size=8, mesh=mesh_of(DEVICES))
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


@pytest.mark.slow
def test_a_process_that_sees_no_store_of_the_first_says_so(tiles_dir, tmp_path):
    rows = images.open_tileset(str(tiles_dir)).manifest
    options = {"manifest": rows, "dim": 3, "chunk_rows": 4, "identity": {}}
    path = str(tmp_path / "m" / "d")
    with pytest.raises(InputError, match="finds none there. All need one folder"):
        store_writer.create_store(path, shared=True, lead=False, **options)
    with store_writer.create_store(path, shared=True, **options):
        with store_writer.create_store(path, shared=True, lead=False, **options) as joined:
            assert joined.missing_chunks == list(range(8))
        with pytest.raises(InputError, match="finds another there"):
            store_writer.create_store(path, shared=True, lead=False, **options | {"dim": 4})


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(3))
def test_a_host_dies_and_another_joins_and_no_byte_changes(seed, tiles_dir, tmp_path):
    """Three independent processes of different speed, one of which is killed as it works."""
    alone = _embed_alone(tiles_dir, tmp_path / "alone", batch_size=1)
    draw, root = random.Random(seed), tmp_path / "out"
    store_of = root / "color_stats" / "d"

    def start(folder, *delays_s):
        folder.mkdir()
        commands = [
            _command(tiles_dir, root, delay_s=delay_s, more=["--batch_size=1"])
            for delay_s in delays_s
        ]
        return Workers(SLOW, commands, folder)

    n_chunks, pause_s = draw.randrange(1, 4), draw.uniform(0, 1.0)
    with start(tmp_path / "two", 2.0, 1.5) as two:
        two.wait_until(lambda: list(store_of.glob("leases/*.0")), within_s=DEADLINE_S)
        with start(tmp_path / "third", 0.2) as third:
            two.wait_until(
                lambda: len(list(store_of.glob("embeddings/c/*/0"))) >= n_chunks,
                within_s=DEADLINE_S,
            )
            time.sleep(pause_s)
            two.processes[0].send_signal(signal.SIGKILL)
            survivor = two.finish([-signal.SIGKILL, 0], within_s=DEADLINE_S)[1]
            joined = third.finish([0], within_s=DEADLINE_S)[0]
    assert "embeds a part of the tiles" in joined
    assert 0 < sum(_n_embedded([survivor, joined])) <= N
    _assert_equal_to(root, alone)
    for name, path in alone.items():
        ours, whole = files_of(root / name / "d"), files_of(path)
        assert sorted(ours) == sorted(whole), "leases and what the killed one wrote are gone"
