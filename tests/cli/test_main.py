"""``pathorob-jax``: the same scripts, and completion in the shells themselves."""

import configparser
import contextlib
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys

import pytest

from pathorob_jax.cli import completion, main, names
from pathorob_jax.version import __version__

ROOT = pathlib.Path(__file__).resolve().parents[2]
CODE = "from pathorob_jax.cli import main; main.main()"


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_both_ways_take_the_same_flags():
    command = [sys.executable, "-m", "experiments.evaluate", "--help"]
    script = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert script.returncode == 0
    assert run("evaluate", "--help").stdout == script.stdout


def test_every_script_is_a_command():
    found = {
        f"{path.parent.name}.{path.stem}"
        for folder in ("experiments", "converters")
        for path in (ROOT / folder).glob("*.py")
        if "start.run_main(" in path.read_text()
    }
    assert found == set(names.SCRIPTS.values())


def test_scripts_import_each_other_in_a_way_that_an_installed_package_has_too():
    for folder in ("experiments", "converters"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text()
            assert not re.search(r"^\s*(from|import) (experiments|converters)\b", text, re.M), path


def test_every_package_is_installed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = config["options"]["packages"].split()
    folders = [path.parent for path in (ROOT / "pathorob_jax").rglob("__init__.py")]
    found = {".".join(path.relative_to(ROOT).parts) for path in folders}
    assert set(listed) == found | {"pathorob_jax.converters", "pathorob_jax.experiments"}
    data = config["options.package_data"]
    for path in (ROOT / "pathorob_jax").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            package = max(
                (p for p in found if ".".join(path.relative_to(ROOT).parts).startswith(p + ".")),
                key=len,
            )
            inside = path.relative_to(ROOT / package.replace(".", "/"))
            patterns = [
                f"{owner.removeprefix(package).lstrip('.')}{pattern}"
                for owner, patterns in data.items()
                if owner == package
                for pattern in patterns.replace(",", " ").split()
            ]
            assert any(inside.match(pattern) for pattern in patterns), path


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["pathorob-jax", *arguments])
    monkeypatch.setattr(names, "_called", [])
    monkeypatch.setattr(main.interruption, "watch", lambda: None)
    code = 0
    try:
        main.main()
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_alone_it_lists_the_commands(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys)
    assert code == 0
    for command, script in names.SCRIPTS.items():
        path = ROOT / f"{script.replace('.', '/')}.py"
        first = path.read_text().partition("\n")[0].strip('"')
        assert re.search(rf"^  {command} +{re.escape(first)}$", out, re.M)
    assert call(monkeypatch, capsys, "--help")[1] == out
    assert call(monkeypatch, capsys, "--version")[1] == f"pathorob-jax {__version__}\n"


def test_what_is_no_command_is_refused(monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "evalute")
    assert (code, out) == (2, "")
    assert err.startswith("error: command: unknown name 'evalute'. Did you mean 'evaluate'?")
    code, _, err = call(monkeypatch, capsys, "completion", "tcsh")
    assert code == 2
    assert "completion: expected one of bash, zsh, fish, found tcsh." in err


def test_messages_name_commands_as_they_were_called(monkeypatch):
    text = "run python -m experiments.import_embeddings or converters.convert; experiments.other"
    monkeypatch.setattr(names, "_called", [])
    assert names.as_called(text) == text
    assert names.command_of("/x/experiments/report.py") == "python -m experiments.report"
    names.call_by_command()
    assert names.as_called(text) == (
        "run pathorob-jax import or pathorob-jax convert; experiments.other"
    )
    assert names.command_of("/x/converters/convert.py") == "pathorob-jax convert"


def test_the_scripts_of_a_clone_can_be_imported(monkeypatch):
    clone = str(pathlib.Path(names.__file__).resolve().parents[2])
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != clone])
    assert names.find_module("extract") == "experiments.extract"
    assert names.find_module("verify", "engine") == "converters.engine"
    assert sys.path.count(clone) == 1
    assert names.summary("extract") == ""


FLAGS = {
    "extract": [
        completion.Flag("help", True, (), "Show the flags."),
        completion.Flag("on_bad_image", False, ("error", "skip"), "What to do: [stop] or 'skip'."),
        completion.Flag("overwrite", True, (), "Replace."),
        completion.Flag("output", False, (), "Folder."),
        completion.Flag("outline", False, (), "None."),
    ],
    "report": [completion.Flag("results", False, (), "Root.")],
}


def complete(text, line, folder):
    """What bash offers at the end of a line."""
    code = f"""{text}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE)
case $COMP_LINE in *' ') COMP_WORDS+=("");; esac
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
_pathorob_jax; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=True, cwd=folder
    )
    assert not done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(tmp_path, monkeypatch):
    (tmp_path / "tiles").mkdir()
    text = completion._bash(FLAGS)
    assert complete(text, "pathorob-jax ex", tmp_path) == ["extract"]
    assert set(complete(text, "pathorob-jax ", tmp_path)) == {*FLAGS, *completion.OTHERS}
    assert complete(text, "pathorob-jax extract --ou", tmp_path) == ["--output=", "--outline="]
    assert complete(text, "pathorob-jax extract --n", tmp_path) == ["--nooverwrite"]
    assert complete(text, "pathorob-jax extract --on_bad_image=", tmp_path) == ["error", "skip"]
    assert complete(text, "pathorob-jax extract --output=ti", tmp_path) == ["tiles"]
    assert complete(text, "pathorob-jax report --", tmp_path) == ["--results="]
    assert complete(text, "pathorob-jax completion f", tmp_path) == ["fish"]


@pytest.mark.slow
def test_completion_knows_the_flags_of_all_scripts(tmp_path):
    done = run("completion", "bash")
    assert done.returncode == 0, done.stderr
    assert complete(done.stdout, "pathorob-jax extract --on_bad_image=s", tmp_path) == ["skip"]
    assert "--metadata_dir=" in complete(done.stdout, "pathorob-jax evaluate --", tmp_path)
    assert complete(done.stdout, "pathorob-jax fetch --data", tmp_path) == [
        "--data_dir=",
        "--datasets=",
    ]
    assert "pdb" not in done.stdout  # a flag of absl


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell):
    text = completion.SHELLS[shell](FLAGS)
    assert "on_bad_image" in text
    assert text.count("error skip") == 1


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_completes(tmp_path):
    (tmp_path / "script").write_text(completion.SHELLS["fish"](FLAGS))
    (tmp_path / "tiles").mkdir()

    def offered(line):
        done = subprocess.run(
            ["fish", "--no-config", "-c", f"source script; complete -C '{line}'"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "dumb"},
        )
        assert not done.stderr
        return [answer.partition("\t")[0] for answer in done.stdout.splitlines()]

    assert offered("pathorob-jax ex") == ["extract"]
    assert set(offered("pathorob-jax ")) == {*FLAGS, *completion.OTHERS}
    assert set(offered("pathorob-jax extract --ou")) == {"--output", "--outline"}
    assert offered("pathorob-jax extract --n") == ["--nooverwrite"]
    assert offered("pathorob-jax extract --on_bad_image=s") == ["--on_bad_image=skip"]
    assert offered("pathorob-jax extract --output=ti") == ["--output=tiles/"]
    assert offered("pathorob-jax report --r") == ["--results"]
    assert offered("pathorob-jax completion f") == ["fish"]


ZSH = """
zmodload zsh/zle
autoload -Uz compinit && compinit -u -D
source ./script
setopt no_auto_list no_beep
show() { print -r -- "$BUFFER" >> answers; BUFFER="" }
zle -N show
bindkey '^G' show
bindkey '^I' complete-word
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_completes(tmp_path):
    (tmp_path / "script").write_text(completion.SHELLS["zsh"](FLAGS))
    (tmp_path / "tiles").mkdir()
    (tmp_path / ".zshrc").write_text(ZSH)
    completed = {
        "pathorob-jax ex": "pathorob-jax extract ",
        "pathorob-jax extract --n": "pathorob-jax extract --nooverwrite ",
        "pathorob-jax extract --outp": "pathorob-jax extract --output=",
        "pathorob-jax extract --on_bad_image=s": "pathorob-jax extract --on_bad_image=skip ",
        "pathorob-jax extract --output=ti": "pathorob-jax extract --output=tiles/",
        "pathorob-jax report --r": "pathorob-jax report --results=",
        "pathorob-jax completion f": "pathorob-jax completion fish ",
    }
    environment = {"HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "vt100"}
    parent, child = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-i"],
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        cwd=tmp_path,
        env=environment | {"PATH": os.environ["PATH"]},
    ) as shell:
        os.close(child)
        keys = "".join(f"{line}\t\a" for line in completed)
        os.write(parent, f"{keys}exit\n".encode())
        with contextlib.suppress(OSError):  # how a terminal ends
            while os.read(parent, 4096):
                pass
        shell.wait(30)
    os.close(parent)
    answers = (tmp_path / "answers").read_text().splitlines()
    assert dict(zip(completed, answers, strict=True)) == completed


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_within_a_callback_is_not_lost(number):
    """Python drops what is raised in a callback of garbage collection; the run would go on."""
    code = f"""
import gc, os, signal, time
from pathorob_jax.cli import start

def run():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.{number})
    gc.callbacks.append(callback)
    gc.collect()
    time.sleep(60)

start.run_main(run)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    word = {"SIGTERM": "terminated", "SIGINT": "interrupted"}[number]
    assert done.stderr == f"{word}; nothing is half-written; give the same command again\n"
    assert done.returncode == 1
