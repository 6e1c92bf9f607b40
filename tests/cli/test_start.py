"""How a script ends that cannot go on, and where compiled programs are kept."""

import multiprocessing
import os
import sys
import threading
import types

import jax
import pytest
import scripts

from pathorob_jax.cli import start
from pathorob_jax.core.hosts import LostProcessError


def call(run):
    with scripts.others_aside():
        return start.call(run, ["script"])


def raising(error):
    def run():
        raise error

    return run


@pytest.fixture
def no_exit(monkeypatch):
    """The process is not left at once: an exception says that it would be."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)


def test_a_defect_shows_its_traceback_without_credentials(capsys):
    assert call(raising(KeyError("s3://KEY:SECRET@bucket/a"))) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    last = "error: unexpected KeyError, a defect of this program: 's3://***@bucket/a'"
    assert said.splitlines()[-1] == last
    assert "SECRET" not in said


def test_nobody_waits_for_a_process_that_is_lost(no_exit, capsys):
    with pytest.raises(SystemExit) as left:
        call(raising(LostProcessError("the run: another process was lost.")))
    assert left.value.code == 1
    assert capsys.readouterr().err == "error: the run: another process was lost.\n"


def test_ctrl_c_waits_neither_for_threads_nor_for_children(no_exit, monkeypatch, capsys):
    ended, go_on = [], threading.Event()
    child = types.SimpleNamespace(terminate=lambda: ended.append("child"))
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [child])
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        with pytest.raises(SystemExit) as left:
            call(raising(KeyboardInterrupt()))
    finally:
        go_on.set()
        thread.join()
    assert left.value.code == 1
    assert ended == ["child"]
    assert capsys.readouterr().err == f"interrupted; {start.AGAIN}\n"


def test_other_errors_of_callbacks_are_shown_as_ever(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", shown.append)
    dropped = types.SimpleNamespace(exc_value=ValueError("of a callback"))
    start._send_again(dropped)
    assert shown == [dropped]


def test_compiled_programs_are_kept_in_the_users_cache_if_it_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    assert start.compile_cache() == "/home/someone/.cache/pathorob_jax/xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert start.compile_cache() == "/caches/pathorob_jax/xla"
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{tmp_path}/file/xla")
    assert start.compile_cache() == f"{tmp_path}/file/xla"
    before = jax.config.jax_compilation_cache_dir
    start._configure_jax()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.parametrize(
    ("n_gpus", "given", "expected"),
    [
        (0, None, None),
        (1, None, "--xla_gpu_enable_triton_gemm=false"),
        (2, "--xla_a=1", "--xla_a=1 --xla_gpu_enable_triton_gemm=false"),
        (1, "--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        (1, "/folder/flags", "/folder/flags"),  # XLA reads them from this file
    ],
)
def test_gpus_multiply_by_cublas_unless_the_user_decides(
    n_gpus, given, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(start.hosts, "visible_gpus", lambda: n_gpus)
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = kept | ({"XLA_FLAGS": given} if given else {})
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.delitem(sys.modules, "jax")
    start._configure_jax(encodes=True)
    assert environment.get("XLA_FLAGS") == given
    start._configure_jax()
    assert environment.get("XLA_FLAGS") == expected
