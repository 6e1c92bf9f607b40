"""The store that a robustified store was made from."""

import posixpath

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.robustify.run import PARENT, digest_store


def open_parent(store: Store, *, what: str) -> Store:
    """Open the store that a robustified store was made from.

    Args:
        store: a robustified store.
        what: what needs the parent, for messages.

    Raises:
        InputError: the store is not a robustified one, its parent is missing, or other embeddings
            lie in the parent's place.
    """
    settings, source = store.info.get("settings") or {}, store.info["identity"].get("source") or {}
    if PARENT not in settings or "parent_sha256" not in source:
        raise InputError(
            f"{store.path}: {what} compares a robustified store with its parent, and this one has "
            "no parent. Name a store that experiments.robustify made, <model>+<method>/<dataset>."
        )
    scheme, sign, place = files.join(store.path, settings[PARENT]).rpartition("://")
    path = f"{scheme}{sign}{posixpath.normpath(place)}"
    mend = (
        "Put the parent back in that place, or robustify again with experiments.robustify "
        "--overwrite."
    )
    try:
        parent = open_store(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the parent of {store.path} is missing. {mend}") from error
    if digest_store(parent) != source["parent_sha256"]:
        raise InputError(
            f"{path}: is not the parent of {store.path}: its embeddings, rows or encoder are "
            f"others (their digest). {mend}"
        )
    return parent


def name_parent(parent: Store) -> str:
    """Name of the parent's model: the folder above its dataset."""
    return parent.path.rstrip("/").split("/")[-2]
