"""Flags that several scripts define."""

from absl import flags

from pathorob_jax.data import tile_paths
from pathorob_jax.data.manifest import CENTER, CLASS

from . import choices


def define_label_column() -> flags.FlagHolder[str]:
    """Define --label_column."""
    return flags.DEFINE_string("label_column", CLASS, "Manifest column of the biological class.")


def define_columns() -> tuple[flags.FlagHolder[str], flags.FlagHolder[str]]:
    """Define --label_column and --center_column."""
    return (
        define_label_column(),
        flags.DEFINE_string("center_column", CENTER, "Manifest column of the medical centre."),
    )


def define_layout(what: str) -> flags.FlagHolder[str | None]:
    """Define --layout."""
    return flags.DEFINE_enum("layout", None, choices.LAYOUTS, what)


def define_batch_size() -> flags.FlagHolder[int | None]:
    """Define --batch_size."""
    return flags.DEFINE_integer(
        "batch_size",
        None,
        "Tiles per device and step; unset: the fastest that fits.",
        lower_bound=1,
    )


def define_workers() -> flags.FlagHolder[int]:
    """Define --workers."""
    return flags.DEFINE_integer(
        "workers", 0, "Processes that decode images; 0: threads of this process.", lower_bound=0
    )


def define_on_bad_image(error: str) -> flags.FlagHolder[str | None]:
    """Define --on_bad_image; ``error`` says what then happens by default."""
    return flags.DEFINE_enum(
        "on_bad_image",
        "error",
        ["error", "skip"],
        f"At a tile that cannot be decoded: {error}, or list it in the store and go on.",
    )


def define_facts(*, what: str) -> flags.FlagHolder[str | None]:
    """Define --facts; ``what`` names some facts, and what they are for."""
    return flags.DEFINE_string(
        "facts", None, f"YAML of facts of models beyond the registry, each with its source: {what}."
    )


def define_tile_access() -> tuple[flags.FlagHolder[str | None], flags.FlagHolder[str]]:
    """Define --image_range and --allow_paths."""
    return (
        flags.DEFINE_string(
            "image_range",
            None,
            "Grey images of more than 8 bits: the values that become black and white, as "
            "<low>,<high>; full: 0 and 65535 (16 bits), 0 and 1 (floats). Unset: they cannot be "
            "decoded.",
        ),
        flags.DEFINE_enum(
            "allow_paths",
            "inside",
            tile_paths.ALLOW_PATHS,
            "Files that a tileset may name: in its folder, anywhere on this machine, or on servers "
            "too.",
        ),
    )


def parse_k(text: str) -> int | str:
    """A number of neighbours, or a word, which is checked afterwards."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text
