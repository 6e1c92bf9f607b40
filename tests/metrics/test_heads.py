"""Downstream heads against scikit-learn and plain numpy, split by split."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels import mlp
from pathorob_jax.metrics import heads
from pathorob_jax.metrics.heads import SplitRows, call_knn, call_linear, call_mlp

C_GRID = tuple(10.0 ** np.linspace(-5, -1, 5))
BUDGET = 1 << 30


@pytest.fixture(scope="module")
def rows():
    """Two splits of three classes; no validation row of the second is of class 2."""
    rng = np.random.default_rng(11)
    means = 0.9 * rng.normal(size=(3, 10))

    def draw(n):
        label = np.arange(n) % 3
        return (means[label] + rng.normal(size=(n, 10)) + 2).astype(np.float32), label

    x, label = draw(150)
    x_validation, validation_label = draw(60)
    training = np.zeros((2, 150), bool)
    training[0, :90] = training[1, 60:] = True
    validation = np.ones((2, 60), bool)
    validation[0, 40:] = False
    validation[1] = validation_label != 2
    tests = [draw(120), draw(75)]
    split = SplitRows(
        x=x,
        label_id=label,
        training=training,
        x_validation=x_validation,
        validation_label_id=validation_label,
        validation=validation,
        x_tests=[t for t, _ in tests],
        n_classes=3,
    )
    return split, [y for _, y in tests]


def replay(rows, make, grid):
    """First best setting and the classes called, with any scikit-learn classifier."""
    out = []
    for training, validation in zip(rows.training, rows.validation, strict=True):
        # float64: of float32 rows scikit-learn's own losses are too coarse at strong penalties.
        x = rows.x[training].astype(np.float64)
        models = [make(g).fit(x, rows.label_id[training]) for g in grid]
        scores = [
            balanced_accuracy_score(
                rows.validation_label_id[validation], m.predict(rows.x_validation[validation])
            )
            for m in models
        ]
        best = int(np.argmax(scores))
        out.append((grid[best], scores, [models[best].predict(x) for x in rows.x_tests]))
    return out


def agree(found, expected):
    for s, (chosen, scores, called) in enumerate(expected):
        assert found.chosen[s] == chosen
        np.testing.assert_allclose(found.validation_accuracy[s], scores, rtol=1e-12)
        for ours, theirs in zip(found.called_id, called, strict=True):
            np.testing.assert_array_equal(ours[s], theirs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_the_linear_probe_is_scikit_learn_s(rows):
    split, _ = rows
    found = call_linear(split, c_grid=C_GRID, stopping="reference", budget_bytes=BUDGET)
    agree(found, replay(split, lambda c: LogisticRegression(C=c, max_iter=100), C_GRID))
    assert found.converged.all()
    # Were the first always the best, the test would say little.
    assert min(found.chosen) > C_GRID[0]


@pytest.mark.slow
def test_a_fit_that_runs_out_of_iterations_is_flagged(rows):
    found = call_linear(rows[0], c_grid=(0.01, 10.0), stopping="reference", budget_bytes=BUDGET)
    np.testing.assert_array_equal(found.converged, [[True, False]] * 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_neighbours_vote_by_cosine(rows):
    split, _ = rows
    found = call_knn(split)

    def make(k):
        return KNeighborsClassifier(k, metric="cosine", algorithm="brute")

    agree(found, replay(split, make, heads.K_GRID))
    few = split._replace(training=split.training & (np.arange(150) % 30 < 6))
    assert call_knn(few).validation_accuracy.shape == (2, 4)  # 18 rows: k up to 11


def test_ties_of_votes_go_to_the_smaller_class():
    eye = np.eye(2, dtype=np.float32)
    split = SplitRows(
        x=eye,
        label_id=np.array([1, 0]),
        training=np.ones((1, 2), bool),
        x_validation=eye,
        validation_label_id=np.array([1, 0]),
        validation=np.ones((1, 2), bool),
        x_tests=[np.array([[1.0, 0.9], [0.9, 1.0]], np.float32)],
        n_classes=2,
    )
    called = heads._vote(split, (1, 2), split.x_tests[0])
    np.testing.assert_array_equal(called[0], [[1, 0], [0, 0]])


@pytest.mark.campaign
def test_converged_stopping_reaches_the_probe(rows):
    split, labels = rows
    found = call_linear(split, c_grid=(1e-8, 1.0), stopping="converged", budget_bytes=BUDGET)
    for s, training in enumerate(split.training):
        exact = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12)
        exact.fit(split.x[training].astype(float), split.label_id[training])
        assert found.chosen[s] == 1.0
        np.testing.assert_array_equal(found.called_id[0][s], exact.predict(split.x_tests[0]))
    assert len(labels[0]) == found.called_id[0].shape[1]


@pytest.fixture(scope="module")
def network(rows):
    return call_mlp(rows[0], seed=3)


@pytest.mark.slow
def test_the_network_learns_what_is_there(rows, network):
    split, labels = rows
    linear = call_linear(split, c_grid=C_GRID, stopping="reference", budget_bytes=BUDGET)
    for s in range(2):
        for called, base, label in zip(network.called_id, linear.called_id, labels, strict=True):
            accuracy = balanced_accuracy_score(label, called[s])
            assert accuracy > balanced_accuracy_score(label, base[s]) - 0.1
    best = network.validation_accuracy.max(axis=1)
    for s, epoch in enumerate(network.chosen.astype(int)):
        assert network.validation_accuracy[s, epoch - 1] == best[s]
        assert (network.validation_accuracy[s, : epoch - 1] < best[s]).all()


@pytest.mark.slow
def test_the_network_kept_is_that_of_its_best_epoch(rows):
    split, _ = rows
    idx = np.stack([np.flatnonzero(mask) for mask in split.training])
    arguments = (split.x, split.label_id, idx, split.x_validation, split.validation_label_id)
    trained = mlp.train_mlps(*arguments, split.validation, n_classes=3, seed=3)
    called = mlp.predict_logits(trained, split.x_validation).argmax(axis=2)
    for s, mask in enumerate(split.validation):
        recall = [
            (called[s][mask] == c)[split.validation_label_id[mask] == c].mean()
            for c in np.unique(split.validation_label_id[mask])
        ]
        best = float(trained.validation_accuracy[s].max())
        np.testing.assert_allclose(np.mean(recall), best, rtol=1e-6)
    # Standardised by the rows of its own split.
    for s in range(2):
        own = split.x[idx[s]]
        np.testing.assert_allclose(trained.mean[s], own.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(trained.scale[s], own.std(axis=0), rtol=1e-4)


def test_the_network_is_the_same_again_and_another_by_seed(rows, network):
    again = call_mlp(rows[0], seed=3)
    np.testing.assert_array_equal(again.validation_accuracy, network.validation_accuracy)
    np.testing.assert_array_equal(again.called_id[0], network.called_id[0])
    other = call_mlp(rows[0], seed=4)
    assert (other.validation_accuracy != network.validation_accuracy).any()


@pytest.mark.slow
def test_a_split_does_not_depend_on_those_beside_it(rows, network):
    split, _ = rows
    alone = split._replace(training=split.training[:1], validation=split.validation[:1])
    found = call_mlp(alone, seed=3)
    np.testing.assert_allclose(
        found.validation_accuracy[0], network.validation_accuracy[0], atol=0.03
    )
    assert (found.called_id[0][0] != network.called_id[0][0]).mean() < 0.03


@pytest.mark.slow
def test_constant_features_do_not_blow_up(rows):
    split, _ = rows

    def widen(x):
        return np.concatenate([x, np.full((len(x), 1), 7.3, np.float32)], axis=1)

    wide = split._replace(
        x=widen(split.x),
        x_validation=widen(split.x_validation),
        x_tests=[widen(x) for x in split.x_tests],
    )
    idx = np.stack([np.flatnonzero(mask) for mask in wide.training])
    trained = mlp.train_mlps(
        wide.x, wide.label_id, idx, wide.x_validation, wide.validation_label_id, wide.validation,
        n_classes=3, seed=3,
    )  # fmt: skip
    np.testing.assert_array_equal(trained.scale[:, -1], 1)
    assert np.isfinite(mlp.predict_logits(trained, wide.x_tests[0])).all()


def test_network_refusals(rows):
    split, _ = rows
    idx = np.stack([np.flatnonzero(mask) for mask in split.training])
    with pytest.raises(InputError, match="label_id: expected shape"):
        mlp.train_mlps(
            split.x, split.label_id[:5], idx, split.x_validation, split.validation_label_id,
            split.validation, n_classes=3, seed=1,
        )  # fmt: skip
    with pytest.raises(TypeError, match="row_idx"):
        mlp.train_mlps(
            split.x, split.label_id, idx.astype(float), split.x_validation,
            split.validation_label_id, split.validation, n_classes=3, seed=1,
        )  # fmt: skip


@pytest.mark.slow
def test_heads_by_name():
    made = heads.make_heads(("mlp",), c_grid=C_GRID, stopping="reference", budget_bytes=BUDGET)
    assert list(made) == ["linear", "mlp"]
    assert list(heads.head_settings(("knn",))) == ["knn"]
    made = heads.make_heads(("dann",), c_grid=C_GRID, stopping="reference", budget_bytes=BUDGET)
    assert list(made) == heads.result_names(("dann",)) == ["linear", "dann", "dann_lambda0"]
    assert heads.head_settings(("dann",))["dann"]["lambda_max"] == 1


@pytest.mark.campaign
def test_dann_and_its_twin_differ_by_the_reversal_alone(rows):
    split = rows[0]._replace(center_id=np.arange(150) // 3 % 2, n_centers=2)
    found, twin = (heads.call_dann(split, seed=3, lambda_max=v) for v in (1.0, 0.0))
    assert (found.called_id[0] != twin.called_id[0]).any()
    for calls in (found, twin):
        assert calls.validation_accuracy.shape == calls.converged.shape == (2, 1)
        assert [c.shape for c in calls.called_id] == [(2, 120), (2, 75)]
        for called, label in zip(calls.called_id, rows[1], strict=True):
            assert balanced_accuracy_score(label, called[0]) > 0.5
