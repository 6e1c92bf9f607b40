"""Make embeddings and images more robust: fit a robustifier on named rows, apply it to others."""
