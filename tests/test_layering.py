"""The house's walls: who imports whom, and what is kept out of where."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pathorob_jax"
# A module imports lower or equal layers only. Every module has its line here.
LAYERS = {
    "typing": 0, "checks": 0, "files": 0, "modes": 0, "progress": 0, "provenance": 0, "sharding": 0,
    "hosts": 0, "locks": 0,
    "manifest": 1, "datasets": 1, "views": 1, "images": 1, "store": 1, "imports": 1, "tissue": 1,
    "decoding": 1, "batches": 1,
    "synthetic": 1, "schedules": 1,
    "models": 2,
    "extract": 3, "chunks": 3, "clock": 3, "batch_size": 3, "kernels": 3,
    "metrics": 4,
    "records": 5, "results": 5, "summary": 5,
    "graphs": 5, "graph_files": 5, "neighborhoods": 5, "neighbor_metrics": 5,
    "evaluation": 5, "downstream_tasks": 5, "downstream": 5, "embedding_map": 5,
    "tasks": 5, "clustering_tasks": 5, "clusterings": 5,
    "": 5, "training": 5,  # the package offers the names of `training`
    "report": 6,
}  # fmt: skip
# Names that a part of the house must not import, and the modules excepted from that.
FORBIDDEN = [
    ("", {"torch", "timm", "transformers", "croma", "experiments", "converters"}, set()),
    ("", {"absl.flags"}, {"batches"}),  # grain's workers read a flag; see read_batches
    ("", {"matplotlib"}, {"report"}),
    ("kernels", {"pathorob_jax.manifest", "pathorob_jax.datasets", "pathorob_jax.files"}, set()),
    ("metrics", {"pathorob_jax.files", "pathorob_jax.store", "pathorob_jax.results"}, set()),
    ("", {"flax"}, {"models", "provenance"}),
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path):
    """Top-level name of a module inside the package; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(path):
    """Full dotted names that a file imports, names out of modules included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    mine = LAYERS[part_of(path)]
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "pathorob_jax" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS[parts[1]] <= mine, f"{path.name} (layer {mine}) imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_kept_out(path):
    for part, names, excepted in FORBIDDEN:
        if part not in ("", part_of(path)) or part_of(path) in excepted:
            continue
        for name in imports_of(path):
            clash = {n for n in names if name == n or name.startswith(n + ".")}
            assert not clash, f"{path.name} imports {name}"


def test_every_module_has_a_layer():
    assert {part_of(path) for path in MODULES} == set(LAYERS)


def test_the_scan_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import torch.nn\ndef f():\n    from absl import flags\n")
    assert set(imports_of(file)) == {"torch.nn", "absl", "absl.flags"}


def test_only_setup_cfg_holds_metadata():
    text = (ROOT / "pyproject.toml").read_text()
    assert [line for line in text.splitlines() if line.startswith("[")] == ["[build-system]"]
