"""Logistic probes against a plain scikit-learn loop, and against the reference's numbers."""

import json
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pathorob_jax.core.checks import InputError
from pathorob_jax.data import protocols, row_views
from pathorob_jax.data.manifest import read_manifest
from pathorob_jax.kernels.bootstrap import draws
from pathorob_jax.kernels.logistic import lbfgs
from pathorob_jax.metrics import probes
from pathorob_jax.metrics.probes import Probe, probe_aucs

SEED = 42
CASE_LENGTH = 12  # characters of a TCGA slide id that name the case


def plain_auc(x, label, group, n_splits, *, parity=True):
    """(mean AUC, folds) by scikit-learn alone; a fold that lacks a label is left out."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    x = StandardScaler().fit_transform(x) if parity else x.astype(np.float64)
    found = []
    splitter = StratifiedGroupKFold(n_splits, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = list(splitter.split(x, label, group))
    for train, test in splits:
        if any(len(set(label[side])) < len(set(label)) for side in (train, test)):
            continue
        model = LogisticRegression(max_iter=1000)
        if not parity:
            model = make_pipeline(StandardScaler(), model)
        p = model.fit(x[train], label[train]).predict_proba(x[test])
        if p.shape[1] == 2:
            auc = roc_auc_score(label[test], p[:, 1])
        else:
            auc = roc_auc_score(label[test], p, multi_class="ovr")
        found.append(max(auc, 1 - auc))
    return np.mean(found) if found else np.nan, len(found)


def probe_auc(x, label, group, *, n_splits, seed, parity=True):
    """``probe_aucs`` of a single probe."""
    return probe_aucs(x, [Probe(label, group, n_splits)], seed=seed, parity=parity)[0]


def make_rows(rng, *, n_classes=2, n_centers=3, slides=4, rows=12, d=16, signal=0.25):
    """Embeddings that know class, centre and slide a little; class crossed with centre."""
    shape = (n_classes, n_centers, slides, rows)
    bio, center, slide, _ = (i.reshape(-1) for i in np.indices(shape))
    slide = slide + slides * (center + n_centers * bio)
    x = rng.normal(size=(len(bio), d))
    for ids, strength in ((bio, signal), (center, signal), (slide, 0.3)):
        x += strength * rng.normal(size=(ids.max() + 1, d))[ids]
    return (x + 1).astype(np.float32), bio, center, slide


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_classes", "parity"), [(4, True), pytest.param(2, False, marks=pytest.mark.campaign)]
)
def test_all_probes_equal_a_plain_loop(rng, n_classes, parity):
    x, bio, center, slide = make_rows(rng, n_classes=n_classes)
    asked = [Probe(bio, slide, 4), Probe(bio, center, 3), Probe(center, slide, 4)]
    got = probe_aucs(x, asked, seed=SEED, parity=parity)
    for probe, result in zip(asked, got, strict=True):
        auc, n_folds = plain_auc(x, *probe, parity=parity)
        assert 0.55 < auc < 0.995  # neither chance nor a ceiling
        assert (result.n_folds, result.n_skipped) == (n_folds, probe.n_splits - n_folds)
        # Equal here; the other habit is 5e-5 (four classes) to 4e-4 (two) away on some probe.
        np.testing.assert_allclose(result.auc, auc, atol=2e-5)


@pytest.mark.campaign
def test_one_probe_is_the_same_alone(rng):
    x, bio, center, slide = make_rows(rng)
    both = probe_aucs(x, [Probe(bio, slide, 3), Probe(bio, center, 3)], seed=SEED)
    alone = probe_auc(x, bio, center, n_splits=3, seed=SEED)
    np.testing.assert_allclose(alone.auc, both[1].auc, atol=1e-6)
    other = probe_auc(x, bio, slide, n_splits=3, seed=SEED + 1)
    assert other.auc != both[0].auc


def test_the_numbering_of_labels_and_the_length_of_rows_are_free(rng):
    x, bio, _, slide = make_rows(rng)
    got = probe_auc(x, bio, slide, n_splits=3, seed=SEED)
    length = np.exp(rng.normal(size=(len(x), 1))).astype(np.float32)
    same = probe_auc(x * length, 7 - 5 * bio, slide, n_splits=3, seed=SEED)
    np.testing.assert_allclose(same.auc, got.auc, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("parity", [True, False])
def test_features_far_from_zero_and_constant_ones(rng, parity):
    x, bio, _, slide = make_rows(rng)
    x[:, 0] += 300  # every unit row is nearly this one direction
    x[:, 3] = 0
    got = probe_auc(x, bio, slide, n_splits=3, seed=SEED, parity=parity)
    unit = x.astype(np.float64)  # float32 unit rows are what is left of them
    auc, _ = plain_auc(unit, bio, slide, 3, parity=parity)
    np.testing.assert_allclose(got.auc, auc, atol=2e-3)


@pytest.mark.slow
def test_the_mean_is_over_folds_that_have_all_labels(rng):
    # Label 1 is on one slide per fold at most, and two folds have none of it.
    x, _, _, slide = make_rows(rng, n_classes=2, n_centers=1, slides=5)
    label = (slide < 3).astype(int)
    got = probe_auc(x, label, slide, n_splits=5, seed=SEED)
    auc, n_folds = plain_auc(x, label, slide, 5)
    assert 0 < n_folds < 5
    assert (got.n_folds, got.n_skipped) == (n_folds, 5 - n_folds)
    np.testing.assert_allclose(got.auc, auc, atol=1e-3)


def test_nothing_feasible_is_nan(rng):
    x, bio, center, slide = make_rows(rng)
    one_group = np.zeros_like(slide)
    one_label = np.zeros_like(bio)
    tied = center  # the label is the group: no test fold has two labels and a training one all
    few = np.arange(len(x)) // 2  # two rows of each label, four folds
    asked = [
        Probe(bio, one_group, 2),
        Probe(one_label, slide, 5),
        Probe(center, tied, 3),
        Probe(few, slide, 4),
    ]
    for probe, result in zip(asked, probe_aucs(x, asked, seed=SEED), strict=True):
        assert np.isnan(result.auc)
        assert (result.n_folds, result.n_skipped) == (0, probe.n_splits)


def test_an_area_under_a_half_is_flipped():
    label = np.array([0, 0, 1, 1])
    logits = np.array([[3.0], [1.0], [2.0], [-1.0]])
    for parity in (True, False):
        assert probes._auc(label, probes._as_scores(logits, parity=parity)) == 0.75
        assert probes._auc(1 - label, probes._as_scores(logits, parity=parity)) == 0.75


def test_sure_rows_tie_in_float32_only():
    label, logits = np.array([0, 1, 1]), np.array([[30.0], [40.0], [20.0]])
    assert probes._auc(label, probes._as_scores(logits, parity=True)) == 0.5
    logits[2] = 35
    assert probes._auc(label, probes._as_scores(logits, parity=False)) == 1.0
    assert (
        probes._auc(label, probes._as_scores(-100 * logits, parity=True)) == 0.5
    )  # all 0, and no overflow


@pytest.mark.slow
def test_subsets_of_one_shape_share_a_trace(rng):
    # One of these has infeasible folds, whose places are filled.
    x, bio, _, slide = make_rows(rng, n_centers=1, slides=5, d=9)
    probe_auc(x, bio, slide, n_splits=5, seed=SEED)
    before = lbfgs.iterate._cache_size()
    got = probe_auc(x, (slide < 3).astype(int), slide, n_splits=5, seed=SEED)
    assert got.n_skipped > 0
    assert lbfgs.iterate._cache_size() == before


def test_statistics_are_those_of_each_mask(rng):
    x = (rng.normal(size=(5000, 6)) * [1, 2, 3, 1e-3, 1, 0] + [0, 5, 0, 1, -9, 4]).astype(
        np.float32
    )
    masks = rng.random((3, 5000)) < 0.4
    mean, spread = probes._feature_statistics(x, masks)
    for i in range(3):
        scaler = StandardScaler().fit(x[masks[i]].astype(np.float64))
        np.testing.assert_allclose(mean[i], scaler.mean_, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(spread[i], scaler.scale_, rtol=1e-9)


def test_the_caller_keeps_their_embeddings(rng):
    x, bio, _, slide = make_rows(rng)
    before = x.copy()
    probe_auc(x, bio, slide, n_splits=3, seed=SEED)
    np.testing.assert_array_equal(x, before)


def test_refusals(rng):
    x, bio, _, slide = make_rows(rng)
    with pytest.raises(InputError, match=r"probes\[0\].label_id: expected shape"):
        probe_auc(x, bio[1:], slide, n_splits=3, seed=SEED)
    with pytest.raises(InputError, match=r"probes\[0\].group_id: expected shape"):
        probe_auc(x, bio, slide[1:], n_splits=3, seed=SEED)
    with pytest.raises(TypeError, match=r"probes\[0\].label_id"):
        probe_auc(x, bio.astype(float), slide, n_splits=3, seed=SEED)
    with pytest.raises(InputError, match="n_splits: expected 2 or more, found 1"):
        probe_auc(x, bio, slide, n_splits=1, seed=SEED)
    x[5] = 0
    with pytest.raises(InputError, match="1 rows hold only zeros, the first is row 5"):
        probe_auc(x, bio, slide, n_splits=3, seed=SEED)


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset",
    [
        "camelyon",
        pytest.param("tcga", marks=pytest.mark.campaign),
        pytest.param("tolkach_esca", marks=pytest.mark.campaign),
    ],
)
def test_golden(shared, dataset):
    # DESIGN section 6 allows 2e-3. Ours are within 2e-5; other habits are up to 6e-4 away.
    golden = shared / "golden"
    if not golden.is_dir():
        pytest.skip(f"{golden} is absent: no reference numbers to compare with")
    protocol = protocols.PROTOCOLS[dataset].robustness_index
    name = protocol.view.metadata
    source = shared / "pathorob" / "metadata" / name
    view = read_manifest(str(source if source.exists() else golden / name))
    view = view.without_subsets(protocol.view.exclude_subsets)
    view = row_views.shuffle(view, protocol.shuffle_seed)
    with np.load(golden / f"embeddings_{dataset}.npz") as arrays:
        keys = [f"{s}-{p}" for s, p in zip(arrays["slide_id"], arrays["patch_id"], strict=True)]
        vectors = dict(zip(keys, arrays["features"].astype(np.float32), strict=True))
    x = np.stack([vectors[key] for key in view.keys.to_pylist()])
    slides = [str(s) for s in view.column("slide_id")]
    group = np.array([s[:CASE_LENGTH] if dataset == "tcga" else s for s in slides])
    aucs = []
    for scope in row_views.make_scopes(view, protocol.design):
        group_id = np.unique(group[scope.rows], return_inverse=True)[1]
        asked = [
            Probe(scope.bio_id, group_id, 5),
            Probe(scope.bio_id, scope.center_id, len(scope.centers)),
            Probe(scope.center_id, group_id, 5),
        ]
        aucs.append([r.auc for r in probe_aucs(x[scope.rows], asked, seed=SEED)])
    theirs = json.loads((golden / f"robustness_index_{dataset}.json").read_text())["default"]
    names = ("prediction_log_reg_AUC", "OOD_prediction_log_reg_AUC", "confounder_log_reg_AUC")
    np.testing.assert_allclose(
        np.nanmean(aucs, axis=0), [theirs[n] for n in names], atol=5e-5, rtol=0
    )


@pytest.mark.campaign
@pytest.mark.parametrize("n_labels", [pytest.param(2, marks=pytest.mark.campaign), 3])
def test_draws_weigh_the_test_rows_of_each_fold(rng, n_labels):
    n = 120
    label, slide = rng.integers(0, n_labels, n), np.arange(n) // 8
    x = rng.normal(size=(n, 6)) + 0.6 * np.eye(6)[label]
    everyone = np.ones((1, 15), np.int32)
    drawn = draws.draw_group_weights(15, draws=40, seed=0)
    probe = probes.Probe(label, slide, 3)
    got = [
        probes.probe_aucs(x, [probe], seed=0, resampling=probes.Resampling(w, slide))[0]
        for w in (everyone, drawn)
    ]
    # Every group once: the area itself. More of them: spread about it.
    np.testing.assert_allclose(got[0].replicates, [got[0].auc], rtol=1e-12)
    assert got[1].replicates.shape == (40,)
    assert 0.002 < np.nanstd(got[1].replicates) < 0.2
    assert abs(np.nanmean(got[1].replicates) - got[1].auc) < 0.05
    assert probes.probe_aucs(x, [probe], seed=0)[0].replicates.size == 0
