"""The first screen says what the records say, before anything else."""

import dataclasses
import re

import numpy as np
import pytest
from report_records import (
    NAN,
    Page,
    build,
    make_apd,
    make_clusters,
    make_margins,
    make_record,
    make_undefined,
    read_csv,
)

from pathorob_jax.report import answer_sentences, answer_table, sentences, table_cells
from pathorob_jax.report.page_robustness_index import build_companions
from pathorob_jax.results.answers import find_answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Entry, Pair, compare_all
from pathorob_jax.results.neighbor_counts import count_neighbors, rests_on_few
from pathorob_jax.results.record import Outcome
from pathorob_jax.results.robustness_index import NeighborTypes

COMMON = np.random.default_rng(1).normal(size=(2, 400))


def drawn(model, index, dataset="tiles", *, own=0.03, **changes):
    """A record with draws: a common part, and one of its own as wide as ``own``."""
    noise = np.random.default_rng(list(model.encode())).normal(size=400)
    draws = {"robustness_index": index + 0.05 * COMMON[0] + own * noise}
    return Outcome(make_record(model, dataset, index, **changes), "key", draws)


def compared(values, *, n_slides=17, own=0.03):
    entries = [
        Entry(m, v, "key", drawn(m, v, own=own).draws["robustness_index"], n_slides)
        for m, v in values.items()
    ]
    [found] = compare_all("robustness index", {"tiles": entries})
    return found


def test_two_models_that_are_level_are_said_to_be_with_the_slides_it_takes():
    comparison = compared({"a": 0.6, "b": 0.57})
    [text] = answer_sentences.write_differences(comparison)
    [pair] = comparison.pairs
    assert text.startswith("a and b can’t be told apart on 17 slides (+0.030, −0.0")
    count = answer_sentences.round_up(pair.slides_needed)
    assert f"about {count:,} would be needed" in text
    assert count > 17


def test_two_models_that_differ_are_said_to_differ():
    [text] = answer_sentences.write_differences(compared({"a": 0.9, "b": 0.2}))
    assert text.startswith("Told apart: a and b (+0.700, 0.6")


def test_of_many_models_the_best_is_set_against_the_others():
    values = {f"m{i}": 0.9 - 0.1 * i for i in range(8)} | {"n": 0.895}
    first, lead, pairs = answer_sentences.write_differences(compared(values))
    assert re.match(
        r"m0 is the highest, but can’t be told apart on 17 slides from n \([\w ,]+\)", first
    )
    assert "it is told apart from the " in first
    assert re.fullmatch(r"It is first in \d\d? % of draws of slides\.", lead)
    assert pairs.startswith("Of 36 pairs of models, ")
    alone = answer_sentences.write_differences(compared(values | {"m0": 2.0}))
    assert alone[0] == "m0 is the highest, and told apart from each of the 8 others."


def test_slides_that_would_be_needed_stand_in_brackets():
    values = {f"m{i}": 0.9 - 0.1 * i for i in range(6)} | {"n": 0.87}
    comparison = compared(values)
    first = answer_sentences.write_differences(comparison)[0]
    [pair] = [p for p in comparison.pairs if {p.model_a, p.model_b} == {"m0", "n"}]
    assert pair.slides_needed < answer_sentences.OUT_OF_REACH * pair.slides
    assert f" from n ({answer_sentences.round_up(pair.slides_needed):,}) (in brackets" in first


def test_one_model_is_compared_with_none():
    assert answer_sentences.write_differences(compared({"a": 0.5})) == []


@pytest.mark.parametrize(
    ("slides", "needed", "least", "expected"),
    [
        (17, 58, 25, "about 58 would be needed, 25 at the least"),
        (17, 1234, 9, "about 1,300 would be needed"),
        (17, 1701, 20, "more than 1,700 would be needed"),
        (17, None, 20, ""),
        (0, 58, 25, ""),
    ],
)
def test_needed_slides_are_said_to_two_digits(slides, needed, least, expected):
    pair = Pair("a", "b", 0.1, -0.1, 0.3, 0.9, slides, needed, least)
    assert answer_sentences.write_need(pair) == expected


def test_what_rests_on_few_neighbours_is_grey_with_its_count():
    # 80 samples of 11 neighbours; 3 of these 880 are of other centres.
    worst = make_record(
        ood_performance=1.0, neighbor_types=NeighborTypes(0.6, 3 / 880, 1 - 0.6 - 3 / 880, 0.0)
    )
    assert count_neighbors(worst, "ood_performance") == 3
    assert count_neighbors(worst, "generalization_index") == 3
    assert count_neighbors(worst, "prediction_performance") == 880
    assert count_neighbors(worst, "balanced_accuracy") is None
    assert rests_on_few(worst, "ood_performance")
    assert not rests_on_few(worst, "id_performance")
    table = build_companions([worst])
    cells = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert cells["OOD performance"].text == "1.000"
    assert cells["OOD performance"].is_faint
    assert "3 neighbours" in cells["OOD performance"].note
    assert not cells["ID performance"].is_faint
    assert not build_companions([make_record()]).rows[0].cells[4].is_faint


def test_numbers_stand_beside_what_they_are_read_with():
    records = [
        make_record("a", index=0.3, support=0.2),
        make_apd("a", drop=0.1),
        make_margins("a"),
        make_clusters("a", score=-0.5),
    ]
    collection = Collection(Outcome(r) for r in records)
    shown = answer_table.build_shown(collection)
    names = [column.name for column in answer_table.build_columns(shown)]
    assert names == [
        "accuracy",
        "performance drop, in domain",
        "performance drop, out of domain",
        "robustness index",
        "support",
        "CRoMa",
        "F(0)",
        "tail",
        "clustering score",
    ]
    [row] = answer_table.build_overview(collection, shown)
    accuracy, drop, _, index, support, croma, share, tail, score = row.cells
    assert accuracy.text == "0.902"
    assert drop.title == "from 0.902"
    assert index.is_faint
    assert (support.text, support.title) == ("20 %", "tiles: 440 neighbours")
    assert croma.text == "−0.143"
    assert (share.text, tail.text) == ("80 %", "−0.500")
    # -1 to 1 on a track from 0 to 100 %.
    assert (score.span.point, score.span.zero) == (25, 50)


def test_the_front_and_what_is_missing():
    outcomes = [drawn("a", 0.9), drawn("b", 0.5), Outcome(make_undefined("lost"))]
    answers = find_answers(Collection(outcomes), [])
    # Accuracy of the vote rises with the index here, so that one model beats the other in both.
    assert [p.model for p in answers.pareto.front] == ["a"]
    assert {p.model for p in answers.pareto.points} == {"a", "b"}


def test_runs_and_poolings_are_found_on_the_page(tmp_path):
    steps = {"run_step100": 0.3, "run_step200": 0.5, "run_step300": 0.51}
    outcomes = [drawn(m, v) for m, v in steps.items()]
    pooled = {"x_cls": 0.9, "y_cls": 0.2, "x_mean": 0.2, "y_mean": 0.9}
    outcomes += [drawn(m, v) for m, v in pooled.items()]
    folder, text = build(tmp_path, outcomes)
    first = text.split('<section id="answers">')[1].split('<section id="poolings">')[0]
    assert "run, robustness index: step 300 can’t be told apart from step 200, the best " in first
    assert "the best before it (+0.010" in first
    assert "Beside other models it is above x_mean (+0.310), y_cls (+0.310); below " in first
    assert "The order of encoders depends on the pooling: 1 of 1 pairs" in first
    assert "beyond doubt x and y" in first
    body = text.split('<section id="poolings">')[1].split("<tbody>")[1].split("</tbody>")[0]
    ranks = Page(body).cells
    assert [texts for _, texts in ranks] == [
        ["1", "0.900"],
        ["2", "0.200"],
        ["2", "0.200"],
        ["1", "0.900"],
    ]
    assert (folder / "figures/run_run_step.svg").exists()
    assert text.index('id="answers"') < text.index('id="headline"') < text.index('id="poolings"')
    rows = read_csv(folder / "comparisons.csv")
    assert {row["slides"] for row in rows} == {"8"}
    # No number of slides tells models of one index apart.
    assert all((row["slides_needed"] == "") == (float(row["difference"]) == 0) for row in rows)
    assert all(int(row["slides_at_least"]) >= 2 for row in rows)


def test_the_page_of_undefined_numbers_has_no_front(tmp_path):
    lost = make_apd("lost")
    nothing = (np.array(lost.id_accuracies) * NAN).tolist()
    lost = dataclasses.replace(lost, apd_id=NAN, id_accuracies=nothing, id_accuracy_means=[NAN] * 3)
    _, text = build(tmp_path, [make_undefined("lost"), lost])
    assert 'class="front"' not in text
    visible = re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\bnan\b", visible, flags=re.IGNORECASE)


@pytest.mark.slow
def test_what_makes_models_incomparable_is_warned_of_first(tmp_path):
    texts = [f"trifle {i}" for i in range(4)]
    records = [make_record(m, k=k, warnings=texts) for m, k in (("a", 3), ("b", 11))]
    _, text = build(tmp_path, records)
    shown = text.split('id="warnings"')[1].split("<details>")[0]
    assert shown.index("different k") < shown.index("trifle 0")
    assert shown.count("<li>") == 3
    assert "trifle 3" in text.split('id="warnings"')[1].split("</section>")[0]


def test_the_last_checkpoint_is_compared_with_the_one_before_and_the_best(tmp_path):
    steps = {"run_step100": 0.6, "run_step200": 0.3, "run_step300": 0.51}
    _, text = build(tmp_path, [drawn(m, v) for m, v in steps.items()])
    assert "step 300 is better than step 200 (+0.210" in text
    assert " and is worse than step 100, the best before it (−0.090" in text


def test_a_mean_does_not_hide_what_datasets_say(tmp_path):
    """One model leads on average and is below chance on a dataset; both are said."""
    numbers = {"a": (0.95, 0.3), "b": (0.55, 0.45)}
    records = [
        make_record(model, dataset, index=index)
        for model, own in numbers.items()
        for dataset, index in zip(("one", "two"), own, strict=True)
    ]
    _, text = build(tmp_path, records)
    assert "Highest: a, 0.625" in text
    said = "one 2 of 2, a the highest (0.950); two 0 of 2, b the highest (0.450)."
    assert f"Above chance by dataset: {said}" in text
    # A model whose chance is unknown is neither above nor below it.
    unknown = [
        dataclasses.replace(r, null_random_features=NAN)
        if (r.model, r.dataset) == ("b", "two")
        else r
        for r in records
    ]
    _, text = build(tmp_path, unknown, "unknown")
    assert "two 0 of 1, a the highest (0.300)." in text


def test_equal_numbers_are_no_order():
    parts = ["with a by −1.0 %", "with b by −1.0 %", "with c by −3.0 %"]
    shown = [part[-6:] for part in parts]
    assert sentences.name_ends(parts, shown) == f"least {parts[0]}, most {parts[2]}"
    assert sentences.name_ends(parts[:2], shown[:2]) == f"equally for all 2 models, as {parts[0]}"
    assert sentences.name_ends(parts[:1], shown[:1]) == parts[0]


def test_no_accuracy_is_beyond_one():
    assert table_cells.clip_share((0.95, 1.02)) == [0.95, 1.0]
    assert table_cells.clip_share((-0.1, 0.3)) == [0.0, 0.3]
    assert table_cells.clip_share(None) is None
    assert table_cells.format_interval(table_cells.clip_share((NAN, 1.0))) == ""
