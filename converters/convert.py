"""Convert a PyTorch checkpoint to weights that the Flax networks load, or list the encoders.

Give the name of an encoder (or your own spec) and its checkpoint; the result is <output>/<model>/.
--from_timm writes the spec of a ViT of timm instead.
"""

import sys

from absl import flags, logging

from pathorob_jax.cli import start
from pathorob_jax.core.checks import InputError, UsageError

from . import tensor_sets
from .names import check_names

_MODEL = flags.DEFINE_string("model", None, "Name of the encoder; see --list.")
_SPEC = flags.DEFINE_string(
    "spec",
    None,
    "YAML of an encoder of your own, instead of --model; with --from_timm the file to write.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "File or folder, or hf://owner/name on the Hugging Face hub; unset: the repo of the spec.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of all converted weights.")
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
_FROM_TIMM = flags.DEFINE_string(
    "from_timm", None, "Name of a ViT in timm; write its spec to --spec and end."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", tensor_sets.DTYPES, "Type of the parameters on disk."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace weights that are there.")
_LIST = flags.DEFINE_bool("list", False, "Print the table of encoders and end.")


def main() -> None:
    """Read the flags and convert each spec."""
    if _LIST.value:
        from .listing import list_models

        sys.stdout.write(list_models())
        return
    if _FROM_TIMM.value is not None:
        _write_spec(_FROM_TIMM.value)
        return
    if _OUTPUT.value is None:
        raise UsageError("output: expected --output=<folder of all converted weights>.")
    check_names(_MODEL.value, _SPEC.value)
    from . import engine

    for spec in engine.choose_specs(_MODEL.value, _SPEC.value):
        engine.convert(
            spec,
            _CHECKPOINT.value,
            output=_OUTPUT.value,
            dtype=_DTYPE.value,
            weights_key=_WEIGHTS_KEY.value,
            prefix=_PREFIX.value,
            adapter=_ADAPTER.value,
            overwrite=_OVERWRITE.value,
        )


def _write_spec(name: str) -> None:
    if _SPEC.value is None:
        raise UsageError("from_timm: expected --spec=<file.yaml>, the file to write.")
    from . import timm_specs

    try:
        timm_specs.write_spec(name, _SPEC.value, overwrite=_OVERWRITE.value)
    except ImportError as error:
        raise InputError(
            f"from_timm: {error}; install timm with pip install 'pathorob-jax[test]'."
        ) from error
    logging.info("%s: written", _SPEC.value)


if __name__ == "__main__":
    start.run_main(main)
