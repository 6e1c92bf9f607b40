"""Run the code blocks of one page, in a process of their own and an empty folder.

Standard input: JSON list of ``[language, text]``. Standard output: JSON list with what each block
wrote (``text``), the figures that it left open (``figures``, SVG) and how it failed (``error``).
Blocks of Python share their names, as in a notebook. Of a console block the lines that begin with
``$`` are run by bash, in which ``pathorob-jax`` is that of this checkout.
"""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Commands that are not run here, and the tests that run them.
HELD_BY = dict.fromkeys(
    ("pip install pathorob-jax", "pathorob-jax run"),
    "tests/test_console_blocks.py::test_the_readme_runs_line_by_line",
)
TIMEOUT_S = 300


def commands(text: str) -> list[str]:
    """The commands of a console block, without the comments behind them."""
    joined = text.replace("\\\n", "")
    lines = (line[2:] for line in joined.splitlines() if line.startswith("$ "))
    return [" ".join(line.partition("  #")[0].split()) for line in lines]


def run_page(blocks: list[tuple[str, str]]) -> list[dict]:
    """Run blocks in order; the first that fails is the last."""
    done: list[dict] = []
    names: dict = {"__name__": "__main__"}
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder, "bin", "pathorob-jax")
        program.parent.mkdir()
        code = "from pathorob_jax.cli.main import main; main()"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
        program.chmod(0o755)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ |= {
            "PATH": os.pathsep.join([str(program.parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": path,
            "MPLBACKEND": "svg",
        }
        work = pathlib.Path(folder, "work")
        work.mkdir()
        os.chdir(work)
        try:
            for language, text in blocks:
                run = _run_console if language == "console" else _run_python
                done.append(run(text, names))
                if done[-1]["error"]:
                    break
        finally:
            os.chdir(home)
    return done


def _run_console(text: str, _: dict) -> dict:
    shown = []
    for command in commands(text):
        if command in HELD_BY:
            continue
        ran = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
        shown.append(ran.stdout.replace(f"{os.getcwd()}/", ""))
        if ran.returncode:
            error = f"exit code {ran.returncode} of: {command}\n{ran.stdout}"
            return {"text": "", "figures": [], "error": error}
    return {"text": "".join(shown), "figures": [], "error": ""}


def _run_python(text: str, names: dict) -> dict:
    written = io.StringIO()
    try:
        with contextlib.redirect_stdout(written):
            exec(compile(text, "<tutorial>", "exec"), names)
    except Exception:  # noqa: BLE001 - whatever it was, the page shows it and the build fails
        return {"text": written.getvalue(), "figures": [], "error": traceback.format_exc()}
    return {"text": written.getvalue(), "figures": _take_figures(), "error": ""}


def _take_figures() -> list[str]:
    if "matplotlib.pyplot" not in sys.modules:
        return []
    pyplot = sys.modules["matplotlib.pyplot"]
    taken = []
    for number in pyplot.get_fignums():
        svg = io.StringIO()
        pyplot.figure(number).savefig(svg, format="svg", bbox_inches="tight", transparent=True)
        taken.append(svg.getvalue())
    pyplot.close("all")
    return taken


if __name__ == "__main__":
    page = json.load(sys.stdin)
    # What libraries write to standard output themselves must not mix with the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(run_page(page), file)
