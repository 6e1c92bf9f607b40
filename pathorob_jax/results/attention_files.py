"""What classifiers of slides see, patch by patch, on disk: Parquet tables with a digest.

One file per slide: where each patch lies, how much attention it got, and what a bag of this patch
alone would be called (its score for every class).
"""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.core import digests, files
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import PATCH, SLIDE

SCHEMA_VERSION = 2
X, Y, ATTENTION = "x", "y", "attention"
SCORE = "score_"
# Of a result folder.
FOLDER = "attention"


class AttentionMap(NamedTuple):
    """The patches of a slide as read.

    Attributes:
        title: preset, slide, and how the classifier was trained.
        table: text columns ``slide_id`` and ``patch_id``, float64 columns ``x``, ``y``,
            ``attention`` (sum 1) and ``score_<class>``.
    """

    title: str
    table: pa.Table

    @property
    def classes(self) -> list[str]:
        """Names of the scores, in the order of the columns."""
        names = self.table.column_names
        return [name.removeprefix(SCORE) for name in names if name.startswith(SCORE)]


def write_attention(
    path: str,
    title: str,
    *,
    names: Mapping[str, Sequence[str]],
    places: np.ndarray,
    attention: np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write the patches of a slide, atomically.

    Args:
        path: file.
        title: preset, slide, and how the classifier was trained.
        names: columns ``slide_id`` and ``patch_id`` of n patches.
        places: float[n, 2] x and y.
        attention: float[n].
        scores: float[n, C].
        classes: names of the scores.
    """
    columns: dict[str, pa.Array] = {
        name: pa.array(list(names[name]), pa.string()) for name in (SLIDE, PATCH)
    }
    numbers = {X: places[:, 0], Y: places[:, 1], ATTENTION: attention}
    numbers |= {f"{SCORE}{name}": scores[:, i] for i, name in enumerate(classes)}
    columns |= {name: pa.array(np.asarray(v, np.float64)) for name, v in numbers.items()}
    table = pa.table(columns)
    facts = {"title": title, "schema_version": str(SCHEMA_VERSION), "digest": _digest(title, table)}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(facts), sink)
    files.write_bytes(path, sink.getvalue())


def _digest(title: str, table: pa.Table) -> str:
    return digests.digest_json({"title": title, "columns": table.to_pydict()})


def read_attention(path: str) -> AttentionMap:
    """Read the patches of a slide back.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is not one of these, or not as it was written.
    """
    data = files.read_bytes(path)
    try:
        table = pq.read_table(io.BytesIO(data))
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        title, table = metadata["title"], table.replace_schema_metadata(None)
        is_whole = metadata["digest"] == _digest(title, table)
    except (*files.UNREADABLE, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read as a map of attention ({files.describe(error)}); evaluate "
            "slide_prediction again into an empty folder."
        ) from error
    if not is_whole or metadata.get("schema_version") != str(SCHEMA_VERSION):
        raise InputError(
            f"{path}: not as it was written; evaluate slide_prediction again into an empty folder."
        )
    return AttentionMap(title, table)
