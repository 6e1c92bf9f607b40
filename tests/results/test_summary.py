"""The headline over datasets: means, intervals by draw, and when nothing is written."""

import dataclasses
import typing

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.metrics import apd
from pathorob_jax.results import result_files
from pathorob_jax.results.apd import ApdResult, make_apd_aggregate
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.results.write_summaries import write_summaries

NAMES = ["camelyon", "tcga", "tolkach_esca"]


def fill(kind, **given):
    """A record whose other fields are empty values of their types."""
    empty = {float: 0.5, int: 2, str: "", list[str]: []}
    fields = {f.name: make_empty(f.type, empty) for f in dataclasses.fields(kind)}
    if "provenance" not in fields:
        return kind(**fields)
    fields["provenance"] = {"store": {"identity": {"encoder": {"model": "m"}}}}
    return kind(**fields | given)


def make_empty(kind, empty):
    if dataclasses.is_dataclass(kind):
        return fill(kind)
    if type(None) in typing.get_args(kind):
        return None
    return empty.get(kind, [] if typing.get_origin(kind) is list else {})


def write_all(root, rng, names=NAMES, **changes):
    """Results of the three metrics; returns what the means are of."""
    expected = {"index": [], "score": [], "draws": [], "id": []}
    for i, name in enumerate(names):
        common = {"model": "m", "dataset": name} | changes
        draws = rng.random(50)
        index = fill(RobustnessIndexResult, robustness_index=0.1 * i, **common)
        outcome = Outcome(index, "key", {"robustness_index": draws})
        result_files.write_outcome(root, outcome)
        score = fill(ClusteringResult, clustering_score=-0.2 * i, combinations=[], **common)
        result_files.write_outcome(root, Outcome(score, "key", {"clustering_score": -draws}))
        accuracies = rng.uniform(0.6, 0.9, (4, 5))
        drop = fill(
            ApdResult,
            apd_id=float(apd.performance_drops(accuracies).mean()),
            id_accuracies=accuracies.tolist(),
            ood_accuracies=accuracies[:, ::-1].tolist(),
            cramers_v=[0.0, 0.3, 0.6, 1.0],
            **dict.fromkeys(("chosen_c", "validation_accuracies"), accuracies.tolist()),
            **dict.fromkeys(("id_accuracy_means", "ood_accuracy_means"), [0.7] * 4),
            converged=[[True] * 5] * 4,
            repetitions=5,
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
    half = 1.959963984540054 * np.mean(expected["draws"], axis=0).std(ddof=1)
    for value, ends, (low, high) in (
        (got.robustness_index, got.robustness_index_ci95, (0, 1)),
        (got.clustering_score, got.clustering_score_ci95, (-1.5, 1.5)),
    ):
        expected_ends = [max(value - half, low), min(value + half, high)]
        np.testing.assert_allclose(ends, expected_ends, rtol=1e-12)
    aggregate = result_files.read_result(paths[0])
    np.testing.assert_allclose(got.apd_id_ci95[1], got.apd_id + aggregate.ci_id, rtol=1e-12)
    assert got.per_dataset["tcga"]["robustness_index"] == pytest.approx(0.1)
    assert got.warnings == []
    assert result_files.read_results(root)[-1] == got
    assert "all of PathoROB" in got.describe()


def test_an_aggregate_is_of_one_confounder(rng):
    accuracies = rng.uniform(0.6, 0.9, (4, 5)).tolist()
    same = [
        fill(ApdResult, model="m", dataset=d, id_accuracies=accuracies, ood_accuracies=accuracies)
        for d in ("ours@scanner", "ours@stain")
    ]
    with pytest.raises(InputError, match="the same patches by two confounders"):
        make_apd_aggregate(same)
    other = dataclasses.replace(same[0], dataset="theirs@scanner")
    assert make_apd_aggregate([same[0], other]).df == 10


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


@pytest.mark.slow
def test_what_cannot_be_known_is_left_open_and_said(tmp_path, rng):
    root = str(tmp_path)
    write_all(root, rng)
    (tmp_path / "m/tcga/robustness_index.draws.npz").unlink()
    score = result_files.read_result(str(tmp_path / "m/tcga/clustering_score.json"))
    score = dataclasses.replace(
        score,
        clustering_score=np.nan,
        provenance={"store": {"identity": {"encoder": {"model": "another"}}}},
    )
    result_files.write_result(root, score)
    got = result_files.read_result(write_summaries(root, "m")[1])
    assert got.robustness_index_ci95 is None
    assert np.isnan(got.clustering_score)
    assert "different encoders" in got.warnings[0]
    result_files.write_result(root, dataclasses.replace(score, trials=3))
    got = result_files.read_result(write_summaries(root, "m")[1])
    assert "different --repetitions, --trials or K grids" in got.warnings[1]
