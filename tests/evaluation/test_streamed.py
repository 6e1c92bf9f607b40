"""An evaluation whose rows lie in a scratch file gives the bytes of one in memory."""

import dataclasses
import json
import pathlib
import shutil
import types

import numpy as np
import pytest
import run_folders
import tensorstore as ts
from stores import make_manifest, make_store, plan

from pathorob_jax.core import hosts, scratch
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.embeddings import row_file
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.evaluation import search_way
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import Settings
from pathorob_jax.kernels.neighbors import exact_rows

N, DIM = 330, 12
# Tiles, and blocks, of 64 rows: six of each.
BUDGET, BLOCK = 64**2 * 56, 64 * 4 * DIM
METRICS = ("robustness_index", "margins")


def make_rows(rng):
    """Rows of 2 classes, 3 centres and 30 slides; some are equal, some differ in the last bit."""
    bio, center = np.arange(N) % 2, np.arange(N) // 2 % 3
    slide = (bio * 3 + center) * 5 + rng.integers(0, 5, N)
    x = (rng.normal(size=(N, DIM)) + 2).astype(np.float32)
    x[:, 0] += bio
    x[:, 1] += center
    x[200:230] = x[:30]
    x[230:260] = 2 * x[:30]
    x[260:280] = np.nextafter(x[:20], np.float32(9))
    x[280:290] = x[:10] * np.float32(1.1)
    return x, make_manifest(bio, center, slide)


@pytest.fixture
def small(monkeypatch):
    """Blocks so small that every step takes several."""
    reads = []

    def read(self, start, stop, kept=row_file.RowFile.read):
        reads.append(stop - start)
        return kept(self, start, stop)

    monkeypatch.setattr(row_file.RowFile, "read", read)
    monkeypatch.setattr(row_file.RowFile, "block_bytes", BLOCK)
    monkeypatch.setattr(row_file, "COPY_BYTES", 40 * 4 * DIM)
    return reads


def files_of(folder, name):
    """Files of results without their cost, by name; and where the search says that rows lay."""
    ways = []
    found = {}
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file():
            if path.suffix == ".json":
                ways.append(json.loads(path.read_text())["provenance"]["cost"].get("search"))
            found[path.name] = run_folders.without_cost(f"results/{path.name}", path.read_bytes())
    assert [way for way in ways if way is not None] == [name]  # of the first that searched
    return found


@pytest.mark.parametrize("design", [pytest.param("all", marks=pytest.mark.campaign), "paired"])
def test_streamed_numbers_are_those_of_memory(tmp_path, rng, small, design):
    make_store(tmp_path / "memory" / "d", *make_rows(rng))
    for copy in ("stream", "ring"):
        shutil.copytree(tmp_path / "memory" / "d", tmp_path / copy / "d")
    found, graphs = {}, {}
    for way in ("memory", "stream", "ring"):
        settings = Settings(
            k=9, design=design, min_cell_size=20 if design == "paired" else None,
            draws=200, budget_bytes=BUDGET, search=way,
        )  # fmt: skip
        evaluate_store(
            str(tmp_path / way / "d"), model="m", dataset="d", metrics=METRICS,
            settings=settings, output=str(tmp_path / "out" / way),
        )  # fmt: skip
        found[way] = files_of(tmp_path / "out" / way, way)
        [path] = (tmp_path / way / "d" / "neighbors").iterdir()
        graphs[way] = path.name, path.read_bytes()
        if way == "memory":
            assert not small
        if way == "stream":
            assert max(small) <= 1024  # ``Rows`` reads in blocks of its own
            assert len(small) > 10
    assert set(found["memory"]) >= {"robustness_index.json", "margins.json"}
    assert found["stream"] == found["memory"] == found["ring"]
    assert graphs["stream"] == graphs["memory"] == graphs["ring"]


def test_margins_give_back_the_neighbours_that_they_read(tmp_path, rng, monkeypatch):
    opened = make_store(tmp_path / "d", *make_rows(rng))
    evaluation = plan(opened, settings=Settings(k=9, search="stream"), metrics=["margins"])
    [scope] = evaluation.neighborhood.scopes
    given = []
    monkeypatch.setattr(scratch, "give_back", lambda *arrays: given.extend(arrays))
    evaluation.compute("margins")
    assert scratch.is_scratch(scope.any.indices)
    assert any(array is scope.any.indices for array in given)


def test_metrics_do_not_depend_on_the_parts_that_they_are_counted_in(tmp_path, rng, monkeypatch):
    store = make_store(tmp_path / "m" / "d", *make_rows(rng))
    records = []
    for rows in (7, 10_000):
        monkeypatch.setattr(scratch, "PART_ROWS", rows)
        results = evaluate_store(store, metrics=METRICS, settings=Settings(k=9, draws=200))
        records.append(results)
    first, second = records
    assert first.robustness_index.ci95 == second.robustness_index.ci95
    np.testing.assert_allclose(first.margins.mari, second.margins.mari, rtol=1e-13)
    np.testing.assert_allclose(first.margins.mari_ci95, second.margins.mari_ci95, rtol=1e-11)


def test_a_copy_is_in_the_order_wanted(tmp_path, rng, small):
    x, manifest = make_rows(rng)
    store = open_store(make_store(tmp_path / "m" / "d", x, manifest).path)
    rows = rng.permutation(N)[:300]
    found = row_file.copy_rows(store, rows)
    np.testing.assert_array_equal(found[:], x[rows])
    np.testing.assert_array_equal(found[100:103], x[rows[100:103]])
    some = rng.integers(0, 300, 50)
    np.testing.assert_array_equal(found.take(some), x[rows[some]])
    assert found[10:5].shape == (0, DIM)


def test_a_row_without_direction_is_refused_as_in_memory(tmp_path, rng, small):
    x, manifest = make_rows(rng)
    store = make_store(tmp_path / "m" / "d", x, manifest)
    x[7, 2], x[123] = np.nan, 0
    store = dataclasses.replace(store, array=ts.array(x))  # no writer would keep such rows
    texts = []
    for way in ("memory", "stream"):
        with pytest.raises(InputError, match="2 embeddings hold") as caught:
            evaluate_store(store, settings=Settings(k=9, search=way))
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_a_full_disk_is_named(tmp_path, rng, monkeypatch):
    store = make_store(tmp_path / "m" / "d", *make_rows(rng))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_file.os, "pwrite", full)
    with pytest.raises(InputError, match=rf"the {4 * N * DIM} bytes .* TMPDIR .*--search=memory"):
        row_file.copy_rows(store, np.arange(N))


def mesh_of(n_devices, limit):
    stats = {"bytes_limit": limit} if limit else None
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    return types.SimpleNamespace(local_devices=[device] * n_devices, size=n_devices)


@pytest.mark.parametrize(
    ("available", "n_devices", "limit", "way"),
    [
        (8000, 1, None, "memory"),  # 4,000 bytes are half of it
        (7999, 1, None, "stream"),
        (None, 1, None, "memory"),
        (8000, 1, 8000, "memory"),
        (8000, 1, 7999, "stream"),
        (8000, 2, 7999, "ring"),
        (8000, 2, 4000, "ring"),
        (8000, 2, 3999, "stream"),
    ],
)
def test_the_size_chooses(monkeypatch, available, n_devices, limit, way):
    monkeypatch.setattr(hosts, "available_bytes", lambda: available)
    mesh = mesh_of(n_devices, limit)
    assert search_way.choose_way(Settings(), n=100, dim=10, mesh=mesh) == way
    assert search_way.choose_way(Settings(precision="fast"), n=100, dim=10, mesh=mesh) == "memory"
    asked = Settings(search="memory")
    assert search_way.choose_way(asked, n=100, dim=10, mesh=mesh) == "memory"


@pytest.mark.parametrize("other", [{"precision": "fast"}, {"neighbors": "x.npz"}])
def test_what_needs_memory_is_not_streamed(other):
    settings = Settings(search="stream", **other)
    with pytest.raises(
        UsageError, match=f"search: 'stream' does not go with --{next(iter(other))}"
    ):
        search_way.choose_way(settings, n=100, dim=10, mesh=mesh_of(1, None))


@pytest.mark.parametrize("share", ["inactive_file 700", "total_inactive_file 700"])
def test_memory_is_what_the_container_leaves(tmp_path, monkeypatch, share):
    """Files that were read count as used there, but make room."""
    whole = hosts.available_bytes()
    assert whole is None or whole > 2**20
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "used").write_text("2000\n")
    (tmp_path / "none").write_text("max\n")
    (tmp_path / "shares").write_text(f"anon 1300\n{share}\n")
    paths = [[str(tmp_path / n) for n in (limit, "used", "shares")] for limit in ("max", "none")]
    monkeypatch.setattr(hosts, "CONTROL_GROUPS", [*paths, [str(tmp_path / "absent")] * 3])
    assert hosts.available_bytes() == 3700


def test_the_request_is_the_same_whatever_the_way():
    assert "search" not in Settings(search="stream").of_neighbors()


def test_many_distances_are_those_of_memory_and_read_whole_blocks(rng, small):
    x, _ = make_rows(rng)
    rows = row_file.RowFile(x.shape)
    rows.write(np.arange(N), x)
    streamed, inside = exact_rows.Rows(rows), exact_rows.Rows(x)
    first, second = rng.integers(0, N, (2, 2_000))
    np.testing.assert_array_equal(
        streamed.distances(first, second), inside.distances(first, second)
    )
    assert rows.block_rows == 64
    assert {size for size in small if size <= 64} == {64, N % 64}
    few = first[:50], second[:50]  # row by row
    np.testing.assert_array_equal(streamed.distances(*few), inside.distances(*few))
