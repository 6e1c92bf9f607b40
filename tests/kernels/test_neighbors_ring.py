"""Ring, stream and batch give the answer of the search on one device, bit for bit."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tensorstore as ts
from machine import DEVICES
from workers import Workers, free_port

from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.neighbors import batched, host, search, stream, tiles
from pathorob_jax.kernels.neighbors import ring as neighbors_ring

SMALL_BUDGET = tiles.MIN_TILE_ROWS**2 * host.BYTES_PER_SCORE
N, DIM, K, M = 1037, 19, 9, 4
KS = (K, M, M)


def make_rows(n=N, seed=5):
    """Rows of which many are equal or lie in one direction, with labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, DIM)).astype(np.float32)
    x = x[rng.integers(0, n // 3, n)]
    x[: n // 4] = np.sign(x[: n // 4])  # exact ties
    labels = np.stack(
        [rng.integers(0, n // 8 + 1, n), rng.integers(0, 3, n), rng.integers(0, 2, n)]
    )
    return x, labels


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def expected(rows):
    x, labels = rows
    found = search.search(x, labels, KS, budget_bytes=SMALL_BUDGET)
    ties = np.diff(found[0].distances, axis=1) == 0
    assert ties.mean() > 0.1
    return found


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.distances, b.distances)


# Odd and even rings close differently; all devices over 17 tiles leave the last ones less.
@pytest.mark.slow
@pytest.mark.parametrize(
    "n_devices",
    [
        *(pytest.param(n, marks=pytest.mark.campaign) for n in (2, 3, 1)),
        pytest.param(DEVICES, marks=pytest.mark.slow),
    ],
)
def test_ring_equals_one_device(rows, expected, n_devices):
    x, labels = rows
    mesh = devices.make_mesh(jax.devices()[:n_devices])
    seen = []
    found = search.search(
        x,
        labels,
        KS,
        budget_bytes=SMALL_BUDGET,
        mesh=mesh,
        layout="ring",
        on_progress=seen.append,
    )
    assert_same(found, expected)
    assert sum(seen) == N
    assert len(seen) == n_devices // 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "k"), [(5, 9), pytest.param(63, 3, marks=pytest.mark.campaign), (130, 200)]
)
def test_ring_of_few_rows(n, k):
    """Fewer tiles than devices, and fewer rows than neighbours."""
    x, labels = make_rows(n)
    expected = search.find_neighbors(x, labels[0], k=k, budget_bytes=SMALL_BUDGET)
    found = search.find_neighbors(
        x,
        labels[0],
        k=k,
        budget_bytes=SMALL_BUDGET,
        mesh=devices.make_mesh(jax.devices()[:DEVICES]),
        layout="ring",
    )
    assert_same([found], [expected])


@pytest.mark.slow
def test_no_device_holds_all_rows(rows):
    """Three shards and the lists are what a step needs, beside a pair of tiles."""
    n, dim, k, tile, mesh = 8192, 512, 5, 64, devices.make_mesh(jax.devices())
    size = n // mesh.size

    def shape(dtype, *sizes, spec=devices.ROWS):
        place = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)

    columns = jax.sharding.PartitionSpec(None, devices.DATA_AXIS)
    block = tiles.Block(
        shape(np.float32, n, dim),
        shape(np.int32, 1, n, spec=columns),
        shape(np.float32, n),
        shape(np.int32, n),
    )
    first = neighbors_ring._make_first_step(mesh, tile, size, (k,))
    ring = jax.eval_shape(first, block)
    ring = jax.tree.map(
        lambda a: shape(a.dtype, *a.shape, spec=columns if a.ndim == 3 else devices.ROWS), ring
    )
    ring = ring._replace(visitor=block)
    step = neighbors_ring._make_step(mesh, tile, halved=False)
    memory = step.lower(block, ring, np.int32(1)).compile().memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    shard = size * dim * 4
    lists = 8 * size * k * 8
    assert memory.argument_size_in_bytes >= 2 * shard
    assert used < 3 * shard + 2 * lists + 2 * SMALL_BUDGET + 2 * tile * dim * 4
    assert used < n * dim * 4


def test_rows_of_a_process_are_checked(rows):
    x, labels = rows
    mesh = devices.make_mesh(jax.devices()[:2])
    mine = neighbors_ring.process_rows(N, k=K, mesh=mesh, budget_bytes=SMALL_BUDGET)
    assert mine == slice(0, N)
    with pytest.raises(InputError, match=r"embeddings: expected shape \(1037, any\) rows of"):
        neighbors_ring.search(x[:-1], labels, KS, n=N, mesh=mesh, budget_bytes=SMALL_BUDGET)
    with pytest.raises(InputError, match="group_id: expected shape"):
        neighbors_ring.search(x, labels[:, 1:], KS, n=N, mesh=mesh, budget_bytes=SMALL_BUDGET)


def test_devices_of_a_process_lie_side_by_side():
    order = np.array([SimpleNamespace(process_index=i, platform="cpu") for i in (0, 1, 0, 1)])
    mesh = SimpleNamespace(devices=order, size=4)
    with pytest.raises(InputError, match=r"of process 0 side by side, found places \[0, 2\]"):
        neighbors_ring.process_rows(N, k=K, mesh=mesh, budget_bytes=SMALL_BUDGET)
    mesh.devices = order[[0, 2, 1, 3]]
    mine = neighbors_ring.process_rows(N, k=K, mesh=mesh, budget_bytes=SMALL_BUDGET)
    assert mine.start == 0
    assert N / 2 <= mine.stop < N


def test_lists_of_one_device_need_no_merge(rng):
    best = -np.sort(rng.random((1, 6, 3)).astype(np.float32))
    idx = rng.integers(0, 6, (1, 6, 3)).astype(np.int32)
    nothing = np.full_like(best, -np.inf), np.full_like(idx, -1)
    alone = search._merge_devices((best, idx))
    both = [np.concatenate(pair) for pair in zip((best, idx), nothing, strict=True)]
    for one, two, own in zip(alone, search._merge_devices(tuple(both)), (best, idx), strict=True):
        np.testing.assert_array_equal(one, own[0])
        np.testing.assert_array_equal(two, own[0])


WORKER = """
import sys
import jax
import numpy as np
port, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, process, initialization_timeout=60,
                           heartbeat_timeout_seconds=10)
from pathorob_jax.core import devices
from pathorob_jax.kernels.neighbors import ring as neighbors_ring
data = np.load(f"{folder}/rows.npz")
mesh = devices.make_mesh()
assert mesh.size == 4 and len(jax.local_devices()) == 2
budget, n = int(data["budget"]), len(data["x"])
ks = tuple(int(k) for k in data["ks"])
mine = neighbors_ring.process_rows(n, k=max(ks), mesh=mesh, budget_bytes=budget)
found = neighbors_ring.search(data["x"][mine], data["labels"][:, mine], ks, n=n, mesh=mesh,
                              budget_bytes=budget)
np.savez(f"{folder}/found{process}.npz", rows=[mine.start, mine.stop],
         **{f"{name}{i}": getattr(one, name) for i, one in enumerate(found)
            for name in ("indices", "distances")})
"""


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_give_and_get_their_own_rows(rows, expected, tmp_path):
    x, labels = rows
    np.savez(tmp_path / "rows.npz", x=x, labels=labels, ks=KS, budget=SMALL_BUDGET)
    port = free_port()
    Workers(WORKER, [[port, i, tmp_path] for i in range(2)], tmp_path).finish([0, 0], within_s=120)
    parts = [np.load(tmp_path / f"found{i}.npz") for i in range(2)]
    cut = int(parts[0]["rows"][1])
    np.testing.assert_array_equal([p["rows"] for p in parts], [[0, cut], [cut, N]])
    assert 0 < cut < N
    found = [
        search.Neighbors(
            *(np.concatenate([p[f"{name}{i}"] for p in parts]) for name in ("indices", "distances"))
        )
        for i in range(3)
    ]
    assert_same(found, expected)


class CountingReader:
    """An array that is read in slices, and counts them."""

    def __init__(self, array):
        self.array, self.shape, self.slices = array, array.shape, []

    def __getitem__(self, rows):
        self.slices.append((rows.start, rows.stop))
        return self.array[rows]


ROW_BYTES = 4 * DIM * stream.BLOCKS_HELD + 8 * sum(KS) * stream.LISTS_HELD


@pytest.mark.slow
@pytest.mark.parametrize("block_tiles", [1, 5, 40])
def test_stream_equals_memory(rows, expected, block_tiles):
    x, labels = rows
    reader, seen = CountingReader(x), []
    found = stream.search(
        reader,
        labels,
        KS,
        budget_bytes=SMALL_BUDGET,
        block_bytes=block_tiles * 64 * ROW_BYTES,
        on_progress=seen.append,
    )
    assert_same(found, expected)
    assert sum(seen) == N
    n_blocks = -(-N // (64 * block_tiles))
    assert len(reader.slices) == n_blocks * (n_blocks + 1) // 2
    assert max(stop - start for start, stop in reader.slices) <= 64 * block_tiles


def test_a_stream_that_nobody_watches_is_the_same(rows):
    x, labels = rows[0][:70], rows[1][:1, :70]
    options = {"budget_bytes": SMALL_BUDGET, "block_bytes": 64 * ROW_BYTES}
    seen = []
    watched = stream.search(x, labels, (M,), on_progress=seen.append, **options)
    assert_same(stream.search(x, labels, (M,), **options), watched)
    assert sum(seen) == 70


@pytest.mark.slow
def test_stream_reads_tensorstore_and_memmap(rows, tmp_path):
    x, labels = rows
    expected = search.find_neighbors(x, labels[0], k=K, budget_bytes=SMALL_BUDGET)
    np.save(tmp_path / "x.npy", x)
    store = ts.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "x")}},
        create=True,
        dtype=ts.float32,
        shape=x.shape,
        chunk_layout=ts.ChunkLayout(chunk_shape=(100, DIM)),
    ).result()
    store.write(x).result()
    for reader in (store, np.load(tmp_path / "x.npy", mmap_mode="r")):
        found = stream.find_neighbors_streamed(
            reader,
            labels[0],
            k=K,
            budget_bytes=SMALL_BUDGET,
            block_bytes=512 * (4 * DIM * 4 + 24 * K),
        )
        assert_same([found], [expected])


def test_stream_refuses_what_does_not_fit(rows):
    x, labels = rows
    with pytest.raises(
        InputError,
        match=f"block_bytes: blocks of one tile of 64 rows need {64 * ROW_BYTES} bytes, found 1000",
    ):
        stream.search(x, labels, KS, budget_bytes=SMALL_BUDGET, block_bytes=1000)
    with pytest.raises(TypeError, match="group_id"):
        stream.find_neighbors_streamed(x, np.zeros(N), k=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_subsets", "n_devices"), [pytest.param(5, 1, marks=pytest.mark.campaign), (5, 2), (2, 3)]
)
def test_batch_equals_the_loop(rows, n_subsets, n_devices):
    x, labels = rows
    rng = np.random.default_rng(n_subsets)
    idx = np.stack([rng.permutation(N)[:150] for _ in range(n_subsets)])
    ids = labels[:, idx].copy()
    ids[0, -1, 140:] = search.PADDING_GROUP  # a smaller subset, filled up
    mesh = devices.make_mesh(jax.devices()[:n_devices])
    found = batched.search(x, idx, ids, KS, budget_bytes=SMALL_BUDGET, mesh=mesh)
    for s in range(n_subsets):
        expected = search.find_typed_neighbors(
            x[idx[s]], *ids[:, s], k=K, m=M, budget_bytes=SMALL_BUDGET
        )
        assert_same([search.Neighbors(f.indices[s], f.distances[s]) for f in found], expected)


@pytest.mark.slow
def test_batch_checks_its_rows(rows):
    x, labels = rows
    idx = np.array([[0, 1, N]])
    with pytest.raises(InputError, match=r"row_idx: expected rows in \[0, 1037\), found 0 to 1037"):
        batched.search(x, idx, np.zeros((1, 1, 3), int), (1,))
    with pytest.raises(InputError, match="group_id: expected shape"):
        batched.search(x, idx - 1, np.zeros((1, 1, 2), int), (1,))
    with pytest.raises(TypeError, match="row_idx"):
        batched.search(x, idx / 2, np.zeros((1, 1, 3), int), (1,))
