"""Attention-based multiple-instance learning: labels of bags, read from their tiles."""
