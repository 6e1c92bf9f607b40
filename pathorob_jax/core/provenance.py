"""Software versions and git commit, recorded in every artefact that is written."""

import functools
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pathorob_jax.core.privacy import file_name, without_folders
from pathorob_jax.version import __version__

if TYPE_CHECKING:
    from jax.sharding import Mesh  # importing a module for its versions need not import JAX


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and the git commit if run from a clone."""
    versions = {"pathorob_jax": __version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "numpy", "tensorstore", "pillow", "simplejpeg", "grain"):
        versions[name] = metadata.version(name)
    commit = _git_commit()
    return versions | ({"git": commit} if commit else {})


def _git_commit() -> str:
    """Commit of the clone that contains this package; "" for an installed package."""
    clone = pathlib.Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():
        return ""
    command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()


def make_provenance(
    *, store: Mapping[str, Any], settings: Mapping[str, Any], view: str, mesh: "Mesh"
) -> dict[str, Any]:
    """What a number was computed from: the store's identity, settings, versions, device.

    Results are passed on, so files are named without their folders; digests tell which they are.

    Args:
        store: identity of the store.
        settings: choices that the number depends on.
        view: file of the rows and labels.
        mesh: devices that computed.
    """
    return {
        "store": without_folders(dict(store)),
        "settings": without_folders({**settings, "view": file_name(view)}),
        "versions": software_versions(),
        "device": {"kind": mesh.devices.flat[0].device_kind, "count": mesh.size},
    }
