"""PyTorch checkpoints -> Orbax weights. Empty so far: the demo's encoders need no weights."""
