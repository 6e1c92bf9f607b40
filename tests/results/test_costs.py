"""What models cost, added up from the provenance of their results."""

import pytest
from report_records import build, make_margins, make_record

from pathorob_jax.results import costs
from pathorob_jax.results.costs import add_cost, costs_of_models
from pathorob_jax.results.record import Outcome

MACHINE = {"processor": "P", "cores": 4, "device": "cpu", "devices": 1, "processes": 1}
GPU = MACHINE | {"device": "H200", "devices": 8}


def took(seconds, peak=10**9, *, machine=MACHINE, **more):
    return {"seconds": seconds, "is_whole": True, "peak_bytes": peak, **machine, **more}


PASSES = [
    took(60.0, 3 * 10**9, machine=GPU, tiles=300, start_s=5.0, encoders=2, device_peak_bytes=7e9),
    took(10.0, tiles=100, start_s=1.0, encoders=1),
]


def record(make, model, dataset, cost, passes=()):
    return add_cost(Outcome(make(model, dataset)), cost, passes).record


def test_metrics_add_up_and_a_store_counts_once():
    records = [
        record(make_record, "a", "one", took(2.0), PASSES),
        record(make_margins, "a", "one@scanner", took(3.0, is_whole=False), PASSES),
        record(make_record, "a", "two", took(4.0, 2 * 10**9), PASSES[1:]),
        record(make_record, "b", "one", took(1.5)),
        make_record("c", "one"),
    ]
    first, second = costs_of_models(records)
    assert (first.model, second.model) == ("a", "b")
    assert first.evaluation_s == 9.0
    # 60 s shared by two encoders, and 10 s alone, twice.
    assert first.extraction_s == 30.0 + 10.0 + 10.0
    assert first.tiles == 500
    assert (first.peak_bytes, first.device_peak_bytes) == (3 * 10**9, 7 * 10**9)
    assert first.machines == ("8 x H200, 4 cores of P", "4 cores of P")
    assert (first.is_whole, second.is_whole) == (False, True)
    assert (second.extraction_s, second.tiles) == (None, None)


@pytest.mark.parametrize("bad", [None, 5, {}, {"seconds": "long"}, {"seconds": -1}])
def test_costs_of_other_versions_and_hands_are_left_out(bad):
    odd = make_record("m", "d", provenance={costs.COST: bad})
    assert costs_of_models([odd]) == []
    odd = make_record("m", "d", provenance={costs.COST: took(1.0, extraction=[bad])})
    assert costs_of_models([odd])[0].evaluation_s == 1.0


def test_a_pass_of_unknown_length_leaves_the_sum_unknown():
    unknown = {"tiles": 300, "encoders": 1}
    [cost] = costs_of_models([record(make_record, "a", "one", took(2.0), [*PASSES, unknown])])
    assert (cost.extraction_s, cost.tiles) == (None, 700)
    [cost] = costs_of_models([record(make_record, "a", "one", took(2.0), [took(5.0, encoders=1)])])
    assert (cost.extraction_s, cost.tiles) == (5.0, None)


def test_a_record_without_provenance_stays():
    class Bare:
        pass

    outcome = Outcome(Bare())
    assert add_cost(outcome, took(1.0), []) is outcome


def test_the_report_names_the_cost_of_each_model(tmp_path):
    records = [
        record(make_record, "a", "one", took(120.0, is_whole=False), PASSES),
        record(make_record, "b", "one", took(1.5)),
        make_record("c", "one"),
    ]
    _, text = build(tmp_path, records)
    markup = text.split('<section id="cost">')[1].split("</section>")[0]
    assert "40 s (400 tiles, 10.0 a second)" in markup
    assert "at least 2.0 min" in markup
    assert "3.0 GB, 7.0 GB of a device" in markup
    assert ">c<" not in markup
    shown = text.split('<section id="provenance">')[1].split("</section>")[0]
    assert "peak_bytes" not in shown
    _, text = build(tmp_path / "of_older_results", [make_record("c", "one")])
    assert 'id="cost"' not in text


@pytest.mark.slow
def test_reports_of_equal_results_have_one_digest(tmp_path):
    digests = []
    for seconds, value in ((1.0, 0.5), (2.0, 0.5), (1.0, 0.25)):
        made = make_record("a", "one", value)
        costly = add_cost(Outcome(made), took(seconds), []).record
        _, text = build(tmp_path, [costly], f"{seconds}{value}")
        digests.append(text.split('name="results-sha256" content="')[1][:64])
    assert digests[0] == digests[1] != digests[2]
