"""An encoder beside its PyTorch network, on the same images, stage by stage.

``verify`` compares, ``table`` shows. Needs PyTorch and timm or transformers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pathorob_jax.core.checks import InputError
from pathorob_jax.models import registry, weights
from pathorob_jax.models.spec import ModelSpec
from pathorob_jax.models.vit import Pooling, Tokens, ViTConfig, pool

from . import engine, oracles, oracles_other
from .oracles_other import Run
from .rules import Plan
from .tensor_sets import FLOATS

# Two float32 implementations differ in the order of sums; stages differ more than poolings.
STAGE_TOLERANCE, POOLED_TOLERANCE = 1e-4, 1e-5


class Comparison(NamedTuple):
    """One line of the table.

    Attributes:
        name: stage or pooling.
        max_abs: largest absolute difference.
        relative: for a stage, that difference divided by the largest value; for a pooling, the
            largest norm of a difference divided by the norm of the shortest embedding.
        tolerance: upper limit of ``relative``.
    """

    name: str
    max_abs: float
    relative: float
    tolerance: float

    @property
    def is_fine(self) -> bool:
        """Whether the relative error is within the tolerance. False for NaN."""
        return self.relative <= self.tolerance


def verify(
    spec: ModelSpec,
    checkpoint: str | None,
    *,
    weights_key: str | None = None,
    prefix: str | None = None,
    adapter: str | None = None,
    n_images: int = 4,
    seed: int = 0,
) -> list[Comparison]:
    """Compare an encoder with its PyTorch network.

    Args:
        spec: the encoder.
        checkpoint: file or folder, or ``hf://owner/name`` on the hub; None: the repo of the spec.
        weights_key: which set of weights to take where a file holds several.
        prefix: prefix of all names in the file; None: found if it is of a known kind.
        adapter: a LoRA that is merged for both networks, as in ``engine.convert``.
        n_images: number of tiles of seeded noise.
        seed: seed of the tiles.

    Returns:
        One entry per stage, then one per pooling.

    Raises:
        InputError: the checkpoint does not fit, or no library has the network.
        ImportError: PyTorch, timm or transformers is not installed.
    """
    import torch

    network = registry.runnable(spec)
    if spec.preprocess is None:
        raise InputError(f"verify: {spec.name} has no weights to verify.")
    if type(network) is ViTConfig:
        oracles.check_named(spec)
    source = engine.find_checkpoint(spec, checkpoint)
    graph, abstract = registry.network_of(network)
    plan = engine.plan_conversion(spec, source, abstract, weights_key=weights_key, prefix=prefix)
    source = engine.merge_adapter(spec, source, plan, adapter)
    stored = source.sets[plan.weights_key]
    tensors = {
        key: torch.from_numpy(_float32(stored.read(key)))
        for key, kind in stored.kinds.items()
        if kind in (*FLOATS, "int64", "int32", "bool")
    }
    tiles = np.random.default_rng(seed).integers(
        0, 256, (n_images, network.image_px, network.image_px, 3), np.uint8
    )
    inputs = jax.jit(spec.preprocess)(tiles)
    theirs = _run_torch(spec, tensors, np.asarray(inputs), plan)
    del tensors
    leaves = engine.fill(plan, source, weights.flatten(abstract), spec, dtype="float32")
    params = engine.unflatten(leaves, abstract)
    tokens, stages = jax.jit(lambda p, x: nnx.merge(graph, p)(x, stages=True))(params, inputs)
    return compare(tokens, stages, theirs, poolings=spec.poolings)


def _run_torch(spec: ModelSpec, tensors: dict, images: np.ndarray, plan: Plan) -> Run:
    """Run the PyTorch network on images, with the tensors of the checkpoint."""
    names: dict[str, Any] = {
        "scheme": plan.scheme,
        "prefix": plan.prefix,
        "dropped": plan.dropped,
    }
    if type(spec.network) is not ViTConfig:
        return oracles_other.run_checkpoint(spec, tensors, images, **names)
    module = oracles.load_module(spec, tensors, **names)
    tensors.clear()  # the module has a separate copy
    stages = oracles.run_module(module, images)
    normed = jnp.asarray(stages.pop("tokens"))
    tokens = Tokens(normed[:, 0], normed[:, 1 + spec.network.n_registers :])
    return Run(stages, {str(p): np.asarray(pool(tokens, p)) for p in spec.poolings})


def compare(
    tokens: Tokens, stages: dict, theirs: Run, *, poolings: tuple[Pooling, ...]
) -> list[Comparison]:
    """Errors of every stage and pooling."""
    ours = {name: value for name, value in stages.items() if name != "blocks"}
    ours |= {f"block_{i:02}": x for i, x in enumerate(stages.get("blocks", ()))}
    if set(ours) != set(theirs.stages):
        raise InputError(
            f"verify: expected the stages {sorted(ours)}, found {sorted(theirs.stages)}."
        )
    lines = []
    for name, value in ours.items():
        expected = theirs.stages[name]
        error = float(np.abs(np.asarray(value) - expected).max())
        relative = error / float(np.abs(expected).max())
        lines.append(Comparison(name, error, relative, STAGE_TOLERANCE))
    for pooling in poolings:
        mine, expected = np.asarray(pool(tokens, pooling)), theirs.pooled[pooling]
        lengths = np.linalg.norm(mine - expected, axis=1)
        relative = float(lengths.max() / np.linalg.norm(expected, axis=1).min())
        error = float(np.abs(mine - expected).max())
        lines.append(Comparison(f"pooled {pooling}", error, relative, POOLED_TOLERANCE))
    return lines


def table(lines: list[Comparison]) -> str:
    """The comparison as text."""
    out = [f"{'stage':16}{'max abs':>12}{'relative':>12}{'tolerance':>12}"]
    out += [
        f"{x.name:16}{x.max_abs:12.2e}{x.relative:12.2e}{x.tolerance:12.0e}"
        f"{'' if x.is_fine else '  ABOVE'}"
        for x in lines
    ]
    return "\n".join(out) + "\n"


def _float32(array: np.ndarray) -> np.ndarray:
    return np.array(array, np.float32) if array.dtype.kind not in "biu" else np.array(array)
