"""The section of the feature space: tables for documents, and what is undefined."""

import pytest
from report_records import NAN

from pathorob_jax.report import page_feature_space
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.feature_space import CosineSpread, FeatureSpaceResult
from pathorob_jax.results.record import Outcome

LISTS = (
    *("eta2_class", "eta2_center", "eta2_interaction", "variance_share"),
    *("cumulative_variance", "cumulative_class", "cumulative_center"),
)
NUMBERS = (
    *("class_variance", "center_variance", "interaction_variance", "variance_in_first"),
    *("class_in_first", "center_in_first", "first_eta2_class", "first_eta2_center"),
)


def make_space(model, share=0.75, **changes):
    """A quarter of the variance lies between centres, half of it in the first components."""
    values = dict.fromkeys(NUMBERS, 0.5) | {"center_variance": 0.25, "class_share": share}
    values |= dict.fromkeys(LISTS, [0.5, 0.25]) | {f"{name}_ci95": None for name in NUMBERS}
    spread = CosineSpread(0.5, 0.125, 0.75, 0.625, 0.375, 0.25)
    values |= {
        "ci95": [share - 0.125, share + 0.125],
        "design": "all",
        "first": 10,
        "effective_rank": 12.5,
        "participation_ratio": 8.0,
        "n_samples": 80,
        "n_available": 100,
        "n_slides": 8,
        "cell_size": 20,
        "cosine": {"raw": spread, "centered": spread},
        "per_subset": {},
        "warnings": [],
        "provenance": {},
    }
    return FeatureSpaceResult(model=model, dataset="tiles", **(values | changes))


def collect(*records):
    return Collection(map(Outcome, records))


def test_documents_have_variance_and_cosines_of_every_model():
    found = page_feature_space.build_tables(collect(make_space("a"), make_space("b", 0.5)), "tiles")
    (first, row_is, space), (second, _, cosines) = found
    assert (first, second, row_is) == ("Variance of class and centre", "Cosines", "model")
    assert [(row.name, row.cells[0].text, row.cells[0].note) for row in space.rows] == [
        ("a", "0.750", "0.625–0.875"),
        ("b", "0.500", "0.375–0.625"),
    ]
    assert space.columns[4] == "variance in the first 10"
    assert [(row.name, row.note) for row in cosines.rows] == [
        *(("a", "as they are"), ("a", "centred"), ("b", "as they are"), ("b", "centred"))
    ]
    assert [cell.text for cell in cosines.rows[0].cells[:2]] == ["0.500", "0.125"]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([], "No model has balanced rows on every dataset; its feature space is not split."),
        ([0.75, 0.5], "In the feature space of m1, 25 % of the variance lies between values of "),
    ],
)
def test_the_answer_names_the_lowest_that_is_known(others, expected):
    lost = make_space("lost", class_share=NAN, center_variance=NAN, center_in_first=NAN)
    records = [make_space(f"m{i}", share) for i, share in enumerate(others)]
    assert page_feature_space.write_answer(collect(lost, *records)).startswith(expected)
