"""What the parity tests of encoders share: random tensors, conversion, running, errors."""

import dataclasses
import functools
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch_oracles
from flax import nnx
from safetensors.numpy import save_file

from converters import comparison, engine, oracles_other
from pathorob_jax.models import registry, weights
from pathorob_jax.models.vit import pool

# Two implementations in float32 differ by the order of their sums. A pooled value takes part in few
# of them; a token of a stage may be small where it cancels, hence the wider bound of the stages.
STAGE_ERROR, POOLED_ERROR = 1e-4, 1e-5


def fill(shapes, rng, *, small=()):
    """A state dict of random values, none 0 or 1, of the size that keeps activations near 1.

    ``small``: parts of names whose tensors make the first tokens; these get a variance near 0.01,
    so that eps of the first norm counts.
    """
    state = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(17)
            continue
        if name.endswith("running_var"):
            value = np.exp(rng.uniform(np.log(1e-3), np.log(2), shape))  # small ones show eps
        elif any(part in name for part in small):
            value *= 0.07 / (np.sqrt(np.prod(shape[1:])) if len(shape) == 4 else 1)
        elif len(shape) > 1 and name.endswith("weight"):
            value *= 1.5 / np.sqrt(np.prod(shape[1:]))
        elif name.endswith(("weight", "gamma")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value *= 0.3
        state[name] = value.astype(np.float32)
    for name in state:  # a batch norm leaves the size of its inputs as it is
        if name.endswith("running_var"):
            state[name.replace("running_var", "weight")] *= np.sqrt(state[name])
    torch_oracles.check_no_neutral_values(state)
    return state


def shapes_of(module):
    """Name and shape of every tensor of a torch module."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def network(config):
    """Graph definition, and the shapes of parameters and statistics."""
    return registry.network_of(config)


def n_params(name):
    """Parameters of a registered encoder without running statistics, as papers count them."""
    config = registry.get_spec(name).network
    state = nnx.state(nnx.eval_shape(lambda: config.make(rngs=nnx.Rngs(0))), nnx.Param)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))


def small(name, **changes):
    """The network of a registered encoder, narrower and shallower, every option kept."""
    return dataclasses.replace(registry.get_spec(name).network, **changes)


def shrunk(name, config, *, stored_px=None):
    """A registered encoder with the small network."""
    spec = registry.get_spec(name)
    side = {"resize_px": config.image_px, "crop_px": config.image_px}
    return dataclasses.replace(
        spec,
        network=config,
        preprocess=dataclasses.replace(spec.preprocess, **side),
        weights=dataclasses.replace(spec.weights, stored_px=stored_px),
    )


def write(spec, state, folder, *, file=None, wrap=None):
    """Path of a checkpoint of these tensors.

    Args:
        spec: the encoder.
        state: tensors as numpy arrays, under the real names.
        folder: where it goes.
        file: its name; None: the first of the encoder's own.
        wrap: key under which a pickle holds the tensors.
    """
    path = os.path.join(folder, os.path.basename(file or spec.weights.files[0]))
    if path.endswith(".safetensors"):
        save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, path)
        return path
    import torch

    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    torch.save({wrap: tensors, "epoch": 3} if wrap else tensors, path)
    return path


def convert(name, config, state, **how):
    """The state dict as nested parameters, through the whole converter and back from disk."""
    spec = shrunk(name, config)
    with tempfile.TemporaryDirectory() as folder:
        path = write(spec, state, folder, **how)
        engine.convert(spec, path, output=folder)
        return weights.restore(weights.open_converted(folder, name), network(config)[1])


def check_verify(name, config, state, *, stored_px=None, **how):
    """Assert that the verify command agrees for this file."""
    spec = shrunk(name, config, stored_px=stored_px)
    with tempfile.TemporaryDirectory() as folder:
        lines = comparison.verify(spec, write(spec, state, folder, **how), n_images=2)
    assert all(line.is_fine for line in lines), comparison.table(lines)
    assert [line.name for line in lines[-len(spec.poolings) :]] == [
        f"pooled {pooling}" for pooling in spec.poolings
    ]
    assert len(lines) > 3


@functools.cache
def make_step(config, dtype):
    """(params, images) -> (tokens, stages), compiled in half of the usual time."""
    graph, _ = network(config)
    return jax.jit(
        lambda params, images: nnx.merge(graph, params)(images, dtype=dtype, stages=True),
        compiler_options={"xla_backend_optimization_level": 0},
    )


def run(config, params, images, dtype=jnp.float32):
    """Tokens and stages as numpy arrays."""
    return jax.tree.map(np.asarray, make_step(config, dtype)(params, images))


def random_images(config, rng, n=3):
    return rng.standard_normal((n, config.image_px, config.image_px, 3), np.float32)


def expect(name, config, state, images, *, scheme=None, stored_px=None):
    """What the PyTorch network makes of the images with the tensors of a state dict.

    ``state`` holds the tensors that the network needs, under their names in the file.
    """
    import torch

    scheme = scheme or registry.get_spec(name).weights.schemes[0]
    oracle = oracles_other.make_oracle(config, scheme, stored_px=stored_px)
    oracle.load({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    return oracles_other.run_oracle(oracle, images)


def named_stages(stages):
    """Our stages by the oracle's names: blocks one by one."""
    rest = {name: value for name, value in stages.items() if name != "blocks"}
    return rest | {f"block_{i:02}": x for i, x in enumerate(stages.get("blocks", ()))}


def check_parity(expected, tokens, stages):
    """Assert that every stage and pooling equals the oracle's."""
    stages = named_stages(stages)
    assert set(stages) == set(expected.stages)
    for name, stage in expected.stages.items():
        assert relative(stages[name], stage) <= STAGE_ERROR, name
    for pooling, embedding in expected.pooled.items():
        assert pooled_error(np.asarray(pool(tokens, pooling)), embedding) <= POOLED_ERROR, pooling


def relative(found, expected):
    """Largest difference of the two, in units of the largest expected value."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def pooled_error(found, expected):
    """Largest distance of two embeddings of an image, in units of the expected one's length."""
    assert found.shape == expected.shape
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def in_bfloat16(params):
    """The parameters rounded to bfloat16, as they may lie in memory."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def edit(params, path, change):
    """A copy of the parameters with one leaf changed."""
    key, *rest = path
    new = edit(params[key], rest, change) if rest else change(np.asarray(params[key]))
    return params | {key: new}
