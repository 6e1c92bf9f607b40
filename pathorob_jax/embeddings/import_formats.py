"""Import embeddings that were computed elsewhere into an embedding store.

``FORMATS`` names what other tools write and who reads it. The result is the same kind of store as
extraction writes, so that metrics need neither weights nor images.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from absl import logging

from pathorob_jax.core import checks, files, folder_names
from pathorob_jax.core.checks import UsageError
from pathorob_jax.core.progress import Progress
from pathorob_jax.data import manifest as manifests
from pathorob_jax.data.manifest import Manifest
from pathorob_jax.embeddings.imports import labels
from pathorob_jax.embeddings.imports.formats import FORMATS, PATHOROB, recognize
from pathorob_jax.embeddings.imports.pathorob import read_pathorob
from pathorob_jax.embeddings.imports.source import Ask, Source, Take
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_writer import create_store

CHUNK_ROWS = 1024


class _Import(NamedTuple):
    """Rows of a store and where their embeddings are; ``take`` is given ascending rows."""

    rows: Manifest
    dim: int
    take: Take
    fingerprint: str


def import_embeddings(
    source: str,
    manifest: Any = None,
    *,
    root: str,
    model: str,
    dataset: str,
    form: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoder: str | None = None,
    overwrite: bool = False,
) -> Store:
    """Import embeddings into ``<root>/<model>/<dataset>/``.

    Rows of the store are in the order of the source. How labels were joined is logged; see
    docs/imports.md.

    Args:
        source: the file or folder as the tool left it, local, ``gs://`` or ``s3://``.
        manifest: labels of patches or of slides: a file (CSV or Parquet), a table (mapping of
            columns, pandas, polars, pyarrow) or a ``Manifest``; or a list of them, whose patches
            the store unites. None: the labels that the tool wrote beside the embeddings.
        root: folder of all stores.
        model: name of the encoder.
        dataset: name of the dataset.
        form: a key of ``FORMATS``; None: it is recognised.
        columns: our column name -> the manifest's, for ``slide_id``, ``patch_id``,
            ``biological_class``, ``medical_center`` and ``group_id``.
        encoder: which of several sets of embeddings in the source; None: the only one.
        overwrite: replace a store of another configuration.

    Raises:
        UsageError: unknown format, or several manifests where rows are joined by their order.
        FileNotFoundError: no such source.
        InputError: a patch or a label is missing, a key is ambiguous, a row is NaN or all zero,
            shapes differ, or a file is damaged.

    >>> import numpy as np, pathorob_jax as pr
    >>> rows = {"slide_id": np.arange(48) // 4, "patch_id": np.arange(48)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 24}
    >>> rows |= {"medical_center": ["A"] * 24 + ["B"] * 24}
    >>> np.save("x.npy", np.random.default_rng(0).normal(size=(48, 8)))
    >>> store = pr.import_embeddings("x.npy", rows, root="embeddings", model="mine", dataset="ours")
    >>> len(store), store.dim
    (48, 8)
    """
    form = form or recognize(source)
    checks.check_known(form, FORMATS, what="format")
    folder_names.check_folder_name(model, what="model")
    folder_names.check_dataset_name(dataset)
    given = {name: have for name, have in (columns or {}).items() if name != have}
    path = files.join(root, model, dataset)
    with contextlib.ExitStack() as streams:
        made = (
            _open_pathorob(source, manifest, given, streams)
            if form == PATHOROB
            else _open_source(form, Ask(source, encoder, given), manifest)
        )
        writer = streams.enter_context(
            create_store(
                path,
                manifest=made.rows,
                dim=made.dim,
                chunk_rows=CHUNK_ROWS,
                identity={
                    "encoder": {"model": model, "weights": "embeddings made elsewhere"},
                    "source": {"format": form, "sha256": made.fingerprint},
                },
                overwrite=overwrite,
            )
        )
        if writer.info["complete"]:
            return open_store(path)
        take, n_rows = made.take, len(made.rows)
        del made  # its labels, which are on disk now
        missing = map(writer.chunk_slice, writer.missing_chunks)
        done = n_rows - sum(part.stop - part.start for part in missing)
        with Progress(f"import {model}", total=n_rows, unit="row", done=done) as progress:
            for chunk in writer.missing_chunks:
                part = writer.chunk_slice(chunk)
                writer.wait(writer.write(chunk, take(np.arange(part.start, part.stop))))
                progress.update(part.stop - part.start)
        return writer.commit()


def _open_pathorob(
    source: str, manifest: Any, columns: Mapping[str, str], streams: contextlib.ExitStack
) -> _Import:
    if manifest is None:
        raise UsageError(f"manifest: format {PATHOROB} needs PathoROB's metadata file.")
    rows = manifests.union(_as_manifests(manifest, columns))
    return _Import(rows, *read_pathorob(source, rows, streams))


def _as_manifests(manifest: Any, columns: Mapping[str, str]) -> list[Manifest]:
    """One or several manifests, from files or tables."""
    if isinstance(manifest, list | tuple):
        return [m for part in manifest for m in _as_manifests(part, columns)]
    if isinstance(manifest, str):
        return [manifests.read_manifest(manifest, columns=columns)]
    if isinstance(manifest, Manifest):
        return [manifests.relabel(manifest, columns)]
    return [manifests.as_manifest(manifest, columns=columns)]


def _join(source: Source, part: Any, ask: Ask) -> labels.Joined:
    """The rows of a source that one manifest labels."""
    table = None if part is None else labels.read_labels(part, ask.columns)
    joined = labels.join(source, table, ask.columns)
    logging.info("%s: %s.", joined.rows.source, "; ".join(joined.how))
    return joined


def _open_source(form: str, ask: Ask, manifest: Any) -> _Import:
    """The rows of a source with their labels, in the order of the source."""
    parts = list(manifest) if isinstance(manifest, list | tuple) else [manifest]
    read = FORMATS[form].read
    if form == "npy" and (manifest is None or len(parts) != 1):
        found = 0 if manifest is None else len(parts)
        raise UsageError(f"manifest: format npy takes exactly one manifest, found {found}.")
    source = read(ask)
    for text in source.said:
        logging.info("%s: %s.", source.where, text)
    joined = [_join(source, part, ask) for part in parts]
    rows = manifests.union([one.rows for one in joined])
    positions = np.full(len(rows), -1, np.int64)
    for one in reversed(joined):  # a patch that recurs has the embedding of its first row
        at = pc.index_in(one.rows.identities, value_set=rows.identities).to_numpy()
        positions[at[::-1].astype(np.int64)] = one.positions[::-1]
    del joined
    order = np.argsort(positions, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        rows, positions = rows.take(order), positions[order]
    source.forget_labels()

    def take(wanted: np.ndarray) -> np.ndarray:
        return source.take(positions[wanted])

    return _Import(rows, source.dim, take, source.fingerprint)
