"""Check and time everything on an accelerator: stages with a time limit each, parity first.

The stages that fit into ten minutes of one card: ``--stages=parity,neighbors,million,apd,
clustering``; into five more: ``extract_large,extract_giant,end_to_end``. Their JSON lines go to
``<output>/lines.jsonl``, their logs to ``<output>/logs/``. ``--rehearse`` takes tiny sizes, so that
the same commands run on a CPU. Exit code 1 if a stage failed, disagreed or ran out of time.
"""

import os
import sys

from absl import app, flags

from experiments.benchmarks import harness, stages

_STAGES = flags.DEFINE_list("stages", list(stages.STAGES), "Which, in order; unset: all.")
_OUTPUT = flags.DEFINE_string("output", "accelerator", "Folder of lines and logs.")
_REHEARSE = flags.DEFINE_bool("rehearse", False, "Tiny sizes, for a CPU.")
_PATIENCE = flags.DEFINE_float("patience", 1.0, "Time limits are multiplied by it.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Run the stages one by one, and end with how each went."""
    del argv
    unknown = [name for name in _STAGES.value if name not in stages.STAGES]
    if unknown:
        raise app.UsageError(f"stages: unknown {unknown}; known: {', '.join(stages.STAGES)}")
    os.makedirs(os.path.join(_OUTPUT.value, "logs"), exist_ok=True)
    environment = harness.best_environment()
    if not _REHEARSE.value:
        environment[harness.KNOWN_RATE] = str(harness.product_rate("accelerator"))
    outcomes = [
        stages.run_stage(
            name,
            stages.STAGES[name],
            folder=_OUTPUT.value,
            rehearse=_REHEARSE.value,
            patience=_PATIENCE.value,
            environment=environment,
        )
        for name in _STAGES.value
    ]
    print("\n".join(map(str, outcomes)))
    sys.exit(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    app.run(main)
