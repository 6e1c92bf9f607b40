"""Which rows a metric reads: scopes, limits per cell, the reference's shuffle."""

import itertools

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import as_manifest


def make_rows(cells):
    """One patch for each (subset, class, centre) given, in that order."""
    subsets, classes, centers = zip(*cells, strict=True)
    columns = {
        "slide_id": [f"{m}-{i % 3}" for i, m in enumerate(centers)],
        "patch_id": [str(i) for i in range(len(cells))],
        "biological_class": classes,
        "medical_center": centers,
    }
    return as_manifest(columns | ({"subset": subsets} if subsets[0] is not None else {}))


def random_rows(rng, n=200, *, with_subset):
    return make_rows(
        [
            (f"pair {rng.integers(3)}" if with_subset else None, f"c{rng.integers(3)}", center)
            for center in rng.choice(["A", "B", "D"], n)
        ]
    )


PAIRS = [
    # Subset "b" comes first, and the rows of the two are interleaved.
    ("b", "tumor", "Y"),
    ("a", "stroma", "X"),
    ("b", "normal", "Y"),
    ("a", "tumor", "X"),
    ("b", "tumor", "Z"),
    ("a", "stroma", "W"),
    ("b", "normal", "Z"),
    ("a", "tumor", "W"),
    ("a", "tumor", "W"),
]


def test_one_scope_holds_all_rows():
    (scope,) = row_views.make_scopes(make_rows(PAIRS), "all")
    assert scope.name == ""
    assert scope.rows.tolist() == list(range(9))
    assert scope.classes == ("normal", "stroma", "tumor")
    assert scope.centers == ("W", "X", "Y", "Z")
    assert scope.bio_id.tolist() == [2, 1, 0, 2, 2, 1, 0, 2, 2]
    assert scope.center_id.tolist() == [2, 1, 2, 1, 3, 0, 3, 0, 0]


def test_paired_scopes_are_the_subsets_by_name_with_ids_of_their_own():
    one, two = row_views.make_scopes(make_rows(PAIRS), "paired")
    assert (one.name, two.name) == ("a", "b")
    assert one.rows.tolist() == [1, 3, 5, 7, 8]
    assert two.rows.tolist() == [0, 2, 4, 6]
    assert (one.classes, one.centers) == (("stroma", "tumor"), ("W", "X"))
    assert one.bio_id.tolist() == [0, 1, 0, 1, 1]
    assert one.center_id.tolist() == [1, 1, 0, 0, 0]
    assert (two.classes, two.centers) == (("normal", "tumor"), ("Y", "Z"))
    assert two.bio_id.tolist() == [1, 0, 1, 0]
    assert two.center_id.tolist() == [0, 0, 1, 1]


def test_one_class_or_one_center_is_no_scope():
    with pytest.raises(InputError, match=r"two biological classes.*\['tumor'\]"):
        row_views.make_scopes(make_rows([(None, "tumor", "X"), (None, "tumor", "Y")]), "all")
    with pytest.raises(InputError, match=r"two medical centres.*\['X'\]"):
        row_views.make_scopes(make_rows([(None, "tumor", "X"), (None, "normal", "X")]), "all")


def test_paired_needs_a_subset_column():
    rows = make_rows([(None, "tumor", "X"), (None, "normal", "Y")])
    with pytest.raises(InputError, match=r"expects a column 'subset'.*--design=all"):
        row_views.make_scopes(rows, "paired")


@pytest.mark.parametrize(
    ("cells", "part"),
    [
        ([*PAIRS[:8], ("a", "third", "X")], r"subset 'a'.*\['stroma', 'third', 'tumor'\]"),
        ([*PAIRS[:8], ("a", "tumor", "V")], r"subset 'a'.*\['V', 'W', 'X'\]"),
        ([*PAIRS[:6], PAIRS[7]], r"subset 'b'.*and 3 filled"),
        ([*PAIRS, ("alone", "tumor", "X")], r"subset 'alone'.*\['tumor'\], \['X'\] and 1 filled"),
    ],
)
def test_a_subset_that_is_not_two_by_two_is_named(cells, part):
    with pytest.raises(InputError, match=part):
        row_views.make_scopes(make_rows(cells), "paired")


@pytest.mark.parametrize("with_subset", [True, False])
@pytest.mark.parametrize("n", [1, 4, 1000])
def test_the_first_of_each_cell_are_those_that_a_loop_finds(rng, n, with_subset):
    rows = random_rows(rng, with_subset=with_subset)
    names = ["biological_class", "medical_center", *(["subset"] if with_subset else [])]
    seen, expected = {}, []
    for i, cell in enumerate(zip(*(rows.column(name) for name in names), strict=True)):
        seen[cell] = seen.get(cell, 0) + 1
        if seen[cell] <= n:
            expected.append(i)
    assert row_views.first_of_each_cell(rows, n).source_rows.tolist() == expected
    assert max(seen.values()) > 4  # so that one and four leave rows out


def test_the_first_of_each_cell_keep_the_order_of_a_shuffled_view(rng):
    shuffled = row_views.shuffle(random_rows(rng, with_subset=False), 123)
    kept = row_views.first_of_each_cell(shuffled, 2)
    positions = [shuffled.source_rows.tolist().index(row) for row in kept.source_rows]
    assert positions == sorted(positions)
    assert len(kept) == 18


def test_the_shuffle_is_the_references(rng):
    rows = random_rows(rng, with_subset=True)
    shuffled = row_views.shuffle(rows, 123)
    order = np.random.RandomState(123).permutation(200)
    assert shuffled.source_rows.tolist() == order.tolist()
    assert shuffled.keys.to_pylist() == [rows.keys.to_pylist()[i] for i in order]
    # Pinned, because numpy promises that legacy streams stay as they are.
    assert shuffled.source_rows[:5].tolist() == [50, 127, 37, 149, 19]


def test_a_view_leaves_out_subsets_and_renames_columns(tmp_path):
    (tmp_path / "meta.csv").write_text(
        "subset,slide_id,patch_id,biological_class,site\n"
        "ID,s0,1,tumor,A\nOOD,s1,2,tumor,B\nID,s2,3,normal,B\n"
    )
    rows = row_views.read_view(
        protocols.View("meta.csv", exclude_subsets=("OOD",)),
        metadata_dir=str(tmp_path),
        dataset="mine",
        columns={"medical_center": "site"},
    )
    assert rows.keys.to_pylist() == ["s0-1", "s2-3"]
    assert rows.column("medical_center").tolist() == ["A", "B"]


def test_a_view_without_its_file_says_which_one(tmp_path):
    view = protocols.View("camelyon.csv")
    with pytest.raises(UsageError, match="metadata_dir: dataset camelyon reads camelyon.csv"):
        row_views.read_view(view, metadata_dir=None, dataset="camelyon")
    with pytest.raises(FileNotFoundError, match=r"camelyon\.csv: no such file; dataset camelyon"):
        row_views.read_view(view, metadata_dir=str(tmp_path), dataset="camelyon")


def test_pairs_are_derived_from_cells_that_are_large_enough(rng):
    cells = {
        ("a", "X"): 5,
        ("a", "Y"): 4,
        ("b", "X"): 6,
        ("b", "Y"): 3,
        ("c", "X"): 9,
        ("c", "Z"): 9,
    }
    labels = [cell for cell, size in cells.items() for _ in range(size)]
    order = rng.permutation(len(labels))
    rows = as_manifest(
        {
            "slide_id": [f"{labels[i][1]}{i % 2}" for i in order],
            "patch_id": [str(i) for i in order],
            "biological_class": [labels[i][0] for i in order],
            "medical_center": [labels[i][1] for i in order],
        }
    )
    pairs = row_views.derive_pairs(rows, 2)
    (scope,) = row_views.make_scopes(pairs, "paired")
    assert scope.name == "a|b|X|Y"
    assert len(pairs) == 12
    for cell in [("a", "X"), ("a", "Y"), ("b", "X"), ("b", "Y")]:
        inside = (pairs.column("biological_class") == cell[0]) & (
            pairs.column("medical_center") == cell[1]
        )
        mine = [i for i in order if labels[i] == cell][:3]
        assert pairs.column("patch_id")[inside].tolist() == [str(i) for i in mine]
    with pytest.raises(InputError, match=r"four cells of 4 patches.*Lower --min_cell_size"):
        row_views.derive_pairs(rows, 4)


def test_a_patch_is_in_every_derived_pair_that_it_fits(rng):
    cells = [(c, m) for c in "abc" for m in ("X", "Y", "Z") for _ in range(2)]
    rows = as_manifest(
        {
            "slide_id": [f"{m}{i}" for i, (_, m) in enumerate(cells)],
            "patch_id": [str(i) for i in range(len(cells))],
            "biological_class": [c for c, _ in cells],
            "medical_center": [m for _, m in cells],
        }
    )
    pairs = row_views.derive_pairs(rows, 2)
    assert len(row_views.make_scopes(pairs, "paired")) == 9
    assert np.unique(pairs.column("patch_id"), return_counts=True)[1].tolist() == [4] * 18


def test_subsets_of_other_classes_never_share_a_name():
    # "a|b" and "c" joined by a stroke read like "a" and "b|c".
    classes = ["a|b", "c", "a", "b|c"]
    cells = [(None, bio, center) for bio in classes for center in "XY" for _ in range(2)]
    rows = make_rows(cells)
    pairs = row_views.derive_pairs(rows, 2)
    scopes = row_views.make_scopes(pairs, "paired")
    assert len({scope.name for scope in scopes}) == len(scopes) == 6
    assert {scope.classes for scope in scopes} == {
        tuple(sorted(pair)) for pair in itertools.combinations(classes, 2)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "part"),
    [
        (["p", "p", "", "q"], "column 'patient' is empty in some rows"),
        (["p", "q", "q", "q"], "slide 's0' lies in several groups of column 'patient'"),
    ],
)
def test_groups_are_filled_and_hold_whole_slides(groups, part):
    columns = {
        "slide_id": ["s0", "s0", "s1", "s2"],
        "patch_id": list("0123"),
        "biological_class": ["a", "b", "a", "b"],
        "medical_center": list("XXYY"),
        "patient": groups,
    }
    with pytest.raises(InputError, match=part):
        row_views.read_groups(as_manifest(columns), "patient")
    with pytest.raises(InputError, match="expected a column 'patiant', found"):
        row_views.read_groups(as_manifest(columns), "patiant")
    whole = as_manifest(columns | {"patient": ["p", "p", "p", "q"]})
    assert row_views.read_groups(whole, "patient").ids.tolist() == [0, 0, 0, 1]
