"""Warnings: the gravest first, equal ones once, and no certainty that is none."""

import re

import numpy as np
import pytest
from report_records import (
    build,
    make_apd,
    make_clusters,
    make_margins,
    make_record,
    read_csv,
)

from pathorob_jax.report import answer_sentences
from pathorob_jax.report.cautions import collect_cautions
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Entry, compare_all
from pathorob_jax.results.record import Outcome

ROWS = {"a": "1, 2", "b": "3, 4"}


def collect(*records):
    return collect_cautions(Collection(map(Outcome, records)))


def test_warnings_that_differ_in_numbers_are_said_once_with_their_range():
    text = "linear, id: the accuracy is {}, not above chance (0.500); the drop says nothing."
    records = [
        make_record(f"m{i}", dataset, warnings=[text.format(f"0.4{i}2")])
        for i in range(5)
        for dataset in ("one", "two")
    ]
    records.append(make_record("quiet", "one"))
    [found] = collect(*records)
    assert found.text == text.format("0.402 to 0.442")
    assert (found.datasets, found.models) == ("all datasets", "5 models")
    assert sorted(found.named.split(", ")) == [f"m{i}" for i in range(5)]


def test_warnings_of_one_model_that_differ_in_numbers_stay_apart():
    found = collect(make_record(warnings=["trifle 0", "trifle 1"]))
    assert [one.text for one in found] == ["trifle 0", "trifle 1"]


def test_lists_of_numbers_have_no_range():
    records = [make_record(m, warnings=[f"rows {rows} say little."]) for m, rows in ROWS.items()]
    [found] = collect(*records)
    assert found.text == "rows … (not the same) say little."
    [equal] = collect(*(make_record(m, warnings=["rows 1, 2 of k 3."]) for m in ROWS))
    assert equal.text == "rows 1, 2 of k 3."


def test_the_gravest_comes_first():
    trifle, lost = "names look alike.", "the AUC at A is undefined."
    a = make_record("a", k=3, support=0.2, warnings=[trifle, lost])
    b = make_record("b", k=11, warnings=[trifle])
    texts = [one.text for one in collect(a, b)]
    assert ["different k" in texts[0], "less than half" in texts[1]] == [True, True]
    assert texts[2:] == [lost, trifle]


def test_many_values_are_counted_and_folded(tmp_path):
    records = [make_record(f"m{i}", k=3 + i) for i in range(5)]
    [found] = collect(*records)
    expected = "5 models were scored with 5 different k; compare their robustness index with care."
    assert found.text == expected
    assert sorted(found.details) == [f"{3 + i} (m{i})" for i in range(5)]
    _, text = build(tmp_path, records)
    warned = text.split('id="warnings"')[1].split("</section>")[0]
    assert warned.index("5 different k") < warned.index("<summary>which") < warned.index("3 (m0)")


@pytest.mark.parametrize("width", [0.0, 1e-12, 0.01])
def test_an_interval_without_width_is_warned_of(width):
    found = collect(make_record("a", index=0.5, ci95=[0.5, 0.5 + width]))
    assert len(found) == (width < 1e-9)
    assert all("has no width" in one.text for one in found)


def test_a_difference_that_no_slide_changes_is_not_certain():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, 400)

    def made(values):
        return [Entry(model, v, "key", v + shared, 17) for model, v in values.items()]

    values = {"a": 0.8, "b": 0.5}
    [found] = compare_all(
        "index", {"t": [Entry(m, v, "k", v + shared, 17) for m, v in values.items()]}
    )
    [pair] = found.pairs
    assert not pair.is_apart
    assert pair.slides_needed is None
    assert found.shared_ranks == {"a": 1, "b": 1}
    assert found.level_with_best == ["b"]
    [text] = answer_sentences.write_differences(found)
    assert "differ by +0.300 on 17 slides, but no single slide changes that" in text
    many = {f"m{i}": 0.9 - i / 10 for i in range(6)}
    [found] = compare_all(
        "index", {"t": [Entry(m, v, "k", v + shared, 17) for m, v in many.items()]}
    )
    texts = answer_sentences.write_differences(found)
    assert texts[0] == "m0 is the highest."
    assert "over 5 others does not change with any single slide" in texts[1]
    assert texts[2] == "Of 15 pairs of models, 0 are told apart."


def test_the_file_beside_the_first_table_is_that_table(tmp_path):
    """Each number on the screen is in the file, in the same order of rows and columns."""
    makers = (make_record, make_apd, make_margins, make_clusters)
    folder, text = build(tmp_path, [make(m) for m in ("uni", "virchow2") for make in makers])
    overview = text.split('<section id="overview">')[1].split("</section>")[0]
    assert '<a href="#csv-headline.csv">headline.csv</a>' in overview.split("</caption>")[0]
    rows = read_csv(folder / "headline.csv")
    shown = [
        *("licence", "accuracy", "apd_id", "apd_ood", "robustness_index"),
        *("robustness_index_support", "croma", "croma_f0", "croma_ltm10", "clustering_score"),
    ]
    assert [name for name in rows[0] if name in shown] == shown
    heads = re.findall(r'<th scope="col"[^>]*><span[^>]*>([^<]+)', overview)
    assert heads[:3] == ["model", "licence", "has seen"]
    body = overview.split("<tbody>")[1]
    for row, markup in zip(rows, body.split("<tr")[1:], strict=True):
        assert f'data-model="{row["model"]}"' in markup
        for name in shown[1:]:
            assert f'data-sort="{float(row[name]):.7g}"' in markup, name
