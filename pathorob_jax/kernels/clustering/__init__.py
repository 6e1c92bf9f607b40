"""k-means, silhouettes, and the agreement of two labelings."""
