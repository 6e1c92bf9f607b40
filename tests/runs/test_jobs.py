"""Jobs of a run: their order and commands; on SLURM with dependencies, here one after another."""

import dataclasses
import os
import re
import sys

import pytest
import scripts
from run_folders import contents, write_tiles
from workers import fake_command

from pathorob_jax.core import hosts
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.runs import jobs, submit
from pathorob_jax.runs.jobs import Job, Resources
from pathorob_jax.runs.request import make_request

CAP = 2


def plan(cluster="slurm", output="out", **resources):
    request = make_request(
        output=output, models=["color_stats", "vit_random"], datasets=["tcga", "mine"]
    )
    return jobs.plan_jobs(
        request,
        encoders=["--model=color_stats", "--model=vit_random"],
        options=["--k=5"],
        resources=Resources(max_parallel=CAP, **resources),
        cluster=cluster,
    )


def test_jobs_follow_each_other_and_arrays_are_over_all_pairs():
    planned = plan(gpus=4)
    assert [(job.name, job.condition, job.after) for job in planned[1:]] == [
        ("preflight", "afterok", "prepare"),
        ("extract", "afterok", "preflight"),
        ("evaluate", "aftercorr", "extract"),
        ("report", "afterany", "evaluate"),
    ]
    prepare, preflight, extract, evaluate, report = planned
    both = ("--model=color_stats,vit_random", "--dataset=tcga,mine", "--k=5")
    assert prepare.commands == [("run", "--steps=fetch,convert", *both)]
    assert report.commands == [("run", "--steps=report", *both)]
    assert preflight.commands == [("doctor", "--output=out", "--run=out")]
    pairs = [(m, d) for m in ("color_stats", "vit_random") for d in ("tcga", "mine")]
    for job in (extract, evaluate):
        assert job.commands == [
            ("run", f"--steps={job.name}", f"--model={m}", f"--dataset={d}", "--k=5")
            for m, d in pairs
        ]
    assert [job.resources.gpus for job in planned] == [0, 4, 4, 4, 0]
    assert "extract: 4 parts, 2 at once, 1 node, 4 GPUs, 8 cores" in jobs.describe(planned)


def test_many_nodes_share_one_extraction():
    planned = plan(nodes=3)
    assert [job.resources.nodes for job in planned] == [1, 1, 3, 1, 1]
    assert planned[2].commands[1][:6] == (
        *("extract", "--multihost", "--model=color_stats", "--dataset=mine"),
        *("--tileset=out/data/mine", "--output=out/embeddings"),
    )
    with pytest.raises(UsageError, match="nodes: expected 1 on this machine, found 3"):
        plan("local", nodes=3)


def test_plan_of_the_script_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = scripts.call(
        "submit", "--plan", "--cluster=slurm", "--output=o", "--model=color_stats", "--k=7",
        "--max_parallel=3", "--dataset=synthetic,mine",
    )  # fmt: skip
    assert done.code == 0, done.text
    assert "5 jobs, 7 commands" in done.out
    assert "pathorob-jax run --steps=extract --model=color_stats --dataset=synthetic" in done.out
    assert "--k=7" in done.out
    assert list(tmp_path.iterdir()) == []


def test_slurm_gets_dependencies_a_cap_and_requeueing(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    log = tmp_path / "asked"
    for name in ("srun", "scancel", "squeue", "sacct"):
        fake_command(tmp_path, name, "true")
    number = f'echo "Submitted batch job $((40 + $(wc -l < {log})))"'
    fake_command(
        tmp_path,
        "sbatch",
        f'echo "${{@: -1}}" >> {log}; cp "${{@: -1}}" {log}.$(wc -l < {log}); {number}',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    planned = plan(
        output=str(tmp_path / "out"), gpus=2, partition="short", setup=("module load x",)
    )
    done = submit.submit(planned, folder=str(tmp_path / "out" / "jobs"))
    assert list(done.ids.values()) == ["41", "42", "43", "44", "45"]
    assert done.failed == []
    texts = [(tmp_path / f"asked.{i}").read_text() for i in range(1, 6)]
    found = [dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE)) for text in texts]
    assert [one.get("dependency") for one in found] == [
        *(None, "afterok:41", "afterok:42", "aftercorr:43", "afterany:44")
    ]
    assert [one.get("array") for one in found] == [None, None, "0-3%2", "0-3%2", None]
    assert [one.get("gpus-per-node") for one in found] == [None, "2", "2", "2", None]
    assert all(one["kill-on-invalid-dep"] == "yes" for one in found)
    assert all("#SBATCH --requeue" in text and "module load x" in text for text in texts)
    assert all(one["partition"] == "short" and one["ntasks-per-node"] == "1" for one in found)


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"slurm is not on this machine .*--cluster=local"):
        submit.submit(plan(), folder=str(tmp_path / "jobs"))


@pytest.mark.parametrize(("has_devices", "n"), [(True, 2), (False, 0)])
def test_a_job_of_this_machine_may_use_all_of_its_gpus(monkeypatch, has_devices, n):
    names = ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"]
    monkeypatch.setattr(os, "listdir", lambda folder: names)
    monkeypatch.setattr(os.path, "isdir", lambda folder: has_devices)
    assert hosts.visible_gpus() == n


def test_without_submitit_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'pathorob-jax[cluster]'")):
        submit.submit(plan(), folder=str(tmp_path / "jobs"))


def test_a_stopped_command_is_queued_again_as_it_was():
    pytest.importorskip("submitit")
    command = submit.Command((sys.executable, "-c", "raise SystemExit(3)"))
    again = command.checkpoint()
    assert again.function == command
    with pytest.raises(InputError, match="exit code 3 of"):
        command()


@dataclasses.dataclass(frozen=True)
class Python(Job):
    """A job whose commands are Python."""

    def command_line(self, number):
        return [sys.executable, "-c", *self.commands[number]]


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_here_parts_run_after_their_own_and_failures_cost_what_needs_them(tmp_path):
    pytest.importorskip("submitit")
    write = "import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit(int(sys.argv[2]))"
    resources = Resources(max_parallel=CAP, minutes=5)

    def job(name, codes, after="", condition="afterok"):
        commands = [(write, str(tmp_path / f"{name}{i}"), str(c)) for i, c in enumerate(codes)]
        return Python(name, commands, resources, "local", after, condition)

    done = submit.submit(
        [
            job("a", [0]),
            job("b", [0, 1, 0], "a"),
            job("c", [0, 0, 0], "b", "aftercorr"),
            job("d", [0], "c"),
            job("e", [0], "d", "afterany"),
        ],
        folder=str(tmp_path / "jobs"),
    )
    made = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert made == ["a0", "b0", "b1", "b2", "c0", "c2", "e0"]
    assert len(done.failed) == 1
    assert done.failed[0].startswith("b: pathorob-jax")
    with pytest.raises(InputError, match="1 jobs failed"):
        done.raise_failure()


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_jobs_of_this_machine_end_with_the_artefacts_of_a_run(tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "data").mkdir()
    write_tiles(tmp_path / "data", "mine", "other")
    common = [
        "--model=color_stats,nuclear_texture",
        "--dataset=mine,other",
        f"--data_dir={tmp_path}/data",
        "--k=5",
        "--batch_size=4",
        "--metrics=robustness_index",
    ]
    done = scripts.call("submit", *common, f"--output={tmp_path}/jobs", "--max_parallel=2")
    assert done.code == 0, done.text
    whole = scripts.call("run", *common, f"--output={tmp_path}/whole")
    assert whole.code == 0, whole.text
    found = {
        name: data
        for name, data in contents(tmp_path / "jobs").items()
        if not name.startswith("jobs/") and name != "run.json" and "stamp.json" not in name
    }
    expected = {
        name: data
        for name, data in contents(tmp_path / "whole").items()
        if name != "run.json" and "stamp.json" not in name
    }
    assert found == expected
