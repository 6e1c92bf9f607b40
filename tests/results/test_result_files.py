"""Records and draws on disk: read as they were written, as one, or refused by name."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pytest
from report_records import make_apd, make_clusters, make_margins, make_record

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.report.write import write_report
from pathorob_jax.results import result_files
from pathorob_jax.results.map_files import read_map
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.write_summaries import write_summaries

DRAWS = {"robustness_index": np.linspace(0.1, 0.3, 40)}


def write_older(root, record, draws=None, key="key"):
    """A record, and its draws, as 7ab3428 wrote them: schema 1, without digests."""
    path = result_files.result_path(str(root), record)
    value = result_files.as_json(record) | {"schema_version": 1}
    files.write_json(path, value)
    if draws:
        sink = io.BytesIO()
        np.savez(sink, key=np.array(key), **draws)
        files.write_bytes(path.replace(".json", ".draws.npz"), sink.getvalue())
    return path


def test_the_digest_is_that_of_all_but_provenance(tmp_path):
    path = result_files.write_outcome(str(tmp_path), Outcome(make_record(), "key", DRAWS))
    value = json.loads(files.read_bytes(path))
    assert value["schema_version"] == 2
    provenance = value.pop("provenance")
    text = json.dumps(value, sort_keys=True)
    framed = len(text).to_bytes(8, "little") + text.encode()
    assert provenance["sha256"] == hashlib.sha256(framed).hexdigest()
    assert set(provenance) == {"store", "sha256", "draws_sha256"}
    assert result_files.read_result(path) == make_record()


def test_provenance_may_be_changed_and_nothing_else(tmp_path):
    path = result_files.write_result(str(tmp_path), make_record())
    value = json.loads(files.read_bytes(path))
    value["provenance"]["note"] = "moved to another disk"
    files.write_json(path, value)
    assert result_files.read_result(path).provenance["note"] == "moved to another disk"
    value["robustness_index"] += 1e-16 + value["robustness_index"] * 1e-15
    files.write_json(path, value)
    with pytest.raises(InputError, match=r"index\.json: not as it was written.*evaluate again"):
        result_files.read_result(path)


@pytest.mark.parametrize("missing", ["sha256", "provenance"])
def test_a_record_of_this_version_without_a_digest_is_refused(tmp_path, missing):
    path = result_files.write_result(str(tmp_path), make_record())
    value = json.loads(files.read_bytes(path))
    value["provenance"].pop("sha256")
    if missing == "provenance":
        value.pop("provenance")
    files.write_json(path, value)
    with pytest.raises(InputError, match="not as it was written"):
        result_files.read_result(path)


@pytest.mark.slow
def test_an_older_record_is_read_and_the_report_says_that_it_is_unchecked(tmp_path):
    for model in ("a", "b"):
        for dataset in ("one", "two"):
            write_older(tmp_path / "results", make_record(model, dataset), DRAWS)
    write_older(tmp_path / "results", make_apd("a", "one"))
    outcome = result_files.read_outcome(str(tmp_path / "results/a/one/robustness_index.json"))
    assert outcome.record == make_record("a", "one")
    assert not outcome.is_checked
    np.testing.assert_array_equal(outcome.draws["robustness_index"], DRAWS["robustness_index"])
    text = open_text(write_report(str(tmp_path / "results"), str(tmp_path / "report")))
    assert text.count("without a digest: they are unchecked") == 1
    assert "An older version wrote all results" in text
    result_files.write_result(str(tmp_path / "results"), make_apd("a", "one"))
    text = open_text(write_report(str(tmp_path / "results"), str(tmp_path / "report")))
    assert "An older version wrote 4 of 5 results" in text


def open_text(path):
    return files.read_bytes(path).decode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"k": "x"}, r"json\.k: expected int, found 'x'"),
        ({"k": 11.0}, r"json\.k: expected int, found 11\.0"),
        ({"mari": {}}, r"json\.mari: expected int, found {}"),
        ({"curve": {"k": [1, 2], "mari": [0.5]}}, r"json\.curve\.mari: expected 2 values, found 1"),
        ({"croma_ci95": [0.1]}, r"json\.croma_ci95: expected 2 values, found 1"),
        ({"warnings": "none"}, r"json\.warnings: expected list, found 'none'"),
        ({"provenance": None}, r"json\.provenance: expected dict, found None"),
    ],
)
def test_values_of_other_types_are_refused_by_field(tmp_path, edit, message):
    path = write_older(tmp_path, make_margins())
    files.write_json(path, json.loads(files.read_bytes(path)) | edit)
    with pytest.raises(InputError, match=message + r".*") as caught:
        result_files.read_result(path)
    assert str(caught.value).startswith(path)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"schema_version": 1}', b"[" * 10**5, b"1" * 5000]
    + [b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}'],
)
def test_what_is_no_record_is_refused_by_name(tmp_path, data):
    path = result_files.write_result(str(tmp_path), make_record())
    files.write_bytes(path, data)
    with pytest.raises(InputError, match="robustness_index.json: "):
        result_files.read_result(path)


def test_lengths_must_fit_one_another(tmp_path):
    record = make_apd()
    short = [row[:-1] for row in record.id_accuracies]
    clusters = make_clusters()
    [combination] = clusters.combinations
    for wrong in (
        dataclasses.replace(record, id_accuracies=short),
        dataclasses.replace(record, cramers_v=[0.0]),
        dataclasses.replace(record, repetitions=5),
        dataclasses.replace(
            record, heads={"knn": dataclasses.replace(record.heads["knn"], chosen=short)}
        ),
        dataclasses.replace(record, direction_id={"c": {"a": {"b": [0.5]}}}),
        dataclasses.replace(
            clusters, combinations=[dataclasses.replace(combination, classes=["a"])]
        ),
        dataclasses.replace(clusters, combinations=[dataclasses.replace(combination, k=9)]),
    ):
        path = result_files.write_result(str(tmp_path), wrong)
        with pytest.raises(InputError, match=r"expected \d+ values, found \d+\. Run experiments"):
            result_files.read_result(path)


def test_draws_of_another_run_are_not_used_and_that_is_said(tmp_path, monkeypatch):
    root = str(tmp_path / "results")
    for model in ("a", "b"):
        result_files.write_outcome(root, Outcome(make_record(model), "key", DRAWS))

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", killed)
    other = Outcome(make_record("a", k=3), "key", {"robustness_index": np.zeros(40)})
    with pytest.raises(KeyboardInterrupt):
        result_files.write_outcome(root, other)
    monkeypatch.undo()
    found = result_files.read_outcome(f"{root}/a/tiles/robustness_index.json")
    assert found.record == make_record("a")
    assert found.draws == {}
    assert "belongs to another run than the record beside it" in found.note
    text = open_text(write_report(root, str(tmp_path / "report")))
    assert "robustness_index.draws.npz: belongs to another run" in text
    result_files.write_outcome(root, other)
    found = result_files.read_outcome(f"{root}/a/tiles/robustness_index.json")
    assert (found.note, found.record.k) == ("", 3)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "npy", "cut", "flip", "gone", "older", "other"])
def test_damaged_draws_do_not_end_the_report(tmp_path, damage):
    root = str(tmp_path / "results")
    path = result_files.write_outcome(root, Outcome(make_record(), "key", DRAWS))
    draws = tmp_path / "results/encoder/tiles/robustness_index.draws.npz"
    whole = draws.read_bytes()
    if damage == "gone":
        draws.unlink()
    elif damage == "npy":
        sink = io.BytesIO()
        np.save(sink, np.zeros(40))
        draws.write_bytes(sink.getvalue())
    elif damage in ("older", "other"):
        sink = io.BytesIO()
        value = DRAWS["robustness_index"] + (damage == "other")
        np.savez(sink, key=np.array("key"), robustness_index=value)
        draws.write_bytes(sink.getvalue())
    else:
        at = len(whole) // 2
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        draws.write_bytes({"empty": b"", "cut": whole[:at], "flip": flipped}[damage])
    found = result_files.read_outcome(path)
    assert found.record == make_record()
    assert found.draws == {}
    assert "draws" in found.note
    text = open_text(write_report(root, str(tmp_path / "report")))
    assert "draws" in text.split('id="warnings"')[1].split("</section>")[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"robustness_index": np.zeros(40)}, "expected draws with a key, found none"),
        ({"key": np.array(3)}, "expected draws with a key, found none"),
        ({"key": np.array(["a", "b"])}, "expected draws with a key, found none"),
        ({"key": np.array("a"), "x": np.zeros(4, int)}, "expected lists of draws, found other"),
        ({"key": np.array("a"), "x": np.zeros((4, 2))}, "expected lists of draws, found other"),
    ],
)
def test_arrays_that_are_no_draws_are_left_out_with_the_reason(tmp_path, arrays, message):
    path = write_older(tmp_path, make_record())
    np.savez(path.replace(".json", ".draws.npz"), **arrays)
    found = result_files.read_outcome(path)
    assert (found.record, found.draws) == (make_record(), {})
    assert f"robustness_index.draws.npz: {message}" in found.note


def test_other_json_beside_results_is_passed_over(tmp_path):
    path = result_files.write_result(str(tmp_path), make_record())
    (tmp_path / "encoder" / "tiles" / "notes.json").write_text("mine")
    (tmp_path / "encoder" / "models.json").write_text("of another kind")
    assert result_files.read_results(str(tmp_path)) == [make_record()]
    assert [o.record for o in result_files.read_model_outcomes(str(tmp_path), "encoder")] == [
        result_files.read_result(path)
    ]


def test_draws_that_are_no_longer_written_do_not_stay(tmp_path):
    path = result_files.write_outcome(str(tmp_path), Outcome(make_record(), "key", DRAWS))
    result_files.write_result(str(tmp_path), make_record(index=0.5))
    found = result_files.read_outcome(path)
    assert (found.draws, found.note) == ({}, "")


def test_draws_of_this_version_are_not_those_of_an_older_record(tmp_path):
    path = result_files.write_outcome(str(tmp_path), Outcome(make_record(), "key", DRAWS))
    write_older(tmp_path, make_record())
    assert "belongs to another run" in result_files.read_outcome(path).note


def test_files_over_datasets_have_a_digest_too(tmp_path):
    root = str(tmp_path)
    for dataset in ("one", "two"):
        result_files.write_result(root, make_apd(dataset=dataset))
    [path] = write_summaries(root, "encoder")
    value = json.loads(files.read_bytes(path))
    assert set(value["provenance"]) == {"sha256"}
    result_files.read_result(path)
    files.write_json(path, value | {"apd_id": 0.0})
    with pytest.raises(InputError, match="not as it was written"):
        result_files.read_result(path)


@pytest.mark.slow
@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" * 99])
def test_what_is_no_map_is_refused_by_name(tmp_path, data):
    (tmp_path / "dataset.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"dataset\.parquet: cannot be read as a map"):
        read_map(str(tmp_path / "dataset.parquet"))
