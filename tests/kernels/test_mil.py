"""Networks that read bags: against torch, with padding, on other devices, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels.mil import bags as bag_rows
from pathorob_jax.kernels.mil import fit, network
from pathorob_jax.kernels.mil import training as program
from pathorob_jax.kernels.mil.bags import BagRows
from pathorob_jax.kernels.mil.presets import PRESETS

DIM, CLASSES = 12, 3
SMALL = {
    name: preset._replace(
        projection=16, attention=8, epochs=3, batch_bags=min(preset.batch_bags, 4)
    )
    for name, preset in PRESETS.items()
}

# Programs that train take seconds to compile.
EACH = ["gated", pytest.param("xmil", marks=pytest.mark.campaign)]

init_params = jax.jit(network.init_params, static_argnums=(1, 2, 3))


def make_bags(rng, sizes, *, dim=DIM):
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return BagRows(rng.normal(size=(starts[-1], dim)).astype(np.float32), starts)


@pytest.fixture
def bags(rng):
    return make_bags(rng, [7, 1, 12, 5, 9, 3, 8, 10])


LABEL = np.array([0, 1, 2, 0, 1, 2, 0, 1])
TRAINING = np.array([[0, 1, 2, 3, 4], [2, 3, 4, 5, 6]])
VALIDATION = np.array([[0, 0, 0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0, 1]], bool)


def train(bags, name, *, fits=(0, 1), seeds=(3, 4), **options):
    fits = list(fits)
    return fit.train_mil(
        bags, LABEL, TRAINING[fits], VALIDATION[fits], n_classes=CLASSES,
        settings=SMALL[name]._replace(**options), seeds=np.array(seeds)[fits],
    )  # fmt: skip


class Twin:
    """The network in torch, with the gate as a layer of its own."""

    def __init__(self, torch, params, *, gated):
        self.torch, self.gated = torch, gated
        attention = np.array(params["attention"]["kernel"]), np.array(params["attention"]["bias"])
        halves = np.split(attention[0], 2, axis=1), np.split(attention[1], 2)
        values = {"V": attention}
        if gated:
            values = {"V": (halves[0][0], halves[1][0]), "U": (halves[0][1], halves[1][1])}
        values |= {
            name: (np.array(params[name]["kernel"]), np.array(params[name]["bias"]))
            for name in ("projection", "head")
        }
        values["score"] = (np.array(params["score"]["kernel"]), None)
        self.layers = {}
        for name, (kernel, bias) in values.items():
            layer = torch.nn.Linear(*kernel.shape, bias=bias is not None)
            layer.weight.data = torch.tensor(kernel.T.copy())
            if bias is not None:
                layer.bias.data = torch.tensor(bias)
            self.layers[name] = layer
        self.parameters = [p for layer in self.layers.values() for p in layer.parameters()]

    def __call__(self, x, dropout=None):
        """Logits and attention of one bag."""
        torch, layers = self.torch, self.layers
        n = layers["score"].in_features
        hidden = torch.relu(layers["projection"](torch.tensor(x)))
        if dropout is not None:
            hidden = hidden * torch.tensor(dropout[0])
        units = torch.tanh(layers["V"](hidden))
        if dropout is not None:
            units = units * torch.tensor(dropout[1][:, :n])
        if self.gated:
            gate = torch.sigmoid(layers["U"](hidden))
            units = units * (gate if dropout is None else gate * torch.tensor(dropout[1][:, n:]))
        weights = torch.softmax(layers["score"](units)[:, 0], 0)
        return layers["head"](weights @ hidden), weights

    def compare(self, tree, read, *, atol):
        """``read`` of every parameter against ours."""
        ours = {name: dict(layer) for name, layer in tree.items()}
        if self.gated:
            kernels, biases = (np.split(ours["attention"][k], 2, -1) for k in ("kernel", "bias"))
            ours["U"] = {"kernel": kernels[1], "bias": biases[1]}
            ours["attention"] = {"kernel": kernels[0], "bias": biases[0]}
        ours["V"] = ours.pop("attention")
        assert set(ours) == set(self.layers)
        for name, layer in self.layers.items():
            np.testing.assert_allclose(ours[name]["kernel"], read(layer.weight).T, atol=atol)
            if layer.bias is not None:
                np.testing.assert_allclose(ours[name]["bias"], read(layer.bias), atol=atol)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", PRESETS)
def test_forward_gradients_and_steps_are_torch_s(rng, name):
    """At the true sizes: two steps of a batch of bags of other sizes, with weights and dropout."""
    torch = pytest.importorskip("torch")
    settings = PRESETS[name]._replace(batch_bags=3)
    sizes, label = np.array([40, 25, 7]), np.array([0, 2, 1])
    weight = np.array([0.5, 0.2, 0.3], np.float32)
    x = np.zeros((3, 40, 96), np.float32)
    mask = np.arange(40) < sizes[:, None]
    x[mask] = rng.normal(size=(mask.sum(), 96))
    params = init_params(jax.random.key(1), 96, CLASSES, settings)
    twin = Twin(torch, params, gated=settings.gated)
    logits, attention = network.apply(params, jnp.asarray(x), jnp.asarray(mask))
    for bag, size in enumerate(sizes):
        expected = twin(x[bag, :size])
        np.testing.assert_allclose(logits[bag], expected[0].detach(), atol=1e-5)
        np.testing.assert_allclose(attention[bag, :size], expected[1].detach(), atol=1e-5)
    assert (np.asarray(attention)[~mask] == 0).all()

    epochs, start = 20, params
    optimizer = program.make_optimizer(settings, n_steps=epochs)
    state = optimizer.init(params)
    if settings.optimizer == "adamw":
        descent = torch.optim.AdamW(
            twin.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(descent, epochs, eta_min=1e-8)
    else:
        descent = torch.optim.SGD(
            twin.parameters, lr=settings.learning_rate, momentum=settings.momentum
        )
        schedule = torch.optim.lr_scheduler.ConstantLR(descent, factor=1)
    step = jax.jit(
        lambda params, state, dropout: _step(
            optimizer, params, state, dropout, x, mask, label, weight
        )
    )
    for number in range(2):
        dropout = None
        if settings.dropout:
            keys = jax.random.split(jax.random.key(number), 3)
            dropout = jax.vmap(lambda key: program.draw_dropout(key, 40, settings))(keys)
        descent.zero_grad()
        loss = torch.tensor(0.0)
        for bag, size in enumerate(sizes):
            own = None if dropout is None else [np.array(d[bag, :size]) for d in dropout]
            out = twin(x[bag, :size], own)[0][None]
            entropy = torch.nn.functional.cross_entropy(out, torch.tensor(label[bag : bag + 1]))
            loss = loss + float(weight[bag]) * entropy
        loss.backward()
        params, state, gradient, found = step(params, state, dropout)
        np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
        twin.compare(gradient, lambda p: p.grad.numpy(), atol=1e-5)
        descent.step()
        schedule.step()
        # AdamW divides by gradients: entries near 0 turn rounding into part of a step (3e-4).
        twin.compare(params, lambda p: p.detach().numpy(), atol=1e-5)
    moved = np.abs(params["projection"]["kernel"] - start["projection"]["kernel"]).max()
    assert moved > 1e-4


def _step(optimizer, params, state, dropout, x, mask, label, weight):
    loss, gradient = jax.value_and_grad(program.measure_loss)(
        params, x, mask, label, None, weight, dropout
    )
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, gradient, loss


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_padding_changes_nothing(rng, name):
    """More padding, with other values in it: the same loss, gradient and attention."""
    settings = SMALL[name]
    params = init_params(jax.random.key(1), DIM, CLASSES, settings)
    sizes, label, weight = np.array([9, 4]), np.array([0, 2]), np.ones(2, np.float32)
    tiles = rng.normal(size=(2, 9, DIM)).astype(np.float32)
    measure, apply = jax.jit(jax.value_and_grad(program.measure_loss)), jax.jit(network.apply)
    found = []
    for n, filling in ((9, 0.0), (9, 50.0), (31, -7.0)):
        x, mask = np.full((2, n, DIM), filling, np.float32), np.arange(n) < sizes[:, None]
        x[mask] = tiles[np.arange(9) < sizes[:, None]]
        keys = jax.random.split(jax.random.key(5), 2)
        dropout = None
        if settings.dropout:
            dropout = jax.vmap(lambda key, n=n: program.draw_dropout(key, n, settings))(keys)
        loss, gradient = measure(params, x, mask, label, None, weight, dropout)
        attention = np.asarray(apply(params, x, mask)[1])
        assert (attention[~mask] == 0).all()
        found.append((loss, gradient, attention[mask]))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[0], other)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_a_training_does_not_depend_on_padding(rng, name):
    """A large bag that no fit is trained on makes every step longer, and changes no network."""
    sizes = [7, 1, 12, 5, 9, 3, 8, 10]
    bags = make_bags(rng, sizes)
    large = make_bags(np.random.default_rng(1), [*sizes, 57])
    large.x[: len(bags.x)] = bags.x
    both = [
        fit.train_mil(
            some, np.append(LABEL, [0])[: len(some.starts) - 1], TRAINING,
            np.pad(VALIDATION, ((0, 0), (0, 1)))[:, : len(some.starts) - 1],
            n_classes=CLASSES, settings=SMALL[name], seeds=np.array([3, 4]),
        )
        for some in (bags, large)
    ]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both)


@pytest.mark.campaign
@pytest.mark.parametrize("name", EACH)
def test_a_fit_does_not_depend_on_the_others_nor_on_devices(bags, name, monkeypatch):
    together = train(bags, name)
    with jax.default_device(jax.devices()[-1]):
        alone = train(bags, name, fits=(1,))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), together, alone)
    # As on an accelerator: all fits in one product.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    joined = train(bags, name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), together, joined)
    other = train(bags, name, seeds=(3, 5))
    kernel = together.params["head"]["kernel"], other.params["head"]["kernel"]
    assert (kernel[0][1] != kernel[1][1]).all()
    np.testing.assert_allclose(kernel[0][0], kernel[1][0], atol=1e-6)


@pytest.mark.campaign
def test_a_budget_of_bytes_decides_how_many_fits_run_at_once(bags, monkeypatch):
    shapes, told = [], []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = program.train
    monkeypatch.setattr(
        program, "train", lambda b, fits, **o: shapes.append(len(fits.seed)) or run(b, fits, **o)
    )
    options = {"n_classes": CLASSES, "settings": SMALL["gated"]._replace(epochs=1)}
    five = TRAINING[[0, 1, 0, 1, 0]]
    for budget, expected in ((1 << 30, [5]), (0, [1] * 5), (80_000, [3, 3])):
        shapes.clear(), told.clear()
        trained = fit.train_mil(
            bags, LABEL, five, seeds=np.arange(5), budget_bytes=budget, tell=told.append, **options
        )
        assert shapes == expected
        assert sum(told) == 5
        assert trained.loss.shape == (5, 1)


@pytest.mark.slow
def test_predictions_and_attention_are_those_of_the_network(bags):
    trained = train(bags, "gated")
    subset = np.array([6, 1, 2])
    logits, attention = (f(trained, bags, subset) for f in (fit.predict_mil, fit.attend))
    rows = bag_rows.rows_of(bags, subset)
    np.testing.assert_array_equal(rows, np.r_[37:45, 7:8, 8:20])
    first = 0
    for place, bag in enumerate(subset):
        x = bags.x[bags.starts[bag] : bags.starts[bag + 1]]
        for own in range(2):
            params = jax.tree.map(lambda a, own=own: a[own], trained.params)
            expected = network.apply(params, x, np.ones(len(x), bool))
            np.testing.assert_allclose(logits[own, place], expected[0], atol=1e-6)
            found = attention[own, first : first + len(x)]
            np.testing.assert_allclose(found, expected[1], atol=1e-6)
        first += len(x)


@pytest.mark.slow
def test_reading_in_chunks_changes_nothing(bags, monkeypatch):
    trained = train(bags, "xmil")
    whole = fit.predict_mil(trained, bags, np.arange(8))
    monkeypatch.setattr(fit, "READ_ROWS", 16)
    np.testing.assert_allclose(fit.predict_mil(trained, bags, np.arange(8)), whole, atol=1e-6)


@pytest.mark.slow
def test_tiles_of_large_bags_are_drawn_without_replacement():
    def draw(number, *, most=50, size=30, n_rows=8):
        key = jax.random.key(number)
        rows, mask = bag_rows.draw_rows(
            key, jnp.int32(100), jnp.int32(size), n_rows=n_rows, most=most
        )
        return np.asarray(rows), np.asarray(mask)

    seen = []
    for number in range(60):
        rows, mask = draw(number)
        assert mask.all()
        assert len(set(rows)) == 8
        np.testing.assert_array_equal(draw(number, most=90)[0], rows)
        seen.extend(rows)
    # 480 draws of 30 tiles: 16 each, standard deviation 3.4 (without replacement within eight).
    counts = np.bincount(np.array(seen) - 100, minlength=30)
    assert len(counts) == 30
    assert counts.min() > 2
    assert counts.max() < 33
    rows, mask = draw(0, size=5)
    np.testing.assert_array_equal(rows[:5], np.arange(100, 105))
    np.testing.assert_array_equal(mask, np.arange(8) < 5)
    assert rows.max() == 104


@pytest.mark.slow
def test_dropout_keeps_the_share_and_the_mean():
    settings = PRESETS["gated"]
    drawn = np.concatenate(program.draw_dropout(jax.random.key(0), 300, settings), axis=1)
    assert drawn.shape == (300, 1280)
    np.testing.assert_array_equal(np.unique(drawn), np.float32([0, 4 / 3]))
    np.testing.assert_allclose((drawn > 0).mean(0), 0.75, atol=0.15)
    np.testing.assert_allclose((drawn > 0).mean(), 0.75, atol=3e-3)
    longer = program.draw_dropout(jax.random.key(0), 400, settings)
    np.testing.assert_array_equal(np.concatenate(longer, axis=1)[:300], drawn)


@pytest.mark.campaign
def test_the_epoch_kept_is_the_latest_of_the_best_areas(bags):
    from sklearn.metrics import roc_auc_score

    scores = []
    for epochs in (2, 4):
        trained = train(bags, "xmil", epochs=epochs, learning_rate=0.3, momentum=0.0)
        logits = fit.predict_mil(trained, bags, np.arange(8))
        share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        for own, mask in enumerate(VALIDATION):
            areas = [
                roc_auc_score(LABEL[mask] == c, share[own, mask, c])
                for c in range(CLASSES)
                if 0 < (LABEL[mask] == c).sum() < mask.sum()
            ]
            score = trained.validation_score[own]
            np.testing.assert_allclose(np.mean(areas), score.max(), atol=1e-6)
            assert trained.epoch[own] == epochs - score[::-1].argmax()
        scores.append(trained.validation_score)
    np.testing.assert_allclose(scores[1][:, :2], scores[0], atol=1e-6)
    assert len(np.unique(scores[1])) > 1


@pytest.mark.campaign
def test_balanced_weights_give_every_class_its_share(bags, monkeypatch):
    seen = []
    run = program.train
    monkeypatch.setattr(program, "train", lambda b, f, **o: seen.append(f.weight) or run(b, f, **o))
    train(bags, "gated", epochs=1)
    # Fit 0 is trained on classes 0, 1, 2, 0, 1 and fit 1 on 2, 0, 1, 2, 0.
    np.testing.assert_allclose(seen[0][0], np.array([5 / 6, 5 / 6, 5 / 3])[LABEL], rtol=1e-6)
    np.testing.assert_allclose(seen[1][0], np.array([5 / 6, 5 / 3, 5 / 6])[LABEL], rtol=1e-6)
    train(bags, "xmil", epochs=1)
    assert (seen[2] == 1).all()


def test_tiles_are_sorted_into_bags(rng):
    x = rng.normal(size=(6, 2)).astype(np.float32)
    found = bag_rows.sort_into_bags(x, np.array([1, 0, 2, 1, 0, 2]))
    np.testing.assert_array_equal(found.row_idx, [1, 4, 0, 3, 2, 5])
    np.testing.assert_array_equal(found.bags.x, x[found.row_idx])
    np.testing.assert_array_equal(found.bags.starts, [0, 2, 4, 6])


def refuse(bags, message, *, label=LABEL, training=TRAINING, error=InputError, **options):
    arguments = {
        "validation": VALIDATION, "n_classes": CLASSES, "settings": SMALL["xmil"],
        "seeds": np.array([3, 4]),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        fit.train_mil(bags, label, training, **(arguments | options))


def test_bad_input_is_refused(bags):
    refuse(BagRows(bags.x, np.insert(bags.starts, 3, bags.starts[3])), "1 of 9 have no tile")
    refuse(BagRows(bags.x, bags.starts[:-1]), "starts: expected the first row of each bag")
    refuse(bags, r"fit 1: one class only among 5", label=np.array([0, 1, 2, 2, 2, 2, 2, 1]))
    refuse(bags, r"target: expected numbers in \[0, 3\), found 0 to 3", label=LABEL + (LABEL == 2))
    refuse(bags, r"training: expected numbers in \[0, 8\)", training=TRAINING + 4)
    refuse(bags, "validation: expected bags that choose the epoch", validation=None)
    refuse(bags, "fit 0: no two validation bags", validation=VALIDATION & (LABEL == 2))
    refuse(bags, "seeds: expected 0 to", seeds=np.array([0, -1]))
    refuse(bags, "target: expected an integer", label=LABEL * 1.0, error=TypeError)
    refuse(bags, r"expected fits with training bags, found .*\(2, 0\)", training=TRAINING[:, :0])
    with pytest.raises(InputError, match="bag_id: expected numbers of 0 or more, found -1"):
        bag_rows.sort_into_bags(np.ones((2, 3), np.float32), np.array([0, -1]))
    with pytest.raises(InputError, match="1 of 3 have no tile"):
        bag_rows.sort_into_bags(np.ones((2, 3), np.float32), np.array([0, 2]))
    with pytest.raises(InputError, match="1 of 2 tiles have NaN"):
        bag_rows.sort_into_bags(np.array([[1, np.nan], [0, 0]], np.float32), np.array([0, 1]))


def test_descent_decays_weights_where_it_is_told_to():
    settings = PRESETS["xmil"]._replace(optimizer="sgd", learning_rate=0.5, schedule="constant")
    weight = {"w": jnp.array([2.0, -4.0])}
    for decay, expected in ((0.0, [0, 0]), (0.25, [-0.25, 0.5])):
        optimizer = program.make_optimizer(settings._replace(weight_decay=decay), n_steps=3)
        moved, _ = optimizer.update({"w": jnp.zeros(2)}, optimizer.init(weight), weight)
        np.testing.assert_array_equal(moved["w"], expected)


@pytest.mark.campaign
@pytest.mark.slow
def test_bags_that_every_step_sees_whole_are_those_of_gradient_descent():
    """Full-batch descent, bag by bag without padding, from the same start."""
    rng = np.random.default_rng(4)
    sizes, training_bags = (3, 7, 5, 4), np.array([3, 0, 2])
    parts = [rng.normal(size=(n, 6)).astype(np.float32) for n in sizes]
    label = np.array([0, 1, 1, 0])
    settings = PRESETS["xmil"]._replace(
        projection=8, attention=4, epochs=4, choose="last", learning_rate=0.2
    )
    bags = BagRows(np.concatenate(parts), np.cumsum([0, *sizes]))
    found = fit.train_mil(
        bags, label, training_bags[None], None, n_classes=2, settings=settings, seeds=np.array([5])
    )
    params = init_params(jax.random.split(jax.random.key(5))[0], 6, 2, settings)
    optimizer = optax.sgd(0.2, momentum=settings.momentum)
    state = optimizer.init(params)

    @jax.jit
    @jax.grad
    def descend(params):
        total = 0.0
        for bag in training_bags:
            x = jnp.asarray(parts[bag])[None]
            logits, _ = network.apply(params, x, jnp.ones(x.shape[:2], bool), None)
            total = total - jax.nn.log_softmax(logits)[0, label[bag]]
        return total / len(training_bags)

    for _ in range(settings.epochs):
        updates, state = optimizer.update(descend(params), state, params)
        params = optax.apply_updates(params, updates)
    for mine, expected in zip(jax.tree.leaves(found.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine[0], expected, rtol=0, atol=1e-5)
