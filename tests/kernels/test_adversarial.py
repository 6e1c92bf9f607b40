"""The network that unlearns a domain: against torch, against plain training, on planted data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from sklearn.metrics import balanced_accuracy_score, log_loss

from pathorob_jax.core.checks import InputError
from pathorob_jax.kernels import adversarial
from pathorob_jax.kernels.mlp import feature_statistics

SMALL = adversarial.AdversarialSettings(hidden=32, domain_hidden=16, epochs=6, batch_rows=32)
N, DIM, CLASSES, DOMAINS = 160, 12, 2, 3

init_params = jax.jit(adversarial.init_params, static_argnums=(1, 2, 3, 4))


@pytest.fixture(scope="module")
def planted():
    """Rows whose class and domain lie on planted directions, and are associated in training."""
    rng = np.random.default_rng(5)
    class_means, domain_means = rng.normal(size=(2, 12)), 1.5 * rng.normal(size=(3, 12))

    def draw(n, share):
        domain = np.arange(n) % 3
        label = np.where(rng.random(n) < share, domain > 0, rng.integers(0, 2, n)).astype(np.int64)
        x = class_means[label] + domain_means[domain] + rng.normal(size=(n, 12))
        return (x + 1).astype(np.float32), label, domain

    return draw(N, 0.7), draw(60, 0.7)


def train(planted, *, problems=(0, 1), settings=SMALL, **options):
    (x, label, domain), (x_validation, validation_label, _) = planted
    idx = np.stack([np.arange(96), np.arange(64, 160)])[list(problems)]
    mask = np.ones((2, 60), bool)
    mask[1, 40:] = False
    return adversarial.train_adversarial(
        x, label, domain, idx, x_validation, validation_label, mask[list(problems)],
        n_classes=CLASSES, n_domains=DOMAINS, seed=3, settings=settings, **options,
    )  # fmt: skip


def test_the_strength_follows_ganin_s_schedule():
    progress = np.array([0, 0.1, 0.5, 1])
    expected = 0.7 * (2 / (1 + np.exp(-10 * progress)) - 1)
    found = [adversarial.reversal_strength(p, 0.7) for p in progress.astype(np.float32)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.torch
def test_the_reversal_is_torch_s(rng):
    torch = pytest.importorskip("torch")

    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, strength):
            ctx.strength = strength
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return -ctx.strength * gradient, None

    x, weight = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(2))
    theirs = torch.tensor(x, requires_grad=True)
    (torch.sin(Reverse.apply(theirs, 0.3)) * torch.tensor(weight)).sum().backward()

    def ours(x):
        return (jnp.sin(adversarial.reverse_gradient(x, jnp.float32(0.3))) * weight).sum()

    np.testing.assert_allclose(jax.grad(ours)(x), theirs.grad.numpy(), atol=1e-6)
    np.testing.assert_array_equal(adversarial.reverse_gradient(x, jnp.float32(0.3)), x)


@pytest.mark.slow
@pytest.mark.torch
def test_a_step_is_torch_s(rng):
    """Two steps of AdamW from equal weights, with reversal and dropout, against a torch twin."""
    torch = pytest.importorskip("torch")
    strength = 0.4
    params = init_params(jax.random.key(1), DIM, CLASSES, DOMAINS, SMALL)
    x = rng.normal(size=(40, DIM)).astype(np.float32)
    label, domain = rng.integers(0, CLASSES, 40), rng.integers(0, DOMAINS, 40)
    dropout = ((rng.random((2, 40, 32)) < 0.9) / 0.9).astype(np.float32)

    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return -strength * gradient

    theirs = {}
    for name, layer in params.items():
        theirs[name] = torch.nn.Linear(*layer["kernel"].shape)
        theirs[name].weight.data = torch.tensor(np.array(layer["kernel"]).T)
        theirs[name].bias.data = torch.tensor(np.array(layer["bias"]))
    everything = [p for layer in theirs.values() for p in layer.parameters()]
    descent = torch.optim.AdamW(everything, lr=SMALL.learning_rate, weight_decay=SMALL.weight_decay)
    optimizer = adversarial.make_optimizer(SMALL)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, factors):
        gradient, losses = jax.grad(adversarial.measure_losses, has_aux=True)(
            params, x, label, domain, strength=strength, dropout=factors
        )
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, losses

    entropy = torch.nn.functional.cross_entropy
    for factors in dropout:
        hidden = torch.relu(theirs["hidden"](torch.tensor(x))) * torch.tensor(factors)
        inner = torch.relu(theirs["domain_hidden"](Reverse.apply(hidden)))
        losses = (
            entropy(theirs["label"](hidden), torch.tensor(label)),
            entropy(theirs["domain"](inner), torch.tensor(domain)),
        )
        descent.zero_grad()
        sum(losses).backward()
        descent.step()
        params, state, found = step(params, state, factors)
        np.testing.assert_allclose(found, [v.item() for v in losses], rtol=1e-5)
    for name, layer in params.items():
        np.testing.assert_allclose(layer["kernel"], theirs[name].weight.detach().T, atol=1e-5)
        np.testing.assert_allclose(layer["bias"], theirs[name].bias.detach(), atol=1e-5)
    start = init_params(jax.random.key(1), DIM, CLASSES, DOMAINS, SMALL)
    # The two steps move weights a hundred times further than the tolerance.
    assert all(np.abs(params[k]["kernel"] - start[k]["kernel"]).max() > 1e-3 for k in start)


@jax.jit
def train_plainly(x, label, rows, key, mean, scale):
    """A network without a second head, from the same start, batches and dropout."""
    optimizer = adversarial.make_optimizer(SMALL)
    batch = SMALL.batch_rows
    n_batches = len(rows) // batch
    keep = 1 - SMALL.dropout
    start_key, key = jax.random.split(key)
    start = init_params(start_key, DIM, CLASSES, DOMAINS, SMALL)
    params = {name: start[name] for name in ("hidden", "label")}

    def step(carry, drawn):
        params, state = carry
        idx, drop_key = drawn
        dropout = jax.random.bernoulli(drop_key, keep, (batch, SMALL.hidden)) / keep
        batch_x = (x[idx] - mean[None, :]) / scale[None, :]
        gradient = jax.grad(plain_loss)(params, batch_x, label[idx], dropout)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry, key):
        order_key, drop_key = jax.random.split(key)
        order = jax.random.permutation(order_key, rows)[: n_batches * batch]
        drawn = (order.reshape(-1, batch), jax.random.split(drop_key, n_batches))
        carry, _ = lax.scan(step, carry, drawn)
        return carry, carry[0]

    return lax.scan(epoch, (params, optimizer.init(params)), jax.random.split(key, SMALL.epochs))[1]


def plain_loss(params, x, label, dropout):
    hidden = x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None, :]
    hidden = jax.nn.relu(hidden) * dropout
    logits = hidden @ params["label"]["kernel"] + params["label"]["bias"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


@pytest.mark.campaign
def test_without_reversal_a_gradient_is_that_of_plain_training_to_the_bit(rng):
    """Each operation by itself: XLA sums and contracts otherwise where it joins other ones."""
    params = init_params(jax.random.key(1), DIM, CLASSES, DOMAINS, SMALL)
    x = rng.normal(size=(40, DIM)).astype(np.float32)
    label, domain = rng.integers(0, CLASSES, 40), rng.integers(0, DOMAINS, 40)
    dropout = ((rng.random((40, 32)) < 0.9) / 0.9).astype(np.float32)

    def gradient(strength):
        return jax.grad(adversarial.measure_losses, has_aux=True)(
            params, x, label, domain, strength=strength, dropout=dropout
        )[0]

    plain = jax.grad(plain_loss)({k: params[k] for k in ("hidden", "label")}, x, label, dropout)
    without, reversed_ = gradient(0.0), gradient(1.0)
    for layer in ("hidden", "label"):
        for name, expected in plain[layer].items():
            np.testing.assert_array_equal(without[layer][name], expected)
    assert (reversed_["hidden"]["kernel"] != plain["hidden"]["kernel"]).mean() > 0.9


@pytest.mark.campaign
@pytest.mark.slow
def test_without_reversal_the_domain_changes_no_bit(planted):
    """Trained with λ = 0, the classifier is the same whatever the domains are."""
    (x, label, domain), validation = planted
    shuffled = ((x, label, domain[::-1].copy()), validation)
    one, other = (train(rows, problems=(0,), lambda_max=0.0) for rows in (planted, shuffled))
    assert (one.domain_loss != other.domain_loss).all()
    for layer in ("hidden", "label"):
        for name, found in one.params[layer].items():
            np.testing.assert_array_equal(found, other.params[layer][name])
    np.testing.assert_array_equal(one.validation_loss, other.validation_loss)
    one, other = (train(rows, problems=(0,)) for rows in (planted, shuffled))
    assert (one.params["hidden"]["kernel"] != other.params["hidden"]["kernel"]).mean() > 0.9


@pytest.mark.campaign
@pytest.mark.slow
def test_without_reversal_it_is_plain_training(planted):
    trained = train(planted, problems=(0,), lambda_max=0.0)
    (x, label, _), _ = planted
    rows = np.arange(96)
    mean, scale = feature_statistics(jnp.asarray(x), jnp.asarray(rows)[None])
    key = jax.random.fold_in(jax.random.key(3), 0)
    plain = train_plainly(x, label, rows, key, mean[0], scale[0])
    best = int(trained.epoch[0]) - 1
    for layer in ("hidden", "label"):
        for name, found in trained.params[layer].items():
            np.testing.assert_allclose(found[0], plain[layer][name][best], atol=1e-6)


@pytest.mark.campaign
def test_the_domain_is_unlearnt(planted):
    settings = SMALL._replace(epochs=40, learning_rate=5e-3)
    plain, reversed_ = (train(planted, settings=settings, lambda_max=v) for v in (0.0, 1.0))
    # The domain head of plain training reads the domain; with reversal it is near chance.
    assert (plain.domain_loss[:, -1] < 0.25).all()
    assert (reversed_.domain_loss[:, -1] > plain.domain_loss[:, -1] + 0.3).all()


@pytest.mark.campaign
def test_the_network_kept_is_that_of_the_least_validation_loss(planted):
    trained = train(planted)
    _, (x, label, _) = planted
    logits = adversarial.predict_logits(trained, x)
    for problem, n in enumerate((60, 40)):
        share = np.asarray(jax.nn.softmax(logits[problem, :n]), np.float64)
        share /= share.sum(1, keepdims=True)
        losses = trained.validation_loss[problem]
        np.testing.assert_allclose(log_loss(label[:n], share), losses.min(), rtol=1e-4)
        assert trained.epoch[problem] == losses.argmin() + 1
        called = logits[problem, :n].argmax(1)
        expected = balanced_accuracy_score(label[:n], called)
        np.testing.assert_allclose(trained.validation_accuracy[problem], expected, rtol=1e-6)


@pytest.mark.campaign
def test_a_problem_is_that_of_its_number(planted):
    together, alone = train(planted), train(planted, problems=(1,), first=1)
    np.testing.assert_allclose(alone.validation_loss[0], together.validation_loss[1], atol=1e-4)
    other = train(planted, problems=(1,))
    assert (other.validation_loss[0] != alone.validation_loss[0]).any()


@pytest.mark.slow
def test_refusals(planted):
    (x, label, domain), validation = planted
    with pytest.raises(InputError, match="domain_id: expected shape"):
        train(((x, label, domain[:5]), validation))
    with pytest.raises(TypeError, match="domain_id"):
        train(((x, label, domain.astype(float)), validation))
