"""What the name of an encoder asks for before its network is loaded."""

import pytest

from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import names, registry


def test_weights_are_asked_for_by_name_alone(tmp_path):
    with pytest.raises(UsageError, match="weights: uni needs .* --model=uni .*--weights=<folder>"):
        names.check_weights_given("uni", None)
    names.check_weights_given("uni", str(tmp_path))
    for name in ("color_stats", "vit_random", "atlas", "no such model"):
        names.check_weights_given(name, None)


def test_a_use_that_is_inferred_is_said_to_be(caplog):
    name = next(
        name
        for name, spec in registry.MODELS.items()
        if spec.network and spec.pathorob and spec.pathorob.confidence == "inferred"
    )
    assert registry.name_of(name, preset="pathorob") == f"{name}_pathorob"
    assert f"{name}: PathoROB's use is inferred, not read from its code" in caplog.text
    caplog.clear()
    assert registry.name_of("phikon_v2", preset="pathorob") == "phikon_v2_pathorob"
    assert caplog.text == ""


def test_two_encoders_of_one_name_are_refused(tmp_path, monkeypatch):
    entry = "{summary: x, unavailable: It is private.}\n"
    (tmp_path / "a.yaml").write_text(f"mine: {entry}")
    (tmp_path / "b.yaml").write_text(f"color_stats: {entry}")
    monkeypatch.setattr(names, "SPECS", tmp_path)
    with pytest.raises(UsageError, match=r"b\.yaml: color_stats: there is an encoder of that name"):
        registry._read_all()
    (tmp_path / "b.yaml").unlink()
    assert registry._read_all()["mine"].unavailable == "It is private."
