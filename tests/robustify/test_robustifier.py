"""Robustifiers: fit, transform, refusals, files."""

import json

import numpy as np
import pytest

import pathorob_jax as pr
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.robustify import methods
from pathorob_jax.robustify.robustifier_files import describe_robustifier

N, D = 240, 12
CENTERS = np.array(["Aarhus", "Bonn", "Cork"])


@pytest.fixture
def rows():
    """Slides of four patches and one class; 3 centres, 20 slides each, classes unequally spread."""
    slide = np.arange(N) // 4
    center = slide % 3
    tumor = (slide // 3) % 5 < np.array([3, 2, 1])[center]
    return {
        SLIDE: [f"s{s:03d}" for s in slide],
        PATCH: np.arange(N),
        CLASS: np.where(tumor, "tumor", "normal"),
        CENTER: CENTERS[center],
    }


@pytest.fixture
def x(rng, rows):
    center = np.searchsorted(CENTERS, rows[CENTER])
    x = rng.normal(size=(N, D)) * rng.uniform(0.7, 1.4, (3, D))[center]
    x += 3 * rng.normal(size=(3, D))[center] + 2 * (rows[CLASS] == "tumor")[:, None]
    return x.astype(np.float32)


def options_of(name):
    pairs = {"pairs": np.arange(N) % 60} if name == methods.PAIRED else {}
    return pairs | ({"rank": 2} if "rank" in methods.METHODS[name].takes else {})


@pytest.mark.slow
@pytest.mark.parametrize("fit_on", ["all", "cross_fit"])
@pytest.mark.parametrize("method", methods.METHODS)
def test_save_and_load(tmp_path, x, rows, method, fit_on):
    if method == methods.PAIRED and fit_on == "cross_fit":
        pytest.skip("tissues have no halves")
    fitted = pr.fit_robustifier(x, rows, method=method, fit_on=fit_on, **options_of(method))
    pr.save_robustifier(fitted, str(tmp_path / "r"))
    loaded = pr.load_robustifier(str(tmp_path / "r"))
    given = {"center": rows[CENTER], "slide": rows[SLIDE]}
    np.testing.assert_array_equal(fitted.transform(x, **given), loaded.transform(x, **given))
    assert describe_robustifier(fitted) == describe_robustifier(loaded)
    again = pr.fit_robustifier(x, rows, method=method, fit_on=fit_on, **options_of(method))
    assert describe_robustifier(again)["sha256"] == describe_robustifier(fitted)["sha256"]


def test_identity_changes_no_byte(x, rows):
    y = pr.fit_robustifier(x, rows, method="identity").transform(x, rows[CENTER])
    assert y.tobytes() == x.tobytes()


@pytest.mark.parametrize("file", ["robustifier.json", "state.safetensors"])
def test_a_changed_file_is_refused(tmp_path, x, rows, file):
    pr.save_robustifier(pr.fit_robustifier(x, rows, method="combat"), str(tmp_path))
    data = bytearray((tmp_path / file).read_bytes())
    place = data.index(b"Bonn") if file.endswith("json") else len(data) - 3
    data[place] ^= 1
    (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=f"{file}: .*Fit it again"):
        pr.load_robustifier(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 7, 200])
def test_a_cut_state_is_refused(tmp_path, x, rows, kept):
    pr.save_robustifier(pr.fit_robustifier(x, rows, method="center_means"), str(tmp_path))
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"state.safetensors: cannot be read \(.*\). Fit it again"):
        pr.load_robustifier(str(tmp_path))


def test_what_the_file_says(tmp_path, x, rows):
    pr.save_robustifier(pr.fit_robustifier(x, rows), str(tmp_path))
    info = json.loads((tmp_path / "robustifier.json").read_text())
    assert info["method"] == "class_adjusted_means"
    assert info["used_labels"]
    assert info["fit"]["centers"] == list(CENTERS)
    assert np.sum(info["fit"]["rows"]) == N
    assert np.sum(info["fit"]["slides"]) == N / 4
    assert 0 < info["fit"]["cramers_v"] < 0.5
    assert info["fit"]["warnings"] == []


def test_a_cross_fit_uses_the_other_half(x, rows):
    """Every half's rows are those of a plain fit on the other half's."""
    fitted = pr.fit_robustifier(x, rows, method="combat", fit_on="cross_fit")
    half = np.array([fitted.half_of[s] for s in rows[SLIDE]])
    assert abs(half.mean() - 0.5) < 0.1
    y = fitted.transform(x, rows[CENTER], slide=rows[SLIDE])
    for mine in (0, 1):
        others = {name: np.asarray(column)[half != mine] for name, column in rows.items()}
        alone = pr.fit_robustifier(x[half != mine], others, method="combat")
        expected = alone.transform(x[half == mine], rows[CENTER][half == mine])
        np.testing.assert_allclose(y[half == mine], expected, rtol=1e-6, atol=1e-6)


def test_a_cross_fit_needs_known_slides(x, rows):
    fitted = pr.fit_robustifier(x, rows, method="combat", fit_on="cross_fit")
    with pytest.raises(InputError, match="give the slide of every row"):
        fitted.transform(x, rows[CENTER])
    with pytest.raises(InputError, match="'other'.* were not in the cross fit"):
        fitted.transform(x[:1], rows[CENTER][:1], slide=["other"])


class TestUnseenCentre:
    def fit(self, x, rows, **options):
        seen = rows[CENTER] != "Cork"
        kept = {name: np.asarray(column)[seen] for name, column in rows.items()}
        return pr.fit_robustifier(x[seen], kept, **options), ~seen

    def test_refused(self, x, rows):
        fitted, _ = self.fit(x, rows, method="combat")
        with pytest.raises(InputError, match=r"\['Cork'\] were not in the fit"):
            fitted.transform(x, rows[CENTER])

    def test_identity(self, x, rows):
        fitted, new = self.fit(x, rows, method="combat")
        y = fitted.transform(x, rows[CENTER], unseen="identity")
        np.testing.assert_array_equal(y[new], x[new])
        assert (y[~new] != x[~new]).any()

    @pytest.mark.parametrize("method", ["center_means", "class_adjusted_means", "combat"])
    def test_estimated_location(self, x, rows, method):
        fitted, new = self.fit(x, rows, method=method)
        y = fitted.transform(x, rows[CENTER], unseen="estimate")
        np.testing.assert_allclose(y[new].mean(0), x[~new].astype(float).mean(0), atol=1e-5)
        spread = y[new].std(0) / x[new].std(0)
        np.testing.assert_allclose(spread, 1, rtol=1e-5)  # 80 rows do not tell a scale

    def test_estimated_scale(self, rng, x, rows):
        fitted, new = self.fit(x, rows, method="combat")
        many = rng.normal(size=(400, D)) * 3 + 7
        slides = np.arange(400) // 20
        y = fitted.transform(many, ["Cork"] * 400, slide=slides, unseen="estimate")
        np.testing.assert_allclose(y.mean(0), fitted.target.mean, atol=0.2)
        np.testing.assert_allclose(y.std(0), fitted.target.sigma, rtol=0.1)

    def test_a_projection_knows_no_centre(self, x, rows):
        fitted, new = self.fit(x, rows, method="leace")
        assert (fitted.transform(x, rows[CENTER])[new] != x[new]).any()

    @pytest.mark.slow
    def test_coral_cannot(self, x, rows):
        fitted, _ = self.fit(x, rows, method="coral")
        with pytest.raises(InputError, match="cannot estimate"):
            fitted.transform(x, rows[CENTER], unseen="estimate")


class TestRefusals:
    def test_one_centre(self, x, rows):
        with pytest.raises(InputError, match=r"two medical centres or more.*\n.*rows \(slides\)"):
            pr.fit_robustifier(x, rows | {CENTER: ["Bonn"] * N}, method="combat")

    def test_one_slide(self, x, rows):
        center = rows[CENTER].copy()
        center[:4] = "Ulm"
        with pytest.raises(InputError, match=r"(?s)'Ulm' has one slide.*tumor +\d+ \(\d+\)"):
            pr.fit_robustifier(x, rows | {CENTER: center}, method="combat")

    @pytest.mark.parametrize("method", sorted(set(methods.METHODS) - {methods.PAIRED}))
    def test_class_determined_by_centre(self, x, rows, method):
        determined = rows | {CLASS: np.where(rows[CENTER] == "Bonn", "tumor", "normal")}
        if not methods.METHODS[method].uses_centers:
            pr.fit_robustifier(x, determined, method=method)
            return
        with pytest.raises(InputError, match=r"(?s)determined by the centre.*\n.*rows \(slides\)"):
            pr.fit_robustifier(x, determined, method=method)

    def test_warnings(self, x, rows):
        alone = np.where(rows[CENTER] == "Cork", "stroma", rows[CLASS])
        alone[np.flatnonzero(rows[CENTER] == "Cork")[:40]] = "tumor"
        fitted = pr.fit_robustifier(x, rows | {CLASS: alone}, method="combat")
        text = " ".join(fitted.table.warnings)
        assert "stroma: rows in one centre only" in text
        assert "Cramer's V 0.5" in text

    def test_labels_needed(self, x, rows):
        fitted = pr.fit_robustifier(x, rows, method="combat", covariates=CLASS)
        with pytest.raises(InputError, match="depends on the class"):
            fitted.transform(x, rows[CENTER])
        y = fitted.transform(x, rows[CENTER], biological_class=rows[CLASS])
        assert np.isfinite(y).all()
        other = np.where(rows[CLASS] == "tumor", "stroma", "normal")
        with pytest.raises(InputError, match=r"biological_class: \['stroma'\] were not in the fit"):
            fitted.transform(x, rows[CENTER], biological_class=other)

    def test_a_fit_that_fails_shows_its_rows(self, x, rows):
        message = rf"(?s)pca_removal: rank: expected 1 to {D - 1} dir.*\nrows \(slides\)"
        with pytest.raises(InputError, match=message):
            pr.fit_robustifier(x, rows, method="pca_removal", rank=D)

    def test_a_centre_that_half_of_the_slides_lack(self, x, rows):
        center = rows[CENTER].copy()
        center[:4] = "Ulm"
        message = r"half 1 of its slides\): expected rows of every centre, found none of \['Ulm'\]"
        options = {"method": "center_means", "fit_on": "cross_fit"}
        with pytest.raises(InputError, match=message):
            pr.fit_robustifier(x, rows | {CENTER: center}, **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "combatt"}, "Did you mean 'combat'"),
            ({"method": "combat", "rank": 2}, "rank: method combat does not use it"),
            ({"method": "leace", "reference": "Bonn"}, "reference: method leace"),
            ({"method": "center_means", "covariates": CLASS}, "covariates: method center_means"),
            ({"method": "combat", "reference": "Köln"}, "reference: unknown name"),
            ({"method": "combat", "pairs": np.arange(N)}, "pairs: method paired_subspace"),
            ({"method": "paired_subspace"}, "found none"),
        ],
    )
    def test_options(self, x, rows, options, message):
        with pytest.raises(UsageError, match=message):
            pr.fit_robustifier(x, rows, **options)

    def test_not_finite(self, x, rows):
        x[3, 2] = np.nan
        with pytest.raises(InputError, match="1 embeddings hold NaN"):
            pr.fit_robustifier(x, rows)

    @pytest.mark.slow
    def test_unequal_lengths(self, x, rows):
        with pytest.raises(InputError, match="to match rows"):
            pr.fit_robustifier(x[:-1], rows)
