"""How a script starts and ends: flags, exit codes, one message, and JAX's settings.

JAX is not imported here, so that help and refusals answer at once; ``run_main`` sets what JAX reads
when a script's work first imports it.
"""

import contextlib
import io
import logging as std_logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from pathorob_jax.cli import names
from pathorob_jax.core import faults, hosts
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.hosts import LostProcessError
from pathorob_jax.core.privacy import redact

EXIT_FAILED, EXIT_USAGE = 1, 2
TERMINATED = "terminated"
AGAIN = "nothing is half-written; give the same command again"
# Larger ones fit no array.
MAX_NUMBER = 2**32
# Flags that decide how much memory is used.
MEMORY_FLAGS = ("batch_size", "workers", "budget_mb", "draws")
# Whether XLA tries kernels of its own for products on NVIDIA GPUs.
TRITON = "--xla_gpu_enable_triton_gemm"
# After which a signal that came in a callback is sent again.
SEND_AGAIN_S = 0.05
# All programs are kept: reading one takes 6 ms, the shortest compilation 30.
MIN_COMPILE_S = 0


def run_main(run: Callable[[], None], *, resume: str = AGAIN, encodes: bool = False) -> None:
    """Parse flags and run, and end with one message where the run cannot go on.

    Bad input and faults of the machine (a full disk, too little memory) end with exit code 1, wrong
    usage with 2, Ctrl-C and SIGTERM with 1. Unexpected errors show their traceback; expected ones
    show it at ``--verbosity=1``. No message holds credentials.

    Args:
        run: what the script does.
        resume: how to go on after an interruption, for the message.
        encodes: whether the work is that of encoders; see ``with_gpu_products``.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _send_again
    try:
        app.run(
            lambda argv: sys.exit(call(run, argv, resume=resume, encodes=encodes)),
            flags_parser=parse,
        )
    finally:
        # The work is over, and so is the message: nothing is left to interrupt.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        sys.unraisablehook = sys.__unraisablehook__


def call(
    run: Callable[[], None], argv: Sequence[str], *, resume: str = AGAIN, encodes: bool = False
) -> int:
    """Run a script whose flags are parsed, and return its exit code; see ``run_main``."""
    _log_for_people()
    try:
        _check_flags(argv)
        _configure_jax(encodes=encodes)
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
    sys.stderr.write(names.as_called(redact(text)).rstrip() + "\n")
    sys.stderr.flush()


def _terminate(*signal_and_frame: object) -> None:
    """Let SIGTERM end a run as Ctrl-C does, so that nothing is left half-written."""
    raise KeyboardInterrupt(TERMINATED)


def _send_again(dropped: Any) -> None:
    """Send a signal again that came while a callback ran: Python drops what is raised there.

    Callbacks of garbage collection and of imports are such. From a thread, since this is one too.
    """
    if not isinstance(dropped.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
        return
    number = signal.SIGTERM if str(dropped.exc_value) == TERMINATED else signal.SIGINT
    again = threading.Timer(SEND_AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


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


def parse(argv: Sequence[str]) -> list[str]:
    """Set the flags; what is left of ``argv``. Help ends with 0, a flag that is wrong with 2."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            return flags.FLAGS(list(argv))
    except flags.Error as error:
        _say(f"error: {error}\nSee {names.command_of(argv[0])} --help")
        sys.exit(EXIT_USAGE)
    except SystemExit:  # absl has printed the help, and would end with 1
        sys.stdout.write(names.as_called(printed.getvalue()))
        sys.exit(0)


class _Formatter(std_logging.Formatter):
    """Time and message, without credentials."""

    def format(self, record: std_logging.LogRecord) -> str:
        return names.as_called(redact(super().format(record)))


def _log_for_people() -> None:
    """Log time and message only, to standard error; libraries log from WARNING on."""
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("jax", "orbax", "grain"):
        std_logging.getLogger(name).setLevel(std_logging.WARNING)


def compile_cache() -> str:
    """The folder of compiled programs.

    It is ``$JAX_COMPILATION_CACHE_DIR``, else ``$XDG_CACHE_HOME/pathorob_jax/xla``
    (XDG_CACHE_HOME defaults to ~/.cache).
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    default = os.path.join(cache, "pathorob_jax", "xla")
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or default


def with_gpu_products(flags_of_xla: str) -> str:
    """XLA's flags with those for GPUs: products by cuBLAS, unless the user decides that.

    For each shape of a product XLA would write dozens of kernels of its own, and time them. For the
    float32 products of the metrics it takes cuBLAS in the end: on an H200 a first repetition of the
    performance drop took 33 s, and 6.5 s with this flag. Encoders have few shapes, and gain 1 to
    3 % by trying; the script that extracts does not set it. The name of a file with flags stays.
    """
    is_file = bool(flags_of_xla.strip()) and not flags_of_xla.strip().startswith("-")
    if is_file or TRITON in flags_of_xla:
        return flags_of_xla
    return f"{flags_of_xla} {TRITON}=false".strip()


def _configure_jax(*, encodes: bool = False) -> None:
    """Settings of JAX for all scripts: strict ranks, and compiled programs kept for the next run.

    JAX's cache key includes versions, options and the kind of device. JAX reads the settings from
    the environment when it is imported.
    """
    settings: dict[str, str | int | float] = {"jax_numpy_rank_promotion": "raise"}
    folder = compile_cache()
    with contextlib.suppress(OSError):  # without a folder, programs are only compiled again
        os.makedirs(folder, exist_ok=True)
        settings["jax_compilation_cache_dir"] = folder
        settings["jax_persistent_cache_min_compile_time_secs"] = MIN_COMPILE_S
        settings["jax_persistent_cache_min_entry_size_bytes"] = -1
    if "jax" not in sys.modules:
        os.environ.update({name.upper(): str(value) for name, value in settings.items()})
        if hosts.visible_gpus() and not encodes:
            os.environ["XLA_FLAGS"] = with_gpu_products(os.environ.get("XLA_FLAGS", ""))
        return
    import jax

    for name, value in settings.items():
        jax.config.update(name, value)
