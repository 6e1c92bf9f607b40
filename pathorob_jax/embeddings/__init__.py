"""Embeddings on disk: how they are made, imported and read."""
