"""Find the stores below a path: of one dataset, of one model, or of all models."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from pathorob_jax.core import checks, files
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.embeddings.store_files import INFO


class Place(NamedTuple):
    """Where a store is, and what its results are called."""

    path: str
    model: str
    dataset: str


def find_all(
    embeddings: Sequence[str], datasets: Sequence[str] = (), *, warn: bool = True
) -> list[Place]:
    """Find the stores of several paths, each store once; see ``find_datasets``.

    Raises:
        UsageError: there is no path, or two stores would have the same results.
    """
    if isinstance(embeddings, str) or not embeddings:
        raise UsageError(f"embeddings: expected a list of folders, found {embeddings!r}.")
    found = [place for path in embeddings for place in find_datasets(path, datasets, warn=warn)]
    places = list(dict.fromkeys(found))
    path_of: dict[tuple[str, str], str] = {}
    for path, model, dataset in places:
        other = path_of.setdefault((model, dataset), path)
        if other != path:
            raise UsageError(
                f"embeddings: {other} and {path} would both be results of {model} on {dataset}; "
                "evaluate them one by one, each with an --output of its own."
            )
    return places


def find_datasets(embeddings: str, names: Sequence[str] = (), *, warn: bool = True) -> list[Place]:
    """Find the stores that a path and names of datasets refer to.

    Args:
        embeddings: ``<root>/<model>/<dataset>``, ``<root>/<model>`` or ``<root>``.
        names: datasets; empty: all datasets with a store.
        warn: whether the log names what is left out.

    Returns:
        The complete stores. Unfinished ones are named in the log, and so are models that lack a
        dataset.

    Raises:
        FileNotFoundError: there is no store.
        InputError: no store is complete.
        UsageError: several datasets requested from a single store, or an unknown one.
    """
    if not embeddings:
        raise UsageError("embeddings: expected a folder, found an empty name.")
    path = embeddings if files.is_remote(embeddings) else os.path.abspath(embeddings)
    path = path.rstrip("/") or "/"
    parts = path.split("/")
    if files.exists(files.join(path, INFO)):
        if len(names) > 1:
            raise UsageError(
                f"dataset: {path} is the store of one dataset, found {list(names)}; give "
                "<root>/<model> to evaluate several."
            )
        return [Place(path, parts[-2], names[0] if names else parts[-1])]
    models = {parts[-1]: path}
    if not _list_datasets(path):
        models = {name: files.join(path, name) for name in files.list_folders(path)}
    found = {model: _list_datasets(folder) for model, folder in models.items()}
    found = {model: by_name for model, by_name in found.items() if by_name}
    if not found:
        raise FileNotFoundError(
            f"{path}: no embedding store; expected <root>/<model>/<dataset>, <root>/<model> or "
            "<root>, as experiments.extract or experiments.import_embeddings write them."
        )
    known = {name for by_name in found.values() for name in by_name}
    for name in names:
        checks.check_known(name, known, what=f"dataset (stores under {path})")
    wanted = [
        (Place(files.join(models[model], name), model, name), is_complete)
        for model, by_name in sorted(found.items())
        for name, is_complete in by_name.items()
        if not names or name in names
    ]
    order = {name: i for i, name in enumerate(names)}
    wanted.sort(key=lambda one: (one[0].model, order.get(one[0].dataset, 0)))
    for model in sorted(found) if warn else ():
        lacking = [name for name in names if name not in found[model]]
        if lacking:
            logging.warning("%s: has no store of %s", models[model], ", ".join(lacking))
    complete = [place for place, is_complete in wanted if is_complete]
    unfinished = [place.path for place, is_complete in wanted if not is_complete]
    mend = "run experiments.extract or experiments.import_embeddings again with the same flags"
    if not complete:
        raise InputError(f"{', '.join(unfinished)}: the store is unfinished; {mend}.")
    for one in unfinished if warn else ():
        logging.warning("%s: left out, the store is unfinished; %s", one, mend)
    return complete


def _list_datasets(path: str) -> dict[str, bool]:
    """Datasets that have a store under ``<root>/<model>``, sorted, and whether it is complete."""
    return {
        name: _is_complete(files.join(path, name, INFO))
        for name in files.list_folders(path)
        # A hidden one is not complete yet: it is to replace another (``store_swap``).
        if not name.startswith(".") and files.exists(files.join(path, name, INFO))
    }


def _is_complete(path: str) -> bool:
    """False only for a store that says so: to open a damaged one tells what is wrong with it."""
    try:
        info = files.read_json(path)
    except InputError:
        return True
    return not isinstance(info, dict) or info.get("complete") is not False
