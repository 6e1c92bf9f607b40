"""The bar of a terminal."""

import io
import sys

from pathorob_jax.core import progress
from pathorob_jax.core.progress import Progress


class Terminal(io.StringIO):
    """Takes what a terminal would show."""

    def isatty(self):
        return True


def terminal(monkeypatch):
    """Let standard error be a terminal; what it shows. In a fixture, pytest would take it back."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_bar_counts_what_was_done_before_now_and_by_others(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.labelled("2 of 3"), Progress("embed", total=10, unit="tile", done=2) as bar:
        assert "2 of 3: embed:  20%" in screen.getvalue()
        bar.update(3)
        bar.others_did(9)
        assert "9/10" in screen.getvalue()
        bar.update(1)
    last = screen.getvalue().split("\r")[-1]
    assert "100%" in last
    assert "10/10" in last


def test_there_is_no_bar_where_all_is_quiet(monkeypatch):
    screen = terminal(monkeypatch)
    with progress.quiet(), Progress("embed", total=10, unit="tile") as bar:
        bar.update(10)
    assert screen.getvalue() == ""
