"""Stores that SpatialData itself wrote, in the layout of LazySlide; run apart.

python -m venv v && v/bin/pip install "spatialdata>=0.7,<0.8" && v/bin/python make.py
"""

import pathlib
import tempfile
import zipfile

import anndata
import geopandas
import numpy as np
import pandas as pd
import spatialdata
from shapely.geometry import box
from spatialdata._io import format as formats
from spatialdata.models import ShapesModel, TableModel

HERE = pathlib.Path(__file__).parent
N, D = 7, 5


def make(x):
    """Seven tiles and two encoders; rows of the tables are in another order than the outlines."""
    row = np.arange(N)
    corners = [(512 * i, 256 * (i % 3)) for i in row]
    outlines = [box(a, b, a + 256, b + 256) for a, b in corners]
    tiles = geopandas.GeoDataFrame({"tile_id": row, "geometry": outlines})
    obs = pd.DataFrame(
        {
            "tile_id": row,
            "library_id": pd.Categorical(["big_tiles"] * N),
            "tissue": pd.Categorical([("gland", "tumör")[i % 2] for i in row]),
        },
        index=row.astype(str),
    )
    order = np.random.default_rng(1).permutation(N)
    tables = {
        f"{encoder}_big_tiles": TableModel.parse(
            anndata.AnnData(X=(factor * x)[order], obs=obs.iloc[order].copy()),
            region="big_tiles",
            region_key="library_id",
            instance_key="tile_id",
        )
        for encoder, factor in (("uni", 1), ("virchow", 2))
    }
    return spatialdata.SpatialData(shapes={"big_tiles": ShapesModel.parse(tiles)}, tables=tables)


if __name__ == "__main__":
    x = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)
    np.save(HERE / "x.npy", x)
    made = make(x)
    versions = (
        (2, formats.SpatialDataContainerFormatV01()),
        (
            3,
            formats.SpatialDataContainerFormatV02(),
        ),
    )
    with zipfile.ZipFile(HERE / "small.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for version, form in versions:
            folder = pathlib.Path(tempfile.mkdtemp())
            made.write(folder / f"slide v{version}.zarr", sdata_formats=form)
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(file, file.relative_to(folder))
