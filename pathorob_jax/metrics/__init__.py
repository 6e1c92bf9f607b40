"""Metrics: arrays and factorised labels in, frozen tuples out; no files."""
