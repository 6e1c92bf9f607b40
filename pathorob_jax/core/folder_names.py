"""Names that become folders: which are refused, and how a column's name becomes part of one.

The names of models and datasets are the user's choice, so unusable ones are refused. A column is
named by its table, so a character that no folder may have is written as ``%`` and its code.
"""

import re
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from pathorob_jax.core.checks import UsageError

# A folder's name may have 255 bytes; locks and unfinished copies beside it have longer names.
MAX_BYTES = 200
# Between a dataset and the column of its confounder.
SEPARATOR = "@"
_UNSAFE = re.compile(r"[%/\\@\x00-\x1f\x7f]|^[. ]|[. ]$")


def check_folder_name(name: str, *, what: str) -> None:
    """Raise UsageError unless ``name`` can be the name of a folder, here and on other systems."""
    why = ""
    if not name.strip():
        why = "it is empty"
    elif "/" in name or "\\" in name:
        why = "a folder would lie elsewhere"
    elif name.startswith("."):
        why = "names that begin with a dot are hidden"
    elif name != name.strip():
        why = "it has blanks around it"
    elif not name.isprintable():
        why = "it has an invisible character"
    elif name.lower().endswith(".json"):
        why = "that is the name of a file of results"
    elif len(name.encode()) > MAX_BYTES:
        why = f"it has more than {MAX_BYTES} bytes"
    if why:
        raise UsageError(f"{what}: expected a plain name without '/', found {_short(name)}: {why}.")


def check_dataset_name(name: str) -> None:
    """Raise UsageError unless ``name`` can be the name of a dataset's folder."""
    check_folder_name(name, what="dataset")
    if SEPARATOR in name:
        raise UsageError(
            f"dataset: expected a plain name without '{SEPARATOR}', which stands between a dataset "
            f"and the column of its confounder, found {name!r}; give another with --dataset."
        )


def check_layout_names(models: Iterable[str], taken: Sequence[str]) -> None:
    """Raise UsageError if a model has the name of a folder of PathoROB's layout."""
    for name in models:
        if name in taken:
            raise UsageError(
                f"layout: the model {name!r} has the name of a folder of PathoROB's layout; write "
                "the layout to another folder with experiments.export."
            )


def join_confounder(dataset: str, column: str) -> str:
    """``<dataset>@<column>``, the name of results with a column in the centre's place.

    Raises:
        UsageError: the column has no name, or too long a one.
    """
    encoded = _UNSAFE.sub(lambda found: "".join(f"%{b:02X}" for b in found[0].encode()), column)
    name = f"{dataset}{SEPARATOR}{encoded}"
    if not column or len(name.encode()) > MAX_BYTES:
        raise UsageError(
            f"center_column: expected the name of a column, at most {MAX_BYTES} bytes together "
            f"with the dataset's, found {_short(column)}; rename the column."
        )
    return name


def split_confounder(name: str) -> tuple[str, str]:
    """Dataset and column of ``join_confounder``; the column is empty if it is the centre's."""
    dataset, separator, column = name.rpartition(SEPARATOR)
    return (dataset, unquote(column)) if separator and dataset and column else (name, "")


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "...")
