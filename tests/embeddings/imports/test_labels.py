"""Labels of rows: which columns are read, which are left out, and what is said of the others."""

import numpy as np
import pyarrow as pa
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import labels
from pathorob_jax.embeddings.imports.source import Piece, Source

NOT_UTF8 = pa.array([b"\xff", b"a"]).view(pa.string())


def source_of(patches=None, **columns):
    """A source of two rows."""
    piece = Piece("x.npz", 2, 3, lambda rows: np.ones((len(rows), 3)), columns=columns)
    return Source("x.npz", [piece._replace(patches=patches)], "")


def test_columns_that_are_no_text_are_left_out_unless_they_are_needed():
    table = pa.table({"slide_id": ["a", "b"], "boxes": [[1], [2]], "note": NOT_UTF8})
    assert list(labels.read_labels(table, {}).columns) == ["slide_id"]
    for name, found in (("boxes", "list"), ("note", "string")):
        message = f"manifest: column '{name}': expected text or numbers, found {found}"
        with pytest.raises(InputError, match=message):
            labels.read_labels(table, {"patch_id": name})


def test_a_column_stands_once(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("slide_id,class,slide_id \na,x,b\n")
    message = r"rows\.csv: expected each column once, found \['slide_id'\] more than once"
    with pytest.raises(InputError, match=message):
        labels.read_labels(str(path), {})


def test_groups_are_slides_where_nothing_names_slides():
    columns = {"patch_id": ["q", "p"], "group_id": ["h", "g"]}
    columns |= {"biological_class": ["y", "x"], "medical_center": ["B", "A"]}
    table = labels.read_labels(columns, {})
    joined = labels.join(source_of(["p", "q"]), table, {})
    assert joined.rows.column("slide_id").tolist() == ["h", "g"]
    assert joined.positions.tolist() == [1, 0]
    assert "slides are the groups of column 'group_id'" in joined.how


def test_columns_of_a_tool_that_cannot_be_kept_are_left_out():
    needed = {"slide_id": ["a", "b"], "biological_class": ["x", "y"], "medical_center": ["A", "B"]}
    odd = {"half": ["\ud800", "b"], "a\x01b": ["1", "2"], "note": ["1", "2"]}
    joined = labels.join(source_of(**needed, **odd), None, {})
    kept = joined.rows.table.column_names
    assert set(kept) == {*needed, "patch_id", "note"}
    assert joined.how[0] == "labels are x.npz's own"
