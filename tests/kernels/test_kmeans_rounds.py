"""K-means in rounds, as on an accelerator, against the steps that the host decides."""

import jax
import numpy as np
import pytest
from kmeans_runs import make_rows, same_partition, sklearn_fit

from pathorob_jax.kernels.clustering import kmeans, kmeans_rounds
from pathorob_jax.kernels.clustering import kmeans_steps as steps
from pathorob_jax.kernels.clustering.kmeans import fit_kmeans, run_lloyd
from pathorob_jax.kernels.clustering.kmeans_draws import draw_inits
from pathorob_jax.kernels.clustering.kmeans_points import prepare_points

# Cases share few shapes: eight slots of width 16.
N, D, COLUMNS = 120, 40, 128
PROGRAMS = (
    kmeans_rounds.start_slots,
    kmeans_rounds.advance_slots,
    steps.read_slots,
)


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setattr(kmeans, "CPU_COLUMNS", COLUMNS)
    monkeypatch.setattr(kmeans_rounds, "LEAST_WIDTH", 16)
    # Several products per step, the last with fewer columns.
    monkeypatch.setattr(kmeans_rounds, "MOVED_COLUMNS", COLUMNS // 4)


@pytest.fixture
def in_rounds(monkeypatch):
    monkeypatch.setattr(kmeans_rounds, "advances_on_device", lambda points: True)


def check_equal(monkeypatch, points, draws, **options):
    """Each run in rounds is that of the host, which merges none, to the number of its clusters."""
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(kmeans._Batch, "_merge", lambda *_: None)
        expected = run_lloyd(points, draws, **options)
    with monkeypatch.context() as patch:
        patch.setattr(kmeans_rounds, "advances_on_device", lambda points: True)
        found = run_lloyd(points, draws, on_progress=told.append, **options)
        again = run_lloyd(points, draws, **options)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.n_iter, expected.n_iter)
    np.testing.assert_allclose(found.inertia, expected.inertia, rtol=1e-5, atol=1e-5)
    assert sum(told) == len(draws)
    for a, b in zip(found, again, strict=True):
        np.testing.assert_array_equal(a, b)
    return found


@pytest.mark.parametrize("n_runs", [3, 8, 30])
def test_rounds_give_what_the_host_gives(rng, monkeypatch, n_runs):
    """Fewer runs than slots, as many, and more; of 9 to 16 clusters."""
    points = prepare_points(make_rows(rng, N, D))
    draws = [
        draw_inits(points, 9 + i % 8, seed=i, n_init=1, init="random")[0] for i in range(n_runs)
    ]
    runs = check_equal(monkeypatch, points, draws)
    assert len(set(runs.n_iter.tolist())) > 1


@pytest.mark.parametrize(
    "options", [{"max_iter": 1}, {"max_iter": 3}, {"tol": 1.0}, {"tol": 100.0}]
)
def test_a_run_that_ends_early_stays_as_it_was(rng, monkeypatch, options):
    """Its labels have not come to rest, so that each further step would move it."""
    points = prepare_points(make_rows(rng, N, D))
    draws = draw_inits(points, 12, seed=5, n_init=14, init="random")
    runs = check_equal(monkeypatch, points, draws, **options)
    at_rest = check_equal(monkeypatch, points, draws)
    assert (runs.n_iter < at_rest.n_iter).any()
    assert (runs.labels != at_rest.labels).any()


def test_nothing_of_an_ended_run_changes(rng):
    points = prepare_points(make_rows(rng, N, D))
    init = np.stack([rng.permutation(N)[:16] for _ in range(8)]).astype(np.int32)
    slots = kmeans_rounds.make_slots(8, 16, N, points.device)
    slots = kmeans_rounds.start_slots(slots, points.rows, points.norm2, init, is_gram=True)

    def advance(slots, n_steps):
        numbers = (np.float32(-1), *np.array([300, 8, n_steps], np.int32))
        kind = {"is_gram": True, "width": 16, "spherical": False}
        return kmeans_rounds.advance_slots(slots, points.rows, points.norm2, *numbers, **kind)

    def by_slot(slots):
        return [np.array(a).reshape(8, -1) for a in jax.tree.leaves(slots)]

    slots = advance(slots, 1)
    stopped = np.arange(8) % 3 == 0
    slots = slots._replace(active=jax.device_put(~stopped, points.device))
    before = by_slot(slots)
    changes = []
    for a, b in zip(before, by_slot(advance(slots, 2)), strict=True):
        np.testing.assert_array_equal(a[stopped], b[stopped])
        changes.append((a[~stopped] != b[~stopped]).any())
    assert sum(changes) >= 6


def test_plusplus_draws(rng, monkeypatch):
    points = prepare_points(make_rows(rng, N, D, clusters=5))
    draws = draw_inits(points, 9, seed=5, n_init=3, init="k-means++")
    check_equal(monkeypatch, points, draws)


def test_empty_clusters(rng, monkeypatch):
    """Equal first centres, and more clusters than different rows."""
    x = make_rows(rng, N, D)
    x[[1, 2]] = x[0]
    first = [0, 1, 2, *range(50, 57)]
    points = prepare_points(x)
    runs = check_equal(monkeypatch, points, [first, [3, *first[1:]]])
    assert [len(np.unique(labels)) for labels in runs.labels] == [10, 10]
    theirs = sklearn_fit(x, 10, 0, 1, init=x[first])
    assert same_partition(runs.labels[0], theirs.labels_)
    assert runs.n_iter[0] == theirs.n_iter_
    kinds = rng.integers(4, size=N)
    equal = prepare_points(x[kinds + 10])
    draws = draw_inits(equal, 9, seed=0, n_init=9, init="random")
    runs = check_equal(monkeypatch, equal, draws)
    assert all(same_partition(labels, kinds) for labels in runs.labels)
    assert (runs.n_iter < 300).all()


@pytest.mark.slow
@pytest.mark.parametrize(("spherical", "is_gram"), [(True, True), (False, False), (True, False)])
def test_rows_by_cosine_and_without_inner_products(rng, monkeypatch, spherical, is_gram):
    x = make_rows(rng, N, D)
    budget = {"budget_bytes": 2**30 if is_gram else 4 * N * N}
    points = prepare_points(x, spherical=spherical, **budget)
    assert points.is_gram == is_gram
    draws = draw_inits(points, 11, seed=1, n_init=12, init="random")
    check_equal(monkeypatch, points, draws)


@pytest.mark.slow
def test_runs_are_scikit_learns(rng, in_rounds):
    x = make_rows(rng, N, D, clusters=6)
    points = prepare_points(x)
    fits = fit_kmeans(points, [2, 3, 7, 13], range(4), n_init=4)
    theirs = [sklearn_fit(x, k, i, 4) for i, k in enumerate([2, 3, 7, 13])]
    assert all(same_partition(a, b.labels_) for a, b in zip(fits.labels, theirs, strict=True))
    np.testing.assert_allclose(fits.inertia, [f.inertia_ for f in theirs], rtol=1e-5)
    np.testing.assert_array_equal(fits.n_iter, [f.n_iter_ for f in theirs])


def test_the_host_waits_for_rounds_not_for_steps(rng, monkeypatch, in_rounds):
    """Without waiting runs one round is all; where rounds are short, nothing else changes."""
    calls = []
    plain = kmeans_rounds.advance_slots

    def count(*arrays, **kind):
        calls.append(plain(*arrays, **kind))
        return calls[-1]

    monkeypatch.setattr(kmeans_rounds, "advance_slots", count)
    points = prepare_points(make_rows(rng, N, D))
    draws = draw_inits(points, 12, seed=5, n_init=8, init="random")
    long = run_lloyd(points, draws)
    assert long.n_iter.max() > 4
    assert len(calls) == 1
    monkeypatch.setattr(kmeans_rounds, "MOST_STEPS", 2)
    told = []
    short = run_lloyd(points, draws, on_progress=told.append)
    assert len(calls) == 1 + len(told) == 1 + -(-long.n_iter.max() // 2)
    assert sum(told) == 8
    for a, b in zip(long, short, strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_numbers_of_clusters_share_programs(rng, in_rounds):
    """Of one width, whatever the number of runs."""
    points = prepare_points(make_rows(rng, N + 1, D))  # no other test has this shape
    before = [f._cache_size() for f in PROGRAMS]
    fit_kmeans(points, [2, 9], [0, 1], n_init=9)
    assert [f._cache_size() for f in PROGRAMS] == [size + 1 for size in before]
    fit_kmeans(points, [3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16], range(12), n_init=4)
    assert [f._cache_size() for f in PROGRAMS] == [size + 1 for size in before]


def test_the_common_width_fits_the_budget():
    widths = [kmeans_rounds.common_width(*sizes) for sizes in ((4, 4), (4, 8), (8, 128), (64, 128))]
    assert widths == [4, 8, 16, 64]


def test_few_runs_have_few_columns():
    sizes = [kmeans_rounds.count_used_columns(n, 16, 16384) for n in (1, 4, 5, 64, 65, 1024, 2000)]
    assert sizes == [16, 64, 256, 1024, 4096, 16384, 16384]
    assert kmeans_rounds.count_used_columns(3, 32, 32) == 32


def test_accelerators_advance_in_rounds(rng, monkeypatch):
    points = prepare_points(make_rows(rng, 30, 8))
    assert not kmeans_rounds.advances_on_device(points)

    class Gpu:
        platform = "gpu"

    monkeypatch.setattr(type(points), "device", Gpu)
    assert kmeans_rounds.advances_on_device(points)


@pytest.mark.slow
def test_all_arrays_are_on_the_device_of_the_points(rng, in_rounds):
    x = make_rows(rng, N, D)
    fits = []
    for device in (jax.devices()[0], jax.devices()[-1]):
        with jax.default_device(device):
            points = prepare_points(x)
        fits.append(fit_kmeans(points, [9], [0], n_init=3))
        assert points.device == device
    for a, b in zip(*fits, strict=True):
        np.testing.assert_array_equal(a, b)
