"""A request: what is refused before any work, the rows that it names, and what it writes."""

import json
import pathlib

import numpy as np
import pytest
import stores
from report_records import make_apd, make_probes

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.protocols import PROTOCOLS
from pathorob_jax.evaluation import retrieval, retrieval_schedule, schedule_plan
from pathorob_jax.evaluation.embedding_maps import MapSettings
from pathorob_jax.evaluation.run import Evaluation, Request, evaluate_store
from pathorob_jax.evaluation.schedule_plan import make_plan
from pathorob_jax.evaluation.settings import ApdSettings, Settings
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import read_result, write_result


@pytest.fixture
def opened(tmp_path, rng):
    """96 rows: two classes at two centres, six slides of four patches in each cell."""
    bio, center, slide, _ = (a.ravel() for a in np.indices((2, 2, 6, 4)))
    slide = slide + 6 * (center + 2 * bio)
    x = rng.normal(size=(len(bio), 4)).astype(np.float32)
    return stores.make_store(tmp_path / "m" / "d", x, stores.make_manifest(bio, center, slide))


def write_metadata(folder, name, *, classes=("normal", "tumor"), **columns):
    """A metadata file of a protocol: one slide of each class at each centre of Camelyon."""
    table = {
        "slide_id": [f"s{i}" for i in range(4)],
        "patch_id": ["0"] * 4,
        "biological_class": [classes[i % len(classes)] for i in range(4)],
        "medical_center": ["RUMC", "RUMC", "UMCU", "UMCU"],
        **columns,
    }
    lines = [",".join(table), *(",".join(row) for row in zip(*table.values(), strict=True))]
    (folder / name).write_text("\n".join(lines) + "\n")


# --- before any work


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"maps": MapSettings()}, "^output: maps are written as files; give the folder"),
        (
            {"dataset": "camelyon", "settings": Settings(min_cell_size=30)},
            r"^min_cell_size: dataset camelyon has a protocol .* Leave --min_cell_size out",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(request_, message):
    with pytest.raises(UsageError, match=message):
        Request(**{"model": "m", "dataset": "d"} | request_).check()


def test_a_request_of_other_than_plain_values_has_no_digest():
    def digest(neighbors):
        return Request("m", "d", settings=Settings(neighbors=neighbors)).digest()

    assert len(digest("faiss.npy")) == 64
    assert digest("faiss.npy") != digest("other.npy")
    assert digest(pathlib.Path("faiss.npy")) == ""


# --- rows


def test_the_clustering_score_reads_the_rows_of_its_own_file(tmp_path):
    write_metadata(tmp_path, "camelyon_reduced.csv")
    evaluation = stores.plan(None, dataset="camelyon", metadata_dir=str(tmp_path))
    assert evaluation.clustering_rows.source == f"{tmp_path}/camelyon_reduced.csv"
    assert evaluation.clustering_rows.column("slide_id").tolist() == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected a column 'subset' that marks rows 'OOD', found none"),
        ({"subset": ["ID"] * 4}, "expected a column 'subset' that marks rows 'OOD', found none"),
        (
            {"subset": ["ID", "ID", "ID", "OOD"], "classes": ("normal", "tumor", "stroma")},
            r"expected the classes \['normal', 'tumor'\], found \['stroma'\] as well",
        ),
    ],
)
def test_metadata_that_is_not_the_protocols_is_refused(tmp_path, metadata, message):
    write_metadata(tmp_path, "camelyon.csv", **metadata)
    evaluation = stores.plan(None, dataset="camelyon", metadata_dir=str(tmp_path))
    with pytest.raises(InputError, match=message):
        make_plan(evaluation)


@pytest.mark.parametrize("value", [[], {"test": ["a"]}, {"test": {"VALSET2_WNS": [["a"]]}}])
def test_lists_of_test_cases_that_are_none_are_refused(tmp_path, value):
    path = tmp_path / "tolkach_splits.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"splits.json: expected lists of test cases under 'test'"):
        schedule_plan._read_held_out(str(path), PROTOCOLS["tolkach_esca"].apd)


def test_a_search_of_its_own_keeps_the_first_patches_of_each_cell(opened, monkeypatch):
    asked = {}

    def find(store, rows, *, settings, **options):
        asked.update(rows=rows, settings=settings)

    monkeypatch.setattr(retrieval, "find_neighborhood", find)
    settings = Settings(k=3, max_patches_per_combi=7)
    retrieval.find_patches(stores.plan(opened, settings=settings))
    rows = asked["rows"]
    cells = list(zip(rows.column("biological_class"), rows.column("medical_center"), strict=True))
    assert [cells.count(cell) for cell in sorted(set(cells))] == [7] * 4
    # They are cut here, once, and searched as deep as retrieval needs.
    assert (asked["settings"].max_patches_per_combi, asked["settings"].k) == (None, 20)


def test_a_schedule_of_a_robustified_store_says_what_the_fit_saw(opened, monkeypatch):
    own = ApdSettings(repetitions=1, rows_per_slide=4)
    evaluation = stores.plan(opened, settings=Settings(apd=own))
    monkeypatch.setattr(retrieval_schedule, "run_repetitions", lambda *args, **options: [])
    monkeypatch.setattr(retrieval_schedule, "_make_record", lambda *args: None)
    [outside] = retrieval_schedule.make_schedule(evaluation).warnings
    assert outside.startswith("retrieval: no queries out of domain")
    opened.info["settings"] = {"parent": "../m/d", "method": "combat"}
    again, seen = retrieval_schedule.make_schedule(evaluation).warnings
    assert again == outside
    assert "the schedule searches the embeddings as they are stored" in seen


# --- what is written


def test_means_over_datasets_are_among_the_results(opened, tmp_path, monkeypatch):
    root = str(tmp_path / "results")
    for dataset in ("one", "two"):
        write_result(root, make_apd("m", dataset))
    monkeypatch.setattr(Evaluation, "compute", lambda self, metric: Outcome(make_probes("m", "d")))
    found = evaluate_store(opened, metrics=["probes"], output=root)
    assert [path.removeprefix(root) for path in found.paths] == [
        "/m/d/probes.json",
        "/m/apd_aggregate.json",
    ]
    assert list(found) == ["probes", "apd_aggregate"]
    assert found.apd_aggregate == read_result(found.paths[1])
    assert found.apd_aggregate.datasets == ["one", "two"]
