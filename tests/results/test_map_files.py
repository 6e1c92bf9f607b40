"""Maps on disk, of embeddings and of attention: what is not as it was written is refused."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stores

from pathorob_jax.core.checks import InputError
from pathorob_jax.results.attention_files import read_attention, write_attention
from pathorob_jax.results.map_files import COORDINATES, NEAREST, read_map, write_map


@pytest.fixture
def written(tmp_path):
    """The table of a map of four rows, without what seals it, and where it lies."""
    path = str(tmp_path / "dataset.parquet")
    rows = stores.make_manifest([0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 2, 3])
    nearest = np.tile(np.array([2, -1, -1, 1, -1, -1], np.int32), (4, 1))
    write_map(path, "all rows", rows, np.arange(16.0).reshape(4, 4), nearest)
    return pq.read_table(path).replace_schema_metadata(None), path


def with_column(table, name, values):
    place = table.column_names.index(name)
    return table.set_column(place, name, pa.chunked_array([values]))


def test_a_map_without_a_digest_is_read_and_unchecked(written):
    table, path = written
    assert read_map(path).is_checked
    pq.write_table(table, path)
    found = read_map(path)
    assert (found.is_checked, found.title) == (False, "")
    assert found.table == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["tsne_2"]), r"lacks the columns \['tsne_2'\] or values of them"),
        (lambda t: t.drop_columns([NEAREST[0]]), r"lacks the columns \['so_1'\] or values"),
        (
            lambda t: with_column(t, "slide_id", pa.array(["s", None, "s", "s"])),
            r"lacks the columns \['slide_id', .*\] or values of them; make it again",
        ),
        (
            lambda t: with_column(t, "pca_1", pa.array([0.0, np.inf, 0.0, 0.0])),
            "found coordinates that are not finite",
        ),
        (
            lambda t: with_column(t, "os_1", pa.array([0, 1, 2, 4], pa.int32())),
            "found nearest rows that it does not have",
        ),
        (
            lambda t: with_column(t, "os_1", pa.array([0, 1, 2, -2], pa.int32())),
            "found nearest rows that it does not have",
        ),
    ],
)
def test_a_table_that_is_no_map_is_refused(written, change, message):
    table, path = written
    pq.write_table(change(table), path)
    with pytest.raises(InputError, match=rf"dataset\.parquet: expected a map, .*{message}"):
        read_map(path)


def test_a_map_that_was_changed_is_refused(written):
    table, path = written
    facts = pq.read_table(path).schema.metadata
    changed = with_column(table, COORDINATES[0], pa.array([0.0, 0.0, 0.0, 0.0]))
    pq.write_table(changed.replace_schema_metadata(facts), path)
    with pytest.raises(InputError, match=r"dataset\.parquet: not as it was written; make it again"):
        read_map(path)


@pytest.mark.parametrize("fact", ["title", "schema_version"])
def test_a_map_of_attention_that_was_changed_is_refused(tmp_path, fact):
    path = tmp_path / "slide.parquet"
    write_attention(
        str(path),
        "s1 (tumor), mean",
        names={"slide_id": ["s1"] * 2, "patch_id": ["0", "1"]},
        places=np.array([[0.0, 0.0], [0.0, 224.0]]),
        attention=np.array([0.25, 0.75]),
        scores=np.array([[0.5, -0.5], [1.0, 2.0]]),
        classes=("normal", "tumor"),
    )
    assert read_attention(str(path)).title == "s1 (tumor), mean"
    table = pq.read_table(io.BytesIO(path.read_bytes()))
    facts = table.schema.metadata | {fact.encode(): b"9"}
    pq.write_table(table.replace_schema_metadata(facts), path)
    with pytest.raises(InputError, match=r"slide\.parquet: not as it was written; evaluate slide"):
        read_attention(str(path))
