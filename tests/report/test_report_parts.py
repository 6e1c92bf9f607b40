"""Performance drops, clusterings, published values, confounders: each as its record says."""

import dataclasses
import io
import json
import math
import re
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_records import (
    NAN,
    Page,
    V,
    build,
    make_apd,
    make_clusters,
    make_margins,
    make_probes,
    make_record,
    read_csv,
)
from scipy import stats

from pathorob_jax.core import files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.folder_names import split_confounder
from pathorob_jax.core.plain import as_plain
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
from pathorob_jax.models import registry
from pathorob_jax.report import figures, page_published, palette
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import (
    format_interval,
    format_number,
    format_share,
    format_signed,
)
from pathorob_jax.report.write import is_current as is_report_current
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.map_files import COORDINATES
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.write_summaries import write_summaries


def section(text, name):
    """Markup of one section."""
    return text.split(f'<section id="{name}"')[1].split("</section>")[0]


def cells_of(markup):
    """First text of each cell, and what stands beneath."""
    return [texts for _, texts in Page(f"<div>{markup}</div>").cells]


def body(text, name):
    """Rows of the first table of a section."""
    return section(text, name).split("<tbody>")[1].split("</tbody>")[0]


def has_no_nan(folder, text):
    visible = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|NaN|None|inf)\b", visible)
    for path in folder.glob("*.csv"):
        assert not re.search("nan|None", path.read_text("utf-8"))


@pytest.mark.parametrize("make", [make_apd, make_clusters, make_margins, make_probes])
def test_a_report_of_one_metric_alone(tmp_path, make):
    folder, text = build(tmp_path, [make("a"), make("b")])
    page = Page(text)
    tags = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    for reference in page.references:
        if reference.startswith("data:"):
            continue
        local = (
            reference[1:] in tags if reference.startswith("#") else (folder / reference).is_file()
        )
        assert local or reference == "https://arxiv.org/abs/2507.17845", reference
    assert 'id="index"' not in text
    assert not (folder / "robustness_index.csv").exists()
    assert "Robustness of 2 pathology encoders" in text
    has_no_nan(folder, text)


@pytest.mark.slow
def test_report_of_all_metrics_is_the_same_twice(tmp_path):
    makers = (make_record, make_margins, make_probes, make_apd, make_clusters)
    records = [make(m, d) for make in makers for m in "ab" for d in ("one", "two")]
    first, _ = build(tmp_path, records, "first")
    second, _ = build(tmp_path, records, "second")
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    # Page, tables, and figures: the front, two overviews, four a dataset.
    assert len(names) == 2 + 15 + 3 + 4 * 2
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def half_width(drops, df):
    """Masson and Loftus by hand; drops float[datasets][repetitions] of equal lengths."""
    drops = np.asarray(drops)
    shifted = (drops - drops.mean(1, keepdims=True) + drops.mean()).ravel()
    return stats.t.ppf(0.975, df) * shifted.std(ddof=1) / math.sqrt(drops.size)


def test_drops_are_aggregated_with_both_degrees_of_freedom(tmp_path):
    records = [make_apd("m", d, drop=drop) for d, drop in (("one", 0.1), ("two", 0.3))]
    folder, text = build(tmp_path, records)
    drops = []
    for record in records:
        values = np.array(record.id_accuracies)
        drops.append((values[1:] / values[0]).mean(0) - 1)
    mean, n = np.mean(drops), np.size(drops)
    shown = cells_of(body(text, "drop"))
    assert shown[0] == [f"−{-100 * mean:.2f} %"]
    assert shown[1] == [f"± {100 * half_width(drops, n):.3f}"]
    assert shown[2] == [f"± {100 * half_width(drops, n - 1):.3f}"]
    assert shown[1] != shown[2]
    [row] = read_csv(folder / "headline.csv")
    np.testing.assert_allclose(float(row["apd_id"]), mean, rtol=1e-12)
    np.testing.assert_allclose(float(row["apd_id_high"]) - mean, half_width(drops, n), rtol=1e-9)


@pytest.mark.slow
def test_no_mean_is_over_two_confounders_of_the_same_patches(tmp_path):
    def records(model, indices):
        return [
            make(model, dataset, number)
            for dataset, number in indices.items()
            for make in (make_record, make_clusters)
        ] + [make_apd(model, dataset, drop=number / 2) for dataset, number in indices.items()]

    both = records("a", {"ours@medical_center": 0.25, "ours@scanner": 0.75})
    both += records("b", {"ours@medical_center": 0.5, "ours@scanner": 0.5})
    folder, text = build(tmp_path, both)
    assert "mean over 2" not in text
    assert "Over all datasets" not in text
    assert "By scanner: Biology outweighs scanner" in text
    rows = {r["model"]: r for r in read_csv(folder / "headline.csv")}
    assert float(rows["a"]["robustness_index@scanner"]) == 0.75
    assert float(rows["a"]["robustness_index@medical_center"]) == 0.25
    # Two datasets by the same two confounders: a mean for each.
    both += records("a", {"more@scanner": 0.25, "more@medical_center": 0.75})
    both += records("b", {"more@scanner": 0.25, "more@medical_center": 0.75})
    folder, text = build(tmp_path, both, "several")
    assert "mean over 2 datasets by scanner" in text
    assert "unweighted, over datasets by scanner" in text
    rows = {r["model"]: r for r in read_csv(folder / "headline.csv")}
    assert float(rows["a"]["robustness_index@scanner"]) == 0.5
    assert float(rows["b"]["robustness_index@medical_center"]) == 0.625
    assert float(rows["a"]["clustering_score@scanner"]) == 0.5
    assert float(rows["b"]["apd_id@medical_center"]) == pytest.approx(-0.3125, abs=0.001)
    places = {r["dataset"] for r in read_csv(folder / "ranks.csv")}
    assert {"mean@scanner", "mean@medical_center"} <= places


@pytest.mark.slow
def test_files_over_datasets_stand_beside_the_others(tmp_path):
    records = [
        make(dataset=name, provenance={"store": {"identity": {"encoder": {"model": "one"}}}})
        for name in ("camelyon", "tcga", "tolkach_esca")
        for make in (make_record, make_apd, make_clusters)
    ]
    before, _ = build(tmp_path, records)
    root = str(tmp_path / "results")
    assert len(write_summaries(root, "encoder")) == 2
    after, _ = build(tmp_path, records, "again")
    assert (before / "index.html").read_bytes() == (after / "index.html").read_bytes()


def test_drops_of_a_dataset_stand_beside_heads_and_accuracies(tmp_path):
    record = make_apd("m", drop=0.2, apd_ood=0.01234)
    folder, text = build(tmp_path, [record])
    shown = cells_of(section(text, "drop"))
    drops = (np.array(record.id_accuracies)[1:] / np.array(record.id_accuracies)[0]).mean(0) - 1
    assert shown[0] == [f"−{-100 * drops.mean():.2f} %", "−26.25 – −16.88 %"]
    [row] = read_csv(folder / "headline.csv")
    assert [float(row[f"apd_id_{end}"]) for end in ("low", "high")] == [-0.2625, -0.16875]
    rows = {r["head"]: r for r in read_csv(folder / "apd.csv")}
    assert float(rows["linear"]["apd_id_low"]) == -0.2625
    assert float(rows["knn"]["apd_id_low"]) == -0.3125
    assert shown[1][0] == "+1.23 %"
    assert [c[0] for c in shown[2:4]] == ["−0.250", "−0.125"]
    means = record.id_accuracy_means
    assert [c[0] for c in shown[4:6]] == [f"{means[0]:.3f}", f"{means[-1]:.3f}"]
    assert shown[8] == ["96 %"]
    knn = record.heads["knn"]
    assert shown[9][1] == f"{means[0]:.3f} → {means[-1]:.3f}"
    assert shown[11][0] == f"−{-100 * knn.apd_id:.2f} %"
    rows = {r["head"]: r for r in read_csv(folder / "apd.csv")}
    assert float(rows["knn"]["apd_id"]) == knn.apd_id
    assert rows["linear"]["setting"] == "C"
    assert float(rows["linear"]["apd_ood"]) == 0.01234
    accuracies = read_csv(folder / "apd_accuracies.csv")
    assert len(accuracies) == 2 * len(V) * record.repetitions
    [row] = [
        r for r in accuracies if (r["head"], r["split"], r["repetition"]) == ("linear", "2", "3")
    ]
    assert float(row["id_accuracy"]) == record.id_accuracies[2][3]
    assert float(row["cramers_v"]) == V[2]


def test_errors_are_shown_by_direction_where_they_grow_most(tmp_path):
    folder, text = build(tmp_path, [make_apd("m"), make_apd("other", direction_id={})])
    markup = section(text, "drop").split("Which class is called which")[1]
    table = markup.split("<details>")[0]
    assert table.index("tumor → stroma") < table.index("stroma → tumor")
    assert "tumor → tumor" not in table
    assert cells_of(table.split("<tbody>")[1].split("</tbody>")[0]) == [
        ["75 %", "from 10 %"],
        ["–"],
        ["20 %", "from 10 %"],
        ["–"],
    ]
    every_v = cells_of(markup.split("<details>")[1].split("</details>")[0])
    assert every_v == [["10 %"], ["30 %"], ["75 %"], ["10 %"], ["–"], ["20 %"]]
    rows = [r for r in read_csv(folder / "apd_directions.csv") if r["class"] == "tumor"]
    assert [(r["called"], r["cramers_v"], r["share"]) for r in rows][3:] == [
        ("stroma", "0.0", "0.1"),
        ("stroma", "0.5", "0.3"),
        ("stroma", "1.0", "0.75"),
    ]
    columns = ["model", "dataset", "side", "center", "class", "called", "split", "cramers_v"]
    assert list(rows[0]) == [*columns, "share"]


def test_drop_without_other_centres_and_with_one_repetition(tmp_path):
    nothing = [[NAN]] * 3
    record = make_apd(
        "m",
        repetitions=1,
        apd_ood=NAN,
        nipd_ood=NAN,
        ood_accuracies=nothing,
        ood_accuracy_means=[NAN] * 3,
        n_ood_test_rows=0,
    )
    folder, text = build(tmp_path, [record, dataclasses.replace(record, dataset="two")])
    has_no_nan(folder, text)
    page = Page(f"<div>{section(text, 'drop')}</div>")
    titles = [attrs.get("title", "") for attrs, texts in page.cells if texts == ["–"]]
    assert all(titles)
    assert any("no such test rows" in title for title in titles)
    assert "undefined: one repetition has no interval" in titles
    for one, n in ((record, 1), (make_apd("m"), 2)):
        drawn = figures.draw_drop("tiles", ["m"], [one])
        assert len(drawn.panels[0].lines) == len(drawn.keys) == n


def test_drop_curves_draw_the_means():
    record = make_apd("m", drop=0.3, ood_accuracy_means=[0.8, 0.7, 0.6])
    outside, inside = figures.draw_drop("tiles", ["m"], [record]).panels[0].lines
    for line, means in ((inside, record.id_accuracy_means), (outside, record.ood_accuracy_means)):
        np.testing.assert_array_equal(line.x, V)
        np.testing.assert_array_equal(line.y, means)


def test_clustering_score_with_interval_noise_and_agreements(tmp_path):
    folder, text = build(tmp_path, [make_clusters("m", score=-0.5, k=3)])
    shown = cells_of(body(text, "clusters"))
    assert shown[0] == ["−0.500", "−0.600 – −0.400"]
    assert shown[1] == ["± 0.062"]
    agreements = ["0.750", "0.250", "0.300", "0.200", "0.280", "0.180"]
    assert [c[0] for c in shown[2:8]] == agreements
    assert [c[0] for c in shown[8:]] == ["−0.250", "3", "none"]
    [(attrs, texts)] = Page(f"<div>{body(text, 'overview')}</div>").cells
    assert texts[0] == "−0.500"
    # -1 to 1 on the ramp from 0 to 1.
    assert attrs["style"] == f"background:{palette.heat(0.25)}"
    markup = section(text, "clusters")
    assert "says nothing of other slides" in markup
    assert "K at the end of the grid</b>" not in markup
    [row] = read_csv(folder / "clustering.csv")
    assert list(row)[:4] == [*("model", "dataset", "clustering_score", "clustering_score_low")]
    assert {"clustering_score_std", "nmi_center", "distance", "trials", "n_slides"} <= set(row)
    assert float(row["clustering_score_low"]) == -0.6
    [row] = read_csv(folder / "clustering_combinations.csv")
    assert (row["class_2"], row["center_1"], row["k"]) == ("stroma", "north", "3")
    np.testing.assert_allclose(float(row["ari_biology"]), 0.75, rtol=1e-12)


def test_k_at_the_end_of_the_grid_is_flagged(tmp_path):
    _, text = build(tmp_path, [make_clusters("m", k=30), make_clusters("n", k=29)])
    markup = section(text, "clusters")
    assert "in 1 of 2 clusterings" in markup
    assert "(30)" in markup
    assert cells_of(body(text, "clusters"))[10][0] == "1 of 1"
    combination = markup.split("<details>")[1].split("<tbody>")[1].split("</tbody>")[0]
    assert "tumor, stroma at north, south" in combination
    flagged, other = combination.split("</td>")[:2]
    assert 'class="weak"' in flagged
    assert 'class="weak"' not in other


def test_undefined_clusterings_are_dashes(tmp_path):
    scores = {f.name: NAN for f in dataclasses.fields(make_clusters()) if f.type is float}
    lost = make_clusters("m", ci95=None, combinations=[], n_at_k_max=0, **scores)
    folder, text = build(tmp_path, [lost, make_clusters("n")])
    has_no_nan(folder, text)
    page = Page(f"<div>{body(text, 'clusters')}</div>")
    undefined = [attrs for attrs, texts in page.cells if texts == ["–"]]
    assert len(undefined) == 10
    assert all(attrs["title"] and attrs["data-sort"] == "" for attrs in undefined)


@pytest.mark.slow
def test_headline_holds_all_parts_and_marks_the_best(tmp_path):
    records = [
        make_record("a", index=0.6),
        make_record("b", index=0.8),
        make_apd("a", drop=0.1),
        make_apd("b", drop=0.4),
        make_clusters("a", score=-0.25),
        make_clusters("b", "other", score=0.25),
    ]
    folder, text = build(tmp_path, records)
    page = Page(f"<div>{body(text, 'overview')}</div>")
    shown = [(texts[0], attrs.get("class")) for attrs, texts in page.cells]
    # Accuracy, drop in and out of domain, index, its support, clustering score.
    first, second = [shown[:6], shown[6:]]
    assert first[0][0] == second[0][0] == "0.902"
    assert page.cells[1][0]["title"] == "from 0.902"
    assert first[3] == ("0.800", "best")
    assert second[3] == ("0.600", None)
    assert second[1][1] == "best"
    assert first[1][1] is None
    assert [first[5][0], second[5][0]] == ["–", "–"]
    assert page.cells[5][0]["title"] == "not evaluated on tiles"
    rows = {r["model"]: r for r in read_csv(folder / "headline.csv")}
    assert float(rows["a"]["robustness_index"]) == 0.6
    assert rows["a"]["robustness_index_low"] == ""
    assert rows["a"]["clustering_score"] == ""
    assert "least with a by" in text
    assert ", most with b by" in text


def test_intervals_stand_beneath_companions_probes_and_groups(tmp_path):
    folder, text = build(tmp_path, [make_record("m", index=0.25), make_probes("m")])
    companions = cells_of(body(text, "companions"))
    assert companions[0] == ["0.250", "0.225–0.253"]
    assert companions[1] == ["0.458", "0.400–0.600"]
    assert companions[5] == ["0.143"]
    probes = cells_of(body(text, "probes"))
    assert probes == [["0.938", "0.800–0.900"], ["–"], ["0.812"], ["0.625"]]
    assert cells_of(body(text, "groups"))[0] == ["0.25", "0.20–0.26\n0.58"]
    [row] = read_csv(folder / "probes.csv")
    assert list(row)[:5] == ["model", "dataset", "design", "k", "biology_auc"]
    assert (row["biology_auc_low"], row["biology_auc_high"]) == ("0.8", "0.9")
    assert row["center_auc_low"] == row["center_knn_balanced_accuracy_low"] == ""


def made_by(model, dataset, index):
    spec = registry.MODELS[model]
    encoder = {"model": model, "pooling": spec.pathorob.pooling}
    encoder["preprocess"] = as_plain(spec.pathorob.preprocess or spec.preprocess)
    provenance = {"store": {"identity": {"encoder": encoder}}}
    return make_record(f"{model}_pathorob", dataset, index, provenance=provenance)


def test_published_numbers_stand_beside_runs_that_repeat_them_only():
    records = [
        made_by("uni2_h", "camelyon", 0.5),
        dataclasses.replace(made_by("uni2_h", "tolkach_esca", 0.5), k=46),
        make_record("phikon_v2", "camelyon", 0.5),
        make_apd("m", "tiles"),
    ]
    [part] = page_published.build_sections(Collection(map(Outcome, records)))
    [block] = part.blocks
    rows = {row.note: [cell.text for cell in row.cells] for row in block.context["table"].rows}
    assert rows == {
        "robustness index, camelyon": ["0.500", "0.5445", "−0.044", "PathoROB", "–"],
        "robustness index, tolkach_esca": ["0.500", "0.9226", "−0.423", "PathoROB", "–"],
    }
    assert block.context["reasons"][0][1] == "phikon_v2"
    assert "not recorded" in block.context["reasons"][0][0]
    assert ("nothing is published of this encoder", "m") in block.context["reasons"]
    assert page_published.build_sections(Collection([Outcome(make_margins("m"))])) == []


@pytest.mark.slow
def test_the_page_says_why_no_published_number_stands_there(tmp_path):
    _, text = build(tmp_path, [make_record("m")])
    markup = section(text, "published")
    assert "nothing is published of this encoder (m)" in markup
    assert "<table" not in markup


@pytest.mark.slow
def test_a_confounder_is_named_in_place_of_the_centre(tmp_path):
    record = make_record("m", "ours@scanner")
    folder, text = build(tmp_path, [record, make_record("m", "ours@stain", 0.5)])
    assert '<span dir="auto">ours by scanner</span>' in text
    assert "<caption>scanner</caption>" in text
    assert "<caption>Medical centres</caption>" not in text
    assert "read “centre” as its value" in text
    assert "@" not in re.sub(r"<(style|script).*?</\1>|<a [^>]*>", "", text, flags=re.DOTALL)
    assert {r["dataset"] for r in read_csv(folder / "curves.csv")} == {"ours@scanner", "ours@stain"}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("ours@scanner", ("ours", "scanner")),
        ("a@b@c", ("a@b", "c")),
        ("ours", ("ours", "")),
        ("@scanner", ("@scanner", "")),
        ("ours@", ("ours@", "")),
    ],
)
def test_dataset_and_confounder(dataset, expected):
    assert split_confounder(dataset) == expected
    assert name_dataset(dataset) == " by ".join(part for part in expected if part)


def test_numbers_are_written_so_that_nothing_is_hidden():
    assert [format_number(v) for v in (-0.0001, 0.5, -0.5, NAN)] == [
        "0.000",
        "0.500",
        "−0.500",
        "–",
    ]
    assert [format_signed(v) for v in (0.01, -0.01, 0.0001)] == ["+0.010", "−0.010", "0.000"]
    assert format_interval([-0.1, 0.2]) == "−0.100 – 0.200"
    assert format_interval([NAN, 0.2]) == format_interval(None) == ""
    shares = (0.0, 0.0004, 0.004, 0.49299, 0.4999, 0.5, 0.9996, 1.0, NAN)
    assert [format_share(v) for v in shares] == [
        *("0 %", "< 0.1 %", "0.4 %", "49.3 %", "49.9 %", "50 %", "99.9 %", "100 %", "–")
    ]


def test_provenance_of_older_records_shows_no_folders(tmp_path):
    old = make_record("m", provenance={"settings": {"view": "/home/ada/rows.csv"}})
    _, text = build(tmp_path, [old])
    assert "rows.csv" in text
    assert "/home/ada" not in text


def test_provenance_names_every_metric(tmp_path):
    records = [make_record("m"), make_clusters("m", provenance={"seed": "<7>"})]
    _, text = build(tmp_path, records)
    markup = section(text, "provenance")
    assert "m: robustness_index" in markup
    assert "m: clustering_score" in markup
    assert (
        json.dumps({"seed": "<7>"}, indent=2)
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&#34;")
        in markup
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_maps_are_shown_where_there_are_any(tmp_path, where):
    labels = {SLIDE: ["s1", "s2", "s3"], PATCH: ["1", "2", "3"], CLASS: ["a", "b", "a"]}
    columns = labels | {CENTER: ["x", "y", "x"]} | {c: [0.0, 1.0, 2.0] for c in COORDINATES}
    for name in ("combination_0000", "dataset"):
        sink = io.BytesIO()
        pq.write_table(pa.table(columns).replace_schema_metadata({"title": "ours"}), sink)
        path = tmp_path / "results" / "m" / "ours@stain 1" / "maps" / f"{name}.parquet"
        files.write_bytes(str(path), sink.getvalue())
    folder, text = build(
        tmp_path, [make_clusters("m", "ours@stain 1"), make_clusters("n")], maps=where
    )
    shown = section(text, "maps")
    names = [f"m, ours by stain 1: {words}" for words in ("whole dataset", "combination 0000")]
    assert [shown.count(name) for name in names] == [1, 1]
    assert shown.index(names[0]) < shown.index(names[1])
    assert shown.count("(without a digest)") == 2
    links = re.findall(r'<a href="([^"]+)"', shown)
    if where == "inside":
        assert shown.count('<div class="map"') == 2
        assert not links
        assert not (folder / "figures/maps").exists()
    else:
        assert '<div class="map"' not in shown
        pages = [(folder / unquote(link)).read_text("utf-8") for link in links]
        assert len(pages) == 2
        assert all('<div class="map"' in page and Page(page) for page in pages)


@pytest.mark.slow
def test_maps_elsewhere_are_refused(tmp_path):
    with pytest.raises(UsageError, match="inside"):
        build(tmp_path, [make_clusters("m")], maps="there")


def test_a_report_is_current_as_long_as_results_maps_and_tiles_are_those(tmp_path):
    folder, _ = build(tmp_path, [make_clusters("m", "d")])
    results = str(tmp_path / "results")

    def is_current(**shown):
        return is_report_current(results, str(folder), **shown)

    assert is_current()
    assert not is_current(maps="beside")
    build(tmp_path, [], maps="beside")
    assert is_current(maps="beside")
    assert not is_current()
    tiles = [str(tmp_path / name) for name in "ab"]
    for seed, path in enumerate(tiles):
        write_tileset(path, SyntheticConfig(n_slides=1, n_tiles=1 + seed, tile_px=32))
    assert not is_current(maps="beside", tiles=tiles[0])
    build(tmp_path, [], tiles=tiles[0])
    assert is_current(tiles=tiles[0])
    assert not is_current(tiles=tiles[1])
    assert not is_current()
    # A map that came after the report, and a slide as a classifier sees it.
    for place in ("maps/dataset", "attention/mean/split_0_id/slide_0"):
        build(tmp_path, [])
        assert is_current()
        files.write_bytes(f"{results}/m/d/{place}.parquet", b"not read here")
        assert not is_current()
