"""The leaderboard: ranks as plain NumPy says, every number on its page, old and new numbers."""

import dataclasses
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
import scripts
from report_records import (
    NAN,
    Page,
    make_apd,
    make_margins,
    make_record,
    make_robustification,
    make_undefined,
)

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.models import registry
from pathorob_jax.report.leaderboard.entries import make_board
from pathorob_jax.report.leaderboard.words import show_count
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import CONTROL
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import write_outcome

DRAWS = 300
VALUES = {"a": 0.6, "b": 0.59, "c": 0.3}
DATASETS = ("one", "two")


def plain_provenance(model="virchow2", **changes):
    spec = registry.MODELS[model]
    encoder = {
        "model": model,
        "pooling": "cls",
        "preprocess": as_plain(spec.preprocess),
        "compute_dtype": "bfloat16",
        "param_dtype": "float32",
        "weights": {"sha256": "0123456789abcdef", "dtype": "float32"},
    }
    return {
        "store": {"identity": {"encoder": encoder}, "rows_sha256": "r"},
        "settings": {"precision": "fast"},
        "versions": {"git": "abc123", "pathorob_jax": "0.1.0"},
        "device": {"kind": "H200", "count": 2},
    } | changes


def make_outcomes(rng, values=VALUES, datasets=DATASETS):
    """Indices whose draws lie about their values, most of the spread in common."""
    out = []
    for dataset in datasets:
        shared = rng.normal(size=DRAWS)
        for model, value in values.items():
            draws = value + 0.03 * (shared + 0.5 * rng.normal(size=DRAWS))
            record = make_record(model, dataset, value, provenance={})
            out.append(Outcome(record, "k", {"robustness_index": draws}))
    return out


def board_of(outcomes):
    return make_board(Collection(outcomes))


def write(root, outcomes, name="board"):
    for outcome in outcomes:
        write_outcome(str(root / "results"), outcome)
    pr.write_leaderboard(str(root / "results"), str(root / name))
    return root / name


def test_ranks_and_their_stability_are_those_of_plain_numpy(rng):
    outcomes = make_outcomes(rng)
    board = board_of(outcomes)
    entries = {entry.model: entry for entry in board.computed}
    assert list(entries) == ["a", "b", "c"]
    drawn = {
        m: np.mean([o.draws["robustness_index"] for o in outcomes if o.record.model == m], axis=0)
        for m in VALUES
    }
    matrix = np.stack([drawn[m] for m in VALUES])
    places = np.array([[1 + np.sum(column > value) for value in column] for column in matrix.T])
    for i, model in enumerate(VALUES):
        value = entries[model].values["robustness_index"]["mean"]
        rank = value.rank
        assert (rank.place, rank.of) == (i + 1, 3)
        assert rank.place_share == pytest.approx(np.mean(places[:, i] == i + 1), rel=1e-12)
        assert rank.first_share == pytest.approx(np.mean(places[:, i] == 1), rel=1e-12)
        ends = np.percentile(places[:, i], [2.5, 97.5])
        np.testing.assert_allclose([rank.low, rank.high], ends, rtol=1e-12)
        half = 1.959963984540054 * np.std(drawn[model], ddof=1)
        np.testing.assert_allclose(value.ci95, [value.value - half, value.value + half])
        ahead = 0
        for other in VALUES:
            apart = drawn[other] - drawn[model]
            half = 1.959963984540054 * np.std(apart, ddof=1)
            ahead += VALUES[other] - VALUES[model] - half > 0
        assert rank.rank == 1 + ahead
        assert set(entries[model].values["robustness_index"]) == {"mean", *DATASETS}
    ranks = [entries[m].values["robustness_index"]["mean"].rank for m in VALUES]
    assert [(r.rank, r.shared) for r in ranks] == [(1, True), (1, True), (3, False)]


def test_the_site_is_whole_and_needs_nothing_else(tmp_path, rng):
    folder = write(tmp_path, make_outcomes(rng))
    written = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    assert (written["ranked_by"], written["ranked_on"]) == ("robustness_index", "mean")
    assert written["changes"] == []
    pages = [folder / "index.html", *(folder / entry["page"] for entry in written["models"])]
    for path in pages:
        text = path.read_text("utf-8")
        page = Page(text)
        assert "<script" not in text
        assert not re.search(r"\b(nan|NaN|None|inf)\b", re.sub(r"<style>.*?</style>", "", text))
        for reference in page.references:
            assert "://" not in reference
            assert (path.parent / unquote(reference)).exists(), reference
        tables = [tag for tag, _ in page.elements if tag == "table"]
        assert len(tables) == text.count("<caption>")
        heads = [attributes for tag, attributes in page.elements if tag == "th"]
        assert all(head.get("scope") in ("row", "col") for head in heads)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(set(ids)) == len(ids)
    text = (folder / "index.html").read_text("utf-8")
    assert "a has the highest value of 3 models, but shares rank 1 with b" in text
    # Models of which others published numbers have a page, but no rank.
    names = [entry["model"] for entry in written["models"]]
    assert names[:3] == ["a", "b", "c"]
    assert {"Virchow2", "Mascaret", "Atlas 2"} <= set(names)
    assert len(set(names)) == len(names)
    assert 'href="models/Virchow2.html"' in text


@pytest.mark.slow
def test_a_changed_number_shows_old_and_new(tmp_path, rng):
    outcomes = make_outcomes(rng)
    folder = write(tmp_path, outcomes)
    first = (folder / "index.html").read_bytes()
    write(tmp_path, [])
    assert (folder / "index.html").read_bytes() == first
    changed = [
        o._replace(record=dataclasses.replace(o.record, robustness_index=0.32)) for o in outcomes
    ]
    write(tmp_path, [o for o in changed if o.record.model == "c"])
    written = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    found = {(c["model"], c["dataset"]): (c["old"], c["new"]) for c in written["changes"]}
    assert found == {("c", d): pytest.approx((0.3, 0.32)) for d in ("mean", *DATASETS)}
    for page in ("index.html", "models/c.html"):
        assert "0.300 → 0.320 on 20" in (folder / page).read_text("utf-8")
    assert "→ 0" not in (folder / "models/a.html").read_text("utf-8")
    # Once more without a change: what had changed is still told.
    again = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write(tmp_path, [])
    assert again == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for metric in (tmp_path / "results" / "c").rglob("*.*"):
        metric.unlink()
    write(tmp_path, [])
    assert not (folder / "models/c.html").exists()
    written = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    gone = [c for c in written["changes"] if c["new"] is None]
    assert {(c["model"], round(c["old"], 9)) for c in gone} == {("c", 0.32)}
    assert len(gone) == 3


def test_the_command_writes_the_board(tmp_path, rng):
    for outcome in make_outcomes(rng):
        write_outcome(str(tmp_path / "results"), outcome)
    facts = tmp_path / "facts.yaml"
    facts.write_text("a: {licence: {value: MIT, source: us}, selected: {value: true, source: us}}")
    flags = [f"--results={tmp_path}/results", f"--output={tmp_path}/out", f"--facts={facts}"]
    done = scripts.call("leaderboard", *flags)
    assert (done.code, done.errors) == (0, []), done.text
    text = (tmp_path / "out/index.html").read_text("utf-8")
    assert "MIT" in text
    assert "checkpoint chosen by PathoROB" in text


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 9, "models": [], "changes": []}'])
def test_another_file_in_the_place_of_the_old_board_is_refused(tmp_path, rng, text):
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "leaderboard.json").write_text(text)
    with pytest.raises(InputError, match=r"leaderboard.json: .*Give another --output"):
        write(tmp_path, make_outcomes(rng))


def test_an_old_board_cannot_remove_files_elsewhere(tmp_path, rng):
    folder = write(tmp_path, make_outcomes(rng))
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    (tmp_path / "kept.html").write_text("kept")
    board["models"][0]["page"] = "models/../../kept.html"
    (folder / "leaderboard.json").write_text(json.dumps(board))
    write(tmp_path, [])
    assert (tmp_path / "kept.html").exists()


def test_a_time_of_a_part_of_the_work_is_a_least_time(tmp_path):
    made = plain_provenance(cost={"seconds": 240.0, "is_whole": False})
    folder = write(tmp_path, [Outcome(make_record("virchow2", "ours", 0.5, provenance=made))])
    assert "metrics at least 4.0 min" in (folder / "index.html").read_text("utf-8")


def test_where_a_model_comes_from(tmp_path):
    cost = {"seconds": 2.5, "extraction": [{"seconds": 60.0, "encoders": 2, "tiles": 10}]}
    made = plain_provenance(cost=cost)
    records = [make_record("virchow2", "ours", 0.5, provenance=made)]
    records.append(make_margins("virchow2", "ours", provenance=made))
    board = board_of(map(Outcome, records))
    entry = board.computed[0]
    spec = registry.MODELS["virchow2"]
    origin = entry.origin
    assert origin.encoder_precision == ["bfloat16, weights in float32"]
    assert origin.search_precision == ["fast"]
    assert origin.loading == ["converted weights, sha256 0123456789ab"]
    assert (origin.gflops, origin.seconds, origin.extraction_seconds) == (spec.gflops, 5.0, 30.0)
    assert origin.is_whole
    assert origin.devices == ["2 × H200"]
    assert origin.commits == ["abc123"]
    assert entry.facts["params"]["value"] == spec.n_params
    assert entry.facts["licence"]["value"] == spec.licence
    assert entry.exposure == {"tcga": False, "benchmark": None, "selected": None}
    assert {one["board"] for one in entry.published} == {"PathoROB", "croma", "croma, nIPD"}
    # Published of Virchow2 stand on this page, not on one of their own.
    assert [e.model for e in board.models if e.model.startswith("Virchow2")] == []
    folder = write(tmp_path, map(Outcome, records))
    text = (folder / "index.html").read_text("utf-8")
    assert "631.2 million parameters" in text
    assert "No model is ranked: nothing to compare with." in text
    page = (folder / "models/virchow2.html").read_text("utf-8")
    assert "published of tcga, camelyon, tolkach_esca, mean" in page
    assert re.search(r"<dt>results written</dt><dd>20\d\d-\d\d-\d\d</dd>", page)
    assert "embedding the tiles</dt><dd>30 s</dd>" in page


def test_a_published_number_stands_beside_its_equal(tmp_path):
    spec = registry.MODELS["uni2_h"]
    made = plain_provenance("uni2_h")
    encoder = made["store"]["identity"]["encoder"]
    encoder |= {"pooling": "clsmean", "preprocess": as_plain(spec.pathorob.preprocess)}
    alike = make_record("uni2_h_pathorob", "camelyon", 0.55, provenance=made)
    other = dataclasses.replace(alike, model="uni2_h_k5", k=5)
    board = board_of(map(Outcome, [alike, other]))
    values = {e.model: e.values["robustness_index"]["camelyon"] for e in board.computed}
    assert values["uni2_h_pathorob"].published == 0.5445
    assert values["uni2_h_pathorob"].published_by == "PathoROB, 2026-01"
    assert values["uni2_h_k5"].published is None
    assert "k = 5, published at 11" in values["uni2_h_k5"].why_not_published
    folder = write(tmp_path, map(Outcome, [alike, other]))
    assert "published 0.5445" in (folder / "index.html").read_text("utf-8")
    assert "published at 11" in (folder / "models/uni2_h_k5.html").read_text("utf-8")


def test_a_record_whose_provenance_says_nothing_has_a_place():
    for store in ("elsewhere", None, {"identity": "x"}, {"identity": {"encoder": [1]}}):
        record = make_record("m", "one", 0.5, provenance={"store": store, "device": "gpu"})
        [entry] = board_of([Outcome(record)]).computed
        assert (entry.origin.encoder, entry.origin.loading, entry.origin.devices) == ("m", [], [])
        assert entry.values["robustness_index"]["one"].published is None


@pytest.mark.slow
def test_odd_names_and_undefined_numbers(tmp_path, rng):
    names = ["北京医院", "a/b<i>", "A" * 300, "x%2F", "K_+&"]
    outcomes = make_outcomes(rng, dict.fromkeys(names[:1] + names[3:], 0.5), ["one"])
    lost = make_undefined("lost", "one")
    partly = make_apd("partly", "one", apd_ood=NAN)
    folder = write(tmp_path, [*outcomes, Outcome(lost), Outcome(partly)])
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    entries = {entry["model"]: entry for entry in board["models"]}
    value = entries["lost"]["values"]["robustness_index"]["one"]
    assert value["value"] is None
    assert value["rank"] is None
    assert value["why_no_rank"] == "its value is undefined"
    for entry in board["models"]:
        assert (folder / entry["page"]).exists()
    text = (folder / "index.html").read_text("utf-8")
    assert text.index(">lost<") > text.index(">北京医院<")
    assert "not ranked: its value is undefined" in (folder / "models/lost.html").read_text()


def controls(names, *others):
    """Outcomes of encoders by name, whose provenance names them; the first is the best."""
    made = make_outcomes(np.random.default_rng(0), dict.fromkeys([*names, *others], 0.5))
    values = {model: 0.9 - 0.2 * place for place, model in enumerate([*names, *others])}
    return [
        o._replace(
            record=dataclasses.replace(
                o.record,
                robustness_index=values[o.record.model],
                provenance={"store": {"identity": {"encoder": {"model": o.record.model}}}},
            )
        )
        for o in made
    ]


def test_controls_are_tagged_and_not_ranked_among_models(tmp_path):
    folder = write(tmp_path, controls(["nuclear_texture", "vit_random"], "a", "b"))
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    entries = {entry["model"]: entry for entry in board["models"] if entry["values"]}
    assert list(entries) == ["nuclear_texture", "vit_random", "a", "b"]
    for model, entry in entries.items():
        is_control = model not in "ab"
        assert entry["is_control"] == is_control
        for value in entry["values"]["robustness_index"].values():
            assert (value["rank"] is None) == is_control
            assert value["why_no_rank"] == (CONTROL if is_control else "")
    ranks = [entries[m]["values"]["robustness_index"]["mean"]["rank"] for m in "ab"]
    assert [(rank["rank"], rank["of"]) for rank in ranks] == [(1, 2), (2, 2)]
    text = (folder / "index.html").read_text("utf-8")
    assert "a leads 2 models" in text
    tag = '<small class="tag">control</small>'
    assert text.count(tag) == 2 * 2  # in two tables
    assert tag in (folder / "models/vit_random.html").read_text("utf-8")
    assert tag not in (folder / "models/a.html").read_text("utf-8")
    assert "none is a pathology encoder. Not ranked." in (
        folder / "models/vit_random.html"
    ).read_text("utf-8")


def test_a_demo_of_controls_alone_ranks_them_and_says_so(tmp_path):
    folder = write(tmp_path, controls(["nuclear_texture", "vit_random", "color_stats"]))
    text = (folder / "index.html").read_text("utf-8")
    assert "nuclear_texture leads 3 controls" in text
    assert "none is a pathology encoder" in text
    assert text.count('class="tag"') == 2 * 3


def test_models_that_share_too_few_draws_have_no_place(tmp_path, rng):
    """Each is defined in most draws, but both together in few."""
    outcomes = make_outcomes(rng, {"a": 0.6, "b": 0.5}, ["one"])
    for outcome, undefined in zip(outcomes, (slice(0, 140), slice(160, 300)), strict=True):
        outcome.draws["robustness_index"][undefined] = NAN
    entry, _ = board_of(outcomes).computed
    assert np.isnan(entry.values["robustness_index"]["one"].rank.low)
    folder = write(tmp_path, outcomes)
    board = (folder / "index.html").read_text("utf-8")
    assert board.count("undefined in most draws") == 2
    assert "It is first in" not in board
    page = (folder / "models" / "a.html").read_text("utf-8")
    assert "By value it is at place 1; it has no place in most draws." in page


def test_what_robustification_gained_is_no_number_of_the_board():
    records = [make_record("encoder"), make_record("encoder+combat"), make_robustification()]
    board = board_of(map(Outcome, records))
    assert [entry.model for entry in board.computed] == ["encoder", "encoder+combat"]
    assert [number.name for number in board.numbers] == ["robustness_index"]


def test_models_that_differ_in_case_have_pages_of_their_own(tmp_path, rng):
    folder = write(tmp_path, make_outcomes(rng, {"Ours": 0.6, "ours": 0.3}, ["one"]))
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    pages = {entry["model"]: entry["page"] for entry in board["models"][:2]}
    assert pages == {"Ours": "models/Ours.html", "ours": "models/ours_.html"}
    for model, page in pages.items():
        assert f"<h1>{model}</h1>" in (folder / page).read_text("utf-8")


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (None, "–"),
        (999_999, "999,999"),
        (631_200_000, "631.2 million"),
        (1_134_000_000, "1.13 billion"),
    ],
)
def test_parameters_are_counted_in_words(count, expected):
    assert show_count(count) == expected


def test_a_board_of_the_version_before_is_read(tmp_path, rng):
    folder = write(tmp_path, make_outcomes(rng))
    board = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    board["schema_version"] = 1
    for entry in board["models"]:
        del entry["is_control"]
    board["models"][0]["values"]["robustness_index"]["one"]["value"] = 0.1
    (folder / "leaderboard.json").write_text(json.dumps(board))
    write(tmp_path, [])
    again = json.loads((folder / "leaderboard.json").read_text("utf-8"))
    [change] = again["changes"]
    assert (change["model"], change["dataset"], change["old"]) == ("a", "one", 0.1)
    assert again["schema_version"] == 2
