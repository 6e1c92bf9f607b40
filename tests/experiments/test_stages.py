"""Stages of an accelerator: limits, logs and lines; and numbers that are compared one by one."""

import json
import os
import pathlib
import time

import pytest

from experiments.benchmarks import number_comparison, stages
from experiments.benchmarks.stages import Stage


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a stage whose commands are Python code."""
    (tmp_path / "logs").mkdir()
    codes = []
    monkeypatch.setattr(
        Stage, "commands", lambda self, **_: [["-c", code] for code in codes], raising=True
    )

    def run_codes(*given, seconds=60, patience=1.0):
        codes[:] = given
        return stages.run_stage(
            "one",
            Stage(seconds, "none"),
            folder=str(tmp_path),
            rehearse=True,
            patience=patience,
            environment=dict(os.environ),
        )

    return run_codes


def test_lines_are_kept_and_a_failed_command_costs_no_other(run, tmp_path, capsys):
    outcome = run(
        "print('a log'); print('{\"task\": 1}')",
        "print('why'); raise SystemExit(3)",
        "print('{\"task\": 2}')",
    )
    assert outcome.code == 3
    assert str(outcome).startswith("one: exit code 3, ")
    kept = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in kept] == [1, 2]
    said = capsys.readouterr().out
    assert "why" in said
    assert "a log" not in said
    assert "a log" in (tmp_path / "logs" / "one.log").read_text()


def test_what_takes_too_long_is_ended(run):
    outcome = run("import time; time.sleep(60)", seconds=1, patience=0.2)
    assert outcome.code == stages.TIMED_OUT
    assert outcome.seconds < 30
    assert "out of time" in str(outcome)


@pytest.mark.slow
def test_peers_end_with_their_stage(run, tmp_path):
    """A peer that went on would hold the device."""
    peer = f"import os, time; open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)"
    begun = run(
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {peer!r}])",
        seconds=10,
    )
    assert begun.code == stages.TIMED_OUT
    pid = int((tmp_path / "pid").read_text())
    status = pathlib.Path(f"/proc/{pid}/stat")
    for _ in range(100):  # until it is dead; whoever adopts it may not look for a while
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the peer still runs")


def test_stages_are_the_same_commands_in_both_sizes():
    names = ("parity", "neighbors", "million", "apd", "clustering")
    full = sum(stages.STAGES[n].seconds * len(stages.STAGES[n].variants) for n in names)
    assert full <= 540
    for name, stage in stages.STAGES.items():
        small, large = (stage.commands(rehearse=r, folder="F") for r in (True, False))
        assert [c[:2] for c in small] == [c[:2] for c in large], name
        assert "{folder}" not in str(large)


@pytest.mark.slow
def test_numbers_are_compared_by_their_own_tolerance():
    one = {
        "ari_biology": {"mean": 0.5},
        "apd": -0.1,
        "curve": [1.0, None, 3.0],
        "k": 5,
        "variance": 0.3,
        "provenance": {"cost": 1.0},
        "ok": True,
    }
    other = json.loads(json.dumps(one))
    other["ari_biology"]["mean"], other["apd"], other["provenance"] = 0.515, -0.104, {"cost": 9.0}
    found = number_comparison.compare(one, other)
    assert (found["numbers"], found["out_of_tolerance"]) == (7, 0)
    assert found["worst_over_tolerance"] == pytest.approx(0.8)
    assert found["at"] == "apd"
    # "variance" has "ari" in it, and is no agreement.
    other["variance"] = 0.31
    other["curve"][1] = 2.0
    del other["k"]
    found = number_comparison.compare(one, other)
    assert found["out_of_tolerance"] == 3
    assert found["worst_over_tolerance"] is None


@pytest.mark.campaign
@pytest.mark.parametrize("name", stages.STAGES)
def test_a_stage_is_rehearsed_on_a_cpu(name, tmp_path):
    """Every command of the kit runs to its end and measures something."""
    (tmp_path / "logs").mkdir()
    stage = stages.STAGES[name]
    outcome = stages.run_stage(
        name,
        stage,
        folder=str(tmp_path),
        rehearse=True,
        patience=10.0,
        environment=dict(os.environ) | {"JAX_PLATFORMS": "cpu"},
    )
    assert outcome.code == 0, (tmp_path / "logs" / f"{name}.log").read_text()[-3000:]
    assert (tmp_path / "lines.jsonl").read_text().count("\n") >= len(stage.variants)
