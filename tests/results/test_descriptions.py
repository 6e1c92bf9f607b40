"""What records say of themselves in a line, and of how much they rest on."""

import dataclasses
import math

import pytest
from report_records import make_apd, make_clusters, make_retrieval, make_slides

from pathorob_jax.results import analyse_models
from pathorob_jax.results.apd import FitAll, make_apd_aggregate
from pathorob_jax.results.result_set import Results


@pytest.fixture
def aggregate():
    """The mean drop over two datasets."""
    return make_apd_aggregate([make_apd("m", "one"), make_apd("m", "two", drop=0.2)])


def test_a_drop_names_the_one_whose_fit_saw_all_rows():
    record = make_apd()
    assert "robustifier" not in record.describe()
    whole = FitAll(**vars(record.heads["knn"]))
    text = dataclasses.replace(record, fit_all=whole).describe()
    assert text.endswith(
        "; robustifier fitted again in 3 of them (fitted on all rows: "
        f"{whole.apd_id:+.4f}, {whole.apd_ood:+.4f})"
    )


def test_a_mean_drop_names_its_datasets_and_half_widths(aggregate):
    assert aggregate.where == "m on one, two"
    assert aggregate.describe() == (
        f"m on one, two: performance drop in domain {aggregate.apd_id:+.4f} "
        f"± {aggregate.ci_id:.4f}, out of domain {aggregate.apd_ood:+.4f} ± {aggregate.ci_ood:.4f}"
    )


def test_a_record_without_support_is_listed_without_it(aggregate):
    first, second = str(Results({"apd": make_apd(), "apd_aggregate": aggregate})).splitlines()
    assert "support 100%" in first
    assert "support" not in second
    assert f"apd_id {aggregate.apd_id:.4f}" in second


def test_retrieval_without_a_schedule_tells_no_drop():
    text = make_retrieval().describe()
    assert "drop where the database associates class and centre" in text
    alone = dataclasses.replace(make_retrieval(), schedule=None).describe()
    assert text.startswith(f"{alone};")
    assert alone.endswith("slides as sets 0.7500")


def test_what_rests_on_nothing_has_no_support():
    assert make_clusters().support == 1
    assert math.isnan(dataclasses.replace(make_clusters(), combinations=[]).support)
    slides = make_slides()
    assert slides.support == 1
    assert slides.ci95 == slides.drop_id_ci95 == [-0.3125, -0.21875]
    assert dataclasses.replace(slides, presets=None).support == 0


@pytest.mark.parametrize("columns", ["accuracy", "robustness_index", "robustness_index,apd_id"])
def test_a_table_without_correlations_is_described_by_its_models(tmp_path, columns):
    numbers = ",0.5" * len(columns.split(","))
    (tmp_path / "table.csv").write_text(f"model,{columns}\na{numbers}\nb{numbers}\n")
    found = analyse_models.analyse_models(str(tmp_path / "table.csv"), draws=0)
    assert found.describe() == "2 models"
