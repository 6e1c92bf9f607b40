"""Clustering score: agreement, selection, the reference's numbers, and the record of a store."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import sklearn.metrics
from sklearn.cluster import KMeans
from stores import make_store, plan

from pathorob_jax.core import devices, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import protocols
from pathorob_jax.data.manifest import as_manifest, read_manifest
from pathorob_jax.embeddings import store
from pathorob_jax.evaluation import clustering_score_tasks
from pathorob_jax.evaluation.clustering_score import make_clustering_score
from pathorob_jax.evaluation.settings import ClusteringSettings, Settings
from pathorob_jax.kernels.bootstrap import draws
from pathorob_jax.kernels.clustering import label_agreement
from pathorob_jax.metrics import clustering_score
from pathorob_jax.results import result_files

QUICK = ClusteringSettings(trials=4, k_max=5, draws=200)


@pytest.fixture
def case(tmp_path, rng):
    """180 rows: 3 classes, 2 centres, 5 slides in each cell; class and centre both seen."""
    bio, center, slide, _ = (i.reshape(-1) for i in np.indices((3, 2, 5, 6)))
    slide = slide + 5 * (center + 2 * bio)
    order = rng.permutation(len(bio))
    bio, center, slide = bio[order], center[order], slide[order]
    x = rng.normal(size=(len(bio), 12)) + 1
    for ids, strength in ((bio, 1.3), (center, 0.8), (slide, 0.4)):
        x += strength * rng.normal(size=(ids.max() + 1, 12))[ids]
    x = x.astype(np.float32)
    rows = as_manifest(
        {
            "slide_id": [f"s{i}" for i in slide],
            "patch_id": [str(i) for i in range(len(bio))],
            "biological_class": [f"class{i}" for i in bio],
            "medical_center": [f"Center {i}" for i in center],
        }
    )
    return make_store(tmp_path / "store", x, rows), x, rows


def run(case, settings=QUICK, **arguments):
    opened, _, rows = case
    options = {"manifest": rows, "settings": Settings(clustering_score=settings)} | arguments
    return make_clustering_score(plan(opened, **options))


def plain(x, k_range, trials, *, metric="cosine"):
    """The protocol by scikit-learn alone: silhouettes, k, labels of the trials."""
    z = x / np.sqrt((x**2).sum(axis=1))[:, None] if metric == "cosine" else x
    scores = [
        sklearn.metrics.silhouette_score(
            z, KMeans(k, random_state=1337, init="random", n_init=20).fit(z).labels_, metric=metric
        )
        for k in k_range
    ]
    k = k_range[int(np.argmax(scores))]
    labels = [
        KMeans(k, random_state=1337 + t, init="random", n_init=5).fit(z).labels_
        for t in range(trials)
    ]
    return scores, k, labels


def random_tables(rng):
    """Pairs of labels and their tables; a cluster and a class are left empty."""
    tables, pairs = [], []
    for size in (6, 5, 3):
        clusters, classes = rng.integers(size, size=240), rng.integers(2, size=240)
        clusters = np.where(rng.random(240) < 0.4, classes, clusters)
        pairs.append((classes, clusters))
    pairs.append((np.zeros(240, int), np.zeros(240, int)))
    pairs.append((np.zeros(240, int), pairs[0][1]))
    pairs.append((pairs[0][0], np.zeros(240, int)))
    for classes, clusters in pairs:
        table = label_agreement.count_tables(
            clusters[None].astype(np.int32), classes.astype(np.int32), n_clusters=7, n_cells=3
        )
        tables.append(np.asarray(table)[0])
    return pairs, np.stack(tables)


def test_agreement_is_scikit_learns(rng):
    pairs, tables = random_tables(rng)
    information = label_agreement.mutual_information(tables)
    for got, function in (
        (label_agreement.adjusted_rand(tables), sklearn.metrics.adjusted_rand_score),
        (information.normalized, sklearn.metrics.normalized_mutual_info_score),
        (information.adjusted, sklearn.metrics.adjusted_mutual_info_score),
    ):
        np.testing.assert_allclose(got, [function(*p) for p in pairs], atol=1e-12)
    many = np.stack([rng.integers(30, size=20_000), rng.integers(5, size=20_000)])
    many[0, ::50] = many[1, ::50]  # some agreement, or both sides are rounding alone
    table = label_agreement.count_tables(
        many[:1].astype(np.int32), many[1].astype(np.int32), n_clusters=30, n_cells=5
    )
    want = sklearn.metrics.adjusted_mutual_info_score(many[1], many[0])
    # Both err: logarithms of factorials are some 10^5, of which rounding leaves 10^-11.
    np.testing.assert_allclose(
        label_agreement.mutual_information(np.asarray(table)).adjusted, want, rtol=1e-8
    )
    each = np.arange(6)[:, None]
    same = label_agreement.mutual_information(np.eye(6, dtype=int)[None])
    np.testing.assert_allclose([same.normalized, same.adjusted], 1)
    assert label_agreement.adjusted_rand(np.eye(6)[None] * each) == 1
    # Axes before the last two are free.
    np.testing.assert_array_equal(
        label_agreement.adjusted_rand(tables.reshape(2, 3, 7, 3)).reshape(-1),
        label_agreement.adjusted_rand(tables),
    )


def test_counts_are_exact(rng):
    labels = rng.integers(4, size=(3, 5000)).astype(np.int32)
    cell = rng.integers(4, size=5000).astype(np.int32)
    got = clustering_score.count_clusters(labels, cell, n_clusters=4)
    for one, table in zip(labels, got, strict=True):
        expected = [
            [[((one == k) & (cell == 2 * b + c)).sum() for c in (0, 1)] for b in (0, 1)]
            for k in range(4)
        ]
        np.testing.assert_array_equal(table, expected)


@pytest.mark.slow
def test_drawn_scores_are_those_of_repeated_rows(rng):
    cell, slide = rng.integers(4, size=300).astype(np.int32), rng.integers(9, size=300)
    cell[slide == 0] = 3
    labels = rng.integers(5, size=(3, 300)).astype(np.int32)
    labels[:, cell > 1] = rng.integers(3, size=(3, (cell > 1).sum()))
    weights = draws.draw_group_weights(9, draws=20, seed=1)
    weights[7] = [9, *[0] * 8]  # one class, one centre
    got = clustering_score.weighted_score(weights, labels, cell, slide, n_clusters=6)
    rand = sklearn.metrics.adjusted_rand_score
    for weight, value in zip(weights, got, strict=True):
        rows = np.repeat(np.arange(300), weight[slide])
        expected = [
            rand(cell[rows] // 2, one[rows]) - rand(cell[rows] % 2, one[rows]) for one in labels
        ]
        if weight[0] == 9:
            assert np.isnan(value)
        else:
            np.testing.assert_allclose(value, np.mean(expected), atol=2e-6)  # float32 squares


def test_combinations_are_in_order_of_first_appearance():
    bio = np.array(["z", "a", "z", "a", "m", "m", "z"], object)
    center = np.array(["Q", "Q", "B", "B", "Q", "B", "Q"], object)
    found = clustering_score.find_combinations(bio, center)
    assert [c.name for c in found] == ["z-a-Q-B", "z-m-Q-B", "a-m-Q-B"]
    np.testing.assert_array_equal(found[0].rows, [0, 6, 2, 1, 3])
    np.testing.assert_array_equal(found[0].cell_id, [0, 0, 1, 2, 3])
    assert (found[1].classes, found[1].centers) == (("z", "m"), ("Q", "B"))
    # Without its row of m in B, a cell is empty.
    assert [c.name for c in clustering_score.find_combinations(bio[:5], center[:5])] == ["z-a-Q-B"]
    assert clustering_score.find_combinations(bio[:3], center[:3]) == []


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_combination_equals_the_protocol_by_scikit_learn(case, metric):
    _, x, rows = case
    first = clustering_score.find_combinations(
        rows.column("biological_class"), rows.column("medical_center")
    )[0]
    z = x[first.rows] * (1 if metric == "cosine" else np.linspace(1, 3, len(first.rows))[:, None])
    z = z.astype(np.float32)
    numbers = {"trials": 3, "seed": 1337, "selection_inits": 20, "trial_inits": 5}
    got = clustering_score.cluster_combination(z, metric=metric, k_grid=range(2, 7), **numbers)
    silhouettes, k, labels = plain(z, range(2, 7), 3, metric=metric)
    np.testing.assert_allclose(got.silhouettes, silhouettes, atol=1e-5)
    assert got.k == k
    for ours, theirs in zip(got.trials, labels, strict=True):
        assert sklearn.metrics.adjusted_rand_score(ours, theirs) == 1
    assert got.best.max() + 1 == k
    assert set(got.trials_at_classes.ravel().tolist()) == {0, 1}


@pytest.mark.slow
def test_spherical_clusters_are_of_directions(case):
    _, x, _ = case
    numbers = {"trials": 2, "seed": 1, "selection_inits": 3, "trial_inits": 2}
    got = clustering_score.cluster_combination(x, metric="spherical", k_grid=[3], **numbers)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[got.best == k].sum(0) for k in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_array_equal((unit @ means.T).argmax(1), got.best)


@pytest.mark.slow
def test_edges_of_the_grid(rng):
    x = rng.normal(size=(6, 4)).astype(np.float32)
    numbers = {"trials": 2, "seed": 0, "selection_inits": 2, "trial_inits": 1}
    numbers |= {"metric": "cosine"}
    got = clustering_score.cluster_combination(x, k_grid=range(2, 31), **numbers)
    np.testing.assert_array_equal(got.k_grid, [2, 3, 4, 5])  # below the six rows
    with pytest.raises(InputError, match="number of clusters below 6, .* found \\[6, 7\\]"):
        clustering_score.cluster_combination(x, k_grid=[6, 7], **numbers)
    with pytest.raises(InputError, match="all 6 rows of the combination are equal"):
        clustering_score.cluster_combination(x[[0] * 6], k_grid=[2], **numbers)
    with pytest.raises(UsageError, match="metric: unknown name 'cosinus'. Did you mean 'cosine'"):
        clustering_score.cluster_combination(x, k_grid=[2], **numbers | {"metric": "cosinus"})


@pytest.mark.slow
def test_the_record_says_what_was_computed(case):
    opened, x, rows = case
    outcome = run(case)
    record = outcome.record
    bio, center = (np.asarray(rows.column(c)) for c in ("biological_class", "medical_center"))
    found = clustering_score.find_combinations(bio, center)
    assert [c.name for c in record.combinations] == [c.name for c in found]
    rand = sklearn.metrics.adjusted_rand_score
    scores = []
    for ours, of in zip(record.combinations, found, strict=True):
        silhouettes, k, labels = plain(x[of.rows], range(2, 6), 4)
        np.testing.assert_allclose(ours.silhouettes, silhouettes, atol=1e-5)
        assert (ours.k, ours.k_max, ours.n_samples) == (k, 5, 120)
        np.testing.assert_allclose(ours.ari_biology, [rand(bio[of.rows], one) for one in labels])
        np.testing.assert_allclose(ours.ari_center, [rand(center[of.rows], one) for one in labels])
        information = sklearn.metrics.adjusted_mutual_info_score
        np.testing.assert_allclose(
            ours.ami_center, np.mean([information(center[of.rows], one) for one in labels])
        )
        information = sklearn.metrics.normalized_mutual_info_score
        np.testing.assert_allclose(
            ours.nmi_biology, np.mean([information(bio[of.rows], one) for one in labels])
        )
        z = x[of.rows] / np.sqrt((x[of.rows] ** 2).sum(axis=1))[:, None]
        two = [
            KMeans(2, random_state=1337 + t, init="random", n_init=5).fit(z).labels_
            for t in range(4)
        ]
        at_two = [rand(bio[of.rows], one) - rand(center[of.rows], one) for one in two]
        np.testing.assert_allclose(ours.clustering_score_at_n_classes, np.mean(at_two), atol=1e-12)
        composition = np.array(ours.composition)
        assert composition.shape == (k, 4)
        np.testing.assert_array_equal(composition.sum(0), np.bincount(of.cell_id))
        best = KMeans(k, random_state=1337, init="random", n_init=20).fit(z).labels_
        expected = [np.bincount(of.cell_id[best == j], minlength=4).tolist() for j in range(k)]
        assert sorted(ours.composition) == sorted(expected)
        scores.append(np.subtract(ours.ari_biology, ours.ari_center))
        np.testing.assert_allclose(ours.clustering_score, scores[-1].mean())
    np.testing.assert_allclose(record.clustering_score, np.mean(scores))
    np.testing.assert_allclose(
        record.clustering_score_std, np.mean([s.std(ddof=1) for s in scores])
    )
    low, high = record.ci95
    assert low < record.clustering_score < high
    assert high - low > 4 * record.clustering_score_std  # slides differ, not only seeds
    assert "seed of k-means" in record.clustering_score_std_meaning
    half = 1.959963984540054 * outcome.draws["clustering_score"].std(ddof=1)
    np.testing.assert_allclose(
        record.ci95, [record.clustering_score - half, record.clustering_score + half]
    )
    assert (record.n_samples, record.n_slides, record.trials) == (180, 30, 4)
    assert record.k_grid == [2, 3, 4, 5]
    at_end = [c for c in record.combinations if c.k == 5]
    assert record.n_at_k_max == len(at_end)
    assert any("end of its grid" in w for w in record.warnings) == bool(at_end)


@pytest.mark.slow
def test_the_end_of_the_grid_is_said(case):
    record = run(case, ClusteringSettings(trials=1, k_min=2, k_max=3, draws=200)).record
    n_at_end = sum(c.k == 3 for c in record.combinations)
    assert record.n_at_k_max == n_at_end > 0
    assert f"K is at the end of its grid (3) in {n_at_end} of 3 combin" in record.warnings[0]
    assert np.isnan(record.clustering_score_std)  # of one trial
    fixed = run(case, ClusteringSettings(trials=1, k_min=3, k_max=3, draws=200)).record
    assert not any("end of its grid" in w for w in fixed.warnings)  # it was asked for


@pytest.mark.slow
def test_all_meshes_give_the_same(case, mesh):
    settings = ClusteringSettings(trials=2, k_max=3, draws=200)
    one = devices.make_mesh(jax.devices()[:1])
    a, b = (result_files.as_json(run(case, settings, mesh=m).record) for m in (one, mesh))
    for record in (a, b):
        record.pop("provenance")
        record["combinations"] = [repr(c) for c in record["combinations"]]
    assert a == b


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "budget", "at_once"), [(4000, 2**30, 4), (8000, 2**30, 2), (9, 1, 1)]
)
def test_combinations_at_once_share_the_budget(n, budget, at_once):
    combination = SimpleNamespace(rows=np.arange(n))
    plan = SimpleNamespace(
        combinations=[combination] * 5,
        x=np.zeros((1, 1536), np.float32),
        settings=ClusteringSettings(budget_bytes=budget),
    )
    assert clustering_score_tasks.count_at_once(plan) == at_once


def test_finished_combinations_are_not_computed_again(case, tmp_path, monkeypatch):
    work = str(tmp_path / "work")
    settings = ClusteringSettings(trials=2, k_max=3, draws=200)
    asked = []
    compute = clustering_score_tasks._compute

    def fail_at_the_third(plan, number, on_progress):
        asked.append(number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return compute(plan, number, on_progress)

    one = {"work_dir": work, "mesh": devices.make_mesh(jax.devices()[:1])}
    monkeypatch.setattr(clustering_score_tasks, "MOST_PER_CPU", 1)  # in order
    monkeypatch.setattr(clustering_score_tasks, "_compute", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(case, settings, **one)
    assert asked == [0, 1, 2]
    resumed = run(case, settings, **one).record
    assert asked == [0, 1, 2, 2]
    again = run(case, settings, **one).record
    assert len(asked) == 4
    whole = run(case, settings, mesh=one["mesh"]).record
    assert len(asked) == 7
    for record in (resumed, again):
        assert record.combinations == whole.combinations
        assert record.ci95 == whole.ci95
    # Damaged, and of other settings: computed again.
    path = tmp_path / "work" / "combination_0001.npz"
    path.write_bytes(path.read_bytes()[:100])
    assert run(case, settings, **one).record.combinations == whole.combinations
    assert asked[7:] == [1]
    run(case, ClusteringSettings(trials=3, k_max=3, draws=200), **one)
    assert asked[8:] == [0, 1, 2]
    # What only the bootstrap reads costs no clusters.
    run(case, ClusteringSettings(trials=3, k_max=3, draws=300, seed=2), **one)
    assert len(asked) == 11


def test_record_survives_the_disk(case, tmp_path):
    outcome = run(case, ClusteringSettings(trials=1, k_max=3, draws=200))
    path = result_files.write_outcome(str(tmp_path / "results"), outcome)
    assert path.endswith("m/d/clustering_score.json")
    back = result_files.read_result(path)
    assert np.isnan(back.clustering_score_std)
    assert back.combinations[0].silhouettes == outcome.record.combinations[0].silhouettes
    assert back.combinations[0].composition == outcome.record.combinations[0].composition
    text = files.read_json(path)
    assert text["clustering_score_std"] is None
    for key in ("clustering_score", "clustering_score_std", "combinations"):
        assert key in text
    for key in ("name", "k", "silhouettes", "ari_biology", "ari_center"):
        assert key in text["combinations"][0]
    assert "m on d: clustering score" in back.describe()


def test_refusals_of_a_store(case):
    opened, x, rows = case
    for settings, message in (
        (ClusteringSettings(k_min=1), "expected 2 <= k_min <= k_max, found 1 and 30"),
        (ClusteringSettings(k_min=9, k_max=8), "found 9 and 8"),
        (ClusteringSettings(trials=0), "trials: expected 1 or more, found 0"),
        (ClusteringSettings(metric="manhattan"), "clustering_metric: unknown name 'manhattan'"),
    ):
        with pytest.raises(UsageError, match=message):
            run(case, settings)
    one_center = rows.take(np.flatnonzero(rows.column("medical_center") == "Center 1"))
    with pytest.raises(InputError, match="patches of both classes in both centres, found"):
        run(case, manifest=one_center)


@pytest.mark.slow
def test_bad_rows_are_named(case, monkeypatch):
    _, x, rows = case
    x = x.copy()
    monkeypatch.setattr(store.Store, "read", lambda self, wanted: x[wanted])
    x[5] = 0
    with pytest.raises(InputError, match=f"only zeros, the first is patch {rows.keys[5]}"):
        run(case)
    x[rows.column("biological_class") != "class2"] = 1
    with pytest.raises(InputError, match="combination class[01]-class[01]-.*rows .* are equal"):
        run(case)


@pytest.mark.golden
@pytest.mark.parametrize("dataset", ["camelyon", "tcga", "tolkach_esca"])
def test_published_reductions(shared, dataset):
    # From the raw agreement of each trial to the summary, without embeddings: 1e-12.
    folder = shared / "pathorob" / "published" / "phikonv2_clsmean" / dataset
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: no published numbers to compare with")
    # Names hold no commas, and the reference's CSV no quotes.
    lines = (folder / "clustering_aris.csv").read_text().splitlines()[1:]
    biology, center = {}, {}
    for line in lines:
        name, _, bio, mc, _ = line.split(",")
        biology.setdefault(name, []).append(float(bio))
        center.setdefault(name, []).append(float(mc))
    score = clustering_score.summarise_scores(list(biology.values()), list(center.values()))
    theirs = json.loads((folder / "clustering_summary.json").read_text())
    np.testing.assert_allclose(score.value, theirs["clustering_score_mean"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(score.std, theirs["clustering_score_mean_std"], rtol=0, atol=1e-12)
    # The chosen K is the first of the largest silhouettes.
    silhouettes = {}
    for line in (folder / "clustering_silhouette_scores.csv").read_text().splitlines()[1:]:
        name, _, value = line.split(",")
        silhouettes.setdefault(name, []).append(float(value))
    ks = [2 + int(np.argmax(s)) for s in silhouettes.values()]
    assert (min(ks), np.median(ks), max(ks)) == tuple(
        theirs["Ks"][k] for k in ("min", "median", "max")
    )
    protocol = protocols.PROTOCOLS[dataset].clustering_score
    metadata = shared / "pathorob" / "metadata" / protocol.view.metadata
    view = read_manifest(str(metadata)).without_subsets(protocol.view.exclude_subsets)
    found = clustering_score.find_combinations(
        view.column("biological_class"), view.column("medical_center")
    )
    assert [c.name for c in found] == list(biology)


@pytest.mark.campaign
@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "dataset", "picked"),
    [
        (".", "tcga", [35]),
        pytest.param("clustering_many_k", "tcga", [7], marks=pytest.mark.campaign),
        pytest.param("clustering_many_k", "tolkach_esca", [0, 44], marks=pytest.mark.campaign),
    ],
)
def test_golden(shared, folder, dataset, picked):
    # Some of the 82 combinations (docs/fidelity.md has all): the same labels in every trial.
    golden = shared / "golden" / folder
    if not golden.is_dir():
        pytest.skip(f"{golden} is absent: no reference numbers to compare with")
    protocol = protocols.PROTOCOLS[dataset].clustering_score
    metadata = shared / "pathorob" / "metadata" / protocol.view.metadata
    view = read_manifest(str(metadata)).without_subsets(protocol.view.exclude_subsets)
    with np.load(golden / f"embeddings_{dataset}.npz") as arrays:
        keys = [f"{s}-{p}" for s, p in zip(arrays["slide_id"], arrays["patch_id"], strict=True)]
        vectors = dict(zip(keys, arrays["features"].astype(np.float32), strict=True))
    x = np.stack([vectors[key] for key in view.keys.to_pylist()])
    theirs = json.loads((golden / f"clustering_{dataset}.json").read_text())
    found = clustering_score.find_combinations(
        view.column("biological_class"), view.column("medical_center")
    )
    for combination in (found[i] for i in picked):
        got = clustering_score.cluster_combination(
            x[combination.rows],
            metric="cosine",
            k_grid=range(protocol.k_min, protocol.k_max + 1),
            trials=protocol.trials,
            seed=protocol.seed,
            selection_inits=protocol.selection_inits,
            trial_inits=protocol.trial_inits,
        )
        silhouettes = theirs["silhouette_k2_to_k30"][combination.name]
        # Another row of a cluster on a tie: silhouettes move by 1e-4; else 1e-6.
        np.testing.assert_allclose(got.silhouettes, silhouettes, atol=2e-3)
        assert np.mean(np.abs(got.silhouettes - silhouettes) < 1e-5) >= 0.9
        assert got.k == 2 + np.argmax(silhouettes)
        tables = clustering_score.count_clusters(got.trials, combination.cell_id, n_clusters=got.k)
        agreement = clustering_score.measure_agreement(tables)
        aris = theirs["aris"][combination.name]
        equal = np.isclose(agreement.ari_biology, aris["ari_bio"], atol=1e-12, rtol=0)
        equal &= np.isclose(agreement.ari_center, aris["ari_mc"], atol=1e-12, rtol=0)
        score, reference = (
            np.mean(np.subtract(*ari))
            for ari in (
                (agreement.ari_biology, agreement.ari_center),
                (aris["ari_bio"], aris["ari_mc"]),
            )
        )
        np.testing.assert_allclose(score, reference, atol=2e-3)
        if folder == ".":
            # K = 2: optima that differ by a row and 2e-7 of the inertia; scikit-learn's float32
            # chooses between them by rounding. Ours are those of its float64.
            rows = x[combination.rows].astype(np.float64)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            for trial in np.flatnonzero(~equal)[:5]:
                fit = KMeans(
                    got.k, init="random", n_init=5, random_state=protocol.seed + int(trial)
                )
                labels = fit.fit(rows).labels_
                assert sklearn.metrics.adjusted_rand_score(labels, got.trials[trial]) == 1.0
        else:
            assert equal.mean() >= 0.95
