"""Records of known content for tests of the report, and a reader of its page."""

import csv
import dataclasses
import io
import math
from html.parser import HTMLParser

import numpy as np

from pathorob_jax.core import files
from pathorob_jax.metrics import apd
from pathorob_jax.report.write import write_report
from pathorob_jax.results.apd import ApdResult, HeadResult
from pathorob_jax.results.clustering_score import ClusteringCombination, ClusteringResult
from pathorob_jax.results.directional_errors import DirectionalError
from pathorob_jax.results.margins import MarginsCurve, MarginsResult
from pathorob_jax.results.probes import ProbesResult
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.result_files import write_outcome, write_result
from pathorob_jax.results.retrieval import (
    RetrievalDrop,
    RetrievalLevel,
    RetrievalResult,
    RetrievalSchedule,
)
from pathorob_jax.results.robustification import (
    Biology,
    CenterChange,
    Null,
    Paired,
    ResidualCenter,
    RobustificationResult,
    write_verdict,
)
from pathorob_jax.results.robustness_index import Curve, Group, NeighborTypes, RobustnessIndexResult
from pathorob_jax.results.slide_prediction import (
    PresetResult,
    SlidePredictionResult,
    TablePreset,
    TableResult,
    TableScore,
)

NAN = math.nan


def make_record(model="encoder", dataset="tiles", index=0.25, *, ks=(1, 3, 11), k=11, **changes):
    """A record whose fractions follow from ``index``: half of the neighbours are SO or OS."""
    n = len(ks)
    so, os_ = index / 2, (1 - index) / 2
    group = Group(40, index, [index * 0.8, index * 1.02], 0.75, 0.5 + index / 3, 0.3, so, os_, 0.2)
    record = RobustnessIndexResult(
        model=model,
        dataset=dataset,
        design="all",
        robustness_index=index,
        k=k,
        k_rule="published",
        k_available=60,
        support=0.75,
        ci95=[index * 0.9, index * 1.01],
        companions_ci95={"balanced_accuracy": [0.4, 0.6], "generalization_index": None},
        null_permuted_center=0.6,
        null_random_features=0.5,
        balanced_accuracy=1 / 3 + index / 2,
        prediction_performance=0.3 + so,
        id_performance=0.3 / (0.3 + os_),
        ood_performance=so / (so + 0.2),
        bio_vs_confounding=0.1,
        confounder_insensitivity=2 / 3,
        normalized_confounder_insensitivity=0.7,
        generalization_index=1 / 7,
        n_samples=80,
        n_slides=8,
        n_groups=8,
        neighbor_types=NeighborTypes(0.3, so, os_, 0.2),
        curve=Curve(
            list(ks),
            [index] * n,
            [1 / 3 + index / 2] * n,
            [0.75] * n,
            [0.3] * n,
            [so] * n,
            [os_] * n,
            [0.2] * n,
        ),
        per_class={"tumor": group, "stroma": dataclasses.replace(group, support=0.2)},
        per_center={"north": group, "south": group},
        per_subset={},
        warnings=[],
        provenance={"store": {"sha256": "0" * 8}},
    )
    return dataclasses.replace(record, **changes)


def make_undefined(model="lost", dataset="tiles"):
    """A record in which nothing is defined."""
    scalars = {
        f.name: NAN for f in dataclasses.fields(RobustnessIndexResult) if f.type is float
    } | {"support": 0.0}
    nothing = [NAN] * 3
    group = Group(40, NAN, None, 0.0, NAN, NAN, NAN, NAN, NAN)
    return make_record(
        model,
        dataset,
        ci95=None,
        neighbor_types=NeighborTypes(NAN, NAN, NAN, NAN),
        curve=Curve([1, 3, 11], nothing, nothing, [0.0] * 3, nothing, nothing, nothing, nothing),
        per_class={"tumor": group},
        per_center={},
        **scalars,
    )


def make_margins(model="encoder", dataset="tiles", **changes):
    record = MarginsResult(
        model=model,
        dataset=dataset,
        design="all",
        k=11,
        k_rule="published",
        k_available=60,
        mari=1 / 3,
        mari_tau=0.1,
        mari_support=0.6,
        mari_ci95=[0.3, 0.36],
        croma=-1 / 7,
        croma_m=5,
        croma_f0=0.8,
        croma_q10=-0.4,
        croma_ltm10=-0.5,
        croma_support=0.9,
        croma_ci95=[-0.2, -0.1],
        croma_f0_ci95=None,
        croma_q10_ci95=[-0.5, -0.3],
        croma_ltm10_ci95=[-0.6, -0.4],
        n_samples=80,
        n_slides=8,
        curve=MarginsCurve([1, 11], [0.3, 1 / 3]),
        warnings=[],
        provenance={},
    )
    return dataclasses.replace(record, **changes)


def make_probes(model="encoder", dataset="tiles", **changes):
    record = ProbesResult(
        model=model,
        dataset=dataset,
        design="all",
        k=11,
        biology_auc=0.9375,
        center_auc=0.8125,
        ood_biology_auc=NAN,
        center_knn_balanced_accuracy=0.625,
        ci95={
            "biology_auc": [0.8, 0.9],
            "center_auc": None,
            "ood_biology_auc": None,
            "center_knn_balanced_accuracy": None,
        },
        n_folds={"biology": 5},
        n_skipped_folds={"biology": 0},
        n_samples=80,
        n_slides=8,
        warnings=[],
        provenance={},
    )
    return dataclasses.replace(record, **changes)


V = [0.0, 0.5, 1.0]


def make_apd(model="encoder", dataset="tiles", *, drop=0.1, repetitions=4, **changes):
    """Accuracy .9 without association, then .9 (1 - drop); repetitions differ a little."""
    noise = 0.001 * np.arange(repetitions)

    def accuracies(first, less):
        return (np.array([first, first * (1 - less), first * (1 - less)])[:, None] + noise).tolist()

    def head(first, less):
        values = accuracies(first, less)
        return {
            "apd_id": apd.average_performance_drop(values),
            "apd_ood": apd.average_performance_drop(values) / 2,
            "apd_id_ci95": [-less - 0.0625, -less + 0.03125],
            "apd_ood_ci95": None,
            "nipd_id": -0.25,
            "nipd_ood": -0.125,
            "id_accuracies": values,
            "ood_accuracies": values,
            "id_accuracy_means": np.mean(values, 1).tolist(),
            "ood_accuracy_means": np.mean(values, 1).tolist(),
            "validation_accuracies": values,
        }

    ones = [[1.0] * repetitions] * 3
    directions = {
        "north": {
            "tumor": {"tumor": [0.9, 0.7, 0.25], "stroma": [0.1, 0.3, 0.75]},
            "stroma": {"tumor": [0.1, None, 0.2], "stroma": [0.9, None, 0.8]},
        }
    }
    values = {
        "chance": 0.5,
        "cramers_v": V,
        "chosen_c": ones,
        "converged": [[True] * repetitions] * 3,
        "converged_share": 0.96,
        "stopping": "reference",
        "direction_id": directions,
        "direction_ood": {},
        "directional_errors": {
            "north": {
                "tumor": DirectionalError(
                    ["stroma"], [0.1, 0.3, 0.75], [0.0, 0.2, 0.65], [0.5, 0.8125]
                )
            },
            "south": {"stroma": DirectionalError(["tumor"], [0.05, NAN, 0.2], [0.0, NAN, 0.15])},
        },
        "heads": {"knn": HeadResult(setting="k", chosen=ones, **head(0.8, 0.25))},
        "repetitions": repetitions,
        "seed": 1000,
        "classes": ["tumor", "stroma"],
        "centers": ["north", "south"],
        "ood_centers": ["west"],
        "slides": [],
        "rows_per_slide": 10,
        "n_training_rows": 80,
        "n_id_test_rows": 40,
        "n_ood_test_rows": 20,
        "warnings": [],
        "provenance": {},
    }
    return ApdResult(model=model, dataset=dataset, **(values | head(0.9, drop) | changes))


def make_clusters(model="encoder", dataset="tiles", score=0.5, *, k=4, k_max=30, **changes):
    """One combination whose score is ``score``."""
    agreement = {
        "clustering_score": score,
        "clustering_score_std": 0.0625,
        "ci95": [score - 0.1, score + 0.1],
        "clustering_score_at_n_classes": score / 2,
        "nmi_biology": 0.3,
        "nmi_center": 0.2,
        "ami_biology": 0.28,
        "ami_center": 0.18,
    }
    combination = ClusteringCombination(
        name="tumor-stroma-north-south",
        classes=["tumor", "stroma"],
        centers=["north", "south"],
        n_samples=80,
        k=k,
        k_max=k_max,
        silhouettes=[0.1] * (k_max - 1),
        ari_biology=[0.7, 0.8],
        ari_center=[0.2, 0.3],
        composition=[[1, 2, 3, 4]] * k,
        **agreement,
    )
    record = ClusteringResult(
        model=model,
        dataset=dataset,
        clustering_score_std_meaning="seed noise",
        ari_biology=0.75,
        ari_center=0.25,
        distance="cosine",
        k_grid=list(range(2, k_max + 1)),
        trials=2,
        n_at_k_max=int(k == k_max),
        n_samples=80,
        n_slides=8,
        combinations=[combination],
        warnings=[],
        provenance={},
        **agreement,
    )
    return dataclasses.replace(record, **changes)


def make_retrieval(model="encoder", dataset="tiles", accuracy=0.75, *, last=0.5, **changes):
    """The nearest patch is right with ``accuracy``, in an unbalanced database with ``last``."""
    ks, ends = [1, 3, 5, 10], [[0.5, 0.875], [0.5, 0.875], None, [0.5, 0.875]]
    names = [f"{b}{n}" for b in ("", "balanced_") for n in ("vote_accuracy", "top_k_accuracy")]
    names += ["map", "balanced_map"]
    values = [accuracy, accuracy, NAN, accuracy]

    def level(n):
        return RetrievalLevel(
            k=ks,
            intervals=dict.fromkeys(names, ends),
            n_queries=n,
            n_without_neighbors=0,
            **dict.fromkeys(names, values),
        )

    means = [[accuracy, (accuracy + last) / 2, last]] * 4
    every = [[[value] * 2 for value in row] for row in means]
    relative = ((accuracy + last) / 2 + last) / 2 / accuracy - 1
    drop = RetrievalDrop(
        k=ks,
        id_accuracies=every,
        ood_accuracies=every,
        id_accuracy_means=means,
        ood_accuracy_means=means,
        drop_id=[relative] * 4,
        drop_ood=[relative / 2] * 4,
        drop_id_intervals=[[relative - 0.0625, relative + 0.0625]] * 4,
        drop_ood_intervals=[None] * 4,
        nipd_id=[-0.25] * 4,
        nipd_ood=[-0.125] * 4,
        wrong_share=[0.25, 0.375, 0.5],
        own_center_share=[0.5, 0.75, 0.875],
        own_center_intervals=[[0.25, 0.75], None, [0.75, 1.0]],
        own_center_expected=[0.5, 0.625, 0.6875],
        directional_errors={
            "north": {"stroma": DirectionalError(["tumor"], [0.25, 0.5, 0.75], [0.0, 0.25, 0.5])}
        },
    )
    schedule = RetrievalSchedule(
        cramers_v=V,
        patch=drop,
        slide=drop,
        chance=0.5,
        classes=["stroma", "tumor"],
        centers=["north", "south"],
        ood_centers=["west"],
        slides=[[[2, 2], [2, 2]], [[3, 1], [1, 3]], [[4, 0], [0, 4]]],
        rows_per_slide=10,
        repetitions=2,
        schedule_seed=1000,
        n_training_rows=80,
        n_id_test_rows=40,
        n_ood_test_rows=20,
        n_training_slides=8,
        n_id_test_slides=4,
        n_ood_test_slides=2,
    )
    record = RetrievalResult(
        model=model,
        dataset=dataset,
        k=ks,
        patch_accuracy=accuracy,
        patch_accuracy_ci95=[0.5, 0.875],
        slide_accuracy=accuracy,
        slide_accuracy_ci95=None,
        slide_set_accuracy=accuracy,
        slide_set_accuracy_ci95=None,
        classes=["stroma", "tumor"],
        n_samples=80,
        n_slides=8,
        patch=level(80),
        slide=level(8),
        slide_set=level(8),
        schedule=schedule,
        warnings=[],
        provenance={},
    )
    return dataclasses.replace(record, **changes)


def make_robustification(
    model="encoder+combat", dataset="tiles", *, before=0.25, after=0.75, **changes
):
    """The index rises from ``before`` to ``after``; biology stays, but for 0.002."""

    def both(was, now):
        return {"before": was, "after": now}

    gain = after - before
    paired = {
        "robustness_index": Paired(before, after, gain, [gain - 0.0625, gain + 0.0625]),
        "biology_auc": Paired(0.9, 0.898, -0.002, [-0.01, 0.006]),
        "biology_knn_balanced_accuracy": Paired(0.8, 0.8125, 0.0125, None),
        "margins.mari": Paired(0.25, 0.5, 0.25, [0.2, 0.3]),
    }
    residual = ResidualCenter(0.55, 0.95, Null(0.5, 0.53))
    values = {
        "parent": "encoder",
        "method": "combat",
        "fit_on": "all",
        "covariates": "none",
        "used_labels": False,
        "cramers_v_fit": 0.3125,
        "k": 11,
        "gain": gain,
        "ci95": paired["robustness_index"].ci95,
        "residual_rows": "cross_fit",
        "residual_center": dict.fromkeys(("linear", "knn", "mlp"), residual),
        "biology": Biology(
            auc=both(0.9, 0.898),
            auc_per_class={"tumor": both(0.9, 0.898)},
            auc_per_center={"north": both(0.91, 0.9), "south": both(NAN, NAN)},
            knn_balanced_accuracy=both(0.8, 0.8125),
            knn_recall_per_class={"tumor": both(0.7, 0.75)},
            knn_balanced_accuracy_per_center={"north": both(0.8, 0.7), "south": both(0.5, 0.6)},
            effective_rank=both(12.5, 13.25),
            variance_removed=0.125,
            neighbors_kept=0.875,
        ),
        "paired": paired,
        "per_center": {"north": CenterChange(0.5, 1.25, both(before, after))},
        "n_samples": 80,
        "n_slides": 8,
        "warnings": [],
        "provenance": {},
    } | changes
    verdict = write_verdict(values["method"], values["paired"], values["residual_center"])
    return RobustificationResult(model=model, dataset=dataset, **{"verdict": verdict} | values)


def make_slides(model="encoder", dataset="tiles", *, drop=0.25, names=("mean", "gated"), **changes):
    """Areas .9 without association, then less; those of ``mean`` fall twice as far."""

    def preset(less):
        values = [[0.9 - n * less, 0.85 - n * less] for n in range(3)]
        ends = [-less - 0.0625, -less + 0.03125]
        nothing = [[NAN] * 2] * 3
        return PresetResult(
            auc_id=values,
            auc_ood=nothing,
            auc_ood_by_center={"west": nothing},
            balanced_accuracy_id=values,
            balanced_accuracy_ood=nothing,
            **{f"{measure}drop_id": -less for measure in ("", "auc_")},
            **{f"{measure}drop_ood": NAN for measure in ("", "auc_")},
            **{f"{measure}nipd_id": -0.25 for measure in ("", "auc_")},
            **{f"{measure}nipd_ood": NAN for measure in ("", "auc_")},
            intervals={"drop_id": ends, "drop_ood": None, "auc_drop_id": ends}
            | {"auc_drop_ood": None},
            directional_errors={
                "north": {
                    "stroma": DirectionalError(["tumor"], [0.125, 0.25, 0.625], [0.0, 0.125, 0.5])
                },
            },
            setting="C",
            chosen=[[1.0, 0.5]] * 3,
            settings={},
        )

    found = {name: preset(2 * drop if name == "mean" else drop) for name in names}
    headline = "gated" if "gated" in names else names[0]
    values = {
        "preset": headline,
        "drop_id": found[headline].drop_id,
        "drop_ood": NAN,
        "drop_id_ci95": found[headline].intervals["drop_id"],
        "drop_ood_ci95": None,
        "cramers_v": V,
        "presets": found,
        "classes": ["stroma", "tumor"],
        "centers": ["north", "south"],
        "ood_centers": ["west"],
        "repetitions": 2,
        "seeds": 1,
        "seed": 1000,
        "n_bags": 40,
        "n_training_bags": 16,
        "n_id_test_bags": 8,
        "n_ood_test_bags": 4,
        "warnings": [],
        "provenance": {},
    }
    return SlidePredictionResult(model=model, dataset=dataset, **(values | changes))


def make_slide_table(gap=-0.125):
    """Harrell's C of .625 with the added centre, and ``gap`` less without it."""

    def score(value, ends):
        return TableScore({"concordance": value, "nll": 1.5}, {"concordance": ends, "nll": None}, 8)

    preset = TablePreset(
        all=score(0.625, [0.5, 0.75]),
        without_added=score(0.625 - gap, None),
        added=score(gap, [gap - 0.0625, gap + 0.0625]),
    )
    return TableResult(
        source="slides.csv",
        measure="concordance",
        classes=[],
        centers=["north", "south"],
        added_centers=["south"],
        n_training=12,
        n_validation=4,
        n_test=6,
        presets={"gated": preset},
    )


def build(tmp_path, records, name="report", **options):
    """The report of records or outcomes; returns its folder and the page's text."""
    root = str(tmp_path / "results")
    for record in records:
        if isinstance(record, Outcome):
            write_outcome(root, record)
        else:
            write_result(root, record)
    index = write_report(root, str(tmp_path / name), **options)
    assert index == files.join(str(tmp_path / name), "index.html")
    return tmp_path / name, (tmp_path / name / "index.html").read_text("utf-8")


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


class Page(HTMLParser):
    """What a browser would see: references, elements, texts of cells, nesting errors."""

    VOID = frozenset({"meta", "link", "img", "br", "wbr", "input"})

    def __init__(self, text):
        super().__init__()
        self.references, self.elements, self.open, self.cells = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.references += [v for k, v in attrs if k in ("src", "href", "data", "action", "srcset")]
        if tag == "td":
            self.cells.append((dict(attrs), []))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open and data.strip():
            self.cells[-1][1].append(data.strip())
