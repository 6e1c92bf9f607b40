"""A whole run as jobs of SLURM or of this machine: one array over encoders and datasets.

Jobs: prepare (fetch, convert), preflight (doctor of the run), extract and evaluate (arrays over
encoders and datasets), report. A job begins when the one before it went well; what was killed is
queued again and goes on where it stopped. Flags of the run are those of ``run``.
"""

import sys

from absl import flags

from pathorob_jax.cli import start

from . import choices, common, run_flags

_HOLDERS = run_flags.define()
_CLUSTER = flags.DEFINE_enum(
    "cluster", "local", choices.CLUSTERS, "Where jobs run: local is this machine, one at a time."
)
_PLAN = flags.DEFINE_bool("plan", False, "Say which jobs would be submitted, and end.")
_NODES = flags.DEFINE_integer("nodes", 1, "Nodes of each extraction.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "GPUs of a node, of each extraction.", lower_bound=0)
_CPUS = flags.DEFINE_integer("cpus", 8, "Cores of a node.", lower_bound=1)
_MEMORY_GB = flags.DEFINE_integer("memory_gb", 32, "Memory of a node in GB.", lower_bound=1)
_MINUTES = flags.DEFINE_integer("minutes", 240, "Time limit of a job.", lower_bound=1)
_MAX_PARALLEL = flags.DEFINE_integer(
    "max_parallel",
    None,
    "Jobs of an array that run at once; unset: 8 on a cluster, 1 here.",
    lower_bound=1,
)
_PARTITION = flags.DEFINE_string("partition", None, "SLURM's partition; unset: its default.")
_ACCOUNT = flags.DEFINE_string("account", None, "SLURM's account; unset: yours.")
_SETUP = flags.DEFINE_multi_string(
    "setup", [], "Shell command before the work, such as 'module load cuda'; may repeat."
)
flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(common)

# How to go on after an interruption.
RESUME = "what is finished is kept; give the same command of experiments.submit again"


def main() -> None:
    """Turn the flags into jobs, and show or submit them."""
    request = run_flags.make_request(_HOLDERS)
    from pathorob_jax.runs import jobs, submit

    options = [
        flags.FLAGS[name].serialize()
        for name in run_flags_of_jobs()
        if flags.FLAGS[name].present and flags.FLAGS[name].value not in (None, [])
    ]
    planned = jobs.plan_jobs(
        request,
        encoders=[
            *(f"--model={name}" for name in _HOLDERS["model"].value or _default_models()),
            *(f"--spec={path}" for path in _HOLDERS["spec"].value),
        ],
        options=options,
        resources=jobs.Resources(
            nodes=_NODES.value,
            gpus=_GPUS.value,
            cpus=_CPUS.value,
            memory_gb=_MEMORY_GB.value,
            minutes=_MINUTES.value,
            max_parallel=_MAX_PARALLEL.value or (1 if _CLUSTER.value == "local" else 8),
            partition=_PARTITION.value,
            account=_ACCOUNT.value,
            setup=tuple(_SETUP.value),
        ),
        cluster=_CLUSTER.value,
    )
    sys.stdout.write(jobs.describe(planned) + "\n")
    sys.stdout.flush()
    if _PLAN.value:
        return
    request.remember()
    submitted = submit.submit(planned, folder=f"{request.output}/{jobs.FOLDER}")
    sys.stdout.write(str(submitted) + "\n")
    submitted.raise_failure()


def run_flags_of_jobs() -> list[str]:
    """Flags that every job of the run has; encoders and datasets differ."""
    return [name for name in _HOLDERS if name not in ("model", "spec", "dataset")]


def _default_models() -> tuple[str, ...]:
    return () if _HOLDERS["spec"].value else choices.RUN_MODELS


if __name__ == "__main__":
    start.run_main(main, resume=RESUME)
