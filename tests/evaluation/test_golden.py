"""The reference's own numbers, from embeddings keyed to PathoROB's real metadata.

Through the commands that a user types: feature folders -> store -> results. We allow 1e-4:
float32 distances round differently, which moves a neighbour at a rank's border now and then.
"""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest
import scripts

from pathorob_jax.data import protocols
from pathorob_jax.data.manifest import read_manifest

ATOL = 1e-4
METADATA = {
    "camelyon": ["camelyon.csv"],
    "tcga": ["tcga_2x2.csv", "tcga_4x4.csv"],
    "tolkach_esca": ["tolkach_esca.csv", "tolkach_esca_reduced.csv"],
}
KINDS = ("ss", "so", "os", "oo")
COMPANIONS = {
    "prediction_performance": "prediction_performance",
    "id_performance": "ID_performance",
    "ood_performance": "OOD_performance",
    "bio_vs_confounding": "bio_vs_confounding",
    "confounder_insensitivity": "confounder_insensitivity",
    "generalization_index": "generalization_index",
}
pytestmark = [pytest.mark.golden, pytest.mark.optimized, pytest.mark.slow]


def run(module, *arguments):
    done = scripts.call(module, *arguments)
    assert done.code == 0, done.text


@pytest.fixture(scope="module")
def stores(shared, tmp_path_factory):
    """The folder of the embeddings of all datasets, imported from PathoROB's feature trees."""
    golden = shared / "golden"
    if not golden.is_dir():
        pytest.skip(f"{golden} is absent: no reference numbers to compare with")
    root = tmp_path_factory.mktemp("golden")
    metadata = root / "metadata"
    metadata.mkdir()
    for dataset, names in METADATA.items():
        for name in names:
            source = shared / "pathorob" / "metadata" / name
            shutil.copy(source if source.exists() else golden / name, metadata / name)
        write_features(golden, metadata, names, root / "features" / "golden" / dataset, dataset)
        run(
            "import_embeddings",
            "--format=pathorob_npz",
            f"--source={root}/features/golden/{dataset}",
            "--manifest=" + ",".join(f"{metadata}/{name}" for name in names),
            "--model=golden",
            f"--dataset={dataset}",
            f"--output={root}/embeddings",
        )
    return root


@pytest.fixture(scope="module")
def results(stores):
    """``results(rule, dataset)``: the robustness index at k by that rule, evaluated once."""

    @functools.cache
    def evaluate(rule, dataset, metric="robustness_index"):
        run(
            "evaluate",
            f"--embeddings={stores}/embeddings/golden",
            f"--dataset={dataset}",
            f"--metadata_dir={stores}/metadata",
            f"--output={stores}/{metric}-{rule}",
            f"--metrics={metric}",
            f"--k={rule}",
            "--layout=pathorob",
        )
        file = stores / f"{metric}-{rule}" / "golden" / dataset / f"{metric}.json"
        return json.loads(file.read_text())

    return evaluate


def write_features(golden, metadata, names, folder, dataset):
    """PathoROB's feature folder: one .npz per centre, one member per patch key."""
    with np.load(golden / f"embeddings_{dataset}.npz") as arrays:
        keys = [f"{s}-{p}" for s, p in zip(arrays["slide_id"], arrays["patch_id"], strict=True)]
        vectors = dict(zip(keys, arrays["features"].astype(np.float32), strict=True))
    centers = {}
    for name in names:
        manifest = read_manifest(str(metadata / name))
        for key, center in zip(
            manifest.keys.to_pylist(), manifest.column("medical_center"), strict=True
        ):
            centers.setdefault(center.replace(" ", "_"), {})[key] = vectors[key]
    folder.mkdir(parents=True)
    for center, members in centers.items():
        np.savez(folder / f"{center}.npz", **members)


def of_dataset(*values):
    """Values of a test, the last of them its dataset; only campaigns have others than TCGA."""
    return pytest.param(*values, marks=[pytest.mark.campaign] * (values[-1] != "tcga"))


@pytest.fixture(params=[of_dataset(name) for name in sorted(METADATA)])
def dataset(request):
    return request.param


by_rule = pytest.mark.parametrize(
    ("rule", "dataset"),
    [of_dataset(*pair) for pair in itertools.product(("default", "auto"), sorted(METADATA))],
)
# What the reference's files call them.
THEIRS = {"default": "default", "auto": "sweep"}


def reference(shared, dataset, rule):
    path = shared / "golden" / f"robustness_index_{dataset}.json"
    return json.loads(path.read_text())[rule]


@by_rule
def test_headline(results, shared, dataset, rule):
    ours, theirs = results(rule, dataset), reference(shared, dataset, THEIRS[rule])["summary"]
    assert ours["k"] == theirs["k_opt"]
    assert ours["k_rule"] == {"default": "published", "auto": "auto"}[rule]
    for name in ("robustness_index", "balanced_accuracy"):
        np.testing.assert_allclose(ours[name], theirs[name], atol=ATOL, err_msg=name)
    for name, upstream in COMPANIONS.items():
        np.testing.assert_allclose(ours[name], theirs[upstream], atol=ATOL, err_msg=name)


@by_rule
def test_the_same_in_pathorobs_tree(results, stores, shared, dataset, rule):
    theirs = reference(shared, dataset, THEIRS[rule])
    results(rule, dataset)
    options = {"default": "-1_0", "auto": "-1_-1"}[rule]
    root = stores / f"robustness_index-{rule}" / "robustness_index"
    folder = root / "golden" / dataset / options
    ours = json.loads((folder / "results_summary.json").read_text())
    assert list(ours) == list(theirs["summary"])
    for name, value in theirs["summary"].items():
        if name == "confounder_log_reg_AUC":  # of probes, which were not computed
            assert ours[name] is None
        elif name != "normalized_confounder_insensitivity":  # divided by another number
            np.testing.assert_allclose(ours[name], value, atol=ATOL, err_msg=name)
    lines = (folder / "balanced-accuracies-bio.csv").read_text().splitlines()
    assert lines[0] == "k,bal_acc,std"
    found = {int(k): float(v) for k, v, _ in (line.split(",") for line in lines[1:])}
    accuracy = theirs["balanced_accuracy_by_k"]
    known = dict(zip(accuracy["k"], accuracy["balanced_accuracy"], strict=True))
    both = sorted(found.keys() & known.keys())
    assert ours["k_opt"] in both
    np.testing.assert_allclose([found[k] for k in both], [known[k] for k in both], atol=ATOL)


@by_rule
def test_curves(results, shared, dataset, rule):
    ours, theirs = results(rule, dataset)["curve"], reference(shared, dataset, THEIRS[rule])
    ks = [k for k in ours["k"] if k <= theirs["max_k"]]
    assert len(ks) > {"default": 5, "auto": 20}[rule]
    n = len(ks)
    at = np.array(ks) - 1
    np.testing.assert_allclose(
        ours["robustness_index"][:n], np.array(theirs["robustness_index"])[at], atol=ATOL
    )
    for kind in KINDS:
        upstream = np.array(theirs[f"fraction_{kind.upper()}-cum-norm"])
        np.testing.assert_allclose(ours[kind][:n], upstream[at], atol=ATOL)
    accuracy = theirs["balanced_accuracy_by_k"]
    known = dict(zip(accuracy["k"], accuracy["balanced_accuracy"], strict=True))
    shared_ks = [i for i, k in enumerate(ks) if k in known]
    assert shared_ks
    np.testing.assert_allclose(
        [ours["balanced_accuracy"][i] for i in shared_ks],
        [known[ks[i]] for i in shared_ks],
        atol=ATOL,
    )


def test_classes_and_centers(results, shared, dataset):
    # The reference's file keeps the counts per sample at k = 1, 11 and its last.
    theirs = reference(shared, dataset, "default")["per_category"]
    ours = results("11", dataset)
    assert ours["k_rule"] == "given"
    groups = ours["per_class"] | ours["per_center"]
    assert set(groups) == set(theirs)
    for name, group in groups.items():
        counts = [theirs[name][f"fraction_{kind.upper()}-cum"][1] for kind in KINDS]
        np.testing.assert_allclose(sum(counts), 11)
        for kind, count in zip(KINDS, counts, strict=True):
            np.testing.assert_allclose(group[kind], count / 11, atol=ATOL)
        expected = counts[1] / (counts[1] + counts[2])
        np.testing.assert_allclose(group["robustness_index"], expected, atol=ATOL)


@pytest.mark.campaign
@pytest.mark.parametrize(
    "dataset",
    # tests/metrics/test_probes.py has them too, without a store.
    [
        "tcga",
        pytest.param("camelyon", marks=pytest.mark.campaign),
        pytest.param("tolkach_esca", marks=pytest.mark.campaign),
    ],
)
def test_probes(results, shared, dataset):
    theirs = reference(shared, dataset, "default")
    for ours, upstream in (
        ("biology_auc", "prediction_log_reg_AUC"),
        ("center_auc", "confounder_log_reg_AUC"),
        ("ood_biology_auc", "OOD_prediction_log_reg_AUC"),
    ):
        # The solver rounds in another order than scikit-learn's; nothing else differs.
        found = results("default", dataset, "probes")[ours]
        np.testing.assert_allclose(found, theirs[upstream], atol=1e-4, err_msg=ours)


def test_support_and_views(results, dataset):
    ours = results("default", dataset)
    protocol = protocols.PROTOCOLS[dataset].robustness_index
    rows = {"camelyon": 20_400, "tcga": 36 * 240, "tolkach_esca": 9_000}
    assert ours["n_samples"] == rows[dataset]
    assert ours["design"] == protocol.design
    assert len(ours["per_subset"]) == (36 if dataset == "tcga" else 0)
    # On Camelyon at k = 11 hardly half of the samples decide anything.
    low, high = (0.1, 0.6) if dataset == "camelyon" else (0.95, 1.0)
    assert low <= ours["support"] <= high
