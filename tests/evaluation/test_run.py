"""From a store to a result: rows, scopes, choice of k, warnings, and JSON that repeats itself."""

import json

import numpy as np
import oracles
import pytest
from scipy import stats
from stores import METRICS, make_manifest, make_store

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.embeddings import store_files
from pathorob_jax.evaluation.embedding_maps import MapSettings
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import (
    ApdSettings,
    ClusteringSettings,
    Settings,
    SlideSettings,
)
from pathorob_jax.kernels.bootstrap import draws as bootstrap
from pathorob_jax.metrics import neighbor_tally
from pathorob_jax.results import result_files


@pytest.fixture
def case(tmp_path, rng):
    """120 random rows: 3 classes, 2 centres, 5 slides a centre."""
    n = 120
    bio, center = rng.integers(0, 3, n), rng.integers(0, 2, n)
    slide = center * 5 + rng.integers(0, 5, n)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x += 0.5 * np.eye(8, dtype=np.float32)[bio]
    manifest = make_manifest(bio, center, slide)
    return make_store(tmp_path / "m" / "d", x, manifest), x, bio, center, slide


def run(opened, tmp_path, dataset="d", **arguments):
    results = evaluate_store(
        opened, model="m", dataset=dataset, output=str(tmp_path / "results"), **arguments
    )
    [path], [record] = results.paths, results.values()
    read = result_files.read_result(path)
    assert result_files.as_json(read) == result_files.as_json(record)
    return read


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 9, 40])
def test_result_equals_brute_force(case, tmp_path, k):
    opened, x, bio, center, slide = case
    got = run(opened, tmp_path, settings=Settings(k=k))
    indices, _ = oracles.nearest(x, slide, k)
    assert got.robustness_index == oracles.robustness_index(indices, bio, center, k)
    assert got.support == oracles.support(indices, bio, center, k)
    np.testing.assert_allclose(
        got.balanced_accuracy, oracles.balanced_accuracy(indices, bio, k), rtol=1e-12
    )
    assert (got.k, got.k_rule, got.design) == (k, "given", "all")
    assert got.n_samples == 120
    assert got.n_slides == len(set(slide.tolist()))
    assert got.k_available == 120 - np.bincount(slide).max()
    assert got.curve.k[-1] == k
    assert got.curve.robustness_index[-1] == got.robustness_index


@pytest.mark.slow
def test_auto_takes_the_first_maximum_of_the_accuracy(case, tmp_path):
    opened, x, bio, _, slide = case
    got = run(opened, tmp_path, settings=Settings(k="auto"))
    indices, _ = oracles.nearest(x, slide, got.k_available)
    grid = [k for k in (1, 3, 5, 7, 9, *range(11, 600, 10)) if k <= got.k_available]
    accuracies = [oracles.balanced_accuracy(indices, bio, k) for k in grid]
    assert got.curve.k == grid
    np.testing.assert_allclose(got.curve.balanced_accuracy, accuracies, rtol=1e-12)
    assert got.k == grid[int(np.argmax(accuracies))]
    # A custom dataset has no published k.
    assert run(opened, tmp_path).k == got.k


@pytest.mark.slow
def test_k_beyond_the_largest_slide_is_computed_and_said(case, tmp_path):
    opened, x, bio, center, slide = case
    k = 118
    got = run(opened, tmp_path, settings=Settings(k=k))
    indices, _ = oracles.nearest(x, slide, k)
    assert (indices == -1).any()
    assert got.robustness_index == oracles.robustness_index(indices, bio, center, k)
    assert any("k = 118 exceeds" in warning for warning in got.warnings)


@pytest.mark.slow
def test_group_column_decides_who_is_left_out(tmp_path, rng):
    n = 60
    bio, center, slide = np.arange(n) % 2, np.arange(n) // 2 % 2, np.arange(n)
    slide = slide // 4 * 2 + center  # a slide lies in one centre
    case_id = slide // 6
    x = rng.normal(size=(n, 6)).astype(np.float32)
    manifest = make_manifest(bio, center, slide, case_id=[str(c) for c in case_id])
    opened = make_store(tmp_path / "m" / "d", x, manifest)
    got = run(opened, tmp_path, settings=Settings(k=5, group_column="case_id"))
    indices, _ = oracles.nearest(x, case_id, 5)
    assert got.robustness_index == oracles.robustness_index(indices, bio, center, 5)
    with pytest.raises(InputError, match="expected a column 'batch'"):
        run(opened, tmp_path, settings=Settings(k=5, group_column="batch"))


@pytest.mark.slow
def test_paired_design_seeks_inside_subsets_and_counts_every_occurrence(tmp_path, rng):
    n = 96
    bio, center = rng.integers(0, 3, n), rng.integers(0, 3, n)
    slide = center * 4 + rng.integers(0, 4, n)
    x = rng.normal(size=(n, 8)).astype(np.float32) + 0.4 * np.eye(8, dtype=np.float32)[bio]
    manifest = make_manifest(bio, center, slide)
    opened = make_store(tmp_path / "m" / "d", x, manifest)
    # Two subsets of unequal size that share class 0, centre 0.
    subsets = {"0-1": ((0, 1), (0, 1)), "0-2": ((0, 2), (0, 2))}
    rows, names = [], []
    for name, (classes, centers) in subsets.items():
        inside = np.flatnonzero(np.isin(bio, classes) & np.isin(center, centers))
        rows += inside.tolist()
        names += [name] * len(inside)
    view = tmp_path / "view.csv"
    table = manifest.take(np.array(rows)).table.to_pydict() | {"subset": names}
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    view.write_text("\n".join(lines) + "\n")
    got = run(
        opened,
        tmp_path,
        manifest=str(view),
        settings=Settings(k=6, design="paired"),
    )
    types, accuracies = [], []
    for name in subsets:
        inside = np.array(rows)[np.array(names) == name]
        indices, _ = oracles.nearest(x[inside], slide[inside], 6)
        found = oracles.neighbor_types(indices, bio[inside], center[inside], 6)
        types += [kind for _, kind in found]
        accuracies.append(oracles.balanced_accuracy(indices, bio[inside], 6))
        one = oracles.robustness_index(indices, bio[inside], center[inside], 6)
        np.testing.assert_allclose(got.per_subset[name].robustness_index, one, rtol=1e-12)
        np.testing.assert_allclose(got.per_subset[name].recall, accuracies[-1], rtol=1e-12)
    pooled = types.count("so") / (types.count("so") + types.count("os"))
    np.testing.assert_allclose(got.robustness_index, pooled, rtol=1e-12)
    np.testing.assert_allclose(got.balanced_accuracy, np.mean(accuracies), rtol=1e-12)
    assert got.n_samples == len(rows)
    with pytest.raises(InputError, match="no two classes and two centres have four cells of 30"):
        run(opened, tmp_path, settings=Settings(k=6, design="paired"))


@pytest.mark.slow
def test_max_patches_keeps_the_first_of_each_cell(case, tmp_path):
    opened, x, bio, center, slide = case
    got = run(opened, tmp_path, settings=Settings(k=3, max_patches_per_combi=7))
    kept, seen = [], {}
    # After the shuffle: the first seven in file order would be those of the first slides.
    for i in np.random.RandomState(123).permutation(120):
        cell = (int(bio[i]), int(center[i]))
        seen[cell] = seen.get(cell, 0) + 1
        kept += [i] if seen[cell] <= 7 else []
    indices, _ = oracles.nearest(x[kept], slide[kept], 3)
    expected = oracles.robustness_index(indices, bio[kept], center[kept], 3)
    assert got.robustness_index == expected
    assert got.n_samples == 42


@pytest.mark.slow
def test_other_labels_can_be_evaluated(case, tmp_path, rng):
    opened, x, bio, center, slide = case
    scanner = slide % 3
    view = tmp_path / "view.csv"
    lines = ["slide_id,patch_id,grade,scanner"]
    lines += [
        f"s{s},{i},class{b},scan{v}"
        for i, (s, b, v) in enumerate(zip(slide, bio, scanner, strict=True))
    ]
    view.write_text("\n".join(lines) + "\n")
    columns = {"biological_class": "grade", "medical_center": "scanner"}
    settings = Settings(k=5, columns=columns)
    got = run(opened, tmp_path, manifest=str(view), settings=settings)
    indices, _ = oracles.nearest(x, slide, 5)
    assert got.robustness_index == oracles.robustness_index(indices, bio, scanner, 5)
    assert sorted(got.per_center) == ["scan0", "scan1", "scan2"]
    # A column that is not renamed still has to agree with the store.
    view.write_text(view.read_text().replace("scanner", "medical_center"))
    settings = Settings(k=5, columns={"biological_class": "grade"})
    with pytest.raises(InputError, match="disagree on the medical_center"):
        run(opened, tmp_path, manifest=str(view), settings=settings)


def test_several_confounders_get_results_of_their_own(tmp_path, rng):
    n = 120
    bio, center = rng.integers(0, 3, n), rng.integers(0, 2, n)
    slide = center * 5 + rng.integers(0, 5, n)
    stain = slide % 3
    x = rng.normal(size=(n, 8)).astype(np.float32)
    manifest = make_manifest(bio, center, slide, stain=[f"stain{i}" for i in stain])
    opened = make_store(tmp_path / "m" / "d", x, manifest)
    paths = evaluate_store(
        opened,
        model="m",
        dataset="d",
        output=str(tmp_path / "results"),
        settings=Settings(k=5, confounders=("medical_center", "stain")),
    ).paths
    ends = ["d@medical_center/robustness_index.json", "d@stain/robustness_index.json"]
    assert [path.split("/m/")[1] for path in paths] == ends
    indices, _ = oracles.nearest(x, slide, 5)
    for path, ids in zip(paths, (center, stain), strict=True):
        got = result_files.read_result(path)
        assert got.robustness_index == oracles.robustness_index(indices, bio, ids, 5)
    with pytest.raises(InputError, match=r"expected columns .* missing \['scanner'\]"):
        run(opened, tmp_path, settings=Settings(k=5, confounders=("stain", "scanner")))


def test_arguments_that_would_be_ignored_are_refused(case, tmp_path):
    opened, *_ = case
    columns = {"biological_class": "grade"}
    with pytest.raises(InputError, match=r"missing \['grade'\].*Name yours with --label_column"):
        run(opened, tmp_path, settings=Settings(k=5, columns=columns))
    with pytest.raises(
        UsageError, match=r"'camelion' is none of .*Did you mean --dataset=camelyon"
    ):
        run(opened, tmp_path, dataset="camelion", metadata_dir=str(tmp_path))
    with pytest.raises(UsageError, match="dataset camelyon has a protocol"):
        run(opened, tmp_path, dataset="camelyon", manifest="rows.csv", metadata_dir=".")
    with pytest.raises(UsageError, match="k: expected less than the 120 rows"):
        run(opened, tmp_path, settings=Settings(k=10**9))


def test_groups_hold_whole_slides_and_no_blanks(tmp_path, rng):
    n = 24
    bio, center, slide = np.arange(n) % 2, np.arange(n) // 12, np.arange(n) // 3
    x = rng.normal(size=(n, 4)).astype(np.float32)
    case_id = [None if i < 3 else f"c{s}" for i, s in enumerate(slide)]
    manifest = make_manifest(bio, center, slide, case_id=case_id)
    opened = make_store(tmp_path / "m" / "d", x, manifest)
    with pytest.raises(InputError, match="column 'case_id' is empty in some rows"):
        run(opened, tmp_path, settings=Settings(k=2, group_column="case_id"))
    with pytest.raises(
        InputError, match="slide 's[0-9]+' lies in several groups of column 'patch_id'"
    ):
        run(opened, tmp_path, settings=Settings(k=2, group_column="patch_id"))


@pytest.mark.slow
def test_one_slide_a_center_is_undefined_and_said(tmp_path, rng):
    bio, center = np.arange(60) % 2, np.arange(60) // 2 % 3
    x = rng.normal(size=(60, 4)).astype(np.float32)
    opened = make_store(tmp_path / "m" / "d", x, make_manifest(bio, center, center))
    got = run(opened, tmp_path, metrics=["robustness_index"], settings=Settings(k=5))
    assert np.isnan(got.robustness_index)
    assert got.ci95 is None
    assert np.isnan([got.null_permuted_center, got.null_random_features]).all()
    assert np.isnan(got.curve.robustness_index).all()
    assert any("the index is undefined" in w for w in got.warnings)
    got = run(opened, tmp_path, metrics=["margins"], settings=Settings(k=5))
    assert np.isnan([got.mari, got.croma]).all()
    assert np.isnan(got.curve.mari).all()
    assert got.mari_ci95 is None


@pytest.mark.slow
def test_equal_embeddings_are_said(tmp_path, rng):
    n = 40
    bio, center, slide = np.arange(n) % 2, np.arange(n) // 20, np.arange(n) // 2
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[:10] = x[0]
    opened = make_store(tmp_path / "m" / "d", x, make_manifest(bio, center, slide))
    got = run(opened, tmp_path, settings=Settings(k=3))
    assert any(w.startswith("25% of the embeddings equal another") for w in got.warnings)


def test_normalised_insensitivity_divides_by_all_eligible_neighbours(case, tmp_path):
    opened, x, bio, center, slide = case
    got = run(opened, tmp_path, settings=Settings(k=9))

    def insensitivity(k):
        types = [t for _, t in oracles.neighbor_types(indices, bio, center, k)]
        return (types.count("so") + types.count("oo")) / (types.count("ss") + types.count("os"))

    indices, _ = oracles.nearest(x, slide, 120)
    np.testing.assert_allclose(got.confounder_insensitivity, insensitivity(9), rtol=1e-12)
    np.testing.assert_allclose(
        got.normalized_confounder_insensitivity, insensitivity(9) / insensitivity(120), rtol=1e-12
    )


def test_two_runs_write_the_same_bytes_but_for_provenance(case, tmp_path):
    opened, *_ = case
    texts = []
    for _ in range(2):
        run(opened, tmp_path, settings=Settings(k=5))
        value = json.loads((tmp_path / "results/m/d/robustness_index.json").read_text())
        provenance = value.pop("provenance")
        texts.append(json.dumps(value))
    assert texts[0] == texts[1]
    assert provenance["store"]["identity"] == {"encoder": "test"}
    assert len(provenance["store"]["rows_sha256"]) == 64


def test_each_result_says_what_it_cost(case, tmp_path):
    opened, *_ = case
    store_files.add_cost(opened.path, {"seconds": 3.5, "tiles": 120})
    first, again = (run(opened, tmp_path, settings=Settings(k=5)) for _ in range(2))
    costs = [record.provenance["cost"] for record in (first, again)]
    # The second run finds the neighbours of the first.
    assert [cost["is_whole"] for cost in costs] == [True, False]
    assert all(0 < cost["seconds"] < 600 and cost["peak_bytes"] > 2**20 for cost in costs)
    assert costs[0]["device"] == first.provenance["device"]["kind"]
    assert costs[0]["extraction"] == [{"seconds": 3.5, "tiles": 120}]
    assert first.robustness_index == again.robustness_index


def test_record_survives_the_disk(case, tmp_path):
    opened, *_ = case
    got = run(opened, tmp_path, settings=Settings(k=5))
    [path] = [result_files.write_result(str(tmp_path / "again"), got)]
    assert result_files.read_result(path) == got
    assert result_files.read_results(str(tmp_path / "again")) == [got]


@pytest.mark.slow
def test_undefined_is_null_on_disk_and_nan_in_the_record(tmp_path, rng):
    # Classes far apart, centres a little: at k = 1 every neighbour shares both.
    bio, center = np.arange(40) % 2, np.arange(40) // 2 % 2
    slide = center + 2 * (np.arange(40) // 8)
    x = np.eye(8)[bio] * 9 + np.eye(8)[2 + center] * 3 + rng.normal(scale=0.01, size=(40, 8))
    opened = make_store(
        tmp_path / "m" / "d", x.astype(np.float32), make_manifest(bio, center, slide)
    )
    got = run(opened, tmp_path, settings=Settings(k=1))
    assert np.isnan(got.robustness_index)
    assert got.support == 0.0
    assert any(w.startswith("support 0%") for w in got.warnings)
    value = json.loads((tmp_path / "results/m/d/robustness_index.json").read_text())
    assert value["robustness_index"] is None
    assert value["curve"]["robustness_index"] == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bio": 0}, "expected at least two biological classes and two medical centres"),
        ({"center": 0}, "expected at least two biological classes and two medical centres"),
        ({"slide": None}, "expected at least two values of 'group'"),
    ],
)
def test_labels_without_contrast_are_refused(tmp_path, rng, change, message):
    n = 12
    bio = np.arange(n) % 2 * change.get("bio", 1)
    center = np.arange(n) // 2 % 2 * change.get("center", 1)
    manifest = make_manifest(bio, center, center, group=["g"] * n)
    opened = make_store(tmp_path / "m" / "d", rng.normal(size=(n, 4)), manifest)
    group = "group" if "slide" in change else "slide_id"
    with pytest.raises(InputError, match=message):
        run(opened, tmp_path, settings=Settings(k=1, group_column=group))
    assert not (tmp_path / "results").exists()


def test_unknown_metric_and_missing_metadata_are_usage_errors(case, tmp_path):
    opened, *_ = case
    with pytest.raises(UsageError, match=r"metrics: unknown name 'robustness'.*robustness_index"):
        run(opened, tmp_path, metrics=["robustness"])
    with pytest.raises(UsageError, match="metadata_dir: dataset camelyon reads camelyon.csv"):
        run(opened, tmp_path, dataset="camelyon")
    with pytest.raises(FileNotFoundError, match=r"camelyon.csv: no such file"):
        run(opened, tmp_path, dataset="camelyon", metadata_dir=str(tmp_path))


def test_results_do_not_go_into_a_store(case, tmp_path):
    opened, *_ = case
    with pytest.raises(UsageError, match=r"output: .*m/d is an embedding store.*another --output"):
        evaluate_store(opened, model="m", dataset="d", output=str(tmp_path))


def test_results_of_another_schema_are_refused(case, tmp_path):
    opened, *_ = case
    run(opened, tmp_path, settings=Settings(k=5))
    path = tmp_path / "results/m/d/robustness_index.json"
    value = json.loads(path.read_text())
    for change, message in (
        ({"schema_version": 99}, "expected schema_version 2, found 99"),
        ({"metric": "beauty"}, r"not as it was written \(its digest differs\)\. Run experiments"),
        ({"schema_version": 1, "metric": "beauty"}, "unknown metric 'beauty'"),
    ):
        path.write_text(json.dumps(value | change))
        with pytest.raises(InputError, match=message):
            result_files.read_result(str(path))
    del value["curve"]
    value["schema_version"] = 1
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"lacks the keys \['curve'\]"):
        result_files.read_result(str(path))


@pytest.mark.slow
def test_the_grid_reaches_the_last_k_that_every_row_has(tmp_path, rng):
    n = 12  # every row a slide of its own: eleven neighbours each, and 11 is on the grid
    opened = make_store(
        tmp_path / "m" / "d",
        rng.normal(size=(n, 4)).astype(np.float32),
        make_manifest(np.arange(n) % 2, np.arange(n) // 2 % 2, np.arange(n)),
    )
    got = run(opened, tmp_path, settings=Settings(k="auto"))
    assert got.k_available == 11
    assert got.curve.k == [1, 3, 5, 7, 9, 11]


def left_out(x, bio, center, slide, k):
    """Numbers without each slide, as sample and as neighbour, counted one by one."""
    indices, _ = oracles.nearest(x, slide, k)
    found = {name: [] for name in ("index", "balanced_accuracy", "support", "id_performance")}
    found["class1"] = []
    for name in sorted({f"s{s}" for s in slide}):
        gone = np.array([f"s{s}" == name for s in slide])
        lists = [[j for j in row if j >= 0 and not gone[j]] for row in indices]
        types, decisive, hits = {}, [], {}
        for i in np.flatnonzero(~gone):
            kinds = [(bio[i] == bio[j], center[i] == center[j]) for j in lists[i]]
            decisive.append(any(a != b for a, b in kinds))
            for kind in kinds:
                for key in (kind, (bio[i], *kind)):
                    types[key] = types.get(key, 0) + 1
            vote = oracles.vote(lists[i], bio, k)
            hits.setdefault(bio[i], []).append(vote == bio[i])
        found["index"].append(types[True, False] / (types[True, False] + types[False, True]))
        found["id_performance"].append(types[True, True] / (types[True, True] + types[False, True]))
        found["support"].append(np.mean(decisive))
        found["balanced_accuracy"].append(np.mean([np.mean(h) for h in hits.values()]))
        so, os_ = types[1, True, False], types[1, False, True]
        found["class1"].append(so / (so + os_))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.slow
def test_every_number_of_the_index_has_its_interval(case, tmp_path):
    opened, x, bio, center, slide = case
    settings = Settings(k=7, seed=3, draws=200)
    got = run(opened, tmp_path, settings=settings)
    found = left_out(x, bio, center, slide, 7)
    n = len(set(slide))
    weights = bootstrap.draw_group_weights(n, draws=200, seed=3)
    for name, replicates in found.items():
        value, ends = {
            "index": (got.robustness_index, got.ci95),
            "class1": (got.per_class["class1"].robustness_index, got.per_class["class1"].ci95),
        }.get(name) or (getattr(got, name), got.companions_ci95[name])
        # The jackknife's variance, known as well as 200 draws know it.
        drawn = weights @ (replicates.mean() - replicates)
        half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n) * drawn.std(ddof=1)
        expected = [max(value - half, 0), min(value + half, 1)]
        np.testing.assert_allclose(ends, expected, rtol=1e-9, err_msg=name)
        error = np.sqrt((n - 1) / n * ((replicates - replicates.mean()) ** 2).sum())
        np.testing.assert_allclose(half, stats.t.ppf(0.975, n - 1) * error, rtol=0.15)
    assert "robustness_index" not in got.companions_ci95
    kept = result_files.read_outcome(str(tmp_path / "results/m/d/robustness_index.json"))
    np.testing.assert_allclose(
        1.959963984540054 * kept.draws["robustness_index"].std(ddof=1),
        got.robustness_index - got.ci95[0],
    )
    other = run(opened, tmp_path, settings=Settings(k=7, seed=4, draws=200))
    assert other.ci95 != got.ci95
    assert other.robustness_index == got.robustness_index


def test_no_draws_are_no_intervals_and_few_are_refused(case, tmp_path):
    opened = case[0]
    got = run(opened, tmp_path, settings=Settings(k=7, draws=0))
    assert got.ci95 is None
    assert set(got.companions_ci95.values()) == {None}
    assert not any("interval" in text for text in got.warnings)
    for draws in (1, 199, -1):
        with pytest.raises(UsageError, match="draws: expected 200 or more, or 0"):
            run(opened, tmp_path, settings=Settings(k=7, draws=draws))


def test_permuted_centers_keep_slides_whole(rng):
    slide = np.arange(40) // 4
    center = slide % 3
    dealt = neighbor_tally.permute_centers(center, slide, rng)
    assert sorted(dealt) == sorted(center)
    assert (dealt != center).any()
    assert all(len(set(dealt[slide == s])) == 1 for s in range(10))
    # Groups that span centres (a batch): rows are dealt.
    spanning = neighbor_tally.permute_centers(center, np.zeros(40, int), rng)
    assert sorted(spanning) == sorted(center)


@pytest.mark.slow
def test_nulls_tell_chance_from_the_embedding(tmp_path, rng):
    # Biology is clear and centres leave no trace: the index is its own permuted null.
    n = 240
    bio, slide = np.arange(n) % 2, np.arange(n) // 6
    center = slide % 2
    x = rng.normal(size=(n, 8)) + 3 * np.eye(8)[bio]
    manifest = make_manifest(bio, center, slide)
    blind = make_store(tmp_path / "m" / "d", x.astype(np.float32), manifest)
    got = run(blind, tmp_path, settings=Settings(k=20))
    assert abs(got.robustness_index - got.null_permuted_center) < 0.02
    assert got.robustness_index > 0.9
    # Label counts: 120 rows of each class and centre, less the own slide's six.
    assert abs(got.null_random_features - 60 / (60 + 57)) < 0.01
    x += 6 * np.eye(8)[2 + center]
    seeing = make_store(tmp_path / "m2" / "d", x.astype(np.float32), manifest)
    got = run(seeing, tmp_path, settings=Settings(k=70))
    assert got.robustness_index < 0.1
    assert got.null_permuted_center > 0.4


def test_centers_that_may_be_one_are_said(case, tmp_path):
    opened, x, bio, center, slide = case
    names = np.array(["UNC", "University of North Carolina"])[center]
    table = make_manifest(bio, center, slide).table.to_pydict()
    manifest = as_manifest(table | {"medical_center": names.tolist()})
    aliased = make_store(tmp_path / "m3" / "d", x, manifest)
    got = run(aliased, tmp_path, settings=Settings(k=5))
    assert any("'UNC' and 'University of North Carolina' may be one" in w for w in got.warnings)
    assert not any("may be one" in w for w in run(opened, tmp_path).warnings)


@pytest.mark.campaign
@pytest.mark.slow
def test_all_metrics_of_one_store_in_one_call(tmp_path, rng):
    n = 480
    bio, center, slide = np.arange(n) // 2 % 2, np.arange(n) // 4 % 2, np.arange(n) // 4 % 24
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[:, 0] += 2 * bio
    opened = make_store(tmp_path / "m" / "d", x, make_manifest(bio, center, slide))
    names = METRICS
    settings = Settings(
        k=5,
        draws=200,
        apd=ApdSettings(repetitions=2),
        clustering_score=ClusteringSettings(trials=2, k_max=4),
        slide_prediction=SlideSettings(presets=("mean",)),
    )
    paths = evaluate_store(
        opened,
        model="m",
        dataset="d",
        output=str(tmp_path / "results"),
        metrics=names,
        settings=settings,
        maps=MapSettings(max_rows=60),
    ).paths
    assert [path.rsplit("/", 1)[1] for path in paths] == [f"{name}.json" for name in names]
    found = {name: result_files.read_result(path) for name, path in zip(names, paths, strict=True)}
    assert found["clustering_score"].ari_biology > 0.3
    assert len(found["apd"].id_accuracies[0]) == 2
    assert (tmp_path / "results/m/d/maps/dataset.parquet").exists()
    assert all(record.describe().startswith("m on d: ") for record in found.values())
    # One set of draws: what can be paired has one key.
    keys = {result_files.read_outcome(path).draws_key for path in paths}
    assert len(keys - {""}) <= 2
