"""The documents keep their word: commands are run or exist, links lead somewhere, pages run."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import scripts

import pathorob_jax as pr
from experiments import choices
from pathorob_jax.cli import completion, names

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "_ext"))

import run_blocks  # noqa: E402

README = ROOT / "README.md"
EXECUTED = [DOCS / "start.md", *sorted((DOCS / "tutorials").glob("*.md"))]
EXECUTED.remove(DOCS / "tutorials" / "index.md")
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *(p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts),
]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.S | re.M)
COMMAND = re.compile(r"(?:^|&& |; do |srun )(?:\S+/)?(?:pathorob-jax|python -m (\w+\.\w+)) ?(.*)")
FLAG = re.compile(r"(?<=\s)--(\w+)")
# Programs of their own, which are no commands: their flags are read elsewhere.
OTHER_PROGRAMS = ("experiments.benchmarks", "pathorob_jax.results", "pathorob_jax.report")


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """Text of the fenced blocks of a page in these languages."""
    return [text for language, text in FENCE.findall(path.read_text()) if language in languages]


def commands(path):
    return [c for text in blocks(path, "console") for c in run_blocks.commands(text)]


def exists(test):
    """Whether ``<file>::<function>`` names a test."""
    file, _, function = test.partition("::")
    path = ROOT / file
    return path.is_file() and re.search(rf"^def {function}\(", path.read_text(), re.M) is not None


def test_every_command_of_the_readme_is_run_by_a_test():
    found = commands(README)
    assert len(found) == 2
    for command in found:
        assert exists(run_blocks.HELD_BY[command]), command


def test_what_holds_a_command_is_a_test():
    assert all(exists(test) for test in run_blocks.HELD_BY.values())
    assert not exists("tests/test_docs.py::test_that_nobody_wrote")


@pytest.mark.parametrize("page", EXECUTED, ids=name_of)
def test_tutorials_are_run_when_the_site_is_built(page):
    text = page.read_text()
    assert text.startswith("---\nexecuted: true\n")
    assert blocks(page, "python", "console")
    # A block in another language is shown and not run: it names no command that could be.
    assert not [c for c in blocks(page, "", "text", "shell") if "pathorob-jax" in c]
    assert not [c for c in blocks(page, "bash") if not c.startswith("#!/bin/bash\n#SBATCH")]


@pytest.fixture(scope="module")
def known_flags():
    """Names of the flags of each command."""
    own = {c: scripts.load(s.removeprefix("experiments."))[1] for c, s in names.SCRIPTS.items()}
    return {command: {"help", "verbosity", *found} for command, found in own.items()}


def unknown(text, known):
    """What a block names that is no command or flag."""
    script_names = {script: command for command, script in names.SCRIPTS.items()}
    for line in text.replace("\\\n", " ").splitlines():
        found = COMMAND.search(line.removeprefix("$ ").partition("  #")[0])
        if found is None or (found[1] or "").startswith(OTHER_PROGRAMS):
            continue
        first, _, rest = found[2].partition(" ")
        command = script_names.get(found[1]) if found[1] else first
        if not found[1] and command in ("", *completion.OTHERS) or command.startswith("#"):
            continue
        if command not in known:
            yield found[0]
            continue
        for flag in FLAG.findall(" " + (found[2] if found[1] else rest)):
            if flag not in known[command] and flag.removeprefix("no") not in known[command]:
                yield f"{command} --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_flags_exist(page, known_flags):
    texts = blocks(page, "console", "bash", "")
    assert [wrong for text in texts for wrong in unknown(text, known_flags)] == []


def test_a_flag_that_does_not_exist_is_found(known_flags):
    text = (
        "$ pathorob-jax evaluate --embeddings=e \\\n    --metric=apd  # --fine\n$ pathorob-jax go\n"
    )
    assert list(unknown(text, known_flags)) == ["evaluate --metric", "pathorob-jax go"]
    text = "$ python -m experiments.evaluate --nomaps --outputs=o\n"
    assert list(unknown(text, known_flags)) == ["evaluate --outputs"]


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            continue
        assert (page.parent / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (page.parent / path).read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) < 150
    assert len(re.findall(r"!\[", text)) == 1


def test_the_reference_is_whole():
    text = (DOCS / "reference/python.md").read_text()
    documented = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.M)
    assert sorted(documented) == sorted(set(pr.__all__) - {"__version__"})
    text = (DOCS / "reference/flags.md").read_text()
    assert re.findall(r"^```\{flags\} (\w+)$", text, re.M) == list(names.SCRIPTS)


def test_every_metric_has_a_page_that_says_all():
    listed = (DOCS / "numbers/index.md").read_text()
    for metric in choices.METRICS:
        assert f"[`{metric}`]({metric}.md)" in listed
        text = (DOCS / "numbers" / f"{metric}.md").read_text()
        for part in (f"{{picture}} {metric}\n", "{formula}", "## Source", "mislead"):
            assert part in text, (metric, part)


def test_flags_say_what_holds_without_them():
    by_name = {
        name: completion.describe(flag) for name, flag in scripts.load("evaluate")[1].items()
    }
    assert by_name["embeddings"].is_required
    assert not by_name["k"].is_required
    assert by_name["k"].default == "default"
    assert by_name["draws"].default == "2000"
    assert by_name["report"].default == ""


def run_page(*page):
    ran = subprocess.run(
        [sys.executable, str(DOCS / "_ext" / "run_blocks.py")],
        input=json.dumps(page),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ran.stdout)


@pytest.mark.slow
def test_blocks_run_in_order_and_the_first_that_fails_is_the_last():
    done = run_page(
        ["python", "import os\nos.write(1, b'aside')\nx = 6 * 7\nopen('a', 'w').write('b')"],
        ["console", "$ cat a  # not c\nshown\n$ pathorob-jax --version"],
        ["python", "print(x)\n1 / 0"],
        ["python", "print('never')"],
    )
    assert [block["text"].split() for block in done] == [
        [],
        ["bpathorob-jax", pr.__version__],
        ["42"],
    ]
    assert [bool(block["error"]) for block in done] == [False, False, True]
    assert "ZeroDivisionError" in done[-1]["error"]
    [failed] = run_page(["console", "$ pathorob-jax evaluate --embedding=x"])
    assert "exit code 2" in failed["error"]
    assert "embedding" in failed["error"]


@pytest.mark.slow
def test_a_figure_that_is_left_open_is_shown():
    [block] = run_page(["python", "import matplotlib.pyplot as plt\nplt.plot([1, 2])"])
    [svg] = block["figures"]
    assert "<svg" in svg


@pytest.mark.campaign
@pytest.mark.slow
def test_a_block_that_fails_ends_the_build(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    conf = f"import sys; sys.path.append({str(DOCS / '_ext')!r})\n"
    (tmp_path / "conf.py").write_text(conf + "extensions = ['myst_parser', 'executed']\n")
    head = "---\nexecuted: true\n{}---\n\n# Page\n\n```python\n{}\n```\n"
    pages = {
        "right": (head.format("", "print(6 * 7)"), 0, "42"),
        "wrong": (head.format("", "1 / 0"), 1, "ZeroDivisionError"),
        "absent": (
            head.format("needs: [no_such_module]\n", "1 / 0"),
            0,
            "no_such_module is absent",
        ),
    }
    for name, (text, code, words) in pages.items():
        (tmp_path / "index.md").write_text(text)
        command = [sys.executable, "-m", "sphinx", "-WqE", str(tmp_path), str(tmp_path / name)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == code, built.stderr
        page = (tmp_path / name / "index.html").read_text() if code == 0 else built.stderr
        assert words in page
