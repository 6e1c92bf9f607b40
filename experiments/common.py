"""Shared parts of the scripts: start-up, exit codes, and common flags."""

import logging as std_logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from pathorob_jax.core import faults
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.hosts import LostProcessError
from pathorob_jax.core.privacy import redact
from pathorob_jax.data import tile_paths
from pathorob_jax.data.manifest import CENTER, CLASS

EXIT_FAILED, EXIT_USAGE = 1, 2
AGAIN = "nothing is half-written; give the same command again"
# Larger ones fit no array.
MAX_NUMBER = 2**32
# Flags that decide how much memory is used.
MEMORY_FLAGS = ("batch_size", "workers", "budget_mb", "draws")
# Reading a cached program costs more than a shorter compilation.
MIN_COMPILE_S = 0.1


def define_label_column() -> flags.FlagHolder[str]:
    """Define --label_column."""
    return flags.DEFINE_string("label_column", CLASS, "Manifest column of the biological class.")


def define_columns() -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """Define --label_column and --center_column."""
    return (
        define_label_column(),
        flags.DEFINE_string("center_column", CENTER, "Manifest column of the medical centre."),
    )


def define_tile_access() -> tuple[flags.FlagHolder[str | None], flags.FlagHolder[str]]:
    """Define --image_range and --allow_paths."""
    return (
        flags.DEFINE_string(
            "image_range",
            None,
            "Grey images of more than 8 bits: the values that become black and white, as "
            "<low>,<high>; full: 0 and 65535 (16 bits), 0 and 1 (floats). Unset: they cannot be "
            "decoded.",
        ),
        flags.DEFINE_enum(
            "allow_paths",
            "inside",
            tile_paths.ALLOW_PATHS,
            "Files that a tileset may name: in its folder, anywhere on this machine, or on servers "
            "too.",
        ),
    )


def run_main(run: Callable[[], None], *, resume: str = AGAIN) -> None:
    """Parse flags and run, and end with one message where the run cannot go on.

    Bad input and faults of the machine (a full disk, too little memory) end with exit code 1, wrong
    usage with 2, Ctrl-C and SIGTERM with 1. Unexpected errors show their traceback; expected ones
    show it at ``--verbosity=1``. No message holds credentials.

    Args:
        run: what the script does.
        resume: how to go on after an interruption, for the message.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app.run(lambda argv: sys.exit(call(run, argv, resume=resume)), flags_parser=_parse)
    finally:
        # The work is over, and so is the message: nothing is left to interrupt.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def call(run: Callable[[], None], argv: Sequence[str], *, resume: str = AGAIN) -> int:
    """Run a script whose flags are parsed, and return its exit code; see ``run_main``."""
    _log_for_people()
    try:
        _check_flags(argv)
        jax.config.update("jax_numpy_rank_promotion", "raise")
        _keep_compiled()
        run()
    except LostProcessError as error:
        _say(f"error: {error}")
        os._exit(EXIT_FAILED)  # a normal exit would wait for the lost process
    except (InputError, OSError) as error:
        logging.debug("traceback", exc_info=True)
        _say(f"error: {faults.explain(error) or error}")
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt as interruption:
        _say(f"{str(interruption) or 'interrupted'}; {resume}")
        _leave_running_threads()
        return EXIT_FAILED
    except Exception as error:  # noqa: BLE001 - shown whole, but for credentials
        lower = [f"--{name}" for name in MEMORY_FLAGS if name in flags.FLAGS]
        fault = faults.explain(error, lower=" or ".join(lower))
        if fault is None:
            _say(traceback.format_exc())
            fault = f"unexpected {type(error).__name__}, a defect of this program: {error}"
        _say(f"error: {fault}")
        return EXIT_FAILED
    return 0


def _say(text: str) -> None:
    sys.stderr.write(redact(text).rstrip() + "\n")
    sys.stderr.flush()


def _terminate(*signal_and_frame: object) -> None:
    """Let SIGTERM end a run as Ctrl-C does, so that nothing is left half-written."""
    raise KeyboardInterrupt("terminated")


def _leave_running_threads() -> None:
    """End at once where a thread still computes; what it writes is written whole or not at all."""
    main = threading.main_thread()
    if any(not t.daemon and t is not main for t in threading.enumerate()):
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(EXIT_FAILED)


def _check_flags(argv: Sequence[str]) -> None:
    """Reject what absl accepts: other arguments, flags without a value, an unusable output."""
    if len(argv) > 1:
        raise UsageError(f"unexpected arguments {list(argv[1:])}; flags begin with --.")
    values = flags.FLAGS
    for name in values:
        flag = values[name]
        foreign = str(values.find_module_defining_flag(name)).startswith("absl")
        parts = flag.value if isinstance(flag.value, list) else [flag.value]
        if flag.present and not foreign and (not parts or "" in parts):
            raise UsageError(f"{name}: expected a value, found none; give one, or leave it out.")
        if isinstance(flag.value, int) and abs(flag.value) >= MAX_NUMBER:
            raise UsageError(f"{name}: expected less than {MAX_NUMBER}, found {flag.value}.")
    if "output" in values and isinstance(values["output"].value, str):
        faults.check_writable(values["output"].value)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        module = argv[0].rpartition("/")[2].removesuffix(".py")
        _say(f"error: {error}\nSee python -m experiments.{module} --help")
        sys.exit(EXIT_USAGE)


class _Formatter(std_logging.Formatter):
    """Time and message, without credentials."""

    def format(self, record: std_logging.LogRecord) -> str:
        return redact(super().format(record))


def _log_for_people() -> None:
    """Log time and message only, to standard error; libraries log from WARNING on."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
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
