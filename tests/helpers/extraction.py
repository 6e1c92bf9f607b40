"""What the tests of extraction share: a small tileset, a fast encoder, the bytes of a store."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from pathorob_jax.core import devices
from pathorob_jax.data import decode, synthetic_tiles
from pathorob_jax.embeddings.extraction import extract
from pathorob_jax.models import registry
from pathorob_jax.models.registry import Encoder

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"
CONFIG = synthetic_tiles.SyntheticConfig(n_slides=1, n_tiles=2, tile_px=64)  # 32 tiles
N = 32


@functools.cache
def vit_random():
    return registry.load_encoder("vit_random")


def mesh_of(n_devices=1):
    return devices.make_mesh(jax.devices()[:n_devices])


def projection(scale=1.0, bad_row=None, name="projection"):
    """A fast encoder without weights of its own: 16 mixtures of an 8 x 8 thumbnail.

    With ``bad_row``, the tile that shares its thumbnail is embedded as NaN.
    """
    mix = jnp.asarray(np.random.default_rng(1).standard_normal((192, 16)), jnp.float32)

    def apply(params, tiles):
        small = tiles.astype(jnp.float32).reshape(len(tiles), 8, 8, 8, 8, 3).mean((2, 4))
        flat = small.reshape(len(tiles), -1) / 255
        out = jnp.matmul(flat, params * scale, precision=jax.lax.Precision.HIGHEST)
        if bad_row is None:
            return out
        is_bad = (jnp.abs(flat - bad_row[None, :]) < 1e-6).all(1)
        return jnp.where(is_bad[:, None], jnp.nan, out)

    return Encoder(name, mix, apply, {"model": name, "scale": scale})


def decode_all(tileset):
    return np.stack([decode.decode_tile(*tileset.reader.read(i)) for i in range(len(tileset))])


def files_of(path):
    """Contents of every file of a store by name, but its cost and locks that a kill leaves."""
    root = pathlib.Path(path)
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and not file.name.endswith(("lock", "cost.json"))
    }


def shard_bytes(path):
    return {name: data for name, data in files_of(path).items() if name.startswith("embeddings/c/")}


def run(tileset, root, encoder=None, **kwargs):
    kwargs = {"batch_size": 4, "mesh": mesh_of()} | kwargs
    made = extract(tileset, [encoder or projection()], root=str(root), dataset="d", **kwargs)
    return made.stores[0]


def shards_of(root, name="projection"):
    folder = root / name / "d" / "embeddings" / "c"
    return sorted(int(shard.parent.name) for shard in folder.glob("*/0"))
