"""The headline over datasets: means, intervals by draw, and when nothing is written."""

import dataclasses
import json

import numpy as np
import pytest
from report_records import make_apd, make_clusters, make_record

from pathorob_jax.metrics import apd
from pathorob_jax.results import result_files
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.write_summaries import write_summaries

NAMES = ["camelyon", "tcga", "tolkach_esca"]


def fill(make, **given):
    """A record with some values; its provenance names the encoder."""
    provenance = {"store": {"identity": {"encoder": {"model": "m"}}}}
    return dataclasses.replace(make(), provenance=provenance, **given)


def write_all(root, rng, names=NAMES, **changes):
    """Results of the three metrics; returns what the means are of."""
    expected = {"index": [], "score": [], "draws": [], "id": []}
    for i, name in enumerate(names):
        common = {"model": "m", "dataset": name} | changes
        draws = rng.random(50)
        index = fill(make_record, robustness_index=0.1 * i, **common)
        outcome = Outcome(index, "key", {"robustness_index": draws})
        result_files.write_outcome(root, outcome)
        score = fill(make_clusters, clustering_score=-0.2 * i, **common)
        result_files.write_outcome(root, Outcome(score, "key", {"clustering_score": -draws}))
        accuracies = rng.uniform(0.6, 0.9, (3, 4))
        drop = fill(
            make_apd,
            apd_id=float(apd.performance_drops(accuracies).mean()),
            id_accuracies=accuracies.tolist(),
            ood_accuracies=accuracies[:, ::-1].tolist(),
            **common,
        )
        result_files.write_outcome(root, Outcome(drop))
        expected["index"].append(index.robustness_index)
        expected["score"].append(score.clustering_score)
        expected["draws"].append(draws)
        expected["id"].append(drop.apd_id)
    return expected


def test_headline_is_the_mean_over_datasets(tmp_path, rng):
    root = str(tmp_path)
    expected = write_all(root, rng)
    paths = write_summaries(root, "m")
    assert [p.removeprefix(root) for p in paths] == ["/m/apd_aggregate.json", "/m/summary.json"]
    got = result_files.read_result(paths[1])
    np.testing.assert_allclose(got.robustness_index, np.mean(expected["index"]), rtol=1e-12)
    np.testing.assert_allclose(got.clustering_score, np.mean(expected["score"]), rtol=1e-12)
    np.testing.assert_allclose(got.apd_id, np.mean(expected["id"]), rtol=1e-12)
    ends = np.quantile(np.mean(expected["draws"], axis=0), [0.025, 0.975])
    np.testing.assert_allclose(got.robustness_index_ci95, ends, rtol=1e-12)
    np.testing.assert_allclose(got.clustering_score_ci95, -ends[::-1], rtol=1e-12)
    aggregate = result_files.read_result(paths[0])
    np.testing.assert_allclose(got.apd_id_ci95[1], got.apd_id + aggregate.ci_id, rtol=1e-12)
    assert got.per_dataset["tcga"]["robustness_index"] == pytest.approx(0.1)
    assert got.warnings == []
    assert result_files.read_results(root)[-1] == got
    assert "all of PathoROB" in got.describe()


def test_nothing_is_written_before_its_parts_are_there(tmp_path, rng):
    root = str(tmp_path)
    write_all(root, rng, NAMES[:1])
    assert write_summaries(root, "m") == []
    write_all(root, rng, ["mine", "camelyon@scanner"])
    [path] = write_summaries(root, "m")
    assert result_files.read_result(path).datasets == ["camelyon", "mine"]
    write_all(root, rng, NAMES[1:])
    assert len(write_summaries(root, "m")) == 2
    (tmp_path / "m/tcga/clustering_score.json").unlink()
    assert len(write_summaries(root, "m")) == 1


def test_what_cannot_be_known_is_left_open_and_said(tmp_path, rng):
    root = str(tmp_path)
    write_all(root, rng)
    (tmp_path / "m/tcga/robustness_index.draws.npz").unlink()
    path = tmp_path / "m/tcga/clustering_score.json"
    value = json.loads(path.read_text()) | {"clustering_score": None}
    value["schema_version"] = 1  # edited by hand: no digest would fit
    value["provenance"]["store"]["identity"] = {"encoder": {"model": "another"}}
    path.write_text(json.dumps(value))
    got = result_files.read_result(write_summaries(root, "m")[1])
    assert got.robustness_index_ci95 is None
    assert np.isnan(got.clustering_score)
    assert "different encoders" in got.warnings[0]
    path.write_text(json.dumps(value | {"trials": 3, "combinations": []}))
    got = result_files.read_result(write_summaries(root, "m")[1])
    assert "different --repetitions, --trials or K grids" in got.warnings[1]
