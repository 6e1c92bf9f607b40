"""The devices that JAX sees, and what they reach in a second."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pathorob_jax.cli.doctor.findings import FAIL, OK, WARN, Finding
from pathorob_jax.core import files, hosts

# A product of this many rows at first, then twice as many until it takes long enough to be timed.
FIRST_ROWS, MAX_ROWS = 512, 16384
LONG_ENOUGH_S = 0.02
COPY_BYTES = 2**26
_REPEATS = 3


class Rates(NamedTuple):
    """What a device reaches.

    Attributes:
        float32: GFLOP/s of a product of float32, without rounding its operands.
        bfloat16: the same of bfloat16, summed in float32.
        copy: GB/s, read and written, within the memory of the device.
        from_host: GB/s from the memory of the host.
    """

    float32: float
    bfloat16: float
    copy: float
    from_host: float


def check_devices() -> list[Finding]:
    """The devices by kind, with the rates of the first of each."""
    try:
        import jax

        found = jax.devices()
    except Exception as error:  # noqa: BLE001 - whatever JAX raises is the finding
        text = f"JAX cannot be used ({files.describe(error)})"
        return [Finding("devices", FAIL, text, "Install JAX again: pip install --upgrade jax.")]
    findings = []
    for kind, count in Counter(device.device_kind for device in found).items():
        first = next(device for device in found if device.device_kind == kind)
        name = f"{count} x {kind}"
        if first.platform == "cpu":
            name += f" ({hosts.n_cores()} cores)"
        try:
            rates = measure(first)
        except Exception as error:  # noqa: BLE001 - a device that cannot compute is the finding
            text = f"{name}: cannot compute ({files.describe(error)})"
            findings.append(Finding("devices", FAIL, text, "End what else uses the device."))
            continue
        text = (
            f"{name}: products {rates.float32:.0f} GFLOP/s (float32), {rates.bfloat16:.0f} "
            f"(bfloat16); copies {rates.copy:.1f} GB/s, from the host {rates.from_host:.1f} GB/s"
        )
        findings.append(Finding("devices", OK, text))
    if all(device.platform == "cpu" for device in found) and hosts.visible_gpus():
        text = "this machine has an NVIDIA GPU, which JAX does not see"
        findings.append(Finding("devices", WARN, text, "pip install 'jax[cuda12]'"))
    return findings


def measure(device: Any, *, long_enough_s: float = LONG_ENOUGH_S) -> Rates:
    """Time products and copies on a device; a second or two."""
    import jax
    import jax.numpy as jnp

    products = {
        jnp.float32: lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST),
        jnp.bfloat16: lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32),
    }
    reached = []
    for dtype, product in products.items():
        rows = FIRST_ROWS
        while True:
            a = jax.device_put(np.full((rows, rows), 1 / rows, dtype), device)
            taken = _best_s(jax.jit(product), a)
            if taken >= long_enough_s or rows >= MAX_ROWS:
                break
            rows *= 2
        reached.append(2 * rows**3 / taken / 1e9)
    values = np.zeros(COPY_BYTES // 4, np.float32)
    x = jax.device_put(values, device)
    copied = 2 * COPY_BYTES / _best_s(jax.jit(lambda x: x + 1), x) / 1e9
    # One value further, so that the CPU does not take the array as it is.
    sent = np.zeros(COPY_BYTES // 4 + 1, np.float32)[1:]
    sending = COPY_BYTES / _best_s(lambda v: jax.device_put(v, device), sent) / 1e9
    return Rates(reached[0], reached[1], copied, sending)


def _best_s(call: Callable[[Any], Any], value: Any) -> float:
    """The shortest of some calls, after one that compiles."""
    import jax

    jax.block_until_ready(call(value))
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call(value))
        taken.append(time.perf_counter() - start)
    return max(min(taken), 1e-9)
