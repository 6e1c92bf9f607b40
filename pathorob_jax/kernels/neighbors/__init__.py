"""Exact nearest neighbours by cosine distance."""
