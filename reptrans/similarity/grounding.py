"""How well a measure tells apart what is known to differ: from a table of similarities to scores of the measure.

All take similarities, high = similar (change the sign of distances), and are 1 for a measure that is always right.
Source: Klabunde et al. 2025, tests grounded by design (groups of networks, order of layers) and by prediction.
"""

import numpy as np

from reptrans.errors import BadData, ShapeMismatch


def separation(similarity: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each network how well similarity picks those of its own group, (n,): the area under precision and recall.

    `similarity` (n, n), `groups` (n,). The average precision of ranking all other networks by their similarity to it;
    of equal ones those of other groups come first. By chance about the group's share of the others.
    """
    similarity, own = _others(similarity, groups)
    found = []
    for values, same in zip(similarity, own, strict=True):
        order = np.lexsort((same, -values))  # of equal ones those of other groups first
        right = same[order]
        found.append((np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean())
    return np.array(found)


def conformity(similarity: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each network the share of (own group, other group) pairs of others of which the first is more similar, (n,).

    1 - the violation rate; equal ones violate. By chance 0.5.
    """
    similarity, own = _others(similarity, groups)
    return np.array(
        [(values[same][:, None] > values[~same]).mean() for values, same in zip(similarity, own, strict=True)]
    )


def monotonicity(similarity: np.ndarray) -> float:
    """Of all layers i < j < k of one network, the share where i and j, and j and k, are each more similar than i and k.

    `similarity` (layers, layers), in their order; three at least. By chance 1/3 for either.
    """
    layers = len(similarity)
    if layers < 3:
        raise BadData(f"the order of layers is told from three or more; given {layers}.")
    i, j, k = np.array([(i, j, k) for i in range(layers) for j in range(i + 1, layers) for k in range(j + 1, layers)]).T
    far = similarity[i, k]
    return float(np.concatenate([similarity[i, j] > far, similarity[j, k] > far]).mean())


def correspondence(similarity: np.ndarray) -> float:
    """The share of layers of one network whose most similar layer in the other is the same one, of (layers, layers).

    Of equal ones all would have to be it. By chance 1 / layers. Source: Kornblith et al. 2019, table 2.
    """
    best = similarity == similarity.max(1, keepdims=True)
    return float((best.diagonal() & (best.sum(1) == 1)).mean())


def _others(similarity: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each network its similarity to each other, and whether that is of its group, both (n, n - 1)."""
    similarity, groups = np.asarray(similarity, dtype=float), np.asarray(groups)
    n = len(groups)
    if similarity.shape != (n, n):
        raise ShapeMismatch(f"similarities of {n} networks are ({n}, {n}); given {similarity.shape}.")
    if not np.isfinite(similarity[~np.eye(n, dtype=bool)]).all():
        raise BadData("similarities hold NaN or infinity, of which no order can be told.")
    apart = ~np.eye(n, dtype=bool)
    own = (groups[:, None] == groups)[apart].reshape(n, n - 1)
    if not (own.any(1) & ~own.all(1)).all():
        raise BadData("every group needs two networks, and there have to be two groups.")
    return similarity[apart].reshape(n, n - 1), own
