"""The section of robustified models shows each beside its parent, and says whether it helped."""

import math

import pytest
from report_records import NAN, Page, build, make_record, make_robustification, read_csv

from pathorob_jax.report import page_robustification as page
from pathorob_jax.report.markdown import format_robustification
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.robustification import Null, Paired, ResidualCenter
from pathorob_jax.robustify.parent import NAMED_ROWS


def some():
    return [
        make_robustification(),
        make_robustification("encoder+leace", after=0.8, method="leace", used_labels=True),
        make_robustification("encoder+none", after=0.25, method="identity"),
        make_robustification("other+combat", parent="other"),
    ]


def test_each_parent_has_a_table_with_all_its_methods(tmp_path):
    folder, text = build(tmp_path, [make_record(), *some()])
    section = text.split('<section id="robustification">')[1].split("</section>")[0]
    Page(section)
    assert section.count("<h3>") == 2
    first, second = section.split("<h3>")[1:]
    assert "encoder on tiles" in first
    assert first.index("encoder+<wbr>leace" if "<wbr>" in first else "encoder+leace") < first.index(
        "encoder+combat"
    )
    assert "other+combat" in second
    assert "other+combat" not in first
    for number in ("0.750", "+0.500", "0.438–0.562", "0.550", "chance ≤ 0.530", "12 %", "88 %"):
        assert number in first
    for record in some():
        assert record.verdict in text
    rows = read_csv(folder / "robustification_pairs.csv")
    assert len(rows) == 4 * 4
    [mari] = [r for r in rows if (r["model"], r["number"]) == ("other+combat", "margins.mari")]
    assert (mari["parent"], float(mari["difference"])) == ("other", 0.25)
    assert float(mari["difference_high"]) == 0.3
    [center] = [
        r for r in read_csv(folder / "robustification_centers.csv") if r["model"] == "encoder+leace"
    ]
    assert (float(center["shift"]), float(center["robustness_index_after"])) == (0.5, 0.8)
    [single] = [r for r in read_csv(folder / "robustification.csv") if r["parent"] == "other"]
    assert float(single["neighbors_kept"]) == 0.875


def test_the_answer_prefers_fits_that_saw_no_classes(tmp_path):
    records = some()[:3]
    answer = page.write_answer("encoder", "tiles", records)
    assert answer == f"Robustifying encoder on tiles: {records[0].verdict}"
    none = page.write_answer("encoder", "tiles", [records[2], records[2]])
    assert none == "Robustifying encoder on tiles: none of 2 methods helped."


def test_a_single_method_that_did_not_help_has_its_own_verdict():
    record = some()[2]
    assert " did not help: " in record.verdict
    answer = page.write_answer("encoder", "tiles", [record])
    assert answer == f"Robustifying encoder on tiles: {record.verdict}"


def test_a_stain_method_without_a_folder_has_no_pictures():
    record = make_robustification("encoder+macenko", method="macenko", fit_on=NAMED_ROWS)
    section = page.build_section(Collection([Outcome(record)]), lambda *_: pytest.fail("drawn"))
    [group] = section.blocks[0].context["groups"]
    assert group["tiles"] == [
        {"title": "encoder+macenko on tiles", "why": "there are no pictures beside the record"}
    ]


def test_lost_biology_is_marked():
    lost = make_robustification().paired | {"biology_auc": Paired(0.9, 0.8, -0.1, [-0.2, -0.05])}
    kept, gone = (
        page.build_changes("encoder", [make_robustification(**options)]).rows[1].cells[1]
        for options in ({}, {"paired": lost})
    )
    assert (kept.warning, gone.warning) == ("", "lost")


def test_what_is_undefined_is_a_dash():
    nothing = dict.fromkeys(("linear", "knn", "mlp"), ResidualCenter(NAN, NAN, Null(NAN, NAN)))
    record = make_robustification(residual_center=nothing, cramers_v_fit=math.nan)
    cells = page.build_changes("encoder", [record]).rows[1].cells
    assert [cell.text for cell in cells[6:]] == ["–"] * 4
    assert [cell.note for cell in cells[6:]] == [""] * 4
    assert page._percent(-0.25) == "−25 %"
    assert page._percent(-0.0001) == "0 %"


@pytest.mark.slow
def test_the_tables_are_markdown_too(tmp_path):
    build(tmp_path, some())
    text = format_robustification(str(tmp_path / "results"))
    first, second = text.split("### ")[1:]
    assert first.startswith("encoder on tiles\n\n| model | robustness index |")
    lines = first.strip().splitlines()[2:]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 1 + 3
    assert lines[3].startswith(
        "| encoder+leace (fit on all; saw the classes) | 0.800 (+0.550; 0.488–0.613) |"
    )
    assert "other+combat" in second
