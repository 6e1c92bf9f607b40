"""Convert PyTorch checkpoints to Orbax weights, and verify the result against PyTorch."""

import experiments  # noqa: F401 - it ends a script that is interrupted while it is imported
