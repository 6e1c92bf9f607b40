"""Single steps: what each brings or refuses, and how a failure is kept."""

import json

import pytest
from run_folders import write_spec

from pathorob_jax.core import hosts
from pathorob_jax.core.checks import InputError
from pathorob_jax.data import fetch
from pathorob_jax.runs import execute, failures
from pathorob_jax.runs.request import make_request
from pathorob_jax.runs.steps import Key, Work


@pytest.fixture
def lines(monkeypatch):
    """What is logged."""
    said = []

    def note(text, *values):
        said.append(text % values)

    for level in ("info", "warning", "error"):
        monkeypatch.setattr(execute.logging, level, note)
    return said


def test_the_benchmark_is_fetched_into_the_folder_of_data(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "fetch", lambda *arguments: asked.append(arguments))
    request = make_request(
        output=str(tmp_path / "out"), datasets=["camelyon"], data_dir=str(tmp_path / "data")
    )
    Work(request, None).fetch("camelyon")
    assert asked == [(["camelyon"], f"{tmp_path}/data")]


def test_without_a_converter_missing_weights_name_the_command(tmp_path):
    request = make_request(output=str(tmp_path), spec_files=[write_spec(tmp_path, "mine")])
    with pytest.raises(InputError, match=rf"^mine: .*convert --output={tmp_path}/weights\.$"):
        Work(request, None).convert(request.specs["mine"])


def ask(folder):
    return make_request(
        output=str(folder / "out"),
        models=["color_stats"],
        datasets=["gone"],
        metrics=["margins"],
        data_dir=str(folder),
    )


def test_without_any_results_no_report_is_begun(tmp_path, lines):
    ran = execute.run(ask(tmp_path))
    assert [str(step.key) for step in ran.status.failed] == ["fetch gone"]
    assert ran.done == []
    assert lines[-1] == "4 of 4: report: not started, there are no results"
    assert not (tmp_path / "out" / "report").exists()
    kept = json.loads((tmp_path / "out" / "failures" / "fetch" / "gone.json").read_text())
    assert kept["why"].startswith(f"{tmp_path}/gone: expected the tileset of gone.")


def test_a_process_that_does_not_lead_keeps_nothing(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(hosts, "leads", lambda mesh: False)
    ran = execute.run(ask(tmp_path))
    [failed] = ran.status.failed
    assert failed.key == Key("extract", "color_stats", "gone")
    assert "gone: no such folder" in failed.why
    assert any("extract color_stats on gone: failed: " in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_that_cannot_be_kept_is_said_and_others_come_back(tmp_path, lines):
    key = Key("fetch", dataset="d")
    failures.keep(str(tmp_path), key, "s3://KEY:SECRET@bucket/a: no")
    assert failures.read(str(tmp_path), key) == "s3://***@bucket/a: no"
    failures.drop(str(tmp_path), key)
    assert failures.read(str(tmp_path), key) == ""
    (tmp_path / "file").touch()
    failures.keep(str(tmp_path / "file"), key, "no")
    [line] = lines
    assert line.startswith(f"the failure is not kept for the status: {tmp_path}/file/failures/")
