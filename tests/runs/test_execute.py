"""Whole runs: each step once, failures that cost only what needs them, going on after a kill."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import run_folders
import scripts
from run_folders import (
    TINY,
    N,
    contents,
    snapshot,
    without_cost,
    write_checkpoint,
    write_spec,
    write_tiles,
)

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.embeddings.store_writer import StoreWriter
from pathorob_jax.evaluation.run import Evaluation
from pathorob_jax.runs.execute import run
from pathorob_jax.runs.request import make_request, read_request
from pathorob_jax.runs.status import read_status
from pathorob_jax.runs.steps import Key

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = ("--metrics=robustness_index,margins", "--k=5", "--batch_size=4")


def run_small(folder, *arguments):
    return scripts.call(
        "run", f"--output={folder}/out", f"--data_dir={folder}/data", *SMALL, *arguments
    )


def states(output):
    return {key: step.state for key, step in read_status(str(output)).steps.items()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Three encoders on three datasets; the weights of one and the tiles of one cannot be used."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "data").mkdir()
    write_tiles(folder / "data", "a", "b")
    spec = write_spec(folder, "whole", "broken")
    whole = write_checkpoint(folder / "whole.safetensors", spec, "whole")
    (folder / "broken.safetensors").write_bytes(b"no tensors")
    arguments = [
        *("--model=color_stats", f"--spec={spec}", "--dataset=a,gone,b"),
        f"--checkpoint={whole},broken={folder}/broken.safetensors",
    ]
    done = run_small(folder, *arguments)
    return folder, arguments, done, snapshot(folder / "out")


@pytest.mark.campaign
@pytest.mark.slow
def test_what_fails_costs_only_what_needs_it_and_is_said(mixed):
    folder, _, done, _ = mixed
    assert done.code == 1
    found = states(folder / "out")
    for model in ("color_stats", "whole"):
        assert {found[Key(step, model, d)] for step in ("extract", "evaluate") for d in "ab"} == {
            "done"
        }
        assert found[Key("extract", model, "gone")] == "waits"
    assert found[Key("convert", "whole")] == found[Key("report")] == "done"
    assert found[Key("convert", "broken")] == found[Key("fetch", dataset="gone")] == "failed"
    assert {found[Key("evaluate", "broken", d)] for d in ("a", "b", "gone")} == {"waits"}
    table = str(read_status(f"{folder}/out"))
    assert table in done.text
    assert "4 of 9 done, 5 failed (encoder on dataset)" in table
    lines = [line.split() for line in table.splitlines()]
    assert ["fetch", "done", "failed", "(1)", "done"] in lines
    assert ["color_stats", "-", "done", "waits", "(1)", "done"] in lines
    assert ["whole", "done", "done", "waits", "(1)", "done"] in lines
    assert ["broken", "failed", "(2)", *["waits", "(2)", "waits", "(1)", "waits", "(2)"]] in lines
    assert f"1 fetch gone: {folder}/data/gone: expected the tileset of gone." in table
    assert "2 convert broken: " in table
    assert "broken.safetensors" in table
    assert done.errors[-1].startswith("error: 2 steps failed, the first was fetch gone: ")


@pytest.mark.slow
def test_another_place_of_maps_or_other_tiles_are_another_report(tmp_path):
    (tmp_path / "data").mkdir()
    write_tiles(tmp_path / "data", "a")
    for number, shown in enumerate(([], ["--maps=beside"], [f"--tiles={tmp_path}/data/a"])):
        done = run_small(tmp_path, "--model=color_stats", "--dataset=a", *shown)
        assert (done.code, done.errors) == (0, []), done.text
        assert "4 of 4: report: there already" not in done.text
        if number:
            assert "3 of 4: evaluate color_stats on a: there already" in done.text
        # The status and the same command once more know what was asked for.
        assert states(tmp_path / "out")[Key("report")] == "done"
        again = run_small(tmp_path, "--model=color_stats", "--dataset=a", *shown)
        assert "4 of 4: report: there already" in again.text
    found = read_request(str(tmp_path / "out"))
    assert (found.maps, found.tiles_shown) == ("inside", f"{tmp_path}/data/a")


@pytest.mark.slow
def test_results_are_those_of_the_steps_one_by_one(mixed, tmp_path):
    folder = mixed[0]
    by_hand = [
        ["extract", "--model=color_stats", f"--tileset={folder}/data/a", "--dataset=a"],
        ["evaluate", f"--embeddings={tmp_path}/e", SMALL[0], SMALL[1]],
    ]
    by_hand[0] += [f"--output={tmp_path}/e", "--batch_size=4"]
    by_hand[1] += [f"--output={tmp_path}/r"]
    for command in by_hand:
        done = scripts.call(*command)
        assert done.code == 0, done.text
    ours = folder / "out" / "results" / "color_stats" / "a"
    names = [path.name for path in (tmp_path / "r" / "color_stats" / "a").iterdir()]
    assert {"robustness_index.json", "margins.json"} <= set(names)
    for name in names:
        theirs = tmp_path / "r/color_stats/a" / name
        found, wanted = (
            without_cost(f"results/{name}", path.read_bytes()) for path in (ours / name, theirs)
        )
        assert found == wanted
    assert (folder / "out" / "report" / "index.html").exists()
    assert (folder / "out" / "results" / "models.json").exists()


@pytest.mark.campaign
@pytest.mark.slow
def test_the_same_command_goes_on_when_the_reasons_are_gone_and_then_does_nothing(mixed):
    folder, arguments, _, before = mixed
    write_tiles(folder / "data", "gone")
    write_checkpoint(folder / "broken.safetensors", f"{folder}/mine.yaml", "broken", seed=1)
    done = run_small(folder, *arguments)
    assert done.code == 0, done.text
    after = snapshot(folder / "out")
    kept = [n for n in before if n.startswith(("weights/whole", "embeddings/", "results/"))]
    kept = [name for name in kept if name != "results/models.json"]
    assert len(kept) > 40
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert set(states(folder / "out").values()) == {"done"}
    assert not any(name.startswith("failures/") for name in after)
    again = run_small(folder, *arguments)
    assert again.code == 0
    assert again.text.count("there already") == 3 + 2 + 18 + 1
    assert snapshot(folder / "out") == after


@pytest.mark.campaign
@pytest.mark.slow
def test_changed_settings_tiles_and_results_are_seen(mixed):
    """Each artefact tells itself that it does not fit; here after all is done."""
    folder, arguments, _, _ = mixed
    output = folder / "out"
    request = read_request(str(output))
    assert (request.k, request.metrics) == (5, ("robustness_index", "margins"))
    result = output / "results" / "color_stats" / "a" / "margins.json"
    whole = result.read_bytes()
    result.write_bytes(whole.replace(b'"k": 5', b'"k": 6'))
    found = read_status(str(output)).steps[Key("evaluate", "color_stats", "a")]
    assert (found.state, found.done, found.total) == ("part", 1, 2)
    assert run_small(folder, *arguments).code == 0
    found, wanted = (without_cost("results/m.json", d) for d in (result.read_bytes(), whole))
    assert found == wanted
    page = output / "report" / "index.html"
    made = page.stat().st_mtime_ns
    done = run_small(folder, *arguments, "--k=6")
    assert done.code == 0
    assert json.loads(result.read_bytes())["k"] == 6
    assert page.stat().st_mtime_ns > made
    tiles = folder / "data" / "b" / "train-00000-of-00001.parquet"
    os.utime(tiles, ns=(1, 1))  # the same bytes: compared once, and nothing else
    store = output / "embeddings" / "color_stats" / "b" / "store.json"
    made = store.stat().st_mtime_ns
    assert states(output)[Key("extract", "color_stats", "b")] == "left"
    assert run_small(folder, *arguments, "--k=6").code == 0
    assert store.stat().st_mtime_ns == made
    assert states(output)[Key("extract", "color_stats", "b")] == "done"


@pytest.mark.slow
def test_status_tells_each_stage_and_a_killed_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    def request(name):
        return make_request(
            output=str(tmp_path / name),
            models=["color_stats"],
            metrics=["robustness_index", "margins"],
            k=5,
            batch_size=4,
            synthetic=TINY,
        )

    def cell(name):
        line = str(read_status(str(tmp_path / name))).splitlines()[-1]
        assert line.startswith("color_stats")
        return line.removeprefix("color_stats").strip()

    with pytest.raises(FileNotFoundError, match="nothing was run into this folder"):
        read_status(str(tmp_path / "out"))
    request("out").remember()
    assert cell("out") == "left"
    write, finish, written = StoreWriter.write, Evaluation.finish, []

    def stop_after_three(self, *arguments, **more):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(write(self, *arguments, **more))
        written[-1].result()
        return written[-1]

    def stop_at_margins(self, part):
        if part == "margins":
            raise KeyboardInterrupt
        return finish(self, part)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            run(request("out"))
    assert cell("out") == f"extract 12 of {N}"
    with monkeypatch.context() as patch:
        patch.setattr(Evaluation, "finish", stop_at_margins)
        with pytest.raises(KeyboardInterrupt):
            run(request("out"))
    assert cell("out") == "evaluate 1 of 2"
    ran = run(request("out"))
    assert [key.kind for key in ran.done] == ["evaluate", "report"]
    assert cell("out") == "done"
    assert "report of all results: " in str(read_status(str(tmp_path / "out")))
    run(request("whole"))
    apart = ("run.json", "embeddings/color_stats/synthetic/tiles/stamp.json")
    assert contents(tmp_path / "out", *apart) == contents(tmp_path / "whole", *apart)
    status = scripts.call("status", f"--output={tmp_path}/out", "--format=json")
    assert status.code == 0


@pytest.mark.slow
def test_only_the_kinds_that_are_asked_for_are_done(tmp_path):
    (tmp_path / "data").mkdir()
    write_tiles(tmp_path / "data", "mine")
    asked = make_request(
        output=str(tmp_path / "out"),
        models=["color_stats"],
        datasets=["mine"],
        data_dir=str(tmp_path / "data"),
        metrics=["robustness_index"],
        k=5,
        batch_size=8,
    )
    done = [
        [key.kind for key in run(asked, kinds=kinds).done]
        for kinds in (["report"], ["fetch", "extract"], ["evaluate"], ["report"])
    ]
    assert done == [[], ["extract"], ["evaluate"], ["report"]]


def test_runs_of_the_same_settings_share_a_status(tmp_path):
    def remember(models, **more):
        make_request(output=str(tmp_path), models=models, synthetic=TINY, **more).remember()
        return [tuple(cell) for cell in read_request(str(tmp_path)).cells]

    assert remember(["color_stats"]) == [("color_stats", "synthetic")]
    written = (tmp_path / "run.json").stat().st_mtime_ns
    assert len(remember(["vit_random", "color_stats"])) == 2
    both = remember(["color_stats"])
    assert set(both) == {("vit_random", "synthetic"), ("color_stats", "synthetic")}
    assert (tmp_path / "run.json").stat().st_mtime_ns > written
    assert remember(["color_stats"], k=7) == [("color_stats", "synthetic")]
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"run\.json: .*Remove it"):
        read_request(str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"models": ["uni3"]}, "unknown name 'uni3'"),
        ({"models": ["color_stats", "color_stats"]}, "color_stats is given more than once"),
        ({"datasets": ["a/b"]}, "expected a plain name"),
        ({"datasets": ["a", "a"]}, "expected each once"),
        ({"metrics": ["index"]}, "unknown name 'index'"),
        ({"output": "gs://bucket/x"}, "expected a local folder"),
        ({"k": "many"}, "k: expected"),
        ({"checkpoints": ["x.pth"]}, "0 of the encoders have weights"),
        ({"models": ["rudolfv"]}, "cannot be run"),
        ({"models": ["uni", "conch"], "checkpoints": ["x.pth"]}, "expected <model>=<file"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything(flags, match):
    with pytest.raises(UsageError, match=match):
        make_request(**{"output": "x"} | flags)


class Gated:
    """Refuses as the hub does."""

    def convert(self, spec, checkpoint, *, output, overwrite=False):
        raise InputError(f"owner/{spec.name}: gated. Accept its terms and log in.")

    def is_at_hand(self, spec, checkpoint):
        return False


@pytest.mark.slow
def test_a_gated_encoder_fails_alone_and_is_asked_again(tmp_path):
    def ask():
        return run(
            make_request(
                output=str(tmp_path),
                models=["uni", "color_stats"],
                metrics=["robustness_index"],
                k=5,
                synthetic=TINY,
            ),
            Gated(),
        )

    ran = ask()
    assert [str(step.key) for step in ran.status.failed] == ["convert uni"]
    assert "1 convert uni: owner/uni: gated. Accept its terms and log in." in str(ran.status)
    assert Key("evaluate", "color_stats", "synthetic") in ran.done
    with pytest.raises(InputError, match="1 step failed, the first was convert uni: owner/uni"):
        ran.raise_failure()
    assert [str(step.key) for step in ask().status.failed] == ["convert uni"]


CODE = """
import sys
sys.path[:0] = ["tests/helpers"]
from run_folders import TINY
from pathorob_jax.runs.execute import run
from pathorob_jax.runs.request import make_request
run(make_request(output=sys.argv[1], k=5, batch_size=4, synthetic=TINY)).raise_failure()
"""


def start(output, cache):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", CODE, str(output)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_at_any_moment_it_ends_with_equal_artefacts(tmp_path):
    draw = random.Random(0)
    cache = tmp_path / "xla"
    for name in ("warm", "whole"):
        began_s = time.monotonic()
        process = start(tmp_path / name, cache)
        assert process.communicate()[1] is not None
        assert process.returncode == 0
        whole_s = time.monotonic() - began_s
    names = ("color_stats", "nuclear_texture", "vit_random")
    stamps = [f"embeddings/{name}/synthetic/tiles/stamp.json" for name in names]
    expected = contents(tmp_path / "whole", *stamps)
    n_kills = int(os.environ.get("KILLS", "20"))
    for number in range(n_kills):
        output = tmp_path / f"killed{number}"
        process = start(output, cache)
        time.sleep(draw.uniform(0.2, 1.0) * whole_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start(output, cache)
        said = process.communicate()[1].decode()
        assert process.returncode == 0, said
        assert contents(output, *stamps) == expected, number


@pytest.mark.slow
def test_the_helpers_tiles_are_those_of_the_default():
    assert TINY.n_slides * TINY.n_tiles * 16 == run_folders.N
