"""The sentence of the robustness index where chance or a control is unknown."""

from report_records import NAN, make_record, make_undefined

from pathorob_jax.report.page_robustness_index import write_answer
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.record import Outcome


def answer(*records):
    return write_answer(Collection(map(Outcome, records)))


def test_without_chance_the_highest_is_all_that_is_said():
    records = [make_record("a", null_random_features=NAN)]
    assert answer(*records) == "Highest: a, 0.250 on tiles; chance is undefined."
    records.append(make_record("color_stats", index=0.5, null_random_features=NAN))
    assert answer(*records).endswith(
        "chance is undefined. Controls (not counted): color_stats 0.500 (above 1 of 1 encoders)."
    )


def test_a_control_without_an_index_is_not_named():
    records = [make_record("a"), make_undefined("vit_random")]
    assert "Controls" not in answer(*records)
    said = answer(*records, make_record("color_stats", index=0.125))
    assert said.endswith(" Controls (not counted): color_stats 0.125.")
