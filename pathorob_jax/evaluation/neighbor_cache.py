"""Cache of neighbour graphs in the folder of their store: ``<store>/neighbors/<name>.npz``.

Everything works without the cache. The name of a graph is a digest of the data that it depends on,
so a graph of other rows, groups or labels is never used.
"""

import json
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from pathorob_jax.core import cost, files, hosts, scratch, sealed_files
from pathorob_jax.core.checks import InputError
from pathorob_jax.evaluation.neighbor_graph import (
    SCHEMA_VERSION,
    NeighborGraph,
    SearchInput,
    describe,
    find_graph,
)
from pathorob_jax.kernels.neighbors.search import Neighbors

FOLDER = "neighbors"
TYPED = ("same_other", "other_same")
# A cache must not fill disks unasked.
LARGEST_FILE_BYTES, LARGEST_STREAMED_BYTES = 2**30, 2**28


def reuse_or_find(
    folder: str, search_input: SearchInput, *, k: int, m: int, mesh: Mesh, **options: Any
) -> NeighborGraph:
    """Load a matching graph from ``<folder>/neighbors``, or search a new one and keep it there.

    A graph matches if rows, groups and scopes are the same, it has at least as many neighbours per
    row, and, if typed neighbours are wanted, the labels are the same too. If a new graph cannot be
    kept (no permission, no space, larger than ``LARGEST_FILE_BYTES``), this is logged and the graph
    is returned.

    Args:
        folder: folder of the store.
        search_input: rows and scopes.
        k: neighbours of any type.
        m: neighbours of each decisive type; 0: none.
        mesh: see ``find_graph``.
        **options: the other arguments of ``find_graph``.
    """
    wanted = describe(search_input, k=k, m=m) | {"precision": options["precision"]}
    cache = files.join(folder, FOLDER)
    with hosts.together_on(mesh, "kept neighbours"):
        graph = _find_kept(cache, search_input, wanted)
    # One process may have looked before another run wrote the graph: either all use it or none.
    is_kept = np.asarray([graph is not None])
    if hosts.is_joint(mesh):
        is_kept = hosts.gather(is_kept)
    if graph is not None and is_kept.all():
        cost.note_reused()
        return graph
    graph = find_graph(search_input, k=k, m=m, mesh=mesh, **options)
    labels = wanted["labels_sha256"][:8] if m else "any"
    path = files.join(cache, f"{_prefix(wanted)}-{labels}-k{k}-m{m}.npz")
    if hosts.leads(mesh):
        try:
            save_graph(path, graph)
        except (InputError, OSError) as error:
            logging.warning("neighbours are not kept: %s", error)
    return graph


def _find_kept(
    cache: str, search_input: SearchInput, wanted: dict[str, Any]
) -> NeighborGraph | None:
    """A graph that matches; None if there is none."""
    for name in files.list_files(cache, ".npz") if files.exists(cache) else []:
        if not name.startswith(_prefix(wanted)):
            continue
        path = files.join(cache, name)
        try:
            graph = load_graph(path)
        except InputError as error:
            logging.warning("%s It is left alone, and the neighbours are searched for.", error)
            continue
        if _serves(graph.info, wanted) and _fits(graph, search_input):
            logging.info("neighbours: %s", path)
            return graph
    return None


def save_graph(path: str, graph: NeighborGraph) -> None:
    """Write a graph, atomically: ``.npz`` of indices, distances and ``info`` as JSON.

    Raises:
        InputError: the graph is larger than ``LARGEST_FILE_BYTES``, or than
            ``LARGEST_STREAMED_BYTES`` if its lists lie in scratch files.
    """
    arrays: dict[str, Any] = {"indices": graph.any.indices, "distances": graph.any.distances}
    for name in TYPED:
        lists = getattr(graph, name)
        if lists is not None:
            arrays |= {f"{name}_indices": lists.indices, f"{name}_distances": lists.distances}
    size = sum(a.nbytes for a in arrays.values())
    # A file is written from memory, which has no room for the lists of a streamed search.
    is_streamed = scratch.is_scratch(graph.any.indices)
    largest = LARGEST_STREAMED_BYTES if is_streamed else LARGEST_FILE_BYTES
    if size > largest:
        raise InputError(f"{path}: would take {size} bytes, more than {largest}.")
    arrays["info"] = np.array(json.dumps(graph.info, sort_keys=True))
    sealed_files.write_arrays(path, arrays, schema_version=SCHEMA_VERSION)


def load_graph(path: str) -> NeighborGraph:
    """Read a graph back.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not a neighbour graph, has another schema, or is not as it was
            written.
    """
    mend = "Remove it; it is made again when needed."
    try:
        arrays = sealed_files.read_arrays(path, schema_version=SCHEMA_VERSION)
        return _as_graph(arrays)
    except InputError as error:
        raise InputError(f"{error} {mend}") from error
    except files.UNREADABLE as error:
        raise InputError(
            f"{path}: expected a neighbour graph, found other contents "
            f"({files.describe(error)}). {mend}"
        ) from error


def _as_graph(arrays: dict[str, np.ndarray]) -> NeighborGraph:
    """The graph that arrays hold; an error of ``files.UNREADABLE`` if they hold none."""
    info = json.loads(str(arrays["info"]))
    lists = [_as_neighbors(arrays["indices"], arrays["distances"])]
    for name in TYPED:
        if f"{name}_indices" in arrays:
            lists.append(_as_neighbors(arrays[f"{name}_indices"], arrays[f"{name}_distances"]))
    depths = [info["k"], *([info["m"]] * len(TYPED) if info["m"] else [])]
    if [part.indices.shape[2] for part in lists] != depths:
        raise ValueError("depths")
    return NeighborGraph(info, *lists)


def _as_neighbors(indices: np.ndarray, distances: np.ndarray) -> Neighbors:
    """Two arrays as lists of neighbours, after a look at dtypes, shapes and rows."""
    if indices.dtype != np.int32 or distances.dtype != np.float32 or indices.ndim != 3:
        raise ValueError("dtypes")
    if indices.shape != distances.shape:
        raise ValueError("shapes")
    if indices.size and not (indices.min() >= -1 and indices.max() < indices.shape[1]):
        raise ValueError("rows")
    return Neighbors(indices, distances)


def _prefix(info: dict[str, Any]) -> str:
    return f"{info['rows_sha256'][:16]}-{info['scopes_sha256'][:8]}"


def _serves(there: dict[str, Any], wanted: dict[str, Any]) -> bool:
    same = ["pathorob_jax", "rule", "rows_sha256", "scopes_sha256", "precision"]
    same += ["labels_sha256", "m"] if wanted["m"] else []
    return there["k"] >= wanted["k"] and all(there.get(key) == wanted[key] for key in same)


def _fits(graph: NeighborGraph, search_input: SearchInput) -> bool:
    """Whether a graph has the scopes and rows of the search."""
    return graph.any.indices.shape[:2] == (len(search_input.scopes), search_input.size)
