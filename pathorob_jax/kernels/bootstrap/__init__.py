"""Errors over whole groups of rows: draws from a jackknife, and intervals from draws."""
