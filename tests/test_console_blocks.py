"""Console blocks of the README and of the guides, run to the letter, each command in its turn.

The README's run in an environment of their own: ``pip install pathorob-jax`` installs the wheel of
this clone, from a folder that stands in for the index; the packages that it needs are those of this
environment, which ``test_wheel`` fetches instead. Pages that are run when the site is built are not
run here. Of the guides every command is either in ``PARTS``, with the files that it reads, or in
``NOT_RUN``, with what it needs that is not here.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import report_records
import run_folders
import stores

from pathorob_jax.data import synthetic_tiles
from pathorob_jax.results import result_files
from tests import test_docs

ROOT = test_docs.ROOT
README_COMMANDS = ["pip install pathorob-jax", "pathorob-jax run"]
TIMEOUT_S = 900
SLIDES = 16  # two classes at two centres, with four slides each


def make_nothing(folder):
    """The commands read no file."""


def make_homes(folder):
    (folder / ".config/fish/completions").mkdir(parents=True)


def make_docs(folder):
    (folder / "docs").mkdir()


def make_weights(folder):
    """What a timm network of random weights leaves when it is saved, and tiles."""
    torch = pytest.importorskip("torch")
    import torch_oracles  # here, as it imports the converters

    timm = torch_oracles.import_timm()
    network = timm.create_model("vit_small_patch16_224", pretrained=False)
    torch.save(network.state_dict(), folder / "teacher.pth")
    config = synthetic_tiles.SyntheticConfig(n_slides=1, n_tiles=1, tile_px=224)
    synthetic_tiles.write_tileset(str(folder / "tiles"), config)


def make_rows(n):
    """Class, centre and slide of ``n`` patches of each slide."""
    slide = np.repeat(np.arange(SLIDES), n)
    return slide % 2, slide // 2 % 2, slide


def make_numbers(n):
    return np.random.default_rng(0).standard_normal((SLIDES * n, 6)).astype(np.float32)


def make_anndata(folder):
    pytest.importorskip("h5py")
    shutil.copyfile(ROOT / "tests/data/anndata/small.h5ad", folder / "tiles.h5ad")


def make_trident(folder):
    """Features as TRIDENT leaves them, and a table of slides."""
    h5py = pytest.importorskip("h5py")
    patches = folder / "trident_job/20x_256px_0px_overlap/features_uni_v1"
    patches.mkdir(parents=True)
    lines = ["slide,class,centre"]
    for slide, x in enumerate(np.split(make_numbers(6), SLIDES)):
        with h5py.File(patches / f"s{slide}.h5", "w") as file:
            file["features"] = x
            file["coords"] = np.stack([np.arange(6) * 256, np.zeros(6, int)], axis=1)
        lines.append(f"s{slide},{'ab'[slide % 2]},{'XY'[slide // 2 % 2]}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")


def make_store(folder, n=13):
    """A store with a scanner and a stain beside the centre; 52 patches of each cell."""
    bio, center, slide = make_rows(n)
    columns = {
        "scanner": [f"scanner {s // 4 % 2}" for s in slide],
        "stain": [f"stain {s // 8 % 2}" for s in slide],
    }
    manifest = stores.make_manifest(bio, center, slide, **columns)
    stores.make_store(folder / "embeddings/mine/ours", make_numbers(n), manifest)


def make_results(folder):
    """A store with its results, and a result of a dataset that boards have."""
    make_store(folder)
    result_files.write_result(
        str(folder / "results"), report_records.make_record("mine", "camelyon")
    )
    run = ["evaluate", "--embeddings=embeddings", "--output=results", "--k=5", "--draws=200"]
    succeed(" ".join(["pathorob-jax", *run]), folder, clone_environment(folder))


def make_run(folder):
    """A finished run of one encoder on the smallest tiles."""
    from pathorob_jax.runs import execute, request

    asked = request.make_request(
        output=str(folder / "runs"),
        models=["color_stats"],
        metrics=["robustness_index"],
        k=5,
        synthetic=run_folders.TINY,
    )
    execute.run(asked, None).raise_failure()


class Part(NamedTuple):
    """Commands of a page that run one after the other in one folder, by what marks each."""

    page: str
    commands: tuple[str, ...]
    prepare: Callable = make_nothing
    writes: tuple[str, ...] = ()


PARTS = [
    Part("docs/commands.md", ("=pathorob-jax", "evaluate --help", "--version")),
    Part(
        "docs/commands.md",
        ("completion bash", "completion zsh", "completion fish"),
        make_homes,
        (".bashrc", ".zshrc", ".config/fish/completions/pathorob-jax.fish"),
    ),
    Part(
        "CONTRIBUTING.md",
        ("pathorob_jax.results.json_schema", "pathorob_jax.report.leaderboard.json_schema"),
        make_docs,
        ("docs/results.schema.json", "docs/leaderboard.schema.json"),
    ),
    Part(
        "docs/encoders.md",
        (
            "--from_timm=vit_small_patch16_224",
            "converters.convert --spec=my_encoder.yaml",
            "converters.verify --spec=my_encoder.yaml",
            "experiments.extract --spec=my_encoder.yaml",
        ),
        make_weights,
        ("my_encoder.yaml", "weights", "embeddings"),
    ),
    Part("docs/evaluating.md", ("--source=tiles.h5ad",), make_anndata, ("embeddings/uni_v1/ours",)),
    Part("docs/evaluating.md", ("--source=trident_job",), make_trident, ("embeddings/uni_v1",)),
    Part(
        "docs/evaluating.md",
        ("--center_column=medical_center,scanner,stain",),
        make_store,
        tuple(
            f"results/mine/{name}/robustness_index.json"
            for name in ("ours@medical_center", "ours@scanner", "ours@stain")
        ),
    ),
    Part(
        "docs/exports.md",
        ("--format=anndata", "--format=histoboard", "--layout=pathorob"),
        make_results,
        ("out/mine/ours.h5ad", "board/results.json", "pathorob/features/mine/ours"),
    ),
    Part("docs/launching.md", ("submit --cluster=slurm --plan",)),
    Part(
        "docs/launching.md",
        ("--center_column=medical_center,scanner",),
        make_store,
        ("results/mine/ours@scanner/clustering_score.json",),
    ),
    Part(
        "docs/leaderboard.md",
        ("experiments.leaderboard",),
        make_results,
        ("board/index.html", "board/models/mine.html", "board/leaderboard.json"),
    ),
    Part("docs/run.md", ("=pathorob-jax run --plan", "status --output=runs"), make_run),
]
GATED = "reads a gated encoder from the hub, with a token"
FETCHED = "reads PathoROB's tiles or features, which are fetched"
MAKE = "make installs .venv in a clone first, and runs for minutes"
OWN = "stands for flags or folders of the reader's own"
NOT_RUN = {
    ("docs/commands.md", "pip install pathorob-jax"): "run as the README's",
    ("docs/run.md", "=pathorob-jax run"): "run as the README's",
    ("docs/consequences.md", "--embeddings=embeddings/uni2_h"): FETCHED,
    ("docs/evaluating.md", "--format=pathorob_npz"): FETCHED,
    ("docs/evaluating.md", "--dataset=camelyon --metadata_dir"): FETCHED,
    ("docs/evaluating.md", "--results=results --output=report"): FETCHED,
    ("docs/evaluating.md", "--dataset=camelyon,tcga,tolkach_esca"): FETCHED,
    ("docs/fetching.md", "--data_dir=data --dry_run"): "asks the hub for sizes",
    ("docs/fetching.md", "=pathorob-jax fetch --data_dir=data"): FETCHED,
    ("docs/doctor.md", "--model=uni2_h,virchow2"): GATED,
    ("docs/encoders.md", "converters.convert --model=uni2_h"): GATED,
    ("docs/encoders.md", "converters.verify --model=uni2_h"): GATED,
    ("docs/encoders.md", "experiments.extract --model=uni2_h"): GATED,
    ("docs/encoders.md", "--checkpoint=hf://paige-ai/Virchow2"): GATED,
    ("docs/launching.md", "--model=uni2_h,virchow2 --pooling=cls,mean"): GATED,
    ("docs/run.md", "--dataset=camelyon,tcga,tolkach_esca --output=runs --plan"): GATED,
    (
        "docs/run.md",
        "=pathorob-jax run --model=uni2_h,virchow2 "
        "--dataset=camelyon,tcga,tolkach_esca --output=runs",
    ): GATED,
    ("docs/run.md", "--checkpoint=uni2_h=/models/uni2h.bin"): OWN,
    ("docs/imports.md", "--source=<as the tool left it>"): OWN,
    ("docs/robustification.md", "--embeddings=<folder"): OWN,
    ("docs/launching.md", "pip install"): "asks a package index",
    ("docs/launching.md", "pathorob-jax:cpu ."): "needs Docker",
    ("docs/launching.md", "pathorob-jax:cuda13"): "needs Docker",
    ("docs/launching.md", "docker run"): "needs Docker",
    ("docs/launching.md", "apptainer build"): "needs Apptainer",
    ("docs/launching.md", "deploy/tpu/pod.sh"): "needs a TPU pod",
    ("docs/launching.md", "kubectl apply"): "needs a cluster of Kubernetes",
    ("docs/leaderboard.md", "make leaderboard"): MAKE,
    ("docs/performance.md", "make bench"): MAKE,
    ("docs/performance.md", "make regression"): MAKE,
    ("docs/performance.md", "STAGES=parity"): MAKE,
    ("docs/performance.md", "STAGES=extract_large"): "needs a GPU",
    ("docs/performance.md", "REHEARSE=1"): MAKE,
    ("CONTRIBUTING.md", "make test-fast"): MAKE,
    ("CONTRIBUTING.md", "make lint type"): MAKE,
    ("CONTRIBUTING.md", "make docs"): MAKE,
    ("CONTRIBUTING.md", "=make test"): MAKE,
}


def is_marked(command, mark):
    """Whether a command holds a mark; ``=`` begins the whole of it."""
    return command == mark[1:] if mark.startswith("=") else mark in command


def find(page, command):
    """Parts and reasons that a command of a page has."""
    for part in PARTS:
        if part.page == page:
            yield from (part for mark in part.commands if is_marked(command, mark))
    for (named, mark), why in NOT_RUN.items():
        if named == page and is_marked(command, mark):
            yield why


def guides():
    """Pages whose commands are not run when the site is built, with their commands."""
    for page in test_docs.PAGES:
        if page not in (test_docs.README, *test_docs.EXECUTED) and test_docs.commands(page):
            yield test_docs.name_of(page), test_docs.commands(page)


def test_every_command_of_a_guide_is_run_or_says_why_not():
    wrong = {
        f"{page}: {command}": len(found)
        for page, commands in guides()
        for command in commands
        if len(found := list(find(page, command))) != 1
    }
    assert wrong == {}


def test_no_entry_is_left_of_a_command_that_is_gone():
    commands = dict(guides())
    marks = [(part.page, mark) for part in PARTS for mark in part.commands]
    for page, mark in [*marks, *NOT_RUN]:
        assert any(is_marked(c, mark) for c in commands[page]), (page, mark)


def test_the_readme_has_the_commands_that_are_run():
    assert test_docs.commands(test_docs.README) == README_COMMANDS


def succeed(command, folder, environment):
    """Run a command of a page with bash; what it wrote."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def make_environment(folder, *programs, **more):
    """The environment of a user: nothing of the tests' settings, and a home of its own."""
    hidden = ("PYTHONPATH", "XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    path = os.pathsep.join([*map(str, programs), os.environ.get("PATH", "")])
    return kept | {"HOME": str(folder), "PATH": path, "JAX_PLATFORMS": "cpu", **more}


def clone_environment(folder):
    """With ``python`` and ``pathorob-jax`` of this clone."""
    programs = folder / ".programs"
    if not programs.exists():
        programs.mkdir()
        code = "from pathorob_jax.cli.main import main; main()"
        for name, words in (("python", '"$@"'), ("pathorob-jax", f'-c "{code}" "$@"')):
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}\n')
            (programs / name).chmod(0o755)
    return make_environment(folder, programs, PYTHONPATH=str(ROOT))


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.page}: {part.commands[0]}")
def test_commands_of_guides_run(part, tmp_path):
    part.prepare(tmp_path)
    for command in test_docs.commands(ROOT / part.page):
        if any(is_marked(command, mark) for mark in part.commands):
            succeed(command, tmp_path, clone_environment(tmp_path))
    for name in part.writes:
        assert (tmp_path / name).exists(), name
    if part.page == "CONTRIBUTING.md":
        for name in part.writes:
            assert (tmp_path / name).read_text() == (ROOT / name).read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder of the wheel of this clone, made of a copy of the files that git knows."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a clone")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "clone" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder / "out", folder / "clone"], check=True)
    return folder / "out"


@pytest.fixture
def installed_elsewhere(tmp_path, wheel):
    """A new virtual environment that sees this one's packages, but not pathorob-jax."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    [site] = (tmp_path / "env/lib").glob("python*/site-packages")
    seen = tmp_path / "packages"
    seen.mkdir()
    for folder in map(pathlib.Path, sys.path):
        if folder.name == "site-packages":
            for entry in folder.iterdir():
                is_ours = "pathorob_jax" in entry.name or entry.suffix == ".pth"
                if not is_ours and not (seen / entry.name).exists():
                    (seen / entry.name).symlink_to(entry)
    (site / "packages.pth").write_text(f"{seen}\n")
    (tmp_path / "home").mkdir()
    # Settings of pip, so that its command stays that of the README.
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheel), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return make_environment(tmp_path / "home", tmp_path / "env/bin", **pip)


@pytest.mark.slow
@pytest.mark.campaign
def test_the_readme_runs_line_by_line(tmp_path, installed_elsewhere):
    work = tmp_path / "work"
    work.mkdir()
    install, run = test_docs.commands(test_docs.README)
    said = succeed(install, work, installed_elsewhere)
    assert "Successfully installed pathorob-jax" in said
    where = succeed("command -v pathorob-jax", work, installed_elsewhere)
    assert where.strip() == str(tmp_path / "env/bin/pathorob-jax")
    succeed(run, work, installed_elsewhere)
    text = test_docs.README.read_text()
    [named] = re.findall(r"writes `([^`]+)`", text)
    page = (work / named).read_text("utf-8")
    # The numbers under the picture are those of the run.
    shown = dict(re.findall(r"(nuclear texture|random ViT|colour statistics) (\d\.\d{3})", text))
    names = {"nuclear texture": "nuclear_texture", "random ViT": "vit_random"}
    assert len(shown) == 3
    for words, number in shown.items():
        model = names.get(words, "color_stats")
        path = work / f"runs/results/{model}/synthetic/robustness_index.json"
        value = result_files.read_result(str(path)).robustness_index
        assert f"{value:.3f}" == number, words
        assert number in page
    assert json.loads((work / "runs/report/provenance.json").read_text())
