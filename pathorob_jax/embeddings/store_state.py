"""How far a store is, and whether it is the one that an extraction would make; nothing is written.

``extract`` asks the same when it opens a store, but it loads the encoder, and locks and mends.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pathorob_jax.core import files, leases
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings import store_files, store_swap, tile_record


class StoreState(NamedTuple):
    """How far a store is.

    Attributes:
        rows_done: patches whose chunks are on disk.
        is_complete: whether all are, and the store says so.
        fits: whether it has this encoder and tileset, and the images are as they were embedded,
            as far as names, sizes and times of change tell.
        at_work: who embeds into it, and how many chunks each has taken, in words.
    """

    rows_done: int
    is_complete: bool
    fits: bool
    at_work: tuple[str, ...] = ()


def read_state(path: str, encoder: Mapping[str, Any], tileset: Tileset) -> StoreState | None:
    """The state of the store at ``path``; None: there is none that can be read.

    Args:
        path: ``<root>/<model>/<dataset>``.
        encoder: the encoder's identity.
        tileset: its tiles.
    """
    for place in (store_swap.aside(path), path):
        if store_files.has_info(place):
            try:
                info = store_files.read_info(place)
                missing = store_files.missing_chunks(place, info)
            except (InputError, OSError, ValueError):
                continue
            is_complete = info["complete"] and not missing and place == path
            fits = _is_of(info, encoder, tileset) and _has_stamp(place, tileset)
            at_work = () if is_complete else _find_at_work(place, missing)
            return StoreState(_count(info, missing), is_complete, fits, at_work)
    return None


def _count(info: Mapping[str, Any], missing: list[int]) -> int:
    n_rows, rows = int(info["n_rows"]), int(info["chunk_rows"])
    return n_rows - sum(min(rows, n_rows - chunk * rows) for chunk in missing)


def _find_at_work(place: str, missing: list[int]) -> tuple[str, ...]:
    folder = files.join(place, store_files.LEASES)
    held = leases.find_leases(folder, map(str, missing)).values()
    n_held = Counter(lease.holder for lease in held if lease.is_living)
    who = sorted(one.who for one in leases.find_members(folder))
    return tuple(f"{one}, with {n_held[one]} chunks that are missing" for one in who)


def _is_of(info: Mapping[str, Any], encoder: Mapping[str, Any], tileset: Tileset) -> bool:
    wanted = json.loads(json.dumps({"encoder": encoder, "source": tileset.identity}))
    is_same = info["manifest_sha256"] == tileset.manifest.fingerprint()
    return bool(is_same and info["identity"] == wanted)


def _has_stamp(place: str, tileset: Tileset) -> bool:
    try:
        found = files.read_json(files.join(place, store_files.TILES, tile_record.STAMP))
    except (InputError, OSError):
        return False
    return bool(found == tile_record.make_stamp(tileset))
