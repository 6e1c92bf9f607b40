"""The commit is recorded where this is run from a clone, and its lack costs nothing."""

import subprocess

import jax
import pytest

from pathorob_jax.core import provenance


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder of which this package is a part."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "core" / "module.py"))
    return tmp_path


def versions():
    return provenance.software_versions.__wrapped__()


def test_an_installed_package_asks_no_git(clone, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("git was asked"))
    found = versions()
    assert "git" not in found
    assert found["jax"] == jax.__version__


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10)])
def test_without_an_answer_of_git_there_is_no_commit(clone, monkeypatch, error):
    def said(*_, **__):
        return subprocess.CompletedProcess([], 0, stdout="0123456789ab-dirty\n")

    def fail(*_, **__):
        raise error

    (clone / ".git").mkdir()
    monkeypatch.setattr(subprocess, "run", said)
    assert versions()["git"] == "0123456789ab-dirty"
    monkeypatch.setattr(subprocess, "run", fail)
    assert "git" not in versions()
