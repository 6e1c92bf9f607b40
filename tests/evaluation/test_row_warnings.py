"""What a record says about its rows: names, design, and rows that do not belong to their labels."""

import unicodedata

import numpy as np
import oracles
import pandas as pd
import pytest

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.embeddings.store import Store
from pathorob_jax.evaluation.row_warnings import warn_of_names
from pathorob_jax.evaluation.settings import ApdSettings, ClusteringSettings, Settings

CENTERS = ("Bonn", "Köln", "Ulm")
FEW = Settings(k=9, draws=200)


def make_rows(n_slides=4, n_patches=10, centers=CENTERS, classes=("normal", "tumor")):
    """A crossed design whose slides hold one class each."""
    cells = np.indices((len(centers), len(classes), n_slides, n_patches)).reshape(4, -1)
    return {
        "slide_id": [f"c{c}b{b}s{s}" for c, b, s, _ in cells.T],
        "patch_id": [str(p) for p in cells[3]],
        "biological_class": [classes[b] for b in cells[1]],
        "medical_center": [centers[c] for c in cells[0]],
    }


def embed(rng, rows, *, biology=1.0, hospital=1.0):
    x = rng.normal(size=(len(rows["slide_id"]), 16))
    for name, size in (("biological_class", biology), ("medical_center", hospital)):
        names, ids = np.unique(rows[name], return_inverse=True)
        x += size * rng.normal(size=(len(names), 16))[ids]
    return x.astype(np.float32)


def evaluate(x, rows, metric="robustness_index", settings=FEW):
    return pr.evaluate_embeddings(x, rows, metrics=[metric], settings=settings)[metric]


def chance(record):
    return [text for text in record.warnings if "chance" in text]


@pytest.mark.slow
@pytest.mark.parametrize(
    "metric", ["robustness_index", "margins", pytest.param("probes", marks=pytest.mark.campaign)]
)
def test_rows_that_were_shuffled_are_said(rng, metric):
    rows = make_rows()
    x = embed(rng, rows)
    order = rng.permutation(len(x))
    shuffled = {name: np.asarray(values)[order].tolist() for name, values in rows.items()}
    assert chance(evaluate(x, rows, metric)) == []
    [text] = chance(evaluate(x, shuffled, metric))
    assert "biology and medical centre are both at chance: of the 10 nearest" in text
    assert "shuffled" in text


@pytest.mark.slow
def test_a_shuffled_table_beside_an_array_is_said(tmp_path, rng):
    rows = pd.DataFrame(make_rows())
    x = embed(rng, rows)
    np.save(tmp_path / "x.npy", x)
    found = {}
    for name, table in (("right", rows), ("shuffled", rows.sample(frac=1, random_state=3))):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        store = pr.import_embeddings(
            str(tmp_path / "x.npy"),
            str(tmp_path / f"{name}.csv"),
            root=str(tmp_path / "e"),
            model="m",
            dataset=name,
        )
        found[name] = pr.evaluate_store(store, settings=FEW).robustness_index
    assert chance(found["right"]) == []
    assert len(chance(found["shuffled"])) == 1
    # Below chance, since patches of the own slide are no neighbours.
    assert found["shuffled"].balanced_accuracy < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("biology", "hospital"), [(1.0, 0.0), (0.0, 1.0), (0.4, 0.4)])
def test_a_model_that_sees_little_is_not_accused(rng, biology, hospital):
    rows = make_rows(n_slides=6)
    assert chance(evaluate(embed(rng, rows, biology=biology, hospital=hospital), rows)) == []


@pytest.mark.slow
def test_paired_subsets_are_looked_at_together(rng):
    rows = make_rows(classes=("a", "b", "c"))
    x = embed(rng, rows)
    paired = Settings(k=9, draws=200, design="paired", min_cell_size=30)
    assert chance(evaluate(x, rows, settings=paired)) == []
    assert len(chance(evaluate(rng.permutation(x), rows, settings=paired))) == 1


def test_one_hospital_in_two_unicode_forms_is_one(rng):
    rows = make_rows()
    x = embed(rng, rows, hospital=2)
    nfd = unicodedata.normalize("NFD", "Köln")
    mixed = [
        nfd if name == "Köln" and slide.endswith(("s0", "s1")) else name
        for name, slide in zip(rows["medical_center"], rows["slide_id"], strict=True)
    ]
    assert len(set(mixed)) == 4
    one, two = (evaluate(x, r) for r in (rows, rows | {"medical_center": mixed}))
    assert two.robustness_index == one.robustness_index
    assert list(two.per_center) == ["Bonn", "Köln", "Ulm"]
    # The reference on the table whose forms were made equal.
    ids = [np.unique(rows[n], return_inverse=True)[1] for n in rows]
    neighbors, _ = oracles.nearest(x, ids[0], 9)
    assert one.robustness_index == oracles.robustness_index(neighbors, ids[2], ids[3], 9)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"centers": ("Köln", "Koln", "Bonn")}, "medical centres 'Koln' and 'Köln' may be one"),
        ({"classes": ("Tumour", "tumour")}, "biological classes 'Tumour' and 'tumour' may be one"),
        ({"centers": ("北京医院", "上海医院", "武汉医院")}, None),
        ({"classes": ("HER2+", "HER2-")}, None),
    ],
)
def test_names_that_may_be_one_are_said(rng, names, said):
    rows = make_rows(**names)
    record = evaluate(embed(rng, rows), rows)
    texts = [text for text in record.warnings if "may be one" in text]
    assert [text.split(":")[0] for text in texts] == ([said] if said else [])


def test_of_many_names_that_may_be_one_five_pairs_are_named():
    names = [f"{letter}{end}" for letter in "bcdefgh" for end in ("one", "ONE")]
    rows = as_manifest(
        {
            "slide_id": names,
            "patch_id": range(len(names)),
            "biological_class": ["tumor"] * len(names),
            "medical_center": names,
        }
    )
    texts = warn_of_names(rows)
    assert len(texts) == 6
    assert texts[0].startswith("medical centres 'bONE' and 'bone' may be one")
    assert texts[-1] == "2 more pairs of medical centres may each be one."


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["apd", "clustering_score"])
def test_all_metrics_say_so(rng, metric):
    rows = make_rows(n_slides=8, n_patches=3, centers=("A", "B"), classes=("Tumour", "tumour"))
    settings = Settings(
        draws=200,
        apd=ApdSettings(repetitions=1),
        clustering_score=ClusteringSettings(trials=1, k_min=2, k_max=2),
    )
    record = evaluate(embed(rng, rows), rows, metric, settings)
    assert any("'Tumour' and 'tumour' may be one" in text for text in record.warnings)


@pytest.mark.slow
def test_cells_of_one_slide_and_classes_of_one_centre_are_said(rng):
    rows = make_rows(n_slides=1, n_patches=20)
    texts = evaluate(embed(rng, rows), rows).warnings
    assert any("6 of 6 cells of a class at a centre have a single slide" in text for text in texts)
    rows = make_rows(classes=("a", "b", "c"))
    kept = [
        i
        for i, (bio, center) in enumerate(
            zip(rows["biological_class"], rows["medical_center"], strict=True)
        )
        if bio != "c" or center == "Ulm"
        if bio == "a" or center != "Bonn"
    ]
    cut = {name: [values[i] for i in kept] for name, values in rows.items()}
    texts = evaluate(embed(rng, cut), cut).warnings
    assert any("classes 'c' lie in one medical centre each" in text for text in texts)
    assert any("centres 'Bonn' have one biological class each" in text for text in texts)
    assert not any("single slide" in text for text in texts)
    whole = evaluate(embed(rng, rows), rows).warnings
    assert not any("cells of a class" in text or "lie in one" in text for text in whole)


@pytest.mark.parametrize("metric", ["robustness_index", "margins", "probes", "clustering_score"])
@pytest.mark.parametrize(
    ("column", "part"),
    [
        ("patient", "column 'patient' is empty in some rows"),
        ("case", "lies in several groups of column 'case'"),
        ("patiant", "expected a column 'patiant'"),
    ],
)
def test_every_metric_reads_groups_by_one_rule_before_any_work(
    rng, monkeypatch, metric, column, part
):
    rows = make_rows()
    n = len(rows["slide_id"])
    rows |= {
        "patient": ["" if s.endswith("s0") else s for s in rows["slide_id"]],
        "case": [str(i % 7) for i in range(n)],
    }
    monkeypatch.setattr(Store, "read", lambda *_: pytest.fail("the embeddings were read"))
    with pytest.raises(InputError, match=part):
        evaluate(embed(rng, rows), rows, metric, Settings(k=9, group_column=column))


@pytest.mark.slow
@pytest.mark.parametrize("label", ["biology", "center", "slide"])
@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_labels_of_arrays_are_refused(rng, label, missing):
    rows = make_rows()
    labels = {
        "biology": np.unique(rows["biological_class"], return_inverse=True)[1].astype(float),
        "center": np.unique(rows["medical_center"], return_inverse=True)[1].astype(float),
        "slide": np.unique(rows["slide_id"], return_inverse=True)[1].astype(float),
    }
    x = embed(rng, rows)
    assert pr.robustness_index(x, **labels, k=5).n_samples == len(x)
    holed = labels[label].astype(object)
    holed[7] = missing
    with pytest.raises(InputError, match="is empty in 1 rows, the first is row 7"):
        pr.robustness_index(x, **(labels | {label: holed}), k=5)
