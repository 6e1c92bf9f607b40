"""Names of any script and any sign: in files, figures, tables and spreadsheets."""

import csv
import dataclasses
import html
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from report_records import build, make_apd, make_clusters, make_probes, make_record, read_csv
from stores import make_manifest

from pathorob_jax.report import (
    csv_tables,
    figure_files,
    figure_layout,
    figures,
    map_figures,
    panels,
)
from pathorob_jax.report.panels import Panels
from pathorob_jax.report.section import MAX_NAME_BYTES, encode_name
from pathorob_jax.results import map_files

SIGNS = ("Ba$$in", "$a$ & <b>x</b>", "b_{x} $\\q$", "_under", "a\\b", "{", "%d %", "a\x00b\n")
SCRIPTS = ("北京医院", "Αθήνα", "Санкт-Петербург", "القاهرة", "กรุงเทพ", "दिल्ली", "서울", "😀")


def draw_all(name):
    """Every kind of figure with a name in the place of model, dataset, class and centre."""
    record = make_record(name, name, per_class={name: make_record().per_class["tumor"]})
    other = make_record("plain", name)
    models = [name, "plain"]
    drop = make_apd(name, name)
    table = make_manifest([0, 1] * 6, [0, 0, 1, 1] * 3, range(12)).table
    for column in ("biological_class", "medical_center"):
        values = [name if v.endswith("0") else f"{name}2" for v in table.column(column).to_pylist()]
        table = table.set_column(table.column_names.index(column), column, [values])
    for i, column in enumerate(map_files.COORDINATES):
        table = table.append_column(column, [np.arange(12.0) ** (i + 1) % 7])
    return {
        "index": lambda: figures.draw_index(models, [(name, [record, other])]),
        "clusters": lambda: figures.draw_clusters(models, [(name, [make_clusters(name, name)])]),
        "curves": lambda: figures.draw_curves(name, models, [record, other]),
        "composition": lambda: figures.draw_composition(name, [record, other]),
        "drop": lambda: figures.draw_drop(name, models, [drop, make_apd("plain", name)]),
        "map": lambda: map_figures.draw_map(f"{name}: {name}", table),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SIGNS, *SCRIPTS])
def test_every_figure_shows_a_name_as_it_is(name):
    """In the page and in the file, both of which are well formed."""
    shown = figure_layout.shorten(name, length=10_000)
    for kind, make in draw_all(name).items():
        drawn = make()
        texts = [str(drawn)]
        if isinstance(drawn, Panels):
            texts = [panels.to_svg(drawn).decode(), panels.to_html(drawn, name)]
        for text in texts:
            ElementTree.fromstring(f"<div>{text}</div>".replace("\x00", ""))
            read = html.unescape(re.sub("<(?!/?[bx]>)[^>]*>", "", text))
            assert shown in read or name in read, kind


def test_formulas_are_off_in_the_one_style():
    with figure_files.drawing_style():
        figure = Figure()
        figure.text(0.5, 0.5, "$x^2$")
        assert "$x^2$" in figure_files.to_inline_svg(figure, label="")


@pytest.mark.slow
def test_a_report_with_such_names_is_written_without_a_word(tmp_path, capfd):
    records = [make_record(n, f"{n}@{n}") for n in ("北京", "$a$", "=1+1")]
    records += [make_clusters("北京", "北京@北京"), make_apd("$a$"), make_probes("=1+1")]
    folder, text = build(tmp_path, records)
    assert "Glyph" not in "".join(capfd.readouterr())
    drawn = {path.name: path for path in (folder / "figures").iterdir()}
    assert "curve_北京@北京.svg" in drawn
    assert 'href="figures/curve_%E5%8C%97%E4%BA%AC%40%E5%8C%97%E4%BA%AC.svg">SVG</a>' in text
    svg = drawn["curve_北京@北京.svg"].read_text("utf-8")
    assert "北京" in svg
    assert "DejaVu" not in svg


def test_maps_of_models_and_datasets_with_underscores_do_not_collide(tmp_path, rng):
    rows = make_manifest([0, 1] * 6, [0, 0, 1, 1] * 3, range(12))
    records, shown = [], {}
    for model, dataset in (("a", "b_c"), ("a_b", "c"), ("a", "b"), ("a%2F", "b"), ("..", "b")):
        path = tmp_path / "results" / model / dataset / "maps" / "dataset.parquet"
        if model != "..":
            map_files.write_map(str(path), f"{model} {dataset}", rows, rng.normal(size=(12, 4)))
            records.append(make_clusters(model, dataset))
    folder, text = build(tmp_path, records, maps="beside")
    links = re.findall(r'href="(figures/maps/[^"]+)"', text)
    assert len(set(links)) == 4
    for path in (folder / "figures/maps").rglob("*.html"):
        shown[path.read_bytes()] = path
    assert len(shown) == 4
    assert (folder / "figures/maps/a_b/c/dataset.html").exists()
    assert (folder / "figures/maps/a%252F/b/dataset.html").exists()


def test_a_damaged_map_is_left_out_with_a_word(tmp_path, rng, caplog):
    rows = make_manifest([0, 1] * 6, [0, 0, 1, 1] * 3, range(12))
    folder = tmp_path / "results" / "encoder" / "tiles" / "maps"
    for name in ("dataset", "combination_0000"):
        map_files.write_map(str(folder / f"{name}.parquet"), "t", rows, rng.normal(size=(12, 4)))
    whole = (folder / "dataset.parquet").read_bytes()
    (folder / "dataset.parquet").write_bytes(whole.replace(b"class1", b"class7"))
    _, text = build(tmp_path, [make_record()], maps="beside")
    assert re.findall(r'maps/encoder/tiles/(.*?)"', text) == ["combination_0000.html"]
    assert "dataset.parquet: " in caplog.text
    assert "The report has no such map" in caplog.text


NAMES = (
    "a",
    "A b",
    "a/b",
    "a%2Fb",
    "..",
    ".",
    ".a",
    "%2E",
    "a\\b",
    "é",
    "e\u0301",
    "北京",
    "~",
    "\x00",
)


def test_encoded_names_are_apart_and_stay_in_their_folder():
    long = ["x" * 500, "x" * 499 + "y", "北" * 200, "北" * 199 + "京", "/" * 300]
    encoded = [encode_name(name) for name in (*NAMES, *long)]
    assert len(set(encoded)) == len(encoded)
    for name in encoded:
        assert not name.startswith(".")
        assert not set(name) & set("/\\\x00")
        assert len(name.encode()) <= MAX_NAME_BYTES
    assert [encode_name(name) for name in ("tiles", "ours@stain 1", "北京", "v1.5")] == [
        *("tiles", "ours@stain 1", "北京", "v1.5")
    ]


FORMULAS = ("=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(1+1)*cmd", "\tx", "＝1")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_any_table_is_a_formula(tmp_path, name):
    model = name.replace("/", "")
    record = make_record(model, per_class={name: make_record().per_class["tumor"]}, index=-0.25)
    clusters = make_clusters(model, score=-0.5)
    [combination] = clusters.combinations
    pairs = dataclasses.replace(combination, classes=[name, "x"], centers=["x", name], name=name)
    calls = {name: {name: {"x": [0.1, 0.2, 0.3], name: [0.9, 0.8, 0.7]}}}
    folder, _ = build(
        tmp_path,
        [record, make_record("b"), dataclasses.replace(clusters, combinations=[pairs])]
        + [make_apd(model, direction_id=calls)],
    )
    tables = sorted(folder.glob("*.csv"))
    assert len(tables) >= 8
    guarded = 0
    for path in tables:
        for row in csv.reader(io.StringIO(path.read_bytes().decode(), newline="")):
            for cell in row:
                is_number = re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)
                assert is_number or not cell.startswith(tuple("=+-@\t\r＝")), (path.name, cell)
                guarded += cell == f"'{name}"
    assert guarded >= 10
    [row] = read_csv(folder / "clustering.csv")
    assert row["clustering_score"] == "-0.5"


def test_numbers_stay_numbers():
    assert csv_tables._field("a\rb") == "a b"  # csv leaves it bare, and readers end a line there
    assert [csv_tables._field(v) for v in (-1, -0.5, 0.25, "", "a", "-a", None, float("nan"))] == [
        *("-1", "-0.5", "0.25", "", "a", "'-a", "", "")
    ]


@pytest.mark.slow
def test_wide_names_are_shortened_by_their_width():
    assert figure_layout.width("北京ab") == 6
    short = figure_layout.shorten("北" * 40, length=26)
    assert short == "北" * 6 + "…" + "北" * 6
    assert figure_layout.shorten("abcdefghij", length=6) == "abc…ij"
    assert figure_layout.shorten("a\x07b\u2028") == "a\ufffdb\ufffd"
    assert json.loads(json.dumps(figure_layout.shorten("x" * 26))) == "x" * 26
