"""Results of tasks as they are read from disk: another form than the one that was written fails."""

from types import SimpleNamespace

import numpy as np
import pytest

from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.evaluation import (
    apd_refit,
    apd_tasks,
    retrieval_schedule,
    slide_prediction_tasks,
    slide_table,
)
from pathorob_jax.evaluation.settings import ApdSettings
from pathorob_jax.metrics.retrieval import K_GRID

SCHEDULE = AssociationSchedule(
    classes=("normal", "tumor"),
    centers=("X", "Y"),
    slides=(((1, 1), (1, 1)), ((2, 0), (0, 2))),
    rows_per_slide=1,
)
C_GRID = (1.0, 10.0)


def zeros(*shape):
    return np.zeros(shape, int).tolist()


# --- the performance drop


@pytest.fixture
def plan():
    """Two splits, two centres, nothing out of domain."""
    return SimpleNamespace(
        schedule=SCHEDULE,
        settings=ApdSettings(),
        c_grid=C_GRID,
        in_domain=SimpleNamespace(centers=("X", "Y")),
        out_of_domain=None,
    )


def make_head(n_splits=2, **changes):
    head = {
        "chosen": [1.0] * n_splits,
        "validation": [[0.5, 0.75]] * n_splits,
        "converged": [[True, False]] * n_splits,
        "id": zeros(n_splits, 2, 2, 2),
        "ood": None,
    }
    return {"linear": head | changes}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"chosen": [1.0, 3.0]}, "chosen"),
        ({"chosen": [1.0]}, "form"),
        ({"converged": [[1, 0]] * 2}, "form"),
        ({"id": zeros(2, 3, 2, 2)}, "form"),
        ({"id": (np.zeros((2, 2, 2, 2), int) - 1).tolist()}, "range"),
        ({"ood": zeros(2, 1, 2, 2)}, "ood"),
    ],
)
def test_counts_of_another_form_are_refused(plan, changes, word):
    apd_tasks.check_counts(make_head(), plan)
    with pytest.raises(ValueError, match=f"^{word}$"):
        apd_tasks.check_counts(make_head(**changes), plan)


def test_counts_of_other_classifiers_are_refused(plan):
    with pytest.raises(ValueError, match="^heads$"):
        apd_tasks.check_counts(make_head() | {"knn": {}}, plan)


def test_without_a_split_nothing_is_counted(plan):
    apd_tasks.check_counts(make_head(0), plan, 0)
    with pytest.raises(ValueError, match="^form$"):
        apd_tasks.check_counts(make_head(0, validation=[[0.5, 0.75]]), plan, 0)


@pytest.mark.parametrize("refused", [{"2": "no fit"}, {"1": 3}])
def test_refusals_are_of_known_splits_and_say_why(plan, refused):
    apd_refit._check({"refused": {"1": "no fit"}, "heads": make_head(1)}, plan)
    with pytest.raises(ValueError, match="^refused$"):
        apd_refit._check({"refused": refused, "heads": make_head(1)}, plan)


def test_repetitions_without_any_split_are_filled():
    done = apd_tasks.Done(
        counts=[{"linear": {"id": [], "ood": None}}, {"linear": {"id": [[5, 6]], "ood": None}}],
        refused=[{"0": "no fit", "1": "no fit"}, {"0": "no fit"}],
        n_splits=2,
        fingerprint="",
    )
    assert [done.left(0), done.left(1)] == [[], [1]]
    found = done.spread("linear", "id", fill=-1)
    assert found.tolist() == [[[-1, -1], [-1, -1]], [[-1, -1], [5, 6]]]
    assert done.spread("linear", "ood", fill=-1) is None


# --- case retrieval


@pytest.fixture
def database():
    """Two classes at two centres, and no other centre."""
    return SimpleNamespace(
        plan=SimpleNamespace(schedule=SCHEDULE),
        classes=["normal", "tumor"],
        centers=["X", "Y"],
        ood_centers=[],
    )


def make_answers(**changes):
    inside = {"calls": zeros(2, len(K_GRID), 2, 2, 2), "nearest": zeros(2, 2, 2, 2, 2)}
    level = {"id": inside, "ood": None}
    return {"patch": level, "slide": level | changes}


def test_answers_to_queries_of_no_centre_are_refused(database):
    retrieval_schedule.check_counts(make_answers(), database)
    with pytest.raises(ValueError, match="^ood$"):
        retrieval_schedule.check_counts(make_answers(ood={"calls": []}), database)


# --- slide-level prediction


@pytest.fixture
def bagged():
    """Six bags in domain, whose places are known, and three of other centres without places."""

    def domain(n, places):
        return SimpleNamespace(rows=range(n), places=places, bags=f"{n} bags", patches=None)

    return slide_prediction_tasks.Bagged(
        plan=SimpleNamespace(schedule=SCHEDULE),
        inside=domain(6, np.zeros((6, 2))),
        outside=domain(3, None),
        maps=None,
    )


def make_logits(**changes):
    value = {
        "chosen": [[1.0], [10.0]],
        "id": np.zeros((2, 1, 4, 1)).tolist(),
        "ood": np.zeros((2, 1, 3, 1)).tolist(),
    }
    return value | changes


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"chosen": [1.0, 10.0]}, "chosen"),
        ({"chosen": [[1.0]]}, "chosen"),
        ({"ood": None}, "ood"),
        ({"id": np.zeros((2, 4, 1)).tolist()}, "id"),
        ({"id": np.zeros((2, 2, 4, 1)).tolist()}, "id"),
        ({"id": np.full((2, 1, 4, 1), np.inf).tolist()}, "id"),
        ({"id": np.zeros((2, 1, 4, 3)).tolist()}, "id"),
        ({"ood": np.zeros((2, 1, 2, 1)).tolist()}, "ood"),
    ],
)
def test_logits_of_another_form_are_refused(bagged, changes, word):
    slide_prediction_tasks._check(make_logits(), bagged)
    with pytest.raises(ValueError, match=f"^{word}$"):
        slide_prediction_tasks._check(make_logits(**changes), bagged)


def test_bags_without_places_have_no_maps(bagged):
    written = []

    def write(calls, split, *, trained, bags, subset, **rest):
        written.append((split, trained, bags, subset.tolist()))

    slide_prediction_tasks._write_maps(
        SimpleNamespace(write=write),
        SimpleNamespace(test=lambda: np.array([1, 4])),
        "mean",
        None,
        bagged,
    )
    assert written == [
        (0, "split_0_id", "6 bags", [1, 4]),
        (1, "split_1_id", "6 bags", [1, 4]),
    ]


@pytest.mark.parametrize(
    "logits", [np.zeros((4, 1)), np.zeros((1, 3, 1)), np.full((1, 4, 1), np.nan)]
)
def test_logits_of_other_test_slides_are_refused(logits):
    slide_table._check({"logits": np.zeros((1, 4, 1)).tolist()}, 4)
    with pytest.raises(ValueError, match="^logits$"):
        slide_table._check({"logits": logits.tolist()}, 4)
