"""Which software made a number: versions and git commit, for every artefact that is written."""

import functools
import platform
import subprocess
from importlib import metadata

from pathorob_jax import __version__


@functools.cache
def software_versions() -> dict[str, str]:
    """Versions of what numbers depend on, and the git commit when run from a clone."""
    out = {"pathorob_jax": __version__, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "numpy", "tensorstore", "pillow", "grain"):
        out[name] = metadata.version(name)
    commit = _git_commit()
    return out | ({"git": commit} if commit else {})


def _git_commit() -> str:
    folder = __file__.rpartition("/")[0]
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
