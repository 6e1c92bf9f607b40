"""A robustifier: a method fitted on named rows, which transforms any embeddings of the encoder.

``fit_robustifier`` fits one, ``Robustifier.transform`` applies it, and ``robustifier_files`` keeps
it on disk.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import checks
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.typing import ArrayLike, Float, Int
from pathorob_jax.data.manifest import CENTER, CLASS, SLIDE, Manifest, as_manifest
from pathorob_jax.robustify import combat, fit_table, methods
from pathorob_jax.robustify.fit_table import FitTable
from pathorob_jax.robustify.methods import DEFAULT_METHOD, PAIRED, FitOptions
from pathorob_jax.robustify.moments import Moments, measure_moments
from pathorob_jax.robustify.transform import CenterMaps, apply_maps

FIT_ON = ("all", "train", "cross_fit")
UNSEEN = ("refuse", "identity", "estimate")
COVARIATES = ("none", CLASS)
# What the scale of an unseen centre is estimated from, at least; with less only its location is.
MIN_ROWS_FOR_SCALE, MIN_SLIDES_FOR_SCALE = 200, 5


@dataclass(frozen=True, eq=False)
class Target:
    """What an unseen centre is aligned to.

    Attributes:
        mean: float64[D] mean of the fit's rows, or of the reference centre.
        sigma: float64[D] pooled standard deviation, 0 where a dimension is constant; None: the
            method leaves scales as they are.
        priors: mean over the fit's centres of each number of ``combat.Priors``.
    """

    mean: Float[np.ndarray, " D"]
    sigma: Float[np.ndarray, " D"] | None = None
    priors: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Robustifier:
    """A fitted method.

    Attributes:
        method: a name of ``methods.METHODS``.
        fit_on: ``all`` or ``train``: one fit on all rows given; ``cross_fit``: two fits, each on
            the slides of one half, for the rows of the other.
        covariates: ``none``, or the column of the class.
        reference: centre that stays as it is; "": none.
        rank: number of directions taken out; None: the method has no such number.
        centers: names of the centres that it knows.
        classes: names of the classes of the fit.
        maps: fitted maps; two with ``cross_fit``.
        half_of: half (0 or 1) of every slide of a cross fit.
        target: what unseen centres are aligned to; None: the method has no map of a centre, or
            cannot estimate one.
        table: rows of the fit by class and centre.
        rows_sha256: digest of the fit's rows and labels.
        source: name of the fit's rows.
    """

    method: str
    fit_on: str
    covariates: str
    reference: str
    rank: int | None
    centers: tuple[str, ...]
    classes: tuple[str, ...]
    maps: tuple[CenterMaps, ...]
    target: Target | None
    table: FitTable
    rows_sha256: str
    source: str
    half_of: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = sum(map(sum, self.table.rows))
        return (
            f"Robustifier({self.method}: fitted on {n} rows of {len(self.centers)} centres, "
            f"fit_on={self.fit_on})"
        )

    @property
    def used_labels(self) -> bool:
        """Whether the classes of the fit's rows entered the fit."""
        return methods.get_method(self.method).uses_classes or self.covariates != COVARIATES[0]

    @property
    def needs_class(self) -> bool:
        """Whether a row's class is needed to transform it."""
        return any(maps.needs_class for maps in self.maps)

    def transform(
        self,
        x: Float[ArrayLike, "N D"],
        center: Sequence[Any],
        *,
        slide: Sequence[Any] | None = None,
        biological_class: Sequence[Any] | None = None,
        unseen: str = "refuse",
        mesh: Mesh | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Transform embeddings.

        Args:
            x: float[N, D].
            center: N names of medical centres.
            slide: N names of slides; needed after a cross fit, and to estimate a scale.
            biological_class: N names; needed where ``needs_class``.
            unseen: what to do with rows of a centre that was not in the fit: ``refuse``;
                ``identity``, leave them; ``estimate``, align their mean (and scale, where the
                method changes scales and there are 200 rows of 5 slides) to the fit's, from these
                rows without their labels, so that a mix of classes of their own is taken for the
                centre.
            mesh: devices that share the rows; None: the first device.

        Returns:
            float32[N, D]. With ``identity`` as method the same values.

        Raises:
            InputError: a centre, class or slide is unknown or missing, or shapes differ.
        """
        checks.check_known(unseen, UNSEEN, what="unseen")
        rows = np.asarray(x, np.float32)
        checks.check_shape(rows.shape, (None, None), name="x", why="of embeddings")
        names = self._column(center, len(rows), "center")
        center_id = _look_up(names, self.centers)
        class_id = self._class_id(biological_class, len(rows))
        needs_center = any(maps.needs_center for maps in self.maps)
        strangers = sorted(set(names[center_id < 0].tolist()))
        if strangers and needs_center and unseen == "refuse":
            raise InputError(
                f"center: {strangers} were not in the fit, whose centres are "
                f"{list(self.centers)}; leave their rows out, or give unseen=identity or "
                "unseen=estimate."
            )
        half = self._halves(slide, len(rows), needed=needs_center or len(self.maps) > 1)
        out = rows
        if len(self.maps) == 1:
            out = apply_maps(self.maps[0], rows, center_id, class_id, mesh=mesh)
        else:
            out = np.empty_like(rows)
            for which, maps in enumerate(self.maps):
                mine = np.flatnonzero(half != which)  # rows of the half that it was not fitted on
                classes = None if class_id is None else class_id[mine]
                out[mine] = apply_maps(maps, rows[mine], center_id[mine], classes, mesh=mesh)
        if strangers and needs_center and unseen == "estimate":
            out = out.copy() if out is rows else out
            slides = None if slide is None else np.asarray(slide).astype(str)
            for name in strangers:
                mine = np.flatnonzero(names == name)
                n_slides = 0 if slides is None else len(set(slides[mine]))
                out[mine] = self._estimate(rows[mine], n_slides, mesh)
        return out

    def _estimate(self, x: np.ndarray, n_slides: int, mesh: Mesh | None) -> np.ndarray:
        """Rows of one unseen centre, aligned to the target."""
        if self.target is None:
            raise InputError(
                f"unseen: method {self.method} cannot estimate the map of an unseen centre; give "
                "unseen=refuse or unseen=identity, or another method."
            )
        zeros = np.zeros(len(x), np.int64)
        own = measure_moments(lambda rows: x[rows], zeros, zeros, n_classes=1, n_centers=1)
        target, mean = self.target, own.mean[0]
        enough = len(x) >= MIN_ROWS_FOR_SCALE and n_slides >= MIN_SLIDES_FOR_SCALE
        if target.sigma is None or not enough:
            return apply_maps(CenterMaps(shift=(target.mean - mean)[None]), x, zeros, mesh=mesh)
        varies = target.sigma > 0
        sigma = np.where(varies, target.sigma, 1.0)
        parts = combat.Standardised(
            base=target.mean[None],
            sigma=sigma,
            varies=varies,
            n=own.n[0],
            mean=(mean - target.mean) / sigma,
            variance=own.squares[0] / sigma**2 / (len(x) - 1),
        )
        priors = combat.Priors(*(np.array([p]) for p in target.priors))
        maps = combat.make_maps(parts, *combat.shrink(parts, priors))
        return apply_maps(maps, x, zeros, mesh=mesh)

    def _column(self, values: Sequence[Any], n: int, name: str) -> np.ndarray:
        column = np.asarray(values).astype(str)
        checks.check_shape(column.shape, (n,), name=name, why="to match x")
        return column

    def _class_id(self, values: Sequence[Any] | None, n: int) -> np.ndarray | None:
        if values is None or not self.needs_class:
            return None
        names = self._column(values, n, "biological_class")
        class_id = _look_up(names, self.classes)
        if (class_id < 0).any():
            unknown = sorted(set(names[class_id < 0].tolist()))
            raise InputError(
                f"biological_class: {unknown} were not in the fit, whose classes are "
                f"{list(self.classes)}; leave their rows out."
            )
        return class_id

    def _halves(self, values: Sequence[Any] | None, n: int, *, needed: bool) -> np.ndarray:
        if len(self.maps) == 1 or not needed:
            return np.zeros(n, np.int64)
        if values is None:
            raise InputError(
                "slide: a cross-fitted robustifier transforms the slides of one half by the fit on "
                "the other; give the slide of every row."
            )
        names = self._column(values, n, "slide")
        unknown = sorted(set(names.tolist()) - set(self.half_of))
        if unknown:
            raise InputError(
                f"slide: {unknown[:3]} and others ({len(unknown)} in all) were not in the cross "
                "fit; fit on all rows (fit_on=all) to transform other slides."
            )
        return np.array([self.half_of[name] for name in names])


def fit_robustifier(
    x: Float[ArrayLike, "N D"] | Callable[[np.ndarray], np.ndarray],
    rows: Any,
    *,
    method: str = DEFAULT_METHOD,
    fit_on: str = "all",
    covariates: str = "none",
    reference: str | None = None,
    rank: int | None = None,
    pairs: Sequence[Any] | None = None,
    seed: int = 0,
) -> Robustifier:
    """Fit a robustifier.

    Args:
        x: float[N, D] embeddings; or a function that returns those of row numbers int64[n].
        rows: table of N rows with slide, patch, class and centre.
        method: a name of ``methods.METHODS``.
        fit_on: ``all`` rows given (``train`` says the same of rows that were chosen for training);
            or ``cross_fit``: the slides of one half are transformed by the fit on the other.
        covariates: ``none``; or ``biological_class``, which enters the fit of methods that take it.
        reference: name of the centre that stays as it is; None: none.
        rank: number of directions, for methods that take out a number of them.
        pairs: N names of the tissue of each row, for ``paired_subspace``.
        seed: of the halves of a cross fit.

    Raises:
        UsageError: a name or option does not exist or fit the method.
        InputError: the rows do not allow the fit (the message holds the table of classes and
            centres), or embeddings are not finite.

    >>> import numpy as np, pathorob_jax as pr
    >>> rng = np.random.default_rng(0)
    >>> rows = {"slide_id": np.arange(80) // 4, "patch_id": np.arange(80)}
    >>> rows |= {"biological_class": ["tumor", "normal"] * 40}
    >>> rows |= {"medical_center": ["A"] * 40 + ["B"] * 40}
    >>> x = rng.normal(size=(80, 8)) + 3 * (np.arange(80) < 40)[:, None]
    >>> robustifier = pr.fit_robustifier(x, rows, method="center_means")
    >>> y = robustifier.transform(x, center=rows["medical_center"])
    >>> bool(np.allclose(y[:40].mean(0), y[40:].mean(0), atol=1e-6))
    True
    """
    manifest = rows if isinstance(rows, Manifest) else as_manifest(rows, source="rows")
    kind = methods.get_method(method)
    checks.check_known(fit_on, FIT_ON, what="fit_on")
    checks.check_known(covariates, COVARIATES, what="covariates")
    centers, classes = manifest.factorize(CENTER), manifest.factorize(CLASS)
    slides = manifest.factorize(SLIDE)
    if reference is not None:
        checks.check_known(reference, centers.names, what="reference")
    options = FitOptions(
        with_classes=covariates != COVARIATES[0],
        reference=None if reference is None else centers.names.index(reference),
        rank=rank,
    )
    methods.check_options(method, options)
    if (pairs is not None) != (method == PAIRED):
        raise UsageError(
            f"pairs: method {PAIRED} needs the tissue of every row, and no other method uses it; "
            f"found {'none' if pairs is None else 'it'} with {method}."
        )
    read = x if callable(x) else _reader(x, len(manifest))
    halves = np.zeros(len(manifest), np.int64)
    if fit_on == "cross_fit":
        halves = split_slides(slides.ids, centers.ids, classes.ids, seed=seed)
    tissue = None if pairs is None else np.unique(np.asarray(pairs), return_inverse=True)[1]
    fits, target = [], None
    for half in range(halves.max(initial=0) + 1):
        mine = np.flatnonzero(halves == half)
        source = manifest.source + (f" (half {half + 1} of its slides)" if halves.any() else "")
        part = manifest.take(mine)
        if kind.uses_centers:
            _check_part(part, centers.names, source)
        moments = measure_moments(
            functools.partial(_read_finite, read, mine, manifest.source),
            classes.ids[mine] if tissue is None else np.zeros(len(mine), np.int64),
            centers.ids[mine] if tissue is None else tissue[mine],
            n_classes=len(classes.names) if tissue is None else 1,
            n_centers=len(centers.names) if tissue is None else int(tissue.max()) + 1,
            scatter=kind.scatter,
        )
        try:
            fits.append(kind.fit(moments, options))
        except InputError as error:
            raise InputError(f"{source}: {method}: {error}\n{_tabulate(part)}") from error
        if target is None:
            target = _make_target(moments, method, options)
    return Robustifier(
        method=method,
        fit_on=fit_on,
        covariates=covariates,
        reference=reference or "",
        rank=(rank or methods.DEFAULT_RANK) if "rank" in kind.takes else None,
        centers=centers.names,
        classes=classes.names,
        maps=tuple(fits),
        half_of=dict(zip(slides.names, _first_of(halves, slides.ids).tolist(), strict=True))
        if len(fits) > 1
        else {},
        target=target,
        table=_tabulate(manifest),
        rows_sha256=manifest.fingerprint(),
        source=manifest.source,
    )


def split_slides(
    slide_id: Int[np.ndarray, " N"],
    center_id: Int[np.ndarray, " N"],
    class_id: Int[np.ndarray, " N"],
    *,
    seed: int,
) -> Int[np.ndarray, " N"]:
    """int64[N] half, 0 or 1, of each row: whole slides, balanced over class and centre.

    A slide of several classes is dealt by the class of its first row.
    """
    _, first, position = np.unique(slide_id, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    cell = center_id[first] * (int(class_id.max()) + 1) + class_id[first]
    order = order[np.argsort(cell[order], kind="stable")]
    # Dealt in turn through all cells, so that odd cells do not all give to one half.
    half = np.empty(len(first), np.int64)
    half[order] = np.arange(len(order)) % 2
    return half[position]


def _first_of(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return values[np.unique(ids, return_index=True)[1]]


def _tabulate(rows: Manifest) -> FitTable:
    classes, centers, slides = (rows.factorize(name) for name in (CLASS, CENTER, SLIDE))
    return fit_table.make_fit_table(
        classes.ids, centers.ids, slides.ids, classes=classes.names, centers=centers.names
    )


def _check_part(rows: Manifest, centers: Sequence[str], source: str) -> None:
    """Refuse rows that lack a centre or do not allow a fit."""
    table = _tabulate(rows)
    absent = sorted(set(centers) - set(table.centers))
    if absent:
        raise InputError(
            f"{source}: expected rows of every centre, found none of {absent}; a cross fit needs "
            f"four slides or more of each.\n{table}"
        )
    slide, center = rows.factorize(SLIDE), rows.factorize(CENTER)
    pairs = np.unique(np.stack([center.ids, slide.ids]), axis=1)
    counts = np.bincount(pairs[0], minlength=len(center.names)).tolist()
    fit_table.check_fit_table(table, counts, source=source)


def _make_target(moments: Moments, method: str, options: FitOptions) -> Target | None:
    kind = methods.get_method(method)
    if not kind.uses_centers or kind.scatter != "none" or method == "mean_projection":
        return None
    centers = moments.of_centers().mean[0]
    mean = moments.overall_mean if options.reference is None else centers[options.reference]
    if method not in ("combat", "combat_nonparametric") or options.with_classes:
        return Target(mean)
    parts = combat.standardise(moments, reference=options.reference)
    priors = combat.estimate_priors(parts)
    sigma = np.where(parts.varies, parts.sigma, 0.0)
    return Target(mean, sigma, tuple(float(p.mean()) for p in priors))


def _reader(x: ArrayLike, n: int) -> Callable[[np.ndarray], np.ndarray]:
    array = np.asarray(x)
    checks.check_shape(array.shape, (n, None), name="x", why="to match rows")
    return lambda rows: np.asarray(array[rows], np.float32)


def _read_finite(
    read: Callable[[np.ndarray], np.ndarray], part: np.ndarray, source: str, rows: np.ndarray
) -> np.ndarray:
    """Embeddings of rows of a part."""
    x = read(part[rows])
    bad, word = checks.find_bad_rows(x, need_direction=False)
    if bad.size:
        raise InputError(
            f"{source}: {bad.size} embeddings hold {word}; leave their rows out of the fit."
        )
    return x


def _look_up(names: np.ndarray, known: Sequence[str]) -> Int[np.ndarray, " N"]:
    """int64[N] position of each name among the known ones; -1 where it is none of them."""
    places = {name: i for i, name in enumerate(known)}
    unique, position = np.unique(names, return_inverse=True)
    return np.array([places.get(str(name), -1) for name in unique], np.int64)[position]
