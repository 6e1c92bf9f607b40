"""A run over many stores ends by writing what holds over all models of the results."""

import json
import pathlib

import numpy as np
import pytest
from stores import make_manifest, make_store

import pathorob_jax as pr


@pytest.mark.slow
def test_a_run_writes_models_json(tmp_path, rng):
    bio, center, slide = np.arange(48) % 2, np.arange(48) // 24, np.arange(48) // 4
    rows = make_manifest(bio, center, slide)
    settings = pr.Settings(k=3, draws=200)
    path = tmp_path / "results/models.json"
    for n_models in (1, 5):
        for i in range(n_models):
            x = rng.normal(size=(48, 8)) + i * np.eye(8)[bio]
            place = tmp_path / "embeddings" / f"m{i}" / "ours"
            if not place.exists():
                make_store(place, x.astype(np.float32), rows)
        pr.evaluate_stores(
            [str(tmp_path / "embeddings")],
            output=str(tmp_path / "results"),
            metrics=["robustness_index", "feature_space"],
            settings=settings,
        ).raise_failure()
        assert path.exists() == (n_models > 1)
    found = json.loads(path.read_text())
    assert [row["model"] for row in found["models"]] == [f"m{i}" for i in range(5)]
    pairs = {(c["x"], c["y"]): c for c in found["correlations"]}
    assert pairs["robustness_index", "class_share"]["n"] == 5
    assert found["pareto"]["accuracy"] == "knn_accuracy"
    # A record that cannot be read costs only this file.
    (tmp_path / "results/m0/ours/feature_space.json").write_text("{")
    path.unlink()
    run = pr.evaluate_stores(
        [str(tmp_path / "embeddings/m1")],
        output=str(tmp_path / "results"),
        settings=settings,
    )
    run.raise_failure()
    assert not pathlib.Path(path).exists()
