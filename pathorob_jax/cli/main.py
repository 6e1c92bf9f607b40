"""``pathorob-jax <command> --flags``: the scripts of ``experiments`` and ``converters``.

Each command runs its script as ``python -m`` does, so that the two cannot differ.
"""

import runpy
import sys

from pathorob_jax.cli import interruption, names
from pathorob_jax.core.checks import UsageError
from pathorob_jax.version import __version__

EXIT_USAGE = 2
COMPLETION = "completion"


def main() -> None:
    """Entry point of the console script."""
    interruption.watch()
    names.call_by_command()
    command, *rest = sys.argv[1:] or ["help"]
    if command in ("help", "--help", "-h", "-help"):
        sys.stdout.write(_overview())
    elif command == "--version":
        sys.stdout.write(f"{names.PROGRAM} {__version__}\n")
    elif command == COMPLETION:
        _complete(rest)
    else:
        try:
            module = names.find_module(command)
        except UsageError as error:
            _refuse(str(error))
        sys.argv = [sys.argv[0], *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _overview() -> str:
    lines = {command: names.summary(command) for command in names.SCRIPTS}
    lines[COMPLETION] = "Print a script that completes commands and flags: bash, zsh or fish."
    width = max(map(len, lines))
    program = names.PROGRAM
    return "\n".join(
        [
            f"{program} <command> --flags      {program} <command> --help      {program} --version",
            "",
            *(f"  {command:{width}}  {text}" for command, text in lines.items()),
            "",
        ]
    )


def _complete(arguments: list[str]) -> None:
    from pathorob_jax.cli import completion

    if len(arguments) != 1 or arguments[0] not in completion.SHELLS:
        _refuse(
            f"completion: expected one of {', '.join(completion.SHELLS)}, found "
            f"{' '.join(arguments) or 'none'}."
        )
    sys.stdout.write(completion.script(arguments[0]))


def _refuse(text: str) -> None:
    sys.stderr.write(f"error: {text}\nSee {names.PROGRAM} --help\n")
    sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
