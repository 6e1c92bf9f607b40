"""What all scripts share: start-up, exit codes, and flags that mean the same everywhere."""

import logging as std_logging
import os
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from pathorob_jax.checks import InputError, UsageError
from pathorob_jax.hosts import LostProcessError
from pathorob_jax.manifest import CENTER, CLASS

EXIT_FAILED, EXIT_USAGE = 1, 2


def define_columns(more: str = "") -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """--label_column and --center_column; ``more`` is said of the latter."""
    return (
        flags.DEFINE_string("label_column", CLASS, "Manifest column of the biological class."),
        flags.DEFINE_string(
            "center_column", CENTER, f"Manifest column of the medical centre{more}."
        ),
    )


def run_main(run: Callable[[], None]) -> None:
    """Parse flags and run; bad input ends in one message and exit code 1, wrong usage in 2.

    An unexpected error keeps its traceback, and so do expected ones at ``--verbosity=1``.
    """
    app.run(lambda argv: _guarded(run, argv), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        module = argv[0].rpartition("/")[2].removesuffix(".py")
        sys.stderr.write(f"error: {error}\nSee python -m experiments.{module} --help\n")
        sys.exit(EXIT_USAGE)


def _log_for_people() -> None:
    """Time and message only, on standard error; libraries speak up from WARNING on."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("jax", "orbax", "grain"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)


def _guarded(run: Callable[[], None], argv: Sequence[str]) -> None:
    _log_for_people()
    try:
        if len(argv) > 1:
            raise UsageError(f"unexpected arguments {list(argv[1:])}; flags begin with --.")
        jax.config.update("jax_numpy_rank_promotion", "raise")
        run()
    except LostProcessError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(EXIT_FAILED)  # a normal exit would wait for the process that is gone
    except (InputError, OSError) as error:
        logging.debug("traceback", exc_info=True)
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; extract and import_embeddings go on where they stopped\n")
        sys.exit(EXIT_FAILED)
