"""Lines of benchmarks are compared at equal rates of products; peers have their best settings."""

import json
import os

import pytest

from experiments.benchmarks import harness, line_comparison, product_rate
from pathorob_jax.core.hosts import n_cores


def line(seconds, rate, *, peer="ours", first_s=None, **more):
    times = {"first_s": first_s or 2 * seconds, "median_s": seconds, "repeats": 3}
    named = {"task": "search", "peer": peer, "n": 100, "k": 11, "cpu": "P", "device": "cpu"}
    return named | times | {"product_gflop_per_s": rate} | more


def ratios(report):
    return {(c.what.split()[1], c.time): round(c.ratio, 6) for c in report.changes}


def test_times_are_compared_at_equal_rates():
    # Half the rate, twice the time: nothing has changed but the machine.
    old = [line(9.0, 100.0), line(4.0, 100.0), line(4.0, 100.0, peer="faiss")]
    new = [line(8.0, 50.0, first_s=24.0), line(8.0, 100.0, peer="faiss")]
    report = line_comparison.compare(new, old)
    assert ratios(report) == {
        ("ours", "median_s"): 1.0,
        ("ours", "first_s"): 1.5,
        ("faiss", "median_s"): 2.0,
        ("faiss", "first_s"): 2.0,
    }
    assert [c.what.split()[1] for c in report.changes[:2]] == ["faiss", "faiss"]
    assert [(c.time, c.is_ours) for c in report.slower(0.15)] == [("first_s", True)]
    assert report.slower(0.51) == []


def test_only_equal_work_is_compared_and_the_rest_is_named():
    old = [
        line(1.0, 100.0),
        line(1.0, 0.0, n=200),
        line(1.0, 100.0, task="clustering_score", k=4),
        {"task": "search", "compare": "croma / ours", "speedup": 3.0},
    ]
    new = [
        line(1.0, 100.0, k=12),
        line(1.0, 100.0, n=200),
        line(1.0, 100.0, task="clustering_score", k=5, cpu="Q"),
        line(1.0, 100.0, device="H200"),
        {"task": "search", "peer": "faiss", "skipped": "not installed"},
        line(1.0, 100.0, repeats=0),
    ]
    report = line_comparison.compare(new, old)
    assert [text.rpartition(": ")[2] for text in report.left_out] == [
        "no line of the same work",
        "the last line has no product rate",
        "no line of the same work",
    ]
    clusters = [c for c in report.changes if "clustering_score" in c.what]
    assert len(clusters) == 2
    assert str(clusters[0]).endswith("(P, now Q)")
    # One call is the first call alone.
    assert [c.time for c in report.changes if c.what.startswith("search")] == ["first_s"]


def test_files_are_compared_and_the_verdict_is_said(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "search.jsonl").write_text(json.dumps(line(1.0, 100.0)) + "\n")
    new = tmp_path / "new.txt"
    new.write_text("a log\n" + json.dumps(line(1.3, 100.0)) + "\n")
    lines = map(line_comparison.read_lines, (str(new), str(tmp_path / "old")))
    said = line_comparison.compare(*lines).describe(0.15)
    assert "1.30 times as long: search ours n=100 device=cpu k=11, median_s" in said
    assert said.endswith("2 times compared, 2 of ours slower by more than 15%")


def test_peers_have_their_best_settings(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "NEHALEM")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOME", "/home/ada")
    found = harness.best_environment()
    assert "OPENBLAS_CORETYPE" not in found
    assert found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == str(n_cores())
    assert found["HOME"] == "/home/ada"
    assert os.environ["OPENBLAS_CORETYPE"] == "NEHALEM"


def test_every_line_names_machine_and_rate(monkeypatch, capsys, tmp_path):
    asked = []
    harness.steady_rate.cache_clear()
    monkeypatch.setattr(harness, "product_rate", lambda device: asked.append(device) or 123.0)
    harness.emit({"task": "search", "device": "H200"}, path=str(tmp_path / "r" / "search.jsonl"))
    harness.emit({"compare": "a / b"})
    harness.emit({"task": "search", "device": "H200"})  # nobody else uses an accelerator
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert json.loads((tmp_path / "r" / "search.jsonl").read_text()) == first
    assert asked == ["H200", "cpu"]
    rates = {line["product_gflop_per_s"] for line in (first, second, third)}
    assert rates == {123.0}
    assert first["cpu"]
    assert first["cores"] == n_cores()


def test_rate_is_that_of_the_fastest_product(monkeypatch):
    clock = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(product_rate.time, "perf_counter", lambda: next(clock))
    calls = []
    rate = product_rate.time_products(lambda: calls.append(0), side=1000, calls=3)
    assert len(calls) == 4
    assert rate == pytest.approx(2 * 1000**3 / 2.0 / 1e9)
