"""Convert PyTorch checkpoints to Orbax weights, and verify the result against PyTorch."""

from pathorob_jax.cli import interruption

interruption.watch_script()
