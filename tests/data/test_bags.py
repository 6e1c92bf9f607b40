"""Bags of rows, beside a dictionary; and PathoROB's own numbers of them."""

import numpy as np
import pytest

from pathorob_jax.data.bags import find_bags
from pathorob_jax.data.manifest import CLASS, SLIDE, SUBSET, as_manifest, read_manifest
from pathorob_jax.data.protocols import OOD


def make_rows(slides, classes, centers):
    return as_manifest(
        {
            "slide_id": slides,
            "patch_id": [str(i) for i in range(len(slides))],
            "biological_class": classes,
            "medical_center": centers,
        }
    )


def test_bags_are_slides_or_the_classes_of_a_slide_in_order_of_first_appearance():
    rows = make_rows(["b", "a", "b", "b", "a"], ["t", "n", "n", "t", "n"], list("XYXXY"))
    found = find_bags(rows)
    assert found.bag_id.tolist() == [0, 1, 2, 0, 1]
    assert found.rows.column(SLIDE).tolist() == ["b", "a", "b"]
    assert found.rows.column(CLASS).tolist() == ["t", "n", "n"]


def test_bags_equal_a_dictionary():
    rng = np.random.default_rng(3)
    slides = rng.integers(0, 40, 500)
    rows = make_rows(
        [f"s{i}" for i in slides],
        [f"c{i}" for i in rng.integers(0, 3, 500)],
        [f"h{i % 4}" for i in slides],
    )
    numbers: dict[tuple[str, str], int] = {}
    keys = zip(rows.column(SLIDE), rows.column(CLASS), strict=True)
    expected = [numbers.setdefault(key, len(numbers)) for key in keys]
    assert find_bags(rows).bag_id.tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("file", "n_bags"), [("camelyon.csv", 68), ("tcga_4x4.csv", 192)])
def test_pathorobs_in_domain_slides_have_one_class_each(shared, file, n_bags):
    rows = read_manifest(str(shared / "pathorob" / "metadata" / file)).without_subsets([OOD])
    assert SUBSET in rows
    found = find_bags(rows)
    assert len(found.rows) == n_bags
    assert len(set(found.rows.column(SLIDE))) == n_bags
