"""Convert a checkpoint to weights on disk: the library behind ``convert`` and ``verify``.

``convert`` writes an Orbax checkpoint and model.json, or raises one error and writes nothing. Each
tensor is read, transformed and written into its place in the target before the next is read.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from converters import checkpoints, hub, rules, schemes_other, schemes_vit
from converters.transforms import FILLS, TRANSFORMS, Slot
from pathorob_jax.core import checks, devices, digests, provenance
from pathorob_jax.core.checks import InputError, UsageError
from pathorob_jax.core.plain import as_plain
from pathorob_jax.core.progress import Progress
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import ModelSpec, read_specs

SCHEMES = {scheme.name: scheme for scheme in schemes_vit.SCHEMES + schemes_other.SCHEMES}
DTYPES = ("float32", "bfloat16")


def convert(
    spec: ModelSpec,
    checkpoint: str | None,
    *,
    output: str,
    dtype: str = "float32",
    overwrite: bool = False,
) -> str:
    """Convert the checkpoint of an encoder.

    Args:
        spec: the encoder.
        checkpoint: file, folder or Hugging Face repo id; None: the repo of the spec.
        output: folder of all weights; those of the encoder are in ``<output>/<name>/``.
        dtype: type of the parameters on disk, ``float32`` or ``bfloat16``.
        overwrite: replace existing weights.

    Returns:
        The folder written.

    Raises:
        InputError: the checkpoint cannot be read, or does not fit the network; the message lists
            everything that does not fit.
    """
    checks.check_known(dtype, DTYPES, what="dtype")
    weights.check_free(output, spec.name, overwrite=overwrite)
    source = find_checkpoint(spec, checkpoint)
    _, abstract = registry.network_of(registry.runnable(spec))
    plan = plan_conversion(spec, source, abstract)
    leaves = fill(plan, source, weights.flatten(abstract), spec, dtype=dtype)
    source_files = source.digests()
    info = {
        "model": spec.name,
        "network": as_plain(spec.network),
        "preprocess": as_plain(spec.preprocess) if spec.preprocess else None,
        "licence": spec.licence,
        "dtype": dtype,
        "source": {
            "checkpoint": source.name,
            "files": source_files,
            "sha256": digests.digest(*(bytes.fromhex(x["sha256"]) for x in source_files)),
        },
        "conversion": {
            "scheme": plan.scheme,
            "prefix": plan.prefix,
            "n_tensors": len(source.shapes),
            "n_params": weights.count_params(abstract),
            "dropped": plan.dropped,
            "constants": sorted({cell.path for cell, _ in plan.constants}),
        },
        "software": provenance.software_versions(),
    }
    params = unflatten(leaves, abstract)
    return weights.save(output, spec.name, params, info, overwrite=overwrite)


def find_checkpoint(spec: ModelSpec, checkpoint: str | None) -> checkpoints.Checkpoint:
    """Find and open the checkpoint of an encoder.

    Raises:
        InputError, FileNotFoundError: there is no checkpoint, or it cannot be read.
    """
    where = spec.weights
    if where is None:
        raise UsageError(f"model: {spec.name} has no weights to convert.")
    name = checkpoint or where.repo
    if name is None:
        raise UsageError(
            f"checkpoint: {spec.name} is on no hub; give the file ({', '.join(where.files)}"
            f"{' from ' + where.url if where.url else ''})."
        )
    if hub.is_repo(name):
        path = hub.find_file(name, where.files, revision=where.revision)
    else:
        path = _file_in(name, where.files) if os.path.isdir(name) else name
    wrappers = dict.fromkeys(key for s in _schemes(spec) for key in s.wrappers)
    return checkpoints.open_checkpoint(path, wrappers=wrappers)


def _file_in(folder: str, names: tuple[str, ...]) -> str:
    for name in dict.fromkeys([*names, *hub.COMMON_FILES]):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    raise InputError(f"{folder}: expected one of {', '.join([*names, *hub.COMMON_FILES])} in it.")


def plan_conversion(
    spec: ModelSpec, source: checkpoints.Checkpoint, abstract: Mapping[str, Any]
) -> rules.Plan:
    """Plan which tensor goes where.

    Raises:
        InputError: tensors do not fit the network; the message lists all tensors
            and parameters that do not fit.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in weights.flatten(abstract).items()}
    return rules.find_plan(
        _schemes(spec),
        source.shapes,
        shapes,
        config=spec.network,
        resample=spec.weights.resample if spec.weights else None,
        what=source.name,
    )


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
        InputError: a tensor contains NaN or infinite values.
    """
    resample = spec.weights.resample if spec.weights else None
    leaves = {
        path: devices.empty_aligned(tuple(leaf.shape), jax.numpy.dtype(dtype))
        for path, leaf in target.items()
    }
    with Progress(f"convert {spec.name}", total=len(plan.steps), unit="tensor") as progress:
        for key, cell, transform in plan.steps:
            place = cell.view(leaves[cell.path])
            slot = Slot(place.shape, spec.network, resample)
            value = TRANSFORMS[transform](source.read(key), slot)
            if not np.isfinite(value).all():
                raise InputError(f"{source.name}: {key} holds NaN or infinite values.")
            place[...] = value
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


def choose_specs(model: str | None, spec_path: str | None) -> list[ModelSpec]:
    """The specs that --model or --spec names.

    Raises:
        UsageError: neither or both are given, or the name does not exist.
    """
    if (model is None) == (spec_path is None):
        raise UsageError("expected --model=<name> (see --list) or --spec=<file.yaml>.")
    if spec_path is not None:
        return list(read_specs(spec_path).values())
    return [registry.get_spec(str(model))]
