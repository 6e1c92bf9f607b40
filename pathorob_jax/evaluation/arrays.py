"""Metrics as plain functions of arrays of embeddings and labels.

Each function returns the record that the command-line scripts write. ``.value``, ``.ci95`` and
``.support`` are its headline number, the 95 % interval, and the share of samples (or other units)
on which it is based; ``print`` shows it in a few lines.
"""

from typing import Any

import numpy as np

from pathorob_jax.core.checks import InputError
from pathorob_jax.core.typing import ArrayLike, Float
from pathorob_jax.data.association_schedule import AssociationSchedule
from pathorob_jax.data.manifest import CENTER, CLASS, PATCH, SLIDE
from pathorob_jax.evaluation.in_memory import evaluate_embeddings
from pathorob_jax.evaluation.settings import (
    ApdSettings,
    ClusteringSettings,
    DesignChoice,
    RetrievalSettings,
    Settings,
    SlideSettings,
)
from pathorob_jax.kernels.logistic.fit import Stopping
from pathorob_jax.metrics.clustering_score import Metric
from pathorob_jax.results.apd import ApdResult
from pathorob_jax.results.clustering_score import ClusteringResult
from pathorob_jax.results.feature_space import FeatureSpaceResult
from pathorob_jax.results.margins import MarginsResult
from pathorob_jax.results.retrieval import RetrievalResult
from pathorob_jax.results.robustness_index import RobustnessIndexResult
from pathorob_jax.results.slide_prediction import SlidePredictionResult

NAMES = ("embeddings", "arrays")


def robustness_index(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    k: int | str = "auto",
    design: DesignChoice = "auto",
    seed: int = 0,
    draws: int = 2000,
) -> RobustnessIndexResult:
    """Robustness index: SO / (SO + OS) among the k nearest neighbours of other slides.

    RI_k = SO_k / (SO_k + OS_k), pooled over samples   (arXiv:2507.17845)

    Args:
        x: float[N, D] embeddings, finite, no row all zero; neighbours are by cosine distance.
        biology: N biological classes, of any type that converts to a name.
        center: N medical centres (or another confounder).
        slide: N slides; rows of one slide are never neighbours. None: each row is a slide.
        k: number of neighbours; ``auto``: first maximum of the balanced accuracy over the k grid.
        design: ``all``, or ``paired``: within each pair of classes and centres.
        seed: seed of the draws of slides and of permutations.
        draws: number of draws, 200 or more; 0: no intervals.

    Returns:
        The record; ``.value`` in [0, 1], NaN if no neighbour is SO or OS.

    Raises:
        InputError: lengths differ; there are fewer than two classes, centres or slides; or a row
            of the embeddings is all zero or not finite.
        UsageError: k is not below the number of rows.

    Differs from croma's ``RI``: rows of the same slide are excluded before the k nearest are taken,
    so that every row has k neighbours; the interval is over slides.

    >>> import numpy as np, pathorob_jax as pr
    >>> rng = np.random.default_rng(0)
    >>> bio, center = np.arange(80) % 2, np.arange(80) // 40
    >>> x = rng.normal(size=(80, 8)) + 4 * np.eye(8)[bio]
    >>> index = pr.robustness_index(x, biology=bio, center=center, slide=np.arange(80) // 5, k=7)
    >>> index.value > 0.9, index.support > 0.9
    (True, True)
    """
    settings = Settings(k=k, design=design, seed=seed, draws=draws)
    record: RobustnessIndexResult = _evaluate(
        RobustnessIndexResult.metric, x, biology, center, slide, settings
    )
    return record


def margins(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    k: int | str = "auto",
    design: DesignChoice = "auto",
    seed: int = 0,
    draws: int = 2000,
) -> MarginsResult:
    """MaRI and CRoMa: how much nearer biology is than the centre (arXiv:2607.25497).

    Args:
        x: float[N, D] embeddings, finite, no row all zero.
        biology: N biological classes.
        center: N medical centres.
        slide: N slides; rows of one slide are never neighbours. None: each row is a slide.
        k: number of neighbours of MaRI; ``auto`` as in ``robustness_index``.
        design: ``all`` or ``paired``.
        seed: seed of the draws of slides.
        draws: number of draws, 200 or more; 0: no intervals.

    Returns:
        The record; ``.value`` is CRoMa in [-1, 1], ``.mari`` in [0, 1].

    Raises:
        InputError: see ``robustness_index``.

    >>> import numpy as np, pathorob_jax as pr
    >>> rng = np.random.default_rng(0)
    >>> bio, center = np.arange(80) % 2, np.arange(80) // 40
    >>> x = rng.normal(size=(80, 8)) + 4 * np.eye(8)[bio]
    >>> found = pr.margins(x, biology=bio, center=center, slide=np.arange(80) // 5, k=7)
    >>> found.value > 0, found.mari > 0.9
    (True, True)
    """
    settings = Settings(k=k, design=design, seed=seed, draws=draws)
    record: MarginsResult = _evaluate(MarginsResult.metric, x, biology, center, slide, settings)
    return record


def performance_drop(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    repetitions: int | None = None,
    seed: int | None = None,
    stopping: Stopping = "reference",
    heads: tuple[str, ...] = (),
    schedule: AssociationSchedule | None = None,
) -> ApdResult:
    """Average performance drop of a classifier when training data associate class and centre.

    APD = mean over repetitions of [mean over later splits of accuracy / that of the first] - 1
    (arXiv:2507.17845)

    Args:
        x: float[N, D] embeddings, finite.
        biology: N biological classes.
        center: N medical centres; those outside the schedule are out of domain.
        slide: N slides; training and test rows never share one. None: each row is a slide.
        repetitions: how often the splits are drawn; None: 20.
        seed: seed of the draws; None: the protocol's.
        stopping: stopping rule of the linear probe, ``reference`` or ``converged``.
        heads: other classifiers on the same splits: ``knn``, ``mlp``, ``dann``.
        schedule: training splits; None: made from the rows, see ``schedule_from_manifest``.

    Returns:
        The record; ``.value`` is the drop in domain (``apd_id``), negative for a loss.

    Raises:
        InputError: no schedule can be drawn from the rows, or all embeddings are equal.

    >>> import numpy as np, pathorob_jax as pr
    >>> bio, center, slide, _ = (a.ravel() for a in np.indices((2, 2, 6, 5)))
    >>> x = np.random.default_rng(0).normal(size=(len(bio), 8)) + 2 * np.eye(8)[bio]
    >>> slide = slide + 6 * (center + 2 * bio)
    >>> drop = pr.performance_drop(x, biology=bio, center=center, slide=slide, repetitions=2)
    >>> -1 <= drop.value <= 1, drop.repetitions
    (True, 2)
    """
    settings = Settings(
        apd=ApdSettings(
            repetitions=repetitions, seed=seed, stopping=stopping, heads=heads, schedule=schedule
        )
    )
    record: ApdResult = _evaluate(ApdResult.metric, x, biology, center, slide, settings)
    return record


def clustering_score(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    trials: int | None = None,
    k_min: int | None = None,
    k_max: int | None = None,
    metric: Metric = "cosine",
    seed: int = 0,
    draws: int = 2000,
) -> ClusteringResult:
    """Clustering score: ARI of k-means clusters with the class, minus their ARI with the centre.

    Mean over trials, then over combinations of two classes and two centres   (arXiv:2507.17845)

    Args:
        x: float[N, D] embeddings, finite, no row all zero.
        biology: N biological classes.
        center: N medical centres.
        slide: N slides, which intervals leave out. None: each row is a slide.
        trials: fits with the chosen number of clusters; None: 50.
        k_min: smallest number of clusters tried; None: 2.
        k_max: largest number of clusters tried; None: 30.
        metric: distance, ``cosine``, ``euclidean`` or ``spherical``.
        seed: seed of the draws of slides.
        draws: number of draws, 200 or more; 0: no intervals.

    Returns:
        The record; ``.value`` in [-1, 1], positive where clusters follow biology.

    Raises:
        InputError: no two classes and two centres have rows in all four cells, or the
            embeddings cannot be clustered.

    >>> import numpy as np, pathorob_jax as pr
    >>> bio, center = np.arange(80) % 2, np.arange(80) // 40
    >>> x = np.random.default_rng(0).normal(size=(80, 8)) + 6 * np.eye(8)[bio]
    >>> slide = np.arange(80) // 5
    >>> score = pr.clustering_score(
    ...     x, biology=bio, center=center, slide=slide, trials=2, k_max=3, draws=200
    ... )
    >>> score.value > 0.9
    True
    """
    settings = Settings(
        seed=seed,
        draws=draws,
        clustering_score=ClusteringSettings(trials=trials, k_min=k_min, k_max=k_max, metric=metric),
    )
    record: ClusteringResult = _evaluate(
        ClusteringResult.metric, x, biology, center, slide, settings
    )
    return record


def feature_space(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    design: DesignChoice = "auto",
    seed: int = 0,
    draws: int = 2000,
) -> FeatureSpaceResult:
    """Share of the variance that lies between classes and between centres, by component.

    eta^2 = variance of the means of the classes / variance of the component, on rows cut to equal
    cells of class and centre, centred and not scaled.

    Args:
        x: float[N, D] embeddings, finite, no row all zero.
        biology: N biological classes.
        center: N medical centres.
        slide: N slides, which intervals leave out. None: each row is a slide.
        design: ``all`` or ``paired``.
        seed: seed of the draws of slides.
        draws: number of draws, 200 or more; 0: no intervals.

    Returns:
        The record; ``.value`` is class / (class + centre) of the variance, in [0, 1];
        ``.eta2_class``, ``.eta2_center`` and ``.variance_share`` are by component, None where a
        class has no row at a centre.

    Raises:
        InputError: lengths differ, there are fewer than two classes or centres, or a row of the
            embeddings is all zero or not finite.

    >>> import numpy as np, pathorob_jax as pr
    >>> bio, center = np.arange(80) % 2, np.arange(80) // 40
    >>> x = np.random.default_rng(0).normal(size=(80, 8)) + 4 * np.eye(8)[bio]
    >>> space = pr.feature_space(x, biology=bio, center=center, slide=np.arange(80) // 5)
    >>> space.value > 0.9, space.eta2_class[0] > 0.8, len(space.variance_share)
    (True, True, 8)
    """
    settings = Settings(design=design, seed=seed, draws=draws)
    record: FeatureSpaceResult = _evaluate(
        FeatureSpaceResult.metric, x, biology, center, slide, settings
    )
    return record


def retrieval(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    optimistic_vote: bool = False,
    repetitions: int | None = None,
    schedule: AssociationSchedule | None = None,
    seed: int = 0,
    draws: int = 2000,
) -> RetrievalResult:
    """Case retrieval: do the nearest cases of other slides have the query's class?

    Among patches, mean-pooled slides, and slides as sets of patches, for k = 1, 3, 5 and 10; and in
    databases in which class and centre are more and more associated.

    Args:
        x: float[N, D] embeddings, finite, no row all zero.
        biology: N biological classes.
        center: N medical centres.
        slide: N slides; rows of one slide never find each other. None: each row is a slide.
        optimistic_vote: also votes that are right if the class is among the most frequent ones.
        repetitions: how often the databases are drawn; None: 20.
        schedule: slides of the databases; None: made from the rows, see ``schedule_from_manifest``.
        seed: seed of the draws of slides for intervals.
        draws: number of draws, 200 or more; 0: no intervals.

    Returns:
        The record; ``.value`` in [0, 1] is the share of patches whose nearest neighbour has their
        class, mean over classes.

    Raises:
        InputError: see ``robustness_index``.

    >>> import numpy as np, pathorob_jax as pr
    >>> bio, center, slide, _ = (a.ravel() for a in np.indices((2, 2, 6, 5)))
    >>> x = np.random.default_rng(0).normal(size=(len(bio), 8)) + 6 * np.eye(8)[bio]
    >>> slide = slide + 6 * (center + 2 * bio)
    >>> found = pr.retrieval(x, biology=bio, center=center, slide=slide, repetitions=2)
    >>> found.value > 0.9, found.slide.vote_accuracy
    (True, [1.0, 1.0, 1.0, 1.0])
    """
    settings = Settings(
        seed=seed,
        draws=draws,
        apd=ApdSettings(repetitions=repetitions, schedule=schedule),
        retrieval=RetrievalSettings(optimistic_vote),
    )
    record: RetrievalResult = _evaluate(RetrievalResult.metric, x, biology, center, slide, settings)
    return record


def _as_names(labels: Any, word: str) -> list[str | None]:
    """Labels as names; a number follows a word, so that class 0 and centre 0 differ.

    None, NaN and the missing values of pandas are None.
    """
    return [
        value
        if isinstance(value, str)
        else None
        if value is None or str(value) in ("nan", "<NA>", "NaT")
        else f"{word} {value}"
        for value in np.asarray(labels).reshape(-1).tolist()
    ]


def slide_prediction(
    x: Float[ArrayLike, "N D"],
    *,
    biology: Any,
    center: Any,
    slide: Any,
    presets: tuple[str, ...] = SlideSettings.presets,
    epochs: int | None = None,
    seeds: int = 1,
    repetitions: int | None = None,
    seed: int | None = None,
    schedule: AssociationSchedule | None = None,
) -> SlidePredictionResult:
    """Slides told apart by their bags, when training slides associate class and centre.

    Args:
        x: float[N, D] embeddings, finite.
        biology: N biological classes.
        center: N medical centres; those outside the schedule are out of domain.
        slide: N slides; the rows of a class on a slide are one bag.
        presets: classifiers of bags, ``mean``, ``gated``, ``xmil``.
        epochs: epochs of the networks; None: each preset's own.
        seeds: networks of different starts for each split.
        repetitions: how often the splits are drawn; None: 20.
        seed: seed of the draws; None: the protocol's.
        schedule: training splits; None: made from the slides, see ``schedule_from_manifest``.

    Returns:
        The record; ``.value`` is the drop of balanced accuracy in domain (``drop_id``) of
        ``gated``, or of the first preset; NaN where no schedule can be made.

    Raises:
        UsageError: a preset is unknown.
        InputError: all embeddings are equal.

    >>> import numpy as np, pathorob_jax as pr
    >>> bio, center, slide, _ = (a.ravel() for a in np.indices((2, 2, 6, 5)))
    >>> x = np.random.default_rng(0).normal(size=(len(bio), 8)) + 2 * np.eye(8)[bio]
    >>> slide = slide + 6 * (center + 2 * bio)
    >>> found = pr.slide_prediction(
    ...     x, biology=bio, center=center, slide=slide, presets=("mean",), repetitions=2
    ... )
    >>> 0 <= found.presets["mean"].auc_id[0][0] <= 1, found.n_bags
    (True, 24)
    """
    settings = Settings(
        apd=ApdSettings(repetitions=repetitions, seed=seed, schedule=schedule),
        slide_prediction=SlideSettings(presets=tuple(presets), epochs=epochs, seeds=seeds),
    )
    record: SlidePredictionResult = _evaluate(
        SlidePredictionResult.metric, x, biology, center, slide, settings
    )
    return record


def _evaluate(
    metric: str, x: Any, biology: Any, center: Any, slide: Any, settings: Settings
) -> Any:
    n = len(np.asarray(x))
    labels = {
        CLASS: _as_names(biology, "class"),
        CENTER: _as_names(center, "centre"),
        SLIDE: _as_names(np.arange(n) if slide is None else slide, "slide"),
    }
    for name, values in labels.items():
        if len(values) != n:
            raise InputError(f"{name}: expected {n} labels, one for each row, found {len(values)}.")
    model, dataset = NAMES
    return evaluate_embeddings(
        x,
        {**labels, PATCH: [str(i) for i in range(n)]},
        metrics=[metric],
        model=model,
        dataset=dataset,
        settings=settings,
    )[metric]
