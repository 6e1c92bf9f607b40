"""``{formula}`` and ``{picture}``: drawings inside the page, which need no script and no network.

``{formula}`` sets TeX by Matplotlib. ``{picture} <name>`` draws ``pictures.<name>``; its content is
the text alternative. Lines and text take the colour of the page.
"""

import html
import io
import re
import zlib

import matplotlib as mpl
import matplotlib.figure
import pictures
from docutils import nodes
from docutils.parsers.rst import Directive

INK = "#123456"  # becomes the colour of the text


def setup(app):
    """Register both directives."""
    app.add_directive("formula", Formula)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True}


def inline_svg(text, label, kind="drawing"):
    """A drawing as a node; on other pages than HTML, its label."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.S)
    body = body.replace(INK, "currentColor")
    shown = html.escape(" ".join(label.split()), quote=True)
    body = body.replace("<svg ", f'<svg role="img" aria-label="{shown}" ', 1)
    return nodes.raw("", f'<div class="{kind}">{body}</div>', format="html")


def save(figure, name):
    """The SVG of a figure; ``name`` keeps its ids apart from those of other drawings."""
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(
            out, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    # Glyphs are shared by name, and would be those of the first drawing on the page.
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", out.getvalue())


class Formula(Directive):
    """TeX that Matplotlib's mathtext knows, one formula a line."""

    has_content = True

    def run(self):
        """The formulas as one drawing."""
        lines = [line.replace(r"\frac", r"\dfrac") for line in self.content if line.strip()]
        figure = mpl.figure.Figure(figsize=(0.1, 0.1))
        with mpl.rc_context({"mathtext.fontset": "stix"}):
            for i, line in enumerate(lines):
                figure.text(0, -7.0 * i, f"${line}$", fontsize=15, color=INK, va="top")
            name = f"f{zlib.crc32(repr(lines).encode())}"
            return [inline_svg(save(figure, name), "; ".join(lines), kind="formula")]


class Picture(Directive):
    """A drawing of ``pictures``."""

    required_arguments = 1
    has_content = True

    def run(self):
        """The drawing with its text alternative, which is also its caption."""
        name = self.arguments[0]
        about = " ".join(self.content)
        with mpl.rc_context(pictures.STYLE):
            drawn = inline_svg(save(getattr(pictures, name)(), name), about)
        return [drawn, nodes.paragraph("", about, classes=["caption"])]
