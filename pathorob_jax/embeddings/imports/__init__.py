"""Readers of embeddings that other tools made, and the join of their rows with labels."""
