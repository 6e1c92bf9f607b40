"""Projections and CORAL against concept-erasure and NumPy."""

import numpy as np
import pytest

from pathorob_jax.core.checks import InputError
from pathorob_jax.robustify import coral, projections
from pathorob_jax.robustify.moments import Moments, measure_moments
from pathorob_jax.robustify.transform import apply_maps

C, M = 2, 3


def make_rows(rng, *, n=300, dim=20):
    class_id = rng.integers(0, C, n)
    center_id = np.where(rng.random(n) < 0.4, class_id, rng.integers(0, M, n))
    x = rng.normal(size=(n, dim)) @ rng.normal(size=(dim, dim)) / np.sqrt(dim)
    x += class_id[:, None] * rng.normal(size=dim) + rng.normal(size=(M, dim))[center_id] + 5
    return x.astype(np.float32), class_id, center_id


def moments_of(x, class_id, center_id, scatter="total"):
    return measure_moments(
        lambda rows: x[rows], class_id, center_id, n_classes=C, n_centers=M, scatter=scatter
    )


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(300, 20), (60, 100)], ids=["N>D", "D>N"])
def test_leace_as_concept_erasure(rng, shape):
    torch = pytest.importorskip("torch")
    erasure = pytest.importorskip("concept_erasure", reason="concept-erasure is not installed")
    x, class_id, center_id = make_rows(rng, n=shape[0], dim=shape[1])
    maps = projections.fit_leace(moments_of(x, class_id, center_id))
    wide = torch.from_numpy(x.astype(np.float64))
    z = torch.from_numpy(np.eye(M)[center_id])
    eraser = erasure.LeaceEraser.fit(wide, z, shrinkage=False, constrain_cov_trace=False)
    theirs = eraser(wide).numpy()
    ours = x - ((x.astype(np.float64) - maps.origin) @ maps.right) @ maps.left
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)
    assert maps.right.shape[1] == M - 1


def test_leace_leaves_nothing_linear(rng):
    x, class_id, center_id = make_rows(rng)
    maps = projections.fit_leace(moments_of(x, class_id, center_id))
    wide = x.astype(np.float64)
    ours = wide - ((wide - maps.origin) @ maps.right) @ maps.left
    means = np.stack([ours[center_id == m].mean(0) for m in range(M)])
    np.testing.assert_allclose(means, np.broadcast_to(means[0], means.shape), atol=1e-10)


def test_class_conditional_leace_equals_out_what_differs_within_classes(rng):
    x, class_id, center_id = make_rows(rng)
    maps = projections.fit_leace(moments_of(x, class_id, center_id), with_classes=True)
    wide = x.astype(np.float64)
    ours = wide - ((wide - maps.origin) @ maps.right) @ maps.left
    one_hot = np.eye(M)[center_id]
    for c in range(C):
        one_hot[class_id == c] -= one_hot[class_id == c].mean(0)
    assert np.abs((ours - ours.mean(0)).T @ one_hot / len(x)).max() < 1e-10
    assert np.abs((wide - wide.mean(0)).T @ one_hot / len(x)).max() > 0.1


@pytest.mark.parametrize("with_classes", [False, True])
def test_mean_projection(rng, with_classes):
    x, class_id, center_id = make_rows(rng)
    maps = projections.fit_mean_projection(
        moments_of(x, class_id, center_id, "none"), with_classes=with_classes
    )
    design = np.eye(M)[center_id]
    if with_classes:
        design = np.concatenate([design, (class_id == 1)[:, None]], axis=1)
    effects = np.linalg.lstsq(design, x.astype(np.float64), rcond=None)[0][:M]
    np.testing.assert_allclose(maps.right.T @ maps.right, np.eye(M - 1), atol=1e-12)
    assert np.abs((effects - effects[0]) @ maps.right).max() > 0.3
    ours = effects - (effects - maps.origin) @ maps.right @ maps.left
    np.testing.assert_allclose(ours, np.broadcast_to(ours[0], ours.shape), atol=1e-10)


def test_pca_removal(rng):
    x, class_id, center_id = make_rows(rng)
    maps = projections.fit_pca_removal(moments_of(x, class_id, center_id), rank=3)
    wide = x.astype(np.float64)
    u, s, vt = np.linalg.svd(wide - wide.mean(0), full_matrices=False)
    expected = wide - (u[:, :3] * s[:3]) @ vt[:3]
    ours = apply_maps(maps, x, center_id)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


def test_paired_subspace(rng):
    """Tissues seen under three scanners, each of which adds along two directions."""
    n_tissues, dim = 80, 20
    nuisance = np.linalg.qr(rng.normal(size=(dim, 2)))[0]
    tissue = np.repeat(np.arange(n_tissues), 3)
    base = rng.normal(size=(n_tissues, dim))[tissue] * 3
    x = base + rng.normal(size=(3, 2))[np.tile(np.arange(3), n_tissues)] @ nuisance.T * 4
    x = (x + 0.01 * rng.normal(size=x.shape)).astype(np.float32)
    zeros = np.zeros(len(x), np.int64)
    moments = measure_moments(
        lambda rows: x[rows], zeros, tissue, n_classes=1, n_centers=n_tissues, scatter="total"
    )
    maps = projections.fit_paired_subspace(moments, rank=2)
    overlap = np.linalg.svd(maps.right.T @ nuisance)[1]
    np.testing.assert_allclose(overlap, 1, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 20])
def test_rank_out_of_range(rng, rank):
    with pytest.raises(InputError, match="rank"):
        projections.fit_pca_removal(moments_of(*make_rows(rng)), rank=rank)


@pytest.mark.parametrize("products", [None, np.zeros((M - 1, 4, 4))])
@pytest.mark.parametrize(
    ("fit", "scatter"),
    [
        (lambda moments: projections.fit_leace(moments), "total"),
        (lambda moments: projections.fit_pca_removal(moments, rank=1), "total"),
        (lambda moments: coral.fit_coral(moments), "center"),
    ],
)
def test_moments_without_the_products_are_refused(fit, scatter, products):
    cells = np.zeros((C, M, 4))
    moments = Moments(np.ones((C, M), int), cells, cells, products)
    with pytest.raises(InputError, match=f"moments: .* measure them with scatter={scatter}"):
        fit(moments)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [None, 1])
def test_coral(rng, reference):
    x, class_id, center_id = make_rows(rng, n=900)
    moments = moments_of(x, class_id, center_id, "center")
    ours = apply_maps(coral.fit_coral(moments, reference=reference), x, center_id)
    wide = x.astype(np.float64)

    def power(s, exponent):
        s = s + np.eye(len(s)) * coral.RIDGE * np.trace(s) / len(s)
        values, vectors = np.linalg.eigh(s)
        return (vectors * values**exponent) @ vectors.T

    within = sum(np.cov(wide[center_id == m].T) * ((center_id == m).sum() - 1) for m in range(M))
    target, mean = within / (len(x) - M), wide.mean(0)
    if reference is not None:
        target = np.cov(wide[center_id == reference].T)
        mean = wide[center_id == reference].mean(0)
    for m in range(M):
        mine = wide[center_id == m]
        expected = (mine - mine.mean(0)) @ power(np.cov(mine.T), -0.5) @ power(target, 0.5) + mean
        if m == reference:
            expected = mine
        np.testing.assert_allclose(ours[center_id == m], expected, rtol=0, atol=1e-5)
