"""Slide-level prediction on the page, in CSV files and as Markdown."""

import dataclasses

import numpy as np
import pytest
from report_records import Page, build, make_record, make_slide_table, make_slides, read_csv

from pathorob_jax.report.markdown import format_metrics
from pathorob_jax.report.page_slide_prediction import build_table
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.slide_prediction import mean_drop


def test_the_section_shows_curves_drops_and_errors(tmp_path):
    records = [make_slides("blind", drop=0.25), make_slides("robust", drop=0.0625)]
    folder, text = build(tmp_path, records)
    Page(text)
    section = text.split('<section id="slides">')[1].split("</section>")[0]
    assert section.count("<figure>") == 3  # one for each preset, and the errors
    assert {p.name for p in (folder / "figures").glob("slide*")} == {
        "slides_mean_tiles.svg",
        "slides_gated_tiles.svg",
        "slide_errors_tiles.svg",
    }
    assert "of the stroma slides of north are called tumor, which north stood for" in section
    assert "−25.00 %" in section
    assert "−31.25 – −21.88 %" in section
    assert "0.875 → 0.375" in section
    assert "stroma → tumor" in section
    assert "62 %" in section
    assert "pull +50 points" in section
    answer = "least with robust by −6.25 %, most with blind by −25.00 %"
    assert answer in text
    splits = read_csv(folder / "slide_prediction_splits.csv")
    assert len(splits) == 2 * 2 * 3 * 2
    last = [r for r in splits if r["model"] == "blind" and r["preset"] == "gated"][-1]
    assert (last["cramers_v"], last["auc_id"], last["auc_ood"]) == ("1.0", "0.35", "")
    errors = read_csv(folder / "slide_prediction_errors.csv")
    assert [r["pull"] for r in errors if r["preset"] == "mean"][:3] == ["0.0", "0.125", "0.5"]
    [row] = [r for r in read_csv(folder / "slide_prediction.csv") if r["model"] == "blind"]
    assert (row["drop_id"], row["drop_id_low"], row["preset"]) == ("-0.25", "-0.3125", "gated")


def test_a_model_without_a_schedule_is_said_and_left_out(tmp_path):
    nothing = {"cramers_v": None, "presets": None, "drop_id": np.nan, "drop_id_ci95": None}
    lost = make_slides("lost", **nothing, repetitions=0, warnings=["no schedule can be made"])
    _, text = build(tmp_path, [make_slides("blind"), lost])
    section = text.split('<section id="slides">')[1].split("</section>")[0]
    assert "lost" not in section
    assert "no schedule can be made" in text
    _, alone = build(tmp_path / "alone", [lost])
    assert "No model has a slide-level drop on every dataset" in alone


def test_slides_of_a_table_have_their_own_table(tmp_path):
    nothing = {"cramers_v": None, "presets": None, "drop_id": np.nan, "drop_id_ci95": None}
    folder, text = build(
        tmp_path, [make_slides("mine", **nothing, repetitions=0, table=make_slide_table())]
    )
    Page(text)
    section = text.split('<section id="slides">')[1].split("</section>")[0]
    for part in ("Harrell’s C, without added", "0.750", "−0.125", "−0.188 – −0.062"):
        assert part in section
    rows = read_csv(folder / "slide_prediction_table.csv")
    assert len(rows) == 3 * 2
    [added] = [r for r in rows if (r["trained_on"], r["measure"]) == ("added", "concordance")]
    assert (added["value"], added["low"], added["high"]) == ("-0.125", "-0.1875", "-0.0625")
    markdown = format_metrics(str(tmp_path / "results"), ["slide_prediction"])
    assert "Slides of a table:\n\n| model | Harrell’s C |" in markdown


def test_a_table_without_added_centres_has_one_column_a_measure():
    table = make_slide_table()
    alone = table.presets["gated"]
    alone = dataclasses.replace(alone, without_added=None, added=None)
    record = make_slides("m", table=dataclasses.replace(table, presets={"gated": alone}))
    shown = build_table([record, make_slides("none")])
    assert shown.columns == ["Harrell’s C", "negative log likelihood"]
    [row] = shown.rows
    assert [(cell.text, cell.note) for cell in row.cells] == [
        ("0.625", "0.500–0.750"),
        ("1.500", ""),
    ]


def test_presets_that_one_model_lacks(tmp_path):
    records = [make_slides("one", names=("mean",)), make_slides("both")]
    _, text = build(tmp_path, records)
    assert "Models were scored with different presets" in text


def test_tables_as_markdown(tmp_path):
    root = tmp_path / "results"
    build(tmp_path, [make_slides("blind", drop=0.25), make_record("blind")])
    text = format_metrics(str(root), ["slide_prediction", "margins", "robustness_index"])
    assert text.startswith("## Slide-level prediction\n\n### tiles\n\nSlide-level prediction:\n\n|")
    assert "| blind (gated attention) | −25.00 % (−31.25 – −21.88 %) | –" in text
    assert "AUC of slides by Cramér’s V, in domain:" in text
    assert "| blind (gated attention) | 0.875 | 0.625 | 0.375 |" in text
    assert "out of domain:" not in text  # undefined everywhere
    assert "## Margins" not in text
    assert "## Robustness index\n\n### tiles\n\n| model | design |" in text


@pytest.mark.slow
def test_means_over_datasets():
    one, two = make_slides("m", "a", drop=0.25), make_slides("m", "b", drop=0.0625)
    single = mean_drop([Outcome(one)], "drop_id")
    assert (single.value, single.ci95) == (-0.25, one.drop_id_ci95)
    both = mean_drop([Outcome(one), Outcome(two)], "drop_id")
    assert both.value < 0
    assert both.ci95[0] < both.value < both.ci95[1]
    undefined = mean_drop([Outcome(one), Outcome(two)], "drop_ood")
    assert np.isnan(undefined.value)
    assert undefined.ci95 is None
    once = dataclasses.replace(two, repetitions=1)
    assert mean_drop([Outcome(one), Outcome(once)], "drop_id").ci95 is None
