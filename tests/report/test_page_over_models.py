"""The section over models: there with enough models, with figures, tables and sources."""

import math

import pytest
from model_records import INDICES, write_all
from report_records import make_record, read_csv

import pathorob_jax as pr
from pathorob_jax.report import panels
from pathorob_jax.report.over_models_figures import Panel, draw_points
from pathorob_jax.report.page_over_models import build_facts, build_language, build_section
from pathorob_jax.report.section import Drawing
from pathorob_jax.results.over_models import (
    APD_ID,
    INDEX,
    LanguageContrast,
    ModelRow,
    OverModels,
)
from pathorob_jax.results.result_files import write_result


def test_the_report_has_the_section_with_figures_and_tables(tmp_path):
    write_all(tmp_path / "results", datasets=("tiles",))
    facts = tmp_path / "facts.yaml"
    facts.write_text(
        "\n".join(f"{m}: {{slides: {{value: {9 + i}, source: us}}}}" for i, m in enumerate(INDICES))
    )
    output = tmp_path / "report"
    pr.write_report(str(tmp_path / "results"), str(output), facts=str(facts))
    page = (output / "index.html").read_text()
    section = page.split('<section id="models">')[1].split("</section>")[0]
    assert "n 6, p 0.0028" in section  # 2 / 6!
    assert "on the front" in section
    assert 'title="source: us"' in section
    assert "Over 6 models, the rank correlation of the robustness index" in page
    names = {path.stem for path in (output / "figures").glob("models_*.svg")}
    assert names == {"models_drop", "models_front", "models_size"}
    rows = {row["model"]: row for row in read_csv(output / "models.csv")}
    assert rows["one"]["slides"] == "9"
    assert rows["one"]["slides_source"] == "us"
    found = read_csv(output / "model_correlations.csv")
    [row] = [r for r in found if (r["x"], r["y"]) == ("robustness_index", "apd_id")]
    assert float(row["rho"]) == pytest.approx(1)
    assert row["rho_high"] == "1.0"


def test_few_models_have_no_section(tmp_path):
    for i in range(4):
        write_result(str(tmp_path / "results"), make_record(f"m{i}", index=0.1 + 0.2 * i))
    pr.write_report(str(tmp_path / "results"), str(tmp_path / "report"))
    assert '<section id="models">' not in (tmp_path / "report/index.html").read_text()
    assert not (tmp_path / "report/models.csv").exists()


@pytest.mark.slow
def test_the_leaderboard_is_drawn(shared):
    over = pr.analyse_models(str(shared / "pathorob/published/leaderboard.csv"), draws=200)
    drawn = {}

    def draw(name, label, make):
        drawn[name] = panels.to_svg(make())
        return Drawing(label, name)

    section = build_section(over, draw)
    assert set(drawn) == {"models_drop", "models_size"}
    assert "Over 20 models" in section.answer
    table = build_facts(over.models)
    assert table.columns[-1] == "trained on the benchmark's data"
    assert all(cell.title for row in table.rows for cell in row.cells)


def small_over(**changes):
    """Two models without any correlation."""
    numbers = {"a": {INDEX: 0.5, APD_ID: -0.1}, "b": {INDEX: 1.0, APD_ID: -0.1}}
    rows = [ModelRow(model, values, {}, {}) for model, values in numbers.items()]
    values = {
        "n_models": 2,
        "min_models": 2,
        "titles": {INDEX: "robustness index", APD_ID: "drop, in domain"},
        "models": rows,
        "correlations": [],
        "scaling": [],
        "pareto": None,
        "language": [],
        "seed": 0,
        "draws": 10,
        "warnings": [],
        "provenance": {},
    }
    return OverModels(**(values | changes))


def test_models_too_few_for_a_correlation_are_drawn_without_it():
    drawn = {}

    def draw(name, label, make):
        drawn[name] = make()
        return Drawing(label, name)

    section = build_section(small_over(), draw)
    assert section.answer == ""
    [panel] = drawn["models_drop"].panels
    assert (panel.name, [mark.model for mark in panel.marks]) == ("", ["a", "b"])


def test_vision_language_models_are_set_against_the_others_where_that_is_known():
    known = LanguageContrast("accuracy", INDEX, 2, 4, 0.05, 0.31, "exact", [-0.1, 0.2])
    lost = LanguageContrast("accuracy", APD_ID, 1, 5, math.nan, math.nan, "exact", None)
    table = build_language(small_over(language=[known, lost]))
    [row] = table.rows
    assert row.name == "robustness index"
    assert [(cell.text, cell.note) for cell in row.cells] == [
        ("0.050", "−0.100 – 0.200"),
        ("0.31", ""),
        ("2 and 4", ""),
    ]


def test_a_panel_without_points_says_that_it_is_undefined():
    [panel] = draw_points([Panel("drop", "index", "drop", [])]).panels
    assert [text.text for text in panel.texts] == ["undefined"]
    assert [(axis.title, axis.low, axis.high, axis.ticks) for axis in (panel.x, panel.y)] == [
        ("index", 0, 1, []),
        ("drop", 0, 1, []),
    ]
