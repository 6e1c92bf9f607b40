"""Convert a checkpoint to weights on disk: the library behind ``convert`` and ``verify``.

``convert`` writes an Orbax checkpoint and model.json, or raises one error and writes nothing. Each
tensor is read, transformed and written into its place in the target before the next is read. The
same files give the same bytes.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import traverse_util

from pathorob_jax.core import aligned, checks, digests, provenance
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.core.progress import Progress
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import ModelSpec, read_specs

from . import (
    adapters,
    checkpoints,
    hub,
    rules,
    schemes_other,
    schemes_vit,
    tensor_sets,
    weight_choice,
)
from .names import check_names
from .resampling import RESAMPLERS
from .transforms import FILLS, TRANSFORMS, Slot

SCHEMES = {scheme.name: scheme for scheme in schemes_vit.SCHEMES + schemes_other.SCHEMES}
_LIKE_A_REPO = re.compile(r"^[\w.-]+/[\w.-]+(@[\w.-]+)?$")


def convert(
    spec: ModelSpec,
    checkpoint: str | None,
    *,
    output: str,
    dtype: str = "float32",
    weights_key: str | None = None,
    prefix: str | None = None,
    adapter: str | None = None,
    overwrite: bool = False,
) -> str:
    """Convert the checkpoint of an encoder.

    Args:
        spec: the encoder.
        checkpoint: file or folder, or ``hf://owner/name`` on the hub; None: the repo of the spec.
        output: folder of all weights; those of the encoder are in ``<output>/<name>/``.
        dtype: type of the parameters on disk, ``float32`` or ``bfloat16``.
        weights_key: which set of weights to take where a file holds several.
        prefix: prefix of all names in the file; None: found if it is of a known kind.
        adapter: a LoRA of PEFT that is merged into the weights: its folder or file, or
            ``hf://owner/name``; None: none but that in the file itself.
        overwrite: replace existing weights.

    Returns:
        The folder written, or the one that holds the same conversion already.

    Raises:
        InputError: the checkpoint cannot be read, or does not fit the network; the message lists
            everything that does not fit. Or the folder holds another conversion, or cannot be
            written.
    """
    checks.check_known(dtype, tensor_sets.DTYPES, what="dtype")
    source = find_checkpoint(spec, checkpoint)
    _, abstract = registry.network_of(registry.runnable(spec))
    plan = plan_conversion(spec, source, abstract, weights_key=weights_key, prefix=prefix)
    source = merge_adapter(spec, source, plan, adapter)
    info = _describe(spec, source, plan, abstract, dtype=dtype)
    if weights.is_there(output, spec.name) and not overwrite:
        found = weights.open_converted(output, spec.name)
        if not _is_same(found.info, info):
            raise InputError(
                f"{found.path}: exists, and is of another checkpoint or was made otherwise; give "
                "--overwrite to replace it."
            )
        weights.check_parameters(found, abstract)
        logging.info("%s: complete already", found.path)
        return found.path
    n_bytes = weights.count_params(abstract) * jax.numpy.dtype(dtype).itemsize
    weights.check_room(output, n_bytes)
    leaves = fill(plan, source, weights.flatten(abstract), spec, dtype=dtype)
    params = unflatten(leaves, abstract)
    path = weights.save(output, spec.name, params, info)
    logging.info("%s: converted", path)
    return path


def _describe(
    spec: ModelSpec,
    source: checkpoints.Checkpoint,
    plan: rules.Plan,
    abstract: Mapping[str, Any],
    *,
    dtype: str,
) -> dict[str, Any]:
    """The contents of model.json; nothing in it depends on where the files lie."""
    tensors, files = source.sets[plan.weights_key], source.digests()
    more = {} if source.adapter is None else {"adapter": dict(source.adapter)}
    return {
        "model": spec.name,
        "network": as_plain(spec.network),
        "preprocess": as_plain(spec.preprocess) if spec.preprocess else None,
        "licence": spec.licence,
        "dtype": dtype,
        "source": {
            "checkpoint": source.label,
            "files": files,
            "sha256": digests.digest(*(bytes.fromhex(x["sha256"]) for x in files)),
        },
        "conversion": {
            "scheme": plan.scheme,
            "weights_key": plan.weights_key,
            "prefix": plan.prefix,
            "removed_parts": list(tensors.removed),
            "passed_over": list(plan.passed_over),
            "n_tensors": len(tensors.shapes),
            "n_params": weights.count_params(abstract),
            "dropped": plan.dropped,
            "constants": sorted({cell.path for cell, _ in plan.constants}),
            **more,
        },
        "software": provenance.software_versions(),
    }


def _is_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether two conversions give the same weights: of the same bytes, and taken alike."""
    names = ("network", "dtype", "conversion")
    return all(found.get(name) == wanted[name] for name in names) and (
        found.get("source", {}).get("sha256") == wanted["source"]["sha256"]
    )


def find_checkpoint(spec: ModelSpec, checkpoint: str | None) -> checkpoints.Checkpoint:
    """Find and open the checkpoint of an encoder. Only ``hf://`` and None can use the network.

    Raises:
        InputError, FileNotFoundError: there is no checkpoint, or it cannot be read.
    """
    where = spec.weights
    if where is None:
        raise UsageError(f"model: {spec.name} has no weights to convert.")
    if checkpoint is None and where.repo is None:
        files = ", ".join(where.files)
        what = f" ({files}{f' from {where.url}' if where.url else ''})" if files else ""
        raise UsageError(
            f"checkpoint: {spec.name} names no repo of the hub; give --checkpoint=<file>{what}."
        )
    if checkpoint is None or checkpoint.startswith(hub.SCHEME):
        at = hub.Place(str(where.repo)) if checkpoint is None else hub.parse(checkpoint)
        names = (at.file,) if at.file else (*where.files, *hub.COMMON_FILES)
        revision = at.revision or where.revision
        path = hub.find_file(at.repo, names, revision=revision)
        label = str(at._replace(revision=revision))
        return adapters.unwrap(checkpoints.open_checkpoint(path, label=label))
    return adapters.unwrap(checkpoints.open_checkpoint(_find_path(checkpoint, where.files)))


def is_at_hand(spec: ModelSpec, checkpoint: str | None) -> bool:
    """Whether the checkpoint of an encoder is on this machine; nothing is asked or opened."""
    where = spec.weights
    if where is None or (checkpoint is not None and not checkpoint.startswith(hub.SCHEME)):
        return where is not None and os.path.exists(os.path.expanduser(str(checkpoint)))
    if checkpoint is None and where.repo is None:
        return False
    at = hub.Place(str(where.repo)) if checkpoint is None else hub.parse(checkpoint)
    names = (at.file,) if at.file else (*where.files, *hub.COMMON_FILES)
    return hub.is_cached(at.repo, names, revision=at.revision or where.revision)


def _find_path(checkpoint: str, names: tuple[str, ...]) -> str:
    """The file that a path names; InputError or FileNotFoundError if there is none."""
    if not checkpoint.strip() or "\0" in checkpoint:
        raise UsageError("checkpoint: expected a file, a folder or hf://owner/name.")
    if "://" in checkpoint:
        scheme = checkpoint.partition("://")[0]
        raise UsageError(
            "checkpoint: expected a local file or folder, or hf://owner/name; found "
            f"{scheme[:20]}://... Fetch the file first."
        )
    path = os.path.expanduser(checkpoint)
    if os.path.isdir(path):
        return _file_in(path, names)
    if os.path.isfile(path):
        return path
    hint = ""
    if _LIKE_A_REPO.match(checkpoint) and not checkpoint.endswith(checkpoints.ENDINGS):
        hint = f" A repo on the Hugging Face hub is given as {hub.SCHEME}{checkpoint}."
    raise FileNotFoundError(f"{checkpoint}: no such file.{hint}")


def _file_in(folder: str, names: tuple[str, ...]) -> str:
    wanted = list(dict.fromkeys([*names, *hub.COMMON_FILES]))
    for name in wanted:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    if any(name.endswith(checkpoints.DISTRIBUTED) for name in os.listdir(folder)):
        raise InputError(checkpoints.distributed_message(folder))
    raise InputError(f"{folder}: expected one of {', '.join(wanted)} in it.")


def plan_conversion(
    spec: ModelSpec,
    source: checkpoints.Checkpoint,
    abstract: Mapping[str, Any],
    *,
    weights_key: str | None = None,
    prefix: str | None = None,
) -> rules.Plan:
    """Plan which tensor goes where, and log what was found.

    Raises:
        InputError: tensors do not fit the network, or are no floats; the message lists all tensors
            and parameters that do not fit.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in weights.flatten(abstract).items()}
    plan = weight_choice.find_plan(
        _schemes(spec),
        source.sets,
        shapes,
        config=spec.network,
        resample=_resample_rule(spec),
        what=source.path,
        weights_key=weights_key,
        prefix=prefix,
    )
    tensors = source.sets[plan.weights_key]
    tensors.check_floats(dict.fromkeys(step.key for step in plan.steps), what=source.path)
    logging.info("%s", _summary(source, plan))
    return plan


def merge_adapter(
    spec: ModelSpec, source: checkpoints.Checkpoint, plan: rules.Plan, where: str | None
) -> checkpoints.Checkpoint:
    """The checkpoint with its adapter merged, given or in the file itself; as it is without one.

    Raises:
        InputError: the adapter cannot be read, or does not fit the checkpoint.
    """
    found = adapters.find_adapter(spec, source, plan.weights_key, where)
    if found is None:
        return source
    merged = adapters.merge(source, plan, SCHEMES[plan.scheme], found)
    logging.info("%s: merged into %d tensors", found.path, (merged.adapter or {})["n_merged"])
    return merged


def _summary(source: checkpoints.Checkpoint, plan: rules.Plan) -> str:
    """What was found in a file, in one line."""
    tensors = source.sets[plan.weights_key]
    facts = [f"{len(tensors.shapes)} tensors", f"scheme {plan.scheme!r}"]
    facts += [f"key {plan.weights_key!r}"] if plan.weights_key else []
    facts += [f"prefix {plan.prefix!r}"] if plan.prefix else []
    facts += [f"without the parts {', '.join(tensors.removed)}"] if tensors.removed else []
    facts += [f"{len(plan.dropped)} left out"] if plan.dropped else []
    if plan.passed_over:
        others = ", ".join(name or "(no key)" for name in plan.passed_over)
        facts += [f"not taken: {others} (--weights_key= takes another)"]
    return f"{source.path}: {'; '.join(facts)}"


def fill(
    plan: rules.Plan,
    source: checkpoints.Checkpoint,
    target: Mapping[str, Any],
    spec: ModelSpec,
    *,
    dtype: str,
) -> dict[str, jax.Array]:
    """Read every tensor once and write it into its place.

    Args:
        plan: result of ``plan_conversion``.
        source: the checkpoint.
        target: shapes of the parameters, by path.
        spec: the encoder.
        dtype: type of the result.

    Returns:
        The parameters by path. No more memory is used than for one set of parameters.

    Raises:
        InputError: a tensor contains NaN, infinite values, or values beyond the type.
    """
    resample = _resample_rule(spec)
    tensors = source.sets[plan.weights_key]
    leaves = {
        path: aligned.empty_aligned(tuple(leaf.shape), jax.numpy.dtype(dtype))
        for path, leaf in target.items()
    }
    with Progress(f"convert {spec.name}", total=len(plan.steps), unit="tensor") as progress:
        for key, cell, transform in plan.steps:
            place = cell.view(leaves[cell.path])
            slot = Slot(place.shape, spec.network, resample)
            value = TRANSFORMS[transform](tensors.read(key), slot)
            with np.errstate(over="ignore"):
                place[...] = value
            if not np.isfinite(place).all():
                what = "NaN or infinite values"
                what = f"values beyond {dtype}" if np.isfinite(value).all() else what
                raise InputError(f"{source.path}: {key} holds {what}.")
            progress.update(1)
    for cell, constant in plan.constants:
        place = cell.view(leaves[cell.path])
        slot = Slot(place.shape, spec.network, resample)
        place[...] = FILLS[constant](slot) if isinstance(constant, str) else constant
    device = jax.local_devices(backend="cpu")[0]
    return {path: jax.device_put(leaf, device) for path, leaf in leaves.items()}


def unflatten(leaves: Mapping[str, Any], like: Mapping[Any, Any]) -> dict[Any, Any]:
    """The inverse of ``weights.flatten``: a nested dict with the keys of ``like``."""
    paths = traverse_util.flatten_dict(like)
    tree: dict[Any, Any] = traverse_util.unflatten_dict(
        {path: leaves["/".join(map(str, path))] for path in paths}
    )
    return tree


def _schemes(spec: ModelSpec) -> list[rules.Scheme]:
    names = spec.weights.schemes if spec.weights else ()
    for name in names:
        checks.check_known(name, SCHEMES, what=f"{spec.name}: naming scheme")
    return [SCHEMES[name] for name in names]


def _resample_rule(spec: ModelSpec) -> str | None:
    rule = spec.weights.resample if spec.weights else None
    if rule is not None:
        checks.check_known(rule, RESAMPLERS, what=f"{spec.name}: weights.resample")
    return rule


def choose_specs(model: str | None, spec_path: str | None) -> list[ModelSpec]:
    """The specs that --model or --spec names.

    Raises:
        UsageError: neither or both are given, or the name does not exist.
    """
    check_names(model, spec_path)
    if spec_path is not None:
        return list(read_specs(spec_path).values())
    return [registry.get_spec(str(model))]
