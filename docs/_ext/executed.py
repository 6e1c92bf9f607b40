"""Pages whose code runs when the site is built, with what it wrote below each block.

A page with ``executed: true`` in its front matter is run from top to bottom: blocks of ``python``
and of ``console``. ``needs: [torch]`` names modules without which the page is shown without being
run, with a note that says so. A block that fails is a warning, and warnings end the build.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

from docutils import nodes
from drawn import inline_svg
from sphinx.util import logging

LANGUAGES = ("python", "console")
MAX_LINES = 20
# Programs of small arrays: compiling costs more than running them.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
logger = logging.getLogger(__name__)


def setup(app):
    """Register the execution; ``-D execute=0`` leaves it out, to look at pages quickly."""
    app.add_config_value("execute", True, "env", [bool])
    app.connect("doctree-read", run)
    return {"parallel_read_safe": True}


def run(app, doctree):
    """Run the blocks of a page that asks for it, and put their output below them."""
    name = app.env.docname
    facts = app.env.metadata.get(name, {})
    if not app.config.execute or str(facts.get("executed", "")).lower() != "true":
        return
    blocks = [b for b in doctree.findall(nodes.literal_block) if b.get("language") in LANGUAGES]
    absent = [n for n in _names(facts.get("needs", "")) if importlib.util.find_spec(n) is None]
    if absent:
        text = f"This page was not run when the site was built: {', '.join(absent)} is absent."
        doctree.next_node(nodes.title).parent.insert(1, nodes.note("", nodes.paragraph("", text)))
        logger.info("%s: not run, %s is absent", name, ", ".join(absent))
        return
    asked = json.dumps([[b["language"], b.astext()] for b in blocks])
    done = subprocess.run(
        [sys.executable, str(pathlib.Path(__file__).with_name("run_blocks.py"))],
        input=asked,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT | {"JAX_COMPILATION_CACHE_DIR": f"{app.doctreedir}/xla"},
    )
    if done.returncode:
        logger.warning("%s: its code was not run:\n%s", name, done.stderr, location=name)
        return
    for block, result in zip(blocks, json.loads(done.stdout), strict=False):
        if result["error"]:
            logger.warning("%s: a block failed:\n%s", name, result["error"], location=block)
        _show(block, result)


def _names(text):
    """A list of the front matter, which MyST hands on as JSON."""
    return json.loads(text) if text else []


def _show(block, result):
    shown = []
    if result["text"].strip():
        output = nodes.literal_block("", shorten(result["text"]), classes=["cell-output"])
        output["language"] = "none"
        shown.append(output)
    shown += [inline_svg(svg, "Figure drawn by the block above") for svg in result["figures"]]
    place = block.parent.index(block) + 1
    block.parent[place:place] = shown


def shorten(text):
    """The text without trailing blanks; of many lines the first and the last."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    if len(lines) > MAX_LINES:
        half = MAX_LINES // 2
        lines = [*lines[:half], "...", *lines[-half:]]
    return "\n".join(lines)
