"""Small tilesets of either form, for the tests that read them."""

import io
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

H, W, N = 20, 24, 11
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class Tiles(NamedTuple):
    """N tiles and their manifest columns."""

    pixels: np.ndarray
    columns: dict[str, list[str]]

    def encoded(self, row, form="PNG", **options):
        return encode(Image.fromarray(self.pixels[row]), form, **options)


def encode(image, form="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def make_tiles(rng) -> Tiles:
    columns = {
        "slide_id": [f"s{i // 2}" for i in range(N)],
        "patch_id": [f"00{i}" for i in range(N)],
        "biological_class": [("tumor", "normal")[i % 2] for i in range(N)],
        "medical_center": [("A", "B")[i // 2 % 2] for i in range(N)],
    }
    return Tiles(rng.integers(0, 256, (N, H, W, 3), np.uint8), columns)


def write_folder(path, tiles, *, data=None):
    """Image files in subfolders beside manifest.csv."""
    names = [f"{slide}/{i}.png" for i, slide in enumerate(tiles.columns["slide_id"])]
    table = tiles.columns | {"path": names}
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    path.mkdir()
    (path / "manifest.csv").write_text("\n".join(lines))
    for i, name in enumerate(names):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(tiles.encoded(i) if data is None else data[i])
    return str(path)


def write_parquet(path, tiles, *, data=None, borders=(0, 5, 5, N), group_rows=2, encode_ids=False):
    """One Parquet file for each pair of borders; the second one is empty by default."""
    data = [tiles.encoded(i) for i in range(N)] if data is None else data
    path.mkdir(exist_ok=True)
    for part, (start, stop) in enumerate(zip(borders, borders[1:], strict=False)):
        cells = [d if isinstance(d, dict) else {"bytes": d, "path": None} for d in data[start:stop]]
        columns = {k: pa.array(v[start:stop], pa.string()) for k, v in tiles.columns.items()}
        if encode_ids:
            columns = {k: v.dictionary_encode() for k, v in columns.items()}
        table = pa.table({"image": pa.array(cells, IMAGE_TYPE)} | columns)
        pq.write_table(table, path / f"part-{part}.parquet", row_group_size=group_rows)
    return str(path)
