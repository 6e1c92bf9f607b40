"""The report says what the records say, stands alone, and is the same twice."""

import csv
import dataclasses
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from report_records import (
    NAN,
    Page,
    build,
    make_margins,
    make_probes,
    make_record,
    make_undefined,
    read_csv,
)

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.report import (
    csv_tables,
    downloads,
    figure_layout,
    figures,
    palette,
    panels,
    write,
)
from pathorob_jax.report.write import write_report
from pathorob_jax.results.result_files import write_result

CSV_NAMES = ("robustness_index.csv", "curves.csv", "groups.csv")


def small_set():
    return [
        make_record("color", index=0.05),
        make_record("texture", index=0.96, ks=tuple(range(1, 200)), k=61),
        make_record(
            "random", "paired", index=1 / 3, per_subset={"a_b": make_record().per_class["tumor"]}
        ),
        make_undefined("color", "paired"),
    ]


@pytest.mark.slow
def test_page_needs_nothing_from_outside(tmp_path):
    folder, text = build(tmp_path, small_set())
    page = Page(text)
    for reference in page.references:
        local = reference.startswith(("#", "data:")) or (folder / reference).is_file()
        assert local or reference == "https://arxiv.org/abs/2507.17845", reference
    tags = [tag for tag, _ in page.elements]
    assert not {"img", "link", "iframe", "object", "embed", "base"} & set(tags)
    assert all("src" not in attrs for tag, attrs in page.elements if tag == "script")
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    assert text.count("<figure>") == 5


@pytest.mark.slow
def test_ids_that_are_referred_to_exist_once(tmp_path):
    _, text = build(tmp_path, small_set())
    page = Page(text)
    ids = [attrs["id"] for tag, attrs in page.elements if "id" in attrs and tag != "path"]
    targets = {r[1:] for r in page.references if r.startswith("#")}
    targets |= set(re.findall(r"url\(#([\w-]+)\)", text))
    assert targets <= {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    headings = [i for i in ids if not re.fullmatch(r"[pm][0-9a-f]{10}", i)]
    assert len(headings) == len(set(headings))


@pytest.mark.slow
def test_names_are_escaped(tmp_path):
    nasty = 'x<script>alert(1)<|script>&"$\\frac{1}$ _y'
    record = make_record(
        nasty,
        warnings=["<b>careful</b>"],
        provenance={"note": "</pre><script>alert(2)</script>"},
        per_class={"<i>tumor</i>": make_record().per_class["tumor"]},
    )
    folder, text = build(tmp_path, [record, make_record("_plain")])
    assert sum(tag == "script" for tag, _ in Page(text).elements) == 1
    assert "x&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;careful" in text
    assert "&lt;/pre&gt;" in text
    assert "&lt;i&gt;tumor" in text
    assert {row["model"] for row in read_csv(folder / CSV_NAMES[0])} == {nasty, "_plain"}


@pytest.mark.slow
def test_index_table_equals_records(tmp_path):
    records = small_set()
    folder, _ = build(tmp_path, records)
    rows = {(r["model"], r["dataset"]): r for r in read_csv(folder / "robustness_index.csv")}
    assert len(rows) == len(records)
    for record in records:
        row = rows[record.model, record.dataset]
        singles = [f.name for f in dataclasses.fields(record) if f.type in (str, int, float)]
        assert {*singles, "ss", "so", "os", "oo", "robustness_index_low"} <= set(row)
        special = dataclasses.asdict(record.neighbor_types)
        for name, interval in ({"robustness_index": record.ci95} | record.companions_ci95).items():
            special |= dict(
                zip((f"{name}_low", f"{name}_high"), interval or (NAN, NAN), strict=True)
            )
        for name, text in row.items():
            value = special[name] if name in special else getattr(record, name)
            if isinstance(value, float):
                assert text == "" if math.isnan(value) else float(text) == value
            else:
                assert text == str(value)


@pytest.mark.slow
def test_curve_and_group_tables_equal_records(tmp_path):
    records = small_set()
    folder, _ = build(tmp_path, records)
    curves, groups = read_csv(folder / "curves.csv"), read_csv(folder / "groups.csv")
    assert len(curves) == sum(len(record.curve.k) for record in records)
    for record in records:
        mine = [r for r in curves if (r["model"], r["dataset"]) == (record.model, record.dataset)]
        for name in (
            "k",
            "robustness_index",
            "balanced_accuracy",
            "support",
            "ss",
            "so",
            "os",
            "oo",
        ):
            found = [float(r[name]) if r[name] else NAN for r in mine]
            np.testing.assert_array_equal(found, getattr(record.curve, name))
    assert len(groups) == sum(
        len(getattr(r, f)) for r in records for _, f in csv_tables.GROUP_KINDS
    )
    by_key = {(r["model"], r["dataset"], r["kind"], r["name"]): r for r in groups}
    for record in records:
        for kind, field in csv_tables.GROUP_KINDS:
            for name, group in getattr(record, field).items():
                row = by_key[record.model, record.dataset, kind, name]
                low, high = group.ci95 or (NAN, NAN)
                expected = {"robustness_index_low": low, "robustness_index_high": high}
                expected |= {n: v for n, v in dataclasses.asdict(group).items() if n != "ci95"}
                assert set(row) == {"model", "dataset", "kind", "name", *expected}
                for column, value in expected.items():
                    found = float(row[column]) if row[column] else NAN
                    np.testing.assert_equal(found, float(value))


@pytest.mark.slow
def test_headline_shows_index_support_and_k_in_order(tmp_path):
    records = [
        make_record("low", index=0.125),
        make_record("high", index=0.875),
        make_record("weak", index=0.5, support=0.496),
    ]
    _, text = build(tmp_path, records)
    cells = Page(text).cells[:3]
    assert [texts[0] for _, texts in cells] == ["0.875", "0.500", "0.125"]
    assert [attrs.get("class") for attrs, _ in cells] == ["best", None, None]
    assert cells[0][1][-1].endswith("support 75 %")
    assert text.count("chance 0.500 · k 11") == 1  # all models share it: said in the column's head
    assert cells[1][1][-1] == "support 49.6 %"
    assert 'class="weak">support 49.6 %' in text
    assert text.index("0.875") < text.index("<svg")
    assert "in 1 of 3 models on tiles, in 1 of them beyond the 95 % interval." in text
    assert "Highest: high, 0.875. Lowest: low, 0.125." in text


@pytest.mark.slow
def test_mean_needs_every_dataset(tmp_path):
    records = [
        make_record("both", "one", 0.25),
        make_record("both", "two", 0.75),
        make_record("single", "one", 0.9),
    ]
    _, text = build(tmp_path, records)
    both, single = Page(text).cells[:3], Page(text).cells[3:6]
    assert [texts[0] for _, texts in both] == ["0.500", "0.250", "0.750"]
    assert [texts[0] for _, texts in single] == ["–", "0.900", "–"]
    assert single[0][0]["title"] == "no mean: not evaluated on two"
    assert "no result" in single[2][0]["title"]


@pytest.mark.slow
@pytest.mark.parametrize("records", [[make_undefined()], [make_undefined(), make_record()]])
def test_undefined_numbers_are_dashes_with_a_reason(tmp_path, records):
    folder, text = build(tmp_path, records)
    page = Page(text)
    shown = [attrs for attrs, texts in page.cells if texts and texts[0] == "–"]
    assert shown
    assert all(attrs["title"] for attrs in shown)
    assert any("support 0" in attrs["title"] for attrs in shown)
    visible = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", visible, flags=re.IGNORECASE)
    for name in CSV_NAMES:
        assert "nan" not in (folder / name).read_text("utf-8").lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    "records",
    [
        [make_record()],
        [make_record(ks=(1,), k=1, index=0.0)],
        [make_record(ks=(1, 3), k=61, index=1.0)],
        [make_record(ks=(), ci95=[NAN, NAN])],
        [make_record(f"model_{i}" * 8, index=i / 29) for i in range(30)],
        [make_record("m", f"dataset {i} 100%") for i in range(5)],
    ],
    ids=["one", "one_point", "k_off_curve", "no_curve", "many_models", "many_datasets"],
)
def test_figures_exist_and_are_pictures(tmp_path, records):
    folder, text = build(tmp_path, records)
    links = [r for r in Page(text).references if r.startswith("figures/")]
    n_datasets = len({record.dataset for record in records})
    found = sorted((folder / "figures").iterdir())
    assert len(found) == len(links) == 2 + 2 * n_datasets  # the front and the index
    for path in found:
        root = ElementTree.fromstring(path.read_bytes())
        assert root.tag.endswith("}svg")
        assert len(root) > 3


@pytest.mark.slow
def test_two_runs_write_the_same_bytes(tmp_path):
    records = small_set()
    first, _ = build(tmp_path, records, "first")
    second, _ = build(tmp_path, records, "second")
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(names) == 2 + 7 + 5
    assert names == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_settings_of_matplotlib_are_left_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    build(tmp_path, [make_record()])
    assert dict(matplotlib.rcParams) == before


def test_stack_sums_to_one_and_skips_undefined():
    record = make_record(ks=(1, 3, 5), k=5)
    curve = dataclasses.replace(record.curve, so=[NAN, *record.curve.so[1:]])
    k, fractions = figure_layout.stack_composition(curve, keep=5)
    np.testing.assert_array_equal(k, [3, 5])
    assert fractions.shape == (len(palette.NEIGHBOR_TYPES), 2)
    np.testing.assert_allclose(fractions.sum(axis=0), 1, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(fractions[0], record.curve.so[1:])
    np.testing.assert_array_equal(fractions[-1], record.curve.os[1:])


def test_stack_of_one_point_has_an_area():
    k, fractions = figure_layout.stack_composition(make_record(ks=(7,), k=7).curve, keep=7)
    assert k[0] < 7 < k[1]
    np.testing.assert_array_equal(fractions[:, 0], fractions[:, 1])


def test_figures_mark_the_operating_k():
    record = make_record(ks=(1, 3, 11, 21), k=11, index=0.4)
    [curve] = figures.draw_curves("tiles", ["encoder"], [record]).panels
    [composition] = figures.draw_composition("tiles", [record]).panels
    places = [(mark.x, mark.y) for mark in curve.marks]
    assert places == [(11, 0.4), (11, pytest.approx(1 / 3 + 0.2, abs=1e-12))]
    assert list(composition.x_rules) == [11]


def test_figures_are_drawn_to_scale():
    """The corners of the axes, and a break where a number is undefined."""
    x, y = panels.log_axis("k", [1, 100]), panels.unit_axis("share")
    line = panels.Line([x.low, 10, x.high], [0.0, NAN, 1.0], "ink")
    drawn = panels.Panels("t", x, y, [panels.Panel("m", lines=[line])], width=220, height=140)
    [path] = re.findall(r'class="l ink" d="([^"]+)"', panels.to_html(drawn, "l").split("<div")[2])
    assert path == "M30.0 120.0h0M212.0 6.0h0"
    assert x.place([10]) == pytest.approx(0.5)


def test_thin_points_keep_ends_and_operating_k():
    k = [1, 3, 5, 7, 9, *range(11, 1200, 10), 1195]
    index = figure_layout.thin_points(k, keep=461, max_points=20)
    assert len(index) <= 23
    assert (np.diff(index) > 0).all()
    assert {0, k.index(461), len(k) - 1} <= set(index.tolist())
    np.testing.assert_array_equal(figure_layout.thin_points([1, 2, 3], keep=2), [0, 1, 2])


def test_an_axis_without_a_round_k_has_a_tick_in_its_middle():
    assert figure_layout.k_ticks(figure_layout.k_limits([11, 13])) == [12]
    assert [label for _, label in panels.log_axis("k", [11, 13]).ticks] == ["12"]


def test_a_point_without_a_number_is_not_drawn():
    axis = panels.unit_axis("share")
    marks = [panels.Mark(x, y, "ink") for x, y in ((0.5, 0.5), (NAN, 0.5), (0.5, NAN))]
    drawn = panels.Panels("t", axis, axis, [panels.Panel("m", marks=marks)])
    for markup in (panels.to_svg(drawn).decode(), panels.to_html(drawn, "l")):
        assert markup.count("<circle") == 1
        assert "nan" not in markup


def test_files_that_do_not_fit_into_the_page_lie_beside_it():
    texts = {"b c.csv": "y" * 200, "a.csv": "x,1", "d.json": "{}"}
    held = {one.name: one for one in downloads.embed(texts, limit=100)}
    assert list(held) == ["a.csv", "b c.csv", "d.json"]
    assert [one.is_inside for one in held.values()] == [True, False, True]
    assert held["a.csv"].link == "data:text/csv;charset=utf-8,x,1"
    assert held["b c.csv"].link == "b%20c.csv"


def test_labels_are_spread_without_crossing():
    wanted = [0.5, 0.5, 0.9, 0.1, 1.0]
    places = figure_layout.spread_labels(wanted, gap=0.1, low=0.0, high=1.0)
    np.testing.assert_allclose(places, [0.45, 0.55, 0.9, 0.1, 1.0], atol=1e-12)
    crowded = figure_layout.spread_labels([0.5] * 21, gap=0.2, low=0.0, high=1.0)
    np.testing.assert_allclose(np.sort(crowded), np.linspace(0, 1, 21), atol=1e-12)
    assert figure_layout.spread_labels([], gap=0.1, low=0.0, high=1.0) == []


def test_heat_runs_from_orange_to_blue():
    assert palette.heat(NAN) == ""
    assert palette.heat(0.0) == "#f0a073"
    assert palette.heat(0.5) == "#faf8f4"
    assert palette.heat(1.0) == palette.heat(1.5) == "#76b7de"


def test_equal_warnings_are_gathered(tmp_path):
    records = [make_record(m, warnings=["aliases"], k=k) for m, k in (("a", 3), ("b", 11))]
    _, text = build(tmp_path, records)
    assert text.count("aliases") == 1
    assert "(all models): aliases" in text
    assert "different k; compare their robustness index with care: 3 (a), 11 (b)." in text


def test_provenance_that_does_not_fit_is_in_its_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "MAX_PROVENANCE", 300)
    records = [make_record("m", provenance={"note": "short"})]
    records.append(make_record("n", provenance={"note": "long " * 100}))
    folder, text = build(tmp_path, records)
    shown = text.split('<section id="provenance"')[1].split("</section>")[0]
    assert "m: robustness_index" in shown
    assert "n: robustness_index" not in shown
    assert "long long" in (folder / write.PROVENANCE_FILE).read_text("utf-8")


def test_a_copied_folder_is_refused(tmp_path):
    root = tmp_path / "results"
    path = write_result(str(root), make_record())
    files.write_bytes(
        str(root / "copy" / "tiles" / "robustness_index.json"), files.read_bytes(path)
    )
    with pytest.raises(InputError, match="found two"):
        write_report(str(root), str(tmp_path / "report"))


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"experiments\.evaluate"):
        write_report(str(tmp_path), str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_margins_are_shown_where_there_are_any(tmp_path):
    results = str(tmp_path / "results")
    write_result(results, make_record())
    write_report(results, str(tmp_path / "without"))
    assert "MaRI" not in (tmp_path / "without/index.html").read_text().split("Definitions")[0]
    assert not (tmp_path / "without/margins.csv").exists()
    write_result(results, make_margins())
    write_result(results, make_margins(dataset="other", croma=NAN, croma_support=0.0))
    write_report(results, str(tmp_path / "with"))
    page = (tmp_path / "with/index.html").read_text()
    assert "−0.143" in page
    assert "−0.200 – −0.100" in page
    with (tmp_path / "with/margins.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["dataset"] for row in rows] == ["other", "tiles"]
    assert float(rows[1]["mari"]) == 1 / 3
    assert float(rows[1]["croma_low"]) == -0.2
    assert rows[1]["croma_f0_low"] == ""
    assert rows[0]["croma"] == ""


def test_probes_are_shown_where_there_are_any(tmp_path):
    results = str(tmp_path / "results")
    write_result(results, make_record())
    write_result(results, make_probes())
    write_report(results, str(tmp_path / "report"))
    page = (tmp_path / "report/index.html").read_text()
    section = page.split('id="probes"')[1].split("</section>")[0]
    assert section.index("0.938") < section.index("0.812") < section.index("0.625")
    assert "no fold has all labels" in section
    with (tmp_path / "report/probes.csv").open() as stream:
        [row] = csv.DictReader(stream)
    assert float(row["center_auc"]) == 0.8125
    assert row["ood_biology_auc"] == ""


@pytest.mark.slow
def test_low_support_is_said_once_for_all_models(tmp_path):
    records = [
        make_record(m, support=share, warnings=[f"support {share:.0%}: only that share"])
        for m, share in (("a", 0.2), ("b", 0.3))
    ]
    _, text = build(tmp_path, records)
    assert "only that share" not in text
    assert "(all models): The index rests on less than half of the samples" in text
