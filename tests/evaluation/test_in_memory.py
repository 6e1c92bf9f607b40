"""Evaluation inside a program: equal to the scripts', silent, and without a trace on disk."""

import contextlib
import functools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from machine import DEVICES
from stores import METRICS, make_manifest, make_store
from workers import REPOSITORY, Workers, free_port

import pathorob_jax
from pathorob_jax.core import devices, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import decode, synthetic_tiles
from pathorob_jax.data import manifest as manifests
from pathorob_jax.data import tileset as images
from pathorob_jax.embeddings import extraction, store
from pathorob_jax.evaluation.run import evaluate_store
from pathorob_jax.models.registry import Encoder
from pathorob_jax.results import result_files

CONFIG = synthetic_tiles.SyntheticConfig(n_slides=2, n_tiles=2, tile_px=64)  # 64 tiles
N, PX = 90, 8
SETTINGS = pathorob_jax.Settings(
    k=5,
    draws=200,
    apd=pathorob_jax.ApdSettings(repetitions=2),
    clustering_score=pathorob_jax.ClusteringSettings(trials=2, k_max=3),
    slide_prediction=pathorob_jax.SlideSettings(presets=("mean",)),
)
FEW = pathorob_jax.Settings(k=5, draws=0)
LABELS = ("biological_class", "medical_center", "slide_id")
ALL = {
    "metrics": METRICS,
    "settings": SETTINGS,
}


def embed(params, tiles):
    """Mixtures of an 8 x 8 thumbnail."""
    small = tiles.astype(jnp.float32).reshape(len(tiles), 8, tiles.shape[1] // 8, 8, -1, 3)
    flat = small.mean((2, 4)).reshape(len(tiles), -1) / 255 - 0.5
    return jnp.matmul(flat, params, precision=jax.lax.Precision.HIGHEST)


def mixtures(seed=0, dim=6):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((192, dim)), jnp.float32)


@pytest.fixture(scope="module")
def case():
    """90 random tiles of 2 classes and 2 centres, 5 slides a centre, as a user has them."""
    rng = np.random.default_rng(7)
    bio, center = rng.integers(0, 2, N), rng.integers(0, 2, N)
    manifest = {
        "slide_id": [f"s{i}" for i in center * 5 + rng.integers(0, 5, N)],
        "patch_id": np.arange(N),
        "biological_class": [f"class{i}" for i in bio],
        "medical_center": [f"Center {i}" for i in center],
        "scanner": [f"scanner{i}" for i in rng.integers(0, 2, N)],
    }
    pixels = rng.integers(1, 256, (N, PX, PX, 3), dtype=np.uint8)
    pixels[:, :, :, 0] = np.minimum(pixels[:, :, :, 0], 128 + 100 * bio[:, None, None])
    return pixels, manifest


def plain(records, *, besides=("provenance",)):
    """Records as JSON, without what may differ between equal runs."""
    out = {name: result_files.as_json(record) for name, record in records.items()}
    return {n: {k: v for k, v in one.items() if k not in besides} for n, one in out.items()}


def read(paths):
    return {record.metric: record for record in map(result_files.read_result, paths)}


@pytest.mark.campaign
def test_every_form_of_tileset_gives_what_the_scripts_give(tmp_path):
    path = str(tmp_path / "tiles")
    synthetic_tiles.write_tileset(path, CONFIG)
    tileset = images.open_tileset(path)
    one = devices.make_mesh(jax.devices()[:1])
    encoder = Encoder("projection", mixtures(), embed, {"model": "projection"})
    extraction.extract(tileset, [encoder], root=str(tmp_path), dataset="d", batch_size=24, mesh=one)
    metrics = ["robustness_index", "margins"]
    written = evaluate_store(
        store.open_store(str(tmp_path / "projection" / "d")),
        model="checkpoint",
        dataset="checkpoint",
        output=str(tmp_path / "r"),
        metrics=metrics,
        settings=SETTINGS,
    )
    expected = plain(read(written.paths))
    tiles = pathorob_jax.load_tiles(path)
    assert tiles.images.shape == (64, 64, 64, 3)
    np.testing.assert_array_equal(tiles.images[37], decode.decode_tile(*tileset.reader.read(37)))
    table = tileset.manifest.table.to_pydict()
    jitted = functools.partial(jax.jit(embed), mixtures())
    for form in (path, pathlib.Path(path), tileset, tiles, (jnp.asarray(tiles.images), table)):
        got = pathorob_jax.evaluate(jitted, form, metrics=metrics, batch_size=24, settings=SETTINGS)
        assert plain(got) == expected
    assert 0 < got["robustness_index"].robustness_index < 1
    workers = pathorob_jax.load_tiles(tileset, workers=1)
    np.testing.assert_array_equal(workers.images, tiles.images)


@pytest.mark.slow
def test_all_metrics_equal_those_of_a_store_and_nothing_is_written(case, tmp_path, monkeypatch):
    pixels, manifest = case
    x = np.asarray(embed(mixtures(), pixels))
    kept = make_store(tmp_path / "m" / "d", x, manifests.as_manifest(manifest))
    names = {"model": "m", "dataset": "d"}
    expected = read(evaluate_store(kept, output=str(tmp_path / "r"), **names, **ALL).paths)
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "write_json"):
            patch.setattr(files, name, lambda *_: pytest.fail("a file is written"))
        got = pathorob_jax.evaluate_embeddings(x, manifest, **names, **ALL)
    assert tuple(got) == METRICS
    assert plain(got) == plain(expected)
    for name, record in got.items():
        assert type(record) is type(expected[name])
    # With an output, the same files as the scripts'.
    again = pathorob_jax.evaluate_embeddings(
        x, manifest, output=str(tmp_path / "again"), **names, **ALL
    )
    assert plain(again) == plain(expected)
    folders = (tmp_path / "r", tmp_path / "again")
    here, there = ({str(p.relative_to(f)) for p in f.rglob("*")} for f in folders)
    assert here == there
    draws = [dict(np.load(f / "m/d/robustness_index.draws.npz")) for f in folders]
    np.testing.assert_equal(draws[0], draws[1])


@pytest.mark.slow
def test_the_encoder_is_traced_once_for_all_checkpoints(case):
    traces, shapes = [], set()

    @jax.jit
    def counted(params, tiles):
        traces.append(tiles.shape)
        return embed(params, tiles)

    def watched(params, tiles):
        shapes.add((tiles.shape, tiles.dtype))
        return counted(params, tiles)

    values = []
    for step in range(4):
        got = pathorob_jax.evaluate(
            functools.partial(watched, mixtures(step)), case, batch_size=32, settings=SETTINGS
        )
        values.append(got["robustness_index"].robustness_index)
    assert traces == [(32, PX, PX, 3)]
    assert shapes == {((32, PX, PX, 3), np.dtype(np.uint8))}
    assert len(set(values)) == 4


@pytest.mark.slow
def test_devices_share_batches_and_agree(case, mesh):
    seen = []

    def watched(tiles):
        seen.append(tiles)
        return jax.jit(embed)(mixtures(), tiles)

    both = {"metrics": ["robustness_index", "margins"], "settings": SETTINGS}
    expected = pathorob_jax.evaluate(watched, case, batch_size=4, **both)
    got = pathorob_jax.evaluate(watched, case, batch_size=4 * mesh.size, mesh=mesh, **both)
    assert plain(got) == plain(expected)
    assert {s.data.shape[0] for s in seen[-1].addressable_shards} == {4}
    assert len(seen[-1].addressable_shards) == mesh.size
    if mesh.size == DEVICES:
        # A mesh of the program's own, of two axes: split over both.
        own = jax.make_mesh((DEVICES // 2, 2), ("replica", "model"))
        got = pathorob_jax.evaluate(watched, case, batch_size=4 * DEVICES, mesh=own, **both)
        assert plain(got) == plain(expected)
        assert {s.data.shape[0] for s in seen[-1].addressable_shards} == {4}
        with pytest.raises(
            UsageError, match=f"multiple of the {DEVICES} devices, found {DEVICES + 1}"
        ):
            pathorob_jax.evaluate(watched, case, batch_size=DEVICES + 1, mesh=own)


def test_without_a_mesh_batches_go_where_the_parameters_are(case):
    params = jax.device_put(mixtures(), jax.devices()[3])
    jitted = functools.partial(jax.jit(embed), params)
    expected = pathorob_jax.evaluate(functools.partial(embed, mixtures()), case, settings=SETTINGS)
    got = pathorob_jax.evaluate(jitted, case, settings=SETTINGS)
    assert plain(got) == plain(expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_any_float_is_taken_as_float32(case, dtype):
    x = np.asarray(embed(mixtures(), case[0])).astype(jnp.dtype(dtype))
    start = iter(range(0, N, 30))

    def rows(tiles):
        at = next(start)
        return x[at : at + len(tiles)]

    got = pathorob_jax.evaluate(rows, case, batch_size=30, settings=SETTINGS)
    expected = pathorob_jax.evaluate_embeddings(x.astype(np.float32), case[1], settings=SETTINGS)
    assert plain(got) == plain(expected)


def _spoil(value, row=43):
    """An encoder that gives tile 43 (its first pixel is black, as no other's) another value."""

    def spoiled(tiles):
        mark = (tiles[:, 0, 0] == 0).all(-1) & (tiles.max((1, 2, 3)) > 0)
        return jnp.where(mark[:, None], value, embed(mixtures(), tiles))

    return spoiled


def _shrinking():
    dims = iter((6, 6, 5, 5))
    return lambda tiles: embed(mixtures(dim=next(dims)), tiles)


BAD = {
    "integers": (lambda t: t[:, 0, 0].astype(jnp.int32), r"float\[30, D\], found int32\[30, 3\]"),
    "tokens": (lambda t: t.astype(jnp.float32), r"found float32\[30, 8, 8, 3\]; pool tokens"),
    "no axis": (lambda t: jnp.float32(1), r"found float32\[\]; pool"),
    "no dimension": (lambda t: embed(mixtures(), t)[:, :0], r"found float32\[30, 0\]"),
    "a tuple": (lambda t: (embed(mixtures(), t), None), "found tuple; return the embeddings"),
    "nothing": (lambda t: None, "found NoneType"),
    "a row less": (lambda t: embed(mixtures(), t)[1:], r"float\[30, D\], found float32\[29, 6\]"),
    "fewer dimensions": (_shrinking(), r"from patch .*-60 on: expected float\[30, 6\], found "),
    "NaN": (_spoil(jnp.nan), r"patch s\d-43 \(row 43\) holds NaN or infinite values"),
    "infinite": (_spoil(-jnp.inf), r"patch s\d-43 \(row 43\) holds NaN or infinite values"),
    "zeros": (_spoil(0.0), r"patch s\d-43 \(row 43\) holds only zeros.*diverged"),
    "too long": (
        lambda t: np.full((len(t), 2), 1e300),
        r"patch s\d-0 \(row 0\) holds NaN or infinite",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_an_encoder_must_not_return(case, name):
    fn, message = BAD[name]
    pixels = case[0].copy()
    pixels[43, 0, 0] = 0
    with pytest.raises(InputError, match=f"^embed_fn: .*{message}"):
        pathorob_jax.evaluate(fn, (pixels, case[1]), batch_size=30, settings=SETTINGS)


def test_what_fills_up_the_last_batch_may_be_anything(case):
    def unit(tiles):
        found = embed(mixtures(), tiles)
        return jnp.where(tiles.max((1, 2, 3))[:, None] > 0, found, jnp.nan)

    got = pathorob_jax.evaluate(unit, case, batch_size=64, settings=SETTINGS)
    expected = pathorob_jax.evaluate(
        functools.partial(embed, mixtures()), case, batch_size=N, settings=SETTINGS
    )
    # Batches of 64 and of 90 tiles sum alike here: the products are over 192 values each.
    assert plain(got) == plain(expected)


def test_evaluate_inside_jit_is_refused(case):
    @jax.jit
    def step(params):
        pathorob_jax.evaluate(functools.partial(embed, params), case, settings=SETTINGS)
        return params

    with pytest.raises(UsageError, match="^embed_fn: .*not inside jax.jit"):
        step(mixtures())


def test_requests_that_cannot_be_meant_end_before_any_work(case):
    def never(tiles):
        raise AssertionError

    pixels, manifest = case
    requests = [
        ({"metrics": ["apf"]}, UsageError, "metrics: unknown name 'apf'. Did you mean 'apd'"),
        ({"metrics": "apd"}, UsageError, "expected a list of names, found 'apd'"),
        ({"batch_size": 0}, UsageError, "batch_size: expected a positive"),
        ({"metadata_dir": "x"}, UsageError, "'checkpoint' is none of camelyon"),
        ({"model": "a/b"}, UsageError, "model: expected a plain name"),
        ({"dataset": ""}, UsageError, "dataset: expected a plain name"),
    ]
    for arguments, kind, message in requests:
        with pytest.raises(kind, match=message):
            pathorob_jax.evaluate(never, case, **arguments)
    tilesets = [
        ([pixels, manifest], UsageError, r"pair \(images, manifest\), found list"),
        (
            (pixels / 255, manifest),
            InputError,
            r"uint8\[N, H, W, 3\], found float64\[90, 8, 8, 3\]",
        ),
        ((pixels[:, :, :, 0], manifest), InputError, r"found uint8\[90, 8, 8\]"),
        ((pixels[1:], manifest), InputError, r"one image for each row .* found \(89, 8, 8, 3\)"),
        ((pixels, {"slide_id": ["a"] * N}), InputError, "missing .'patch_id'"),
        ("/nowhere/at/all", FileNotFoundError, "/nowhere/at/all"),
    ]
    for tileset, kind, message in tilesets:
        with pytest.raises(kind, match=message):
            pathorob_jax.evaluate(never, tileset)


@pytest.mark.parametrize("odd", [{"k": 0}, {"k": -1}, {"k": 2.5}, {"seed": -1}, {"draws": -1}])
def test_numbers_out_of_range_are_refused(case, odd):
    [name] = odd
    x = np.ones((N, 2))
    with pytest.raises(UsageError, match=f"{name}: expected"):
        pathorob_jax.evaluate_embeddings(x, case[1], settings=pathorob_jax.Settings(**odd))
    labels = [np.unique(case[1][n], return_inverse=True)[1] for n in LABELS]
    with pytest.raises(UsageError, match=f"{name}: expected"):
        pathorob_jax.robustness_index(
            x, **dict(zip(("biology", "center", "slide"), labels, strict=True)), **odd
        )


@pytest.mark.slow
def test_numbers_do_not_depend_on_order_names_lengths_or_directions(case):
    rng = np.random.default_rng(1)
    x, manifest = np.asarray(embed(mixtures(), case[0])), case[1]
    order = rng.permutation(N)
    turn = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))[0]
    names = {n: sorted({*manifest[n]}) for n in LABELS}
    turned = {n: [f"{n} {9 - names[n].index(v)}" for v in manifest[n]] for n in LABELS}

    def numbers(x, table):
        got = pathorob_jax.evaluate_embeddings(
            x.astype(np.float32), table, settings=FEW, metrics=["robustness_index", "margins"]
        )
        index, margins = got.robustness_index, got.margins
        # Not the vote: its ties go to the first name.
        return (index.robustness_index, index.support), (margins.mari, margins.croma)

    exact, near = numbers(x, manifest)
    for changed, table in (
        (x[order], {n: np.asarray(v)[order].tolist() for n, v in manifest.items()}),
        (x, manifest | turned),
        (x * rng.uniform(0.5, 2, (N, 1)), manifest),
        (1e-7 * x, manifest),
        (x @ turn, manifest),
    ):
        found = numbers(changed, table)
        np.testing.assert_allclose(found[0], exact, rtol=1e-12)
        np.testing.assert_allclose(found[1], near, rtol=1e-5)


def test_embeddings_that_cannot_be_meant(case):
    x = np.asarray(embed(mixtures(), case[0]))
    bad = [
        (x[1:], r"embeddings: expected shape \(90, any\).*found \(89, 6\)"),
        (x.astype(np.int32), "embeddings: expected floats, found int32"),
        (x[:, :0], "one dimension or more"),
        (np.where(np.arange(N)[:, None] == 5, np.nan, x), r"patch s\d-5 \(row 5\) holds NaN"),
    ]
    for embeddings, message in bad:
        with pytest.raises(InputError, match=message):
            pathorob_jax.evaluate_embeddings(embeddings, case[1], settings=SETTINGS)


def test_confounders_and_other_columns(case):
    pixels, manifest = case
    x = np.asarray(embed(mixtures(), pixels))
    settings = pathorob_jax.Settings(k=5, draws=200, confounders=("scanner", "medical_center"))
    manifest = manifest | {"slide_id": manifest["patch_id"]}  # a slide has one scanner
    got = pathorob_jax.evaluate_embeddings(x, manifest, settings=settings)
    assert list(got) == ["robustness_index@scanner", "robustness_index@medical_center"]
    renamed = {("hospital" if k == "medical_center" else k): v for k, v in manifest.items()}
    columns = {"medical_center": "hospital"}
    one = pathorob_jax.evaluate(
        functools.partial(embed, mixtures()),
        (pixels, renamed),
        settings=pathorob_jax.Settings(k=5, draws=200, columns=columns),
    )
    expected = plain(got, besides=("provenance", "dataset"))["robustness_index@medical_center"]
    assert plain(one, besides=("provenance", "dataset"))["robustness_index"] == expected
    scanner = plain(got)["robustness_index@scanner"]
    assert scanner["dataset"] == "checkpoint@scanner"
    assert scanner["robustness_index"] != expected["robustness_index"]


@pytest.mark.slow
def test_subsets_of_the_manifest_are_compared_within(tmp_path, rng):
    # Patches 0..39 lie in subset a, 20..59 in subset b: those between are rows twice.
    bio, center = np.arange(60) % 2, np.arange(60) // 2 % 2
    slide = np.arange(60) // 4 % 4 * 2 + center
    x = rng.normal(size=(60, 5)).astype(np.float32)
    unique = make_manifest(bio, center, slide)
    rows = np.concatenate([np.arange(40), np.arange(20, 60)])
    table = unique.take(rows).table.append_column("subset", [["a"] * 40 + ["b"] * 40])
    table.to_pandas().to_csv(tmp_path / "rows.csv", index=False)
    settings = pathorob_jax.Settings(k=3, draws=200, design="paired")
    [path] = evaluate_store(
        make_store(tmp_path / "e", x, unique),
        model="checkpoint",
        dataset="checkpoint",
        output=str(tmp_path / "r"),
        manifest=str(tmp_path / "rows.csv"),
        settings=settings,
    ).paths
    got = pathorob_jax.evaluate_embeddings(x[rows], table, settings=settings)
    assert plain(got) == plain(read([path]))
    assert list(got["robustness_index"].per_subset) == ["a", "b"]


@contextlib.contextmanager
def _jax_mode(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


MODES = {
    "64 bits": lambda: _jax_mode("jax_enable_x64", True),
    "strict types": lambda: _jax_mode("jax_numpy_dtype_promotion", "strict"),
    "rank promotion": lambda: _jax_mode("jax_numpy_rank_promotion", "allow"),
    "transfer guard": lambda: _jax_mode("jax_transfer_guard", "disallow"),
    "NaN checks": lambda: _jax_mode("jax_debug_nans", True),
    "bfloat16 products": lambda: _jax_mode("jax_default_matmul_precision", "bfloat16"),
    "explicit mesh": lambda: jax.set_mesh(jax.make_mesh((DEVICES,), ("batch",))),
}


@pytest.fixture(scope="module")
def in_default_modes(case):
    """Evaluations of a jitted encoder and of its embeddings, and what both give."""
    params = mixtures()
    x = np.asarray(embed(params, case[0]))
    arguments = ALL | {"metrics": ["robustness_index", "apd", "clustering_score"]}
    mesh = devices.make_mesh(jax.devices()[:2])  # threads for two devices
    jitted = functools.partial(jax.jit(embed), params)
    runs = (
        functools.partial(pathorob_jax.evaluate_embeddings, x, case[1], mesh=mesh, **arguments),
        functools.partial(pathorob_jax.evaluate, jitted, case, settings=SETTINGS),
    )
    return [(run, plain(run())) for run in runs]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_program_change_nothing(mode, in_default_modes):
    with MODES[mode]():
        found = [plain(run()) for run, _ in in_default_modes]
    assert found == [expected for _, expected in in_default_modes]


@pytest.mark.slow
def test_quiet_unless_asked_for(case, caplog, capfd):
    def talking(tiles):
        logging.warning("the program's own line")
        return embed(mixtures(), tiles)

    caplog.set_level("INFO", logger="absl")
    settings = pathorob_jax.Settings(k=80, draws=200)  # more than a slide leaves: a warning
    got = pathorob_jax.evaluate(talking, case, settings=settings)
    assert any("k = 80 exceeds" in text for text in got["robustness_index"].warnings)
    assert {r.getMessage() for r in caplog.records} == {"the program's own line"}
    assert capfd.readouterr().out == ""
    caplog.clear()
    pathorob_jax.evaluate(talking, case, settings=settings, progress=True, model="step_7")
    lines = [r.getMessage() for r in caplog.records]
    assert any("embed step_7: 90/90 tiles" in line for line in lines)
    assert any("k = 80 exceeds" in line for line in lines)


def test_scalars_are_what_a_tracker_logs(case):
    x = np.asarray(embed(mixtures(), case[0]))
    arguments = ALL | {"metrics": ["robustness_index", "margins", "probes", "apd"]}
    records = pathorob_jax.evaluate_embeddings(x, case[1], **arguments)
    index, margins, probes = (records[m] for m in ("robustness_index", "margins", "probes"))
    got = pathorob_jax.scalars(records, prefix="val/")
    assert all(type(value) is float for value in got.values())
    assert {name.split("/")[0] for name in got} == {"val"}
    expected = {
        "robustness_index/robustness_index": index.robustness_index,
        "robustness_index/k": 5.0,
        "robustness_index/robustness_index_low": index.ci95[0],
        "robustness_index/robustness_index_high": index.ci95[1],
        "robustness_index/balanced_accuracy_low": index.companions_ci95["balanced_accuracy"][0],
        "margins/croma_f0_high": margins.croma_f0_ci95[1],
        "probes/center_auc": probes.center_auc,
        "probes/center_auc_high": probes.ci95["center_auc"][1],
        "apd/apd_id": records["apd"].apd_id,
    }
    assert {name: got["val/" + name] for name in expected} == expected
    assert np.isnan(got["val/apd/apd_ood"])  # no centre is out of domain
    # No interval: both ends are NaN, under the same names.
    blind = [f"slide{c}" for c in case[1]["medical_center"]]  # a centre of one slide has no OS
    undefined = pathorob_jax.evaluate_embeddings(
        x, case[1] | {"slide_id": blind}, settings=SETTINGS
    )
    assert undefined["robustness_index"].ci95 is None
    gaps = pathorob_jax.scalars(undefined)
    assert np.isnan(gaps["robustness_index/robustness_index_low"])
    names = {name.removeprefix("val/") for name in got if "/robustness_index/" in name}
    assert set(gaps) == names
    json.dumps(result_files.as_json(undefined["robustness_index"]), allow_nan=False)


WORKER = """
import functools, json, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

port, index, folder = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
import pathorob_jax
from pathorob_jax.core import devices
from pathorob_jax.core.checks import UsageError
from pathorob_jax.results import result_files

held = np.load(f"{folder}/case.npz")
case = held["pixels"], json.loads(str(held["manifest"]))
settings = pathorob_jax.Settings(k=5, draws=200)
embed = jax.jit(lambda mix, tiles: tiles.reshape(len(tiles), -1) / 255 @ mix)
mine = functools.partial(embed, held["mix"])

def refused(word, *arguments, **options):
    try:
        pathorob_jax.evaluate(*arguments, settings=settings, **options)
    except UsageError as error:
        assert str(error).startswith(word), error
    else:
        raise AssertionError(word)

everywhere = devices.make_mesh()
assert everywhere.size == 4
refused("mesh: expected devices of this process", mine, case, mesh=everywhere)
spread = NamedSharding(everywhere, PartitionSpec())
mix = jax.make_array_from_process_local_data(spread, held["mix"], held["mix"].shape)
refused("embed_fn: the embeddings lie on", lambda t: jax.jit(lambda m: m[:64])(mix), case)
if index == "0":  # alone: nothing is exchanged
    local = mix.addressable_data(0)
    found = pathorob_jax.evaluate(functools.partial(embed, local), case, settings=settings)
    record = result_files.as_json(found["robustness_index"])
    with open(f"{folder}/found.json", "w") as stream:
        json.dump(record, stream)
multihost_utils.sync_global_devices("done")
"""


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.multiprocess
def test_one_process_of_several_evaluates_alone(case, tmp_path):
    pixels, manifest = case
    mix = np.random.default_rng(3).standard_normal((192, 6)).astype(np.float32)
    table = {name: np.asarray(values).tolist() for name, values in manifest.items()}
    np.savez(tmp_path / "case.npz", pixels=pixels, mix=mix, manifest=np.array(json.dumps(table)))
    port = free_port()
    Workers(WORKER, [[port, i, tmp_path] for i in range(2)], tmp_path).finish([0, 0], within_s=180)
    found = json.loads((tmp_path / "found.json").read_text())
    x = jax.jit(lambda t: t.reshape(len(t), -1) / 255 @ mix)(pixels)
    expected = pathorob_jax.evaluate_embeddings(x, manifest, settings=SETTINGS)
    # Batches of 64 and of 90 may differ in last bits, neighbours of random tiles do not.
    assert found["robustness_index"] == expected["robustness_index"].robustness_index
    assert found["curve"] == plain(expected)["robustness_index"]["curve"]
    assert found["provenance"]["device"]["count"] == 2


@pytest.mark.slow
def test_the_package_stays_light_and_offers_its_names():
    code = (
        "import sys, pathorob_jax; assert 'jax' not in sys.modules; "
        "assert set(pathorob_jax.__all__) <= set(dir(pathorob_jax)); "
        "from pathorob_jax import evaluate; assert callable(evaluate); "
        "import pathorob_jax.evaluation.run_many; assert pathorob_jax.evaluate is evaluate; "
        "import pathorob_jax.evaluation.apd, pathorob_jax.evaluation.clustering_score; "
        # Two seconds and more, of which the default metrics have no need.
        "assert not {'sklearn', 'scipy.stats', 'flax', 'optax', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pathorob_jax.nonsense  # noqa: B018


@pytest.mark.campaign
@pytest.mark.slow
def test_the_index_rises_in_the_example_of_the_documentation(tmp_path):
    text = (REPOSITORY / "docs" / "tutorials" / "training_flax.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "example.py").write_text("\n".join(blocks))
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"step +(\d+): robustness index (\d\.\d+) \[", done.stdout)
    assert len(steps) >= 3, done.stdout
    values = [float(value) for _, value in steps]
    assert values[-1] > values[0] + 0.1, values
