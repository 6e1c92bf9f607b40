"""Run an encoder and its PyTorch network on the same images, and compare them stage by stage.

The result is a table of the largest absolute and relative errors of every stage and pooling, both
in float32 on this machine. The exit code is 1 if an error is above the tolerance.
Needs PyTorch and timm or transformers (pip install 'pathorob-jax[test]').
"""

import sys

from absl import flags

from pathorob_jax.cli import start
from pathorob_jax.core.checks import InputError

from .names import check_names

_MODEL = flags.DEFINE_string("model", None, "Name of the encoder; see converters.convert --list.")
_SPEC = flags.DEFINE_string("spec", None, "YAML of an encoder of your own, instead of --model.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "File or folder, or hf://owner/name on the Hugging Face hub; unset: the repo of the spec.",
)
_WEIGHTS_KEY = flags.DEFINE_string(
    "weights_key", None, "Keys, joined by dots, of the weights to take if a file holds several."
)
_PREFIX = flags.DEFINE_string(
    "prefix", None, "Prefix of all names in the file, if it is not found by itself."
)
_ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "LoRA of PEFT to merge into the weights: its folder or file, or hf://owner/name.",
)
_N_IMAGES = flags.DEFINE_integer("images", 4, "Images of seeded noise.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the images.")


def main() -> None:
    """Read the flags, verify each spec and print a table; InputError above the tolerance."""
    check_names(_MODEL.value, _SPEC.value)
    from . import comparison, engine

    for spec in engine.choose_specs(_MODEL.value, _SPEC.value):
        try:
            lines = comparison.verify(
                spec,
                _CHECKPOINT.value,
                weights_key=_WEIGHTS_KEY.value,
                prefix=_PREFIX.value,
                adapter=_ADAPTER.value,
                n_images=_N_IMAGES.value,
                seed=_SEED.value,
            )
        except ImportError as error:
            raise InputError(
                f"verify: {error}; install the libraries with pip install 'pathorob-jax[test]'."
            ) from error
        sys.stdout.write(comparison.table(lines))
        bad = [x.name for x in lines if not x.is_fine]
        if bad:
            raise InputError(f"verify: {spec.name}: above tolerance in {', '.join(bad)}.")


if __name__ == "__main__":
    start.run_main(main)
