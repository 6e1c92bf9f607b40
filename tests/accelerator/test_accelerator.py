"""What must not depend on the device: each part against NumPy, PIL, scikit-learn or float32."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from pathorob_jax.core import devices
from pathorob_jax.kernels.clustering.kmeans import fit_kmeans
from pathorob_jax.kernels.clustering.kmeans_points import prepare_points
from pathorob_jax.kernels.logistic.fit import fit_logistic, predict_logits
from pathorob_jax.kernels.neighbors.search import find_neighbors
from pathorob_jax.models import layers, preprocess, registry

pytestmark = [pytest.mark.accelerator, pytest.mark.campaign, pytest.mark.optimized]


def blobs(rng, n, dim, n_classes, spread=1.0):
    """Rows around the means of their classes, which overlap."""
    label = rng.integers(0, n_classes, n)
    means = spread * rng.normal(size=(n_classes, dim))
    return (means[label] + rng.normal(size=(n, dim))).astype(np.float32), label


@pytest.mark.parametrize("precision", ["float32", "fast"])
@pytest.mark.parametrize(("n", "dim", "k"), [(257, 24, 5), (600, 96, 40)])
def test_neighbours_are_exact(accelerator, rng, n, dim, k, precision):
    x, _ = blobs(rng, n, dim, 4)
    x[n // 2 :: 7] = x[: len(x[n // 2 :: 7])]  # ties: the lower row comes first
    group = rng.integers(0, n // 6, n)
    found = find_neighbors(x, group, k=k, mesh=accelerator, precision=precision)
    indices, distances = oracles.nearest(x, group, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.distances, distances, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim"), [(197, 6, 64), (256, 4, 128), (65, 3, 80)]
)
def test_attention_that_is_chosen_is_that_of_float32(rng, tokens, heads, head_dim):
    """On NVIDIA GPUs flash attention. What rounding operands to bfloat16 costs bounds the error."""
    shape = (2, tokens, heads, head_dim)
    query, key, value = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))
    query = query / head_dim**0.5
    chosen = layers.attention_implementation(jnp.bfloat16, n_queries=tokens, head_dim=head_dim)
    if jax.default_backend() == "gpu":
        assert chosen == "cudnn"

    def attend(dtype, implementation):
        with layers.use_attention(implementation):
            return np.asarray(jax.jit(lambda *x: layers.attend(*x, dtype))(query, key, value))

    scores = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (query, key)))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    exact = np.einsum("bhqk,bkhd->bqhd", weights, np.asarray(value, np.float64))
    exact = exact.reshape(2, tokens, -1)
    # Operands of the products keep all bits of float32, those of bfloat16 eight.
    np.testing.assert_allclose(attend(jnp.float32, "products"), exact, rtol=0, atol=1e-5)
    error = np.abs(attend(jnp.bfloat16, chosen) - exact)
    assert error.max() < 2**-5 * np.abs(exact).max()
    assert error.mean() < 2**-9


@pytest.mark.parametrize("n_classes", [2, 4])
def test_probes_of_the_drop_are_those_of_the_host(rng, n_classes):
    """As the performance drop fits them: float32, the reference's rule of stopping."""
    x, label = blobs(rng, 600, 48, n_classes, spread=0.35)
    train, test = slice(0, 400), slice(400, None)
    c = np.array([1e-3, 1e-1, 10.0])
    fit = fit_logistic(x[train], label[train].astype(np.int32), n_classes=n_classes, c=c)
    logits = predict_logits(x[test], fit)
    ours = logits.argmax(2) if n_classes > 2 else (logits[:, :, 0] > 0).astype(int)
    for strength, found in zip(c, ours, strict=True):
        theirs = LogisticRegression(C=strength, max_iter=100, tol=1e-4).fit(x[train], label[train])
        # Rows on the border may fall to either side: of 200 rows two, an accuracy moves by 0.01.
        assert np.mean(found != theirs.predict(x[test])) <= 0.01


@pytest.mark.parametrize(("n", "dim"), [(240, 200), (600, 32)])
def test_k_means_is_that_of_the_host(rng, n, dim):
    """By inner products (few rows) and by rows; the labels of scikit-learn's own runs."""
    x, _ = blobs(rng, n, dim, 5, spread=2.0)
    points = prepare_points(x)
    assert points.is_gram == (n <= 2 * dim)
    fits = fit_kmeans(points, [2, 5, 9], [7, 8, 9], n_init=4)
    for i, (k, seed) in enumerate([(2, 7), (5, 8), (9, 9)]):
        theirs = KMeans(k, init="random", n_init=4, random_state=seed).fit(x)
        assert fits.inertia[i] == pytest.approx(theirs.inertia_, rel=1e-4)
        same = (fits.labels[i][:, None] == fits.labels[i]) == (
            theirs.labels_[:, None] == theirs.labels_
        )
        assert same.mean() > 0.99


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "to"), [((256, 256), (224, 224)), ((96, 130), (224, 303))])
def test_preprocessing_is_bit_for_bit_that_of_pil(rng, size, to, interpolation):
    tiles = rng.integers(0, 256, (3, *size, 3), np.uint8)
    resize = jax.jit(preprocess.resize, static_argnums=(1, 2), static_argnames="interpolation")
    found = np.asarray(resize(tiles, *to, interpolation=interpolation))
    pil_filter = getattr(Image.Resampling, interpolation.upper())
    expected = [np.asarray(Image.fromarray(t).resize(to[::-1], pil_filter)) for t in tiles]
    np.testing.assert_array_equal(found, np.stack(expected))
    whole = preprocess.Preprocess(None, min(size), interpolation=interpolation)
    top, left = (round((side - min(size)) / 2) for side in size)
    crop = tiles[:, top : top + min(size), left : left + min(size)].astype(np.float32)
    mean, std = (np.float32(v) for v in (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD))
    normalised = (crop / np.float32(255) - mean) / std
    np.testing.assert_array_equal(np.asarray(jax.jit(whole)(tiles)), normalised)


def test_split_parameters_give_the_embeddings_of_whole_ones(accelerator, rng):
    spec = registry.get_spec("vit_random")
    tiles = rng.integers(0, 256, (2 * accelerator.size, 256, 256, 3), np.uint8)
    split = devices.row_sharding(accelerator)
    found = {}
    for how in ("replicated", "split"):
        place = registry.choose_sharding(spec, accelerator, how=how)
        encoder = registry.load_encoder(spec, sharding=place)
        step = jax.jit(encoder.apply, out_shardings=split)
        found[how] = np.asarray(step(encoder.params, jax.device_put(tiles, split)))
        leaves = jax.tree.leaves(encoder.params)
        is_split = any(not leaf.sharding.is_fully_replicated for leaf in leaves)
        assert is_split == (how == "split" and accelerator.size > 1)
    scale = np.abs(found["replicated"]).max()
    np.testing.assert_allclose(found["split"], found["replicated"], rtol=0, atol=1e-5 * scale)
