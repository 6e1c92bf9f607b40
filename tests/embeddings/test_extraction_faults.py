"""Extraction that is killed, fails, or meets bad images, full disks and second writers."""

import dataclasses
import io
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from extraction import (
    HELPERS,
    REPOSITORY,
    N,
    decode_all,
    files_of,
    mesh_of,
    projection,
    run,
    shard_bytes,
)
from PIL import Image

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import tile_batches
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings import forward_pass, store, store_files, store_state, store_writer
from pathorob_jax.embeddings.extraction import extract
from pathorob_jax.evaluation import run as evaluation
from pathorob_jax.results.result_files import read_result

# Forked children are killed at given moments, and each is resumed; libraries are imported once, and
# no backend before the fork. A moment is so long after so many of the 32 chunks are written,
# whatever the machine's load.
KILLER = """
import dataclasses, json, os, pathlib, signal, sys, threading, time
import jax
sys.path.insert(0, sys.argv[3])
import extraction, kept_programs
from pathorob_jax.core import devices
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings.extraction import extract

kept_programs.make_safe()
TILES, OUT, MOMENTS = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[4])

class Slow:
    def __init__(self, reader):
        self.reader, self.lock = reader, threading.Lock()

    def read(self, row):
        with self.lock:  # one tile at a time, however many threads read
            time.sleep(0.02)
        return self.reader.read(row)

def run(root, log):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(log, "w") as out:
            os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
            tileset = images.open_tileset(TILES)
            tileset = dataclasses.replace(tileset, reader=Slow(tileset.reader))
            encoders = [extraction.projection(), extraction.projection(2.0, name="double")]
            mesh = devices.make_mesh(jax.devices()[:1])
            extract(tileset, encoders, root=str(root), dataset="d", batch_size=2, mesh=mesh)
            code = 0
    finally:
        os._exit(code)

def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def kill(child, root, n_chunks, delay_s):  # whether it was still alive
    while len(list(root.glob("*/d/embeddings/c/*/0"))) < n_chunks:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.005)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    return wait(child) == -signal.SIGKILL

whole = OUT / "whole"
assert wait(run(whole, OUT / "log")) == 0, (OUT / "log").read_text()
expected = extraction.files_of(whole)
report = []
for i, (n_chunks, delay_s) in enumerate(MOMENTS):
    root = OUT / f"killed{i}"
    died = kill(run(root, OUT / "log"), root, n_chunks, delay_s)
    left = extraction.files_of(root) if root.exists() else {}
    chunks = [name for name in left if "/embeddings/c/" in name]
    complete = sum(b'"complete": true' in left[name] for name in left if "store.json" in name)
    torn = [name for name in chunks if left[name] != expected[name]]
    assert wait(run(root, OUT / "log")) == 0, (OUT / "log").read_text()
    after = extraction.files_of(root)
    differing = sorted({*after, *expected} - {n for n in after if after[n] == expected.get(n)})
    found = dict(chunks=len(chunks), complete=complete, torn=torn, differing=differing)
    report.append(dict(died=died, **found))
print(json.dumps(report))
"""


def _environment():
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


def _random_moments(n):
    """The first sixth about the start, the others at any chunk but the last ones."""
    draw = random.Random(20260101)
    early = [(0, draw.uniform(0, 2)) for _ in range(n // 6)]
    return early + [(draw.randrange(1, 25), draw.uniform(0, 0.05)) for _ in range(n - n // 6)]


# Near the start, after the first chunks, in the middle and near the end.
CHOSEN_MOMENTS = [(0, 1.0), (3, 0.02), (13, 0.0), (24, 0.01)]
KILLS = {"4 chosen": CHOSEN_MOMENTS, "30 random": _random_moments(30)}


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(moments, id=name, marks=[pytest.mark.campaign] * (len(moments) > 4))
        for name, moments in KILLS.items()
    ],
)
def test_runs_killed_at_many_moments_all_end_with_the_same_bytes(moments, tiles_dir, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", KILLER),
            *(tiles_dir, str(tmp_path), str(HELPERS), json.dumps(moments)),
        ],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) == len(moments)
    assert [one["differing"] for one in report] == [[]] * len(report)
    assert not any(one["torn"] for one in report), "what a kill leaves is whole"
    unfinished = [one["chunks"] for one in report if one["died"] and not one["complete"]]
    assert len(unfinished) >= 2 / 3 * len(moments), "most kills came before the end"
    assert len(set(unfinished)) >= min(8, len(moments) // 2), "at different moments"


class _With:
    """A reader whose rows have other bytes."""

    def __init__(self, reader, data):
        self._reader, self._data = reader, data

    def read(self, row):
        data, name = self._reader.read(row)
        return self._data.get(row, data), name


def _encoded(image, form="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


BAD = {
    5: b"",
    8: b"no image",
    9: _encoded(Image.new("RGB", (1, 1))),
    10: _encoded(Image.effect_noise((64, 64), 90).convert("RGB"), "JPEG")[:900],
    11: _encoded(Image.new("RGB", (64, 63))),
    N - 1: b"\xff\xd8\xff",
}


def _broken(tileset, data=BAD):
    return dataclasses.replace(tileset, reader=_With(tileset.reader, data))


@pytest.mark.parametrize(
    "workers", [0, pytest.param(2, marks=[pytest.mark.campaign, pytest.mark.multiprocess])]
)
def test_skipped_images_are_listed_and_left_out_of_the_manifest(tileset, tmp_path, workers):
    whole = run(tileset, tmp_path / "whole").read()
    # Rows 8 to 11 are a whole chunk.
    found = run(_broken(tileset), tmp_path, on_bad_image="skip", workers=workers)
    good = np.setdiff1d(np.arange(N), list(BAD))
    keys = tileset.manifest.keys.to_pylist()
    assert found.manifest.keys.to_pylist() == [keys[row] for row in good]
    assert len(found) == len(good)
    np.testing.assert_array_equal(found.read(), whole[good])
    np.testing.assert_array_equal(found.read(np.array([6, 0, 25])), whole[good[[6, 0, 25]]])
    cached = found.caching(2**20)
    np.testing.assert_array_equal(cached.read(np.array([6, 0, 25])), whole[good[[6, 0, 25]]])
    assert np.isnan(found.array.read().result()[list(BAD)]).all(), "never silently zero"
    listed = found.info["bad_rows"]
    assert [bad["row"] for bad in listed] == sorted(BAD)
    assert listed[0]["name"].endswith("parquet row 5")
    assert "cannot be decoded" in listed[0]["reason"]
    assert "expected 64 x 64 pixels" in listed[2]["reason"]
    assert "found 1 x 1" in listed[2]["reason"]


@pytest.mark.slow
def test_what_is_evaluated_has_no_skipped_patch(tileset, tmp_path):
    found = run(_broken(tileset), tmp_path, on_bad_image="skip")
    (path,) = evaluation.evaluate_store(
        found,
        model="projection",
        dataset="d",
        output=str(tmp_path / "results"),
        settings=evaluation.Settings(k=1),
    ).paths
    assert read_result(path).n_samples == N - len(BAD)


def test_a_run_that_stopped_at_a_bad_image_goes_on_with_skip(tileset, tmp_path):
    message = r"parquet row 5: cannot be decoded .* --on_bad_image=skip"
    with pytest.raises(InputError, match=message):
        run(_broken(tileset), tmp_path)
    resumed = run(_broken(tileset), tmp_path, on_bad_image="skip")
    fresh = run(_broken(tileset), tmp_path / "fresh", on_bad_image="skip")
    assert files_of(resumed.path) == files_of(fresh.path)
    assert {f"bad_rows/{chunk}.json" for chunk in (1, 2, 7)} <= set(files_of(fresh.path))


def test_a_skipped_image_that_was_mended_before_its_chunk_was_written_counts(tileset, tmp_path):
    broken = run(_broken(tileset), tmp_path, on_bad_image="skip")
    path = pathlib.Path(broken.path)
    info = store_files.read_info(str(path))
    del info["bad_rows"]
    store_files.write_info(str(path), info | {"complete": False})
    shutil.rmtree(path / "embeddings" / "c" / "2")  # its list is there, its rows are not
    mended = _broken(tileset, {row: BAD[row] for row in (5, N - 1)})
    found = run(mended, tmp_path, on_bad_image="skip")
    assert [bad["row"] for bad in found.info["bad_rows"]] == [5, N - 1]
    assert len(found) == N - 2


def test_a_tileset_of_bad_images_alone_is_an_error(tileset, tmp_path):
    broken = _broken(tileset, dict.fromkeys(range(N), b"no image"))
    with pytest.raises(InputError, match="none that can be used among 32"):
        run(broken, tmp_path, on_bad_image="skip")


def test_cmyk_and_turned_images_are_read_as_pil_reads_them(tileset, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    data = {
        3: _encoded(noise.convert("CMYK"), "JPEG"),
        4: _encoded(noise, "JPEG", exif=exif),
        6: _encoded(noise.convert("L"), "JPEG"),
    }
    odd = _broken(tileset, data)
    found = run(odd, tmp_path)
    for row, encoded in data.items():
        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        np.testing.assert_array_equal(decode_all(odd)[row], pixels)
    encoder = projection()
    expected = np.asarray(encoder.apply(encoder.params, decode_all(odd)))
    np.testing.assert_allclose(found.read(), expected, rtol=0, atol=1e-5)
    assert "bad_rows" not in found.info


def test_a_truncated_parquet_file_is_named_even_with_skip(tiles_dir, tmp_path):
    source = next(pathlib.Path(tiles_dir).glob("*.parquet"))
    data = source.read_bytes()
    (tmp_path / source.name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"{source.name}: cannot be read as Parquet"):
        images.open_tileset(str(tmp_path))


def _meanwhile(monkeypatch, act):
    """Do something once, after a run has opened its store and before it reads tiles."""
    read, done = tile_batches.read_batches, []

    def read_meanwhile(*args, **kwargs):
        if not done:
            done.append(None)
            act()
        return read(*args, **kwargs)

    monkeypatch.setattr(tile_batches, "read_batches", read_meanwhile)


def test_a_second_run_shares_the_store_and_each_may_complete_it(tileset, tmp_path, monkeypatch):
    whole = run(tileset, tmp_path / "whole", projection())
    _meanwhile(monkeypatch, lambda: run(tileset, tmp_path))
    shared = run(tileset, tmp_path)
    assert files_of(shared.path) == files_of(whole.path)
    # The same while a complete store is being replaced: all write beside it.
    _meanwhile(monkeypatch, lambda: run(tileset, tmp_path, overwrite=True))
    assert files_of(run(tileset, tmp_path, overwrite=True).path) == files_of(whole.path)


def test_what_a_run_did_not_write_is_taken_by_another(tileset, tmp_path, monkeypatch):
    """A run holds chunks when another one has done all the others."""
    whole = run(tileset, tmp_path / "whole", projection())
    options = {"manifest": tileset.manifest, "dim": 16, "chunk_rows": 4, "shared": True}
    identity = {"encoder": projection().identity, "source": tileset.identity}
    settings = {"batch_size": 4, "device": {"kind": "cpu", "count": 1}}
    path = str(tmp_path / "projection" / "d")
    with store_writer.create_store(path, identity=identity, settings=settings, **options) as other:
        assert other.take(2)
        assert other.take(5)
        assert not other.take(5)
        who = f"{socket.gethostname()} (process {os.getpid()})"
        state = store_state.read_state(path, projection().identity, tileset)
        assert state.at_work == (f"{who}, with 2 chunks that are missing",)
        waited = []
        monkeypatch.setattr(forward_pass, "LOOK_EVERY_S", 0.0)
        monkeypatch.setattr(forward_pass.time, "sleep", lambda s: waited.append(other.close()))
        shared = run(tileset, tmp_path)
    assert waited, "the other's chunks were waited for, until it left"
    assert store_state.read_state(path, projection().identity, tileset).at_work == ()
    assert files_of(shared.path) == files_of(whole.path)


def test_another_configuration_is_refused_while_a_store_is_written(tileset, tmp_path, monkeypatch):
    refused = []

    def begin_another():
        with pytest.raises(InputError, match=r"\(process \d+\) is writing this store") as error:
            run(tileset, tmp_path, projection(scale=2.0), overwrite=True)
        refused.append(error)

    _meanwhile(monkeypatch, begin_another)
    assert run(tileset, tmp_path).info["complete"] is True
    assert len(refused) == 1


def test_a_store_that_is_removed_while_it_is_written_ends_the_run(tileset, tmp_path, monkeypatch):
    _meanwhile(monkeypatch, lambda: shutil.rmtree(tmp_path / "projection"))
    with pytest.raises(InputError, match="was removed or replaced"):
        run(tileset, tmp_path)


def test_a_run_that_failed_leaves_no_lock(tileset, tmp_path):
    with pytest.raises(InputError):
        run(_broken(tileset), tmp_path)
    assert run(tileset, tmp_path).info["complete"] is True
    # Of two stores the second cannot be opened: the first one is let go.
    run(tileset, tmp_path, projection(scale=3.0, name="other"))
    with pytest.raises(InputError, match="another configuration"):
        extract(
            tileset,
            [projection(name="new"), projection(scale=2.0, name="other")],
            root=str(tmp_path),
            dataset="d",
            mesh=mesh_of(),
        )
    store_writer.create_store(
        str(tmp_path / "new" / "d"), manifest=tileset.manifest, dim=3, chunk_rows=4, identity={},
        overwrite=True,
    ).close()  # fmt: skip


LIMITED = """
import resource, runpy, sys
size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
runpy.run_module("experiments.extract", run_name="__main__")
"""


def _extract_by_script(tiles, out, *, limit_bytes=resource.RLIM_INFINITY):
    return subprocess.run(
        [
            *(sys.executable, "-c", LIMITED, str(limit_bytes), "--model=vit_random"),
            *(f"--tileset={tiles}", "--dataset=d", f"--output={out}"),
            *("--pooling=clsmean", "--batch_size=16"),
        ],
        # Programs that are kept would meet the limit too, and lie there cut off.
        env=_environment() | {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.multiprocess
def test_a_full_disk_is_one_message_and_the_run_goes_on_once_there_is_room(tiles_dir, tmp_path):
    # Sidecars are smaller than the limit, a chunk of 16 x 384 float32 is larger.
    full = _extract_by_script(tiles_dir, tmp_path / "out", limit_bytes=20_000)
    assert full.returncode == 1
    message = full.stderr.splitlines()[-1]
    assert message.startswith(f"error: {tmp_path}/out/vit_random_clsmean/d: cannot be written (")
    assert "Raise the limit (ulimit -f)" in message
    assert "Traceback" not in full.stderr
    path = tmp_path / "out" / "vit_random_clsmean" / "d"
    with pytest.raises(InputError, match="unfinished"):
        store.open_store(str(path))
    assert _extract_by_script(tiles_dir, tmp_path / "out").returncode == 0
    assert _extract_by_script(tiles_dir, tmp_path / "whole").returncode == 0
    assert shard_bytes(path) == shard_bytes(tmp_path / "whole" / "vit_random_clsmean" / "d")


def test_a_path_that_cannot_be_written_is_one_message(tileset, tmp_path):
    (tmp_path / "file").write_text("a file, where a folder is wanted")
    with pytest.raises(InputError, match=r"file/projection/d: cannot be written \(.*--output"):
        run(tileset, tmp_path / "file")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        return  # root may write anywhere
    with pytest.raises(InputError, match=r"closed/projection/d: cannot be written \(.*denied"):
        run(tileset, closed)


RSS = """
import sys
import jax
from pathorob_jax.core import devices
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings.extraction import extract
from pathorob_jax.models import registry
made = extract(
    images.open_tileset(sys.argv[1]), [registry.load_encoder("color_stats")], root=sys.argv[2],
    dataset="d", batch_size=32, mesh=devices.make_mesh(jax.devices()[:1]),
)
# Not ru_maxrss: it begins with the peak of the process that started this one.
(peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(made.summaries[0].tiles, peak.split()[1])
"""


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("few", "many"), [(1_000, 4_000), (2_000, 20_000)])
def test_memory_does_not_grow_with_the_number_of_tiles(few, many, tmp_path):
    # 64 KiB a tile once decoded: to keep 3,000 more of them would take 0.2 GiB more.
    rng = np.random.default_rng(0)
    encoded = [
        _encoded(Image.fromarray(rng.integers(0, 256, (148, 148, 3), np.uint8)), "JPEG", quality=30)
        for _ in range(20)
    ]
    peaks = {}
    for n in (few, many):
        folder = tmp_path / str(n)
        folder.mkdir()
        columns = {
            "slide_id": [f"s{i // 100}" for i in range(n)],
            "patch_id": [str(i) for i in range(n)],
            "biological_class": ["ab"[i // 100 % 2] for i in range(n)],
            "medical_center": ["xy"[i // 200 % 2] for i in range(n)],
            "image": [{"bytes": encoded[i % 20], "path": None} for i in range(n)],
        }
        pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=100)
        done = subprocess.run(
            [sys.executable, "-c", RSS, str(folder), str(tmp_path / f"out{n}")],
            # One arena: what many of them keep of freed memory changes from run to run.
            env=_environment() | {"XLA_FLAGS": "", "MALLOC_ARENA_MAX": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        tiles, peaks[n] = map(int, done.stdout.split())
        assert tiles == n
    assert peaks[many] < 1.1 * peaks[few], peaks
