"""Which encoder a script is asked for, checked before JAX is imported."""

from pathorob_jax.core import files
from pathorob_jax.core.checks import UsageError
from pathorob_jax.models import names


def check_names(model: str | None, spec_path: str | None) -> None:
    """Check --model and --spec, of which one is given.

    Raises:
        UsageError: neither or both are given, or the name does not exist.
        FileNotFoundError: there is no such file.
    """
    if (model is None) == (spec_path is None):
        raise UsageError("expected --model=<name> (see --list) or --spec=<file.yaml>.")
    if model is not None:
        names.check_name(model)
    else:
        files.check_there(str(spec_path))
