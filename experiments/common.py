"""Flags that several scripts define."""

from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from pathorob_jax.core import hosts
from pathorob_jax.core.checks import UsageError
from pathorob_jax.data import tile_paths
from pathorob_jax.data.manifest import CENTER, CLASS

from . import choices

if TYPE_CHECKING:
    from jax.sharding import Mesh


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


class HostFlags(NamedTuple):
    """Flags of a run of several processes."""

    multihost: flags.FlagHolder[bool]
    coordinator: flags.FlagHolder[str | None]
    num_processes: flags.FlagHolder[int | None]
    process_id: flags.FlagHolder[int | None]


def define_hosts() -> HostFlags:
    """Define --multihost, --coordinator, --num_processes and --process_id."""
    return HostFlags(
        flags.DEFINE_bool(
            "multihost",
            False,
            "One process of several; SLURM, Open MPI, GKE and TPU pods are recognised.",
        ),
        flags.DEFINE_string(
            "coordinator", None, "With --multihost elsewhere: host:port of process 0."
        ),
        flags.DEFINE_integer("num_processes", None, "With --coordinator.", lower_bound=1),
        flags.DEFINE_integer("process_id", None, "With --coordinator.", lower_bound=0),
    )


def join_hosts(given: HostFlags) -> "Mesh | None":
    """Join the other processes of --multihost; the devices of all. None without it.

    Raises:
        UsageError: a flag needs --multihost, or the processes do not find each other.
    """
    others = (given.coordinator.value, given.num_processes.value, given.process_id.value)
    if not given.multihost.value:
        if any(value is not None for value in others):
            raise UsageError("coordinator: it, --num_processes and --process_id need --multihost.")
        return None
    coordinator, n_processes, process_id = others
    hosts.join(coordinator=coordinator, n_processes=n_processes, process_id=process_id)
    from pathorob_jax.core import devices

    return devices.make_mesh()


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


def define_maps_at() -> flags.FlagHolder[str]:
    """Define --maps of a report."""
    return flags.DEFINE_enum(
        "maps",
        choices.MAPS_AT[0],
        choices.MAPS_AT,
        "Maps of embeddings and pictures of slides in the report: inside the page, or beside it.",
    )


class _MapsParser(flags.EnumParser):
    """A place of maps; as a switch, the first place or none."""

    def parse(self, argument: Any) -> Any:
        switch = {"true": choices.MAPS_AT[0], True: choices.MAPS_AT[0], "false": None, False: None}
        return switch[argument] if argument in switch else super().parse(argument)


def define_maps() -> flags.FlagHolder[str | None]:
    """Define --maps of an evaluation: a switch, which may say where the report has the maps."""
    flag: flags.Flag[Any] = flags.Flag(
        _MapsParser(list(choices.MAPS_AT)),
        None,
        "maps",
        None,
        "Also lay the embeddings out in the plane (PCA, t-SNE), for the report; --maps=beside: on "
        "pages beside it.",
        boolean=True,
    )
    holder: flags.FlagHolder[str | None] = flags.DEFINE_flag(flag)
    return holder


def define_tiles() -> flags.FlagHolder[str | None]:
    """Define --tiles of a report."""
    return flags.DEFINE_string(
        "tiles",
        None,
        "Folder of the tileset that the patches are of: maps in the report show a few of its "
        "tiles, each beside its nearest of the same class at other centres and of other classes at "
        "the same centre.",
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
