"""Convert PyTorch checkpoints to Orbax weights, and verify the result against PyTorch."""
