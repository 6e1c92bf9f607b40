"""Figures as bytes: PNG for slides and papers, SVG to embed in an HTML page.

The functions turn a matplotlib Figure into bytes or markup that are identical in every run. Only
``drawing_style`` changes the global state of matplotlib, under a lock.
"""

import contextlib
import io
import re
import threading
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

_LOCK = threading.RLock()
_STYLE: Any = {  # type checkers accept only a closed set of literal keys
    "axes.edgecolor": "#8A8F98",
    "axes.labelcolor": "#30363D",
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.0,
    "axes.unicode_minus": False,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "legend.frameon": False,
    "savefig.dpi": 150.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "pathorob_jax",
    "text.color": "#1F2328",
    "text.usetex": False,
    "xtick.color": "#57606A",
    "xtick.labelsize": 7.5,
    "ytick.color": "#57606A",
    "ytick.labelsize": 7.5,
}
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r";?\s*font-family: 'DejaVu Sans'")


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """Apply the settings for building and saving figures; one thread at a time."""
    with _LOCK, matplotlib.rc_context(_STYLE):
        yield


def to_png(figure: Figure) -> bytes:
    """The figure as PNG without metadata."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def to_inline_svg(figure: Figure, *, label: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page.

    Namespaces, metadata, unused ids, and styles that would leak into the page are removed.
    Coordinates are rounded to a hundredth of a point, and text uses the font of the page.

    Args:
        figure: figure to draw.
        label: text for screen readers.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    used = set()
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            if name.startswith("{"):
                element.set(name.rpartition("}")[2], element.attrib.pop(name))
        used.update(re.findall(r"#([\w-]+)", " ".join(element.attrib.values())))
    for parent in root.iter():
        for child in [c for c in parent if c.tag in ("metadata", "style")]:
            parent.remove(child)
        _slim(parent, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _slim(element: ElementTree.Element, used: set[str]) -> None:
    """Remove from one element what a browser does not need."""
    if element.attrib.get("id") not in used:
        element.attrib.pop("id", None)
    for name in ("d", "x", "y", "transform"):
        if name in element.attrib:
            short = _NUMBER.sub(lambda m: f"{float(m[0]):.2f}", element.attrib[name])
            element.set(name, short.replace("\n", ""))
    if element.tag in ("text", "tspan") and "style" in element.attrib:
        style = _FONT.sub("", element.attrib["style"])
        element.set("style", style.replace("'DejaVu Sans'", "sans-serif"))
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.tail = None
