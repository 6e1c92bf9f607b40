"""The wheel and the source archive, each installed alone, on every Python that is here.

Needs a package index. Every case makes an environment of more than a gigabyte and removes it.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pathorob_jax.cli import names
from pathorob_jax.version import __version__

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
pytestmark = [pytest.mark.slow, pytest.mark.campaign]


def find_python(version):
    """An interpreter of a version: this one, on the path, or of pyenv."""
    if sys.version_info[:2] == tuple(map(int, version.split("."))):
        return sys.executable
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"), "versions")
    here = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for path in filter(None, here):
        if run(path, "-c", "import venv").returncode == 0:
            return str(path)
    pytest.skip(f"Python {version} is not on this machine")


def run(*command, cwd=None):
    """A command without this clone's folders on its path."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "XLA_FLAGS", "PYTHONDONTWRITEBYTECODE")
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key not in hidden},
    )


def succeed(*command, cwd=None):
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Both archives, made of the files that git knows; the wheel from the source archive."""
    folder = tmp_path_factory.mktemp("archives")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a clone")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "clone" / name)
    succeed(sys.executable, "-m", "venv", folder / "builder")
    succeed(folder / "builder/bin/pip", "install", "--quiet", "build")
    out = folder / "out"
    succeed(folder / "builder/bin/python", "-m", "build", folder / "clone", "--outdir", out)
    shutil.rmtree(folder / "builder")
    [wheel], [source] = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "source": source}


@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("kind", ["wheel", "source"])
def test_installed_alone(archives, kind, version, tmp_path):
    python = find_python(version)
    environment = tmp_path / "environment"
    succeed(python, "-m", "venv", environment)
    try:
        succeed(environment / "bin/pip", "install", "--quiet", f"{archives[kind]}[hdf5]")
        use(environment / "bin/pathorob-jax", tmp_path)
    finally:
        shutil.rmtree(environment)


def use(program, folder):
    """Help of every command, and the whole way on the smallest tiles."""
    assert succeed(program, "--version", cwd=folder).stdout.strip().endswith(__version__)
    assert "evaluate" in succeed(program, cwd=folder).stdout
    for command in names.SCRIPTS:
        assert "--help" in succeed(program, command, "--help", cwd=folder).stdout
    assert "--metadata_dir=" in succeed(program, "completion", "bash", cwd=folder).stdout
    assert "uni2_h" in succeed(program, "convert", "--list", cwd=folder).stdout
    succeed(
        *(program, "synthesize", "--output=tiles", "--slides=2", "--tiles=4", "--tile_px=64"),
        cwd=folder,
    )
    succeed(
        *(program, "extract", "--model=color_stats", "--tileset=tiles", "--dataset=made"),
        "--output=embeddings",
        cwd=folder,
    )
    succeed(
        *(program, "evaluate", "--embeddings=embeddings", "--output=results", "--k=5"),
        cwd=folder,
    )
    succeed(program, "report", "--results=results", "--output=report", cwd=folder)
    assert "color_stats" in (folder / "report/index.html").read_text()
    report_trident(program, folder)
    assert not (folder / "pathorob_jax").exists()


def report_trident(program, folder):
    """Embeddings as TRIDENT leaves them and a table of slides become a report by two commands."""
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    patches = folder / "job/20x_256px_0px_overlap/features_uni_v1"
    patches.mkdir(parents=True)
    lines = ["slide,class,centre"]
    for slide in range(16):
        with h5py.File(patches / f"s{slide}.h5", "w") as file:
            file["features"] = rng.normal(size=(6, 8)).astype(np.float32)
            file["coords"] = np.stack([np.arange(6) * 256, np.zeros(6, int)], axis=1)
        lines.append(f"s{slide},{'ab'[slide % 2]},{'XY'[slide // 8]}")
    (folder / "slides.csv").write_text("\n".join(lines) + "\n")
    succeed(
        *(program, "import", "--source=job", "--manifest=slides.csv", "--slide_column=slide"),
        *("--label_column=class", "--center_column=centre", "--model=uni_v1", "--dataset=ours"),
        "--output=imported",
        cwd=folder,
    )
    succeed(
        *(program, "evaluate", "--embeddings=imported", "--output=ours", "--k=5"),
        "--report=our_report",
        cwd=folder,
    )
    assert "uni_v1" in (folder / "our_report/index.html").read_text()
