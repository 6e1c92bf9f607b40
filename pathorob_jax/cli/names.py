"""The commands of ``pathorob-jax`` and the scripts that they are.

A script's messages name others as ``experiments.<name>``. Where ``pathorob-jax`` called it, a user
reads the name of the command instead.
"""

import ast
import importlib.util
import pathlib
import re
import sys

from pathorob_jax.core import checks

PROGRAM = "pathorob-jax"
# All of the work, then its steps in order.
SCRIPTS = {
    "run": "experiments.run",
    "status": "experiments.status",
    "submit": "experiments.submit",
    "fetch": "experiments.fetch_data",
    "synthesize": "experiments.synthesize",
    "convert": "converters.convert",
    "verify": "converters.verify",
    "extract": "experiments.extract",
    "import": "experiments.import_embeddings",
    "robustify": "experiments.robustify",
    "evaluate": "experiments.evaluate",
    "report": "experiments.report",
    "leaderboard": "experiments.leaderboard",
    "export": "experiments.export",
    "doctor": "experiments.doctor",
}
_COMMANDS = {script: command for command, script in SCRIPTS.items()}
_SCRIPT = re.compile(r"(?:python -m )?\b((?:experiments|converters)\.\w+)")
# Whether ``pathorob-jax`` runs in this process.
_called: list[str] = []


def call_by_command() -> None:
    """From now on messages name the commands of ``pathorob-jax``."""
    _called[:] = [PROGRAM]


def as_called(text: str) -> str:
    """The text with the scripts named as the user calls them."""
    if not _called:
        return text
    return _SCRIPT.sub(lambda found: _name(found[1]) or found[0], text)


def command_of(argv0: str) -> str:
    """How the script whose file is ``argv0`` is called, to begin a command with."""
    path = pathlib.PurePath(argv0)
    script = f"{path.parent.name or 'experiments'}.{path.stem}"
    return as_called(f"python -m {script}")


def _name(script: str) -> str:
    return f"{PROGRAM} {_COMMANDS[script]}" if script in _COMMANDS else ""


def find_module(command: str, part: str = "") -> str:
    """Full name of the script of a command; one that lies in a clone can be imported then.

    With ``part``, that of another module beside the script.

    An installed package holds the scripts as ``pathorob_jax.experiments`` and
    ``pathorob_jax.converters``; in a clone their folders lie beside it.

    Raises:
        UsageError: there is no such command.
    """
    checks.check_known(command, SCRIPTS, what="command")
    package = __name__.partition(".")[0]
    script = SCRIPTS[command]
    script = f"{script.partition('.')[0]}.{part}" if part else script
    if importlib.util.find_spec(f"{package}.{script.partition('.')[0]}") is not None:
        return f"{package}.{script}"
    clone = str(pathlib.Path(__file__).resolve().parents[2])
    if clone not in sys.path:
        sys.path.insert(0, clone)
    return script


def summary(command: str) -> str:
    """What a command does, in one line: the first of its script's docstring."""
    spec = importlib.util.find_spec(find_module(command))
    if spec is None or spec.origin is None:
        return ""
    text = pathlib.Path(spec.origin).read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
