"""Models are compared on shared draws only, and as plain NumPy says."""

import dataclasses
import math
import re

import numpy as np
import pytest
from report_records import NAN, Page, build, make_clusters, make_margins, make_record, read_csv

from pathorob_jax.report import csv_tables
from pathorob_jax.report.page_compare import build_comparison
from pathorob_jax.report.table_cells import format_share
from pathorob_jax.results.compare_models import Entry, compare_all, mean_draws
from pathorob_jax.results.record import Outcome

DRAWS = 400


def make_entries(rng, values, *, key="a", spread=0.05):
    """Models whose draws lie about their values, most of the spread in common."""
    shared = rng.normal(size=DRAWS)
    return [
        Entry(f"m{i}", v, key, v + spread * (shared + 0.5 * rng.normal(size=DRAWS)))
        for i, v in enumerate(values)
    ]


def plain_ends(value, draws):
    """The estimate -+ 1.96 standard deviations of its draws."""
    half = 1.959963984540054 * np.std(draws, ddof=1)
    return [value - half, value + half]


def plain_ranks(draws):
    """Rank of each model in each draw by sorting, ties averaged: float64[models, draws]."""
    out = np.empty(draws.shape)
    for d in range(draws.shape[1]):
        for m in range(draws.shape[0]):
            better = np.sum(draws[:, d] > draws[m, d])
            level = np.sum(draws[:, d] == draws[m, d])
            out[m, d] = better + (level + 1) / 2
    return out


def test_ranks_and_differences_equal_plain_numpy(rng):
    entries = make_entries(rng, [0.5, 0.56, 0.52, 0.2])
    [found] = compare_all("index", {"tiles": entries})
    assert [c.model for c in found.contenders] == ["m1", "m2", "m0", "m3"]
    draws = np.stack([entries[i].draws for i in (1, 2, 0, 3)])
    ranks = plain_ranks(draws)
    for c, mine, own in zip(found.contenders, ranks, draws, strict=True):
        # float64 sums in another order.
        np.testing.assert_allclose(c.mean_rank, mine.mean(), rtol=1e-12)
        np.testing.assert_allclose(
            [c.rank_low, c.rank_high], np.percentile(mine, [2.5, 97.5]), rtol=1e-12
        )
        np.testing.assert_allclose([c.low, c.high], plain_ends(c.value, own), rtol=1e-12)
        np.testing.assert_allclose(c.first_share, (own == draws.max(0)).mean(), rtol=1e-12)
        place = 1 + sum(other.value > c.value for other in found.contenders)
        np.testing.assert_allclose(c.place_share, (mine == place).mean(), rtol=1e-12)
        if c.model != "m1":
            apart = own - draws[0]
            assert c.behind.model_b == "m1"
            np.testing.assert_allclose(c.behind.difference, c.value - 0.56, rtol=1e-12)
            np.testing.assert_allclose(
                [c.behind.low, c.behind.high], plain_ends(c.value - 0.56, apart), rtol=1e-12
            )
            assert c.behind.share_positive == (apart > 0).mean()
    assert found.contenders[0].behind is None
    assert sum(c.first_share for c in found.contenders) == pytest.approx(1, abs=1e-12)


def test_ranks_are_shared_by_models_that_are_not_told_apart(rng):
    values = [0.5, 0.505, 0.3, 0.31, 0.1]
    [found] = compare_all("index", {"tiles": make_entries(rng, values)})
    assert found.shared_ranks == {"m1": 1, "m0": 1, "m3": 3, "m2": 3, "m4": 5}
    # By plain numpy: the models whose difference's interval lies above 0, plus one.
    made = {e.model: e for e in make_entries(np.random.default_rng(7), values)}
    [again] = compare_all("index", {"tiles": list(made.values())})
    for name, rank in again.shared_ranks.items():
        ahead = [
            other
            for other in made.values()
            if plain_ends(other.value - made[name].value, other.draws - made[name].draws)[0] > 0
        ]
        assert rank == 1 + len(ahead)
    # A model whose draws vary widely is told apart from none.
    wide = Entry("wide", 0.2, "a", 0.2 + rng.normal(size=DRAWS))
    [mixed] = compare_all("index", {"tiles": [*make_entries(rng, [0.5, 0.1]), wide]})
    assert mixed.shared_ranks == {"m0": 1, "wide": 1, "m1": 2}


def test_all_pairs_once_and_antisymmetric_to_the_best(rng):
    [found] = compare_all("index", {"tiles": make_entries(rng, [0.1, 0.3, 0.2, 0.4, 0.25])})
    names = [c.model for c in found.contenders]
    assert [(p.model_a, p.model_b) for p in found.pairs] == [
        (a, b) for i, a in enumerate(names) for b in names[i + 1 :]
    ]
    for contender, pair in zip(found.contenders[1:], found.pairs[:4], strict=True):
        behind = contender.behind
        assert pair.difference == -behind.difference
        np.testing.assert_allclose([pair.low, pair.high], [-behind.high, -behind.low], rtol=1e-12)
        assert pair.share_positive + behind.share_positive == pytest.approx(1)


def test_overlapping_intervals_may_be_told_apart(rng):
    """The point of pairing: what all models share cancels out."""
    shared = rng.normal(size=DRAWS)
    entries = [
        Entry(m, v, "a", v + 0.1 * shared + 0.001 * rng.normal(size=DRAWS))
        for m, v in (("low", 0.5), ("high", 0.52), ("near", 0.5195))
    ]
    [found] = compare_all("index", {"tiles": entries})
    first, near, low = found.contenders
    assert low.high > first.low
    assert found.level_with_best == ["near"]
    assert near.behind.high > 0 > low.behind.high


def test_who_cannot_be_compared_is_named_with_the_reason(rng):
    entries = make_entries(rng, [0.5, 0.6, 0.7, 0.65])
    other = make_entries(rng, [0.9], key="b")[0]._replace(model="elsewhere")
    mostly = np.where(np.arange(DRAWS) < 0.6 * DRAWS, NAN, 0.5)
    entries += [
        other,
        entries[0]._replace(model="undefined", value=NAN),
        entries[0]._replace(model="old", draws=None),
        entries[0]._replace(model="rare", draws=mostly),
    ]
    [found] = compare_all("index", {"tiles": entries})
    assert [c.model for c in found.contenders] == ["m2", "m3", "m1", "m0"]
    reasons = dict(found.left_out)
    assert set(reasons) == {"elsewhere", "undefined", "old", "rare"}
    assert "other slides" in reasons["elsewhere"]
    assert "undefined" in reasons["undefined"]
    assert "evaluate it again" in reasons["old"]
    assert "most draws" in reasons["rare"]


def test_of_equal_sets_that_of_the_highest_value_is_compared(rng):
    left = make_entries(rng, [0.5, 0.6], key="a")
    right = [e._replace(model=f"r{e.model}") for e in make_entries(rng, [0.1, 0.9], key="b")]
    [found] = compare_all("index", {"tiles": left + right})
    assert [c.model for c in found.contenders] == ["rm1", "rm0"]


def test_mean_adds_draws_by_number(rng):
    one, two = make_entries(rng, [0.2, 0.4]), make_entries(rng, [0.9, 0.5])
    mean, first, second = compare_all("index", {"one": one, "two": two})
    assert [c.dataset for c in (mean, first, second)] == ["", "one", "two"]
    by_model = {c.model: c for c in mean.contenders}
    for i in (0, 1):
        drawn = (one[i].draws + two[i].draws) / 2
        contender = by_model[f"m{i}"]
        np.testing.assert_allclose(contender.value, (one[i].value + two[i].value) / 2, rtol=1e-12)
        np.testing.assert_allclose(
            [contender.low, contender.high], plain_ends(contender.value, drawn), rtol=1e-12
        )


def test_mean_leaves_out_what_is_not_compared_everywhere(rng):
    one, two = make_entries(rng, [0.2, 0.4, 0.3]), make_entries(rng, [0.9, 0.5, 0.6])
    two[2] = two[2]._replace(key="b")
    only = make_entries(rng, [0.99])[0]._replace(model="only")
    mean = compare_all("index", {"one": [*one, only], "two": two})[0]
    assert [c.model for c in mean.contenders] == ["m0", "m1"]
    assert dict(mean.left_out) == dict.fromkeys(("m2", "only"), "not compared on two")
    short = [e._replace(draws=e.draws[:100]) for e in two]
    mean = compare_all("index", {"one": one, "two": short})[0]
    assert mean.contenders == []
    assert "numbers of draws" in dict(mean.left_out)["m0"]


def test_means_are_over_the_datasets_of_one_confounder(rng):
    """The same patches by scanner and by centre are one dataset, and no mean is over both."""
    entries = {
        name: make_entries(rng, values)
        for name, values in (
            ("one", [0.2, 0.4]),
            ("one@scanner", [0.9, 0.1]),
            ("two", [0.3, 0.5]),
            ("two@scanner", [0.7, 0.1]),
        )
    }
    found = compare_all("index", entries)
    assert [(c.dataset, c.confounder) for c in found[:2]] == [("", ""), ("", "scanner")]
    assert [c.dataset for c in found[2:]] == list(entries)
    values = ({"m0": 0.25, "m1": 0.45}, {"m0": 0.8, "m1": 0.1})
    for mean, expected in zip(found[:2], values, strict=True):
        got = {c.model: c.value for c in mean.contenders}
        assert got == pytest.approx(expected)
    once = {name: entries[name] for name in ("one", "one@scanner")}
    assert [c.dataset for c in compare_all("index", once)] == ["one", "one@scanner"]


def test_mean_draws_need_every_dataset():
    a, b = np.arange(4.0), np.arange(4.0)[::-1]
    np.testing.assert_array_equal(mean_draws([a, b]), [1.5] * 4)
    assert mean_draws([a, None]) is None
    assert mean_draws([a, b[:2]]) is None
    assert mean_draws([]) is None


def outcomes(rng, datasets=("one", "two")):
    """Three models with draws; ``weak`` cannot be compared on the first dataset."""
    found = []
    for dataset in datasets:
        shared = rng.normal(size=DRAWS)
        for model, index in (("best", 0.8), ("level", 0.795), ("weak", 0.3)):
            drawn = index + 0.02 * (shared + rng.normal(size=DRAWS))
            key = "other" if (model, dataset) == ("weak", datasets[0]) else "same"
            ends = plain_ends(index, drawn)
            record = make_record(model, dataset, index, ci95=ends)
            found.append(Outcome(record, key, {"robustness_index": drawn}))
            found.append(Outcome(make_margins(model, dataset), key, {"croma": drawn - 1}))
            clusters = make_clusters(model, dataset, index)
            found.append(Outcome(clusters, key, {"clustering_score": drawn}))
    return found


def read_section(text, name):
    return text.split(f'<section id="{name}"')[1].split("</section>")[0]


@pytest.mark.slow
def test_page_and_tables_show_the_comparison(tmp_path, rng):
    given = outcomes(rng)
    folder, text = build(tmp_path, given)
    section = read_section(text, "compare")
    for name in ("robustness index", "CRoMa", "clustering score"):
        assert f"<h3>{name}</h3>" in section
    assert "best is not told apart from level" not in section.split("one: ")[0]
    assert "best has the highest value, but no model is told apart from it" in section
    assert "best is not told apart from level; it is from the others." in section
    assert "Not compared: weak (not compared on one)." in section
    assert "its draws are of other slides, patches, seed or number" in section
    rows = read_csv(folder / "comparisons.csv")
    assert tuple(rows[0]) == csv_tables.COMPARISON_COLUMNS
    # Mean and first dataset: 1 pair, second dataset: 3; three statistics.
    assert len(rows) == 3 * (1 + 1 + 3)
    drawn = {(type(o.record).__name__, o.record.model, o.record.dataset): o for o in given}
    name = "RobustnessIndexResult"
    best, weak = (drawn[name, m, "two"].draws["robustness_index"] for m in ("best", "weak"))
    [row] = [
        r
        for r in rows
        if (r["statistic"], r["dataset"], r["model_b"]) == ("robustness index", "two", "weak")
        and r["model_a"] == "best"
    ]
    low, high = plain_ends(0.5, best - weak)
    np.testing.assert_allclose(
        [float(row[c]) for c in ("difference", "low", "high", "share_positive")],
        [0.5, low, high, 1.0],
        rtol=1e-12,
    )
    ranks = read_csv(folder / "ranks.csv")
    assert tuple(ranks[0]) == csv_tables.RANK_COLUMNS
    left = [r for r in ranks if r["left_out"]]
    assert {(r["dataset"], r["model"]) for r in left} == {("mean", "weak"), ("one", "weak")}
    assert all(r["mean_rank"] == "" for r in left)


@pytest.mark.slow
def test_headline_shows_the_interval_of_the_mean(tmp_path, rng):
    given = outcomes(rng)
    _, text = build(tmp_path, given)
    drawn = [
        o.draws["robustness_index"]
        for o in given
        if o.record.model == "level" and o.record.metric == "robustness_index"
    ]
    low, high = plain_ends(0.795, np.mean(drawn, axis=0))
    overview = Page(text.split('<section id="overview">')[1].split("</section>")[0])
    # Accuracy, index, support, CRoMa, F(0) and tail in the third row.
    [value, note] = overview.cells[2 * 6 + 1][1]
    assert value == "0.795"
    assert note.splitlines()[0] == f"{low:.3f}–{high:.3f}"


@pytest.mark.slow
def test_one_model_is_compared_with_nothing(tmp_path, rng):
    given = [o for o in outcomes(rng) if o.record.model == "best"]
    folder, text = build(tmp_path, given)
    assert 'id="compare"' not in text
    assert not (folder / "comparisons.csv").exists()


def test_results_without_draws_say_so(tmp_path):
    folder, text = build(tmp_path, [make_record("a"), make_record("b", index=0.5)])
    section = read_section(text, "compare")
    assert "Nothing to compare" in section
    assert "b, a (its draws are missing; evaluate it again)" in section
    assert read_csv(folder / "comparisons.csv") == []


def test_undefined_models_leave_no_number_behind(tmp_path, rng):
    given = outcomes(rng, ("one",))
    lost = dataclasses.replace(given[0].record, model="lost", robustness_index=NAN, ci95=None)
    given.append(Outcome(lost, "same", {"robustness_index": np.full(DRAWS, NAN)}))
    folder, text = build(tmp_path, given)
    section = read_section(text, "compare")
    assert "lost (its value is undefined)" in section
    visible = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", visible, flags=re.IGNORECASE)
    for path in folder.glob("*.csv"):
        assert "nan" not in path.read_text("utf-8").lower()


def test_ties_share_rank_and_first_place():
    draws = np.linspace(0, 1, DRAWS)
    [found] = compare_all("index", {"tiles": [Entry(m, 0.5, "", draws) for m in "ba"]})
    assert [c.model for c in found.contenders] == ["a", "b"]
    assert [c.mean_rank for c in found.contenders] == [1.5, 1.5]
    assert [c.first_share for c in found.contenders] == [0.5, 0.5]
    assert found.contenders[1].behind.share_positive == 0
    assert found.level_with_best == ["b"]
    assert math.isclose(found.contenders[1].behind.high, 0)


@pytest.mark.slow
def test_table_of_a_comparison_shows_ranks_and_the_way_to_the_best(rng):
    [found] = compare_all("index", {"tiles": make_entries(rng, [0.5, 0.53, 0.2], spread=0.03)})
    first, second, third = found.contenders
    assert (first.rank_low, first.rank_high) == (1, 2)
    table = build_comparison(found)
    assert [row.name for row in table.rows] == ["m1", "m0", "m2"]
    assert [cell.text for cell in table.rows[0].cells][4:] == ["best", ""]
    for contender, row in zip((second, third), table.rows[1:], strict=True):
        value, mean_rank, rank, share, behind, ahead = row.cells
        pair = contender.behind
        assert value.text == f"{contender.value:.3f}"
        assert value.note == f"{contender.low:.3f}–{contender.high:.3f}"
        assert mean_rank.text == f"{contender.mean_rank:.1f}"
        assert share.text.endswith(" %")
        assert behind.text == f"−{-pair.difference:.3f}"
        assert behind.note == f"{pair.low:.3f} – {pair.high:.3f}".replace("-", "−")
        assert behind.span.low < behind.span.point < behind.span.high
        assert float(ahead.sort) == pair.share_positive
        assert ahead.text == format_share(pair.share_positive)
        assert 0 <= rank.span.low <= rank.span.point <= rank.span.high <= 100
    assert table.rows[0].cells[2].text == table.rows[1].cells[2].text == "1–2"
    assert table.rows[2].cells[2].text == "3"
    # The track of the differences ends where the interval nearest to the best one does, or at 0.
    assert table.rows[1].cells[4].span.zero <= table.rows[1].cells[4].span.high
    assert table.rows[2].cells[4].span.low == 0
