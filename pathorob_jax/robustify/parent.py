"""The store that a robustified store is compared with, and how the one was made of the other."""

import posixpath
from typing import NamedTuple

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.store import Store, open_store
from pathorob_jax.embeddings.tile_transform import STAIN
from pathorob_jax.robustify import methods
from pathorob_jax.robustify.run import PARENT, digest_store

# The rows of a fit of images, which a store does not know.
NAMED_ROWS = "named rows"


class Fit(NamedTuple):
    """How a robustified store was made.

    Attributes:
        method: its method.
        fit_on: ``all``, ``train`` or ``cross_fit``; ``named rows`` of a method for images.
        covariates: ``none``, or the column of the class.
        used_labels: whether the classes of rows entered the fit.
        cramers_v: of class and centre in the rows of the fit; None: unknown.
        warnings: what the fit warned of.
        rows_sha256: digest of the rows of the fit; empty: unknown.
        reference: centre that stays as it is; None: none.
        rank: number of directions taken out; None: the method has no such number.
    """

    method: str
    fit_on: str
    covariates: str = "none"
    used_labels: bool = False
    cramers_v: float | None = None
    warnings: tuple[str, ...] = ()
    rows_sha256: str = ""
    reference: str | None = None
    rank: int | None = None

    @property
    def can_be_repeated(self) -> bool:
        """Whether the embeddings of the parent are enough to fit the method again."""
        return self.method in methods.METHODS and self.method != methods.PAIRED


def read_fit(store: Store) -> Fit:
    """How a robustified store, or one of normalised tiles, was made."""
    settings = store.info["settings"]
    if PARENT not in settings:
        return Fit(method=settings[STAIN]["method"], fit_on=NAMED_ROWS)
    return Fit(
        method=settings["method"],
        fit_on=settings["fit_on"],
        covariates=settings["covariates"],
        used_labels=bool(settings["used_labels"]),
        cramers_v=settings["fit"]["cramers_v"],
        warnings=tuple(settings["fit"]["warnings"]),
        rows_sha256=settings["fit_rows_sha256"],
        reference=settings["reference"] or None,
        rank=settings["rank"],
    )


def open_parent(store: Store, *, what: str) -> Store:
    """Open the store that a robustified store was made from.

    Of a store of normalised tiles it is the same encoder's store of the tiles as they are,
    ``<model>/<dataset>`` beside ``<model>+<method>/<dataset>``.

    Args:
        store: a robustified store, or one of normalised tiles.
        what: what needs the parent, for messages.

    Raises:
        InputError: the store is not a robustified one, its parent is missing, or other embeddings
            lie in the parent's place.
    """
    settings = store.info.get("settings", {})
    if PARENT in settings:
        place, mend = settings[PARENT], "robustify again with experiments.robustify --overwrite"
    elif STAIN in settings:
        model, dataset = store.path.rstrip("/").split("/")[-2:]
        place = f"../../{model.removesuffix('+' + settings[STAIN]['method'])}/{dataset}"
        mend = "embed the tiles as they are into the same --output"
    else:
        raise InputError(
            f"{store.path}: {what} compares a robustified store with its parent, and this one has "
            "no parent. Name a store that experiments.robustify or extract --stain made, "
            "<model>+<method>/<dataset>."
        )
    scheme, sign, place = files.join(store.path, place).rpartition("://")
    path = f"{scheme}{sign}{posixpath.normpath(place)}"
    mend = f"Put the parent back in that place, or {mend}."
    try:
        parent = open_store(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: the parent of {store.path} is missing. {mend}") from error
    if not _is_parent(parent, store):
        raise InputError(
            f"{path}: is not the parent of {store.path}: its embeddings, rows or encoder are "
            f"others. {mend}"
        )
    return parent


def _is_parent(parent: Store, store: Store) -> bool:
    identity, own = parent.info["identity"], store.info["identity"]
    if PARENT in store.info["settings"]:
        return bool(own["source"]["parent_sha256"] == digest_store(parent))
    source = {key: value for key, value in own["source"].items() if key != "robustifier_sha256"}
    same_rows = parent.manifest.fingerprint() == store.manifest.fingerprint()
    return identity == own | {"source": source} and same_rows


def name_parent(parent: Store) -> str:
    """Name of the parent's model: the folder above its dataset."""
    return parent.path.rstrip("/").split("/")[-2]
