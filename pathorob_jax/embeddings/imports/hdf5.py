"""HDF5 files of one slide each: TRIDENT, CLAM, AtlasPatch, STAMP; and THUNDER's, of one tile a key.

Layouts: TRIDENT ``features_<encoder>/<slide>.h5`` with ``features`` [N, D] and ``coords`` [N, 2];
CLAM ``h5_files/<slide>.h5`` with the same; AtlasPatch ``patches/<slide>.h5`` with
``features/<encoder>`` and ``coords`` [N, 5] (x, y, width, height, level); STAMP ``<slide>.h5`` with
``feats`` (or ``patch_embeddings``) and ``coords`` in micrometres; THUNDER
``<split>/embeddings.h5`` with one vector a key and ``labels.h5`` with one number a key.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, CLASS
from pathorob_jax.embeddings.imports import source as sources
from pathorob_jax.embeddings.imports import torch_files
from pathorob_jax.embeddings.imports.source import Ask, Piece, Source, reading

ENDINGS = (".h5", ".hdf5")
FEATURES = ("features", "feats", "patch_embeddings")
PATCH_FOLDER, SLIDE_FOLDER = "features_", "slide_features_"


@contextlib.contextmanager
def open_h5(path: str) -> Iterator[Any]:
    """An open file.

    Raises:
        InputError: h5py is not installed, or the file is damaged.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{path}: reading HDF5 needs h5py: pip install 'pathorob-jax[hdf5]'."
        ) from error
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(sources.open_binary(path))
        with reading(path):
            file = stack.enter_context(h5py.File(stream, "r"))
        with reading(path):
            yield file


def read_trident(ask: Ask) -> Source:
    """TRIDENT's job folder, one of its ``features_<encoder>`` folders, or one file of it."""
    if not sources.is_folder(ask.path):
        return _read_slides(ask, ask.path, [""])
    name = ask.path.rstrip("/").rpartition("/")[2]
    if name.startswith((PATCH_FOLDER, SLIDE_FOLDER)):
        return _read_slides(ask, ask.path, sources.walk(ask.path, *ENDINGS, ".pt"))
    folders: dict[str, list[str]] = {}
    for path in sources.walk(ask.path, *ENDINGS, ".pt"):
        folder = path.rpartition("/")[0]
        if folder.rpartition("/")[2].startswith((PATCH_FOLDER, SLIDE_FOLDER)):
            folders.setdefault(folder, []).append(path)
    if not folders:
        return _read_slides(ask, ask.path, sources.walk(ask.path, *ENDINGS, ".pt"))
    tile = [f for f in folders if f.rpartition("/")[2].startswith(PATCH_FOLDER)]
    encoder_of = {f: f.rpartition("/")[2].partition("features_")[2] for f in folders}
    among = [f for f in tile if ask.encoder in (None, encoder_of[f])] or (
        [f for f in folders if ask.encoder in (None, encoder_of[f])]
        if ask.encoder or not tile
        else []
    )
    encoder = sources.choose(
        sorted({encoder_of[f] for f in among or folders}),
        ask.encoder,
        where=ask.path,
        what="feature folder",
    )
    among = [f for f in among if encoder_of[f] == encoder]
    if len(among) > 1:
        raise InputError(
            f"{ask.path}: holds features of {encoder} in {len(among)} folders: {', '.join(among)}. "
            "Give one of them as --source."
        )
    return _read_slides(ask, ask.path, folders[among[0]])


def read_clam(ask: Ask) -> Source:
    """CLAM's folder with ``h5_files`` (or only ``pt_files``), one of the two, or one file."""
    if not sources.is_folder(ask.path):
        return _read_slides(ask, ask.path, [""])
    found = sources.walk(ask.path, *ENDINGS, ".pt")
    kept = [p for p in found if f"/{p}".rpartition("/")[0].endswith("/h5_files")] or [
        p for p in found if f"/{p}".rpartition("/")[0].endswith("/pt_files")
    ]
    return _read_slides(ask, ask.path, kept or found)


def read_stamp(ask: Ask) -> Source:
    """STAMP's feature folder, with its subfolders, or one file; coordinates are micrometres."""
    inside = sources.is_folder(ask.path)
    return _read_slides(ask, ask.path, sources.walk(ask.path, *ENDINGS) if inside else [""])


def _read_slides(ask: Ask, root: str, paths: Sequence[str]) -> Source:
    """One piece for each file. Of a slide that has ``.h5`` and ``.pt``, the former is read."""
    with_coords = {p.rpartition(".")[0] for p in paths if p.endswith(ENDINGS)}
    paths = [p for p in paths if not (p.endswith(".pt") and p.rpartition(".")[0] in with_coords)]
    pieces = []
    for path in paths:
        where = files.join(root, path) if path else root
        if where.endswith(".pt"):
            pieces.append(torch_files.open_rows(where)._replace(slide=sources.stem(where)))
        else:
            pieces.append(_open_slide(where, ask.encoder))
    _check_slides_once(pieces)
    return Source(ask.path, pieces, sources.digest_files(root, paths))


def _check_slides_once(pieces: Sequence[Piece]) -> None:
    first: dict[str | None, str] = {}
    for piece in pieces:
        other = first.setdefault(piece.slide, piece.where)
        if other != piece.where:
            raise InputError(
                f"{piece.where}: {other} is of slide {piece.slide!r}, too. Give the folder of one "
                "of them as --source."
            )


def _open_slide(path: str, encoder: str | None = None) -> Piece:
    with open_h5(path) as file:
        name = next((key for key in FEATURES if key in file), None)
        if name is None:
            raise InputError(
                f"{path}: expected one of {', '.join(FEATURES)}, found {', '.join(file) or 'none'}."
            )
        if not hasattr(file[name], "shape"):
            inner = sources.choose(list(file[name]), encoder, where=f"{path}: {name}", what="array")
            name = f"{name}/{inner}"
        shape = sources.flat_shape(file[name].shape)
        n_rows, dim = sources.check_rows(f"{path}: {name}", shape, file[name].dtype)
        coords = _coords(path, file["coords"]) if "coords" in file and n_rows else None
        if coords is not None and len(file[name].shape) == 1 and len(coords) != 1:
            coords = None  # of the patches behind one embedding of the slide
        columns = {k: str(file.attrs[k]) for k in ("institution", "stain") if k in file.attrs}
    return Piece(
        path, n_rows, dim, _taker(path, name), sources.stem(path), coords=coords, columns=columns
    )


def _coords(path: str, dataset: Any) -> np.ndarray:
    """number[N, 2]: the first two columns of 2, 4 or 5."""
    values = np.asarray(dataset)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2 or values.shape[1] not in (2, 4, 5) or values.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: coords: expected numbers of shape (rows, 2), found {values.dtype} of shape "
            f"{values.shape}."
        )
    return values[:, :2]


def _taker(path: str, name: str) -> sources.Take:
    def take(rows: np.ndarray) -> np.ndarray:
        with open_h5(path) as file:
            data = file[name]
            if data.ndim == 1:
                return np.asarray(data)[None][rows]
            if data.ndim == 3:
                return sources.read_runs(rows, lambda start, stop: data[0, start:stop])
            return sources.read_runs(rows, lambda start, stop: data[start:stop])

    return take


def read_atlaspatch(ask: Ask) -> Source:
    """AtlasPatch's output folder, its ``patches`` folder, or one file."""
    paths = sources.walk(ask.path, *ENDINGS) if sources.is_folder(ask.path) else [""]
    kept = [p for p in paths if f"/{p}".rpartition("/")[0].endswith("/patches")] or paths
    pieces = [_open_slide(files.join(ask.path, p) if p else ask.path, ask.encoder) for p in kept]
    _check_slides_once(pieces)
    digest = sources.digest_files(ask.path, kept)
    return Source(ask.path, pieces, digest, names={CENTER: "institution"})


def read_thunder(ask: Ask) -> Source:
    """THUNDER's ``embeddings/<dataset>/<model>`` folder of splits, or one split's folder."""
    found = [p for p in sources.walk(ask.path, ".h5") if f"/{p}".endswith("/embeddings.h5")]
    models = sorted({"/".join(p.split("/")[:-2]) for p in found if p.count("/") > 1})
    if models:
        of = {model.rpartition("/")[2]: model for model in models}
        model = of[sources.choose(sorted(of), ask.encoder, where=ask.path, what="folder")]
        found = [p for p in found if p.startswith(f"{model}/")]
    if not found:
        raise InputError(f"{ask.path}: expected <split>/embeddings.h5, found none.")
    pieces, used = [], []
    for path in found:
        folder = files.join(ask.path, path).rpartition("/")[0]
        split = f"/{path}".split("/")[-2]
        labels = f"{folder}/labels.h5"
        pieces.append(_open_split(f"{folder}/embeddings.h5", labels, split, len(found) > 1))
        used.append(path)
        if files.exists(labels):
            used.append(path.removesuffix("embeddings.h5") + "labels.h5")
    digest = sources.digest_files(ask.path, used)
    return Source(ask.path, pieces, digest, names={CLASS: "label"})


def _open_split(path: str, labels: str, split: str, several: bool) -> Piece:
    """One vector a key; keys are numbers from 0, in text."""
    with open_h5(path) as file:
        keys = sorted(file, key=lambda key: (len(key), key))
        shapes = {key: file[key].shape for key in keys[:1]}
        dim = 0
        for key, shape in shapes.items():
            _, dim = sources.check_rows(
                f"{path}: {key}", sources.flat_shape(shape), file[key].dtype
            )
    columns: dict[str, Any] = {"split": split} if several else {}
    if files.exists(labels):
        with open_h5(labels) as file:
            lacking = [key for key in keys if key not in file]
            if lacking:
                raise InputError(f"{labels}: lacks tile {lacking[0]} of {path}. Extract again.")
            columns["label"] = [str(np.asarray(file[key]).reshape(-1)[0]) for key in keys]

    def take(rows: np.ndarray) -> np.ndarray:
        with open_h5(path) as file:
            out = []
            for row in rows:
                value = np.asarray(file[keys[row]]).reshape(-1)
                if value.size != dim:
                    raise InputError(
                        f"{path}: tile {keys[row]} has {value.size} dimensions, the first {dim}. "
                        "All must come from one encoder."
                    )
                out.append(value)
            return np.stack(out)

    ids = [f"{split}/{key}" for key in keys] if several else keys
    return Piece(path, len(keys), dim, take, patches=ids, columns=columns)
