"""Evaluation: from an embedding store to the records of metrics."""
