"""Whether a folder holds results at all, which needs no metric's record."""

from pathorob_jax.core import files


def none_found(root: str) -> FileNotFoundError:
    """What to raise where there are no results."""
    return FileNotFoundError(
        f"{root}: no results found; expected <results>/<model>/<dataset>/<metric>.json, which "
        "experiments.evaluate writes."
    )


def check_any(root: str) -> None:
    """Raise FileNotFoundError if no folder of a model or of a dataset holds a JSON file.

    Stores hold one too, ``store.json``: it is no result.
    """
    for model in files.list_folders(root):
        top = files.join(root, model)
        for folder in (top, *(files.join(top, name) for name in files.list_folders(top))):
            if any(name != "store.json" for name in files.list_files(folder, ".json")):
                return
    raise none_found(root)
