"""The rate of float32 products of this machine, in GFLOP/s: the last line printed."""

import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

_DEVICE = flags.DEFINE_string("device", "cpu", "Kind of the device; cpu: products of NumPy.")
# A product takes 0.1 to 0.3 s on two cores; the best of these is what the machine can do now.
SIDE, CALLS = 2048, 5


def time_products(multiply: Callable[[], object], *, side: int, calls: int) -> float:
    """GFLOP/s of the fastest of some calls after the first."""
    multiply()
    took_s = []
    for _ in range(calls):
        start_s = time.perf_counter()
        multiply()
        took_s.append(time.perf_counter() - start_s)
    return 2e-9 * side**3 / min(took_s)


def measure(device: str) -> float:
    """GFLOP/s of NumPy, or of JAX on the first device of a kind."""
    if device == "cpu":
        a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
        return time_products(lambda: a @ a, side=SIDE, calls=CALLS)
    import jax

    from pathorob_jax.cli.doctor import devices

    found = [one for one in jax.devices() if one.device_kind == device]
    return float(devices.measure((found or jax.devices())[0]).float32)


def main(argv: list[str]) -> None:
    """Measure and print."""
    del argv
    print(measure(_DEVICE.value))


if __name__ == "__main__":
    app.run(main)
