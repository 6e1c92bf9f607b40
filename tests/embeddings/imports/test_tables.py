"""Tables with a column of embeddings: which column it is, and what is refused of it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.embeddings.imports import tables
from pathorob_jax.embeddings.imports.source import Ask

N, D = 5, 3


@pytest.fixture
def x(rng):
    return rng.normal(size=(N, D)).astype(np.float32)


def write_arrow(path, *tables):
    """An Arrow file of one batch a table."""
    schema = tables[0].schema
    with pa.ipc.new_file(str(path), schema) as writer:
        for table in tables:
            batches = table.combine_chunks().to_batches()
            batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)
            writer.write_batch(batch)
    return str(path)


def table_of(x, /, **columns):
    return pa.table({"embedding": pa.array(x.tolist(), pa.list_(pa.float32())), **columns})


def test_batches_without_rows_and_files_without_rows(tmp_path, x):
    table = table_of(x, slide_id=list("aabbc"), x=[1, 2, 3, 4, 5], y=[0] * N)
    path = write_arrow(tmp_path / "a.arrow", table[:2], table[:0], table[2:])
    source = tables.read_arrow(Ask(path))
    np.testing.assert_array_equal(source.take(np.arange(N)), x)
    assert source.column("slide_id").to_pylist() == list("aabbc")
    np.testing.assert_array_equal(source.coords(), [[1, 0], [2, 0], [3, 0], [4, 0], [5, 0]])
    (tmp_path / "parts").mkdir()
    for name, part in (("a", table[:0]), ("b", table)):
        pq.write_table(part, tmp_path / "parts" / f"{name}.parquet")
    source = tables.read_parquet(Ask(str(tmp_path / "parts")))
    assert len(source) == N
    assert "1 files hold no patch, the first is" in source.said[0]


def test_a_column_of_embeddings_alone(tmp_path, x):
    [piece] = tables.read_arrow(Ask(write_arrow(tmp_path / "a.arrow", table_of(x)))).pieces
    np.testing.assert_array_equal(piece.take(np.arange(N)), x)
    assert (piece.n_rows, piece.columns, piece.patches) == (N, {}, None)


def test_a_column_of_tensors_is_one_of_lists(tmp_path, x):
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
    path = write_arrow(tmp_path / "a.arrow", pa.table({"features": column}))
    source = tables.read_arrow(Ask(path))
    assert source.pieces[0].where == f"{path}: features"
    np.testing.assert_array_equal(source.take(np.array([1, 4])), x[[1, 4]])


def test_of_several_columns_the_one_that_is_named_so_or_asked_for(tmp_path, x):
    table = table_of(x, logits=pa.array((2 * x).tolist(), pa.list_(pa.float32())))
    path = write_arrow(tmp_path / "a.arrow", table)
    np.testing.assert_array_equal(tables.read_arrow(Ask(path)).take(np.arange(N)), x)
    other = tables.read_arrow(Ask(path, encoder="logits"))
    np.testing.assert_array_equal(other.take(np.arange(N)), 2 * x)
    path = write_arrow(tmp_path / "b.arrow", table.rename_columns(["uni", "conch"]))
    with pytest.raises(InputError, match="Name one with --encoder: uni, conch"):
        tables.read_arrow(Ask(path))


@pytest.mark.parametrize(
    ("lists", "part"),
    [
        ([[1.0, 2.0], None], r"embedding: 1 rows have no embedding\. Leave them out"),
        ([[], [1.0]], "embedding: the first row has an empty list"),
        ([[1.0, 2.0], [1.0]], "embedding: has 1 dimensions, the first row 2. All must come from"),
        ([[1.0, 2.0], [1.0, None]], r"embedding: 1 values are missing\. Extract again"),
        ([1.0, 2.0], r"expected a column of lists of floats, found \['embedding'\]\. Write each"),
    ],
)
def test_what_is_no_embedding_is_refused(tmp_path, lists, part):
    pq.write_table(pa.table({"embedding": lists}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet: {part}"):
        tables.read_parquet(Ask(str(tmp_path / "a.parquet"))).take(np.arange(2))


def test_a_needed_column_that_is_no_text_is_refused(tmp_path, x):
    pq.write_table(table_of(x, patch_id=[[i] for i in range(N)]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'patch_id': expected text or num"):
        tables.read_parquet(Ask(str(tmp_path / "a.parquet")))


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path, x):
    path = write_arrow(tmp_path / "a.arrow", table_of(x))
    source = tables.read_arrow(Ask(path))
    write_arrow(tmp_path / "a.arrow", table_of(x[:2]))
    with pytest.raises(InputError, match=r"a\.arrow: embedding: cannot be read \(it ends early\)"):
        source.take(np.arange(N))
