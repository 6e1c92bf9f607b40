"""What holds over models, from a folder of results or a table; writes ``models.json``."""

import math
from collections.abc import Mapping

import numpy as np

from pathorob_jax.core import digests
from pathorob_jax.core.plain import as_plain
from pathorob_jax.core.privacy import file_name
from pathorob_jax.core.provenance import software_versions
from pathorob_jax.metrics import over_models as metric
from pathorob_jax.metrics.over_models import MIN_MODELS
from pathorob_jax.models.facts import ModelFacts, read_facts
from pathorob_jax.models.names import is_control
from pathorob_jax.results.collection import Collection
from pathorob_jax.results.model_numbers import (
    ACCURACY,
    KNN_ACCURACY,
    Numbers,
    deviation,
    read_collection,
    read_table,
)
from pathorob_jax.results.over_models import (
    ALL,
    APD_ID,
    APD_OOD,
    INDEX,
    SELF_SUPERVISED,
    LanguageContrast,
    ModelRow,
    OverModels,
    Pareto,
    ParetoPoint,
    RankCorrelation,
    Scaling,
)
from pathorob_jax.results.result_files import write_result

SEED, DRAWS = 0, 2000
VISION, LANGUAGE = "vision", "vision-language"
SIZES = (("slides", "slides seen in training"), ("params", "parameters"))


def analyse_models(
    source: str,
    *,
    facts: str | Mapping[str, ModelFacts] | None = None,
    seed: int = SEED,
    draws: int = DRAWS,
) -> OverModels:
    r"""Correlations, scaling, Pareto front and vision-language models, over all models of a source.

    Args:
        source: folder of results with ``<model>/<dataset>/<metric>.json``, or a table (CSV or
            Parquet) with a column ``model`` and columns of numbers: ``headline.csv`` of a report,
            or PathoROB's leaderboard.
        facts: facts of further models (``models.facts.read_facts``), or their YAML file.
        seed: seed of permutations and draws.
        draws: draws of models for intervals; 0: none.

    Returns:
        The record. Analyses of fewer than five models are undefined; its warnings say so.

    Raises:
        FileNotFoundError: there is no such folder or table.
        InputError: a record or the table cannot be read.
        UsageError: the file of facts is invalid.

    >>> import pathlib, pathorob_jax as pr
    >>> table = "model,robustness_index,apd_id\na,.9,-.01\nb,.8,-.02\nc,.7,-.03\n"
    >>> _ = pathlib.Path("table.csv").write_text(table + "d,.6,-.05\ne,.5,-.04\n")
    >>> found = pr.analyse_models("table.csv", draws=200).find("robustness_index", "apd_id")
    >>> found.n, round(found.rho, 2), found.p_rule
    (5, 0.9, 'exact')
    """
    known = read_facts(facts) if isinstance(facts, str) else facts
    if source.lower().endswith((".csv", ".parquet")):
        return analyse(read_table(source, known), source=source, seed=seed, draws=draws)
    return analyse_collection(Collection.read(source), known, source=source, seed=seed, draws=draws)


def write_models(root: str) -> str | None:
    """Write ``<root>/models.json`` and return its path; None with fewer than two models."""
    collection = Collection.read(root)
    if len(collection.models) < 2:
        return None
    return write_result(root, analyse_collection(collection, source=root))


def analyse_collection(
    collection: Collection,
    facts: Mapping[str, ModelFacts] | None = None,
    *,
    source: str = "",
    seed: int = SEED,
    draws: int = DRAWS,
) -> OverModels:
    """``analyse_models`` of records."""
    return analyse(read_collection(collection, facts), source=source, seed=seed, draws=draws)


def analyse(
    numbers: Numbers, *, source: str = "", seed: int = SEED, draws: int = DRAWS
) -> OverModels:
    """``analyse_models`` of the numbers of models."""
    rows = numbers.rows
    values = _columns(numbers)
    accuracy = choose_accuracy(numbers)
    correlations = [
        RankCorrelation(
            x, y, **metric.rank_correlation(values[x], values[y], seed=seed, draws=draws)._asdict()
        )
        for x, y in _list_pairs(values)
    ]
    scaling = _measure_scaling(rows, values, seed=seed, draws=draws)
    pareto = find_pareto(numbers, min_models=MIN_MODELS, seed=seed, draws=draws)
    language = _compare_language(rows, values, accuracy, seed=seed, draws=draws)
    digest = digests.digest_json(as_plain(rows))
    return OverModels(
        n_models=len(rows),
        min_models=MIN_MODELS,
        titles=numbers.titles,
        models=rows,
        correlations=correlations,
        scaling=scaling,
        pareto=pareto,
        language=language,
        seed=seed,
        draws=draws,
        warnings=_warn(numbers, values, correlations, scaling, pareto, language),
        provenance={
            "source": file_name(source),
            "numbers_sha256": digest,
            "versions": software_versions(),
        },
    )


def _columns(numbers: Numbers) -> dict[str, np.ndarray]:
    """float64[models] of each number; NaN where undefined."""
    return {
        name: np.array([row.values.get(name, math.nan) for row in numbers.rows], np.float64)
        for name in numbers.titles
    }


def choose_accuracy(numbers: Numbers) -> str:
    """The accuracy that most models have; of two, that of the performance drop. "" for none."""
    counts = {
        name: sum(math.isfinite(row.values.get(name, math.nan)) for row in numbers.rows)
        for name in (ACCURACY, KNN_ACCURACY)
        if name in numbers.titles
    }
    best = max(counts, key=lambda name: counts[name], default="")
    return best if counts.get(best) else ""


def _list_pairs(values: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """The index against all other numbers, then all other numbers against the drop."""
    pairs = [(INDEX, name) for name in values if INDEX in values and name != INDEX]
    drops = [name for name in (APD_ID, APD_OOD) if name in values]
    pairs += [(name, drop) for drop in drops for name in values if name not in (INDEX, *drops)]
    return pairs


def _size(row: ModelRow, name: str) -> float:
    found = row.fact(name)
    return math.nan if found is None else math.log10(found)


def _measure_scaling(
    rows: list[ModelRow], values: Mapping[str, np.ndarray], *, seed: int, draws: int
) -> list[Scaling]:
    if INDEX not in values:
        return []
    is_vision = np.array([row.fact("kind") == VISION for row in rows], bool)
    out = []
    for name, _ in SIZES:
        sizes = np.array([_size(row, name) for row in rows], np.float64)
        for which, chosen in ((ALL, np.ones(len(rows), bool)), (SELF_SUPERVISED, is_vision)):
            x, y = sizes[chosen], values[INDEX][chosen]
            found = metric.rank_correlation(x, y, seed=seed, draws=draws)
            slope = metric.find_slope(x, y) if math.isfinite(found.rho) else math.nan
            parts = found._asdict()
            out.append(Scaling(name, INDEX, **parts, which=which, slope=slope))
    return out


def find_pareto(
    numbers: Numbers, *, min_models: int = 1, seed: int = SEED, draws: int = DRAWS
) -> Pareto | None:
    """The front of accuracy by robustness index.

    Args:
        numbers: numbers of models; those without an accuracy or an index are left out.
        min_models: models that it takes.
        seed: seed of the draws of numbers within their errors.
        draws: number of draws.

    Returns:
        The front; None with fewer than ``min_models`` models. Controls are not on it.
    """
    rows, values = numbers.rows, _columns(numbers)
    accuracy = choose_accuracy(numbers)
    if not accuracy or INDEX not in values:
        return None
    names = (accuracy, INDEX)
    x, y = (values[name] for name in names)
    is_encoder = np.array([not is_control(row.model) for row in rows], bool)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y) & is_encoder)
    if len(known) < max(min_models, 1):
        return None
    of_x, of_y = (
        np.array([deviation(rows[i].ci95.get(name)) for i in known], np.float64) for name in names
    )
    x, y = x[known], y[known]
    on_front, beaten_by = metric.find_front(x, y)
    shares = metric.share_on_front(x, y, (of_x, of_y), seed=seed, draws=draws)
    points = [
        ParetoPoint(
            model=rows[i].model,
            accuracy=float(x[place]),
            accuracy_ci95=rows[i].ci95.get(accuracy),
            robustness=float(y[place]),
            robustness_ci95=rows[i].ci95.get(INDEX),
            on_front=bool(on_front[place]),
            front_share=float(shares[place]),
            beaten_by=[rows[known[other]].model for other in beaten_by[place]],
        )
        for place, i in enumerate(known)
    ]
    return Pareto(accuracy, INDEX, points)


def _compare_language(
    rows: list[ModelRow],
    values: Mapping[str, np.ndarray],
    accuracy: str,
    *,
    seed: int,
    draws: int,
) -> list[LanguageContrast]:
    """Vision-language against all models of known other kinds, where both are there."""
    kinds = [row.fact("kind") for row in rows]
    is_language = np.array([kind == LANGUAGE for kind in kinds], bool)
    is_other = np.array([kind not in (None, LANGUAGE) for kind in kinds], bool)
    out = []
    for name in (INDEX, APD_ID, APD_OOD):
        if not accuracy or name not in values:
            continue
        found = metric.compare_at_equal(
            values[accuracy], values[name], is_language, is_other, seed=seed, draws=draws
        )
        out.append(
            LanguageContrast(
                accuracy=accuracy,
                of=name,
                n_language=found.n_a,
                n_vision=found.n_b,
                difference=found.difference,
                p_value=found.p_value,
                p_rule=found.p_rule,
                ci95=found.ci95,
            )
        )
    return out


def _warn(
    numbers: Numbers,
    values: Mapping[str, np.ndarray],
    correlations: list[RankCorrelation],
    scaling: list[Scaling],
    pareto: Pareto | None,
    language: list[LanguageContrast],
) -> list[str]:
    n, texts = len(numbers.rows), []
    few = sum(found.n < MIN_MODELS for found in correlations)
    if few:
        texts.append(
            f"{few} of {len(correlations)} rank correlations are undefined: fewer than "
            f"{MIN_MODELS} models have both numbers ({n} models in all). With fewer, no order of "
            "models has a probability below 5 %. Evaluate more models."
        )
    if INDEX not in values:
        texts.append("no robustness index of any model: nothing is compared with it.")
    for name, words in SIZES:
        short = [found for found in scaling if found.x == name and found.n < MIN_MODELS]
        if short:
            texts.append(
                f"no scaling with {words}: fewer than {MIN_MODELS} models "
                f"({', '.join(found.which for found in short)}) have it stated in a source. Give "
                "facts of your own models."
            )
    if pareto is None:
        texts.append(
            f"no Pareto front: fewer than {MIN_MODELS} models have an accuracy and a robustness "
            "index."
        )
    elif not all(math.isfinite(point.front_share) for point in pareto.points):
        texts.append(
            "how often models are on the Pareto front is unknown: a number lacks its interval."
        )
    if not any(math.isfinite(found.difference) for found in language):
        texts.append(
            "vision-language models are not compared at equal accuracy: that needs two models of "
            f"either kind, {MIN_MODELS} together, with an accuracy."
        )
    if numbers.left_out:
        texts.append(
            f"robustified models and controls do not count here: "
            f"{', '.join(numbers.left_out[:5])}"
            f"{', …' if len(numbers.left_out) > 5 else ''}."
        )
    return texts
