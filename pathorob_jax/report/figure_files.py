"""Figures as bytes: PNG for slides and papers, SVG to embed in an HTML page.

The functions turn a matplotlib Figure into bytes or markup that are identical in every run. Only
``drawing_style`` changes the global state of matplotlib, under a lock. Text of an SVG stays text,
which the browser sets in fonts of its own: a name in a script that Matplotlib's font lacks is drawn
there only.
"""

import contextlib
import functools
import io
import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

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
    # Names of users are no formulas.
    "text.parse_math": False,
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


def to_file(figure: Figure) -> tuple[str, bytes]:
    """The suffix and the bytes of a figure's file: PNG, or SVG if a PNG would lack characters."""
    texts = {text.get_text() for text in figure.findobj(Text)}
    if all(_is_drawable(character) for character in set("".join(texts))):
        return ".png", to_png(figure)
    return ".svg", _to_svg(figure).replace("'DejaVu Sans'", "sans-serif").encode()


def _is_drawable(character: str) -> bool:
    """Whether Matplotlib draws a character as it should be.

    It writes from left to right, one character beside the other, in one font.
    """
    joins = unicodedata.category(character).startswith("M")
    if joins or unicodedata.bidirectional(character) in ("R", "AL"):
        return False
    return character.isspace() or all(
        font_manager.get_font(path).get_char_index(ord(character)) for path in _font_paths()
    )


@functools.cache
def _font_paths() -> tuple[str, ...]:
    """Files of the font in both of its weights; both come with Matplotlib."""
    family = _STYLE["font.family"]
    fonts = [
        font_manager.FontProperties(family=family, weight=weight) for weight in ("normal", "bold")
    ]
    return tuple(font_manager.findfont(font, fallback_to_default=False) for font in fonts)


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
    root = ElementTree.fromstring(_to_svg(figure))
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


def _to_svg(figure: Figure) -> str:
    stream = io.StringIO()
    with warnings.catch_warnings():
        # Matplotlib measures text that the browser will set in another font.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support", UserWarning)
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


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
