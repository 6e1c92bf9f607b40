"""The performance drop of a robustified store: its robustifier is fitted again in every split.

A robustifier that was fitted on all rows has seen the rows that a classifier is then tested on. For
the drop it is therefore fitted on the training rows of each split alone, from the embeddings of the
store's parent, and heads are trained and tested on what it makes of them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pathorob_jax.core import devices
from pathorob_jax.core.checks import InputError
from pathorob_jax.data.manifest import CENTER, SLIDE, Manifest, locate
from pathorob_jax.data.training_splits import Repetition
from pathorob_jax.embeddings.store import Store
from pathorob_jax.embeddings.tile_transform import STAIN
from pathorob_jax.evaluation.apd_tasks import (
    Done,
    check_counts,
    count_calls,
    fingerprint_tasks,
    run_repetitions,
)
from pathorob_jax.evaluation.schedule_plan import Domain, Plan
from pathorob_jax.metrics.heads import result_names
from pathorob_jax.robustify import methods
from pathorob_jax.robustify.parent import open_parent
from pathorob_jax.robustify.robustifier import fit_robustifier
from pathorob_jax.robustify.run import PARENT, digest_store

UNCHANGED = "identity"
REFUSED, HEADS = "refused", "heads"


class Step(NamedTuple):
    """How one robustifier of a store was fitted and applied.

    Attributes:
        method: a name of ``methods.METHODS``.
        covariates: ``none``, or the column of the class.
        reference: centre that stays as it is; None: none.
        rank: number of directions taken out; None: the method has no such number.
        unseen: what becomes of centres outside the fit, ``identity`` or ``estimate``.
    """

    method: str
    covariates: str
    reference: str | None
    rank: int | None
    unseen: str


class OwnRows(NamedTuple):
    """The parent's rows of a domain, with the labels that its robustifiers are fitted by.

    Attributes:
        manifest: the rows.
        centers: N names of medical centres.
        slides: N names of slides.
    """

    manifest: Manifest
    centers: list[str]
    slides: list[str]


@dataclass(frozen=True, eq=False)
class Refit:
    """What is fitted again in every split.

    Attributes:
        parent: store of the embeddings that the fits start from.
        steps: robustifiers that made the evaluated store from them, in order.
        warnings: what is not fitted again.
    """

    parent: Store
    steps: tuple[Step, ...]
    warnings: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether a fit changes embeddings."""
        return any(step.method != UNCHANGED for step in self.steps)

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on beside the plan, as plain values."""
        return {
            "parent_sha256": digest_store(self.parent),
            "steps": [step._asdict() for step in self.steps],
        }


def find_refit(store: Store) -> Refit:
    """The robustifiers of a store that are fitted again, and the embeddings that they start from.

    Raises:
        InputError: a parent is missing, or another store than the one that was robustified.
    """
    steps: list[Step] = []
    warnings: list[str] = []
    while PARENT in store.info.get("settings", {}):
        method = str(store.info["settings"]["method"])
        # The rows of a split do not show the same tissue twice.
        if method == methods.PAIRED:
            warnings.append(_warn_of_one_fit(method))
            break
        steps.insert(0, _read_step(store, method))
        store = open_parent(store, what="apd")
    if STAIN in store.info.get("settings", {}):
        warnings.append(_warn_of_one_fit(store.info["settings"][STAIN]["method"]))
    return Refit(store, tuple(steps), tuple(warnings))


def _warn_of_one_fit(method: str) -> str:
    return (
        f"apd: {method} was fitted once, on the rows that were named for it, and is not fitted "
        "again in the splits; where these rows are test rows too, it saw them."
    )


def _read_step(store: Store, method: str) -> Step:
    chosen = store.info["settings"]
    unseen = store.info["identity"]["source"]["unseen"]
    return Step(
        method=method,
        covariates=chosen["covariates"],
        reference=chosen["reference"] or None,
        rank=chosen["rank"],
        unseen=unseen if unseen == "estimate" else "identity",
    )


def run_refitted(
    drawn: Sequence[Repetition],
    plan: Plan,
    refit: Refit,
    *,
    relabelled: Collection[str],
    folder: str | None,
    mesh: Mesh,
) -> Done:
    """Counts of every repetition, with the robustifiers fitted on the training rows of each split.

    Args:
        drawn: the repetitions.
        plan: rows, schedule and settings; its embeddings are not read.
        refit: what is fitted.
        relabelled: columns with another meaning in the plan's rows.
        folder: where results are kept; None: nowhere.
        mesh: devices; each repetition runs on one.
    """
    own: list[OwnRows] = []
    domains: list[Domain] = []
    for domain in (plan.in_domain, plan.out_of_domain):
        if domain is not None:
            x = refit.parent.read_patches(domain.rows, relabelled=relabelled, need_direction=False)
            places = locate(domain.rows, refit.parent.manifest, relabelled=relabelled)
            mine = refit.parent.manifest.take(places)
            own.append(OwnRows(mine, mine.column(CENTER).tolist(), mine.column(SLIDE).tolist()))
            domains.append(replace(domain, x=x))
    before = replace(
        plan, in_domain=domains[0], out_of_domain=domains[1] if len(domains) > 1 else None
    )
    facts = refit.facts() | {"labels": [rows.manifest.fingerprint() for rows in own]}
    fingerprint = fingerprint_tasks(before, mesh, refit=facts)
    done = run_repetitions(
        drawn,
        before,
        fingerprint,
        folder=folder,
        mesh=mesh,
        compute=lambda task: _compute(task, before, own, refit.steps),
        check=lambda result: _check(result, before),
    )
    return Done(
        counts=[result[HEADS] for result in done],
        refused=[result[REFUSED] for result in done],
        n_splits=plan.schedule.n_splits,
        fingerprint=fingerprint,
    )


def _compute(
    task: Repetition, plan: Plan, own: Sequence[OwnRows], steps: Sequence[Step]
) -> dict[str, Any]:
    """Counts of the splits that have a fit, and why the others have none, as plain JSON."""
    keys = ("chosen", "validation", "converged", "id", "ood")
    no_ood = plan.out_of_domain is None
    counts: dict[str, dict[str, Any]] = {
        name: {key: None if key == "ood" and no_ood else [] for key in keys}
        for name in result_names(plan.settings.heads)
    }
    refused = {}
    for split in range(plan.schedule.n_splits):
        training = task.training(split)
        try:
            fitted = _refit(plan, own, steps, training)
        except InputError as error:
            reason = str(error).splitlines()[0]
            for prefix in (own[0].manifest.source, *(step.method for step in steps)):
                reason = reason.removeprefix(f"{prefix}: ")
            refused[str(split)] = reason.rstrip(".")
            continue
        for name, found in count_calls(task, fitted, range(split, split + 1)).items():
            for key in keys:
                if found[key] is not None:
                    counts[name][key] += found[key]
    return {REFUSED: refused, HEADS: counts}


def _refit(plan: Plan, own: Sequence[OwnRows], steps: Sequence[Step], training: np.ndarray) -> Plan:
    """The plan with embeddings transformed by robustifiers that are fitted on training rows."""
    x = [d.x for d in (plan.in_domain, plan.out_of_domain) if d is not None]
    # The device of this task, and no other.
    mesh = devices.make_mesh(list(jnp.zeros(()).devices()))
    for step in steps:
        robustifier = fit_robustifier(
            x[0][training],
            own[0].manifest.take(training),
            method=step.method,
            fit_on="train",
            covariates=step.covariates,
            reference=step.reference,
            rank=step.rank,
        )
        if robustifier.needs_class:
            raise InputError(
                f"fitted with covariates={step.covariates}, it changes rows by their class, which "
                "a test row must not tell"
            )
        x = [
            robustifier.transform(
                values,
                rows.centers,
                slide=rows.slides,
                unseen=step.unseen,
                mesh=mesh,
            )
            for values, rows in zip(x, own, strict=True)
        ]
    outside = plan.out_of_domain and replace(plan.out_of_domain, x=x[1])
    return replace(plan, in_domain=replace(plan.in_domain, x=x[0]), out_of_domain=outside)


def _check(result: Any, plan: Plan) -> None:
    """Raise ValueError unless the result of a task has the form that ``_compute`` gives it."""
    splits = {str(split) for split in range(plan.schedule.n_splits)}
    refused = result[REFUSED]
    if not set(refused) <= splits or not all(isinstance(why, str) for why in refused.values()):
        raise ValueError(REFUSED)
    check_counts(result[HEADS], plan, len(splits) - len(refused))


def warn_of_refused(refused: Sequence[Mapping[str, str]], cramers_v: Sequence[float]) -> list[str]:
    """One warning for each split that has no fit in some repetitions."""
    texts = []
    for split, v in enumerate(cramers_v):
        reasons = [reasons[str(split)] for reasons in refused if str(split) in reasons]
        if reasons:
            why = "; ".join(dict.fromkeys(reasons))
            texts.append(
                f"apd: at V = {v:.2f} the robustifier cannot be fitted on the training rows in "
                f"{len(reasons)} of {len(refused)} repetitions ({why}). The split is null there, "
                "and the drop is the mean over the splits that are left."
            )
    return texts
