"""Every format, written as its tool does: bit for bit, with the right labels, and recognised."""

import csv
import json
import pathlib
import shutil
import struct
import zipfile

import buckets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.embeddings import import_formats
from pathorob_jax.embeddings.imports import formats

h5py = pytest.importorskip("h5py")
GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "data" / "anndata"
SLIDES = ("TCGA-b", "TCGA-a", "GTEX 1")
COUNTS = (7, 5, 9)
D = 6
N = sum(COUNTS)


class Case:
    """21 patches of three slides: what a tool knows of them, and their embeddings."""

    def __init__(self, dtype=np.float32):
        self.x = np.random.default_rng(5).standard_normal((N, D)).astype(dtype)
        self.slide = np.repeat(SLIDES, COUNTS)
        self.number = np.concatenate([np.arange(n) for n in COUNTS])
        self.xy = np.stack([self.number * 512, 40 + self.number * 256], axis=1)
        self.classes = [f"class {i % 3}" for i in range(N)]
        self.centers = [f"Centre {i}" for i in np.repeat((0, 1, 0), COUNTS)]
        self.ids = [f"p{i}" for i in self.number]

    def of(self, slide):
        """Rows of a slide."""
        return np.flatnonzero(self.slide == slide)


def write_csv(path, **columns):
    with open(path, "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return str(path)


def labels_of(case, path, *, order=None, **extra):
    """A manifest of the patches, in another order."""
    order = np.random.default_rng(1).permutation(N) if order is None else order
    columns = {
        "slide_id": case.slide,
        "biological_class": case.classes,
        "medical_center": case.centers,
    } | extra
    return write_csv(path, **{n: [v[i] for i in order] for n, v in columns.items()})


def run(tmp_path, source, manifest=None, **given):
    return import_formats.import_embeddings(
        str(source), manifest, root=str(tmp_path / "out"), model="m", dataset="d", **given
    )


def check(store, case, *, places=True):
    """The store holds each patch's own embedding, class, centre and place."""
    assert len(store) == N
    x = store.read()
    order = [np.flatnonzero((case.x.astype(np.float32) == row).all(axis=1)) for row in x]
    assert all(len(rows) == 1 for rows in order)
    rows = np.concatenate(order)
    assert sorted(rows) == list(range(N))
    column = store.manifest.column
    assert column("slide_id").tolist() == case.slide[rows].tolist()
    assert column("biological_class").tolist() == [case.classes[i] for i in rows]
    assert column("medical_center").tolist() == [case.centers[i] for i in rows]
    if places:
        assert column("x").tolist() == [f"{v:g}" for v in case.xy[rows, 0]]
        assert column("y").tolist() == [f"{v:g}" for v in case.xy[rows, 1]]
    return rows


def write_trident(folder, case, *, encoder="uni_v1"):
    """A job folder, one HDF5 file a slide; None is stored as text."""
    features = folder / "20x_256px_0px_overlap" / f"features_{encoder}"
    features.mkdir(parents=True)
    for slide in SLIDES:
        rows = case.of(slide)
        with h5py.File(features / f"{slide}.h5", "w") as file:
            made = file.create_dataset("features", data=case.x[rows], chunks=(1, D))
            made.attrs.update({"name": slide, "encoder": encoder, "savetodir": "None"})
            coords = file.create_dataset("coords", data=case.xy[rows].astype(np.int64))
            coords.attrs.update({"patch_size": 256, "patch_size_level0": 512, "overlap": 0})
    return folder


def write_clam(folder, case):
    (folder / "h5_files").mkdir(parents=True)
    torch = pytest.importorskip("torch")
    (folder / "pt_files").mkdir()
    for slide in SLIDES:
        rows = case.of(slide)
        with h5py.File(folder / "h5_files" / f"{slide}.h5", "w") as file:
            file["features"] = case.x[rows]
            file["coords"] = case.xy[rows].astype(np.int32)
            file["coords"].attrs.update({"patch_size": 256, "patch_level": 0})
        torch.save(torch.from_numpy(case.x[rows]), folder / "pt_files" / f"{slide}.pt")
    return folder


def write_atlaspatch(folder, case):
    (folder / "patches").mkdir(parents=True)
    for slide in SLIDES:
        rows = case.of(slide)
        with h5py.File(folder / "patches" / f"{slide}.h5", "w") as file:
            rest = np.tile([512, 512, 0], (len(rows), 1))
            file["coords"] = np.concatenate([case.xy[rows], rest], axis=1).astype(np.int32)
            file["features/uni_v1"] = case.x[rows]
            file["slide_features/titan"] = case.x[rows].mean(axis=0)
            file.attrs["institution"] = case.centers[rows[0]]
    return folder


def write_stamp(folder, case):
    for i, slide in enumerate(SLIDES):
        rows = case.of(slide)
        (folder / f"cohort{i}").mkdir(parents=True)
        with h5py.File(folder / f"cohort{i}" / f"{slide}.h5", "w") as file:
            file["feats"] = case.x[rows].astype(np.float16)
            file["coords"] = case.xy[rows].astype(np.float32)
            file.attrs.update({"stamp_version": "2.4.0", "extractor": "uni", "unit": "um"})
    return folder


def write_slide2vec(folder, case, *, npz=False):
    torch = pytest.importorskip("torch")
    made = folder / "tile_embeddings"
    made.mkdir(parents=True)
    (folder / "tiles").mkdir()
    for slide in SLIDES:
        rows = case.of(slide)
        if npz:
            np.savez(made / f"{slide}.npz", features=case.x[rows])
        else:
            torch.save(torch.from_numpy(case.x[rows]), made / f"{slide}.pt")
        meta = {"sample_id": slide, "artifact_type": "tile_embeddings", "feature_dim": D}
        (made / f"{slide}.meta.json").write_text(json.dumps(meta | {"num_tiles": len(rows)}))
        xy = case.xy[rows]
        np.savez(folder / "tiles" / f"{slide}.coordinates.npz", x=xy[:, 0], y=xy[:, 1])
    return folder


BY_SLIDE_AND_PLACE = {
    "trident": write_trident,
    "clam": write_clam,
    "atlaspatch": write_atlaspatch,
    "stamp": write_stamp,
    "slide2vec": write_slide2vec,
}


@pytest.mark.parametrize("form", BY_SLIDE_AND_PLACE)
def test_tools_with_a_file_a_slide(tmp_path, form):
    case = Case(np.float16 if form == "stamp" else np.float32)
    source = BY_SLIDE_AND_PLACE[form](tmp_path / "job", case)
    assert formats.recognize(str(source)) == form
    place = {"x": case.xy[:, 0], "y": case.xy[:, 1]}
    store = run(tmp_path, source, labels_of(case, tmp_path / "rows.csv", **place))
    assert store.info["identity"]["source"]["format"] == form
    check(store, case)
    # One row a slide, in another order, and its file's name with the ending.
    case.classes = [f"class {i}" for i in np.repeat((0, 1, 2), COUNTS)]
    first = [case.of(s)[0] for s in reversed(SLIDES)]
    slides = write_csv(
        tmp_path / "slides.csv",
        wsi=[f"{case.slide[i]}.svs" for i in first],
        cls=[case.classes[i] for i in first],
        site=[case.centers[i] for i in first],
    )
    columns = {"slide_id": "wsi", "biological_class": "cls", "medical_center": "site"}
    store = run(tmp_path, source, slides, columns=columns, overwrite=True)
    case.slide = np.asarray([f"{slide}.svs" for slide in case.slide])
    rows = check(store, case)
    numbers = [str(i) for i in case.number[rows]]
    assert store.manifest.column("patch_id").tolist() == numbers


@pytest.mark.parametrize("form", ["trident", "stamp", "slide2vec"])
def test_sources_and_manifests_may_be_remote(tmp_path, monkeypatch, form):
    case = Case(np.float16 if form == "stamp" else np.float32)
    BY_SLIDE_AND_PLACE[form](tmp_path / "job", case)
    labels_of(case, tmp_path / "rows.csv", x=case.xy[:, 0], y=case.xy[:, 1])
    buckets.stand_for(monkeypatch, tmp_path)
    check(run(tmp_path, "s3://bucket/job", "s3://bucket/rows.csv"), case)


def test_slide2vec_writes_npz_too(tmp_path):
    case = Case()
    source = write_slide2vec(tmp_path / "job", case, npz=True)
    place = {"x": case.xy[:, 0], "y": case.xy[:, 1]}
    check(run(tmp_path, source, labels_of(case, tmp_path / "rows.csv", **place)), case)
    meta = source / "tile_embeddings" / f"{SLIDES[0]}.meta.json"
    meta.write_text(json.dumps({"sample_id": SLIDES[0], "num_tiles": 99, "feature_dim": D}))
    with pytest.raises(InputError, match=r"7 rows of 6 dimensions, its \.meta\.json says 99 of 6"):
        run(tmp_path, source, labels_of(case, tmp_path / "rows.csv"), overwrite=True)


def test_atlaspatch_knows_the_institution(tmp_path):
    case = Case()
    source = write_atlaspatch(tmp_path / "job", case)
    case.classes = [f"class {i}" for i in np.repeat((0, 1, 2), COUNTS)]
    first = [case.of(s)[0] for s in SLIDES]
    classes = [case.classes[i] for i in first]
    manifest = write_csv(tmp_path / "s.csv", slide_id=SLIDES, biological_class=classes)
    check(run(tmp_path, source, manifest), case)


def test_thunder(tmp_path):
    case = Case()
    split = tmp_path / "embeddings" / "bach" / "uni" / "train"
    split.mkdir(parents=True)
    with h5py.File(split / "embeddings.h5", "w") as file:
        for i, row in enumerate(case.x):
            file[str(i)] = row
    with h5py.File(split / "labels.h5", "w") as file:
        for i in range(N):
            file[str(i)] = np.int64(i % 3)
    assert formats.recognize(str(tmp_path / "embeddings")) == "thunder"
    case.classes = [str(i % 3) for i in range(N)]
    order = np.random.default_rng(2).permutation(N)
    manifest = write_csv(
        tmp_path / "rows.csv",
        patch_id=order,
        slide_id=case.slide[order],
        medical_center=[case.centers[i] for i in order],
    )
    check(run(tmp_path, tmp_path / "embeddings", manifest), case, places=False)


def test_eva(tmp_path):
    torch = pytest.importorskip("torch")
    case = Case()
    folder = tmp_path / "eva"
    folder.mkdir()
    for i in range(N):
        value = torch.from_numpy(case.x[i : i + 1] if i % 2 else case.x[i])
        torch.save([value] if i % 3 == 0 else value, folder / f"{i}.pt")
    order = np.random.default_rng(2).permutation(N)
    write_csv(
        folder / "manifest.csv",
        origin=[f"{i}.png" for i in order],
        embeddings=[f"{i}.pt" for i in order],
        target=[case.classes[i] for i in order],
        split=["train"] * N,
        wsi_id=case.slide[order],
        site=[case.centers[i] for i in order],
    )
    assert formats.recognize(str(folder)) == "eva"
    store = run(tmp_path, folder, columns={"medical_center": "site"})
    check(store, case, places=False)
    assert store.manifest.column("patch_id").tolist() == list(map(str, order))


def test_eva_with_a_file_a_slide(tmp_path):
    torch = pytest.importorskip("torch")
    case = Case()
    (tmp_path / "eva").mkdir()
    for slide in SLIDES:
        rows = [torch.from_numpy(row) for row in case.x[case.of(slide)]]
        torch.save(rows, tmp_path / "eva" / f"{slide}.pt")
    case.classes = [str(i) for i in np.repeat((0, 1, 0), COUNTS)]
    write_csv(
        tmp_path / "eva" / "manifest.csv",
        origin=[f"{slide}.tiff" for slide in SLIDES],
        embeddings=[f"{slide}.pt" for slide in SLIDES],
        target=["0", "1", "0"],
        split=["train"] * 3,
    )
    first = [case.centers[case.of(slide)[0]] for slide in reversed(SLIDES)]
    slides = write_csv(tmp_path / "s.csv", slide_id=SLIDES[::-1], medical_center=first)
    check(run(tmp_path, tmp_path / "eva", slides), case, places=False)


def test_plismbench(tmp_path):
    case = Case()
    stains, scanners = ("GMH", "GIVH", "HRH"), ("S60", "AT2", "GT450")
    names = [f"{a}_{b}_to_GMH_S60.tif" for a, b in zip(stains, scanners, strict=True)]
    for slide, name in zip(SLIDES, names, strict=True):
        rows = case.of(slide)
        (tmp_path / "uni" / name).mkdir(parents=True)
        tile = np.concatenate([np.full((len(rows), 1), 16), case.xy[rows]], axis=1)
        data = np.concatenate([tile, case.x[rows]], axis=1).astype(np.float32)
        np.save(tmp_path / "uni" / name / "features.npy", data)
    assert formats.recognize(str(tmp_path / "uni")) == "plismbench"
    case.slide = np.repeat(names, COUNTS)
    case.classes, case.centers = np.repeat(stains, COUNTS), np.repeat(scanners, COUNTS)
    store = run(tmp_path, tmp_path / "uni", columns={"biological_class": "stain"})
    check(store, case)
    assert store.manifest.column("patch_id")[1] == "16_512_296"


def test_croma(tmp_path):
    case = Case()
    (tmp_path / "c").mkdir()
    np.save(tmp_path / "c" / "embeddings.npy", case.x)
    write_csv(
        tmp_path / "c" / "manifest.csv",
        sample_id=[f"s{i}" for i in range(N)],
        image_path=[f"{i}.png" for i in range(N)],
        group_id=case.slide,
        label=case.classes,
        hospital=case.centers,
    )
    assert formats.recognize(str(tmp_path / "c")) == "croma"
    check(run(tmp_path, tmp_path / "c", columns={"medical_center": "hospital"}), case, places=False)


def keyed(case):
    return {f"{s}-{p}": row for s, p, row in zip(case.slide, case.ids, case.x, strict=True)}


def test_files_of_one_vector_a_patch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.numpy import save_file

    case = Case()
    vectors = keyed(case)
    order = np.random.default_rng(3).permutation(N)
    shuffled = {list(vectors)[i]: list(vectors.values())[i] for i in order}
    np.savez(tmp_path / "a.npz", **shuffled)
    np.savez_compressed(tmp_path / "b.npz", **shuffled)
    torch.save({k: torch.from_numpy(v) for k, v in shuffled.items()}, tmp_path / "c.pt")
    save_file(shuffled, tmp_path / "d.safetensors")
    manifest = labels_of(case, tmp_path / "rows.csv", patch_id=case.ids)
    for name in ("a.npz", "b.npz", "c.pt", "d.safetensors"):
        assert formats.recognize(str(tmp_path / name)) == name.partition(".")[2]
        store = run(tmp_path, tmp_path / name, manifest, overwrite=True)
        check(store, case, places=False)
    # A bare id that two slides have.
    np.savez(tmp_path / "bare.npz", **dict(zip(case.ids, case.x, strict=True)))
    with pytest.raises(InputError, match=r"patch 'p\d' is of slide .*Name them slide_id-patch_id"):
        run(tmp_path, tmp_path / "bare.npz", manifest, overwrite=True)


def table_of(case, kind):
    x = pa.array(case.x.ravel())
    column = (
        pa.FixedSizeListArray.from_arrays(x, D)
        if kind == "fixed"
        else pa.array(case.x.tolist(), pa.list_(pa.from_numpy_dtype(case.x.dtype)))
    )
    return pa.table(
        {
            "slide_id": case.slide,
            "patch_id": case.ids,
            "biological_class": case.classes,
            "medical_center": case.centers,
            "x": case.xy[:, 0],
            "y": case.xy[:, 1],
            "embedding": column,
        }
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["list", "fixed"])
def test_tables_bring_their_labels(tmp_path, kind, dtype):
    case = Case(dtype)
    table = table_of(case, kind)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    with pa.ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        assert formats.recognize(str(tmp_path / name)) == name.partition(".")[2]
        store = run(tmp_path, tmp_path / name, overwrite=True)
        check(store, case)
        other = case.classes
        case.classes = [f"other {i % 2}" for i in range(N)]
        manifest = labels_of(case, tmp_path / "rows.csv", patch_id=case.ids)
        check(run(tmp_path, tmp_path / name, manifest, overwrite=True), case)
        case.classes = other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    case = Case()
    features = datasets.Features(
        {
            "slide_id": datasets.Value("string"),
            "patch_id": datasets.Value("string"),
            "biological_class": datasets.ClassLabel(names=sorted(set(case.classes))),
            "medical_center": datasets.Value("string"),
            "embedding": datasets.Sequence(datasets.Value("float32"), length=D),
        }
    )
    columns = {n: table_of(case, "list").column(n).to_pylist() for n in features}
    made = datasets.Dataset.from_dict(columns, features=features).shuffle(seed=1)
    made.save_to_disk(str(tmp_path / "one"), num_shards=2)
    halves = {"train": made.select(range(9)), "test": made.select(range(9, N))}
    datasets.DatasetDict(halves).save_to_disk(str(tmp_path / "two"))
    for name in ("one", "two"):
        assert formats.recognize(str(tmp_path / name)) == "datasets"
        check(run(tmp_path, tmp_path / name, overwrite=True), case, places=False)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore")
def test_zarr(tmp_path, version):
    zarr = pytest.importorskip("zarr")
    case = Case(np.float16)
    root = zarr.open_group(str(tmp_path / "z.zarr"), mode="w", zarr_format=version)
    root.create_array("embeddings", data=case.x, chunks=(4, D))
    for name, values in (
        ("slide_id", case.slide),
        ("patch_id", case.ids),
        ("biological_class", case.classes),
        ("medical_center", case.centers),
    ):
        made = root.create_array(name, shape=(N,), chunks=(8,), dtype=str)
        made[:] = np.asarray(values, object).astype("T")
    root.create_array("coords", data=case.xy)
    assert formats.recognize(str(tmp_path / "z.zarr")) == "zarr"
    check(run(tmp_path, tmp_path / "z.zarr"), case)
    zarr.create_array(str(tmp_path / "a.zarr"), data=case.x, zarr_format=version)
    rows = labels_of(case, tmp_path / "r.csv", order=range(N), patch_id=case.ids)
    check(run(tmp_path, tmp_path / "a.zarr", rows, overwrite=True), case, places=False)


@pytest.mark.parametrize("name", ["small.h5ad", "small.v2.zarr", "small.v3.zarr"])
def test_anndata(tmp_path, name):
    assert formats.recognize(str(GOLDEN / name)) == "anndata"
    columns = {"slide_id": "slide", "biological_class": "tissue", "medical_center": "hospital"}
    store = run(tmp_path, GOLDEN / name, columns=columns)
    x = np.load(GOLDEN / "x.npy")
    np.testing.assert_array_equal(store.read(), x)
    row = np.arange(24)
    column = store.manifest.column
    assert column("slide_id").tolist() == [f"slide {i // 6}" for i in row]
    assert column("biological_class").tolist() == [("gland", "stroma", "tumör")[i % 3] for i in row]
    assert column("medical_center").tolist() == [f"Centre {i // 12}" for i in row]
    assert column("x").tolist() == [str(i * 256) for i in row]
    assert column("note").tolist() == ["" if i % 4 else str(i) for i in row]
    named = run(tmp_path, GOLDEN / name, columns=columns, encoder="X_uni", overwrite=True)
    np.testing.assert_array_equal(named.read(), (x * 2).astype(np.float16).astype(np.float32))
    with pytest.raises(InputError, match=r"has no obsm array 'X_vir'.*one of: X_uni"):
        run(tmp_path, GOLDEN / name, columns=columns, encoder="X_vir", overwrite=True)


def polygon(x, y):
    corners = [(x, y), (x, y + 9), (x + 9, y + 9), (x + 9, y), (x, y)]
    return struct.pack("<BIII10d", 1, 3, 1, 5, *(v for c in corners for v in c))


def test_spatialdata(tmp_path):
    for i in range(2):
        root = tmp_path / "stores" / f"slide {i}.zarr"
        (root / "tables").mkdir(parents=True)
        (root / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
        shutil.copytree(GOLDEN / "small.v3.zarr", root / "tables" / "uni_tiles")
        shutil.rmtree(root / "tables" / "uni_tiles" / "obsm" / "spatial")
        (root / "shapes" / "tiles").mkdir(parents=True)
        back = range(23, -1, -1)
        outlines = [polygon(float(j * 7), float(j * 3)) for j in back]
        table = pa.table({"tile_id": [j * 10 for j in back], "geometry": outlines})
        pq.write_table(table, root / "shapes" / "tiles" / "shapes.parquet")
    assert formats.recognize(str(tmp_path / "stores")) == "spatialdata"
    manifest = write_csv(
        tmp_path / "s.csv",
        slide_id=["slide 1", "slide 0"],
        biological_class=["b", "a"],
        medical_center=["B", "A"],
    )
    store = run(tmp_path, tmp_path / "stores", manifest, encoder="uni")
    np.testing.assert_array_equal(store.read(), np.tile(np.load(GOLDEN / "x.npy"), (2, 1)))
    column = store.manifest.column
    assert column("biological_class").tolist() == ["a"] * 24 + ["b"] * 24
    assert column("patch_id").tolist() == [str(j * 10) for j in range(24)] * 2
    assert column("y").tolist() == [str(j * 3) for j in range(24)] * 2


@pytest.mark.parametrize("version", [2, 3])
def test_spatialdata_as_it_writes_itself(tmp_path, version):
    folder = GOLDEN.parent / "spatialdata"
    with zipfile.ZipFile(folder / "small.zip") as archive:
        archive.extractall(tmp_path)
    source = tmp_path / f"slide v{version}.zarr"
    assert formats.recognize(str(source)) == "spatialdata"
    with pytest.raises(InputError, match="--encoder: uni_big_tiles, virchow_big_tiles"):
        run(tmp_path, source)
    named = {"biological_class": "tissue"}
    slides = {"slide_id": [f"slide v{version}"], "medical_center": ["A"]}
    store = run(tmp_path, source, slides, columns=named, encoder="virchow")
    column = store.manifest.column
    tile = column("patch_id").astype(int)
    assert sorted(tile) == list(range(7)) != tile.tolist()
    np.testing.assert_array_equal(store.read(), 2 * np.load(folder / "x.npy")[tile])
    assert column("x").tolist() == [str(512 * i) for i in tile]
    assert column("y").tolist() == [str(256 * (i % 3)) for i in tile]
    assert column("biological_class").tolist() == [("gland", "tumör")[i % 2] for i in tile]


def test_what_no_one_wrote_is_not_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        UsageError, match=r"not recognised\. Name it with --format, one of: anndata"
    ):
        run(tmp_path, tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="nothing: no such file or folder of embeddings"):
        run(tmp_path, tmp_path / "nothing")


@pytest.mark.slow
def test_the_table_has_the_published_names():
    published = (
        "trident, clam, atlaspatch, stamp, slide2vec, thunder, eva, anndata, spatialdata, parquet, "
        "zarr, npz, pt, safetensors, plismbench, croma, arrow, datasets, npy, pathorob_npz"
    )
    assert ", ".join(formats.FORMATS) == published
