"""``{flags} <command>``: what a command does and all of its flags, read from the script itself."""

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.util import logging

from pathorob_jax.cli import completion, names

logger = logging.getLogger(__name__)
_READ: dict[str, list[completion.Flag]] = {}


def setup(app):
    """Register the directive, and name commands as an installed package does."""
    names.call_by_command()
    app.add_directive("flags", Flags)
    return {"parallel_read_safe": True}


def read(command):
    """The flags of a command without --help; a script is imported once."""
    if command not in _READ:
        found = completion.read_flags(command)
        _READ[command] = [flag for flag in found if flag.name != "help"]
    return _READ[command]


class Flags(Directive):
    """A definition list of the flags of a command."""

    required_arguments = 1

    def run(self):
        """The summary, and an entry for each flag."""
        command = self.arguments[0]
        summary = names.as_called(names.summary(command))
        listed = nodes.definition_list(classes=["flags"])
        for flag in read(command):
            term = nodes.term("", "", nodes.literal("", usage(flag)))
            about = nodes.definition("", nodes.paragraph("", about_flag(flag)))
            listed += nodes.definition_list_item("", term, about)
        return [nodes.paragraph("", summary), listed]


def usage(flag):
    """How a flag is written: ``--name``, ``--name=a|b`` or ``--name=...``."""
    if flag.is_switch:
        return f"--{flag.name}"
    return f"--{flag.name}={'|'.join(flag.values) if flag.values else '...'}"


def about_flag(flag):
    """Its help, and what holds where it is not given."""
    text = " ".join(flag.text.split())
    if flag.is_required:
        return f"{text} Required."
    if flag.default and not flag.is_switch:
        return f"{text} Default: {flag.default}."
    return text
