"""Completion of commands and flags in bash, zsh and fish, made from the flags of the scripts."""

import importlib
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from pathorob_jax.cli import names

OTHERS = ("completion", "help", "--help", "--version")


class Flag(NamedTuple):
    """A flag as a shell completes it.

    Attributes:
        name: without dashes.
        is_switch: takes no value; ``--no<name>`` exists too.
        values: what it takes, where that is a fixed list.
        text: its help.
        default: what holds where it is not given, as it would be typed; "" for nothing.
        is_required: the script refuses to run without it.
    """

    name: str
    is_switch: bool
    values: tuple[str, ...]
    text: str
    default: str = ""
    is_required: bool = False

    @property
    def words(self) -> list[str]:
        """What may be typed: ``--name``, ``--noname`` for a switch, else ``--name=``."""
        if self.is_switch:
            return [f"--{self.name}", f"--no{self.name}"]
        return [f"--{self.name}={value}" for value in self.values or ("",)]


def read_flags(command: str) -> list[Flag]:
    """The flags that the script of a command defines, and ``--help``."""
    before = set(flags.FLAGS)
    importlib.import_module(names.find_module(command))
    found = [Flag("help", True, (), "Show the flags.")]
    for name in sorted(set(flags.FLAGS) - before):
        if str(flags.FLAGS.find_module_defining_flag(name)).startswith("absl"):
            continue
        found.append(describe(flags.FLAGS[name]))
        delattr(flags.FLAGS, name)  # the next script may define one of that name
    return found


def describe(flag: flags.Flag) -> Flag:
    """What is said of a flag of absl's."""
    values = getattr(flag.parser, "enum_values", ())
    # ``required=True`` is a validator of absl's, with this message.
    needed = any("must have a value other than None" in v.message for v in flag.validators)
    return Flag(
        str(flag.name),
        bool(flag.boolean),
        tuple(values),
        names.as_called(flag.help),
        default=(flag.default_as_str or "").strip("'"),
        is_required=needed,
    )


def script(shell: str) -> str:
    """The completion script of a shell; the shell evaluates it at its start."""
    return SHELLS[shell]({command: read_flags(command) for command in names.SCRIPTS})


def _words(found: list[Flag]) -> list[str]:
    words = [word for flag in found for word in flag.words]
    return [word for word in words if word != "--nohelp"]


def _bash(all_flags: dict[str, list[Flag]]) -> str:
    cases = "\n".join(
        f"    {command}) words={shlex.quote(' '.join(_words(found)))} ;;"
        for command, found in all_flags.items()
    )
    return f"""# eval "$(pathorob-jax completion bash)"
_pathorob_jax() {{
  local line=${{COMP_LINE:0:$COMP_POINT}} current words
  current=${{line##*[[:space:]]}}
  case ${{COMP_WORDS[1]}} in
{cases}
    completion) words={shlex.quote(" ".join(SHELLS))} ;;
    *) words= ;;
  esac
  [ "$COMP_CWORD" -le 1 ] && words={shlex.quote(" ".join([*all_flags, *OTHERS]))}
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  # A value of a path, after --flag= too.
  if [ ${{#COMPREPLY[@]}} -eq 0 ]; then
    COMPREPLY=($(compgen -f -- "${{current#--*=}}"))
  elif [[ $current == *=* ]]; then
    COMPREPLY=("${{COMPREPLY[@]#*=}}")
  fi
  [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
  return 0
}}
complete -o filenames -F _pathorob_jax pathorob-jax
"""


def _zsh(all_flags: dict[str, list[Flag]]) -> str:
    def quoted(found: list[Flag]) -> Iterator[str]:
        for flag in found:
            text = flag.text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
            text = " ".join(text.replace(":", "\\:").split())
            if flag.is_switch:
                yield from (shlex.quote(f"{word}[{text}]") for word in _words([flag]))
            else:
                kind = f"({' '.join(flag.values)})" if flag.values else "_files"
                yield shlex.quote(f"--{flag.name}=[{text}]:{flag.name}:{kind}")

    cases = "\n".join(
        f"    {command}) _arguments {' '.join(quoted(found))} ;;"
        for command, found in all_flags.items()
    )
    described = " ".join(
        shlex.quote(f"{command}:{names.summary(command)}") for command in all_flags
    )
    return f"""#compdef pathorob-jax
# eval "$(pathorob-jax completion zsh)"
_pathorob_jax() {{
  if (( CURRENT == 2 )); then
    local -a commands=({described} {" ".join(OTHERS)})
    _describe command commands
    return
  fi
  local command=$words[2]
  words=("${{(@)words[2,-1]}}")
  (( CURRENT-- ))
  case $command in
{cases}
    completion) _arguments {shlex.quote(f"1:shell:({' '.join(SHELLS)})")} ;;
  esac
}}
compdef _pathorob_jax pathorob-jax
"""


def _fish(all_flags: dict[str, list[Flag]]) -> str:
    program = f"complete -c {names.PROGRAM}"
    lines = ["# pathorob-jax completion fish | source", f"{program} -n __fish_use_subcommand -f"]
    for command, found in all_flags.items():
        text = shlex.quote(names.summary(command))
        lines.append(f"{program} -n __fish_use_subcommand -a {command} -d {text}")
        for flag in found:
            text = shlex.quote(" ".join(flag.text.split()))
            when = f"{program} -n '__fish_seen_subcommand_from {command}' -d {text}"
            if flag.is_switch:
                lines += [f"{when} -l {word.removeprefix('--')}" for word in _words([flag])]
            else:
                values = f"-f -a {shlex.quote(' '.join(flag.values))} " if flag.values else ""
                lines.append(f"{when} {values}-r -l {flag.name}")
    for other in OTHERS:
        lines.append(f"{program} -n __fish_use_subcommand -a {other}")
    values = " ".join(SHELLS)
    lines.append(f"{program} -n '__fish_seen_subcommand_from completion' -f -a '{values}'")
    return "\n".join(lines) + "\n"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
