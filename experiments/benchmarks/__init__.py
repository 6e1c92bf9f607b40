"""Measurements: one JSON line each, peers in the same run."""
