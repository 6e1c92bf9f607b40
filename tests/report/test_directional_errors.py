"""Errors that follow the centre in the report: sentence, tables, figure, CSV."""

import dataclasses
import math

import numpy as np
import pytest
from report_records import NAN, Page, build, make_apd, read_csv

from pathorob_jax.report import directional_errors as shown
from pathorob_jax.report.directional_errors import ModelErrors
from pathorob_jax.results.directional_errors import DirectionalError

V = [0.0, 1.0]


def model(name, share, first=0.05, *, called="tumor"):
    error = DirectionalError([called], [first, share], [0.0, share - first])
    return ModelErrors(name, V, {"RUMC": {"normal": error}})


def test_the_article_s_sentence():
    found = [model("Phikon", 0.94), model("Atlas", 0.28, 0.02)]
    assert shown.write_sentences(found) == [
        "At V = 1, 28 % (Atlas) to 94 % (Phikon) of the normal patches of RUMC are called tumor, "
        "which RUMC stood for in training; without association 2 % to 5 %."
    ]
    assert shown.write_sentences(found[:1], rows="slides") == [
        "At V = 1, 94 % of the normal slides of RUMC are called tumor, which RUMC stood for in "
        "training; without association 5 %."
    ]
    assert shown.write_sentences([]) == []
    assert shown.write_sentences([model("a", NAN, NAN)]) == []


def test_where_a_split_was_refused_the_last_one_left_counts():
    error = DirectionalError(["tumor"], [0.1, 0.5, NAN], [0.0, 0.4, NAN], [0.25, 0.5625])
    one = ModelErrors("m", [0.0, 6 / 7, 1.0], {"RUMC": {"normal": error}})
    assert shown.write_sentences([one])[0].startswith("At V = 0.86, 50 % of the normal patches")
    [row] = shown.build_errors([one]).rows
    assert (row.name, row.note) == ("normal → tumor", "RUMC")
    assert row.cells[0].text == "50 %"
    assert row.cells[0].note == "from 10 %\npull +40 points\n+25 to +56"
    lines = list(shown.list_rows(one))
    assert [line["pull_low"] for line in lines][1] == 0.25
    assert math.isnan(lines[2]["pull_low"])


def test_the_section_of_a_drop(tmp_path):
    old = dataclasses.replace(make_apd("old"), directional_errors={})
    folder, text = build(tmp_path, [make_apd("m"), old])
    section = text.split("Do errors follow the centre?</h4>")[1].split("<h4>")[0]
    Page(f"<div>{section}</div>")
    assert "75 % of the tumor patches of north are called stroma" in section
    assert section.index("tumor → stroma") < section.index("stroma → tumor")
    for piece in ("from 10 %", "pull +65 points", "+50 to +81", "evaluate again"):
        assert piece in section
    assert (folder / "figures" / "directional_errors_tiles.svg").exists()
    rows = read_csv(folder / "apd_directional_errors.csv")
    assert len(rows) == 2 * 3
    assert {row["model"] for row in rows} == {"m"}
    [last] = [r for r in rows if (r["center"], r["split"]) == ("north", "2")]
    assert (last["class"], last["stood_for"], last["head"]) == ("tumor", "stroma", "linear")
    assert [float(last[n]) for n in ("share", "pull", "pull_low")] == [0.75, 0.65, 0.5]
    folder, text = build(tmp_path / "old", [old])
    assert "Do errors follow the centre?" not in text
    assert not (folder / "apd_directional_errors.csv").exists()


def test_heads_stand_beside_the_linear_probe(tmp_path):
    record = make_apd("m")
    error = {"north": {"tumor": DirectionalError(["stroma"], [0.0, 0.1, 0.2], [0.0, 0.1, 0.2])}}
    knn = dataclasses.replace(record.heads["knn"], directional_errors=error)
    _, text = build(tmp_path, [dataclasses.replace(record, heads={"knn": knn})])
    section = text.split("Mean pull over these cells")[1].split("<h4>")[0]
    assert "linear probe" in section
    values = [texts for _, texts in Page(f"<div><p>{section}</div>").cells]
    assert values == [["+40"], ["+20"]]  # (.65 + .15) / 2


def test_a_cell_that_one_model_lacks_is_that_of_the_other_alone():
    only = {"UMCU": {"normal": DirectionalError(["tumor"], [0.1, 0.2], [0.0, 0.1])}}
    found = [model("a", 0.9), ModelErrors("b", V, only)]
    first, second = shown.write_sentences(found)
    assert first.startswith("At V = 1, 90 % of the normal patches of RUMC are called tumor")
    assert second.startswith("At V = 1, 20 % of the normal patches of UMCU are called tumor")
    panels = shown.draw_errors("camelyon", ["a", "b"], found).panels
    assert [(panel.name, len(panel.lines)) for panel in panels] == [("RUMC", 1), ("UMCU", 1)]
    assert [line.key for panel in panels for line in panel.lines] == ["m0", "m1"]


def test_a_classifier_without_such_errors_has_no_mean_pull():
    one = model("m", 0.9)
    table = shown.build_mean_pulls([("linear", {"m": one}), ("knn", {})])
    known, lacking = table.rows[0].cells
    assert (known.text, known.title) == ("+85", "")
    assert (lacking.text, lacking.sort) == ("–", "")
    assert lacking.title == "this classifier has no such errors on record"


@pytest.mark.slow
def test_the_figure_draws_every_cell_and_model():
    found = [model("a", 0.9), model("b", 0.4)]
    figure = shown.draw_errors("camelyon", ["x", "a", "b"], found)
    [panel] = figure.panels
    assert [list(line.y) for line in panel.lines] == [[0.05, 0.9], [0.05, 0.4]]
    np.testing.assert_array_equal(panel.lines[0].x, V)
    assert figure.keys == [("m1", "a"), ("m2", "b")]
    crowd = [model(f"n{i}", i / 10) for i in range(9)]
    figure = shown.draw_errors("camelyon", [one.model for one in crowd], crowd)
    assert [line.key for line in figure.panels[0].lines] == ["context"] * 9 + ["ink"]
    assert list(figure.panels[0].lines[-1].y) == [0.05, 0.4]  # the median
    many = {
        f"c{i}": {"n": DirectionalError(["t"], [0.0, i / 30], [0.0, i / 30])} for i in range(30)
    }
    figure = shown.draw_errors("d", ["m"], [ModelErrors("m", V, many)])
    assert len(figure.panels) == shown.MAX_PANELS
    assert len(shown.build_errors([ModelErrors("m", V, many)]).rows) == shown.MAX_ROWS
