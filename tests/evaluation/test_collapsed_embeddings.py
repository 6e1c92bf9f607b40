"""Indices of embeddings that point nearly one way equal those of exact neighbours."""

import jax
import numpy as np
import oracles
import pytest

import pathorob_jax as pr
from pathorob_jax.core import devices

N, K = 384, 5


@pytest.fixture(scope="module")
def labels():
    i = np.arange(N)
    center, bio = i % 2, i // 2 % 2
    return bio, center, center * 4 + i // 4 % 4


def make_rows(labels, kind):
    """Rows beside one direction, at a distance of ``kind`` spreads; or three tenths of them blank.

    Blank tiles are nearly one; class and centre shift even them a little.
    """
    rng = np.random.default_rng(3)
    bio, center, _ = labels
    x = rng.normal(size=(N, 64))
    x += 0.5 * rng.normal(size=(2, 64))[bio] + 0.5 * rng.normal(size=(2, 64))[center]
    if kind != "blank":
        return (x + kind).astype(np.float32)
    is_blank = rng.random(N) < 0.3
    x[is_blank] = rng.normal(size=64) + 3e-4 * x[is_blank]
    return x.astype(np.float32)


def exact_neighbors(x, slide, k):
    unit = x.astype(np.longdouble)
    unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
    out = []
    for i in range(len(x)):
        idx = np.flatnonzero(slide != slide[i])
        out.append(idx[np.argsort(((unit[idx] - unit[i]) ** 2).sum(1), kind="stable")[:k]])
    return np.stack(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "n_devices", "precision"),
    [
        *((kind, 1, "float32") for kind in (0, 30, 300, 3000, "blank")),
        *((300, 2, "float32"), (3000, 2, "float32")),
        *(
            pytest.param(kind, 1, "fast", marks=pytest.mark.campaign)
            for kind in (30, 300, 3000, "blank")
        ),
    ],
)
def test_index_and_support_are_those_of_exact_neighbours(labels, kind, n_devices, precision):
    x, (bio, center, slide) = make_rows(labels, kind), labels
    indices = exact_neighbors(x, slide, K)
    table = {"biological_class": bio, "medical_center": center, "slide_id": slide}
    table = {name: [f"{name} {v}" for v in values] for name, values in table.items()}
    results = pr.evaluate_embeddings(
        x,
        table | {"patch_id": [str(i) for i in range(N)]},
        metrics=["robustness_index", "margins"],
        k=K,
        settings=pr.Settings(draws=0, precision=precision),
        mesh=devices.make_mesh(jax.devices()[:n_devices]),
    )
    index = results.robustness_index
    assert index.value == pytest.approx(
        oracles.robustness_index(indices, bio, center, K), abs=1e-12
    )
    assert index.support == pytest.approx(oracles.support(indices, bio, center, K), abs=1e-12)
    # CRoMa from differences of unit rows in longdouble.
    unit = x.astype(np.longdouble)
    unit /= np.sqrt((unit * unit).sum(1, keepdims=True))
    values = []
    m = results.margins.croma_m
    for i in range(N):
        d = ((unit - unit[i]) ** 2).sum(1) / 2
        out = slide != slide[i]
        so = np.sort(d[out & (bio == bio[i]) & (center != center[i])])[:m].mean()
        os_ = np.sort(d[out & (bio != bio[i]) & (center == center[i])])[:m].mean()
        values.append(float((os_ - so) / (os_ + so)))
    assert results.margins.croma == pytest.approx(np.median(values), abs=1e-6)


@pytest.mark.slow
def test_embeddings_of_one_direction_have_no_index(labels):
    bio, center, slide = labels
    rng = np.random.default_rng(0)
    x = rng.normal(size=16) * rng.uniform(1, 2, (N, 1))
    index = pr.robustness_index(x, biology=bio, center=center, slide=slide, k=K, draws=0)
    assert np.isnan(index.value)
    assert index.support == 0
    assert index.ci95 is None
    margins = pr.margins(x, biology=bio, center=center, slide=slide, k=K, draws=0)
    assert np.isnan([margins.mari, margins.croma]).all()
    for got in (index, margins):
        assert any(w.startswith("all embeddings have one direction") for w in got.warnings)


@pytest.mark.slow
def test_one_feature_counts_as_equal_rows(labels):
    bio, center, slide = labels
    x = np.random.default_rng(0).normal(size=(N, 1))
    got = pr.robustness_index(x, biology=bio, center=center, slide=slide, k=K, draws=0)
    assert any(w.startswith("100% of the embeddings equal another") for w in got.warnings)
    twice = np.random.default_rng(0).normal(size=(N // 2, 8)).repeat(2, axis=0)
    twice[1::2] *= 2
    got = pr.robustness_index(twice, biology=bio, center=center, slide=slide, k=K, draws=0)
    assert any(w.startswith("100% of the embeddings equal another") for w in got.warnings)
