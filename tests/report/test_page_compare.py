"""Tables of the comparison of models that share few draws."""

import numpy as np
from report_records import NAN

from pathorob_jax.report import page_compare
from pathorob_jax.results.compare_models import Entry, compare_all


def compared(undefined):
    """Two models; ``undefined`` draws of each are undefined, the first ones and the last ones."""
    draws = np.random.default_rng(0).normal(size=(2, 100)) / 100 + [[0.6], [0.5]]
    draws[0, :undefined] = draws[1, 100 - undefined :] = NAN
    entries = [Entry(m, v, "key", d, 17) for m, v, d in zip("ab", (0.6, 0.5), draws, strict=True)]
    [found] = compare_all("robustness index", {"tiles": entries})
    return found


def test_models_that_share_too_few_draws_have_dashes_with_a_reason():
    found = compared(45)
    table = page_compare.build_comparison(found)
    assert table.columns[4:] == ["difference to the best", "ahead of it in"]
    best, other = table.rows
    few = "undefined: in most draws a model has no value"
    assert [(cell.text, cell.title) for cell in best.cells[1:3]] == [("–", few)] * 2
    assert [cell.text for cell in best.cells[4:]] == ["best", ""]
    why = "undefined: the two share too few draws"
    assert [(cell.text, cell.title) for cell in other.cells[4:]] == [("–", why)] * 2
    assert page_compare.build_neighbors(found).rows == []


def test_models_that_share_most_draws_have_numbers():
    found = compared(10)
    best, other = page_compare.build_comparison(found).rows
    assert (best.cells[2].text, other.cells[2].text) == ("1", "2")
    assert other.cells[4].text == "−0.100"
    [row] = page_compare.build_neighbors(found).rows
    assert (row.name, row.cells[1].text) == ("a − b", "yes")
