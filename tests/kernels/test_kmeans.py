"""K-means against scikit-learn, run for run from the same first centres, and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kmeans_runs import D, N, make_rows, same_partition, sklearn_fit
from sklearn.metrics import adjusted_rand_score

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.kernels.clustering import kmeans, kmeans_moves, kmeans_points
from pathorob_jax.kernels.clustering import kmeans_steps as steps
from pathorob_jax.kernels.clustering.kmeans import fit_kmeans, run_lloyd, scramble
from pathorob_jax.kernels.clustering.kmeans_draws import draw_inits
from pathorob_jax.kernels.clustering.kmeans_points import prepare_points


def plain_spherical(unit, init):
    """Lloyd's algorithm by cosine, float64; labels at rest."""
    centers, labels = unit[init].astype(np.float64), None
    while True:
        cosine = unit.astype(np.float64) @ (centers / np.linalg.norm(centers, axis=1)[:, None]).T
        new = cosine.argmax(1)
        if labels is not None and (new == labels).all():
            return labels, (1 - cosine.max(1)).sum()
        labels = new
        centers = np.stack([unit[labels == k].sum(0, dtype=np.float64) for k in range(len(init))])


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [0, 6])
def test_labels_are_scikit_learns(rng, clusters):
    x = make_rows(rng, clusters=clusters)
    # Widths of 4 to 32, the least and the most of one among them, and one shared by two.
    numbers = [2, 4, 5, 8, 9, 13, 16, 17, 24, 30]
    fits = fit_kmeans(prepare_points(x), numbers, range(7, 17), n_init=4)
    theirs = [sklearn_fit(x, k, 7 + i, 4) for i, k in enumerate(numbers)]
    equal = [same_partition(a, b.labels_) for a, b in zip(fits.labels, theirs, strict=True)]
    assert sum(equal) >= 0.95 * len(equal), equal
    np.testing.assert_allclose(fits.inertia, [f.inertia_ for f in theirs], rtol=1e-5)
    iterations = np.array([f.n_iter_ for f in theirs])
    np.testing.assert_array_equal(fits.n_iter[equal], iterations[equal])
    assert fits.labels.min() == 0
    np.testing.assert_array_equal(fits.labels.max(1) + 1, numbers)


def test_every_run_is_scikit_learns_not_only_the_best(rng):
    x = make_rows(rng, clusters=6)
    points = prepare_points(x)
    draws = draw_inits(points, 7, seed=3, n_init=12, init="random")
    runs = run_lloyd(points, draws)
    equal = 0
    for i, init in enumerate(draws):
        alone = sklearn_fit(x, 7, 0, 1, init=x[init])
        equal += same_partition(runs.labels[i], alone.labels_)
        np.testing.assert_allclose(runs.inertia[i], alone.inertia_, rtol=1e-4)
        # Inertia is that of the labels and the last centres.
        centers = np.stack([x[runs.labels[i] == k].mean(0) for k in range(7)])
        exact = ((x - centers[runs.labels[i]]).astype(np.float64) ** 2).sum()
        np.testing.assert_allclose(runs.inertia[i], exact, rtol=1e-5)
    assert equal >= 11
    fit = fit_kmeans(points, [7], [3], n_init=12)
    assert fit.inertia[0] == runs.inertia.min()
    np.testing.assert_array_equal(fit.labels[0], runs.labels[runs.inertia.argmin()])


@pytest.mark.parametrize("n", [30, 300])
def test_random_draws_are_those_of_choice(rng, n):
    """Also where a row is drawn twice and another takes its place."""
    points = prepare_points(make_rows(rng, n))
    share = np.full(n, 1 / n, np.float32)
    for k in (1, 2, 13, 30):
        for seed in range(10):
            generator = np.random.RandomState(seed)
            for ours in draw_inits(points, k, seed=seed, n_init=3, init="random"):
                theirs = generator.choice(n, size=k, replace=False, p=share)
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(N, D), (40, D)])
def test_plusplus_draws_are_scikit_learns(rng, shape):
    x = make_rows(rng, *shape, clusters=4)
    fits = fit_kmeans(prepare_points(x), [5, 6], [1, 2], n_init=3, init="k-means++")
    for i, k in enumerate((5, 6)):
        theirs = sklearn_fit(x, k, 1 + i, 3, init="k-means++")
        assert same_partition(fits.labels[i], theirs.labels_)


@pytest.mark.slow
def test_inner_products_and_rows_give_the_same(rng, monkeypatch):
    # Products of rows where N <= 8 D, the rows themselves elsewhere or where memory is short.
    x = make_rows(rng, 120, 100, clusters=5)
    with_products = prepare_points(x)
    with_rows = prepare_points(x, budget_bytes=2 * 4 * 120 * 120 - 1)
    assert with_products.is_gram
    assert not with_rows.is_gram
    assert prepare_points(x[:, :15]).is_gram
    assert not prepare_points(x[:, :14]).is_gram
    a, b = (fit_kmeans(p, [3, 9], [0, 1], n_init=5) for p in (with_products, with_rows))
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.n_iter, b.n_iter)
    np.testing.assert_allclose(a.inertia, b.inertia, rtol=1e-5)


@pytest.mark.campaign
@pytest.mark.slow
def test_tolerance_ends_a_run_where_scikit_learns_does(rng):
    # In two dimensions and with many rows a centre moves by less than the tolerance long before
    # the labels come to rest; then they are taken anew from the last centres.
    x = rng.normal(size=(2000, 2)).astype(np.float32)
    points = prepare_points(x)
    for tol in (1e-4, 1e-2, 0.0):
        fit = fit_kmeans(points, [6, 7], [1, 2], n_init=1, tol=tol)
        theirs = [sklearn_fit(x, k, s, 1, tol=tol) for k, s in ((6, 1), (7, 2))]
        np.testing.assert_array_equal(fit.n_iter, [f.n_iter_ for f in theirs])
        for ours, f in zip(fit.labels, theirs, strict=True):
            assert same_partition(ours, f.labels_)
    at_rest = fit_kmeans(points, [6, 7], [1, 2], n_init=1, tol=0.0)
    early = fit_kmeans(points, [6, 7], [1, 2], n_init=1, tol=1e-2)
    assert (early.n_iter < at_rest.n_iter).all()


def test_max_iter_ends_a_run_as_in_scikit_learn(rng):
    x = make_rows(rng)
    fit = fit_kmeans(prepare_points(x), [9], [4], n_init=1, max_iter=3)
    theirs = sklearn_fit(x, 9, 4, 1, max_iter=3)
    assert fit.n_iter[0] == theirs.n_iter_ == 3
    assert same_partition(fit.labels[0], theirs.labels_)
    np.testing.assert_allclose(fit.inertia[0], theirs.inertia_, rtol=1e-5)


def test_runs_that_meet_are_followed_once(rng, monkeypatch):
    # Three far groups: nearly all runs come to one partition, on different ways.
    x = make_rows(rng, clusters=3)
    points = prepare_points(x)
    draws = draw_inits(points, 3, seed=0, n_init=40, init="random")
    told = []
    runs = run_lloyd(points, draws, on_progress=told.append)
    assert sum(told) == 40
    merged = []
    plain = kmeans._Batch._merge
    monkeypatch.setattr(kmeans._Batch, "_merge", lambda *a: merged.append(a))
    apart = run_lloyd(points, draws)
    assert len(merged) > 40  # iterations that a merge might have spared
    np.testing.assert_array_equal(runs.n_iter, apart.n_iter)
    np.testing.assert_allclose(runs.inertia, apart.inertia, rtol=1e-6)
    for a, b in zip(runs.labels, apart.labels, strict=True):
        assert same_partition(a, b)
    seen = []

    def count(self, slot, mark):
        plain(self, slot, mark)
        seen.append(dict(self._merged))

    monkeypatch.setattr(kmeans._Batch, "_merge", count)
    run_lloyd(points, draws)
    assert len(seen[-1]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("d", [3, 200])
def test_empty_clusters_are_filled_as_in_scikit_learn(rng, d):
    # Equal first centres: the first wins all rows, the others none, and the farthest rows move.
    x = rng.normal(size=(200, d)).astype(np.float32)
    x[[1, 2]] = x[0]
    first = np.array([0, 1, 2, 50, 60])
    theirs = sklearn_fit(x, 5, 0, 1, init=x[first])
    ours = run_lloyd(prepare_points(x), [first])
    assert len(np.unique(ours.labels)) == 5
    assert same_partition(ours.labels[0], theirs.labels_)
    np.testing.assert_allclose(ours.inertia[0], theirs.inertia_, rtol=1e-5)
    assert ours.n_iter[0] == theirs.n_iter_


def test_fill_takes_the_farthest_rows(rng):
    # One run, four places of which three exist; clusters 1 and 2 are empty.
    scores = np.zeros((4, 5), np.float32)
    norm2 = np.array([0.0, 9, 9, np.inf], np.float32)
    row_norm2 = np.array([1.0, 5, 2, 8, 3], np.float32)
    labels = np.zeros((1, 5), np.int32)
    empty = np.array([[False, True, True, False]])
    fill = {"width": 4, "spherical": False}
    got = steps.fill_empty(scores, norm2, row_norm2, labels, empty, **fill)
    np.testing.assert_array_equal(got, [[0, 2, 0, 1, 0]])
    # All rows on their centre: nothing to gain.
    scores[0] = row_norm2 / 2 * (1 - 1e-7)
    on = steps.fill_empty(scores, norm2, row_norm2, labels, empty, **fill)
    np.testing.assert_array_equal(on, labels)


@pytest.mark.campaign
@pytest.mark.parametrize("d", [5, 60])
def test_more_clusters_than_points(rng, d):
    """Four different rows in a hundred: equal rows stay together, whatever K asks for."""
    x = make_rows(rng, 4, d)[rng.integers(4, size=100)]
    fits = fit_kmeans(prepare_points(x), [2, 4, 9, 30], [0, 1, 2, 3], n_init=4)
    _, kind = np.unique(x, axis=0, return_inverse=True)
    for i, k in enumerate((2, 4, 9, 30)):
        labels = fits.labels[i]
        # Each kind of row in one cluster.
        assert len(set(zip(kind.reshape(-1).tolist(), labels.tolist(), strict=True))) == 4
        # Which of equally far rows fills an empty cluster is open, and may end better or worse.
        theirs = sklearn_fit(x, k, i, 4)
        if k != 4:
            # scikit-learn may part equal rows, as rounding has it.
            expected = theirs.labels_ if k < 4 else kind.reshape(-1)
            assert adjusted_rand_score(labels, expected) == 1
        assert fits.inertia[i] <= theirs.inertia_ * (1 + 1e-5) + 1e-5
    assert (fits.n_iter < 300).all()


def test_equal_rows_have_equal_products(rng):
    x = rng.normal(size=(6, 9)).astype(np.float32)
    np.testing.assert_array_equal(steps.find_first_equal(x[[0, 1, 0, 2, 1, 0]]), [0, 1, 0, 3, 1, 0])
    first = np.array([0, 1, 0, 3, 1, 0], np.int32)
    near = np.repeat(x[:1], 3, axis=0)
    near[1, -1] += 1  # beyond the coordinates that are compared first
    np.testing.assert_array_equal(steps.find_first_equal(near), [0, 1, 0])
    np.testing.assert_array_equal(steps.find_first_equal(x), np.arange(6))
    products = np.asarray(steps.make_gram(x, first))
    np.testing.assert_allclose(products, (x @ x.T)[first][:, first], rtol=1e-5, atol=1e-5)
    on_host = kmeans_points.multiply_rows(x, first)
    np.testing.assert_allclose(on_host, products, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(on_host[[2, 4, 5]], on_host[[0, 1, 0]])


def test_products_on_the_host_are_rounded_once(rng):
    """Over several blocks of rows, the last one smaller."""
    x = rng.normal(size=(2 * kmeans_points.ROWS_PER_PRODUCT + 7, 133)).astype(np.float32)
    products = np.asarray(prepare_points(x).rows)
    centred = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    exact = centred.astype(np.longdouble) @ centred.T.astype(np.longdouble)
    # Sums in float64 are wrong by 1e-16 of the norms, rounding by half a unit of float32.
    np.testing.assert_allclose(products, exact.astype(np.float64), rtol=6.0e-8, atol=1e-13)


@pytest.mark.slow
def test_one_cluster_and_as_many_as_rows(rng):
    x = make_rows(rng, 30, 8)
    fits = fit_kmeans(prepare_points(x), [1, 30], [0, 0], n_init=2)
    assert not fits.labels[0].any()
    np.testing.assert_allclose(fits.inertia[0], ((x - x.mean(0)) ** 2).sum(), rtol=1e-5)
    assert sorted(fits.labels[1].tolist()) == list(range(30))
    np.testing.assert_allclose(fits.inertia[1], 0, atol=1e-5)


def test_rows_far_from_the_origin_keep_their_digits(rng):
    # Centred first, as scikit-learn does.
    x = make_rows(rng, clusters=6) + np.float32(100)
    fit = fit_kmeans(prepare_points(x), [6], [0], n_init=3)
    theirs = sklearn_fit(x.astype(np.float64), 6, 0, 3)
    assert adjusted_rand_score(fit.labels[0], theirs.labels_) > 0.99


def test_spherical_equals_a_plain_loop(rng):
    x = make_rows(rng, clusters=5)
    points = prepare_points(x, spherical=True)
    draws = draw_inits(points, 5, seed=1, n_init=6, init="random")
    runs = run_lloyd(points, draws)
    for i, init in enumerate(draws):
        labels, inertia = plain_spherical(x, init)
        assert same_partition(runs.labels[i], labels)
        np.testing.assert_allclose(runs.inertia[i], inertia, rtol=1e-5)
    # Another question than k-means on the same rows.
    euclidean = run_lloyd(prepare_points(x), draws)
    assert not np.array_equal(runs.labels, euclidean.labels)


@pytest.mark.slow
def test_a_small_budget_changes_nothing_but_the_batch(rng, monkeypatch):
    x = make_rows(rng, clusters=6)
    points = prepare_points(x)
    runs = draw_inits(points, 8, seed=0, n_init=9, init="random")
    least = 8 * N * kmeans.BYTES_PER_SCORE
    assert kmeans.count_columns(8, points, budget_bytes=least) == 8
    assert kmeans.count_columns(8, points, budget_bytes=2**40) == kmeans.CPU_COLUMNS
    small, large = run_lloyd(points, runs, budget_bytes=least), run_lloyd(points, runs)
    np.testing.assert_array_equal(small.labels, large.labels)
    np.testing.assert_array_equal(small.n_iter, large.n_iter)
    with pytest.raises(InputError, match=f"a run of 8 clusters on 300 rows needs {least} bytes"):
        run_lloyd(points, runs, budget_bytes=least - 1)


def test_one_trace_serves_all_numbers_of_clusters_up_to_a_width(rng):
    points = prepare_points(make_rows(rng))
    fit_kmeans(points, [9, 16], [0, 1], n_init=3)
    programs = (steps.assign_rows, steps.find_changed, steps.read_out)
    before = [f._cache_size() for f in programs]
    moves = steps.move_centers._cache_size()
    fit_kmeans(points, [10, 11, 12, 13, 14, 15], range(6), n_init=5)
    assert before == [f._cache_size() for f in programs]
    # Changed clusters are padded to one of a few lengths.
    assert steps.move_centers._cache_size() <= moves + steps.MOST_HALVINGS


@pytest.mark.parametrize("is_gram", [True, False])
def test_each_width_is_compiled_once(rng, is_gram):
    """The first step has new arrays, later ones those of programs: the same to a program."""
    n = 131 if is_gram else 132  # no other test has these shapes
    points = prepare_points(make_rows(rng, n=n), budget_bytes=2**30 if is_gram else 4 * n * n)
    assert points.is_gram == is_gram
    programs = (steps.assign_rows, steps.compare_labels, steps.read_out)
    before = [f._cache_size() for f in programs]
    fit_kmeans(points, [3, 7], [0, 1], n_init=4)
    assert [f._cache_size() for f in programs] == [size + 2 for size in before]


@pytest.mark.campaign
def test_all_devices_give_the_same(rng):
    x = make_rows(rng, 60, 12)
    fits = []
    for device in (jax.devices()[0], jax.devices()[-1]):
        with jax.default_device(device):
            points = prepare_points(x)
            fits.append(fit_kmeans(points, [4, 6], [0, 1], n_init=3))
            assert points.device == device
    for a, b in zip(*fits, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "d"), [(30, 100), pytest.param(4000, 24, marks=pytest.mark.campaign)]
)
def test_sizes_from_30_to_4000(rng, n, d):
    x = make_rows(rng, n, d, clusters=4)
    numbers = [2, 3, 10, 29]
    fits = fit_kmeans(prepare_points(x), numbers, range(4), n_init=3)
    for i, k in enumerate(numbers):
        theirs = sklearn_fit(x, k, i, 3)
        np.testing.assert_allclose(fits.inertia[i], theirs.inertia_, rtol=1e-4)
        assert adjusted_rand_score(fits.labels[i], theirs.labels_) > 0.98


def test_refusals(rng):
    points = prepare_points(make_rows(rng, 40, 6))
    with pytest.raises(InputError, match="n_clusters: expected 1 to 40, the number of rows, found"):
        fit_kmeans(points, [41], [0], n_init=1)
    with pytest.raises(InputError, match="found 0"):
        fit_kmeans(points, [0], [0], n_init=1)
    with pytest.raises(UsageError, match="init: unknown name 'kmeans"):
        fit_kmeans(points, [2], [0], n_init=1, init="kmeans++")
    with pytest.raises(InputError, match=r"init_indices\[1\]: expected rows from 0 to 39"):
        run_lloyd(points, [[0, 1], [0, 40]])
    with pytest.raises(TypeError, match=r"init_indices\[0\]"):
        run_lloyd(points, [[0.0, 1.0]])


@pytest.fixture
def moved_rows(rng):
    """Products of 60 rows, and the clusters of two runs of 4 before and after a step."""
    x = make_rows(rng, 60, 20, clusters=4)
    before = rng.integers(0, 4, (2, 60)).astype(np.int32)
    member = np.where(rng.random((2, 60)) < 0.2, rng.integers(0, 4, (2, 60)), before)
    return x, (x @ x.T).astype(np.float32), before, member.astype(np.int32)


@pytest.mark.slow
def test_a_centre_moved_by_rows_is_the_mean(rng, moved_rows, monkeypatch):
    x, gram, before, member = moved_rows
    coefficients = rng.integers(2**32, size=(2, 60), dtype=np.uint32)
    columns = np.arange(8, dtype=np.int32)

    def from_all_rows(centers, old, new):
        at = (columns, columns // 4, columns % 4)
        return steps.move_centers(centers, gram, old, new, coefficients, *at, is_gram=True)

    # Calls of three columns, the last padded: what a call leaves out shows.
    monkeypatch.setattr(kmeans_moves, "SHIFTED_COLUMNS", 3)
    start = from_all_rows(
        steps.make_centers(8, 60, jax.devices()[0]), np.full_like(before, -1), before
    )
    kept = steps.Centers(*(np.asarray(a) for a in start))
    found = steps.Centers(*(jnp.array(a) for a in kept))
    column, row, sign = kmeans_moves.find_moves(before, member, width=4)
    calls = list(kmeans_moves.list_moves(column, row, sign, np.arange(8) != 5))
    assert len(calls) == 3
    for moves in calls:
        changes = kmeans_moves.add_moves(gram, moves)
        found = kmeans_moves.shift_centers(found, changes, coefficients, moves)
    for c in range(8):
        slot, cluster = divmod(c, 4)
        if c == 5:
            for a, b in zip(found, kept, strict=True):
                np.testing.assert_array_equal(a[c], b[c])
            continue
        is_in = member[slot] == cluster
        was, now = (x[m[slot] == cluster].astype(np.float64).mean(0) for m in (before, member))
        assert found.size[c] == is_in.sum()
        np.testing.assert_allclose(found.scores[c], x.astype(np.float64) @ now, atol=1e-5)
        np.testing.assert_allclose(found.norm2[c], now @ now, rtol=1e-5)
        np.testing.assert_allclose(found.shift[c], ((now - was) ** 2).sum(), rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(found.mark[c], coefficients[:, is_in].sum(1, dtype=np.uint32))


@pytest.mark.parametrize("width", [4, 32])
def test_a_row_between_equal_centres_goes_to_the_first(rng, width):
    """As in scikit-learn; clusters that a run lacks, at infinity, get none."""
    scores = rng.integers(0, 3, (64, 50)).astype(np.float32)
    norm2 = rng.integers(0, 3, 64).astype(np.float32)
    norm2[width - 1 :: width] = np.inf
    before = np.full((64 // steps.LEAST_CLUSTERS, 50), -1, np.int32)
    labels = steps.assign_rows(scores, norm2, before, width=width, spherical=False)
    distance = (norm2[:, None] - 2 * scores).reshape(-1, width, 50)
    n_slots = 64 // width
    np.testing.assert_array_equal(labels[:n_slots], distance.argmin(1))
    assert (distance == distance.min(1, keepdims=True)).sum(1).max() > 1
    assert (np.asarray(labels)[n_slots:] == -1).all()
    same, has_rows = steps.compare_labels(labels, np.asarray(labels), width=width)
    assert same.all()
    expected = [np.isin(np.arange(width), slot) for slot in distance.argmin(1)]
    np.testing.assert_array_equal(has_rows, expected)


def test_sums_of_few_rows_are_the_products_with_their_sum(moved_rows):
    x, gram, _, member = moved_rows
    slot, cluster = np.array([0, 1, 2, 1], np.int32), np.array([3, 0, 0, 9], np.int32)
    sums = kmeans_moves.add_members(gram, member, slot, cluster)
    x = x.astype(np.float64)
    np.testing.assert_allclose(sums[0], x @ x[member[0] == 3].sum(0), atol=1e-4)
    np.testing.assert_allclose(sums[1], x @ x[member[1] == 0].sum(0), atol=1e-4)
    # A slot past the last one, and a cluster without rows.
    assert not sums[2:].any()


def test_a_mark_depends_on_the_partition_alone(rng, moved_rows):
    _, _, before, member = moved_rows
    coefficients = rng.integers(2**32, size=(2, 60), dtype=np.uint32)

    def mark(labels):
        sums = [coefficients[:, labels == c].sum(1, dtype=np.uint32) for c in range(4)]
        return scramble(np.stack(sums)).sum(dtype=np.uint64)

    assert mark(before[0]) == mark(3 - before[0])
    # The sum over clusters of the coefficients alone is the same for all partitions.
    assert len({int(mark(labels)) for labels in (*before, *member)}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("n", [0, 1, 16, 17, 49, 64, 100, 128])
def test_calls_hold_each_column_once(n, few):
    columns = np.arange(n) * 2
    calls = steps.split_columns(columns, 256, few=few)
    joined = np.concatenate([np.zeros(0, int), *calls])
    np.testing.assert_array_equal(joined[joined < 256], columns)
    assert {len(call) for call in calls} <= ({16, 64} if few else {16, 32, 64, 128, 256})


def test_centres_move_by_rows_and_are_computed_anew_in_time(rng, monkeypatch):
    """On CPU late steps move by rows; at most two in a row where two are allowed."""
    columns, moved, anew = {}, [], []

    def shift(centers, changes, coefficients, moves):
        used = [int(c) for c in np.asarray(moves.at) if c < len(centers.norm2)]
        moved.extend(used)
        for column in used:
            columns[column] = columns.get(column, 0) + 1
            assert columns[column] <= 2
        return original_shift(centers, changes, coefficients, moves)

    def move(centers, rows, before, member, coefficients, at, slot, cluster, sums, *, is_gram):
        for column in np.asarray(at):
            columns[int(column)] = 0
        anew.append("products" if sums is None else "rows")
        parts = (before, member, coefficients, at, slot, cluster, sums)
        return original_move(centers, rows, *parts, is_gram=is_gram)

    original_shift, original_move = kmeans_moves.shift_centers, steps.move_centers
    monkeypatch.setattr(kmeans, "MOST_SHIFTS", 2)
    monkeypatch.setattr(kmeans_moves, "shift_centers", shift)
    monkeypatch.setattr(steps, "move_centers", move)
    x = make_rows(rng)
    fits = fit_kmeans(prepare_points(x), [9], [3], n_init=3)
    assert moved
    # Large clusters by a product with all rows, small ones by adding their rows.
    assert {"products", "rows"} <= set(anew[1:])
    assert same_partition(fits.labels[0], sklearn_fit(x, 9, 3, 3).labels_)
