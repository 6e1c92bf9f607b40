"""Results of several models together: their order, what counts as results, pairs of models."""

from types import SimpleNamespace

import pytest

from pathorob_jax.results.answers import find_pair
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Comparison, Pair
from pathorob_jax.results.folders import check_any
from pathorob_jax.results.record import Outcome


def test_models_of_a_metric_that_is_not_registered_are_in_the_order_of_names():
    """Their records have no headline to order them by; controls come last."""
    names = ["b", "color_stats", "a", "c"]
    records = [SimpleNamespace(model=name, dataset="tiles") for name in names]
    found = Collection(map(Outcome, records))
    assert found.kinds == []
    assert found.models == ["a", "b", "c", "color_stats"]
    assert (found.encoders, found.controls) == (["a", "b", "c"], ["color_stats"])


def test_a_folder_of_results_has_one_that_is_no_store(tmp_path):
    for model in ("a", "b"):
        (tmp_path / model / "tiles").mkdir(parents=True)
        (tmp_path / model / "tiles" / "store.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no results found; expected <results>/<model>"):
        check_any(str(tmp_path))
    (tmp_path / "b" / "tiles" / "apd.json").write_text("{}")
    check_any(str(tmp_path))
    (tmp_path / "b" / "tiles" / "apd.json").unlink()
    (tmp_path / "b" / "summary.json").write_text("{}")
    check_any(str(tmp_path))


def test_a_pair_of_models_is_found_either_way_round():
    pair = Pair("a", "b", 0.25, 0.125, 0.5, 1.0)
    comparison = Comparison("index", "tiles", [], [pair], [])
    assert find_pair(comparison, "a", "b") == pair
    turned = find_pair(comparison, "b", "a")
    assert (turned.difference, turned.low, turned.high) == (-0.25, -0.5, -0.125)
    assert find_pair(comparison, "a", "c") is None
