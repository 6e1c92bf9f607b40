"""Ctrl-C while a script is still being imported."""

import os
import signal
import sys

import pytest

from pathorob_jax.cli import interruption


@pytest.fixture
def handled():
    """The handler of Ctrl-C is put back."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_it_leaves_with_one_line(handled, monkeypatch, capsys):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    interruption.watch()
    with pytest.raises(SystemExit) as left:
        signal.raise_signal(signal.SIGINT)
    assert left.value.code == 1
    assert capsys.readouterr().err == "interrupted before the work began\n"


@pytest.mark.parametrize(("argv", "watches"), [(["-m"], True), (["pytest"], False)])
def test_it_is_watched_only_where_a_script_is_being_imported(handled, monkeypatch, argv, watches):
    monkeypatch.setattr(sys, "argv", argv)
    interruption.watch_script()
    assert (signal.getsignal(signal.SIGINT) is not handled) == watches
