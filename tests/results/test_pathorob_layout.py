"""Results in PathoROB's tree: its names, its keys in its order, its numbers."""

import csv
import datetime
import io
import json
import logging as std_logging

import numpy as np
import pytest
import report_records as records
from scipy import stats

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.metrics import apd
from pathorob_jax.results import export_results, histoboard, pathorob_layout
from pathorob_jax.results.apd import make_apd_aggregate
from pathorob_jax.results.clustering_score import ClusteringCombination
from pathorob_jax.results.result_files import read_results, write_result

DATASETS = ("camelyon", "tcga", "tolkach_esca")


@pytest.fixture(scope="module")
def published(shared):
    folder = shared / "pathorob" / "published" / "phikonv2_clsmean"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: no published files to compare with")
    return folder


def read_csv(data):
    return list(csv.DictReader(io.StringIO(data.decode())))


def make_index(summary, fractions, k):
    """A record whose companions follow from fractions of neighbours by their definitions."""
    ss, so, os_, oo = fractions
    return records.make_record(
        "phikonv2_clsmean",
        "camelyon",
        k=k,
        robustness_index=so / (so + os_),
        balanced_accuracy=summary["balanced_accuracy"],
        id_performance=ss / (ss + os_),
        ood_performance=so / (so + oo),
        generalization_index=(ss * so + so * os_) / (ss * so + ss * oo),
        bio_vs_confounding=(ss + so) / (ss + os_),
        confounder_insensitivity=(so + oo) / (ss + os_),
        # Ours has another divisor (docs/exports.md), so this one is taken over.
        normalized_confounder_insensitivity=summary["normalized_confounder_insensitivity"],
        prediction_performance=ss + so,
    )


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_index_has_the_published_keys_and_numbers(published, dataset):
    theirs = json.loads((published / dataset / "robustness_index_summary.json").read_text())
    curves = json.loads((published / dataset / "robustness_index_stats.json").read_text())
    k = theirs["k_opt"]
    at_k = [curves[f"fraction_{kind}-cum-norm"][k - 1] for kind in ("SS", "SO", "OS", "OO")]
    index = make_index(theirs, at_k, k)
    probes = records.make_probes(
        "phikonv2_clsmean", "camelyon", center_auc=theirs["confounder_log_reg_AUC"]
    )
    found = pathorob_layout.list_files([index, probes])
    folder = "robustness_index/phikonv2_clsmean/camelyon/-1_0"
    assert set(found) == {
        f"{folder}/results_summary.json",
        f"{folder}/balanced-accuracies-bio.csv",
    }
    ours = json.loads(found[f"{folder}/results_summary.json"])
    assert list(ours) == list(theirs)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-12, err_msg=name)
    [row] = read_csv(found[f"{folder}/balanced-accuracies-bio.csv"])
    assert row == {"k": str(k), "bal_acc": repr(theirs["balanced_accuracy"]), "std": "0.0"}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_drop_has_the_published_numbers(published, dataset):
    raw = (published / dataset / "apd_raw.json").read_bytes()
    theirs = json.loads((published / dataset / "apd_summary.json").read_text())
    ours = make_drop(json.loads(raw), dataset)
    found = pathorob_layout.list_files([ours])
    assert set(found) == {f"apd/m/{dataset}_raw.json", f"apd/m/{dataset}_summary.json"}
    assert found[f"apd/m/{dataset}_raw.json"] == raw  # to the byte
    summary = json.loads(found[f"apd/m/{dataset}_summary.json"])
    assert list(summary) == list(theirs)
    for name in theirs:
        np.testing.assert_allclose(summary[name], theirs[name], rtol=1e-12, err_msg=name)


def make_drop(raw, dataset):
    inside, outside = raw["ID_test_accuracies"], raw["OOD_test_accuracies"]
    return records.make_apd(
        "m",
        dataset,
        apd_id=apd.average_performance_drop(inside),
        apd_ood=apd.average_performance_drop(outside),
        id_accuracies=inside,
        ood_accuracies=outside,
        id_accuracy_means=np.mean(inside, 1).tolist(),
        ood_accuracy_means=np.mean(outside, 1).tolist(),
    )


def test_the_drop_over_datasets_has_the_published_numbers(published):
    drops = [
        make_drop(json.loads((published / name / "apd_raw.json").read_text()), name)
        for name in DATASETS
    ]
    found = pathorob_layout.list_files([make_apd_aggregate(drops)])
    ours = json.loads(found["apd/m/aggregated_summary.json"])
    theirs = json.loads((published / "apd_aggregated_summary.json").read_text())
    assert list(ours) == list(theirs)
    assert ours["aggregation_datasets"] == theirs["aggregation_datasets"]
    for name in ("apd_id", "ci_id", "apd_ood", "ci_ood"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_clustering_score_has_the_published_files(published, dataset):
    files = {
        f"{name}.{ending}": (published / dataset / f"clustering_{name}.{ending}").read_bytes()
        for name, ending in (("aris", "csv"), ("silhouette_scores", "csv"), ("summary", "json"))
    }
    theirs = json.loads(files["summary.json"])
    aris, silhouettes = read_csv(files["aris.csv"]), read_csv(files["silhouette_scores.csv"])
    [template] = records.make_clusters().combinations
    combinations = []
    for name in dict.fromkeys(row["combination"] for row in aris):
        own = [row for row in aris if row["combination"] == name]
        scores = [r for r in silhouettes if r["combination"] == name]
        # None of these names has a hyphen of its own.
        first, second, *centers = name.split("-")
        combinations.append(
            ClusteringCombination(
                **vars(template)
                | {
                    "name": name,
                    "classes": [first, second],
                    "centers": centers,
                    "k": 2 + int(np.argmax([float(r["silhouette_score"]) for r in scores])),
                    "silhouettes": [float(r["silhouette_score"]) for r in scores],
                    "ari_biology": [float(r["ari_bio"]) for r in own],
                    "ari_center": [float(r["ari_mc"]) for r in own],
                }
            )
        )
    record = records.make_clusters(
        "m",
        dataset,
        combinations=combinations,
        trials=50,
        clustering_score=theirs["clustering_score_mean"],
        clustering_score_std=theirs["clustering_score_mean_std"],
    )
    found = pathorob_layout.list_files([record])
    folder = f"clustering_score/m/{dataset}"
    assert found[f"{folder}/silhouette_scores.csv"] == files["silhouette_scores.csv"]
    assert found[f"{folder}/aris.csv"] == files["aris.csv"]
    assert found[f"{folder}/results_summary.json"] == files["summary.json"]


def test_rows_of_accuracy_follow_the_rule_of_k():
    groups = records.make_record().per_class
    index = records.make_record("m", "d", design="paired", k_rule="auto", per_subset=groups)
    found = pathorob_layout.list_files([index])
    rows = read_csv(found["robustness_index/m/d/-1_-1/balanced-accuracies-bio.csv"])
    assert [row["k"] for row in rows] == ["1", "3", "11"]
    deviation = float(np.std([group.recall for group in groups.values()]))
    assert [row["std"] for row in rows] == ["", "", repr(deviation)]
    given = records.make_record(
        "m", "d", k_rule="given", k=3, provenance={"settings": {"max_patches_per_combi": 50}}
    )
    assert all("/50_3/" in path for path in pathorob_layout.list_files([given]))


def test_what_is_undefined_is_null_and_stays_readable():
    found = pathorob_layout.list_files([records.make_undefined("m", "d")])
    folder = "robustness_index/m/d/-1_0"
    summary = json.loads(found[f"{folder}/results_summary.json"])
    assert summary["robustness_index"] is None
    assert summary["confounder_log_reg_AUC"] is None
    assert found[f"{folder}/balanced-accuracies-bio.csv"] == b"k,bal_acc,std\n11,,\n"


def test_the_tree_lies_beside_our_results_without_being_taken_for_them(tmp_path):
    root = str(tmp_path)
    mine = [records.make_record("m", "camelyon"), records.make_clusters("m", "camelyon")]
    for record in mine:
        write_result(root, record)
    before = read_results(root)
    paths = export_results.export_results(root, form="pathorob", output=root)
    assert len(paths) == 5
    assert read_results(root) == before
    with pytest.raises(InputError, match="results_summary.json: is there already. Give --over"):
        export_results.export_results(root, form="pathorob", output=root)
    again = export_results.export_results(root, form="pathorob", output=root, overwrite=True)
    assert again == paths
    assert not any(path.endswith(".pkl") for path in paths)


# --- histoboard


def boarded(tmp_path, given):
    for record in given:
        write_result(str(tmp_path / "results"), record)
    export_results.export_results(
        str(tmp_path / "results"), form="histoboard", output=str(tmp_path / "board")
    )
    return {
        name: json.loads((tmp_path / "board" / f"{name}.json").read_text())
        for name in ("results", "rankings", "models")
    }


def test_the_board_gets_entries_of_its_own_form(tmp_path):
    values = {
        ("uni2_h", "camelyon"): 0.5,
        ("virchow2", "camelyon"): 0.75,
        ("mine v1", "camelyon"): 0.5,
        ("uni2_h", "tcga"): 0.875,
        ("virchow2", "tcga"): 0.25,
    }
    given = [records.make_record(m, d, v) for (m, d), v in values.items()]
    given += [
        records.make_record("uni2_h", "camelyon@scanner", 0.1),
        records.make_record("uni2_h", "own", 0.1),
        records.make_record("uni2_h", "tolkach_esca", 0.1, k_rule="given"),
        records.make_clusters("uni2_h", "camelyon"),
    ]
    board = boarded(tmp_path, given)
    ids = {"uni2_h": "mahmood_lab_uni2", "virchow2": "paige_ai_virchow2", "mine v1": "mine_v1"}
    task = {"camelyon": "pathorob_camelyon", "tcga": "pathorob_tcga_2x2"}
    assert {(e["modelId"], e["taskId"]): e["value"] for e in board["results"]} == {
        (ids[m], task[d]): v for (m, d), v in values.items()
    }
    # The schema of frontend/src/types/index.ts: Result and Model.
    for entry in board["results"]:
        assert set(entry) == {"modelId", "taskId", "value", "rank", "source", "retrievedAt"}
        assert entry["source"] == "pathorob"
        assert len(entry["retrievedAt"]) == 10
    for dataset in task:
        of_task = [e for e in board["results"] if e["taskId"] == task[dataset]]
        ranks = stats.rankdata([-e["value"] for e in of_task], method="average")
        assert [e["rank"] for e in of_task] == ranks.tolist()
    assert board["rankings"] == {
        "pathorob": {
            "mine_v1": {"avgRank": 2.5, "taskCount": 1, "avgScore": 0.5},
            "mahmood_lab_uni2": {"avgRank": 1.75, "taskCount": 2, "avgScore": 0.6875},
            "paige_ai_virchow2": {"avgRank": 1.5, "taskCount": 2, "avgScore": 0.5},
        }
    }
    needed = {"id", "name", "organization", "architecture", "params", "pretrainingData"}
    needed |= {"publicationDate"}
    models = {entry["id"]: entry for entry in board["models"]}
    assert set(models) == set(ids.values())
    for entry in models.values():
        assert needed <= set(entry)
        assert all(isinstance(value, str) for value in entry.values())
    virchow = models["paige_ai_virchow2"]
    assert (virchow["name"], virchow["organization"]) == ("Virchow2", "paige-ai")
    assert (virchow["params"], virchow["license"]) == ("631M", "non-commercial")
    assert models["mine_v1"]["params"] == ""
    assert "license" not in models["mine_v1"]


def test_what_is_left_out_of_the_board_is_said(caplog):
    given = [
        records.make_record("m", "camelyon", 0.5),
        records.make_record("m", "tcga", records.NAN),
        records.make_record("m", "tolkach_esca", 0.5, k=9, k_rule="given"),
    ]
    with caplog.at_level(std_logging.WARNING):
        found = histoboard.list_files(given, date=datetime.date(2026, 5, 1))
    assert [entry["taskId"] for entry in found["results.json"]] == ["pathorob_camelyon"]
    assert found["results.json"][0]["retrievedAt"] == "2026-05-01"
    assert sorted(caplog.messages) == [
        "m on tcga: left out of the board, it is undefined",
        "m on tolkach_esca: left out of the board, k = 9 is not the published one",
    ]


@pytest.mark.slow
def test_what_the_board_has_no_place_for_is_refused(tmp_path):
    with pytest.raises(InputError, match="no robustness index of tcga, camelyon, tolkach_esca"):
        boarded(tmp_path, [records.make_record("m", "own")])
    assert not (tmp_path / "board").exists()
    with pytest.raises(InputError, match="A B and a-b would both be 'a_b' on the board"):
        boarded(tmp_path, [records.make_record(m, "camelyon") for m in ("A B", "a-b")])
    with pytest.raises(UsageError, match="format: unknown name 'csv'"):
        export_results.export_results("x", form="csv", output="y")
