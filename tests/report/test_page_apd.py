"""Tables of the performance drop: a dash wherever a number is lacking, and why."""

from report_records import NAN, make_apd, make_record

from pathorob_jax.report import page_apd
from pathorob_jax.report.table_cells import format_percent
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.record import Outcome


def test_the_mean_is_of_models_with_all_datasets():
    records = [make_apd("a", "one"), make_apd("a", "two"), make_apd("b", "one")]
    collection = Collection(map(Outcome, [*records, make_record("c", "one")]))
    [table] = page_apd.build_aggregates(collection)
    rows = {row.name: row for row in table.rows}
    assert sorted(rows) == ["a", "b"]
    assert all(cell.text != "–" for cell in rows["a"].cells)
    assert rows["b"].note == "only one"
    assert {(cell.text, cell.title) for cell in rows["b"].cells} == {
        ("–", "no mean: not evaluated on two")
    }


def test_a_classifier_that_one_model_lacks_is_a_dash():
    both = make_apd("both")
    table = page_apd.build_heads([both, make_apd("linear", heads={})])
    known, lacking = ([(c.text, c.title) for c in row.cells] for row in table.rows)
    assert known[2] == (format_percent(both.heads["knn"].apd_id), "")
    assert lacking[:2] == known[:2]
    assert lacking[2:] == [("–", "this head was not trained")] * 2


def test_a_drop_from_chance_has_no_share_of_its_range():
    [row] = page_apd.build_drops([make_apd("m", chance=0.95, nipd_id=NAN, nipd_ood=NAN)]).rows
    why = "undefined: accuracy without association is at chance (0.95)"
    assert [(cell.text, cell.title) for cell in row.cells[2:4]] == [("–", why)] * 2
    [row] = page_apd.build_drops([make_apd("m", nipd_id=NAN)]).rows
    assert row.cells[2].title == "undefined: an accuracy is undefined; see the warnings"
