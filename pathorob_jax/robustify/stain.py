"""A robustifier of images: a stain normalisation with its target, uint8 -> uint8 on the device.

``stain_fit`` fits one on the tiles of a tileset, ``stain_files`` keeps it on disk,
``stain_tileset`` writes a tileset with it, and ``embeddings.extraction`` applies it before an
encoder. The numbers of a target, a slide or a centre are the mean over those of its usable tiles.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import checks, devices, digests
from pathorob_jax.core.checks import InputError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.core.typing import Array, ArrayLike, Bool, Int, UInt8
from pathorob_jax.data.manifest import CENTER, SLIDE, Manifest
from pathorob_jax.data.tile_batches import NO_ROW
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.tile_transform import LEFT
from pathorob_jax.robustify import macenko, reinhard, robustifier_files, tile_examples
from pathorob_jax.robustify.fit_table import FitTable
from pathorob_jax.robustify.macenko import Stains
from pathorob_jax.robustify.reinhard import ColorStatistics
from pathorob_jax.robustify.robustifier_files import IMAGES, SCHEMA_VERSION

# Attributes that ``robustifier.json`` holds as they are.
PLAIN = ("method", "scope", "target", "groups", "n_measured", "n_usable")
SCOPES = ("tile", "slide", "center")
COLUMN_OF = {"slide": SLIDE, "center": CENTER}
# Tiles that a device normalises at once. It is the same for all batch sizes and numbers of devices,
# so that no byte depends on them; and few, so that what they need stays in a core's cache.
BLOCK = 8
# A tile whose slide or centre was not in the fit.
NO_GROUP = -1

Statistics = ColorStatistics | Stains


@dataclass(frozen=True)
class StainMethod:
    """One method.

    Attributes:
        summary: what it does, in one line.
        kind: what is measured; its first two fields are the numbers of a stain.
        measure: uint8[B, H, W, 3] -> numbers of each tile.
        normalize: tiles, the two numbers of the target, source or fallback -> tiles and outcomes.
        borrows: whether a tile with too little tissue takes the numbers of its slide (fallback).
    """

    summary: str
    kind: type[ColorStatistics] | type[Stains]
    measure: Callable[[Any], Any]
    normalize: Callable[..., tuple[Array, Array]]
    borrows: bool = False


STAIN_METHODS = {
    "reinhard": StainMethod(
        "Gives the tissue of tiles the target's mean and spread of colour (CIELAB).",
        ColorStatistics,
        reinhard.measure_colors,
        reinhard.normalize_reinhard,
    ),
    "macenko": StainMethod(
        "Restains tiles with the target's haematoxylin and eosin.",
        Stains,
        macenko.find_stains,
        macenko.normalize_macenko,
        borrows=True,
    ),
}


class Normalized(NamedTuple):
    """Normalised tiles.

    Attributes:
        images: uint8[N, H, W, 3].
        outcomes: uint8[N] ``Outcome`` of each tile.
    """

    images: UInt8[np.ndarray, "N H W 3"]
    outcomes: UInt8[np.ndarray, " N"]

    @property
    def changed(self) -> Bool[np.ndarray, " N"]:
        """bool[N] False for tiles that are left as they are.

        These are blank ones, and those of one stain or colour.
        """
        return ~np.isin(self.outcomes, LEFT)


@dataclass(frozen=True, eq=False, repr=False)
class StainRobustifier:
    """A fitted stain normalisation.

    Attributes:
        method: a name of ``STAIN_METHODS``.
        scope: ``tile``, ``slide`` or ``center``: of what the numbers are that are mapped to the
            target's.
        target: what the target is: ``mean``, a centre, a row of the tileset, or an image.
        numbers: the target's, float32: mean and spread, or stain vectors and densities.
        groups: names of the slides or centres that it knows; with scope ``tile`` the slides whose
            numbers a tile may borrow, or none.
        group_numbers: the two numbers of each, float32[G, ...]; None: no groups.
        group_usable: bool[G] False for a slide or centre without a usable tile, which stays.
        n_measured: tiles behind the target.
        n_usable: those of them that are usable.
        table: the rows behind the target by class and centre; None: the target is an image.
        rows_sha256: digest of these rows; "": the target is an image.
        tileset_sha256: digest of the tileset that was measured.
        source: name of the tileset.
    """

    method: str
    scope: str
    target: str
    numbers: tuple[np.ndarray, np.ndarray]
    groups: tuple[str, ...]
    group_numbers: tuple[np.ndarray, np.ndarray] | None
    group_usable: Bool[np.ndarray, " G"] | None
    n_measured: int
    n_usable: int
    table: FitTable | None
    rows_sha256: str
    tileset_sha256: str
    source: str

    def __repr__(self) -> str:
        return f"StainRobustifier({self.method}: target={self.target}, scope={self.scope})"

    def as_arrays(self) -> dict[str, np.ndarray]:
        """The fitted numbers, by name."""
        arrays = {f"target.{i}": value for i, value in enumerate(self.numbers)}
        if self.group_numbers is not None and self.group_usable is not None:
            arrays |= {f"group.{i}": value for i, value in enumerate(self.group_numbers)}
            arrays["group.usable"] = self.group_usable
        return {name: np.ascontiguousarray(value) for name, value in arrays.items()}

    def describe(self) -> dict[str, Any]:
        """Everything about it, as ``robustifier.json`` holds it, but for versions.

        ``sha256`` covers all other keys and, by ``state_sha256``, the fitted numbers.
        """
        value = {
            "schema_version": SCHEMA_VERSION,
            "kind": IMAGES,
            **{name: as_plain(getattr(self, name)) for name in PLAIN},
            "rows": {
                "source": self.source,
                "sha256": self.rows_sha256,
                "tileset_sha256": self.tileset_sha256,
            },
            "fit": None if self.table is None else as_plain(asdict(self.table)),
            "state_sha256": robustifier_files.digest_state(self.as_arrays()),
        }
        return value | {"sha256": digests.digest_json(value)}

    def transform(
        self,
        images: UInt8[ArrayLike, "N H W 3"],
        *,
        slide: Sequence[Any] | None = None,
        center: Sequence[Any] | None = None,
        mesh: Mesh | None = None,
    ) -> Normalized:
        """Normalise tiles.

        Args:
            images: uint8[N, H, W, 3].
            slide: N names of slides; needed with scope ``slide``. With scope ``tile`` a tile with
                too little tissue borrows the numbers of its slide, if both are known.
            center: N names of centres; needed with scope ``center``.
            mesh: devices that share the tiles; None: the first device.

        Raises:
            InputError: the tiles are no uint8[N, H, W, 3], or a slide or centre is missing or
                unknown.
        """
        tiles = np.asarray(images)
        if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3:
            raise InputError(
                f"images: expected uint8[N, H, W, 3], found {tiles.dtype}{list(tiles.shape)}."
            )
        names = {"slide": slide, "center": center}.get(self.scope)
        if self.scope != "tile" and names is None:
            raise InputError(
                f"{self.scope}: this robustifier has scope={self.scope}; give the {self.scope} of "
                "every tile."
            )
        if names is not None:
            group = self._look_up(_as_column(names, len(tiles), self.scope), where=self.scope)
        elif slide is not None:
            group = self._find_known(_as_column(slide, len(tiles), "slide"))
        else:
            group = np.full(len(tiles), NO_GROUP)
        if not len(tiles):
            return Normalized(tiles, np.zeros(0, np.uint8))
        used = [jax.local_devices()[0]] if mesh is None else list(mesh.devices.flat)
        parts = np.array_split(np.arange(len(tiles)), min(len(used), max(1, len(tiles))))
        started = [
            self.normalize_on(device, tiles[part], group[part])
            for device, part in zip(used, parts, strict=False)
        ]
        done = [(np.asarray(out), np.asarray(outcomes)) for out, outcomes in started]
        return Normalized(
            np.concatenate([d[0] for d in done]), np.concatenate([d[1] for d in done])
        )

    def find_groups(self, rows: Manifest) -> Int[np.ndarray, " N"]:
        """int64[N] slide or centre of each row among ``groups``; ``NO_GROUP``: it is none of them.

        Raises:
            InputError: some were not in the fit, with another scope than ``tile``.
        """
        if self.scope == "tile":
            return self._find_known(rows.column(SLIDE))
        return self._look_up(rows.column(COLUMN_OF[self.scope]), where=rows.source)

    def _find_known(self, names: np.ndarray) -> Int[np.ndarray, " N"]:
        places = {name: i for i, name in enumerate(self.groups)}
        return np.asarray([places.get(name, NO_GROUP) for name in names.tolist()], np.int64)

    def _look_up(self, names: np.ndarray, *, where: str) -> Int[np.ndarray, " N"]:
        strangers = sorted(set(names.tolist()) - set(self.groups))
        if strangers:
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            raise InputError(
                f"{where}: {COLUMN_OF[self.scope]} {strangers[:3]}{more} not in the fit of this "
                f"robustifier (scope={self.scope}). Fit on a tileset that has them, or with "
                "scope=tile."
            )
        return self._find_known(names)

    def bind(self, rows: Manifest) -> Callable[[np.ndarray, np.ndarray, Mesh], tuple[Array, Array]]:
        """A function for the tiles of a manifest; see ``embeddings.tile_transform``.

        Raises:
            InputError: the manifest has slides or centres that were not in the fit.
        """
        return functools.partial(self._normalize_step, self.find_groups(rows))

    def _normalize_step(
        self, group_of: np.ndarray, images: np.ndarray, rows: np.ndarray, mesh: Mesh
    ) -> tuple[Array, Array]:
        group = np.where(rows == NO_ROW, NO_GROUP, group_of[rows])
        size = len(images) // mesh.size
        parts = [slice(i * size, (i + 1) * size) for i in range(mesh.size)]
        done = [
            self.normalize_on(device, images[part], group[part])
            for device, part in zip(mesh.devices.flat, parts, strict=True)
        ]
        split = devices.row_sharding(mesh)
        whole = (images.shape, rows.shape)
        out, outcomes = (
            jax.make_array_from_single_device_arrays(shape, split, list(pieces))
            for shape, pieces in zip(whole, zip(*done, strict=True), strict=True)
        )
        return out, outcomes

    def normalize_on(
        self, device: jax.Device, images: np.ndarray, group: np.ndarray
    ) -> tuple[UInt8[Array, "N H W 3"], UInt8[Array, " N"]]:
        """Normalise tiles on one device, ``BLOCK`` at a time. Returns before the work is done.

        Args:
            device: where.
            images: uint8[N, H, W, 3], N > 0.
            group: int[N] slide or centre of each tile, see ``find_groups``.
        """
        kind = STAIN_METHODS[self.method]
        tiles: list[Array] = []
        outcomes: list[Array] = []
        for block, n in split_blocks(images):
            start = len(tiles) * BLOCK
            given = self._numbers_of(group[start : start + n])
            placed = jax.device_put((block, self.numbers, given), device)
            out, found = kind.normalize(placed[0], *placed[1], **placed[2])
            tiles.append(out[:n] if n < BLOCK else out)
            outcomes.append(found[:n] if n < BLOCK else found)
        if len(tiles) == 1:
            return tiles[0], outcomes[0]
        return jnp.concatenate(tiles), jnp.concatenate(outcomes)

    def _numbers_of(self, group: np.ndarray) -> dict[str, Statistics]:
        """The numbers of tiles' groups, as ``normalize`` takes them."""
        if self.group_numbers is None or self.group_usable is None:
            return {}
        filled = np.full(BLOCK, NO_GROUP)
        filled[: len(group)] = group
        first, second = (numbers[filled] for numbers in self.group_numbers)
        none, usable = np.zeros(BLOCK, np.int32), self.group_usable[filled] & (filled != NO_GROUP)
        found = STAIN_METHODS[self.method].kind(first, second, none, usable)  # type: ignore[arg-type]
        return {"fallback" if self.scope == "tile" else "source": found}

    def write_examples(
        self, folder: str, tileset: Tileset, counts: dict[str, dict[str, int]]
    ) -> None:
        """Write tiles of every centre before and after; see ``tile_examples.write_examples``."""
        tile_examples.write_examples(
            folder,
            tileset,
            lambda images, rows: self.normalize_on(
                jax.local_devices()[0], images, self.find_groups(tileset.manifest.take(rows))
            ),
            counts,
        )


def _as_column(names: Sequence[Any], n: int, what: str) -> np.ndarray:
    column = np.asarray(names).astype(str)
    checks.check_shape(column.shape, (n,), name=what, why="to match images")
    return column


def split_blocks(images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """uint8[BLOCK, H, W, 3], the last one filled up with black tiles; and how many are tiles."""
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        n = len(block)
        yield np.pad(block, ((0, BLOCK - n), (0, 0), (0, 0), (0, 0))) if n < BLOCK else block, n
