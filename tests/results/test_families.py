"""Families of models: who belongs together, and whether the order depends on the pooling."""

import math

import pytest
from scipy import stats

from pathorob_jax.results.compare_models import Comparison, Pair
from pathorob_jax.results.families import (
    Checkpoint,
    find_poolings,
    find_runs,
    read_checkpoint,
    study_poolings,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_s_step5000", ("vit_s", "step", 5000)),
        ("vit_s-step-5000", ("vit_s", "step", 5000)),
        ("vit.epoch_012.cls", ("vit_cls", "epoch", 12)),
        ("vit_Steps=5k_mean", ("vit_mean", "step", 5000)),
        ("training_124999", ("", "training", 124999)),
        ("my_ckpt0007", ("my", "ckpt", 7)),
        ("run_iters_10_epochs_3", ("run_iters_10", "epoch", 3)),
        ("h_optimus_1", None),
        ("vit_b_16", None),
        ("footstep5", None),
        ("stepwise_3", None),
        ("step_one", None),
        ("step5b", None),
    ],
)
def test_a_checkpoint_is_a_word_and_a_number(name, expected):
    assert read_checkpoint(name) == (None if expected is None else Checkpoint(*expected))


def test_runs_have_several_checkpoints_in_order():
    models = ["a_step1000", "a_step200", "b_step5", "a_epoch3", "h_optimus_0", "h_optimus_1"]
    [run] = find_runs(models)
    assert (run.name, run.word) == ("a", "step")
    assert run.steps == [200, 1000]
    assert run.models == ["a_step200", "a_step1000"]


def test_poolings_are_read_from_identities_before_names():
    def use(model, pooling, **more):
        return {"model": model, "pooling": pooling, "preprocess": {"size": 224}} | more

    identities = {
        "uni": use("uni", "cls"),
        "uni_mean": use("uni", "mean"),
        "uni_pathorob": use("uni", "mean", preset={"name": "pathorob"}),
        "virchow": use("virchow", "clsmean"),
    }
    models = [*identities, "mine", "mine_mean", "other_cls", "other_mean", "lone_mean", "cls"]
    assert find_poolings(models, identities) == {
        "uni": {"cls": "uni", "mean": "uni_mean"},
        "mine": {"default": "mine", "mean": "mine_mean"},
        "other": {"cls": "other_cls", "mean": "other_mean"},
    }


def make_study(values_by_pooling, pairs=()):
    encoders = [f"e{i}" for i in range(len(next(iter(values_by_pooling.values()))))]
    models = {e: {p: f"{e}_{p}" for p in values_by_pooling} for e in encoders}
    values = {
        f"{e}_{p}": v
        for p, own in values_by_pooling.items()
        for e, v in zip(encoders, own, strict=True)
    }
    comparison = Comparison("index", "tiles", [], list(pairs), [])
    return study_poolings(models, values, comparison)


def test_agreement_is_that_of_scipy_and_swaps_are_counted_by_hand():
    one, two = [0.9, 0.7, 0.5, 0.3], [0.8, 0.6, 0.2, 0.4]
    study = make_study(
        {"cls": one, "mean": two},
        [
            Pair("e2_cls", "e3_cls", 0.2, 0.1, 0.3, 1.0),
            Pair("e3_mean", "e2_mean", 0.2, 0.1, 0.3, 1.0),
        ],
    )
    [found] = study.agreements
    assert found.n == 4
    assert found.kendall == pytest.approx(stats.kendalltau(one, two).statistic)
    assert found.spearman == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert found.n_pairs == 6
    assert found.swapped == found.swapped_apart == [("e2", "e3")]
    assert study.ranks["e2"] == {"cls": 3, "mean": 4}


def test_a_swap_within_the_intervals_is_no_swap_beyond_doubt():
    study = make_study(
        {"cls": [0.5, 0.4], "mean": [0.4, 0.5]},
        [
            Pair("e0_cls", "e1_cls", 0.1, 0.05, 0.15, 1.0),
            Pair("e1_mean", "e0_mean", 0.1, -0.05, 0.25, 0.9),
        ],
    )
    [found] = study.agreements
    assert found.swapped == [("e0", "e1")]
    assert found.swapped_apart == []


@pytest.mark.slow
def test_encoders_without_a_number_and_ties():
    study = make_study({"cls": [0.5, 0.5, math.nan], "mean": [0.4, 0.6, 0.1]})
    [found] = study.agreements
    assert (found.n, found.n_pairs, found.swapped) == (2, 1, [])
    assert math.isnan(found.kendall)
    assert study.ranks == {
        "e0": {"cls": 1.5, "mean": 2},
        "e1": {"cls": 1.5, "mean": 1},
        "e2": {"mean": 3},
    }
    assert make_study({"cls": [0.5], "mean": [0.4]}) is None
