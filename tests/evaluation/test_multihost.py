"""Real processes of two devices each evaluate, robustify and run together: the files of one."""

import json
import signal

import numpy as np
import pytest
import run_folders
from extraction import files_of
from run_folders import write_checkpoint, write_spec, write_tiles
from stores import make_manifest, make_store
from workers import Workers, free_port

from pathorob_jax.evaluation.run_many import evaluate_stores
from pathorob_jax.evaluation.settings import ClusteringSettings, Settings

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.campaign]
DEADLINE_S = 240
SCRIPT = """
import runpy, sys
if __name__ == "__main__":  # as in commands: processes that they start import it, too
    runpy.run_module("experiments." + sys.argv.pop(1), run_name="__main__")
"""
N, DIM = 480, 10
METRICS = "robustness_index,margins,probes,apd,retrieval,clustering_score"
SETTINGS = ("--k=7", "--draws=200", "--seed=1")


def run_alone(name, tmp_path, *arguments):
    """One process that writes to ``alone/out``."""
    (tmp_path / "one").mkdir()
    command = [name, *arguments, f"--output={tmp_path}/alone/out"]
    Workers(SCRIPT, [command], tmp_path / "one").finish([0], within_s=DEADLINE_S)


def start(name, folder, *arguments):
    """Two processes of one run."""
    folder.mkdir(exist_ok=True)
    common = [name, *arguments, "--multihost", f"--coordinator=localhost:{free_port()}"]
    commands = [[*common, "--num_processes=2", f"--process_id={i}"] for i in range(2)]
    return Workers(SCRIPT, commands, folder)


@pytest.fixture
def stores(tmp_path, rng):
    """Two stores of rows of 2 classes, 3 centres and 30 slides; some rows are equal or near."""
    bio, center = np.arange(N) % 2, np.arange(N) // 2 % 3
    slide = (bio * 3 + center) * 5 + np.arange(N) // 6 % 5
    for model in ("a", "b"):
        x = (rng.normal(size=(N, DIM)) + 2).astype(np.float32)
        x[:, 0] += bio
        x[:, 1] += center
        x[300:330] = x[:30]
        x[330:350] = np.nextafter(x[:20], np.float32(9))
        make_store(tmp_path / "stores" / model / "d", x, make_manifest(bio, center, slide))
    return tmp_path / "stores"


def results_of(folder):
    """Files of results by name, without cost and the devices that computed."""
    found = {}
    for name, data in run_folders.contents(folder).items():
        if name.endswith(".json") and "/tasks/" not in name:
            value = json.loads(data)
            for fact in ("cost", "device"):
                value.get("provenance", {}).pop(fact, None)
            data = json.dumps(value).encode()
        found[name] = data
    return found


@pytest.mark.parametrize("design", ["all", "paired"])
def test_two_processes_evaluate_as_one(stores, tmp_path, design):
    arguments = [
        *(f"--embeddings={stores}", f"--metrics={METRICS}", *SETTINGS, f"--design={design}"),
        *("--repetitions=3", "--k_max=4", "--trials=3"),
        *(["--min_cell_size=20"] if design == "paired" else []),
    ]
    run_alone("evaluate", tmp_path, *arguments)
    for store in stores.glob("*/d"):  # so that the two search, too
        for path in (store / "neighbors").iterdir():
            path.unlink()
    logs = start("evaluate", tmp_path / "two", *arguments, f"--output={tmp_path}/both/out").finish(
        [0, 0], within_s=DEADLINE_S
    )
    expected, found = results_of(tmp_path / "alone/out"), results_of(tmp_path / "both/out")
    assert len([name for name in expected if name.count("/") == 2]) > 10
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert all("12 of 12" in log for log in logs)
    record = json.loads(
        (tmp_path / "both" / "out" / "a" / "d" / "robustness_index.json").read_text()
    )
    assert record["provenance"]["device"]["count"] == 4
    assert record["provenance"]["cost"]["search"] == "ring"


def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(stores, tmp_path):
    arguments = [
        *(
            f"--embeddings={stores}",
            "--metrics=clustering_score",
            *SETTINGS,
            "--trials=30",
            "--k_max=4",
        ),
        f"--output={tmp_path}/out",
    ]
    tasks = tmp_path / "out" / "a" / "d" / "tasks" / "clustering_score"
    with start("evaluate", tmp_path / "two", *arguments) as two:
        two.wait_until(lambda: list(tasks.glob(".*.lock")), within_s=DEADLINE_S)
        two.processes[1].send_signal(signal.SIGKILL)
        logs = two.finish([1, -signal.SIGKILL], within_s=DEADLINE_S)
    assert "another process was lost" in logs[0]
    assert "same command" in logs[0]
    start("evaluate", tmp_path / "again", *arguments).finish([0, 0], within_s=DEADLINE_S)
    evaluate_stores(
        [str(stores)],
        output=str(tmp_path / "alone"),
        metrics=["clustering_score"],
        settings=Settings(
            k=7, draws=200, seed=1, clustering_score=ClusteringSettings(trials=30, k_max=4)
        ),
    )
    for model in "ab":
        ours, theirs = (
            json.loads((tmp_path / root / model / "d" / "clustering_score.json").read_text())
            for root in ("out", "alone")
        )
        for record in (ours, theirs):
            record.pop("provenance")
        assert ours == theirs


def test_a_failure_of_one_is_a_failure_of_both_and_the_next_metric_goes_on(stores, tmp_path):
    arguments = [
        *(f"--embeddings={stores}/a", "--metrics=apd,robustness_index", *SETTINGS),
        *("--apd_classes=class0,class9", f"--output={tmp_path}/out"),
    ]
    logs = start("evaluate", tmp_path / "two", *arguments).finish([1, 1], within_s=DEADLINE_S)
    assert all("class9" in log for log in logs)
    assert (tmp_path / "out" / "a" / "d" / "robustness_index.json").exists()


@pytest.mark.parametrize("method", ["combat", "center_means"])
def test_two_processes_robustify_as_one(stores, tmp_path, method):
    arguments = [f"--embeddings={stores}/a", f"--method={method}"]
    run_alone("robustify", tmp_path, *arguments)
    start("robustify", tmp_path / "two", *arguments, f"--output={tmp_path}/both/out").finish(
        [0, 0], within_s=DEADLINE_S
    )
    expected, found = files_of(tmp_path / "alone"), files_of(tmp_path / "both")
    assert len(expected) > 10
    assert {**found} == {**expected}


def test_two_processes_normalise_a_tileset_as_one(tmp_path):
    write_tiles(tmp_path, "tiles")
    arguments = [f"--tileset={tmp_path}/tiles", "--method=macenko"]
    run_alone("robustify", tmp_path, *arguments)
    start("robustify", tmp_path / "two", *arguments, f"--output={tmp_path}/both/out").finish(
        [0, 0], within_s=DEADLINE_S
    )
    assert files_of(tmp_path / "both") == files_of(tmp_path / "alone")
    assert [path.name for path in (tmp_path / "both").glob(".*")] == []


def test_two_processes_run_as_one(tmp_path):
    (tmp_path / "data").mkdir()
    write_tiles(tmp_path / "data", "ours")
    spec = write_spec(tmp_path, "mine")
    checkpoint = write_checkpoint(tmp_path / "mine.safetensors", spec, "mine")
    arguments = [
        *(f"--data_dir={tmp_path}/data", "--model=color_stats", f"--spec={spec}"),
        *(f"--checkpoint={checkpoint}", "--dataset=ours", "--batch_size=4", "--k=5"),
        "--metrics=robustness_index,margins",
    ]
    run_alone("run", tmp_path, *arguments)
    logs = start("run", tmp_path / "two", *arguments, f"--output={tmp_path}/both/out").finish(
        [0, 0], within_s=DEADLINE_S
    )
    ours, theirs = (results_of(tmp_path / name / "out" / "results") for name in ("both", "alone"))
    assert ours == theirs
    assert (tmp_path / "both" / "out" / "report" / "index.html").exists()
    again = start("run", tmp_path / "again", *arguments, f"--output={tmp_path}/both/out")
    logs = again.finish([0, 0], within_s=DEADLINE_S)
    assert all("there already" in log for log in logs)
