"""Files that AnnData itself wrote; run apart, with anndata 0.12 (which needs pandas < 3).

python -m venv v && v/bin/pip install "anndata>=0.12,<0.13" && v/bin/python make.py
"""

import pathlib
import shutil

import anndata
import numpy as np
import pandas as pd

HERE = pathlib.Path(__file__).parent
N, D = 24, 5


def make():
    """24 patches of four slides, three classes and two centres; missing values in ``note``."""
    row = np.arange(N)
    x = np.random.default_rng(8).standard_normal((N, D)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "slide": [f"slide {i // 6}" for i in row],
            "tissue": pd.Categorical([("gland", "stroma", "tumör")[i % 3] for i in row]),
            "hospital": pd.Categorical([f"Centre {i // 12}" for i in row]),
            "tile_id": row * 10,
            "note": pd.array([None if i % 4 else int(i) for i in row], "Int64"),
        },
        index=[f"patch-{i}" for i in row],
    )
    made = anndata.AnnData(X=x, obs=obs)
    made.obsm["X_uni"] = (x * 2).astype(np.float16)
    made.obsm["spatial"] = np.stack([row * 256, row * 128], axis=1).astype(np.float64)
    return made


if __name__ == "__main__":
    made = make()
    made.write_h5ad(HERE / "small.h5ad")
    for version in (2, 3):
        target = HERE / f"small.v{version}.zarr"
        shutil.rmtree(target, ignore_errors=True)
        anndata.settings.zarr_write_format = version
        made.write_zarr(target)
    np.save(HERE / "x.npy", made.X)
