"""How encoders were trained: slides, parameters, data, licence, kind, and exposure; with sources.

``facts.yaml`` holds what is known of the encoders of the registry. A fact that no source states is
absent. Parameters and licences are those of the registry where the file gives none.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import from_plain
from pathorob_jax.models import names
from pathorob_jax.models.spec_files import read_mapping

if TYPE_CHECKING:
    from pathorob_jax.models.spec import ModelSpec

Kind = Literal["vision", "vision-language", "distilled", "supervised"]
FILE = str(pathlib.Path(__file__).parent / "facts.yaml")


@dataclass(frozen=True)
class Count:
    """A number, and where it is stated."""

    value: int
    source: str


@dataclass(frozen=True)
class Text:
    """A text, and where it is stated."""

    value: str
    source: str


@dataclass(frozen=True)
class KindFact:
    """A kind of encoder, and where it is stated."""

    value: Kind
    source: str


@dataclass(frozen=True)
class Flag:
    """Whether something holds, and where it is stated."""

    value: bool
    source: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the training of an encoder; None: no source states it.

    Attributes:
        names: its names in other tables.
        kind: ``vision`` (self-supervised), ``vision-language``, ``distilled`` (from another
            encoder) or ``supervised``.
        slides: whole slides that it was trained on.
        params: parameters of the image encoder.
        data: the training data, in words.
        licence: of the weights.
        tcga: whether it was trained on slides of TCGA.
        benchmark: whether it was trained on slides of a dataset of PathoROB.
        selected: whether its authors chose the checkpoint by a number of PathoROB.
    """

    names: tuple[str, ...] = ()
    kind: KindFact | None = None
    slides: Count | None = None
    params: Count | None = None
    data: Text | None = None
    licence: Text | None = None
    tcga: Flag | None = None
    benchmark: Flag | None = None
    selected: Flag | None = None

    def value(self, name: str) -> Any:
        """Value of a fact by name; None if it is unknown."""
        fact = getattr(self, name)
        return None if fact is None else fact.value


def read_facts(path: str) -> dict[str, ModelFacts]:
    """Read facts of encoders by name from a YAML file like ``facts.yaml``.

    Raises:
        UsageError: not YAML, or an entry is invalid; the message names file, entry and field.
        FileNotFoundError: no such file.
    """
    entries = read_mapping(path)
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise UsageError(
            f"{path}: expected a mapping of names of models to their facts, such as "
            "'slides: {value: 1000, source: ...}'."
        )
    return {str(name): _make(str(name), entry, path) for name, entry in entries.items()}


def _make(name: str, entry: Mapping[str, Any], path: str) -> ModelFacts:
    try:
        facts: ModelFacts = from_plain(ModelFacts, entry, where=f"{path}: {name}")
    except InputError as error:
        raise UsageError(str(error)) from error
    for field, fact in vars(facts).items():
        if field != "names" and fact is not None and not fact.source.strip():
            raise UsageError(f"{path}: {name}.{field}: expected a source, found none.")
    for field in ("slides", "params"):
        if (facts.value(field) or 1) < 1:
            raise UsageError(
                f"{path}: {name}.{field}: expected 1 or more, found {facts.value(field)}."
            )
    return facts


@functools.cache
def known_facts() -> dict[str, ModelFacts]:
    """Facts of all encoders of the registry, by their name there."""
    from pathorob_jax.models import registry  # all networks; one model's results need none

    found = read_facts(FILE)
    return {
        name: _complete(spec, found.get(name, ModelFacts()))
        for name, spec in registry.MODELS.items()
    }


def _complete(spec: ModelSpec, facts: ModelFacts) -> ModelFacts:
    """With the parameters and the licence of the registry."""
    source = "; ".join(spec.sources)
    if spec.n_params is not None and facts.params is None and source:
        facts = replace(facts, params=Count(spec.n_params, source))
    if facts.licence is None and source and spec.licence != "not stated":
        facts = replace(facts, licence=Text(spec.licence, source))
    return facts


def find_facts(model: str, own: Mapping[str, ModelFacts] | None = None) -> ModelFacts:
    """Facts of a model by its name in results or tables; all unknown if the name is.

    ``Virchow2``, ``virchow2`` and ``virchow2_clsmean`` are one encoder. A robustified model
    (``virchow2+combat``) is none: it is another model.

    Args:
        model: the name.
        own: facts of further models by name; they come before those of the registry.
    """
    for facts in (own or {}, known_facts()):
        for wanted in (model, names.ADDED.sub("", model)):
            for name, found in facts.items():
                if plain_name(wanted) in map(plain_name, (name, *found.names)):
                    return found
    return ModelFacts()


def plain_name(name: str) -> str:
    """A name without case, spaces and punctuation, except the plus of robustified models."""
    return re.sub(r"[^a-z0-9+]", "", name.casefold())
