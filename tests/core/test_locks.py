"""One writer at a time; a lock outlives no process, and a lease runs out."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import types

import pytest
import tensorstore as ts

from pathorob_jax.core import locks
from pathorob_jax.core.checks import InputError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathorob_jax.core import locks
held = locks.acquire(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def bucket():
    """An object store in memory: its writes are conditional, as those of gs:// and s3://."""
    return ts.KvStore.open({"driver": "memory"}).result()


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path):
    path = str(tmp_path / "new" / ".d.lock")
    first = locks.acquire(path)
    message = rf"\.d\.lock: process {os.getpid()} on .* is writing this store. Wait for it"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            locks.acquire(path)
    first.release()
    first.release()
    assert list((tmp_path / "new").iterdir()) == []
    locks.acquire(path).release()


@pytest.mark.multiprocess
def test_a_killed_process_holds_nothing(tmp_path):
    path = str(tmp_path / ".d.lock")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    with child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {child.pid} on "):
            locks.acquire(path)
        child.kill()
    assert pathlib.Path(path).read_text().startswith(f"process {child.pid}")
    held = locks.acquire(path)
    assert pathlib.Path(path).read_text().startswith(f"process {os.getpid()} ")
    held.release()


def test_a_lock_removed_by_its_last_holder_is_made_anew(tmp_path, monkeypatch):
    # Between opening the file and locking it the holder may let go and remove it.
    path = tmp_path / ".d.lock"
    lock = locks.fcntl.flock
    calls = []

    def removed_meanwhile(file, how):
        if not calls:
            path.unlink()
        calls.append(how)
        lock(file, how)

    monkeypatch.setattr(locks.fcntl, "flock", removed_meanwhile)
    held = locks.acquire(str(path))
    assert len(calls) == 2
    with pytest.raises(InputError):
        locks.acquire(str(path))
    held.release()


def test_a_lease_is_refused_until_released_or_run_out(bucket, monkeypatch):
    held = locks.Lease(bucket, "x.lock", where="gs://b/x.lock")
    message = r"gs://b/x\.lock: process \d+ on .* wait \d+ s more until its lease runs out"
    with pytest.raises(InputError, match=message):
        locks.Lease(bucket, "x.lock", where="gs://b/x.lock")
    held.release()
    assert bucket.list().result() == []
    abandoned = {"holder": "process 1 on a", "renewed_s": time.time() - locks.LEASE_S + 30}
    bucket.write("x.lock", json.dumps(abandoned).encode()).result()
    with pytest.raises(InputError, match=r"process 1 on a .* wait (29|30) s more"):
        locks.Lease(bucket, "x.lock", where="w")
    later = time.time() + 31
    monkeypatch.setattr(locks.time, "time", lambda: later)
    held = locks.Lease(bucket, "x.lock", where="w")
    holder = json.loads(bucket.read("x.lock").result().value)["holder"]
    assert holder == f"process {os.getpid()} on {locks.socket.gethostname()}"
    held.release()


def test_a_lease_is_renewed_while_held_and_only_by_its_holder(bucket, monkeypatch):
    monkeypatch.setattr(locks, "RENEW_S", 0.01)
    held = locks.Lease(bucket, "x.lock", where="w")

    def renewed_s():
        return json.loads(bucket.read("x.lock").result().value)["renewed_s"]

    before, deadline_s = renewed_s(), time.monotonic() + 10
    while renewed_s() == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    stolen = json.dumps({"holder": "someone", "renewed_s": 1.0}).encode()
    bucket.write("x.lock", stolen).result()
    time.sleep(0.1)
    assert bucket.read("x.lock").result().value == stolen, "a lost lease is not written again"
    with pytest.raises(InputError, match="was removed or replaced"):
        held.check()
    held.release()
    assert bucket.read("x.lock").result().value == stolen, "nor removed"


def test_an_object_that_is_no_lease_is_named(bucket):
    for value in (b"", b"hello", b"[]", b'{"holder": 1}', b'{"holder": "a", "renewed_s": "x"}'):
        bucket.write("x.lock", value).result()
        with pytest.raises(InputError, match=r"w: expected the lease of a writer, found another"):
            locks.Lease(bucket, "x.lock", where="w")


def test_a_foreign_lock_file_is_no_lock(tmp_path):
    (tmp_path / ".d.lock").write_bytes(b"\xff\xfe" * 999)
    held = locks.acquire(str(tmp_path / ".d.lock"))
    held.check()
    (tmp_path / ".d.lock").unlink()
    (tmp_path / ".d.lock").write_text("of another")
    with pytest.raises(InputError, match="was removed or replaced"):
        held.check()
    held.release()
    assert (tmp_path / ".d.lock").read_text() == "of another"


@pytest.mark.slow
def test_of_two_that_write_at_once_one_wins(bucket, monkeypatch):
    # Both read "nothing there"; the second write is conditional on it and finds it changed.
    raced = []

    class Racing:
        def read(self, name):
            found = bucket.read(name)
            found.result()
            if not raced:
                raced.append(locks.Lease(bucket, name, where="w"))
            return found

        def write(self, *args, **kwargs):
            return bucket.write(*args, **kwargs)

    with pytest.raises(InputError, match="another process is writing"):
        locks.Lease(Racing(), "x.lock", where="w")
    raced[0].release()


def test_an_object_store_is_asked_for_a_lease(bucket, monkeypatch):
    asked = []

    def open_bucket(url):
        asked.append(url)
        return types.SimpleNamespace(result=lambda: bucket)

    stores = types.SimpleNamespace(KvStore=types.SimpleNamespace(open=open_bucket))
    monkeypatch.setattr(locks, "ts", stores)
    held = locks.acquire("gs://b/stores/x.lock")
    held.check()
    with pytest.raises(locks.HeldError, match=r"^gs://b/stores/x\.lock: process \d+ on "):
        locks.acquire("gs://b/stores/x.lock")
    held.release()
    other = locks.acquire("gs://b/stores/x.lock")
    held.release()
    assert bucket.list().result() == [b"x.lock"], "the lease of the next writer stays"
    other.release()
    assert set(asked) == {"gs://b/stores/"}


def test_a_lease_is_renewed_again_after_a_failure_and_is_lost_to_another_writer(monkeypatch):
    answers = [ValueError("UNAVAILABLE"), b"2", b""]
    said = []

    def write(generation):
        answer = answers.pop(0)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    def note(text, *values):
        said.append(text % values)

    monkeypatch.setattr(locks, "RENEW_S", 0)
    monkeypatch.setattr(locks.logging, "warning", note)
    monkeypatch.setattr(locks.logging, "error", note)
    lease = types.SimpleNamespace(
        _write=write,
        _generation=b"1",
        _where="gs://b/x.lock",
        _stopped=threading.Event(),
        _lost=threading.Event(),
    )
    locks.Lease._renew(lease)
    assert said == [
        "gs://b/x.lock: the lease could not be renewed (UNAVAILABLE)",
        "gs://b/x.lock: another writer took this lease",
    ]
    assert lease._lost.is_set()
    assert lease._generation == b"2"


def test_where_the_disk_has_no_locks_the_work_goes_on_with_a_word(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    said = []
    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    monkeypatch.setattr(locks.logging, "warning", lambda text, *values: said.append(text % values))
    path = tmp_path / ".d.lock"
    held = locks.acquire(str(path))
    assert said == [f"{path}: no lock on this file system (No locks available)"]
    held.check()
    held.release()
    assert not path.exists()
