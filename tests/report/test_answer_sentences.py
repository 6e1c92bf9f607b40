"""Sentences and tables of families of models, and of numbers that some models lack."""

import pytest
from report_records import make_record, make_undefined

from pathorob_jax.models.facts import Flag, ModelFacts, Text
from pathorob_jax.report import answer_sentences, answer_table, page_answers, page_families
from pathorob_jax.report.section import Drawing
from pathorob_jax.results.answers import RunCurve, find_answers
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import Pair
from pathorob_jax.results.families import (
    Agreement,
    PoolingStudy,
    Run,
    find_poolings,
    study_poolings,
)
from pathorob_jax.results.record import Outcome

SWAPS = "1 of 3 pairs of encoders change places between cls and mean (Kendall’s τ +0.333)"


@pytest.mark.parametrize(
    ("kendall", "swapped", "apart", "expected"),
    [
        (1.0, [], [], "The order of 3 encoders is the same by cls and mean."),
        (1 / 3, [("x", "y")], [], f"{SWAPS}, none of them beyond the intervals: chance could do"),
        (1 / 3, [("x", "y")], [("x", "y")], "The order of encoders depends on the pooling: 1 of 3"),
    ],
)
def test_orders_by_two_poolings_are_compared(kendall, swapped, apart, expected):
    found = Agreement(("cls", "mean"), 3, kendall, kendall, 3, swapped, apart)
    [text] = answer_sentences.write_poolings(PoolingStudy([], {}, {}, {}, [found]))
    assert text.startswith(expected)


def test_a_checkpoint_may_be_comparable_with_the_one_before_alone():
    run = Run("vit", "step", [100, 200], ["vit_step100", "vit_step200"])
    before = Pair("vit_step200", "vit_step100", 0.1, 0.05, 0.15, 1.0)
    said = answer_sentences.write_run(RunCurve(run, {}, {}, None, before, []))
    assert said == (
        "vit, robustness index: step 200 is better than step 100 (+0.100, 0.050–0.150)."
    )


def test_a_run_without_any_number_has_no_figure():
    names = ("vit_step100", "vit_step200")
    answers = find_answers(Collection([Outcome(make_undefined(name)) for name in names]), [])
    [section] = page_families.build_sections(answers, lambda *_: pytest.fail("nothing to draw"))
    [run] = section.blocks[0].context["runs"]
    assert run["drawing"] is None
    assert run["answer"] == "vit: 2 checkpoints, step 100 to 200."


def test_an_encoder_without_a_pooling_has_a_dash_there():
    values = {"x_cls": 0.9, "x_mean": 0.8, "y_cls": 0.2, "y_mean": 0.3}
    values |= {"z_mean": 0.5, "z_head": 0.4}
    study = study_poolings(find_poolings(list(values), {}), values, None)
    table = page_families.build_poolings(study)
    assert table.columns == ["cls", "mean", "head"]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["1", "1", "–"],
        ["2", "3", "–"],
        ["–", "2", "1"],
    ]
    assert table.rows[-1].cells[0].title == "no such number of this pooling"


def test_what_is_known_of_one_model_alone_is_a_dash_for_the_other():
    facts = {"a": ModelFacts(licence=Text("MIT", "us"), tcga=Flag(True, "them"))}
    collection = Collection([Outcome(make_record("a")), Outcome(make_record("b", index=0.2))])
    shown = answer_table.build_shown(collection, facts)
    columns = [one.column.name for one in shown[:2]]
    first, second = ([one.cells[i] for one in shown[:2]] for i in (0, 1))
    assert columns == ["licence", "has seen"]
    assert [(cell.text, cell.title) for cell in first] == [
        ("MIT", "MIT; source: us"),
        ("TCGA", "TCGA: yes; source: them"),
    ]
    assert [(cell.text, cell.title) for cell in second] == [("–", "no source states it")] * 2


@pytest.mark.parametrize("chance", [0.5, float("nan")])
def test_the_first_figure_has_a_line_of_chance_where_it_is_known(chance):
    indices = {"a": 1.0, "b": 0.0}
    records = [make_record(m, index=i, null_random_features=chance) for m, i in indices.items()]
    collection = Collection(map(Outcome, records))
    answers = find_answers(collection, [])
    drawn = []

    def draw(name, label, make):
        drawn.append(make())
        return Drawing(label, name)

    _, caption = page_answers.build_context(collection, answers, [], [], draw)["front"]
    assert ("Dashed: chance" in caption) == (chance == 0.5)
    assert len(drawn[0].panels[0].y_rules) == (chance == 0.5)
