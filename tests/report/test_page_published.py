"""Rows of published numbers beside one's own, and what results cost."""

from report_records import make_record

from pathorob_jax.report import page_cost, page_published
from pathorob_jax.results.beside_published import Comparison
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.published import Beside, Published, known_boards
from pathorob_jax.results.record import Outcome


def test_drops_are_compared_in_per_cent():
    board = next(iter(known_boards().values()))
    number = Published("M", "apd_id", "mean", -0.125, [-0.25, 0.0], board)
    beside = Beside(number, note="its pooling is inferred")
    found = Comparison("m", "apd_id", "", -0.1, [-0.2, -0.05], beside)
    [row] = page_published.build_table([found]).rows
    assert row.note == "performance drop, in domain, mean over PathoROB's datasets"
    assert [(cell.text, cell.note) for cell in row.cells] == [
        ("−10.00 %", "−20.00 – −5.00 %"),
        ("−12.50 %", "−25.00 – +0.00 %"),
        ("+2.50 %", ""),
        (board.title, board.date),
        ("its pooling is inferred", ""),
    ]


def test_an_extraction_of_unknown_size_has_no_rate():
    def costs(one):
        cost = {"seconds": 240.0, "is_whole": False, "extraction": [one]}
        record = make_record("m", provenance={"cost": cost})
        return page_cost.build_costs(Collection([Outcome(record)]))

    [row] = costs({"seconds": 60.0})
    assert (row.extraction, row.evaluation, row.memory) == ("60 s", "at least 4.0 min", "–")
    [row] = costs({"seconds": 60.0, "tiles": 120})
    assert row.extraction == "60 s (120 tiles, 2.0 a second)"
    [row] = costs({"seconds": 0.0, "tiles": 120})
    assert row.extraction == "0 s"
