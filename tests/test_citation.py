"""What describes the project to others is well-formed and of this version."""

import pathlib

import pytest
import yaml

from pathorob_jax.version import __version__

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bug", "encoder", "results"])
def test_issue_forms_have_what_a_form_needs(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids)
    for part in form["body"]:
        assert part["type"] in ("input", "textarea", "checkboxes", "dropdown", "markdown")
        assert part["attributes"]["label"]
    assert any(part.get("validations", {}).get("required") for part in form["body"])
