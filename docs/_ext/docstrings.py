"""Docstrings as autodoc takes them: plain text, in which only ``double backticks`` mean anything.

Formulas hold ``|x|``, ``*`` and ``os_``, which reStructuredText takes for markup.
"""

import re

MARKUP = re.compile(r"``.*?``|[|*]|(?<=\w)_(?!\w)")


def setup(app):
    """Register the escapes, before napoleon reads the docstring."""
    app.connect("autodoc-process-docstring", escape, priority=0)
    return {"parallel_read_safe": True}


def escape(app, what, name, found, options, lines):
    """Escape markup in place, outside of literals and examples."""
    lines[:] = [
        line
        if line.lstrip().startswith((">>>", "..."))
        else MARKUP.sub(lambda m: m[0] if m[0].startswith("``") else "\\" + m[0], line)
        for line in lines
    ]
