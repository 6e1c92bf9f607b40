"""All checks in the order in which they are told."""

from collections.abc import Sequence

from huggingface_hub import constants

from pathorob_jax.cli import start
from pathorob_jax.cli.doctor import devices, hub, machine
from pathorob_jax.cli.doctor.findings import FAIL, Finding, failed
from pathorob_jax.models.repositories import find_repositories


def examine(
    outputs: Sequence[str],
    *,
    models: Sequence[str] = (),
    workers: int = 0,
    ask_network: bool = True,
) -> list[Finding]:
    """Check this machine.

    Args:
        outputs: folders that will be written.
        models: encoders whose repositories are asked.
        workers: processes that will decode images.
        ask_network: whether servers are asked, too; a node that only computes needs none.

    Raises:
        UsageError: unknown model.
    """
    repositories = find_repositories(models)
    findings = machine.check_versions()
    if failed(findings):
        mend = "Mend the versions first."
        findings.append(Finding("devices", FAIL, "not asked, as JAX would not start", mend))
    else:
        findings += devices.check_devices()
    caches = [
        ("hub cache", constants.HF_HUB_CACHE, "Set HF_HOME to another folder.", True),
        (
            "compile cache",
            start.compile_cache(),
            "Programs are compiled again in each run; set JAX_COMPILATION_CACHE_DIR.",
            False,
        ),
    ]
    findings += machine.check_folders(outputs, caches)
    findings.append(machine.check_shared_memory(workers))
    return findings + (hub.check_hub(repositories) if ask_network else [])
