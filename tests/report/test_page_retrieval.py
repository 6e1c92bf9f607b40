"""The section of case retrieval: tables, figures, CSV files and the sentence on top."""

import csv
import dataclasses
import math
import re

import pytest
from report_records import Page, build, make_retrieval, read_csv

from pathorob_jax.report import page_retrieval
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.record import Outcome


def section_of(text):
    return text.split('id="retrieval"')[1].split("</section>")[0]


def test_levels_curves_and_wrong_answers_are_shown(tmp_path):
    robust, blind = make_retrieval("robust", last=0.75), make_retrieval("blind", last=0.25)
    folder, text = build(tmp_path, [robust, blind])
    Page(text)
    section = section_of(text)
    for words in ("Patches", "Slides, mean embeddings", "Slides, sets of patches"):
        assert f"<h4>{words}</h4>" in section
    assert section.count("<figure>") == 2
    assert "0.500–0.875" in section
    assert "by chance 69 %, of 50 %" in section
    assert "stroma → tumor" in section
    assert re.search(r"from 25 %\s*(<br>)?\s*pull \+50 points", section)
    assert re.search(
        r"nearest patch has the right class changes least with robust from 0.750 to 0.750, most "
        r"with blind from 0.750 to 0.250",
        text,
    )
    assert (folder / "figures").exists()


def test_tables_hold_every_number(tmp_path):
    folder, _ = build(tmp_path, [make_retrieval("m", last=0.25)])
    rows = read_csv(folder / "retrieval_levels.csv")
    assert [(r["level"], r["k"]) for r in rows[:5]] == [
        *(("patch", k) for k in ("1", "3", "5", "10")),
        ("slide", "1"),
    ]
    assert (rows[0]["map"], rows[0]["map_low"], rows[0]["map_high"]) == ("0.75", "0.5", "0.875")
    assert (rows[2]["map"], rows[2]["map_low"]) == ("", "")
    rows = read_csv(folder / "retrieval_schedule.csv")
    assert len(rows) == 2 * 4 * 3
    last = rows[2]
    assert (last["cramers_v"], last["id_accuracy"], last["own_center_share"]) == (
        *("1.0", "0.25"),
        "0.875",
    )
    assert (last["own_center_share_low"], last["own_center_share_high"]) == ("0.75", "1.0")
    assert rows[1]["own_center_share_low"] == ""
    assert last["drop_ood_low"] == ""
    with (folder / "retrieval.csv").open() as stream:
        [row] = csv.DictReader(stream)
    assert (row["patch_accuracy"], row["patch_accuracy_low"]) == ("0.75", "0.5")
    assert "cramers_v" not in row


def test_without_a_schedule_the_rest_stands(tmp_path):
    record = make_retrieval("m", schedule=None, warnings=["retrieval: no schedule; too few"])
    folder, text = build(tmp_path, [record])
    section = section_of(text)
    assert "Slides, sets of patches" in section
    assert "biased database" not in section
    assert "no schedule; too few" in text
    assert read_csv(folder / "retrieval_schedule.csv") == []


def test_documents_have_no_tables_of_a_schedule_that_there_is_not():
    record = make_retrieval("m", schedule=None)
    found = page_retrieval.build_tables(Collection([Outcome(record)]), "tiles")
    assert [heading for heading, _, _ in found] == [
        "Among patches",
        "Among slides, mean embeddings",
        "Among slides, sets of patches",
    ]


def test_a_drop_without_queries_is_a_dash():
    record = make_retrieval("m")
    lost = dataclasses.replace(record.schedule.patch, drop_ood=[math.nan] * 4)
    record = make_retrieval("m", schedule=dataclasses.replace(record.schedule, patch=lost))
    table = page_retrieval.build_drops([record], "patch")
    cell = table.rows[0].cells[table.columns.index("drop, out of domain")]
    assert (cell.text, cell.note, cell.title) == ("–", "", page_retrieval.WHY_DROP)


@pytest.mark.slow
def test_one_model_of_two_has_a_schedule():
    records = [make_retrieval("a"), make_retrieval("b")]
    found = page_retrieval.build_tables(Collection(map(Outcome, records)), "tiles")
    tables = {heading: table for heading, _, table in found}
    table = tables["Directional errors in domain, patches"]
    assert table.columns == ["a", "b"]
    assert table.rows[0].cells[1].text == "75 %"
    curves = tables["Accuracy by Cramér’s V, slides, mean embeddings"]
    assert [row.note for row in curves.rows] == ["in domain", "out of domain"] * 2
    table = page_retrieval.build_drops(records, "slide")
    assert table.rows[0].cells[4].note.startswith("−")
    assert table.columns[-1] == "wrong answers from the own centre, V = 1"
