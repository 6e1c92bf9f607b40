"""Small tilesets, specs and checkpoints for the tests of whole runs."""

import json
import pathlib
import re

import safetensors.numpy
import small_vit

from pathorob_jax.data.synthetic_tiles import SyntheticConfig, write_tileset
from pathorob_jax.models.spec import read_specs

TINY = SyntheticConfig(n_slides=1, n_tiles=2, tile_px=32)  # 32 tiles
N = 32
SPEC = """{name}:
  summary: A made-up ViT.
  network: {{family: vit, image_px: 32, patch_px: 16, dim: 24, depth: 2, heads: 2, mlp_hidden: 40,
    n_registers: 2, pos_embed: patch, layer_scale: true}}
  preprocess: {{resize_px: 32, crop_px: 32}}
  poolings: [cls]
  default_pooling: cls
  weights: {{schemes: [timm]}}
"""


def write_tiles(data_dir, *names):
    """Tilesets that differ in their pixels."""
    for name in names:
        config = SyntheticConfig(n_slides=1, n_tiles=2, tile_px=32, seed=sum(map(ord, name)))
        write_tileset(str(pathlib.Path(data_dir) / name), config)


def write_spec(folder, *names):
    """One YAML file of made-up encoders; its path."""
    path = pathlib.Path(folder) / "mine.yaml"
    path.write_text("".join(SPEC.format(name=name) for name in names))
    return str(path)


def write_checkpoint(path, spec_file, name, seed=0):
    """Random tensors of an encoder, as timm would save them."""
    network = read_specs(spec_file)[name].network
    safetensors.numpy.save_file(small_vit.make_state(network, seed), path)
    return f"{name}={path}"


def snapshot(folder):
    """Time of change and bytes of every file below a folder."""
    paths = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in paths
    }


def contents(folder, *leaving_out):
    """Bytes of every file below a folder but hidden ones, by name; without what each cost."""
    return {
        name: without_cost(name, data)
        for name, (_, data) in snapshot(folder).items()
        if not any(part.startswith(".") for part in pathlib.Path(name).parts)
        and name not in leaving_out
        and not name.endswith("cost.json")
    }


def without_cost(name, data):
    """A file of results without the cost in its provenance, a report without its section."""
    if name.startswith("results/") and name.endswith(".json"):
        value = json.loads(data)
        value.get("provenance", {}).pop("cost", None)
        return json.dumps(value).encode()
    if name.endswith("index.html"):
        return re.sub(rb'<section id="cost">.*?</section>', b"", data, flags=re.DOTALL)
    return data
