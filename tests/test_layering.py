"""The house's walls: who imports whom, and what is kept out of where."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pathorob_jax"
# The wings from the ground up: a module imports from its own wing or a lower one.
WINGS = (
    "version",
    "core",
    "data",
    "models",
    "kernels",
    "embeddings",
    "robustify",
    "metrics",
    "results",
    "evaluation",
    "report",
    "runs",
    "cli",
)
# Names that a wing ("": all of them) must not import, and the modules excepted from that.
FORBIDDEN = [
    ("", {"torch", "timm", "transformers", "croma", "experiments", "converters"}, set()),
    (
        "",
        {"absl.flags"},
        {"data/tile_batches", "cli"},
    ),  # grain's workers read a flag; see read_batches
    ("", {"matplotlib", "jinja2"}, {"report"}),
    ("", {"flax"}, {"models", "kernels/mlp", "kernels/mil/network", "core/provenance"}),
    ("kernels", {"pathorob_jax.core.files", "pathorob_jax.data"}, set()),
    ("metrics", {"pathorob_jax.core.files", "pathorob_jax.data", "pathorob_jax.embeddings"}, set()),
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def wing_of(path):
    """First part of a module's place in the package; "" for the package itself."""
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


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    wing = wing_of(path)
    if not wing:
        return  # the package offers the names of all wings
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "pathorob_jax":
            continue
        assert len(parts) > 1, f"{path} imports the package itself"
        above = WINGS.index(parts[1]) > WINGS.index(wing)
        assert not above, f"{path.relative_to(PACKAGE)} imports {name}, a higher wing"


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_is_kept_out(path):
    place = path.relative_to(PACKAGE).with_suffix("").as_posix()
    for wing, names, excepted in FORBIDDEN:
        if wing not in ("", wing_of(path)) or {place, wing_of(path)} & excepted:
            continue
        for name in imports_of(path):
            clash = {n for n in names if name == n or name.startswith(n + ".")}
            assert not clash, f"{path.name} imports {name}"


def test_the_root_holds_two_modules_and_the_wings():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "version"}
    wings = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert wings | {"version"} == set(WINGS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= 450


def test_the_scan_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("import torch.nn\ndef f():\n    from absl import flags\n")
    assert set(imports_of(file)) == {"torch.nn", "absl", "absl.flags"}


@pytest.mark.slow
def test_only_setup_cfg_holds_metadata():
    text = (ROOT / "pyproject.toml").read_text()
    assert [line for line in text.splitlines() if line.startswith("[")] == ["[build-system]"]
