"""Published numbers: those of their sources, and beside results that repeat them only."""

import csv
import dataclasses
import math

import pytest
from report_records import make_apd, make_clusters, make_record

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.models import registry
from pathorob_jax.results import beside_published, published
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.published import find_published
from pathorob_jax.results.record import Outcome

DATASETS = ("camelyon", "tcga", "tolkach_esca")


def provenance(model, *, use="pathorob", **changes):
    """Where a record of an encoder comes from, used as PathoROB or as its authors did."""
    spec = registry.MODELS[model]
    pooling, images = spec.default_pooling, spec.preprocess
    if use == "pathorob":
        pooling, images = spec.pathorob.pooling, spec.pathorob.preprocess or spec.preprocess
    encoder = {"model": model, "pooling": pooling, "preprocess": as_plain(images)}
    return {"store": {"identity": {"encoder": encoder | changes}}, "settings": {}}


def index_of(model, dataset="camelyon", value=0.5, *, use="pathorob", encoder=(), **changes):
    protocol = PROTOCOLS[dataset].robustness_index
    values = {"k": protocol.k, "design": protocol.design} | changes
    made = provenance(model, use=use, **dict(encoder))
    return make_record(f"{model}_{use}", dataset, value, provenance=made, **values)


def named_otherwise(model, name):
    """The index of an encoder whose store names it as a table does."""
    record = index_of(model)
    record.provenance["store"]["identity"]["encoder"]["model"] = name
    return record


def test_the_numbers_are_those_of_the_leaderboard(shared):
    """Each value of the CSV is here, to the digits that it has, and nothing else."""
    titles = {
        ("robustness_index", "tcga"): "ri_tcga_2x2",
        ("robustness_index", "camelyon"): "ri_camelyon",
        ("robustness_index", "tolkach_esca"): "ri_tolkach_esca",
        ("robustness_index", "mean"): "ri_mean",
        ("apd_id", "mean"): "apd_id_percent",
        ("apd_ood", "mean"): "apd_ood_percent",
        ("clustering_score", "camelyon"): "clustering_camelyon",
        ("clustering_score", "tcga"): "clustering_tcga_4x4",
        ("clustering_score", "tolkach_esca"): "clustering_tolkach_esca",
    }
    with (shared / "pathorob/published/leaderboard.csv").open() as stream:
        rows = {row["model"]: row for row in csv.DictReader(stream)}
    ours = [n for n in published.list_published() if n.board.title == "PathoROB"]
    assert len(ours) == len(rows) * len(titles)
    for number in ours:
        column = titles[number.field, number.dataset]
        scale = 100 if column.endswith("_percent") else 1
        text = rows[number.model][column]
        # Two of the models have a fourth decimal here.
        digit = 10.0 ** -len(text.partition(".")[2])
        assert abs(scale * number.value - float(text)) <= 0.51 * digit, (number.model, column)
        if scale == 100:
            half = float(rows[number.model][column.replace("_percent", "_ci95_percent")])
            assert scale * (number.ci95[1] - number.value) == pytest.approx(half, abs=1e-9)
            assert scale * (number.value - number.ci95[0]) == pytest.approx(half, abs=1e-9)
        else:
            assert number.ci95 is None


def test_the_mean_of_each_model_is_that_of_its_datasets():
    for model in {n.model for n in published.list_published() if n.board.title == "PathoROB"}:
        own = {
            n.dataset: n.value
            for n in published.list_published()
            if (n.model, n.field, n.board.title) == (model, "robustness_index", "PathoROB")
        }
        mean = own.pop("mean")
        assert sorted(own) == list(DATASETS)
        # Every one is rounded.
        assert mean == pytest.approx(math.fsum(own.values()) / 3, abs=1.1e-3)


def test_every_number_says_where_it_is_from():
    for number in published.list_published():
        board = number.board
        assert board.source
        assert board.date[:2] == "20"
        assert board.protocol
        if number.field == "robustness_index" and number.dataset != "mean":
            assert board.k[number.dataset] > 0
            assert board.design[number.dataset] in ("all", "paired")
    uses = {board.use for board in published.known_boards().values()}
    assert uses == {"pathorob", "stated", "unknown", "authors"}


def test_the_number_of_the_same_use_is_found():
    found = find_published([index_of("uni2_h")], "robustness_index")
    assert (found.number.value, found.why, found.note) == (0.5445, "", "")
    # PathoROB's use of Virchow2 is inferred, and its images are taken to be the authors'.
    found = find_published([index_of("virchow2")], "robustness_index")
    assert found.number.value == 0.806
    assert "inferred" in found.note
    assert "preprocessing is taken" in found.note
    # As the authors use it, and on croma's k: croma's number.
    found = find_published([index_of("uni2_h", use="authors")], "robustness_index")
    assert (found.number.value, found.number.board.title) == (0.515, "croma")
    found = find_published(
        [index_of("uni2_h", "tolkach_esca", use="authors", k=61)], "robustness_index"
    )
    assert found.number.value == 0.916


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (index_of("uni2_h", k=12), "PathoROB: k = 12, published at 11"),
        (index_of("uni2_h", encoder={"pooling": "mean"}), "pooled as mean, published as clsmean"),
        (
            index_of("uni2_h", encoder={"preprocess": {"resize_px": 256, "crop_px": 224}}),
            "resize_px 256, published with 224",
        ),
        (index_of("uni2_h", encoder={"preprocess": None}), "another preprocessing"),
        (index_of("uni2_h", design="paired"), "design paired, published all"),
        (index_of("uni2_h", "tcga", use="authors"), "pooled as cls, published as clsmean"),
        (
            dataclasses.replace(index_of("uni2_h"), model="uni2_h+combat"),
            "robustified or stain-normalised; published are plain encoders",
        ),
        (
            dataclasses.replace(index_of("uni2_h"), dataset="camelyon@scanner"),
            "not scored by the medical centre",
        ),
        (dataclasses.replace(index_of("uni2_h"), dataset="ours"), "published of tcga, camelyon"),
        (make_record("uni2_h", "camelyon", 0.5), "are not recorded"),
        (make_record("mine", "camelyon", 0.5), "nothing is published of this encoder"),
        (named_otherwise("uni2_h", "UNI2-h"), "PathoROB: the encoder is not of the registry"),
        (
            index_of("musk", use="authors", k=12),
            "PathoROB: how PathoROB used the encoder is not known; croma: k = 12",
        ),
        (
            index_of("h_optimus_0", use="authors", k=12),
            "MedARC: pooled as cls, published as clsmean; croma: k = 12",
        ),
        (
            index_of("genbio_pathfm", use="authors", k=46, dataset="tolkach_esca"),
            "histoboard: its pooling and preprocessing are not stated; croma: k = 46",
        ),
    ],
)
def test_no_number_without_the_reason(record, reason):
    found = find_published([record], "robustness_index")
    assert found.number is None
    assert reason in found.why


def test_the_precision_of_an_encoder_is_a_reserve():
    board = published.known_boards()["medarc"]
    assert published._note(board, "h_optimus_0") == "its encoder computed in float16"
    assert published._note(dataclasses.replace(board, precision=""), "h_optimus_0") == ""


def test_fewer_patches_are_other_rows():
    record = index_of("uni2_h")
    record.provenance["settings"]["max_patches_per_combi"] = 10
    assert "with fewer patches" in find_published([record], "robustness_index").why


def drop_of(dataset, **changes):
    protocol = PROTOCOLS[dataset].apd
    n = len(protocol.schedule.slides)
    values = {
        "repetitions": protocol.repetitions,
        "seed": protocol.seed,
        "rows_per_slide": protocol.schedule.rows_per_slide,
        "cramers_v": [i / (n - 1) for i in range(n)],
        "provenance": provenance("uni2_h"),
    }
    return dataclasses.replace(make_apd("uni2_h_pathorob", dataset), **(values | changes))


def test_a_mean_is_compared_over_the_datasets_of_the_published_one():
    drops = [drop_of(dataset) for dataset in DATASETS]
    found = find_published(drops, "apd_id")
    assert found.number.value == -0.0264
    assert found.number.ci95 == pytest.approx([-0.0324, -0.0204])
    assert "mean is over camelyon" in find_published(drops[:2], "apd_id").why
    other = [*drops[:2], drop_of("tolkach_esca", seed=1)]
    assert "seed 1, published 1000" in find_published(other, "apd_id").why
    assert "published of mean only" in find_published(drops[:1], "apd_id").why
    splits = drop_of("tolkach_esca", cramers_v=[0.0, 1.0])
    assert "splits 2, published 4" in find_published([*drops[:2], splits], "apd_ood").why


def test_a_clustering_score_is_compared_by_dataset():
    score = make_clusters("uni2_h_pathorob", "camelyon")
    values = {"trials": 50, "distance": "cosine", "k_grid": [*range(2, 31)]}
    score = dataclasses.replace(score, provenance=provenance("uni2_h"), **values)
    assert find_published([score], "clustering_score").number.value == 0.006
    less = dataclasses.replace(score, trials=3)
    assert "trials 3, published 50" in find_published([less], "clustering_score").why


def test_numbers_of_other_datasets_are_not_those_of_a_protocol():
    board = published.known_boards()["pathorob"]
    drop = drop_of("camelyon")
    assert published._why_other_protocol(board, drop) == ""
    other = dataclasses.replace(drop, dataset="ours")
    assert published._why_other_protocol(board, other) == "not a dataset of PathoROB"


def test_what_is_not_published_is_no_number(monkeypatch):
    board = dataclasses.replace(
        published.known_boards()["pathorob"],
        columns=("robustness_index tcga", "apd_id mean", "half"),
        models={"One": [None, -0.25, 0.125], "Two": [0.5, None, None]},
    )
    monkeypatch.setattr(published, "known_boards", lambda: {"own": board})
    one, two = published.list_published.__wrapped__()
    assert (one.model, one.field, one.value, one.ci95) == ("One", "apd_id", -0.25, [-0.375, -0.125])
    assert (two.model, two.dataset, two.value, two.ci95) == ("Two", "tcga", 0.5, None)


def test_a_mean_over_an_undefined_number_is_none():
    values = zip(DATASETS, (0.25, 0.5, math.nan), strict=True)
    records = [index_of("uni2_h", dataset, value) for dataset, value in values]
    found = beside_published.compare_all(Collection(map(Outcome, records)))
    assert [one.dataset for one in found] == ["camelyon", "tcga"]


def test_all_numbers_of_a_collection_with_their_means():
    records = [index_of("uni2_h", dataset, 0.25 + i / 4) for i, dataset in enumerate(DATASETS)]
    found = beside_published.compare_all(Collection(map(Outcome, records)))
    assert [one.dataset for one in found] == [*DATASETS, ""]
    assert [one.value for one in found] == [0.25, 0.5, 0.75, 0.5]
    assert [one.beside.number.value for one in found] == [0.5445, 0.8029, 0.9226, 0.757]
    assert found[0].ci95 == pytest.approx([0.25 * 0.9, 0.25 * 1.01])


def test_names_of_one_encoder():
    assert published.is_same("UNI2-h", "uni2_h_clsmean")
    assert published.is_same("GenBio-PathFM", "genbio_pathfm")
    assert published.is_same("Mascaret", "mascaret")
    assert not published.is_same("UNI", "UNI2-h")
    assert not published.is_same("uni2_h+combat", "uni2_h")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: [robustness camelyon]\n  models: {m: [0.5]}", "b.columns: expected 'half' or"),
        ("columns: [apd_id mean, half]\n  models: {m: [0.5]}", "b.models.m: expected 2 values"),
        ("columns: [half]\n  models: {m: [0.5]}", "b.columns: expected .* before each 'half'"),
        ("columns: [apd_id mean, half, half]\n  models: {}", "b.columns: expected .* before each"),
        (
            "columns: [apd_id mean, half]\n  models: {m: [null, 0.5]}",
            "b.models.m: expected no half width of 'apd_id mean', which is null; found 0.5",
        ),
        ("columns: []\n  models: {}\n  kk: 3", "kk"),
        ("columns: []", "lacks the keys"),
    ],
)
def test_a_wrong_file_is_refused_by_board_and_row(tmp_path, text, message):
    path = tmp_path / "boards.yaml"
    path.write_text(
        f"b:\n  title: b\n  source: s\n  date: '2026'\n  protocol: p\n  use: unknown\n  {text}\n"
    )
    with pytest.raises(InputError, match=message):
        published.read_boards(str(path))
