"""The table of formats: who reads each, and how it is told from the others."""

from collections.abc import Callable
from typing import NamedTuple

from pathorob_jax.core import files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import table_files
from pathorob_jax.embeddings.imports import (
    annotated,
    arrays,
    hdf5,
    tables,
    torch_files,
    zarr_arrays,
)
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports.source import Ask, Source

PATHOROB = "pathorob_npz"


class Format(NamedTuple):
    """One format.

    Attributes:
        read: opens a source.
        source: what ``--source`` is.
    """

    read: Callable[[Ask], Source]
    source: str


def _by_manifest(ask: Ask) -> Source:
    raise AssertionError(f"{ask.path} is read by the rows of a manifest")


FORMATS: dict[str, Format] = {
    "trident": Format(hdf5.read_trident, "the job folder, or one features_<encoder> folder"),
    "clam": Format(hdf5.read_clam, "the folder with h5_files (or pt_files)"),
    "atlaspatch": Format(hdf5.read_atlaspatch, "the output folder"),
    "stamp": Format(hdf5.read_stamp, "the feature folder"),
    "slide2vec": Format(torch_files.read_slide2vec, "the run folder"),
    "thunder": Format(hdf5.read_thunder, "embeddings/<dataset>/<model>"),
    "eva": Format(torch_files.read_eva, "the folder with manifest.csv"),
    "anndata": Format(annotated.read_anndata, "the .h5ad or .zarr"),
    "spatialdata": Format(annotated.read_spatialdata, "a .zarr, or the folder of them"),
    "parquet": Format(tables.read_parquet, "the file, or the folder of files"),
    "zarr": Format(annotated.read_zarr, "the array or group"),
    "npz": Format(arrays.read_npz, "the archive, or the folder of one per slide"),
    "pt": Format(torch_files.read_pt, "the file, or the folder of one per slide"),
    "safetensors": Format(arrays.read_safetensors, "the file, or the folder of one per slide"),
    "plismbench": Format(arrays.read_plismbench, "the <export>/<extractor> folder"),
    "croma": Format(arrays.read_croma, "the folder of embeddings.npy and its CSV"),
    "arrow": Format(tables.read_arrow, "the .arrow or .feather file, or the folder of files"),
    "datasets": Format(tables.read_datasets, "the folder of save_to_disk"),
    "npy": Format(arrays.read_npy, "the array; row i belongs to row i of the manifest"),
    PATHOROB: Format(_by_manifest, "the folder that holds one .npz per medical centre"),
}
_ENDINGS = {
    ".npy": "npy",
    ".npz": "npz",
    ".pt": "pt",
    ".pth": "pt",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".h5ad": "anndata",
}


def recognize(path: str) -> str:
    """The format of a source.

    Raises:
        UsageError: it is none that can be told.
        FileNotFoundError: there is no such file or folder.
    """
    if not files.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder of embeddings.")
    found = _of_folder(path) if sources.is_folder(path) else _of_file(path)
    if found is None:
        raise UsageError(
            f"{path}: its format is not recognised. Name it with --format, one of: "
            f"{', '.join(sorted(FORMATS))}."
        )
    return found


def _of_file(path: str) -> str | None:
    ending = "." + path.rpartition(".")[2].lower()
    if ending in hdf5.ENDINGS:
        return _of_hdf5(path)
    return _ENDINGS.get(ending)


def _of_hdf5(path: str) -> str | None:
    with hdf5.open_h5(path) as file:
        names = set(file)
        if "stamp_version" in file.attrs or {"feats", "patch_embeddings"} & names:
            return "stamp"
        if "features" not in names:
            return "thunder" if names and all(name.isdecimal() for name in names) else None
        if not hasattr(file["features"], "shape"):
            return "atlaspatch"
        marks = {*file["features"].attrs, *(file["coords"].attrs if "coords" in names else ())}
        clam = {"patch_level", "custom_downsample"} & marks and not {"patch_size_level0"} & marks
        return "clam" if clam or "/h5_files/" in f"/{path}" else "trident"


def _of_folder(path: str) -> str | None:
    if zarr_arrays.is_zarr(path):
        if files.list_folders(files.join(path, "tables")):
            return "spatialdata"
        kind = zarr_arrays.attributes(path).get("encoding-type")
        return "anndata" if kind == "anndata" else "zarr"
    folders = files.list_folders(path)
    stores = [name for name in folders if zarr_arrays.is_zarr(files.join(path, name))]
    if stores:
        tables_of = files.join(path, stores[0], "tables")
        return "spatialdata" if files.list_folders(tables_of) else None
    names = sources.walk(path, "")
    top = {name for name in names if "/" not in name}
    if "dataset_dict.json" in top or {"dataset_info.json", "state.json"} <= top:
        return "datasets"
    last = {name.rpartition("/")[2] for name in names}
    inner = {part for name in names for part in f"{path.rstrip('/')}/{name}".split("/")[:-1]}
    if "embeddings.npy" in top and any(name.endswith(".csv") for name in top):
        return "croma"
    if "embeddings.h5" in last:
        return "thunder"
    if "features.npy" in last:
        return "plismbench"
    if {"tile_embeddings", "image_embeddings"} & inner or any(
        name.endswith(".meta.json") for name in last
    ):
        return "slide2vec"
    if any(part.startswith((hdf5.PATCH_FOLDER, hdf5.SLIDE_FOLDER)) for part in inner):
        return "trident"
    if {"h5_files", "pt_files"} & inner:
        return "clam"
    if "manifest.csv" in top and _is_eva(files.join(path, "manifest.csv")):
        return "eva"
    first = next((name for name in names if name.endswith(hdf5.ENDINGS)), None)
    if first is not None:
        return _of_hdf5(files.join(path, first))
    for ending, form in _ENDINGS.items():
        if any(name.endswith(ending) for name in names):
            return PATHOROB if ending == ".npz" else form
    return None


def _is_eva(path: str) -> bool:
    table, _ = table_files.read_table(path, needed=())
    return "embeddings" in table.column_names
