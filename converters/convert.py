"""Convert a PyTorch checkpoint to weights that the Flax networks load, or list the encoders.

Give the name of an encoder (or your own spec) and its checkpoint; the result is <output>/<model>/.
"""

import sys

from absl import flags, logging

from converters import engine
from converters.listing import list_models
from experiments import common
from pathorob_jax.core.checks import UsageError

_MODEL = flags.DEFINE_string("model", None, "Name of the encoder; see --list.")
_SPEC = flags.DEFINE_string("spec", None, "YAML of an encoder of your own, instead of --model.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "File, folder or Hugging Face repo id; unset: the repo that the spec names."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of all converted weights.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", engine.DTYPES, "Type of the parameters on disk.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace weights that are there.")
_LIST = flags.DEFINE_bool("list", False, "Print the table of encoders and end.")


def main() -> None:
    """Read the flags and convert each spec."""
    if _LIST.value:
        sys.stdout.write(list_models())
        return
    if _OUTPUT.value is None:
        raise UsageError("output: expected --output=<folder of all converted weights>.")
    for spec in engine.choose_specs(_MODEL.value, _SPEC.value):
        path = engine.convert(
            spec,
            _CHECKPOINT.value,
            output=_OUTPUT.value,
            dtype=_DTYPE.value,
            overwrite=_OVERWRITE.value,
        )
        logging.info("%s: written", path)


if __name__ == "__main__":
    common.run_main(main)
