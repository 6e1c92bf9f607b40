"""Write embedding stores in the formats of other tools, whole or not at all.

``FORMATS`` names the formats; ``write_features`` writes PathoROB's tree of features. All are read
back by ``import_formats``, bit for bit.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import logging

from pathorob_jax.core import checks, faults, replacing
from pathorob_jax.embeddings import store_search
from pathorob_jax.embeddings.exports import annotated, archives, tables
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_search import Place

FEATURES = "features"


class Format(NamedTuple):
    """One format.

    Attributes:
        ending: of the file's name.
        write: (store, path) -> the file.
    """

    ending: str
    write: Callable[[Store, str], None]


FORMATS: dict[str, Format] = {
    "anndata": Format(".h5ad", annotated.write_anndata),
    "parquet": Format(".parquet", tables.write_parquet),
    "npz": Format(".npz", archives.write_npz),
}


def export_embeddings(
    embeddings: Sequence[str],
    *,
    form: str,
    output: str,
    datasets: Sequence[str] = (),
    overwrite: bool = False,
) -> list[str]:
    """Write stores as ``<output>/<model>/<dataset>`` with the ending of the format.

    Memory holds a few blocks of rows, whatever the store holds.

    Args:
        embeddings: folders ``<root>``, ``<root>/<model>`` or ``<root>/<model>/<dataset>``.
        form: a key of ``FORMATS``.
        output: local folder.
        datasets: names of datasets; empty: all.
        overwrite: replace files that are there.

    Returns:
        Paths of the files.

    Raises:
        UsageError: unknown format.
        FileNotFoundError: there is no store.
        InputError: a file is there already, a store is damaged, or its columns do not fit.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> np.save("x.npy", np.random.default_rng(0).normal(size=(48, 8)))
    >>> _ = pr.import_embeddings("x.npy", rows, root="embeddings", model="mine", dataset="ours")
    >>> pr.export_embeddings(["embeddings"], form="parquet", output="out")
    ['out/mine/ours.parquet']
    """
    checks.check_known(form, FORMATS, what="format")
    ending, write = FORMATS[form]
    places = store_search.find_all(embeddings, datasets)
    paths = [os.path.join(output, p.model, f"{p.dataset}{ending}") for p in places]
    for path in paths:
        replacing.check_place(path, overwrite=overwrite)
    for place, path in zip(places, paths, strict=True):
        store = open_store(place.path)
        with replacing.new_file(path) as fresh, faults.writing(path):
            write(store, fresh)
        logging.info("%s: %d embeddings of %d dimensions", path, len(store), store.dim)
    return paths


def export_features(
    embeddings: Sequence[str], *, output: str, datasets: Sequence[str] = (), overwrite: bool = False
) -> list[str]:
    """Write stores as PathoROB's tree of features; see ``write_features``.

    Raises:
        FileNotFoundError: there is no store.
        InputError: a folder is there already, a store is damaged, or its names do not fit.
    """
    places = store_search.find_all(embeddings, datasets)
    for place in places:
        replacing.check_place(features_path(output, place), overwrite=overwrite)
    return [write_features(output, place) for place in places]


def features_path(output: str, place: Place) -> str:
    """``<output>/features/<model>/<dataset>``."""
    return os.path.join(output, FEATURES, place.model, place.dataset)


def write_features(output: str, place: Place) -> str:
    """Write a store as ``<output>/features/<model>/<dataset>/<centre>.npz``; return the folder.

    A folder that is there is replaced when the new one is complete.

    Raises:
        InputError: the store is damaged, or its names do not fit.
    """
    path = features_path(output, place)
    replacing.check_place(path, overwrite=True)
    store = open_store(place.path)
    with replacing.new_folder(path) as fresh, faults.writing(path):
        archives.write_pathorob(store, fresh)
    logging.info("%s: %d embeddings of %d dimensions", path, len(store), store.dim)
    return path
