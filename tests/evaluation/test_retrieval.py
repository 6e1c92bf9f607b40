"""Case retrieval of a store against a brute force in float64; reuse, schedule, planted models."""

import json

import jax
import numpy as np
import oracles
import pytest
import scipy.stats
from stores import make_manifest, make_store, plan

from pathorob_jax.core import devices, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.evaluation import neighborhood, retrieval_schedule
from pathorob_jax.evaluation.retrieval import find_patches, make_retrieval
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.evaluation.settings import ApdSettings, RetrievalSettings, Settings
from pathorob_jax.results.result_files import read_result, write_outcome

KS = (1, 3, 5, 10)
SCHEDULE = AssociationSchedule(
    classes=("class1", "class0"),  # votes are among sorted classes all the same
    centers=("Center 0", "Center 1"),
    slides=(((2, 2), (2, 2)), ((3, 1), (1, 3)), ((4, 0), (0, 4))),
    rows_per_slide=4,
)


def make_rows(per_cell=6, rows=4, centers=3):
    """Class, centre and slide of rows: ``per_cell`` slides of ``rows`` in each cell."""
    bio, center, slide, _ = (a.ravel() for a in np.indices((2, centers, per_cell, rows)))
    return bio, center, slide + per_cell * (center + centers * bio)


def settings(repetitions=2, draws=0, **changes):
    own = ApdSettings(repetitions=repetitions, schedule=SCHEDULE)
    return Settings(draws=draws, apd=own, **changes)


@pytest.fixture
def integers(tmp_path, rng):
    """Rows of small integers, many of which are equally near."""
    bio, center, slide = make_rows()
    x = rng.integers(0, 3, (len(bio), 6)).astype(np.float32)
    x[x.sum(1) == 0] = 1
    return make_store(tmp_path / "s", x, make_manifest(bio, center, slide)), x, bio, center, slide


def ranked(similarity, group, k):
    """The k most similar of other groups; similarities equal to ten digits are ties."""
    out = np.full((len(group), k), -1)
    for q, row in enumerate(np.round(similarity, 10)):
        order = sorted(np.flatnonzero(group != group[q]), key=lambda j: (-row[j], j))[:k]
        out[q, : len(order)] = order
    return out


def cosines(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return (x @ y.T) / np.sqrt((x**2).sum(1)[:, None] * (y**2).sum(1))


def scores(lists, label, k):
    """Vote accuracy, top-k, average precision / k: over queries, and over classes."""
    found = []
    for q, row in enumerate(lists):
        near = [label[j] for j in row[:k] if j >= 0]
        if near:
            hit = np.array(near) == label[q]
            precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
            right = oracles.vote(row, label, k) == label[q]
            found.append((label[q], right, hit.any(), (hit * precision).sum() / k))
    found = np.array(found, float)
    by_class = [found[found[:, 0] == c, 1:].mean(0) for c in np.unique(found[:, 0])]
    return found[:, 1:].mean(0), np.mean(by_class, axis=0)


def check_level(level, lists, label):
    assert level.k == list(KS)
    for i, k in enumerate(KS):
        mean, balanced = scores(lists, label, k)
        for j, name in enumerate(("vote_accuracy", "top_k_accuracy", "map")):
            np.testing.assert_allclose(getattr(level, name)[i], mean[j], rtol=1e-12)
            found = getattr(level, f"balanced_{name}")[i]
            np.testing.assert_allclose(found, balanced[j], rtol=1e-12)


def as_bags(slide, bio):
    """Rows of each slide, in the order of the slides' names; no slide has two classes."""
    names = sorted({f"s{i}" for i in slide})
    rows = [np.flatnonzero(slide == int(name[1:])) for name in names]
    return rows, bio[[r[0] for r in rows]]


@pytest.mark.slow
def test_all_levels_equal_a_brute_force(integers, tmp_path):
    opened, x, bio, _, slide = integers
    record = make_retrieval(plan(opened, settings=settings())).record
    shuffled = np.random.RandomState(123).permutation(len(x))
    patch = ranked(cosines(x[shuffled], x[shuffled]), slide[shuffled], 10)
    check_level(record.patch, patch, bio[shuffled])
    rows, label = as_bags(slide, bio)
    means = np.stack([x[r].astype(np.float64).mean(0) for r in rows])
    every = np.arange(len(rows))
    check_level(record.slide, ranked(cosines(means, means), every, 10), label)
    best = [[cosines(x[a], x[b]).max(1).mean() for b in rows] for a in rows]
    sets = (np.array(best) + np.array(best).T) / 2
    check_level(record.slide_set, ranked(sets, every, 10), label)
    assert (record.patch.n_queries, record.slide.n_queries) == (len(x), len(rows))
    assert record.value == record.patch.balanced_vote_accuracy[0]
    assert record.slide_set_accuracy == record.slide_set.balanced_vote_accuracy[0]


@pytest.mark.slow
def test_more_neighbors_than_there_are_and_classes_of_one_slide(tmp_path, rng):
    bio = np.array([0, 0, 0, 1, 1, 1, 0, 0])
    slide = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    bio[slide == 3] = 2  # the only slide of its class
    center = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    x = rng.integers(1, 5, (8, 3)).astype(np.float32)
    opened = make_store(tmp_path / "s", x, make_manifest(bio, center, slide))
    record = make_retrieval(plan(opened, settings=settings(draws=200))).record
    shuffled = np.random.RandomState(123).permutation(8)
    lists = ranked(cosines(x[shuffled], x[shuffled]), slide[shuffled], 10)
    assert (lists[:, 6:] < 0).all()
    check_level(record.patch, lists, bio[shuffled])
    assert record.schedule is None
    assert any("retrieval: no schedule; " in text for text in record.warnings)
    assert any("all rows of class2 are of one slide" in text for text in record.warnings)
    assert record.slide.n_queries == 5  # one slide has two classes
    path = write_outcome(str(tmp_path / "results"), make_retrieval(plan(opened)))
    assert files.read_json(path)["schedule"] is None
    assert read_result(path).schedule is None


@pytest.mark.slow
def test_optimistic_votes_are_extra(integers):
    opened, x, bio, _, slide = integers
    asked = settings(retrieval=RetrievalSettings(optimistic_vote=True))
    level = make_retrieval(plan(opened, settings=asked)).record.patch
    lists = oracles.nearest(x, slide, 10)[0]
    assert all(np.array(level.optimistic_vote_accuracy) >= level.vote_accuracy)
    assert level.optimistic_vote_accuracy[0] == level.vote_accuracy[0]
    assert len(level.intervals["balanced_optimistic_vote_accuracy"]) == 4
    assert lists.shape == (len(x), 10)
    plain = make_retrieval(plan(opened, settings=settings())).record.patch
    assert plain.optimistic_vote_accuracy is None
    assert "optimistic_vote_accuracy" not in plain.intervals


@pytest.mark.slow
def test_the_search_of_the_index_serves(integers, monkeypatch):
    opened, *_ = integers
    searches = []
    search = neighborhood.find_neighborhood

    def counted(*args, **kwargs):
        searches.append(kwargs["settings"].k)
        return search(*args, **kwargs)

    for place in ("run", "retrieval"):
        monkeypatch.setattr(f"pathorob_jax.evaluation.{place}.find_neighborhood", counted)
    deep = plan(opened, settings=settings(k=11))
    assert find_patches(deep) is deep.neighborhood
    assert searches == [11]
    shallow = plan(opened, settings=settings(k=5))
    assert find_patches(shallow).k == 20
    assert searches == [11, 20]
    # The pairs of the paired design are not searched for it.
    paired = plan(opened, settings=settings(k=11, design="paired", min_cell_size=4))
    found = find_patches(paired)
    assert (found.design, found.k, len(found.scopes)) == ("all", 20, 1)
    assert searches == [11, 20, 20]


@pytest.mark.slow
def test_own_groups_are_left_out(tmp_path, integers):
    _, x, bio, center, slide = integers
    case = [f"case {s // 2}" for s in slide]
    rows = make_manifest(bio, center, slide, case=case)
    opened = make_store(tmp_path / "c", x, rows)
    by_case = make_retrieval(plan(opened, settings=settings(group_column="case"))).record
    shuffled = np.random.RandomState(123).permutation(len(x))
    lists = ranked(cosines(x[shuffled], x[shuffled]), slide[shuffled] // 2, 10)
    check_level(by_case.patch, lists, bio[shuffled])
    bags, label = as_bags(slide, bio)
    means = np.stack([x[r].astype(np.float64).mean(0) for r in bags])
    group = np.array([slide[r[0]] // 2 for r in bags])
    check_level(by_case.slide, ranked(cosines(means, means), group, 10), label)


def brute_schedule(task, x, bio, center, slide, inside, outside, group):
    """Accuracies [level][domain][k][split], wrong answers [split] of patches, by brute force."""
    out = {}
    test = inside[task.test()]
    for level in ("patch", "slide"):
        for split in range(3):
            held = inside[task.training(split)]
            sides = {"id": test, "ood": outside}
            if level == "slide":
                bags = {n: [r[slide[r] == s] for s in dict.fromkeys(slide[r])]
                        for n, r in (sides | {"held": held}).items()}  # fmt: skip
                first = {n: np.array([b[0] for b in part]) for n, part in bags.items()}
                data = {n: np.stack([x[b].astype(np.float64).mean(0) for b in part])
                        for n, part in bags.items()}  # fmt: skip
            else:
                first = sides | {"held": held}
                data = {n: x[r] for n, r in first.items()}
            order = np.argsort(first["held"], kind="stable")
            database, of = data["held"][order], first["held"][order]
            for name in sides:
                similarity = np.round(cosines(data[name], database), 10)
                right = {k: [] for k in KS}
                nearest = []
                for row, query in zip(similarity, first[name], strict=True):
                    near = [j for j in np.lexsort((of, -row)) if group[of[j]] != group[query]]
                    nearest.append((query, of[near[0]]))
                    for k in KS:
                        votes = np.bincount(bio[of[near[:k]]], minlength=2)
                        right[k].append(votes.argmax() == bio[query])
                own = bio[first[name]]
                for k in KS:
                    ok = np.array(right[k])
                    out[level, name, k, split] = np.mean([ok[own == c].mean() for c in (0, 1)])
                wrong = [(q, j) for q, j in nearest if bio[q] != bio[j]]
                out[level, name, "wrong", split] = (
                    len(wrong), len(nearest), sum(center[q] == center[j] for q, j in wrong)
                )  # fmt: skip
    return out


@pytest.mark.parametrize("by", ["slide_id", "case"])
def test_schedule_equals_a_brute_force(tmp_path, integers, by):
    _, x, bio, center, slide = integers
    # Cases of the test rows of one class lie in the databases too.
    pairs = slide % 6 // 2 + 3 * center
    group = slide if by == "slide_id" else pairs
    rows = make_manifest(bio, center, slide, case=[f"c{g}" for g in pairs])
    opened = make_store(tmp_path / "c", x, rows)
    evaluation = plan(opened, settings=settings(group_column=by))
    record = retrieval_schedule.make_schedule(evaluation).record
    drawn = retrieval_schedule.make_plan(evaluation).draw_repetitions()
    inside, outside = np.flatnonzero(center < 2), np.flatnonzero(center == 2)
    for r, task in enumerate(drawn):
        expected = brute_schedule(task, x, bio, center, slide, inside, outside, group)
        for level in ("patch", "slide"):
            drop = getattr(record, level)
            for name in ("id", "ood"):
                accuracies = getattr(drop, f"{name}_accuracies")
                for i, k in enumerate(KS):
                    for split in range(3):
                        np.testing.assert_allclose(
                            accuracies[i][split][r], expected[level, name, k, split], rtol=1e-12
                        )
    parts = [brute_schedule(t, x, bio, center, slide, inside, outside, group) for t in drawn]
    n_intervals = 0
    for level in ("patch", "slide"):
        for split in range(3):
            wrong, n, own = np.sum([p[level, "id", "wrong", split] for p in parts], axis=0)
            drop = getattr(record, level)
            np.testing.assert_allclose(drop.wrong_share[split], wrong / n)
            np.testing.assert_allclose(drop.own_center_share[split], own / wrong)
            each = np.array([p[level, "id", "wrong", split] for p in parts])
            ends = drop.own_center_intervals[split]
            if not each[:, 0].all():
                assert ends is None
                continue
            n_training, n_test = {
                "patch": (record.n_training_rows, record.n_id_test_rows),
                "slide": (record.n_training_slides, record.n_id_test_slides),
            }[level]
            n_intervals += 1
            shares = each[:, 2] / each[:, 0]
            np.testing.assert_allclose(
                ends, np.clip(wide_interval(own / wrong, shares, n_training, n_test), 0, 1)
            )
    assert n_intervals > 2
    assert record.cramers_v == list(SCHEDULE.cramers_v())
    assert record.classes == ["class0", "class1"]
    assert record.slides[2] == [[0, 4], [4, 0]]


def wide_interval(middle, values, n_training, n_test):
    """Nadeau and Bengio's interval of a mean over repetitions of one pool, in domain."""
    share = min(n_training, n_test) / (n_training + n_test)
    error = np.var(values, ddof=1) * (1 / len(values) + share / (1 - share))
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.sqrt(error)
    return [middle - half, middle + half]


def planted(rng, *, by_center):
    """A model that sees the centre (and a little class), or one that sees the class."""
    bio, center, slide = make_rows()
    x = 0.3 * rng.normal(size=(len(bio), 16))
    x += 0.25 * rng.normal(size=(slide.max() + 1, 16))[slide]
    x += np.eye(16)[bio] * (0.6 if by_center else 3)
    x += np.eye(16)[4 + center] * (3 if by_center else 0.5)
    return x.astype(np.float32), bio, center, slide


@pytest.mark.slow
@pytest.mark.parametrize("by_center", [pytest.param(True, marks=pytest.mark.campaign), False])
def test_planted_models_are_told_apart(tmp_path, rng, by_center):
    x, bio, center, slide = planted(rng, by_center=by_center)
    opened = make_store(tmp_path / "s", x, make_manifest(bio, center, slide))
    schedule = make_retrieval(plan(opened, settings=settings(repetitions=4))).record.schedule
    for drop in (schedule.patch, schedule.slide):
        for i in range(3):  # of 10 slides all 8 of a database vote
            first, _, last = drop.id_accuracy_means[i]
            if by_center:
                # At the end every query finds its centre, whose only class is right for half.
                assert first > 0.6
                assert abs(last - 0.5) < 0.05
                assert drop.drop_id[i] < -0.1
                assert drop.nipd_id[i] < -0.2
            else:
                assert min(first, last) == 1.0
                assert drop.drop_id[i] == 0
        if by_center:
            assert min(drop.own_center_share) > 0.9 > 0.6 > drop.own_center_expected[0]
            assert drop.drop_id_intervals[0][0] < drop.drop_id[0] < drop.drop_id_intervals[0][1]
            # In the last split centre 0 holds class 1 alone, and centre 1 class 0.
            error = drop.directional_errors["Center 0"]["class0"]
            assert error.stood_for == ["class1"]
            assert error.share[2] > 0.8
            assert error.pull[0] == 0
            assert error.pull[2] > 0.4
            assert "class1" not in drop.directional_errors["Center 0"]
        else:
            assert np.isnan(drop.own_center_share).all()
            assert drop.directional_errors["Center 0"]["class0"].share == [0, 0, 0]
            assert drop.ood_accuracy_means[0] == [1, 1, 1]


@pytest.mark.slow
def test_devices_and_interruptions_change_nothing(tmp_path, integers, mesh, monkeypatch):
    opened, *_ = integers
    whole = make_retrieval(plan(opened, settings=settings(3, draws=200)))
    folder = str(tmp_path / f"tasks{mesh.size}")
    count, done = retrieval_schedule.count_task, []

    def killed(task, data):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(task.number)
        return count(task, data)

    one = devices.make_mesh(jax.devices()[:1])
    first = plan(opened, settings=settings(3, draws=200), mesh=one, work_dir=folder)
    monkeypatch.setattr(retrieval_schedule, "count_task", killed)
    with pytest.raises(KeyboardInterrupt):
        make_retrieval(first)
    left = []
    monkeypatch.setattr(
        retrieval_schedule, "count_task", lambda t, d: left.append(t.number) or count(t, d)
    )
    again = plan(opened, settings=settings(3, draws=200), mesh=mesh, work_dir=folder)
    got = make_retrieval(again)
    assert done == [0]
    assert sorted(left) == [1, 2]
    expected, found = (vars(part.record) | {"provenance": {}} for part in (whole, got))
    assert repr_all(found) == repr_all(expected)
    for name, drawn in whole.draws.items():
        np.testing.assert_array_equal(got.draws[name], drawn)


def repr_all(value):
    """Everything in nested records, as text."""
    if hasattr(value, "__dict__"):
        return {name: repr_all(part) for name, part in vars(value).items()}
    return {k: repr_all(v) for k, v in value.items()} if isinstance(value, dict) else repr(value)


def test_a_damaged_task_is_computed_again(integers):
    opened, *_ = integers
    evaluation = plan(opened, settings=settings())
    task_plan = retrieval_schedule.make_plan(evaluation)
    data = retrieval_schedule.read(task_plan, evaluation)
    good = retrieval_schedule.count_task(task_plan.draw_repetitions()[0], data)
    retrieval_schedule.check_counts(good, data)
    for damage in (
        {"patch": good["patch"]},
        good | {"more": 1},
        good | {"slide": good["slide"] | {"ood": None}},
        good | {"slide": good["slide"] | {"id": good["patch"]["id"] | {"calls": [[1]]}}},
        json.loads(json.dumps(good).replace("[[0,", "[[-1,")),
        json.loads(json.dumps(good).replace("[[0,", "[[0.5,")),
    ):
        with pytest.raises((ValueError, KeyError, TypeError)):
            retrieval_schedule.check_counts(damage, data)


@pytest.mark.slow
def test_collapsed_embeddings_answer_nothing(tmp_path):
    bio, center, slide = make_rows(centers=2)
    x = np.ones((len(bio), 4), np.float32) * (1 + np.arange(len(bio)))[:, None]
    opened = make_store(tmp_path / "s", x, make_manifest(bio, center, slide))
    record = make_retrieval(plan(opened, settings=settings(draws=200))).record
    assert np.isnan([record.value, record.slide_accuracy, *record.slide_set.map]).all()
    assert record.support == 0
    assert record.patch_accuracy_ci95 is None
    assert any("one direction" in text for text in record.warnings)


@pytest.mark.slow
def test_a_slide_without_direction_is_left_out(tmp_path, rng):
    bio, center, slide = make_rows(centers=2)
    x = rng.normal(size=(len(bio), 6)).astype(np.float32)
    x[slide == 3] = x[0] * np.array([1, -1, 1, -1], np.float32)[:, None]
    opened = make_store(tmp_path / "s", x, make_manifest(bio, center, slide))
    record = make_retrieval(plan(opened, settings=settings(draws=200))).record
    assert (record.slide.n_queries, record.slide.n_without_neighbors) == (24, 1)
    assert record.slide_set.n_without_neighbors == 0
    assert any("1 of 24 slides have no neighbour" in text for text in record.warnings)


def test_bad_settings_end_with_one_message(integers, tmp_path):
    opened, *_ = integers
    with pytest.raises(InputError, match="no_such"):
        make_retrieval(plan(opened, settings=settings(group_column="no_such")))
    both = Settings(apd=ApdSettings(schedule=SCHEDULE, rows_per_slide=2))
    with pytest.raises(UsageError, match="one was given as well"):
        make_retrieval(plan(opened, settings=both))


def test_from_a_store_to_a_file_and_back(integers, tmp_path):
    opened, *_ = integers
    results = evaluate_store(
        opened,
        model="m",
        dataset="d",
        metrics=["robustness_index", "retrieval"],
        settings=settings(draws=200, k=11),
        output=str(tmp_path / "results"),
    )
    [path] = [p for p in results.paths if p.endswith("retrieval.json")]
    found = files.read_json(path)
    for level in ("patch", "slide", "slide_set"):
        assert found[level]["k"] == [1, 3, 5, 10]
        for name in ("vote_accuracy", "top_k_accuracy", "map"):
            assert len(found[level][name]) == 4
            for value, (low, high) in zip(
                found[level][name], found[level]["intervals"][name], strict=True
            ):
                assert 0 <= low <= value <= high <= 1
    assert found["schedule"]["cramers_v"] == pytest.approx([0, 0.5, 1])
    record = read_result(path)
    assert repr_all(record.schedule) == repr_all(results.retrieval.schedule)
    assert "patches" in record.describe()
    assert record.ci95 == record.patch.intervals["balanced_vote_accuracy"][0]


@pytest.mark.slow
def test_several_confounders(integers, tmp_path):
    _, x, bio, center, slide = integers
    rows = make_manifest(bio, center, slide, scanner=[f"scanner {s % 2}" for s in slide])
    opened = make_store(tmp_path / "two", x, as_manifest(rows.table))
    both = Settings(
        draws=0,
        confounders=("medical_center", "scanner"),
        apd=ApdSettings(repetitions=1),
    )
    results = evaluate_store(opened, dataset="d", metrics=["retrieval"], settings=both)
    by = {name.partition("@")[2]: record.schedule.centers for name, record in results.items()}
    assert by["scanner"] == ["scanner 0", "scanner 1"]
    assert set(by["medical_center"]) <= {"Center 0", "Center 1", "Center 2"}
