"""Write a tileset anew with a robustifier of images: tileset -> tileset.

The new tileset is a folder of Parquet files with lossless images (PNG), all columns of the
manifest, its provenance in ``normalized.json`` and a copy of the robustifier in ``robustifier/``.
It is written in a hidden folder beside it, file by file, and moved to its place when it is
complete: a run that was killed goes on with the files that are missing.
"""

import contextlib
import io
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh
from PIL import Image

from pathorob_jax.core import devices, faults, files, hosts, leases, locks, sealed_files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.privacy import file_name
from pathorob_jax.core.progress import Progress
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.data.parquet_tiles import IMAGE_COLUMN, make_schema
from pathorob_jax.data.tileset import Tileset
from pathorob_jax.embeddings.tile_transform import count_left, count_outcomes
from pathorob_jax.robustify.robustifier_files import INFO as ROBUSTIFIER_INFO
from pathorob_jax.robustify.run import ROBUSTIFIER, choose_rows
from pathorob_jax.robustify.stain import STAIN_METHODS, StainRobustifier
from pathorob_jax.robustify.stain_files import load_stain, save_stain
from pathorob_jax.robustify.stain_fit import fit_stain, read_rows, split_by_size

INFO = "normalized.json"
SCHEMA_VERSION = 1
ROWS_PER_FILE, ROWS_PER_GROUP = 512, 128
# zlib's fastest: others save a tenth of the bytes for three times the time.
PNG_LEVEL = 1
_PLAN, _OUTCOMES = "plan.json", ".outcomes.json"
# In the folder beside the output while it is made: the new tileset, and what processes share.
_NEW, LEASES, _FIT = "new", "leases", "fit"


class Written(NamedTuple):
    """A tileset that was written.

    Attributes:
        path: its folder.
        n_tiles: its tiles.
        n_unchanged: those of them that were left as they are.
    """

    path: str
    n_tiles: int
    n_unchanged: int


def normalize_tileset(
    tileset: Tileset,
    stain: StainRobustifier,
    path: str,
    *,
    overwrite: bool = False,
    workers: int = 0,
    mesh: Mesh | None = None,
) -> Written:
    """Write the normalised tiles of a tileset to the folder ``path``, completely or not at all.

    Args:
        tileset: the parent.
        stain: see ``stain_fit.fit_stain``.
        path: a local folder, new or empty.
        overwrite: replace a tileset that this function wrote there.
        workers: number of decoding processes; 0: decode in threads.
        mesh: devices that share the tiles; None: the first device. With devices of several
            processes, all must call at the same time, and ``path`` is a folder that all see.

    Raises:
        InputError: a tile cannot be decoded; the robustifier does not know a slide or centre;
            ``path`` is remote, or holds something that may not be replaced, or cannot be written.

    >>> import pathorob_jax as pr
    >>> from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
    >>> write_tileset("tiles", SyntheticConfig(n_slides=1, n_tiles=2, tile_px=64))
    32
    >>> tileset = pr.open_tileset("tiles")
    >>> stain = pr.fit_stain(tileset, method="macenko")
    >>> pr.normalize_tileset(tileset, stain, "normalized").n_tiles
    32
    >>> len(pr.open_tileset("normalized"))
    32
    """
    if files.is_remote(path):
        raise InputError(f"{path}: expected a local folder; write there and copy it.")
    path = os.path.realpath(os.path.expanduser(path))
    if not files.is_remote(tileset.path) and path == os.path.realpath(tileset.path):
        raise UsageError(f"output: {path} is the tileset to be normalised; give another folder.")
    if IMAGE_COLUMN in tileset.manifest:
        raise InputError(
            f"{tileset.manifest.source}: the column {IMAGE_COLUMN!r} would become the images; "
            "rename it."
        )
    group = stain.find_groups(tileset.manifest)
    plan = {
        "schema_version": SCHEMA_VERSION,
        "parent": {"source": file_name(tileset.path), "tileset_sha256": tileset.fingerprint},
        "robustifier_sha256": stain.describe()["sha256"],
        "method": stain.method,
        "target": stain.target,
        "scope": stain.scope,
        "n_tiles": len(tileset),
    }
    there = _find_there(path, plan, overwrite=overwrite)
    if there is not None:
        return there
    here = devices.local_mesh(mesh or _first_device())
    with faults.writing(path), contextlib.ExitStack() as held:
        work = _work_folder(path)

        def begin(lead: bool) -> str:
            if lead:
                place = files.join(os.path.dirname(path), f".{os.path.basename(path)}.lock")
                held.callback(locks.acquire(place, doing="writing this tileset").release)
                return _begin(work, plan | {"stamp": tileset.stamp})
            return files.join(work, _NEW)

        fresh = hosts.lead_first("tilesets", mesh, begin)
        with hosts.together_on(mesh, "tiles"):
            _write_missing(fresh, tileset, stain, group, workers=workers, mesh=here)
        with hosts.together_on(mesh, "tilesets"):
            if hosts.leads(mesh):
                written = _finish(fresh, tileset, stain, plan, path)
                files.put_folder(fresh, path, aside=files.join(work, "old"))
                shutil.rmtree(work)
        return written if hosts.leads(mesh) else _read_written(path)


def _work_folder(path: str) -> str:
    """The folder beside a tileset in which it is made."""
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    return files.join(parent, f".{name}.partial")


def _find_there(path: str, plan: dict[str, Any], *, overwrite: bool) -> Written | None:
    """The tileset that lies there already; None: there is none, or it may be replaced."""
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InputError(f"{path}: expected a folder or nothing, found a file.")
    found = sorted(os.listdir(path)) if os.path.isdir(path) else []
    if not found:
        return None
    if INFO not in found:
        raise InputError(
            f"{path}: expected no folder, an empty one or a normalised tileset, found "
            f"{len(found)} entries ({found[0]}, ...) without {INFO}; nothing was removed. Choose "
            "another path."
        )
    if overwrite:
        return None
    mend = "Give another --output, or --overwrite to replace it."
    try:
        info = sealed_files.read_json(files.join(path, INFO), schema_version=SCHEMA_VERSION)
    except InputError as error:
        raise InputError(f"{error} {mend}") from error
    differing = [key for key, value in plan.items() if info.get(key) != value]
    if differing:
        raise InputError(f"{path}: holds another tileset ({', '.join(differing)} differ). {mend}")
    return Written(path, info["n_tiles"], info["n_unchanged"])


def _read_written(path: str) -> Written:
    """The tileset that process 0 has put in its place."""
    info = sealed_files.read_json(files.join(path, INFO), schema_version=SCHEMA_VERSION)
    return Written(path, info["n_tiles"], info["n_unchanged"])


def _begin(work: str, plan: dict[str, Any]) -> str:
    """The folder that is being filled; anew, unless a run of the same plan has left it."""
    fresh, kept = files.join(work, _NEW), files.join(work, _PLAN)
    try:
        same = sealed_files.read_json(kept, schema_version=SCHEMA_VERSION) == plan
    except (InputError, FileNotFoundError):
        same = False
    if not same:
        shutil.rmtree(work, ignore_errors=True)
    os.makedirs(fresh, exist_ok=True)
    files.sweep(fresh)
    shutil.rmtree(files.join(work, LEASES), ignore_errors=True)
    sealed_files.write_json(kept, plan)
    return fresh


def _names(n_rows: int) -> list[str]:
    n_files = -(-n_rows // ROWS_PER_FILE)
    return [f"train-{i:05d}-of-{n_files:05d}.parquet" for i in range(n_files)]


def _write_missing(
    folder: str,
    tileset: Tileset,
    stain: StainRobustifier,
    group: np.ndarray,
    *,
    workers: int,
    mesh: Mesh,
) -> None:
    """Write each Parquet file, and after it what became of its rows; processes share the files."""
    names, rows = _names(len(tileset)), np.arange(len(tileset))
    part_of = {name: rows[i * ROWS_PER_FILE :][:ROWS_PER_FILE] for i, name in enumerate(names)}

    def find_missing() -> list[str]:
        return [name for name in names if _read_outcomes(folder, name) is None]

    n_missing = sum(len(part_of[name]) for name in find_missing())
    done = len(rows) - n_missing
    table = tileset.manifest.table
    schema = make_schema(table.column_names)
    with (
        Progress("normalise", total=len(rows), unit="tile", done=done) as progress,
        ThreadPoolExecutor(hosts.n_cores()) as pool,
        leases.Member(files.join(os.path.dirname(folder), LEASES)) as member,
    ):
        for name in leases.take_missing(member, find_missing):
            part = part_of[name]
            images: dict[int, Any] = {}
            outcomes: dict[int, int] = {}
            for batch in read_rows(tileset, part, workers=workers, n_devices=mesh.size):
                for tiles, numbers in split_by_size(batch):
                    pieces = np.array_split(np.arange(len(tiles)), min(mesh.size, len(tiles)))
                    started = [
                        stain.normalize_on(device, tiles[piece], group[numbers[piece]])
                        for device, piece in zip(mesh.devices.flat, pieces, strict=False)
                    ]
                    new = np.concatenate([np.asarray(out) for out, _ in started])
                    found = np.concatenate([np.asarray(part) for _, part in started])
                    encoded = pool.map(_encode, new)
                    images |= zip(numbers.tolist(), encoded, strict=True)
                    outcomes |= zip(numbers.tolist(), found.tolist(), strict=True)
                    progress.update(len(tiles))
            column = [{"bytes": images[row], "path": None} for row in part.tolist()]
            rest = table.take(pa.array(part)).cast(pa.schema(list(schema)[1:]))
            whole = rest.add_column(0, schema.field(0), pa.array(column, schema.field(0).type))
            sink = io.BytesIO()
            pq.write_table(
                whole.replace_schema_metadata(schema.metadata),
                sink,
                row_group_size=ROWS_PER_GROUP,
                compression={n: "none" if n == IMAGE_COLUMN else "zstd" for n in schema.names},
                write_page_checksum=True,
            )
            files.write_bytes(files.join(folder, name), sink.getvalue())
            value = {
                "schema_version": SCHEMA_VERSION,
                "outcomes": [outcomes[r] for r in part.tolist()],
            }
            sealed_files.write_json(files.join(folder, name + _OUTCOMES), value)
        progress.others_did(n_missing + done)


def _read_outcomes(folder: str, name: str) -> list[int] | None:
    """What became of the rows of a Parquet file; None: it is missing, or this is damaged."""
    path = files.join(folder, name + _OUTCOMES)
    try:
        found: list[int] = sealed_files.read_json(path, schema_version=SCHEMA_VERSION)["outcomes"]
    except (InputError, FileNotFoundError):
        return None
    return found


def _encode(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", compress_level=PNG_LEVEL)
    return sink.getvalue()


def _finish(
    folder: str, tileset: Tileset, stain: StainRobustifier, plan: dict[str, Any], path: str
) -> Written:
    """Write robustifier, examples and provenance, which replaces the outcomes of the files."""
    names = _names(len(tileset))
    outcomes = [outcome for name in names for outcome in _read_outcomes(folder, name) or []]
    counts = count_outcomes(np.array(outcomes), tileset.manifest)
    save_stain(stain, files.join(folder, ROBUSTIFIER))
    stain.write_examples(folder, tileset, counts)
    about = {
        "n_unchanged": count_left(counts),
        "outcomes": counts,
        "versions": software_versions(),
    }
    sealed_files.write_json(files.join(folder, INFO), plan | about)
    for name in names:
        files.remove(files.join(folder, name + _OUTCOMES))
    return Written(path, len(tileset), count_left(counts))


def _first_device() -> Mesh:
    return devices.make_mesh(jax.local_devices()[:1])


def robustify_tileset(
    tileset: Tileset,
    *,
    output: str | None,
    method: str | None,
    robustifier: str | None = None,
    fit_rows: str | None = None,
    target: str | None = None,
    scope: str | None = None,
    workers: int = 0,
    overwrite: bool = False,
    mesh: Mesh | None = None,
) -> tuple[StainRobustifier, Written | None]:
    """Fit a robustifier of images on a tileset, or load one, and write the tileset anew with it.

    Args:
        tileset: tiles.
        output: folder of the new tileset; None: the robustifier is fitted and saved, no more.
        method: a name of ``STAIN_METHODS``; None: ``robustifier`` is loaded.
        robustifier: folder of the robustifier, to keep the one that is fitted or to load one; None:
            the new tileset's ``robustifier/`` alone.
        fit_rows: rows that the target is taken from; see ``run.choose_rows``.
        target: see ``fit_stain``; None: ``mean``.
        scope: see ``fit_stain``; None: ``tile``.
        workers: number of decoding processes; 0: decode in threads.
        overwrite: replace a normalised tileset and a robustifier of another configuration.
        mesh: see ``normalize_tileset``; process 0 fits.

    Raises:
        UsageError: options do not go together.
        InputError: see ``fit_stain`` and ``normalize_tileset``.
    """
    if method is None and robustifier is None:
        raise UsageError(
            "method: give --method to fit a robustifier, or --robustifier to apply one."
        )
    if output is None and (method is None or robustifier is None):
        raise UsageError(
            "output: give the folder of the new tileset; or --method and --robustifier=<folder>, "
            "to fit and save a robustifier alone."
        )
    chosen = {"fit_rows": fit_rows, "target": target, "scope": scope}
    given = [name for name, value in chosen.items() if value is not None]
    if method is None and given:
        raise UsageError(
            f"{', '.join(given)}: a saved robustifier is fitted already; leave it out, or give "
            "--method to fit another."
        )
    if method is not None and method not in STAIN_METHODS:
        raise UsageError(
            f"method: {method} changes embeddings; give --embeddings, or a method for images "
            f"({', '.join(STAIN_METHODS)})."
        )
    if method is None:
        stain = load_stain(str(robustifier))
    else:
        options = {name: value for name, value in (("target", target), ("scope", scope)) if value}
        with hosts.together_on(mesh, "robustifier"):
            if hosts.leads(mesh):
                rows = None if fit_rows is None else choose_rows(tileset, fit_rows)
                here = None if mesh is None else devices.local_mesh(mesh)
                stain = fit_stain(
                    tileset, method=method, rows=rows, workers=workers, mesh=here, **options
                )
                if robustifier is not None:
                    _keep(stain, robustifier, overwrite=overwrite)
        if hosts.is_joint(mesh):
            stain = _tell_all(stain if hosts.is_lead() else None, robustifier, output)
    if output is None:
        return stain, None
    written = normalize_tileset(
        tileset, stain, output, overwrite=overwrite, workers=workers, mesh=mesh
    )
    return stain, written


def _tell_all(
    stain: StainRobustifier | None, robustifier: str | None, output: str | None
) -> StainRobustifier:
    """The robustifier that process 0 has fitted, for all: another host could find other bits."""
    folder = robustifier or files.join(_work_folder(os.path.realpath(str(output))), _FIT)
    with hosts.together("robustifier"):
        if stain is not None and robustifier is None:
            save_stain(stain, folder)
    return load_stain(folder)


def _keep(stain: StainRobustifier, folder: str, *, overwrite: bool) -> None:
    """Save a robustifier, unless the folder holds it already."""
    if files.exists(files.join(folder, ROBUSTIFIER_INFO)) and not overwrite:
        if load_stain(folder).describe()["sha256"] == stain.describe()["sha256"]:
            return
        raise InputError(
            f"{folder}: holds another robustifier, fitted on other tiles or in another way. Give "
            "another --robustifier=<folder>, or --overwrite to replace it."
        )
    save_stain(stain, folder)
