"""Benchmarks: one JSON line per measurement, with peers measured in the same run."""
