"""MaRI and CRoMa against croma and a float64 brute force, and values that follow from geometry."""

import warnings

import hypothesis
import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
from row_sources import Elsewhere

from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.embeddings import store_writer
from pathorob_jax.evaluation import run
from pathorob_jax.kernels.neighbors import pair_distances
from pathorob_jax.kernels.neighbors.search import Neighbors, find_neighbors, find_typed_neighbors
from pathorob_jax.metrics import margins
from pathorob_jax.results import result_files

# Selected distances are right to about 1e-7 relative; margins subtract two of them.
ATOL = 1e-6


def refined(x, bio, center, slide, k, m=5):
    found = find_typed_neighbors(x, slide, bio, center, k=k, m=m)
    return [pair_distances.refine_distances(x, one) for one in found]


def measure(x, bio, center, slide, k, m=5):
    """MaRI and the tail of CRoMa of one scope."""
    nearest, same_other, other_same = refined(x, bio, center, slide, k, m)
    decisive = margins.decisive_neighbors(nearest.indices, bio, center)
    distances = pair_distances.list_distances(x, decisive)
    typed = margins.typed_distances(distances, nearest.indices, bio, center)
    tau = margins.choose_tau([typed], k)
    values = margins.sample_margins(same_other.distances, other_same.distances)
    mari = margins.margin_robustness_index([typed], k, tau=tau)
    return mari, margins.summarise_margins([values]), values


def case(rng, n=160, shift=3.0):
    """Two classes x two centres; a common shift brings all rows near each other."""
    bio, center = np.arange(n) % 2, np.arange(n) // 2 % 2
    slide = (bio * 2 + center) * 4 + rng.integers(0, 4, n)
    x = rng.normal(size=(n, 24)) + shift
    x[:, 0] += bio
    x[:, 1] += 1.2 * center
    return x.astype(np.float32), bio, center, slide


def brute_margins(x, bio, center, slide, m):
    """CRoMa per sample in float64; NaN where a list is not full or all distances are 0."""
    indices, distances = oracles.nearest(x, slide, len(x))
    out = np.full(len(x), np.nan)
    for i in range(len(x)):
        lists = {"so": [], "os": []}
        for j, d in zip(indices[i], distances[i], strict=True):
            if j < 0:
                continue
            same = (bio[i] == bio[j], center[i] == center[j])
            if same == (True, False):
                lists["so"].append(d)
            elif same == (False, True):
                lists["os"].append(d)
        if min(len(lists["so"]), len(lists["os"])) >= m:
            a, b = np.mean(lists["so"][:m]), np.mean(lists["os"][:m])
            out[i] = (b - a) / (b + a) if a + b > 0 else np.nan
    return out


def croma_frame(bio, center, slide, **columns):
    pd = pytest.importorskip("pandas")
    n = len(bio)
    labels = {"sample_id": np.arange(n), "image_path": np.arange(n), "group_id": slide}
    return pd.DataFrame(labels | {"label": bio, "center": center} | columns).astype(str)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.5, 3.0, 10.0])
@pytest.mark.parametrize("k", [5, pytest.param(20, marks=pytest.mark.campaign)])
def test_equals_croma(rng, shift, k):
    croma = pytest.importorskip("croma")
    x, bio, center, slide = case(rng, shift=shift)
    mari, tail, values = measure(x, bio, center, slide, k)
    frame = croma_frame(bio, center, slide)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # croma's advice on tau and support
        # float64: croma's own distances would otherwise hold the noise of float32 cosines.
        exact = x.astype(np.float64)
        theirs = croma.MaRI.compute(exact, frame, confounder_column="center", k_candidates=[k])
        deep = croma.CRoMa.compute(exact, frame, confounder_column="center", m=5)
    np.testing.assert_allclose(mari.value, theirs.value, atol=ATOL)
    np.testing.assert_allclose(mari.support, theirs.support, atol=1e-12)
    np.testing.assert_allclose(values, deep.sample_values, atol=ATOL)
    np.testing.assert_allclose(tail.median, deep.value, atol=ATOL)
    np.testing.assert_allclose(tail.q, deep.q_alpha, atol=ATOL)
    np.testing.assert_allclose(tail.ltm, deep.ltm_alpha, atol=ATOL)
    assert tail.f0 == deep.f0
    assert tail.support == 1.0


@pytest.mark.slow
def test_paired_design_equals_croma(rng, tmp_path):
    croma = pytest.importorskip("croma")
    n = 240
    bio, center = rng.integers(0, 3, n), rng.integers(0, 2, n)
    slide = center * 6 + rng.integers(0, 6, n)
    x = (rng.normal(size=(n, 16)) + 2).astype(np.float32)
    x[:, 0] += bio
    manifest = as_manifest(
        {
            "slide_id": [f"s{s}" for s in slide],
            "patch_id": [str(i) for i in range(n)],
            "biological_class": [f"b{b}" for b in bio],
            "medical_center": [f"m{c}" for c in center],
        }
    )
    writer = store_writer.create_store(
        str(tmp_path / "m" / "d"), manifest=manifest, dim=16, chunk_rows=n, identity={}
    )
    writer.write(0, x).result()
    opened = writer.commit()
    rows, names = [], []
    for pair in ((0, 1), (0, 2), (1, 2)):
        inside = np.flatnonzero(np.isin(bio, pair))
        rows += inside.tolist()
        names += [f"{pair[0]}-{pair[1]}"] * len(inside)
    view = manifest.take(np.array(rows)).table.append_column("subset", [names])
    path = tmp_path / "view.csv"
    columns = view.to_pydict()
    lines = [",".join(columns), *(",".join(r) for r in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    [written] = run.evaluate_store(
        opened,
        model="m",
        dataset="d",
        output=str(tmp_path / "results"),
        metrics=["margins"],
        manifest=str(path),
        settings=run.Settings(k=7, design="paired"),
    ).paths
    got = result_files.read_result(written)
    rows = np.array(rows)
    frame = croma_frame(bio[rows], center[rows], slide[rows], subset=names)
    frame["sample_id"] = rows.astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = x[rows].astype(np.float64)
        design = {"confounder_column": "center", "evaluation_design": "paired_2x2"}
        theirs = croma.MaRI.compute(exact, frame, k_candidates=[7], **design)
        deep = croma.CRoMa.compute(exact, frame, m=5, **design)
    np.testing.assert_allclose(got.mari, theirs.value, atol=ATOL)
    np.testing.assert_allclose(got.croma, deep.value, atol=ATOL)
    np.testing.assert_allclose(got.croma_f0, deep.f0, atol=1e-12)
    np.testing.assert_allclose(got.croma_ltm10, deep.ltm_alpha, atol=ATOL)


@pytest.mark.slow
def test_distances_keep_their_digits_where_cosines_do_not(rng):
    # Rows a ten-thousandth apart: 1 - cos is 1e-8, below float32's resolution of a cosine.
    base = rng.normal(size=64)
    x = (base + 1e-4 * rng.normal(size=(50, 64))).astype(np.float32)
    exact = x.astype(np.float64)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    expected = 0.5 * ((unit[:, None, :] - unit[None, :, :]) ** 2).sum(2)
    every = np.broadcast_to(np.arange(50, dtype=np.int32), (50, 50))
    got = pair_distances.refine_distances(x, Neighbors(every, np.zeros((50, 50), np.float32)))
    ordered = np.take_along_axis(expected, got.indices, axis=1)
    # Coordinates of size 1 are rounded to 6e-8, differences are 1e-4: a thousandth of them at most.
    np.testing.assert_allclose(got.distances, ordered, rtol=5e-3, atol=1e-12)
    assert (np.diff(got.distances, axis=1) >= 0).all()
    far = (rng.normal(size=(50, 64))).astype(np.float32)
    nearest = find_neighbors(far, np.arange(50), k=9)
    again = pair_distances.refine_distances(far, nearest)
    np.testing.assert_array_equal(again.indices, nearest.indices)
    np.testing.assert_allclose(
        again.distances, oracles.nearest(far, np.arange(50), 9)[1], rtol=2e-6
    )


@pytest.mark.parametrize("n", [1, 11, 190])
def test_pairs_of_any_number_are_measured(rng, n):
    # 190 x 190 pairs are more than one call holds.
    x = rng.normal(size=(n, 8)).astype(np.float32)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    every = np.broadcast_to(np.arange(n, dtype=np.int32), (n, n))
    assert n < 190 or n * n > pair_distances.TILE_PAIRS * pair_distances.CALL_TILES
    got = pair_distances.list_distances(x, every)
    np.testing.assert_allclose(got, 1 - unit @ unit.T, rtol=2e-6, atol=1e-12)
    assert pair_distances.list_distances(x, every[:, :0]).shape == (n, 0)


def test_distances_by_blocks_are_those_in_memory_to_the_bit(rng):
    """300 rows are five blocks, the last one not full; some lists have holes."""
    x = rng.normal(size=(300, 8)).astype(np.float32)
    x[7] = x[250]
    lists = rng.integers(-1, 300, (290, 6)).astype(np.int32)
    lists[7, 0] = 250
    got = pair_distances.list_distances(Elsewhere(x), lists)
    np.testing.assert_array_equal(got, pair_distances.list_distances(x, lists))
    assert got[7, 0] == 0
    assert np.isinf(got[lists < 0]).all()


def test_collapsed_rows_by_blocks_are_those_in_memory_to_the_bit(rng, monkeypatch):
    """All pairs are near ones, more in a pair of blocks than a block has rows."""
    x = (1 + 1e-3 * rng.normal(size=(300, 8))).astype(np.float32)
    x[200:240] = x[40:80]
    lists = rng.integers(0, 300, (290, 11)).astype(np.int32)
    lists[40:80, 0] = np.arange(200, 240)
    made = []
    rows = pair_distances.Rows
    monkeypatch.setattr(pair_distances, "Rows", lambda a: made.append(len(a)) or rows(a))
    got = pair_distances.list_distances(Elsewhere(x), lists)
    assert made == [64] * 5  # lengths in float64 are measured once for each block
    np.testing.assert_array_equal(got, pair_distances.list_distances(x, lists))
    assert (got < pair_distances.NEAR).mean() > 0.99
    assert (got[40:80, 0] == 0).all()


def test_absent_neighbours_stay_absent_and_last(rng):
    x = rng.normal(size=(6, 8)).astype(np.float32)
    found = find_neighbors(x, np.array([0, 0, 0, 0, 1, 2]), k=9)
    again = pair_distances.refine_distances(x, found)
    np.testing.assert_array_equal(again.indices, found.indices)
    np.testing.assert_array_equal(np.isinf(again.distances), found.indices < 0)


def test_the_curve_is_that_of_each_k_by_itself(rng):
    """Ranks that bring a nearer neighbour than those before, absent ones, two scopes."""
    scopes = []
    for n in (30, 20):
        d = np.sort(rng.uniform(0.1, 2, (n, 12)), axis=1).astype(np.float32)
        kind = rng.integers(0, 3, (n, 12))
        kind[: n // 2, :4] = 0  # neither SO nor OS
        so, os_ = (np.where(kind == k, d, np.inf).astype(np.float32) for k in (1, 2))
        so[0, 7] = 0.01
        scopes.append(margins.TypedDistances(so, os_))
    ks = [1, 5, 7, 8, 12, 40]
    curve = margins.margin_curve(scopes, ks, tau=0.2)
    for k, got in zip(ks, curve, strict=True):
        so, os_ = (np.concatenate([scope[i] for scope in scopes])[:, :k] for i in (0, 1))
        total = [np.exp(-d.astype(np.float64) / 0.2).sum() for d in (so, os_)]
        assert got.value == pytest.approx(total[0] / sum(total), rel=1e-12)
        assert got.nearest == min(so.min(), os_.min())
        assert got.support == np.isfinite(np.minimum(so, os_)).any(1).mean()
        assert got == margins.margin_robustness_index(scopes, k, tau=0.2)
    assert len({got.nearest for got in curve}) > 1
    assert 0 < curve[0].support < 1


@pytest.mark.slow
@pytest.mark.parametrize("m", [1, 5])
def test_sample_margins_equal_brute_force(rng, m):
    x, bio, center, slide = case(rng, n=60)
    slide = np.where(rng.random(60) < 0.5, slide, center)  # some slides hold most of a centre
    _, tail, values = measure(x, bio, center, slide, 7, m)
    expected = brute_margins(x, bio, center, slide, m)
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    np.testing.assert_allclose(values, expected, atol=ATOL)
    assert tail.support == np.mean(~np.isnan(expected))


@pytest.mark.slow
def test_a_sample_without_enough_neighbours_is_undefined_and_counted(rng):
    x, bio, center, slide = case(rng, n=40)
    slide = bio * 2 + center  # one slide a cell
    bio = bio.copy()
    bio[:3] = 2  # three samples of a class that no other centre has
    center = center.copy()
    center[:3] = 0
    slide[:3] = 0
    _, tail, values = measure(x, bio, center, slide, 5)
    assert np.isnan(values[:3]).all()
    assert tail.support == 37 / 40
    assert np.isfinite(tail.median)


@pytest.mark.slow
def test_collapsed_embeddings_are_undefined_not_a_number():
    bio, center = np.arange(40) % 2, np.arange(40) // 2 % 2
    x = np.ones((40, 4), np.float32)
    mari, tail, values = measure(x, bio, center, np.arange(40), 5)
    assert np.isnan(values).all()
    assert tail.support == 0.0
    assert np.isnan([tail.median, tail.f0, tail.q, tail.ltm]).all()
    # MaRI's weights are all exp(0): it is the plain index of the first rows by order.
    indices = oracles.nearest(x, np.arange(40), 5)[0]
    np.testing.assert_allclose(
        mari.value, oracles.robustness_index(indices, bio, center, 5), rtol=1e-12
    )
    assert mari.tau == margins.TAU_FALLBACK


def test_no_decisive_neighbour_leaves_mari_undefined():
    nothing = margins.TypedDistances(np.full((4, 3), np.inf), np.full((4, 3), np.inf))
    got = margins.margin_robustness_index([nothing], 3, tau=margins.choose_tau([nothing], 3))
    assert np.isnan(got.value)
    assert got.support == 0.0


def test_mari_weighs_by_distance():
    # One SO at distance 0 and one OS at tau: weights 1 and 1/e.
    inf = np.inf
    typed = margins.TypedDistances(np.array([[0.0, inf]]), np.array([[inf, 0.3]]))
    got = margins.margin_robustness_index([typed], 2, tau=0.3)
    np.testing.assert_allclose(got.value, 1 / (1 + np.exp(-1)), rtol=1e-12)
    # Distances that are thousands of tau do not underflow to 0 / 0.
    far = margins.TypedDistances(np.array([[500.0, inf]]), np.array([[inf, 500.3]]))
    np.testing.assert_allclose(
        margins.margin_robustness_index([far], 2, tau=0.3).value, got.value, rtol=1e-9
    )


@pytest.mark.slow
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=8, deadline=None)
def test_swapping_class_and_center_mirrors_both(seed):
    rng = np.random.default_rng(seed)
    x, bio, center, _ = case(rng, n=48)
    slide = np.arange(48)
    one, one_tail, one_values = measure(x, bio, center, slide, 7)
    other, other_tail, other_values = measure(x, center, bio, slide, 7)
    np.testing.assert_allclose(other.value, 1 - one.value, rtol=1e-6)
    np.testing.assert_allclose(other_values, -one_values, atol=1e-12)
    np.testing.assert_allclose(other_tail.median, -one_tail.median, atol=1e-12)


def test_a_file_of_one_block_is_read_whole(rng):
    x = rng.normal(size=(11, 8)).astype(np.float32)
    lists = np.array([[1, 2], [-1, 10], [0, -1]], np.int32)
    got = pair_distances.list_distances(Elsewhere(x), lists)
    np.testing.assert_array_equal(got, pair_distances.list_distances(x, lists))
    np.testing.assert_array_equal(np.isinf(got), lists < 0)
