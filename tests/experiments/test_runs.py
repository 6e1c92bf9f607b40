"""Runs of evaluate: any confounder, failures that cost nothing else, names, secrets and faults."""

import errno
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import sys

import numpy as np
import pytest
import scripts
from stores import METRICS, make_store

from pathorob_jax.cli import start
from pathorob_jax.core import faults
from pathorob_jax.data.manifest import as_manifest
from pathorob_jax.evaluation import run as run_module
from pathorob_jax.results.result_files import read_result

N_SLIDES, N_PATCHES = 24, 4
CHEAP = ("--k=5", "--draws=200", "--repetitions=1", "--trials=2", "--k_max=3")
MEAN_ALONE = ("--presets=mean",)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No script asks a server for anything: that would end the test."""

    def refuse(_, address):
        raise AssertionError(f"{address} was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_guard_against_the_network_works():
    with socket.socket() as made, pytest.raises(AssertionError, match="was asked"):
        made.connect(("127.0.0.1", 9))


def columns(**more):
    """24 slides of 4 patches: class, centre and scanner change from slide to slide."""
    slide = np.repeat(np.arange(N_SLIDES), N_PATCHES)
    return {
        "slide_id": [f"s{i:02d}" for i in slide],
        "patch_id": [str(i) for i in range(len(slide))],
        "biological_class": [f"class{i % 2}" for i in slide],
        "medical_center": [f"Center {i // 2 % 2}" for i in slide],
        "scanner": [f"scan{i // 4 % 2}" for i in slide],
        **{name: [values[i] for i in slide] for name, values in more.items()},
    }


def embeddings(seed=0):
    slide = np.repeat(np.arange(N_SLIDES), N_PATCHES)
    x = np.random.default_rng(seed).normal(size=(len(slide), 6)).astype(np.float32)
    x[:, 0] += 2 * (slide % 2)
    x[:, 1] += 2 * (slide // 4 % 2)
    return x


def numbers(folder):
    """Every result below a folder without its provenance, by file name."""
    values = {path.name: json.loads(path.read_text()) for path in folder.rglob("*.json")}
    dropped = ("provenance", "dataset", "digest", "sha256")
    return {
        name: {k: v for k, v in value.items() if k not in dropped}
        for name, value in values.items()
        if name.removesuffix(".json") in METRICS
    }


@pytest.fixture(scope="module")
def by_scanner(tmp_path_factory):
    """All metrics of a store whose centres are the scanners: nothing is renamed there."""
    folder = tmp_path_factory.mktemp("oracle")
    table = columns()
    table["medical_center"] = table.pop("scanner")
    make_store(folder / "e" / "m" / "d", embeddings(), as_manifest(table))
    done = evaluate(folder, f"--metrics={','.join(METRICS)}", *CHEAP, *MEAN_ALONE)
    assert done.code == 0, done.text
    return numbers(folder / "r")


def evaluate(folder, *arguments, output="r"):
    return scripts.call(
        "evaluate", f"--embeddings={folder}/e", f"--output={folder}/{output}", *arguments
    )


@pytest.mark.slow
def test_evaluate_writes_the_report_of_what_is_done(tmp_path):
    make_store(tmp_path / "e" / "m" / "d", embeddings(), as_manifest(columns()))
    done = evaluate(tmp_path, "--k=5", "--draws=0", "--report=" + str(tmp_path / "page"))
    assert "page/index.html" in done.text
    assert "\nm," in (tmp_path / "page" / "headline.csv").read_text()
    failed = evaluate(
        *(tmp_path, "--k=5", "--center_column=nowhere"),
        "--report=" + str(tmp_path / "none"),
        output="other",
    )
    assert failed.code == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_evaluate_says_where_the_report_has_maps(tmp_path):
    make_store(tmp_path / "e" / "m" / "d", embeddings(), as_manifest(columns()))
    flag = scripts.load("evaluate")[1]["maps"]
    words = ("true", "false", "inside", "beside")
    assert [flag.parser.parse(word) for word in words] == ["inside", None, "inside", "beside"]
    for where in ("--maps=beside", "--nomaps"):
        page = tmp_path / where
        done = evaluate(tmp_path, "--k=5", "--draws=0", where, f"--report={page}")
        assert (done.code, done.errors) == (0, []), done.text
        # The map of the first evaluation stays with the results.
        is_beside = where == "--maps=beside"
        assert ('<div class="map"' in (page / "index.html").read_text("utf-8")) != is_beside
        assert (page / "figures/maps/m/d/dataset.html").exists() == is_beside
    for wrong, message in (
        (["--maps=there"], "value should be one of <inside|beside>"),
        ([f"--tiles={tmp_path}/e"], "tiles: they are shown in the report; add --report"),
        (["--tiles=nowhere", "--report=page"], "nowhere"),
    ):
        done = evaluate(tmp_path, "--k=5", *wrong)
        assert done.code in (1, 2)
        assert message in done.text


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_alone_takes_another_column_for_the_center(metric, by_scanner, tmp_path):
    make_store(tmp_path / "e" / "m" / "d", embeddings(), as_manifest(columns()))
    flags = [flag for flag in CHEAP if flag.startswith(("--k=", "--draws"))]
    if metric in ("apd", "clustering_score"):
        flags = CHEAP[1:3] if metric == "apd" else (CHEAP[1], *CHEAP[3:])
    if metric == "retrieval":
        flags = CHEAP[:3]
    if metric == "slide_prediction":
        flags = (*CHEAP[1:3], *MEAN_ALONE)
    done = evaluate(tmp_path, f"--metrics={metric}", "--center_column=scanner", *flags)
    assert done.code == 0, done.text
    assert numbers(tmp_path / "r") == {f"{metric}.json": by_scanner[f"{metric}.json"]}


@pytest.mark.campaign
@pytest.mark.slow
def test_all_metrics_and_maps_take_several_columns(by_scanner, tmp_path):
    make_store(tmp_path / "e" / "m" / "d", embeddings(), as_manifest(columns(stain="ab" * 12)))
    names = ",".join(METRICS)
    done = evaluate(
        tmp_path,
        f"--metrics={names}",
        "--maps",
        "--center_column=scanner,medical_center",
        *CHEAP,
        *MEAN_ALONE,
    )
    assert done.code == 0, done.text
    found = numbers(tmp_path / "r" / "m" / "d@scanner")
    assert found == by_scanner
    for column in ("scanner", "medical_center"):
        assert (tmp_path / "r" / "m" / f"d@{column}" / "maps" / "dataset.parquet").exists()
    total = 2 * (len(METRICS) + 1)
    assert f"1 of {total}: m on d@scanner" in done.text
    assert f"{total} of {total}: m on d@medical_center: maps: done" in done.text


@pytest.fixture
def two(tmp_path):
    """Stores good/d, and lonely/d of one centre."""
    make_store(tmp_path / "e" / "good" / "d", embeddings(), as_manifest(columns()))
    table = columns()
    table["medical_center"] = ["Basel"] * len(table["slide_id"])
    make_store(tmp_path / "e" / "lonely" / "d", embeddings(1), as_manifest(table))
    make_store(tmp_path / "e" / "zeta" / "d", embeddings(2), as_manifest(columns()))
    return tmp_path


def test_one_failure_costs_nothing_else(two):
    done = evaluate(two, "--metrics=robustness_index,margins", "--k=5", "--draws=200")
    assert done.code == 1
    assert "Traceback" not in done.text
    for model in ("good", "zeta"):
        for metric in ("robustness_index", "margins"):
            read_result(str(two / "r" / model / "d" / f"{metric}.json"))
    assert not (two / "r" / "lonely").exists()
    table = done.text.split("done and failed:\n")[1].splitlines()
    assert [line.split()[0] for line in table[:6]] == ["done"] * 2 + ["failed"] * 2 + ["done"] * 2
    assert re.search(r"failed  lonely on d  margins +.*at least two biological classes", table[3])
    [error] = done.errors
    assert error.startswith("error: 2 of 6 failed; the first was lonely on d: robustness_index")


def test_stop_on_failure_ends_with_the_first(two):
    done = evaluate(two, "--stop_on_failure", "--k=5", "--draws=200")
    assert done.code == 1
    assert "1 of 3 failed and 1 were not started" in done.errors[0]
    assert (two / "r" / "good" / "d" / "robustness_index.json").exists()
    assert not (two / "r" / "zeta").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("a defect"), "RuntimeError: a defect"),
        (MemoryError(), "out of memory"),
        (OSError(errno.EIO, "Input/output error", "/x"), "/x: Input/output error"),
    ],
)
def test_unexpected_errors_cost_one_metric(two, monkeypatch, error, said):
    def fail(kind):
        raise error

    real = run_module.resolve
    monkeypatch.setattr(run_module, "resolve", lambda f: fail if "margins" in str(f) else real(f))
    done = evaluate(two, "--embeddings=" + str(two / "e" / "good"), "--k=5", "--draws=200",
                    "--metrics=margins,robustness_index")  # fmt: skip
    assert done.code == 1
    assert ("Traceback" in done.text) == isinstance(error, RuntimeError)
    assert f"1 of 2: good on d: margins: failed: {said}" in done.text
    assert (two / "r" / "good" / "d" / "robustness_index.json").exists()


def test_ctrl_c_ends_at_once_and_says_how_to_go_on(two, monkeypatch):
    asked = []

    def interrupt(function):
        asked.append(function)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "resolve", interrupt)
    done = evaluate(two, "--k=5")
    assert done.code == 1
    assert len(asked) == 1
    [line] = done.text.splitlines()
    assert line.startswith("interrupted; what is finished is kept; give the same command of exp")
    assert "extract" not in line


def test_a_script_that_has_ended_is_not_interrupted_while_the_process_ends(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    during = []

    def run_app(*_, **__):
        during.extend(signal.getsignal(number) for number in numbers)
        sys.exit(0)

    monkeypatch.setattr(start.app, "run", run_app)
    try:
        with pytest.raises(SystemExit):
            start.run_main(lambda: None)
        assert signal.SIG_IGN not in during
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


ODD = {
    "scanner/vendor": "d@scanner%2Fvendor",
    "x/../../../outside": "d@x%2F..%2F..%2F..%2Foutside",
    "site, lab": "d@site, lab",
    "a@b": "d@a%40b",
    "..": "d@%2E%2E",
    "/etc": "d@%2Fetc",
}


@pytest.mark.slow
def test_what_evaluate_writes_of_odd_columns_is_what_report_reads(tmp_path):
    names = [f"u{i % 3}" for i in range(N_SLIDES)]
    make_store(
        tmp_path / "e" / "m" / "d", embeddings(), as_manifest(columns(**dict.fromkeys(ODD, names)))
    )
    flag = ",".join(f'"{name}"' for name in ODD)
    done = evaluate(tmp_path, f"--center_column={flag}", "--k=5", "--draws=200", output="deep/r")
    assert done.code == 0, done.text
    model = tmp_path / "deep" / "r" / "m"
    assert sorted(path.name for path in model.iterdir()) == sorted(ODD.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "e"]
    report = scripts.call("report", f"--results={tmp_path}/deep/r", f"--output={tmp_path}/page")
    assert report.code == 0, report.text
    page = (tmp_path / "page" / "index.html").read_text()
    for name in ODD:
        assert f"d by {name}" in page, name
    assert str(tmp_path) not in page, "no folder of the user's"


def test_a_column_with_a_comma_that_was_taken_for_two_says_how_to_write_it(tmp_path):
    names = [f"u{i % 3}" for i in range(N_SLIDES)]
    table = as_manifest(columns(**{"site, lab": names}))
    make_store(tmp_path / "e" / "m" / "d", embeddings(), table)
    done = evaluate(tmp_path, "--center_column=site, lab", "--k=5")
    assert done.code == 1
    assert "found ['slide_id', " in done.errors[0]
    assert "a name with a comma stands in double quotes" in done.errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset",
    ["../../x", "..", ".", "a/b", "/abs", "a@b", ".a", "a\x00", "n" * 300, "x.json"],
)
def test_datasets_that_are_no_folders_are_refused_before_the_work(two, dataset):
    done = evaluate(two, f"--embeddings={two}/e/good/d", f"--dataset={dataset}")
    assert done.code == 2, done.text
    assert re.search("error: dataset: expected", done.errors[0])
    assert sorted(path.name for path in two.iterdir()) == ["e"]


@pytest.mark.parametrize("name", scripts.SCRIPTS)
def test_flags_without_a_value_are_refused_in_every_script(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {
        "evaluate": ["--embeddings=e"],
        "export": ["--format=npz", "--embeddings=e"],
        "extract": ["--tileset=t", "--dataset=d"],
        "import_embeddings": [
            *("--format=npy", "--source=s", "--manifest=m.csv", "--model=m", "--dataset=d"),
        ],
        "leaderboard": ["--results=r"],
        "report": ["--results=r"],
    }.get(name, [])
    done = scripts.call(name, *needed, "--output=")
    assert (done.code, done.errors) == (
        2,
        ["error: output: expected a value, found none; give one, or leave it out."],
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["metrics", "center_column", "embeddings", "dataset", "heads"])
def test_lists_without_a_value_are_refused(two, flag):
    done = evaluate(two, f"--{flag}=")
    assert done.code == 2
    assert done.errors[0].startswith(f"error: {flag}: expected a value, found none")


@pytest.mark.parametrize(
    ("flag", "word"),
    [("--seed=-1", "seed"), ("--k=0", "k: expected"), ("--k=-1", "k: expected"),
     ("--k=²", "k: expected"), ("--center_column=scanner,scanner", "each column once"),
     ("--seed=99999999999999", "seed: expected less than")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(two, flag, word):
    done = evaluate(two, flag)
    assert done.code == 2, done.text
    assert word in done.text
    assert "Traceback" not in done.text


@pytest.mark.slow
def test_results_hold_no_folders_of_the_users(tmp_path):
    make_store(tmp_path / "e" / "m" / "d", embeddings(), as_manifest(columns()))
    table = columns()
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    metrics = ",".join(METRICS)
    given = (f"--manifest={tmp_path}/rows.csv", f"--metrics={metrics}")
    done = evaluate(tmp_path, *given, *CHEAP, *MEAN_ALONE)
    assert done.code == 0, done.text
    for path in (tmp_path / "r").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    record = json.loads((tmp_path / "r" / "m" / "d" / "apd.json").read_text())
    assert record["provenance"]["settings"]["view"] == "rows.csv"
    assert len(record["provenance"]["settings"]["view_sha256"]) == 64


def test_credentials_stay_out_of_messages(two):
    url = "s3://AKIAVICTIM12345:s3cr3t/x@bucket/rows.csv"
    done = evaluate(two, f"--manifest=ftp{url[2:]}", "--k=5")
    assert done.code == 1
    assert "s3cr3t" not in done.text
    assert "AKIA" not in done.text
    assert "ftp://***@bucket/rows.csv" in done.text


FULL = {
    errno.ENOSPC: "No space left on device.*Make room or give another --output",
    errno.EDQUOT: "quota exceeded.*Remove files of yours or give another --output",
    errno.EFBIG: "File too large.*ulimit -f",
    errno.EROFS: "Read-only file system.*give another --output",
}


def commands(folder):
    """Every script, on inputs that are there."""
    table = columns()
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    np.save(folder / "x.npy", embeddings())
    yield (
        *("import_embeddings", "--format=npy", f"--source={folder}/x.npy", "--model=m"),
        *(f"--manifest={folder}/rows.csv", "--dataset=d", f"--output={folder}/e"),
    )
    yield "evaluate", f"--embeddings={folder}/e", "--k=5", "--draws=200", f"--output={folder}/r"
    yield "report", f"--results={folder}/r", f"--output={folder}/page"
    yield "synthesize", "--slides=1", "--tiles=1", "--tile_px=32", f"--output={folder}/tiles"
    yield (
        *("extract", "--model=color_stats", f"--tileset={folder}/tiles", "--dataset=t"),
        *("--batch_size=8", f"--output={folder}/e"),
    )


@pytest.mark.slow
def test_a_disk_that_fails_is_one_message_in_every_script(tmp_path, monkeypatch):
    """Each script meets four faults at its first write to disk, and then works."""
    for command, (number, words) in itertools.product(commands(tmp_path), FULL.items()):
        with monkeypatch.context() as broken:

            def fail(*_, number=number):
                raise OSError(number, os.strerror(number))

            broken.setattr(os, "fsync", fail)
            broken.setattr(os, "mkdir", fail)
            done = scripts.call(*command)
        assert done.code == 1, (command, done)
        [error] = done.errors
        assert re.search(words, error, re.IGNORECASE), error
        assert str(tmp_path) in error
        assert "Traceback" not in done.text
        if number == errno.EROFS:
            done = scripts.call(*command)
            assert done.code == 0, done.text
    left = [p for p in tmp_path.rglob("*") if p.name.startswith(".") or p.name.endswith(".partial")]
    assert left == []
    assert (tmp_path / "page" / "index.html").exists()


@pytest.mark.parametrize("name", scripts.SCRIPTS)
def test_an_output_that_cannot_be_written_is_said_before_the_work(name, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    needed = {
        "evaluate": ["--embeddings=/nowhere"],
        "export": ["--format=npz", "--embeddings=/nowhere"],
        "extract": ["--model=color_stats", "--tileset=/nowhere", "--dataset=d"],
        "import_embeddings": [
            *("--format=npy", "--source=/nowhere", "--manifest=m.csv", "--model=m", "--dataset=d"),
        ],
        "leaderboard": ["--results=/nowhere"],
        "report": ["--results=/nowhere"],
    }.get(name, [])
    done = scripts.call(name, *needed, f"--output={tmp_path}/file/x")
    assert done.code == 1
    assert re.search(r"file/x: cannot be written \(Not a directory\). A file lies", done.errors[0])
    monkeypatch.setattr(os, "access", lambda *_: False)
    done = scripts.call(name, *needed, f"--output={tmp_path}/x")
    assert done.code == 1
    assert re.search(r"/x: cannot be written \(Permission denied\). Change", done.errors[0])
    assert not pathlib.Path(tmp_path, "x").exists()


def test_too_little_memory_names_the_flags(two, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 9.9 TiB")

    monkeypatch.setattr(run_module, "find_neighborhood", fail)
    done = evaluate(two, f"--embeddings={two}/e/good/d", "--k=5")
    assert done.code == 1
    assert "out of memory (Unable to allocate 9.9 TiB). Lower --budget_mb" in done.errors[0]
    assert "Traceback" not in done.text


@pytest.mark.slow
def test_a_full_output_ends_the_run(two, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    asked = []
    real = run_module.find_neighborhood
    monkeypatch.setattr(
        run_module, "find_neighborhood", lambda *a, **k: asked.append(a) or real(*a, **k)
    )
    done = evaluate(two, "--k=5")
    assert done.code == 1
    assert len(asked) == 1, "nothing more could be kept"
    assert issubclass(faults.WriteError, OSError)
