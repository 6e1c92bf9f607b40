"""PathoROB's robustness index as entries of histoboard's data files.

The board (wearewaiv/histoboard) is a static page of JSON files in ``frontend/src/data``. Its
``PathoROB`` has one task per dataset. ``results.json`` gets an entry per model and task,
``rankings.json`` the mean rank per model, ``models.json`` what is known of the models.
"""

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from scipy import stats

from pathorob_jax.core import files, replacing
from pathorob_jax.core.checks import InputError
from pathorob_jax.models import facts, registry
from pathorob_jax.results.robustness_index import RobustnessIndexResult

BENCHMARK = "pathorob"
# Our dataset -> the board's task.
TASKS = {
    "tcga": "pathorob_tcga_2x2",
    "camelyon": "pathorob_camelyon",
    "tolkach_esca": "pathorob_tolkach_esca",
}
# Our model -> the board's, where it is one of the board's (rankings.json of 2026).
MODEL_IDS = {
    "atlas": "aignostics_atlas",
    "atlas_2": "aignostics_atlas_2",
    "ciga": "toronto_ciga",
    "conch": "mahmood_lab_conch",
    "conch_v1_5": "mahmood_lab_conch_1_5",
    "ctranspath": "sichuan_ctranspath",
    "gpfm": "hkust_gpfm",
    "h0_mini": "bioptimus_h0_mini",
    "h_optimus_0": "bioptimus_h_optimus_0",
    "h_optimus_1": "bioptimus_h_optimus_1",
    "hibou_b": "hist_ai_hibou_b",
    "hibou_l": "hist_ai_hibou_l",
    "hipt_vit256": "mahmood_lab_hipt",
    "kaiko_vitb16": "kaiko_ai_vit_b_16",
    "kaiko_vitb8": "kaiko_ai_vit_b_8",
    "kaiko_vitl14": "kaiko_ai_vit_l_14",
    "kaiko_vits16": "kaiko_ai_vit_s_16",
    "kaiko_vits8": "kaiko_ai_vit_s_8",
    "keep": "shanghai_university_and_others_keep",
    "lunit_vits16": "lunit_vit_s_16",
    "lunit_vits8": "lunit_vit_s_8",
    "midnight_12k": "kaiko_ai_midnight_12k",
    "mstar": "tsinghua_hkust_mstar",
    "musk": "stanford_university_musk",
    "omiclip": "houston_methodist_research_institute_omiclip",
    "openmidnight": "sophont_ai_openmidnight",
    "phikon": "owkin_phikon",
    "phikon_v2": "owkin_phikon_v2",
    "plip": "stanford_plip",
    "prov_gigapath": "microsoft_prov_gigapath",
    "quiltnet_b32": "university_of_washington_quiltnet",
    "resnet50_imagenet": "meta_ai_resnet50_imagenet",
    "retccl": "sichuan_retccl",
    "rudolfv": "aignostics_rudolfv",
    "uni": "mahmood_lab_uni",
    "uni2_h": "mahmood_lab_uni2",
    "virchow": "paige_ai_virchow",
    "virchow2": "paige_ai_virchow2",
}
_OPEN = ("apache", "mit", "bsd", "cc-by-4.0", "cc-by-sa", "cc0", "openrail")


def model_id(model: str) -> str:
    """The board's id of a model; one of its form for a model that it does not have."""
    return MODEL_IDS.get(model) or re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")


def list_files(
    records: Iterable[Any], *, date: datetime.date
) -> dict[str, list[dict[str, Any]] | dict[str, Any]]:
    """Values of the files by name, of those records that the board has a task for.

    Left out, with a line in the log, are records of other datasets and confounders, of another k
    than the published one, and undefined ones.

    Args:
        records: records of any metrics.
        date: when the results were taken.

    Raises:
        InputError: nothing is left, or two models would be one.
    """
    kept = [r for r in records if isinstance(r, RobustnessIndexResult) and not _why_not(r)]
    if not kept:
        raise InputError(
            f"results: no robustness index of {', '.join(TASKS)} at the published k, which is all "
            "that histoboard has of PathoROB; run experiments.evaluate on these datasets first."
        )
    ids = _ids_of({r.model for r in kept})
    ranks = _ranks(kept)
    results = [
        {
            "modelId": ids[r.model],
            "taskId": TASKS[r.dataset],
            "value": r.robustness_index,
            "rank": ranks[r.model, r.dataset],
            "source": BENCHMARK,
            "retrievedAt": date.isoformat(),
        }
        for r in kept
    ]
    return {
        "results.json": results,
        "rankings.json": {BENCHMARK: _rankings(kept, ids, ranks)},
        "models.json": [_describe(model, ids[model]) for model in sorted(ids)],
    }


def write_files(
    records: Iterable[Any], output: str, *, date: datetime.date, overwrite: bool = False
) -> list[str]:
    """Write the files to a folder; return their paths.

    Raises:
        InputError: as ``list_files``, or a file is there already.
        WriteError: the disk is full or fails.
    """
    found = list_files(records, date=date)
    paths = {files.join(output, name): value for name, value in found.items()}
    for path in paths:
        replacing.check_place(path, overwrite=overwrite)
    for path, value in paths.items():
        files.write_json(path, value)
    return list(paths)


def _why_not(record: RobustnessIndexResult) -> str:
    why = ""
    if record.dataset not in TASKS:
        why = "the board has no such dataset"
    elif record.k_rule != "published":
        why = f"k = {record.k} is not the published one"
    elif not np.isfinite(record.robustness_index):
        why = "it is undefined"
    if why:
        logging.warning("%s: left out of the board, %s", record.where, why)
    return why


def _ids_of(models: Iterable[str]) -> dict[str, str]:
    ids = {model: model_id(model) for model in sorted(models)}
    first: dict[str, str] = {}
    for model, own in ids.items():
        other = first.setdefault(own, model)
        if other != model:
            raise InputError(
                f"results: {other} and {model} would both be {own!r} on the board; export them "
                "apart, or rename one."
            )
    return ids


def _ranks(records: Sequence[RobustnessIndexResult]) -> dict[tuple[str, str], float]:
    """Ranks among the given models in each task, the highest first, equal ones shared."""
    ranks = {}
    for dataset in TASKS:
        of_task = [r for r in records if r.dataset == dataset]
        found = stats.rankdata([-r.robustness_index for r in of_task]) if of_task else []
        for record, rank in zip(of_task, found, strict=True):
            ranks[record.model, dataset] = _number(float(rank))
    return ranks


def _rankings(
    records: Sequence[RobustnessIndexResult],
    ids: Mapping[str, str],
    ranks: Mapping[tuple[str, str], float],
) -> dict[str, dict[str, float]]:
    out = {}
    for model, own in ids.items():
        values = [r.robustness_index for r in records if r.model == model]
        of_model = [rank for (name, _), rank in ranks.items() if name == model]
        out[own] = {
            "avgRank": round(float(np.mean(of_model)), 2),
            "taskCount": len(of_model),
            "avgScore": round(float(np.mean(values)), 4),
        }
    return out


def _number(value: float) -> float:
    return int(value) if value.is_integer() else value


def _describe(model: str, own: str) -> dict[str, Any]:
    """An entry of ``models.json``; "" where no source states what the board asks for."""
    known = facts.find_facts(model)
    spec = registry.MODELS.get(model)
    repo = spec.weights.repo if spec and spec.weights else None
    slides = known.value("slides")
    trained = [known.value("data"), f"{slides:,} slides" if slides else None]
    entry = {
        "id": own,
        "name": known.names[0] if known.names else model,
        "organization": repo.partition("/")[0] if repo else "",
        "architecture": spec.summary.partition(": ")[2].rstrip(".") if spec else "",
        "params": _show_count(known.value("params")),
        "pretrainingData": ", ".join(part for part in trained if part),
        "publicationDate": "",
    }
    licence = _licence_class(known.value("licence") or (spec.licence if spec else ""))
    if licence:
        entry["license"] = licence
    kind = known.value("kind")
    if kind:
        entry["modelType"] = kind if kind == "vision-language" else "vision"
    if repo:
        entry["weightsUrl"] = f"https://huggingface.co/{repo}"
    return entry


def _show_count(n: int | None) -> str:
    if n is None:
        return ""
    return f"{n / 1e9:.1f}B" if n >= 10**9 else f"{n / 1e6:.0f}M"


def _licence_class(licence: str) -> str:
    lower = licence.lower()
    if "-nc" in lower or "non-commercial" in lower or "noncommercial" in lower:
        return "non-commercial"
    return "open-source" if lower.startswith(_OPEN) else ""
