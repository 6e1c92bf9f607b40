"""AnnData's ``.h5ad``, written with h5py: X, ``obs`` of the manifest, and the store's origin.

The encodings are those of AnnData's on-disk specification: ``array`` 0.2.0, ``dataframe`` 0.2.0
with ``string-array`` and ``categorical`` columns, ``dict`` 0.1.0.
"""

import json
from typing import Any

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import PATCH
from pathorob_jax.embeddings.exports.blocks import columns_of, read_blocks
from pathorob_jax.embeddings.store import Store

INDEX = "_index"
_EMPTY = ("layers", "obsm", "obsp", "varm", "varp")


def write_anndata(store: Store, path: str) -> None:
    """Write a store as ``.h5ad``.

    ``X`` is float32[N, D]; the index of ``obs`` is ``slide_id-patch_id``; ``uns["store"]`` is JSON
    of the encoder, its source and the versions.

    Raises:
        InputError: h5py is not installed, or a column's name is none for HDF5.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{store.path}: writing .h5ad needs h5py: pip install 'pathorob-jax[hdf5]'."
        ) from error
    columns = columns_of(store.manifest, INDEX, form="anndata")
    for name in columns:
        if "/" in name or name == ".":
            raise InputError(
                f"{store.path}: HDF5 takes '/' and '.' in the column {name!r} for folders. Rename "
                "it, or export to parquet or npz."
            )
    with h5py.File(path, "w") as file:
        _encode(file, "anndata", "0.1.0")
        x = file.create_dataset("X", (len(store), store.dim), np.float32)
        _encode(x, "array", "0.2.0")
        for block in read_blocks(store):
            x[block.start : block.start + len(block.rows)] = block.embeddings
        _write_frame(file.create_group("obs"), store.manifest.keys.to_pylist(), columns)
        _write_frame(file.create_group("var"), [str(i) for i in range(store.dim)], {})
        for name in _EMPTY:
            _encode(file.create_group(name), "dict", "0.1.0")
        uns = file.create_group("uns")
        _encode(uns, "dict", "0.1.0")
        origin = json.dumps(store.provenance(), sort_keys=True)
        _encode(uns.create_dataset("store", data=origin, dtype=h5py.string_dtype()), "string")


def _encode(item: Any, kind: str, version: str = "0.2.0") -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version


def _write_frame(group: Any, index: list[str], columns: dict[str, list[str]]) -> None:
    import h5py

    _encode(group, "dataframe")
    group.attrs["_index"] = INDEX
    # An empty list of names must still be one of text.
    names = np.array(list(columns), dtype=object)
    group.attrs.create("column-order", names, dtype=h5py.string_dtype())
    _write_texts(group, INDEX, index)
    for name, values in columns.items():
        categories = sorted(set(values))
        if name == PATCH or len(categories) > len(values) // 2:
            _write_texts(group, name, values)
            continue
        code_of = {text: code for code, text in enumerate(categories)}
        column = group.create_group(name)
        _encode(column, "categorical")
        column.attrs["ordered"] = False
        _write_texts(column, "categories", categories)
        codes = np.array([code_of[value] for value in values], np.int32)
        _encode(column.create_dataset("codes", data=codes), "array")


def _write_texts(group: Any, name: str, values: list[str]) -> None:
    import h5py

    _encode(
        group.create_dataset(name, data=np.array(values, object), dtype=h5py.string_dtype()),
        "string-array",
    )
