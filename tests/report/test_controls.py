"""Controls mark the scale: they are called controls, and are neither ranked nor counted."""

import numpy as np
import pytest
from report_records import Page, build, make_apd, make_record, read_csv

from pathorob_jax.models import names, registry
from pathorob_jax.results.analyse_models import analyse_collection, find_pareto
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.compare_models import CONTROL, Entry, compare_all
from pathorob_jax.results.model_numbers import read_collection
from pathorob_jax.results.record import Outcome


def test_the_registry_says_who_is_a_control():
    stated = {n for n, spec in registry.MODELS.items() if "(control)" in spec.summary}
    assert stated == set(names.CONTROLS) == {n for n in registry.MODELS if names.is_control(n)}
    assert names.is_control("vit_random_mean")
    assert names.is_control("color_stats+combat")
    assert not names.is_control("my_color_stats")
    assert not names.is_control("virchow2_mean")


def entries(values):
    rng = np.random.default_rng(0)
    return [Entry(m, v, "key", v + rng.normal(0, 0.02, 500), 17) for m, v in values.items()]


def test_a_control_has_pairs_and_no_rank():
    values = {"nuclear_texture": 0.9, "a": 0.7, "b": 0.5, "color_stats": 0.1}
    [found] = compare_all("index", {"tiles": entries(values)})
    assert [c.model for c in found.contenders] == ["a", "b"]
    assert found.shared_ranks == {"a": 1, "b": 2}
    assert [c.mean_rank for c in found.contenders] == [1, 2]
    assert dict(found.left_out) == {"nuclear_texture": CONTROL, "color_stats": CONTROL}
    assert len(found.pairs) == 6
    assert found.level_with_best == []
    # A single encoder is set against the controls, and controls alone against each other.
    for some in ({"a": 0.7, "color_stats": 0.1}, {"color_stats": 0.1, "nuclear_texture": 0.9}):
        [found] = compare_all("index", {"tiles": entries(some)})
        assert len(found.contenders) == 2
        assert found.left_out == []


def records():
    best = make_record("nuclear_texture", index=0.9)
    yield from (best, make_record("color_stats", index=0.1))
    for i, model in enumerate("abcde"):
        yield make_record(model, index=0.4 + 0.05 * i)
        yield make_apd(model, drop=0.3 - 0.05 * i)
    yield make_apd("nuclear_texture", drop=0.01)
    yield make_apd("color_stats", drop=0.01)


def test_the_page_ranks_and_counts_encoders_alone(tmp_path):
    folder, text = build(tmp_path, list(records()))
    assert "Robustness of 5 pathology encoders and 2 controls" in text
    said = text.split('<div class="answer">')[1].split("</div>")[0]
    assert "in 2 of 5 models on tiles, in 1 of them beyond the 95 % interval." in said
    assert "Highest: e, 0.600. Lowest: a, 0.400." in said
    above = "nuclear_texture 0.900 (above 5 of 5 encoders), color_stats 0.100."
    assert f"Controls (not counted): {above}" in said
    assert "least with e by" in said
    overview = text.split('<section id="overview">')[1].split("</section>")[0]
    rows = overview.split("<tbody>")[1].split("<tr")[1:]
    assert ["control</span>" in row for row in rows] == [False] * 5 + [True] * 2
    assert not any('class="best"' in row for row in rows[5:])
    front = text.split('<figure class="front">')[1].split("</figure>")[0]
    assert "nuclear_texture (control)" in front
    assert front.count("hollow") == 2 + 1  # the key says it too
    drawn = [attrs for tag, attrs in Page(front).elements if tag in ("rect", "circle")]
    assert {a["data-model"] for a in drawn if "centre" in a["class"]} == {"e"}
    table = {row["model"]: row for row in read_csv(folder / "headline.csv")}
    assert [row["control"] for row in table.values()] == ["no"] * 5 + ["yes"] * 2
    ranked = [r["model"] for r in read_csv(folder / "ranks.csv") if not r["left_out"]]
    assert not any(map(names.is_control, ranked))


def test_analyses_over_models_leave_controls_out():
    collection = Collection(map(Outcome, records()))
    over = analyse_collection(collection)
    assert over.n_models == 5
    assert any("do not count here: color_stats, nuclear_texture" in text for text in over.warnings)
    pareto = find_pareto(read_collection(collection, all_models=True))
    assert {p.model for p in pareto.points} == set("abcde")


def test_a_report_of_controls_alone_says_so(tmp_path):
    found = [make_record("nuclear_texture", index=0.9), make_record("color_stats", index=0.1)]
    _, text = build(tmp_path, found)
    assert "Robustness of 2 controls" in text
    assert "in 1 of 2 controls on tiles" in text
    assert "Controls (not counted)" not in text
    assert find_pareto(read_collection(Collection(map(Outcome, found)), all_models=True)) is None


@pytest.mark.parametrize("nulls", [(0.5, 0.5), (0.3, 0.7)])
def test_chance_is_that_of_the_model(tmp_path, nulls):
    """An index of 0.45 is above a chance of 0.3, whatever the mean over models is."""
    found = [
        make_record(model, index=0.45, null_random_features=null, ci95=[0.35, 0.55])
        for model, null in zip("ab", nulls, strict=True)
    ]
    folder, text = build(tmp_path, found)
    cells = text.split('<section id="headline">')[1].split("</section>")[0]
    if nulls[0] == nulls[1]:
        assert "in 0 of 2 models" in text
        assert cells.count("chance 0.500") == 1 + 2  # the head, and what cells say on hovering
    else:
        assert "is 0.30 to 0.70 on each model’s own patches." in text
        assert "in 1 of 2 models on tiles, in 1 of them beyond the 95 % interval" in text
        assert "chance 0.300" in cells
        assert "chance 0.700" in cells
    rows = {row["model"]: row for row in read_csv(folder / "index_by_dataset.csv")}
    assert [float(rows[m]["tiles_chance"]) for m in "ab"] == list(nulls)
    assert [float(rows[m]["tiles"]) for m in "ab"] == [0.45, 0.45]
    assert float(rows["a"]["tiles_support"]) == found[0].support
