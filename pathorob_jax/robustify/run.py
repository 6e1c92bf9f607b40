"""Fit robustifiers on the rows of a store, and apply them: store -> store.

The new store lies beside its parent's model, ``<root>/<model>+<method>/<dataset>``, and is an
ordinary store: every metric, comparison and the report read it like any other. Its identity is the
digest of its parent and that of the robustifier.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import devices, digests, files, folder_names, hosts
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.progress import Progress
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest, locate, read_manifest
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.store_writer import StoreWriter, create_store
from pathorob_jax.robustify.robustifier import Robustifier, fit_robustifier
from pathorob_jax.robustify.robustifier_files import (
    INFO,
    describe_robustifier,
    load_robustifier,
    save_robustifier,
)

ROBUSTIFIER = "robustifier"
PARENT = "parent"


def name_model(model: str, robustifier: Robustifier) -> str:
    """Name of a robustified model: ``<model>+<method>[-cross_fit][-class]``."""
    parts = [f"{model}+{robustifier.method}"]
    parts += ["cross_fit"] if robustifier.fit_on == "cross_fit" else []
    parts += ["class"] if robustifier.covariates != "none" else []
    return "-".join(parts)


def digest_store(store: Store) -> str:
    """Hex sha256 of what a store's embeddings are: identity, rows and rows without embedding."""
    facts = {name: store.info.get(name) for name in ("identity", "manifest_sha256", "bad_rows")}
    return digests.digest_json(facts)


def choose_rows(store: Store | Tileset, chosen: str | None) -> np.ndarray:
    """Rows of a store or tileset that a fit uses, int64[n].

    Args:
        store: embeddings, or tiles, with their manifest.
        chosen: a manifest's path, or ``column=value,...``, all of which a row must have; None: all
            rows.

    Raises:
        InputError: no row is left, a column is missing, or the manifest has other patches.
    """
    if chosen is None:
        return np.arange(len(store))
    if "=" not in chosen:
        return np.sort(locate(read_manifest(chosen), store.manifest))
    keep = np.ones(len(store), bool)
    for condition in chosen.split(","):
        column, _, value = condition.partition("=")
        if column not in store.manifest:
            raise InputError(
                f"fit_rows: {store.path} has no column {column!r}; it has "
                f"{store.manifest.table.column_names}."
            )
        keep &= store.manifest.column(column).astype(str) == value
    if not keep.any():
        raise InputError(f"fit_rows: no row of {store.path} has {chosen}.")
    return np.flatnonzero(keep)


def fit_on_store(
    store: Store, *, fit_rows: str | None = None, pairs: str | None = None, **options: Any
) -> Robustifier:
    """Fit a robustifier on rows of a store, read block by block.

    Args:
        store: embeddings.
        fit_rows: see ``choose_rows``.
        pairs: column that names the tissue, for ``paired_subspace``.
        options: see ``fit_robustifier``.
    """
    if options.get("fit_on") == "train" and fit_rows is None:
        raise UsageError("fit_on: train needs --fit_rows, the training rows; or give fit_on=all.")
    rows = choose_rows(store, fit_rows)
    part = store.manifest if len(rows) == len(store) else store.manifest.take(rows)
    if pairs is not None and pairs not in part:
        raise InputError(
            f"pairs: {store.path} has no column {pairs!r}; it has {part.table.column_names}."
        )
    return fit_robustifier(
        lambda numbers: store.read(rows[numbers]),
        part,
        pairs=None if pairs is None else part.column(pairs).tolist(),
        **options,
    )


def robustify_store(
    store: Store,
    robustifier: Robustifier,
    *,
    root: str,
    model: str,
    dataset: str,
    unseen: str = "refuse",
    overwrite: bool = False,
    mesh: Mesh | None = None,
) -> Store:
    """Apply a robustifier to a store: a new store ``<root>/<model>/<dataset>``.

    Chunks that are on disk already are kept, so that an interrupted run goes on where it stopped.
    Processes over one folder share the chunks.

    Args:
        store: the parent.
        robustifier: fitted on embeddings of the same encoder.
        root: folder of all stores.
        model: name of the robustified model.
        dataset: name of the dataset.
        unseen: see ``Robustifier.transform``.
        overwrite: replace a store of another configuration.
        mesh: devices that share the rows; None: the first device. With devices of several
            processes, all must call at the same time.

    Raises:
        InputError: the store there has another configuration, or the rows do not fit the
            robustifier.
    """
    folder_names.check_folder_name(model, what="name")
    path = _find_place(store.path, root, model, dataset)
    _check_rows(store.manifest, robustifier, unseen, source=store.path)
    info = describe_robustifier(robustifier)

    def join(lead: bool) -> StoreWriter:
        return create_store(
            path,
            manifest=store.manifest,
            dim=store.dim,
            chunk_rows=int(store.info["chunk_rows"]),
            identity={
                "encoder": {"model": model, "weights": "those of the parent"},
                "source": {
                    "format": "robustified",
                    "parent_sha256": digest_store(store),
                    "robustifier_sha256": info["sha256"],
                    "unseen": unseen,
                },
            },
            settings={
                PARENT: os.path.relpath(store.path, path),
                "method": robustifier.method,
                "fit_on": robustifier.fit_on,
                "covariates": robustifier.covariates,
                "reference": robustifier.reference,
                "rank": robustifier.rank,
                "used_labels": robustifier.used_labels,
                "fit": info["fit"],
                "fit_rows_sha256": robustifier.rows_sha256,
            },
            overwrite=overwrite and lead,
            shared=True,
            lead=lead,
        )

    here = devices.make_mesh(jax.local_devices()[:1]) if mesh is None else devices.local_mesh(mesh)
    with contextlib.ExitStack() as held:
        writer = held.enter_context(hosts.lead_first("stores", mesh, join))
        with hosts.together_on(mesh, "rows"):
            _write_missing(writer, store, robustifier, unseen, here)
        with hosts.together_on(mesh, "stores"):
            if hosts.leads(mesh):
                with writer.alone():
                    if not writer.is_completed():
                        writer.commit()
    return open_store(path)


def _write_missing(
    writer: StoreWriter, store: Store, robustifier: Robustifier, unseen: str, mesh: Mesh
) -> None:
    """Write chunks until all are on disk; processes share them."""
    columns = {name: store.manifest.column(name) for name in (CENTER, SLIDE, CLASS)}
    whole = None
    name = f"robustify {writer.info['identity']['encoder']['model']}"
    done = len(store) - sum(_n_rows(writer, chunk) for chunk in writer.find_missing())
    with Progress(name, total=len(store), unit="row", done=done) as progress:
        for chunk in writer.take_missing():
            part = writer.chunk_slice(chunk)
            if unseen == "estimate":
                # The map of an unseen centre is estimated from all of its rows.
                if whole is None:
                    rows = np.arange(len(store))
                    whole = _transform(store, robustifier, rows, columns, unseen, mesh)
                y = whole[part]
            else:
                rows = np.arange(part.start, part.stop)
                y = _transform(store, robustifier, rows, columns, unseen, mesh)
            writer.wait(writer.write(chunk, y))
            progress.update(len(y))
        progress.others_did(len(store))


def _find_place(source: str, root: str, model: str, dataset: str) -> str:
    """Folder of a robustified store, which is never that of its source."""
    path = files.join(root, model, dataset)
    if os.path.abspath(path) == os.path.abspath(source):
        raise UsageError(f"output: {path} is the store to be robustified; give another --name.")
    return path


def _n_rows(writer: StoreWriter, chunk: int) -> int:
    part = writer.chunk_slice(chunk)
    return part.stop - part.start


def _transform(
    store: Store,
    robustifier: Robustifier,
    rows: np.ndarray,
    columns: dict[str, np.ndarray],
    unseen: str,
    mesh: Mesh,
) -> np.ndarray:
    return robustifier.transform(
        store.read(rows),
        columns[CENTER][rows],
        slide=columns[SLIDE][rows],
        biological_class=columns[CLASS][rows],
        unseen=unseen,
        mesh=mesh,
    )


def _check_rows(rows: Manifest, robustifier: Robustifier, unseen: str, *, source: str) -> None:
    """Refuse rows that the robustifier does not know, before any work."""
    names = set(rows.factorize(CENTER).names)
    strangers = sorted(names - set(robustifier.centers))
    if strangers and unseen == "refuse" and any(m.needs_center for m in robustifier.maps):
        raise InputError(
            f"{source}: centres {strangers} were not in the fit, whose centres are "
            f"{list(robustifier.centers)}. Give --unseen=identity or --unseen=estimate, or fit on "
            "rows that have them."
        )


def keep_robustifier(robustifier: Robustifier, folder: str, *, overwrite: bool) -> None:
    """Save a robustifier, unless the folder holds it already.

    Raises:
        InputError: the folder holds another one, and ``overwrite`` is False.
    """
    if files.exists(files.join(folder, INFO)):
        try:
            there = describe_robustifier(load_robustifier(folder))["sha256"]
        except InputError:
            there = None  # damaged: the new one takes its place
        if there == describe_robustifier(robustifier)["sha256"]:
            return
        if there is not None and not overwrite:
            raise InputError(
                f"{folder}: holds another robustifier, fitted on other rows or in another way. "
                "Give --robustifier=<folder> for the new one, or --overwrite to replace it."
            )
    save_robustifier(robustifier, folder)


def robustify(
    stores: Sequence[tuple[str, str, str]],
    *,
    root: str,
    method: str | None,
    robustifier: str | None = None,
    fit_dataset: str | None = None,
    name: str | None = None,
    unseen: str = "refuse",
    overwrite: bool = False,
    mesh: Mesh | None = None,
    **options: Any,
) -> list[Store]:
    """Fit a robustifier on each store, or once, or load one, and apply it.

    Args:
        stores: (path, model, dataset) of each store; see ``store_search.find_datasets``.
        root: folder of all stores.
        method: a name of ``methods.METHODS``; None: ``robustifier`` is loaded.
        robustifier: folder of the robustifier; None: ``<root>/<model>+<method>/robustifier``, and
            ``robustifier-<dataset>`` where each of several datasets has a fit of its own.
        fit_dataset: dataset of the same model on which the one fit is made; None: each dataset is
            fitted on its own rows.
        name: name of the robustified model; None: see ``name_model``.
        unseen: see ``Robustifier.transform``.
        overwrite: replace stores and robustifiers of another configuration.
        mesh: see ``robustify_store``; process 0 fits.
        options: see ``fit_on_store``.

    Raises:
        UsageError: neither or both of method and options for a loaded robustifier are given.
        InputError: a fit is refused, or an artefact does not fit.
    """
    if method is None and robustifier is None:
        raise UsageError(
            "method: give --method to fit a robustifier, or --robustifier to apply one."
        )
    given = sorted(key for key, value in options.items() if value is not None)
    if method is None and (given or fit_dataset):
        raise UsageError(
            f"{', '.join(given) or 'fit_dataset'}: a saved robustifier is fitted already; leave "
            "it out, or give --method to fit another."
        )
    if robustifier is not None and method is not None and len(stores) > 1 and not fit_dataset:
        raise UsageError(
            f"robustifier: {len(stores)} datasets are fitted one by one, and one folder holds one "
            "robustifier; give --fit_dataset, or one dataset."
        )
    if name is not None:
        for path, _, dataset in stores:
            _find_place(path, root, name, dataset)  # refused before anything is fitted and kept
    chosen = {key: value for key, value in options.items() if value is not None}
    loaded = load_robustifier(robustifier) if method is None and robustifier else None
    has_own_fit = len(stores) > 1 and fit_dataset is None
    out = []
    for path, model, dataset in stores:
        store, source = open_store(path), path
        if fit_dataset is not None:
            source = files.join(path.rstrip("/").rpartition("/")[0], fit_dataset)

        def place(fitted: Robustifier, model: str = model, dataset: str = dataset) -> str:
            default = f"{ROBUSTIFIER}-{dataset}" if has_own_fit else ROBUSTIFIER
            return robustifier or files.join(root, name or name_model(model, fitted), default)

        fitted = loaded
        if fitted is None:
            fitted = _fit_and_keep(
                source, place, mesh=mesh, overwrite=overwrite, method=method, **chosen
            )
        if fit_dataset is not None:
            loaded = fitted
        out.append(
            robustify_store(
                store,
                fitted,
                root=root,
                model=name or name_model(model, fitted),
                dataset=dataset,
                unseen=unseen,
                overwrite=overwrite,
                mesh=mesh,
            )
        )
    return out


def _fit_and_keep(
    source: str,
    place: Callable[[Robustifier], str],
    *,
    mesh: Mesh | None,
    overwrite: bool,
    **options: Any,
) -> Robustifier:
    """Fit a robustifier on a store and save it; of several processes, process 0 does."""
    folder = ""
    with hosts.together_on(mesh, "robustifier"):
        if hosts.leads(mesh):
            fitted = fit_on_store(open_store(source), **options)
            folder = place(fitted)
            keep_robustifier(fitted, folder, overwrite=overwrite)
    if hosts.is_joint(mesh):
        # Another host could find other last bits.
        fitted = load_robustifier(hosts.tell_all(mesh, folder))
    return fitted
