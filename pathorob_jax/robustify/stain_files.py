"""A robustifier of images on disk: the same two files as one of embeddings, of kind ``images``."""

from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import from_plain
from pathorob_jax.robustify import robustifier_files
from pathorob_jax.robustify.fit_table import FitTable
from pathorob_jax.robustify.robustifier_files import IMAGES, INFO
from pathorob_jax.robustify.stain import PLAIN, STAIN_METHODS, StainRobustifier


def save_stain(stain: StainRobustifier, path: str) -> None:
    """Write a robustifier of images to the folder ``path``, over an older one.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=64))
    32
    >>> stain = pr.fit_stain(pr.open_tileset("tiles"), method="reinhard")
    >>> pr.save_stain(stain, "stain")
    >>> pr.load_stain("stain").describe() == stain.describe()
    True
    """
    robustifier_files.write_folder(path, stain.describe(), stain.as_arrays())


def load_stain(path: str) -> StainRobustifier:
    """Read the robustifier of images in the folder ``path``.

    Raises:
        FileNotFoundError: there is none.
        InputError: its files are damaged, of another schema, or it is one of embeddings.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=64))
    32
    >>> pr.save_stain(pr.fit_stain(pr.open_tileset("tiles"), method="reinhard"), "stain")
    >>> pr.load_stain("stain")
    StainRobustifier(reinhard: target=mean, scope=tile)
    """
    info, state = robustifier_files.read_folder(path, kind=IMAGES)
    if info["method"] not in STAIN_METHODS:
        raise InputError(
            f"{path}: expected a method of {list(STAIN_METHODS)}, found {info['method']!r}."
        )
    fit, where = info["fit"], f"{files.join(path, INFO)}: fit"
    return StainRobustifier(
        **{name: info[name] for name in PLAIN} | {"groups": tuple(info["groups"])},
        numbers=(state["target.0"], state["target.1"]),
        group_numbers=(state["group.0"], state["group.1"]) if "group.0" in state else None,
        group_usable=state.get("group.usable"),
        table=None if fit is None else from_plain(FitTable, fit, where=where, stored=True),
        rows_sha256=info["rows"]["sha256"],
        tileset_sha256=info["rows"]["tileset_sha256"],
        source=info["rows"]["source"],
    )
