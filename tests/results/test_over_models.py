"""Analyses over models: the published leaderboard, a folder of results, tables, undefined parts."""

import numpy as np
import pytest
from model_records import INDICES, write_all
from numpy.testing import assert_allclose
from report_records import make_record
from scipy import stats

import pathorob_jax as pr
from pathorob_jax.core import files
from pathorob_jax.core.checks import InputError
from pathorob_jax.results import analyse_models as am
from pathorob_jax.results.model_numbers import read_table
from pathorob_jax.results.result_files import read_result, write_result


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    write_all(root)
    return str(root)


def test_the_leaderboard_gives_the_published_correlations(shared):
    table = str(shared / "pathorob/published/leaderboard.csv")
    found = pr.analyse_models(table)
    assert found.n_models == 20
    inside, outside = (found.find("robustness_index", f"apd_{side}") for side in ("id", "ood"))
    # From three decimals; the article prints .904 and .798.
    assert_allclose([inside.rho, outside.rho], [0.901, 0.798], atol=0.005)
    assert inside.n == outside.n == 20
    assert max(inside.p_value, outside.p_value) < 1e-3
    assert inside.ci95[0] > 0.6
    by_key = {(s.x, s.which): s for s in found.scaling}
    slides = by_key["slides", "self-supervised"]
    assert slides.n == 15
    assert_allclose(slides.rho, 0.69, atol=0.01)
    assert_allclose(slides.p_value_t, 0.0045, atol=0.0005)
    assert_allclose(slides.p_value, 0.0045, atol=0.002)
    assert by_key["params", "all"].n >= 19
    # No accuracy in the table: the rest stands.
    assert found.pareto is None
    assert found.language == []
    assert any("no Pareto front" in text for text in found.warnings)
    clustering = found.find("robustness_index", "clustering_score")
    assert clustering.n == 20
    values = [row.values["clustering_score"] for row in found.models]
    assert_allclose(values[0], np.mean([-0.003, 0.184, 0.688]))
    assert found.models[0].ci95["apd_id"] == pytest.approx([-0.0178, -0.0046])


def test_numbers_are_means_over_datasets_and_correlate_as_planted(results):
    found = pr.analyse_models(results, draws=200)
    assert [row.model for row in found.models] == sorted(INDICES)
    by_name = {row.model: row for row in found.models}
    assert by_name["two"].values["robustness_index"] == pytest.approx(0.7)
    assert by_name["two"].values["mari"] == pytest.approx(0.49)
    assert found.find("robustness_index", "apd_id").rho == pytest.approx(1)
    assert found.find("apd_id", "mari").rho == pytest.approx(1)
    assert found.find("apd_ood", "clustering_score").rho == pytest.approx(-1)
    assert found.find("robustness_index", "croma").rho == pytest.approx(1)
    accuracies = [by_name[m].values["accuracy"] for m in INDICES]
    expected = stats.spearmanr(list(INDICES.values()), accuracies).statistic
    assert found.find("robustness_index", "accuracy").rho == pytest.approx(expected)
    assert found.find("robustness_index", "accuracy").p_rule == "exact"


def test_the_front_holds_the_two_planted_models(results):
    front = pr.analyse_models(results, draws=200).pareto
    assert (front.accuracy, front.robustness) == ("accuracy", "robustness_index")
    assert [point.model for point in front.front] == ["six", "one"]
    by_name = {point.model: point for point in front.points}
    assert by_name["two"].beaten_by == ["one"]
    assert sorted(by_name["five"].beaten_by) == ["four", "one", "three", "two"]
    for point in front.points:
        assert 0 <= point.front_share <= 1
        assert point.accuracy_ci95[0] < point.accuracy < point.accuracy_ci95[1]
        assert point.robustness_ci95[0] < point.robustness < point.robustness_ci95[1]
    assert by_name["one"].front_share > 0.99 > 0.01 > by_name["five"].front_share


def test_own_facts_give_scaling_and_kinds(results, tmp_path):
    lines = [
        f"{model}: {{kind: {{value: {'vision-language' if i < 2 else 'vision'}, source: us}}, "
        f"slides: {{value: {10 ** (6 - i)}, source: our log}}}}"
        for i, model in enumerate(INDICES)
    ]
    path = tmp_path / "facts.yaml"
    path.write_text("\n".join(lines))
    found = pr.analyse_models(results, facts=str(path), draws=200)
    slides, vision, params, _ = found.scaling
    assert (slides.n, slides.which) == (6, "all")
    assert slides.rho == pytest.approx(1)
    assert slides.slope == pytest.approx(
        np.polyfit(np.arange(6, 0, -1), list(INDICES.values()), 1)[0]
    )
    assert (vision.n, params.n) == (4, 0)
    assert np.isnan([vision.rho, params.rho, params.slope]).all()
    assert found.models[0].facts["slides"]["source"] == "our log"
    language = {entry.of: entry for entry in found.language}
    assert (language["apd_id"].n_language, language["apd_id"].n_vision) == (2, 4)
    assert language["robustness_index"].difference > 0
    assert 0 < language["robustness_index"].p_value <= 1
    assert sum("no scaling" in text for text in found.warnings) == 2


def test_the_record_is_written_and_read_back(results):
    path = am.write_models(results)
    assert path == f"{results}/models.json"
    stored = files.read_json(path)
    assert stored["metric"] == "models"
    assert {"rho", "p_value", "n", "ci95", "x", "y"} <= set(stored["correlations"][0])
    back = read_result(path)
    assert repr(back.correlations) == repr(am.analyse_models(results).correlations)
    assert back.describe().startswith("6 models: rank correlation of the robustness index with")
    # It is no record of a model.
    assert len(pr.read_results(results)) == 6 * 2 * 4


def test_few_models_are_null_with_a_warning(tmp_path):
    write_all(tmp_path, ["one", "two", "three", "four"], datasets=("tiles",))
    found = pr.analyse_models(str(tmp_path))
    assert np.isnan([c.rho for c in found.correlations]).all()
    assert found.pareto is None
    assert any("fewer than 5 models have both numbers (4 models" in t for t in found.warnings)
    stored = files.read_json(am.write_models(str(tmp_path)))
    assert stored["pareto"] is stored["correlations"][0]["rho"] is None
    write_all(tmp_path / "alone", ["one"], datasets=("tiles",))
    assert am.write_models(str(tmp_path / "alone")) is None


def test_a_robustified_model_is_no_model_of_its_own(tmp_path):
    write_all(tmp_path, datasets=("tiles",))
    write_result(str(tmp_path), make_record("one+combat", "tiles", 0.95))
    found = pr.analyse_models(str(tmp_path), draws=0)
    assert found.n_models == 6
    assert any("one+combat" in text for text in found.warnings)


def test_a_table_like_headline_csv(tmp_path):
    path = tmp_path / "headline.csv"
    path.write_text(
        "model,robustness_index,robustness_index_low,robustness_index_high,accuracy,note\n"
        "a,.9,.8,1,.5,x\nb,.8,.7,.9,.6,x\nc,.7,,,.7,x\nd,.6,.5,.7,.9,x\ne,.5,.4,.6,.8,x\n"
        "Virchow2,,,,.9,x\n"
    )
    found = pr.analyse_models(str(path), draws=200)
    rows = {row.model: row for row in found.models}
    assert set(rows["a"].values) == {"robustness_index", "accuracy"}
    assert rows["a"].ci95["robustness_index"] == [0.8, 1.0]
    assert rows["c"].ci95["robustness_index"] is None
    assert rows["Virchow2"].fact("slides") == 3_100_000
    assert [p.model for p in found.pareto.front] == ["d", "c", "b", "a"]
    assert found.find("robustness_index", "accuracy").n == 5


@pytest.mark.parametrize("score", [None, 0.25])
def test_a_leaderboard_may_lack_columns(tmp_path, score):
    """Means over all three datasets alone: one of two is none."""
    columns = ["ri_mean", "clustering_camelyon", "clustering_tcga_4x4"]
    columns += [] if score is None else ["clustering_tolkach_esca"]
    path = tmp_path / "leaderboard.csv"
    path.write_text(f"model,{','.join(columns)}\na{',0.25' * len(columns)}\n")
    [row] = read_table(str(path)).rows
    found = {"robustness_index": 0.25} | ({} if score is None else {"clustering_score": score})
    assert row.values == found
    assert set(row.ci95.values()) == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x\na,1\n", "expected a column 'model' that names each model once"),
        ("model,x\na,1\na,2\n", "found 'a' twice"),
        ("model,x\na,b\n", "expected columns of numbers beside 'model', found none"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        pr.analyse_models(str(path))
