"""Values of the leaderboard in words."""

from typing import Any

from pathorob_jax.core.cost import describe_duration
from pathorob_jax.report.leaderboard.entries import MEAN, Number
from pathorob_jax.report.sentences import name_dataset
from pathorob_jax.report.table_cells import UNDEFINED, format_number, format_percent

EXPOSED = {
    "tcga": ("trained on TCGA", "not on TCGA"),
    "benchmark": ("trained on the benchmark’s slides", "not on the benchmark’s slides"),
    "selected": ("checkpoint chosen by PathoROB", "checkpoint not chosen by PathoROB"),
}


def show_value(number: Number, value: float | None) -> str:
    """A number as text; a dash where it is undefined."""
    if value is None:
        return UNDEFINED
    return format_percent(value) if number.percent else format_number(value)


def place_name(dataset: str) -> str:
    """A dataset or a mean over datasets, in words."""
    name, _, confounder = dataset.partition("@")
    if name == MEAN:
        return f"mean over datasets by {confounder}" if confounder else "mean over datasets"
    return name_dataset(dataset)


def join(texts: list[str], *, empty: str = UNDEFINED) -> str:
    """Texts in one line."""
    return "; ".join(texts) or empty


def show_exposure(exposure: dict[str, bool | None]) -> str:
    """What a model saw of the benchmark, in words."""
    words = [EXPOSED[name][0 if flag else 1] for name, flag in exposure.items() if flag is not None]
    return "; ".join(words) or "not known"


def show_seconds(seconds: float | None, *, is_whole: bool = True) -> str:
    """A time in words; ``is_whole``: nothing of the work was there already."""
    if seconds is None:
        return "not recorded"
    return ("" if is_whole else "at least ") + describe_duration(seconds)


def show_count(n: int | None) -> str:
    """A large number in words."""
    if n is None:
        return UNDEFINED
    if n >= 10**9:
        return f"{n / 1e9:.2f} billion"
    return f"{n / 1e6:.1f} million" if n >= 10**6 else f"{n:,}"


def show_fact(value: Any) -> str:
    """A fact as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def where(dataset: str) -> str:
    """Like ``place_name``, to end a sentence with."""
    name = place_name(dataset)
    return name if dataset.partition("@")[0] == MEAN else f"on {name}"
