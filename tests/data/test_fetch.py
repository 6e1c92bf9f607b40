"""Fetching, against a made-up hub on this machine: never the real one."""

import errno
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
import types

import hub_server
import huggingface_hub
import pytest
import scripts
from absl import logging
from huggingface_hub import constants, file_download

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.locks import HeldError
from pathorob_jax.data import downloads, fetch, sources
from pathorob_jax.data.protocols import PROTOCOLS

FILES = {
    "train-00000-of-00002.parquet": hub_server.made_bytes(0, 40_000),
    "train-00001-of-00002.parquet": hub_server.made_bytes(1, 30_001),
}
FIRST = f"made/{next(iter(FILES))}"
ALL = [f"made/{name}" for name in FILES] + ["metadata/known.csv", "metadata/unknown.csv"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download, "time", types.SimpleNamespace(sleep=lambda s: None))
    with hub_server.Hub(FILES) as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def run(hub, folder, **options):
    hub.requests.clear()
    return fetch.fetch(
        ["made"], str(folder), endpoint=hub.url, github=hub.url, sources=hub.sources, **options
    )


def check_all(hub, folder):
    for path in ALL:
        assert (folder / path).read_bytes() == hub.data(path), path
    lock = json.loads((folder / fetch.LOCK_FILE).read_text())
    assert {path: entry["sha256"] for path, entry in lock["files"].items()} == {
        path: hub_server.sha256(hub.data(path)) for path in ALL
    }
    assert os.listdir(folder / fetch.PARTS) == []


def said(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *values: lines.append(text % values))
    return lines


def test_what_comes_is_said_then_checked_and_kept(hub, folder, monkeypatch):
    lines = said(monkeypatch)
    dry = run(hub, folder, dry_run=True)
    assert hub.requests == []
    assert dry.missing == tuple(ALL)
    text = "\n".join(lines)
    for part in ("4 files, 73.0 kB, and what has no known size", "2 files, 70.0 kB from"):
        assert part in text
    for part in ("owner/made-up at 0123456789ab, licence CC0-1.0", "licence BSD-3-Clause"):
        assert part in text
    done = run(hub, folder)
    assert done == fetch.Fetched(downloaded=tuple(ALL))
    check_all(hub, folder)
    # All is there: nothing is asked.
    assert run(hub, folder) == fetch.Fetched(present=tuple(ALL))
    assert hub.requests == []


@pytest.mark.parametrize("path", ALL)
def test_a_flipped_byte_is_found_and_mended(hub, folder, path):
    run(hub, folder)
    data = bytearray((folder / path).read_bytes())
    data[1234] ^= 4
    (folder / path).write_bytes(data)
    assert run(hub, folder).downloaded == (path,)
    check_all(hub, folder)


def test_what_was_recorded_at_first_use_holds(hub, folder):
    run(hub, folder)
    (folder / "metadata/unknown.csv").unlink()
    first = hub.tables["data/metadata/unknown.csv"]
    hub.tables["data/metadata/unknown.csv"] = hub_server.made_bytes(99, len(first))
    with pytest.raises(InputError, match=r"unknown.csv came damaged twice \(has sha256"):
        run(hub, folder)
    hub.tables["data/metadata/unknown.csv"] = first[:-1]
    with pytest.raises(InputError, match="damaged twice .has 2999 bytes, expected 3000"):
        run(hub, folder)
    hub.tables["data/metadata/unknown.csv"] = first
    run(hub, folder)
    check_all(hub, folder)


def test_connections_that_end_are_resumed(hub, folder):
    hub.faults = [{"cut": 7_000}, {"cut": 11_000}, {"cut": 0}, {}, {"cut": 29_000}]
    run(hub, folder)
    check_all(hub, folder)
    starts = hub.ranges()
    assert starts[:2] == [0, 7_000]
    assert starts[2] == starts[3] == 18_000
    assert starts[4] == 0
    assert starts[5] == 29_000


def test_an_interrupted_run_goes_on(hub, folder, monkeypatch):
    write = downloads._Counted.write

    def write_some(self, data):
        if self.tell() >= 21_000:
            raise KeyboardInterrupt
        return write(self, data)

    monkeypatch.setattr(downloads._Counted, "write", write_some)
    with pytest.raises(KeyboardInterrupt):
        run(hub, folder)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    assert not (folder / FIRST).exists()
    run(hub, folder)
    assert hub.ranges()[0] == 21_000
    check_all(hub, folder)


def test_a_server_that_ignores_ranges(hub, folder):
    hub.faults = [{"cut": 5_000}, {"whole": True}]
    run(hub, folder)
    check_all(hub, folder)


def test_what_came_damaged_comes_again(hub, folder):
    hub.faults = [{"flip": 39_999}]
    run(hub, folder)
    check_all(hub, folder)
    shutil.rmtree(folder)
    hub.always = {"flip": 17}
    with pytest.raises(InputError, match=r"train-00000-of-00002.parquet came damaged twice"):
        run(hub, folder)
    assert not (folder / FIRST).exists()
    assert os.listdir(folder / fetch.PARTS) == []


def test_too_few_bytes(hub, folder):
    hub.always = {"short": 10}
    with pytest.raises(InputError, match="train-00000-of-00002.parquet: the server sent too few"):
        run(hub, folder)
    assert not (folder / FIRST).exists()
    hub.always = {}
    run(hub, folder)
    assert hub.ranges()[0] == 39_990
    check_all(hub, folder)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["head_status", "status"])
def test_gated(hub, folder, status, where):
    hub.always = {where: status}
    with pytest.raises(InputError, match=r"gated or private, 40.*hf auth login.*HF_TOKEN") as info:
        run(hub, folder)
    assert "Signature" not in str(info.value)


def test_the_login_goes_to_the_hub_alone(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    run(hub, folder)
    assert set(hub.logins) == {("HEAD", "Bearer hf_made_up"), ("GET", None)}


def test_absent(hub, folder):
    hub.always = {"head_status": 404}
    with pytest.raises(InputError, match=r"train-00000.*\(404\).*it lacks the file"):
        run(hub, folder)


def test_another_file_than_the_pinned_one(hub, folder):
    hub.commit = "f" * 40
    with pytest.raises(InputError, match="another file there than the pinned one .commit ffff"):
        run(hub, folder)
    hub.commit = hub_server.COMMIT
    hub.images["data/train-00000-of-00002.parquet"] = hub_server.made_bytes(5, 40_000)
    with pytest.raises(InputError, match="another file there than the pinned one"):
        run(hub, folder)


@pytest.mark.parametrize("fault", [{"stall": 1.0}, {"head_stall": 1.0}, {"head_status": 503}])
def test_slow_or_ill_servers_end_with_what_to_bring(hub, folder, monkeypatch, fault):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    hub.always = fault
    with pytest.raises(InputError) as info:
        run(hub, folder)
    check_bring(str(info.value), hub, folder)


def check_bring(text, hub, folder):
    assert "4 files, 73.0 kB, and what has no known size missing" in text
    assert "The same command goes on" in text
    for source in hub.sources["made"]:
        assert f"{folder}/{source.path} (" in text
    assert f"40,000 bytes, sha256 {hub.sources['made'][0].sha256}..." in text
    resolve = f"/datasets/owner/made-up/resolve/{hub_server.COMMIT}/data/train-00000-of-00002"
    assert resolve in text
    assert f"/owner/tables/{hub_server.COMMIT}/data/metadata/unknown.csv" in text


def test_no_network(hub, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(InputError) as info:
        fetch.fetch(["made"], str(folder), endpoint=nobody, github=nobody, sources=hub.sources)
    check_bring(str(info.value), hub, folder)


def test_offline_asks_nobody_and_takes_what_is_brought(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set") as info:
        run(hub, folder)
    check_bring(str(info.value), hub, folder)
    for path in ALL:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(hub.data(path))
    (folder / FIRST).write_bytes(hub.data(FIRST)[::-1])
    with pytest.raises(InputError, match="1 file, 40.0 kB missing"):
        run(hub, folder)
    (folder / FIRST).write_bytes(hub.data(FIRST))
    assert run(hub, folder) == fetch.Fetched(present=tuple(ALL))
    check_all(hub, folder)
    assert hub.requests == []


def test_a_copied_cache_is_used_without_a_second_copy(hub, folder, tmp_path, monkeypatch):
    for source in hub.sources["made"][:2]:
        huggingface_hub.hf_hub_download(
            source.repo,
            source.name,
            repo_type="dataset",
            revision=source.revision,
            cache_dir=tmp_path / "elsewhere",
            endpoint=hub.url,
        )
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "cache", symlinks=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="2 files, 3.0 kB, and what has no known size missing"):
        run(hub, folder)
    assert hub.requests == []
    for name in FILES:
        blobs = tmp_path / "cache/datasets--owner--made-up/blobs"
        assert os.path.samefile(
            folder / "made" / name, blobs / hub_server.sha256(hub.data(f"made/{name}"))
        )
    # A damaged cache is not used.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    shutil.rmtree(folder)
    blob = blobs / hub_server.sha256(hub.data(FIRST))
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    assert run(hub, folder).downloaded == (FIRST, *ALL[2:])
    check_all(hub, folder)


@pytest.mark.parametrize("differ", [True, False])
def test_the_cache_is_linked_to_also_where_disks_differ(tmp_path, monkeypatch, differ):
    def refuse(path, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    blob, target = tmp_path / "blob", tmp_path / "data" / "a"
    blob.write_bytes(b"x")
    target.parent.mkdir()
    (tmp_path / "data" / f"a{files.PARTIAL}").write_bytes(b"of a killed run")
    if differ:
        monkeypatch.setattr(os, "link", refuse)
    fetch._link(str(blob), str(target))
    assert os.path.samefile(blob, target)
    assert target.is_symlink() == differ
    assert os.listdir(target.parent) == ["a"]


def test_one_at_a_time_and_only_into_a_local_folder(hub, folder):
    lock = fetch.locks.acquire(str(folder / fetch.PARTS / "lock"), doing="fetching")
    try:
        with pytest.raises(HeldError):
            run(hub, folder)
    finally:
        lock.release()
    with pytest.raises(UsageError, match="expected a local folder"):
        run(hub, "gs://bucket/data")
    with pytest.raises(UsageError, match="Did you mean 'tcga'"):
        fetch.fetch(["tgca"], str(folder))
    with pytest.raises(UsageError, match="expected some of camelyon"):
        fetch.fetch([], str(folder))


def test_a_damaged_lock_file_is_named(hub, folder):
    run(hub, folder)
    path = folder / fetch.LOCK_FILE
    path.write_text(path.read_text().replace("CC0-1.0", "CC1-1.0"))
    with pytest.raises(InputError, match=r"fetched.json: not as it was written.*Restore it"):
        run(hub, folder)


def test_too_little_room_is_said_before(hub, folder, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=70_000))
    with pytest.raises(InputError, match=r"too little room: 73.0 kB .* 70.0 kB are free"):
        run(hub, folder)
    assert hub.requests == []


def test_the_benchmark(shared):
    """Every file of the protocols has a source; tables beside the clone have the pinned digests."""
    listed = {source.path: source for one in sources.SOURCES.values() for source in one}
    images = [source for source in listed.values() if source.is_on_hub]
    assert sum(source.n_bytes for source in images) == 1_902_669_100
    for name, protocol in PROTOCOLS.items():
        views = (protocol.robustness_index.view, protocol.apd.in_domain, protocol.apd.out_of_domain)
        for view in (*views, protocol.clustering_score.view):
            assert f"metadata/{view.metadata}" in {s.path for s in sources.SOURCES[name]}
    for path in (shared / "pathorob/metadata").iterdir():
        source = listed[f"metadata/{path.name}"]
        data = path.read_bytes()
        assert (len(data), hub_server.sha256(data)) == (source.n_bytes, source.sha256), path.name


def test_the_script_says_what_it_would_fetch(tmp_path):
    done = scripts.call("fetch_data", "--datasets=tcga", f"--data_dir={tmp_path}/d", "--dry_run")
    assert done.code == 0, done.text
    for part in ("3 files, 1.1 GB from", "PathoROB-tcga at 6e1dbd4306eb", "CC-BY-NC-SA-4.0"):
        assert part in done.text
    assert "5 are missing" in done.text
    done = scripts.call("fetch_data", "--datasets=tgca", f"--data_dir={tmp_path}/d")
    assert (done.code, len(done.errors)) == (2, 1)


LONG = {"a.parquet": 900_000, "b.parquet": 5}
WORKER = """
import sys
import hub_server
from huggingface_hub import constants
from pathorob_jax.data import fetch
constants.DOWNLOAD_CHUNK_SIZE = 1000
files = {"a.parquet": hub_server.made_bytes(0, 900_000), "b.parquet": hub_server.made_bytes(1, 5)}
hub = hub_server.Hub(files)
print("ready", flush=True)
fetch.fetch(["made"], sys.argv[1], endpoint=sys.argv[2], github=sys.argv[2], sources=hub.sources)
"""


@pytest.mark.slow
@pytest.mark.campaign
def test_thirty_kills_at_random_moments(folder, tmp_path, monkeypatch):
    """Killed runs keep what has come; the last one ends with right files."""
    draw = random.Random(7)
    files = {
        "a.parquet": hub_server.made_bytes(0, 900_000),
        "b.parquet": hub_server.made_bytes(1, 5),
    }
    root = pathlib.Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "NO_PROXY": "127.0.0.1,localhost",
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": f"{root}{os.pathsep}{root}/tests/helpers",
    }
    with hub_server.Hub(files) as hub:
        hub.speed = 3_000  # 0.3 MB/s: three seconds in all
        command = [sys.executable, "-c", WORKER, str(folder), hub.url]
        for _ in range(30):
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
                process.stdout.readline()
                time.sleep(draw.uniform(0, 0.5))
                process.kill()
        hub.speed = None
        subprocess.run(command, env=environment, check=True, capture_output=True)
        assert len([first for first in hub.ranges() if first]) > 5
        # What has come is not asked for again, but for the last piece and what was on its way.
        assert hub.sent < 3 * 900_000
        for path in ("made/a.parquet", "made/b.parquet", *ALL[2:]):
            assert (folder / path).read_bytes() == hub.data(path)
        assert os.listdir(folder / fetch.PARTS) == []


@pytest.mark.slow
def test_a_survey_reads_no_file_and_asks_nobody(hub, folder):
    def left():
        found = fetch.survey(["made"], str(folder), sources=hub.sources)
        return [source.path for source in found]

    assert left() == ALL
    assert not folder.exists()
    run(hub, folder)
    hub.requests.clear()
    assert left() == []
    (folder / FIRST).write_bytes(b"cut")
    assert left() == [FIRST]
    assert hub.requests == []
