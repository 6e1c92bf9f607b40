"""Import, evaluation and report connect to nothing: only fetching and conversion may."""

import pathlib
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import scripts

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def steps(tmp_path):
    """The three commands, over small files."""
    rows = [
        f"s{b}{m}{s},{p},class{b},Center {m}"
        for b in range(2)
        for m in range(2)
        for s in range(2)
        for p in range(4)
    ]
    header = "slide_id,patch_id,biological_class,medical_center"
    (tmp_path / "rows.csv").write_text("\n".join([header, *rows]) + "\n")
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return [
        [
            "import_embeddings",
            "--format=npy",
            f"--source={tmp_path}/x.npy",
            f"--manifest={tmp_path}/rows.csv",
            "--model=mine",
            "--dataset=ours",
            f"--output={tmp_path}/embeddings",
        ],
        [
            "evaluate",
            f"--embeddings={tmp_path}/embeddings",
            f"--output={tmp_path}/results",
            "--k=5",
            "--draws=200",
        ],
        ["report", f"--results={tmp_path}/results", f"--output={tmp_path}/report"],
    ]


@pytest.mark.slow
def test_nothing_is_contacted(steps, tmp_path, monkeypatch):
    asked = []

    def refuse(*arguments, **named):
        asked.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    for step in steps:
        done = scripts.call(*step)
        assert done.code == 0, done.text
    assert asked == []
    assert (tmp_path / "report/index.html").exists()


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace")
def test_no_library_connects_either(steps, tmp_path):
    """Of all threads and children, seen by the kernel."""
    log = tmp_path / "log"
    trace = ["strace", "-f", "-e", "trace=connect,sendto", "-o", str(log)]
    if subprocess.run([*trace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace may not trace here")
    for name, *flags in steps:
        command = [*trace, sys.executable, "-m", f"experiments.{name}", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert not re.findall(r".*AF_INET.*", log.read_text()), name
