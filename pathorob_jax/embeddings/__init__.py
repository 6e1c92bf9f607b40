"""Embeddings: extract, import, store and read them."""
