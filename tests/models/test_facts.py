"""Facts of models: every one has a source, names find them, and files are checked."""

import csv

import pytest

from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import facts, registry


def test_every_fact_of_the_file_has_a_source_and_an_encoder():
    found = facts.read_facts(facts.FILE)
    assert set(found) <= set(registry.MODELS)
    assert len(found) > 25
    for name, entry in facts.known_facts().items():
        for field, fact in vars(entry).items():
            assert field == "names" or fact is None or len(fact.source) > 5, (name, field)
    names = [facts.plain_name(n) for e in found.values() for n in e.names]
    assert len(names) == len(set(names))


def test_what_no_source_states_is_absent():
    ciga = facts.find_facts("Ciga")
    assert ciga.slides is ciga.tcga is None
    assert ciga.value("slides") is None
    assert ciga.value("params") == 11_176_512
    assert facts.find_facts("CONCHv1.5").slides is None


@pytest.mark.parametrize(
    ("name", "slides"),
    [
        ("Virchow2", 3_100_000),
        ("virchow2_clsmean", 3_100_000),
        ("uni2_h_pathorob", 350_000),
        ("Prov-GigaPath", 171_000),
        ("hipt_vit256", 11_000),
        ("HIPT", 11_000),
        ("virchow2+combat", None),
        ("nobody", None),
    ],
)
def test_models_are_found_by_their_names(name, slides):
    assert facts.find_facts(name).value("slides") == slides


def test_own_facts_come_first(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "mine: {kind: {value: vision, source: us}, slides: {value: 12, source: us}}\n"
        "virchow2: {slides: {value: 5, source: us}}\n"
    )
    own = facts.read_facts(str(path))
    assert facts.find_facts("mine", own).value("slides") == 12
    assert facts.find_facts("virchow2", own).value("slides") == 5
    assert facts.find_facts("virchow", own).value("slides") == 1_500_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected a mapping of names of models"),
        ("m: {slides: {value: 3}}\n", r"m.slides"),
        ("m: {slides: {value: 3, source: ''}}\n", "m.slides: expected a source, found none"),
        ("m: {slides: {value: -3, source: a}}\n", "m.slides: expected 1 or more, found -3"),
        ("m: {kind: {value: visual, source: a}}\n", "visual"),
        ("m: {slide: {value: 3, source: a}}\n", "slide"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_entry_and_field(tmp_path, text, message):
    path = tmp_path / "facts.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        facts.read_facts(str(path))


@pytest.mark.slow
def test_the_models_of_the_leaderboard_are_known(shared):
    with (shared / "pathorob/published/leaderboard.csv").open() as stream:
        models = [row["model"] for row in csv.DictReader(stream)]
    found = {model: facts.find_facts(model) for model in models}
    assert all(entry.kind and entry.params or model == "HIPT" for model, entry in found.items())
    language = [m for m, entry in found.items() if entry.value("kind") == "vision-language"]
    assert sorted(language) == ["CONCH", "CONCHv1.5", "MUSK"]
    own = [m for m, e in found.items() if e.value("kind") == "vision" and e.slides]
    assert len(own) == 15
