"""Shared parts of the scripts: start-up, exit codes, and common flags."""

import logging as std_logging
import os
import sys
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.hosts import LostProcessError
from pathorob_jax.data.manifest import CENTER, CLASS

EXIT_FAILED, EXIT_USAGE = 1, 2
# Reading a cached program costs more than a shorter compilation.
MIN_COMPILE_S = 0.1


def define_columns(more: str = "") -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """Define --label_column and --center_column; ``more`` extends the help of the latter."""
    return (
        flags.DEFINE_string("label_column", CLASS, "Manifest column of the biological class."),
        flags.DEFINE_string(
            "center_column", CENTER, f"Manifest column of the medical centre{more}."
        ),
    )


def run_main(run: Callable[[], None]) -> None:
    """Parse flags and run; bad input ends with one message and exit code 1, wrong usage with 2.

    Unexpected errors keep their traceback; expected errors show it at ``--verbosity=1``.
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
    """Log time and message only, to standard error; libraries log from WARNING on."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("jax", "orbax", "grain"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)


def _keep_compiled() -> None:
    """Keep compiled programs for the next run, in JAX's persistent cache.

    The cache is in ``$JAX_COMPILATION_CACHE_DIR``, else ``$XDG_CACHE_HOME/pathorob_jax/xla``
    (XDG_CACHE_HOME defaults to ~/.cache). JAX's cache key includes versions, options and the kind
    of device.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    default = os.path.join(cache, "pathorob_jax", "xla")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return  # without a writable folder, programs are only compiled again
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _guarded(run: Callable[[], None], argv: Sequence[str]) -> None:
    _log_for_people()
    try:
        if len(argv) > 1:
            raise UsageError(f"unexpected arguments {list(argv[1:])}; flags begin with --.")
        jax.config.update("jax_numpy_rank_promotion", "raise")
        _keep_compiled()
        run()
    except LostProcessError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
        os._exit(EXIT_FAILED)  # a normal exit would wait for the lost process
    except (InputError, OSError) as error:
        logging.debug("traceback", exc_info=True)
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; extract and import_embeddings go on where they stopped\n")
        sys.exit(EXIT_FAILED)
