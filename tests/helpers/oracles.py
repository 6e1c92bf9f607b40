"""Plain numpy and Python, slow and obvious: what the kernels must equal."""

import collections

import numpy as np


def nearest(embeddings, group_id, k):
    """Indices int[N, k] (-1 absent) and float64 distances, order (distance, index)."""
    x = np.asarray(embeddings, np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.maximum(1.0 - unit @ unit.T, 0.0)
    n = len(x)
    indices, distances = np.full((n, k), -1), np.full((n, k), np.inf)
    for i in range(n):
        eligible = [j for j in range(n) if group_id[j] != group_id[i]]
        eligible = sorted(eligible, key=lambda j: (distance[i, j], j))[:k]
        indices[i, : len(eligible)] = eligible
        distances[i, : len(eligible)] = distance[i, eligible]
    return indices, distances


def neighbor_types(indices, first, second, k):
    """[(query, 'ss' | 'so' | 'os' | 'oo')] of all neighbours at rank < k."""
    out = []
    for i, row in enumerate(indices):
        for j in row[:k]:
            if j >= 0:
                name = "s" if first[i] == first[j] else "o"
                out.append((i, name + ("s" if second[i] == second[j] else "o")))
    return out


def robustness_index(indices, bio, center, k):
    counts = collections.Counter(t for _, t in neighbor_types(indices, bio, center, k))
    typed = counts["so"] + counts["os"]
    return counts["so"] / typed if typed else float("nan")


def support(indices, bio, center, k):
    typed = {i for i, t in neighbor_types(indices, bio, center, k) if t in ("so", "os")}
    return len(typed) / len(indices)


def vote(row, label, k):
    """Majority label of the first k neighbours, ties to the smallest; None without any."""
    counts = collections.Counter(int(label[j]) for j in row[:k] if j >= 0)
    return min(counts, key=lambda c: (-counts[c], c)) if counts else None


def balanced_accuracy(indices, label, k):
    recalls = []
    for c in sorted(set(label.tolist())):
        votes = [vote(indices[i], label, k) for i in np.flatnonzero(label == c)]
        votes = [v for v in votes if v is not None]
        if votes:
            recalls.append(np.mean([v == c for v in votes]))
    return float(np.mean(recalls)) if recalls else float("nan")
