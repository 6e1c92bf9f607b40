"""Scripts in this process: their flags are parsed as at the command line, without its start-up."""

import contextlib
import importlib
import io
import os
import signal
import sys
from typing import NamedTuple

from absl import flags, logging

from pathorob_jax.cli import start

SCRIPTS = (
    *("evaluate", "export", "extract", "import_embeddings", "leaderboard", "report", "run"),
    *("status", "synthesize"),
)
_LOADED = {}


class Done(NamedTuple):
    """Exit code, and what the script wrote to standard error and standard output."""

    code: int
    text: str
    out: str

    @property
    def errors(self):
        """Lines that begin with ``error: ``."""
        return [line for line in self.text.splitlines() if line.startswith("error: ")]


@contextlib.contextmanager
def others_aside():
    """Take out the flags of other scripts: names would be defined twice."""
    # absl's own table: taken out and put back there, flags stay those of their modules.
    table = flags.FLAGS._flags()
    module_of = {name: flags.FLAGS.find_module_defining_flag(name) or "" for name in table}
    mine = ("experiments", "converters")
    others = {
        name: table.pop(name) for name, module in module_of.items() if module.startswith(mine)
    }
    try:
        yield
    finally:
        table.update(others)


def load(name):
    """The module of a script and its flags."""
    if name not in _LOADED:
        before = set(flags.FLAGS)
        wing = "" if name.startswith("converters.") else "experiments."
        module = importlib.import_module(wing + name)
        own = {flag: flags.FLAGS[flag] for flag in set(flags.FLAGS) - before}
        for flag in own:
            delattr(flags.FLAGS, flag)
        _LOADED[name] = module, own
    return _LOADED[name]


def call(name, *arguments):
    """Run ``experiments.<name>`` or ``converters.<name>``; its exit code and messages."""
    with others_aside():
        return _call(*load(name), name, *arguments)


def _call(module, own, name, *arguments):
    for flag, kept in own.items():
        flags.FLAGS[flag] = kept
        kept.unparse()
    stderr, handler, sink = sys.stderr, logging.get_absl_handler().python_handler, io.StringIO()
    stream = handler.stream
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out = io.StringIO()
    here, verbosity = os.getcwd(), logging.get_verbosity()
    try:
        sys.stderr = handler.stream = sink
        logging.set_verbosity(logging.INFO)  # absl's app sets it
        argv = start.parse([f"experiments/{name}.py", *map(str, arguments)])
        with contextlib.redirect_stdout(out):
            code = start.call(module.main, argv, resume=getattr(module, "RESUME", start.AGAIN))
    except SystemExit as error:
        code = error.code
    finally:
        sys.stderr, handler.stream = stderr, stream
        os.chdir(here)
        logging.set_verbosity(verbosity)
        for number, before in handlers.items():
            signal.signal(number, before)
        for flag in own:
            delattr(flags.FLAGS, flag)
    return Done(code, sink.getvalue(), out.getvalue())
