"""One Parquet file: the columns of the manifest, and ``embedding`` as a fixed-size list."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from pathorob_jax.embeddings.exports.blocks import columns_of, read_blocks
from pathorob_jax.embeddings.store import Store

EMBEDDING = "embedding"
ORIGIN = b"pathorob_jax"


def write_parquet(store: Store, path: str) -> None:
    """Write a store as Parquet, a row group per block.

    ``embedding`` is a fixed-size list of D floats (float32); the metadata of the schema hold JSON
    of the encoder, its source and the versions under ``pathorob_jax``.

    Raises:
        InputError: the manifest has a column of that name.
    """
    columns = columns_of(store.manifest, EMBEDDING, form="parquet")
    vector = pa.list_(pa.field("item", pa.float32(), nullable=False), store.dim)
    schema = pa.schema(
        [*((name, pa.string()) for name in columns), pa.field(EMBEDDING, vector, nullable=False)],
        metadata={ORIGIN: json.dumps(store.provenance(), sort_keys=True).encode()},
    )
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=list(columns), write_statistics=False
    ) as writer:
        for block in read_blocks(store):
            stop = block.start + len(block.rows)
            texts = [
                pa.array(values[block.start : stop], pa.string()) for values in columns.values()
            ]
            flat = pa.array(block.embeddings.reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, type=vector)
            writer.write_table(pa.Table.from_arrays([*texts, lists], schema=schema))
