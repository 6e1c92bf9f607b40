"""A metric is entered once: registered, it is in every place that the others are in."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
from report_records import make_apd, make_clusters, make_record
from stores import make_manifest, make_store

import pathorob_jax as pr
from pathorob_jax.core import files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.results import registry, result_files
from pathorob_jax.results.metric_kind import Headline, MetricKind, resolve
from pathorob_jax.results.record import Outcome, Record
from pathorob_jax.results.write_summaries import write_summaries


@dataclasses.dataclass(frozen=True, repr=False)
class NormResult(Record):
    """Mean length of the embeddings."""

    metric: ClassVar[str] = "mean_norm"
    headline: ClassVar[str] = "mean_norm"

    model: str
    dataset: str
    mean_norm: float
    ci95: list[float] | None
    support: float
    n_samples: int
    warnings: list[str]
    provenance: dict[str, Any]


def measure_norm(evaluation):
    x = evaluation.store.read_patches(evaluation.clustering_rows)
    norms = np.linalg.norm(x, axis=1)
    weights = np.random.default_rng(0).multinomial(len(x), np.full(len(x), 1 / len(x)), 100)
    drawn = weights @ norms / len(x)
    record = NormResult(
        model=evaluation.request.model,
        dataset=evaluation.dataset,
        mean_norm=float(norms.mean()),
        ci95=np.quantile(drawn, [0.025, 0.975]).tolist(),
        support=1.0,
        n_samples=len(x),
        warnings=["a toy"],
        provenance={"store": evaluation.store.provenance()},
    )
    return Outcome(record, "key", {"mean_norm": drawn})


TOY = MetricKind(
    record=NormResult,
    title="mean norm",
    headlines=(Headline("mean_norm", "mean norm", compared_as="mean norm"),),
    evaluate=measure_norm,
    comparable=(("numbers of rows", lambda record: record.n_samples),),
)


@pytest.fixture
def toy():
    with registry.registered(TOY):
        yield TOY


@pytest.fixture
def evaluated(toy, tmp_path, rng):
    """Two models on one dataset, evaluated by the toy metric and the robustness index."""
    bio, center, slide = np.arange(48) % 2, np.arange(48) // 24, np.arange(48) // 4
    output = str(tmp_path / "results")
    for model, scale in (("short", 1.0), ("long", 3.0)):
        x = scale * rng.normal(size=(48, 8)).astype(np.float32)
        n = 48 if model == "short" else 44
        rows = make_manifest(bio[:n], center[:n], slide[:n])
        opened = make_store(tmp_path / "embeddings" / model / "ours", x[:n], rows)
        results = pr.evaluate_store(
            opened,
            metrics=["robustness_index", "mean_norm"],
            settings=pr.Settings(k=3, draws=200),
            output=output,
        )
    return results, tmp_path


@pytest.mark.slow
def test_the_toy_is_in_json_log_line_scalars_and_table(evaluated):
    results, root = evaluated
    record = json.loads((root / "results/long/ours/mean_norm.json").read_text())
    assert record["metric"] == "mean_norm"
    assert record["mean_norm"] == results.mean_norm.value
    assert result_files.read_result(results.paths[1]) == results.mean_norm
    assert re.match(r"long on ours: mean_norm \d\.\d{4} \[\d", results.mean_norm.describe())
    assert "mean_norm" in str(results).splitlines()[1]
    scalars = pr.scalars(results)
    assert scalars["mean_norm/mean_norm"] == results.mean_norm.value
    assert scalars["mean_norm/mean_norm_low"] == results.mean_norm.ci95[0]
    rows = results.to_table().to_pylist()
    [row] = [r for r in rows if (r["metric"], r["name"]) == ("mean_norm", "mean_norm")]
    assert (row["value"], row["low"]) == (results.mean_norm.value, results.mean_norm.ci95[0])


def test_the_toy_is_in_csv_report_and_comparison(evaluated):
    results, root = evaluated
    page = pr.write_report(str(root / "results"), str(root / "report"))
    text = (root / "report/index.html").read_text()
    assert page.endswith("index.html")
    section = text.split('<section id="mean_norm">')[1].split("</section>")[0]
    assert f"{results.mean_norm.value:.3f}" in section
    assert '<a href="#mean_norm">mean norm</a>' in text
    overview = text.split('<section id="overview">')[1].split("</section>")[0]
    assert "mean norm" in overview
    assert f"{results.mean_norm.value:.3f}" in overview
    said = r"different numbers of rows; compare their mean norm with care: ([^.]*)\."
    [different] = re.findall(said, text)
    assert sorted(different.split(", ")) == ["44 (long)", "48 (short)"]
    assert "a toy" in text
    with (root / "report/mean_norm.csv").open() as stream:
        rows = {row["model"]: row for row in csv.DictReader(stream)}
    assert float(rows["long"]["mean_norm"]) == results.mean_norm.value
    assert float(rows["long"]["mean_norm_high"]) == results.mean_norm.ci95[1]
    with (root / "report/headline.csv").open() as stream:
        assert "mean_norm_low" in next(csv.reader(stream))
    with (root / "report/comparisons.csv").open() as stream:
        pairs = [row for row in csv.DictReader(stream) if row["statistic"] == "mean norm"]
    assert [(p["model_a"], p["model_b"], p["share_positive"]) for p in pairs] == [
        ("long", "short", "1.0")
    ]


def test_the_toy_is_in_the_summary(toy, tmp_path):
    root = str(tmp_path)
    identity = {"store": {"identity": {"encoder": {"model": "m"}}}}
    for i, dataset in enumerate(("camelyon", "tcga", "tolkach_esca")):
        common = {"model": "m", "dataset": dataset, "provenance": identity}
        for make in (make_record, make_apd, make_clusters):
            result_files.write_result(root, dataclasses.replace(make(), **common))
        toy_record = NormResult(
            mean_norm=float(i), ci95=None, support=1.0, n_samples=9, warnings=[], **common
        )
        drawn = {"mean_norm": np.linspace(i - 1, i + 1, 101)}
        result_files.write_outcome(root, Outcome(toy_record, "key", drawn))
    summary = result_files.read_result(write_summaries(root, "m")[-1])
    number = summary.more["mean_norm"]
    assert number["value"] == 1.0
    half = 1.959963984540054 * np.linspace(0, 2, 101).std(ddof=1)
    np.testing.assert_allclose(number["ci95"], [1 - half, 1 + half], rtol=1e-12)
    assert number["per_dataset"] == {"camelyon": 0.0, "tcga": 1.0, "tolkach_esca": 2.0}
    assert "mean_norm 1.0000" in summary.describe()


def test_without_the_toy_the_summary_has_no_more(tmp_path):
    identity = {"store": {"identity": {"encoder": {"model": "m"}}}}
    for dataset in ("camelyon", "tcga", "tolkach_esca"):
        for make in (make_record, make_apd, make_clusters):
            record = dataclasses.replace(make(), model="m", dataset=dataset, provenance=identity)
            result_files.write_result(str(tmp_path), record)
    path = write_summaries(str(tmp_path), "m")[-1]
    assert "more" not in files.read_json(path)
    assert result_files.read_result(path).more == {}


def test_a_number_of_which_less_is_better_is_not_compared():
    with pytest.raises(UsageError, match="mean_norm: the comparison of models ranks the highest"):
        Headline("mean_norm", "mean norm", higher_is_better=False, compared_as="mean norm")


def test_names_are_unique_and_known(toy):
    with pytest.raises(UsageError, match="'mean_norm' is registered already"):
        registry.register(toy)
    with pytest.raises(UsageError, match="unknown name 'mean_nrom'. Did you mean 'mean_norm'"):
        registry.get_kind("mean_nrom")


def test_every_reference_leads_to_a_function():
    for kind in registry.KINDS.values():
        assert callable(resolve(kind.evaluate))
        assert callable(resolve(kind.section))
        assert {h.field for h in kind.headlines} <= {
            f.name for f in dataclasses.fields(kind.record)
        }


@pytest.mark.slow
def test_results_are_read_without_the_wings_above():
    code = (
        "import sys; from pathorob_jax.results import result_files, registry; "
        "assert 'matplotlib' not in sys.modules; "
        "assert not any(name.startswith('pathorob_jax.evaluation') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
