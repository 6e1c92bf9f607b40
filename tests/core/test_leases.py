"""Pieces of work are taken by one member each, and those of members that are gone by others."""

import os
import pathlib
import subprocess
import sys
import threading
import types

import buckets
import pytest
import tensorstore as ts

from pathorob_jax.core import files, leases

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathorob_jax.core import leases
member = leases.Member(sys.argv[1])
print(member.take("7"), flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "leases")


@pytest.fixture
def join(folder, monkeypatch):
    """Members, the first of this machine, those after it of others; all leave at the end."""
    joined = []

    def join(machine="here"):
        monkeypatch.setattr(leases, "machine", lambda: machine)
        joined.append(leases.Member(folder))
        monkeypatch.setattr(leases, "machine", lambda: "here")
        return joined[-1]

    yield join
    for member in joined:
        member.leave()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The name of a folder of an object store, whose objects are files of this machine."""
    (tmp_path / "leases").mkdir()
    open_store = ts.KvStore.open

    def open_bucket(url):
        path = f"{tmp_path}/{url.removeprefix('gs://bucket/')}"
        return open_store({"driver": "file", "path": path})

    stores = types.SimpleNamespace(KvStore=types.SimpleNamespace(open=open_bucket))
    monkeypatch.setattr(leases, "ts", stores)
    buckets.stand_for(monkeypatch, tmp_path, "gs://bucket/")
    return "gs://bucket/leases"


def _age(folder, member, seconds):
    """Let the last sign of a member be so long ago."""
    path = pathlib.Path(folder) / f"{member._id}.host"
    then_ns = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(then_ns, then_ns))


def test_a_piece_is_taken_once_and_by_the_next_when_its_member_left(join):
    first, second = join(), join("there")
    assert first.take("7")
    assert not first.take("7")
    assert not second.take("7")
    assert second.take("8")
    who = f"{leases.socket.gethostname()} (process {os.getpid()})"
    held = second.find_leases(["7", "8", "9"])
    assert held == {"7": leases.Lease(0, who, True), "8": leases.Lease(0, who, True)}
    first.leave()
    first.leave()
    assert second.find_leases(["7"]) == {"7": leases.Lease(0, "", False)}
    assert second.take("7", number=1)
    third = join()
    assert not third.take("7", number=1)
    assert third.find_leases(["7"])["7"] == leases.Lease(1, who, True)


def test_members_take_what_is_missing_until_nothing_is(join, monkeypatch):
    monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.01)
    first, second = join(), join("there")
    left = {"a", "b", "c", "d"}
    assert second.take("c")

    def let_go(_):
        second.leave()  # what it had is taken over

    monkeypatch.setattr(leases.time, "sleep", let_go)
    taken = []
    for piece in leases.take_missing(first, lambda: sorted(left)):
        taken.append(piece)
        left.remove(piece)
    assert taken == ["a", "b", "d", "c"]
    assert list(leases.take_missing(first, lambda: [])) == []


def test_a_member_of_another_host_is_gone_when_its_time_has_run_out(join, folder):
    me, other = join(), join("there")
    assert other.take("1")
    _age(folder, other, leases.LEASE_S - 5)
    assert me.find_leases(["1"])["1"].is_living
    _age(folder, other, 10)
    assert not me.find_leases(["1"])["1"].is_living
    other._touch()
    assert me.find_leases(["1"])["1"].is_living, "it was held up, and is back"


def test_a_member_is_renewed_while_it_is_there(join, folder, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    renewed = threading.Event()
    touch = leases.Member._touch

    def touched(member):
        try:
            return touch(member)
        finally:
            renewed.set()

    monkeypatch.setattr(leases.Member, "_touch", touched)
    me, other = join(), join("there")
    assert other.take("1")
    _age(folder, other, 1000)
    for _ in range(2):  # one may have begun before
        renewed.clear()
        assert renewed.wait(10)
    assert me.find_leases(["1"])["1"].is_living


def test_a_lease_without_a_holder_yet_counts_until_its_time_has_run_out(join, folder):
    me, path = join(), pathlib.Path(folder) / "1.0"
    path.touch()
    assert me.find_leases(["1"]) == {"1": leases.Lease(0, "", True)}
    os.utime(path, ns=(0, 0))
    assert me.find_leases(["1"]) == {"1": leases.Lease(0, "", False)}


def test_members_are_seen_without_a_clock_and_without_writing(join, folder):
    assert leases.find_members(folder) == []
    one, other = join("there"), join("yonder")
    assert {m.id for m in leases.find_members(folder)} == {one._id, other._id}
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).iterdir()}
    _age(folder, other, leases.LEASE_S + 1)
    assert [m.id for m in leases.find_members(folder)] == [one._id]
    later_ns = max(before.values()) + int(leases.LEASE_S * 2e9)
    assert leases.find_members(folder, now_ns=later_ns) == []


def test_a_folder_that_was_removed_gives_no_work(join, folder):
    me = join()
    assert not me.is_lost()
    for path in pathlib.Path(folder).iterdir():
        path.unlink()
    pathlib.Path(folder).rmdir()
    assert me.is_lost()
    assert not me.take("1")
    assert me.find_leases(["1"]) == {}


@pytest.mark.multiprocess
def test_a_killed_process_of_this_machine_is_gone_at_once(folder):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    me = leases.Member(folder)
    with child:
        assert child.stdout.readline() == b"True\n"
        held = me.find_leases(["7"])["7"]
        assert (held.is_living, f"(process {child.pid})" in held.holder) == (True, True)
        child.kill()
    assert not me.find_leases(["7"])["7"].is_living
    me.leave()


def test_of_many_that_try_at_once_one_gets_each_piece(join):
    members = [join() for _ in range(4)]
    taken = [[] for _ in members]
    start = threading.Barrier(len(members))

    def take_all(member, mine):
        start.wait()
        mine += [piece for piece in range(50) if member.take(str(piece))]

    threads = [
        threading.Thread(target=take_all, args=pair) for pair in zip(members, taken, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sum(taken, [])) == list(range(50))


def test_an_object_store_decides_between_two_that_create_at_once():
    bucket = ts.KvStore.open({"driver": "memory"}).result()

    class Racing:
        def read(self, name):
            found = bucket.read(name)
            found.result()
            bucket.write(name, b"of another").result()
            return found

        def write(self, *args, **kwargs):
            return bucket.write(*args, **kwargs)

    assert leases._create_object("gs://b/1.0", b"mine", kvstore=bucket)
    assert not leases._create_object("gs://b/1.0", b"again", kvstore=bucket)
    assert bucket.read("1.0").result().value == b"mine"
    assert not leases._create_object("gs://b/2.0", b"mine", kvstore=Racing())
    assert bucket.read("2.0").result().value == b"of another"


def test_members_share_a_folder_of_an_object_store(bucket):
    first, second = leases.Member(bucket), leases.Member(bucket)
    assert first.take("7")
    assert not second.take("7")
    who = f"{leases.socket.gethostname()} (process {os.getpid()})"
    assert second.find_leases(["7", "8"]) == {"7": leases.Lease(0, who, True)}
    assert {one.id for one in leases.find_members(bucket)} == {first._id, second._id}
    first.leave()
    assert first.is_lost()
    assert first.find_leases(["7"]) == {}
    assert second.find_leases(["7"]) == {"7": leases.Lease(0, "", False)}
    assert second.take("7", number=1)
    second.leave()
    assert leases.find_members(bucket) == []


def test_without_locks_on_the_disk_its_time_alone_tells(join, folder, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks available")

    with monkeypatch.context() as patch:
        patch.setattr(leases.fcntl, "flock", no_locks)
        one = join()
    other = join("there")
    assert {member.id for member in leases.find_members(folder)} == {one._id, other._id}
    _age(folder, one, leases.LEASE_S + 1)
    assert [member.id for member in leases.find_members(folder)] == [other._id]


def test_a_renewal_that_fails_is_tried_again_until_the_member_is_removed(monkeypatch):
    faults = [OSError("stale handle"), ValueError("busy"), FileNotFoundError("gone")]
    lines = []

    def touch():
        raise faults.pop(0)

    monkeypatch.setattr(leases, "RENEW_S", 0)
    monkeypatch.setattr(
        leases.logging, "warning", lambda text, *values: lines.append(text % values)
    )
    member = types.SimpleNamespace(_left=threading.Event(), _touch=touch, _path="a.host")
    leases.Member._renew(member)
    assert lines == [f"a.host: could not be renewed ({text})" for text in ("stale handle", "busy")]


def test_a_member_that_begins_counts_and_one_that_just_left_does_not(join, folder, monkeypatch):
    me = join()
    (pathlib.Path(folder) / "new.host").touch()
    found = {one.id: one.who for one in leases.find_members(folder)}
    assert found.keys() == {me._id, "new"}
    assert found["new"] == "a process that begins"

    def left(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(files, "read_bytes", left)
    assert leases.find_members(folder) == []


def test_other_systems_are_told_apart_by_the_name_of_the_host(monkeypatch):
    def fail(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(leases, "open", fail, raising=False)
    assert leases.machine() == leases.socket.gethostname()
