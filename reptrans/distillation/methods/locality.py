"""Locality preserving: images that are near each other for the teacher are drawn together in the student.

    L = CE + gamma L_LP,   L_LP = 1/m sum_ij a_ij ||s_i - s_j||^2_2,
    a_ij = exp(-||t_i - t_j||^2 / sigma^2) if j is one of the k nearest of i in the teacher's space, else 0

over the m images of a batch; a is not symmetric. The same is 2/m tr(S^T D S), D the graph Laplacian of (a + a^T) / 2.
Position: what the classifiers get. No connector: dimensions may differ. One stage.
Source: Chen et al. 2021, as publicly described. Deviations: the scale is 1/m (others write 1/2, or 1/(k m)); k = 5 and
gamma = 1.5 / k are those of a re-implementation, whose sigma = sqrt(2) fits features of one scale only: by default
sigma^2 is here the mean squared distance of the batch's neighbours in the teacher.
A student that maps everything to one point has L_LP = 0, so it is never used without the task.
Common errors: exp(+d^2), with which the farthest weighs most; neighbours in the student's space; numbers taken out of
the graph (`.item()`), so that no gradient flows.
"""

import torch
from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue
from reptrans.matching import CrossEntropy, Match, Transform, above_0, same_shape, whole
from reptrans.similarity.cka import squared_distances


def lp(pair: Pair, *, neighbours: int = 5, sigma: float | None = None, weight: float = 0.3) -> Method:
    """The method, `weight` being gamma. Raises BadValue; batches need more images than there are neighbours."""
    match = Match(*pair.embedding, weighted_mean, neighbour_weights(neighbours, sigma), pair_distances, weight)
    return Method(
        "lp", [Stage([CrossEntropy(), match])], entry=4, zero=False, paper="chen2021embedding",
        loses="the features; pairs that are not neighbours",
    )  # fmt: skip


def neighbour_weights(neighbours: int = 5, sigma: float | None = None) -> Transform:
    """Features (m, ...) -> a (m, m), row i with as many entries above 0 as `neighbours`, each at most 1.

    `sigma` > 0 in the features' units, None for the batch's own. Raises BadValue.
    """
    whole(neighbours=neighbours)
    if sigma is not None:
        above_0(", or None for the batch's own width", sigma=sigma)

    def transform(x: Tensor) -> Tensor:
        if len(x) <= neighbours:
            raise BadValue(
                f"{neighbours} neighbours need batches of at least {neighbours + 1} images, but there are {len(x)}. "
                "Take larger batches or fewer neighbours."
            )
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        squares = squared_distances(x.flatten(1)).masked_fill(itself, torch.inf)
        nearest, where = squares.topk(neighbours, dim=1, largest=False)
        width = nearest.mean() if sigma is None else torch.as_tensor(sigma**2).to(nearest)
        weights = torch.exp(-nearest / torch.where(width > 0, width, 1.0))
        return torch.zeros_like(squares).scatter(1, where, weights)

    transform.label = f"weights of {neighbours} neighbours"
    return transform


def pair_distances(x: Tensor) -> Tensor:
    """||x_i - x_j||^2_2 of all pairs of a batch, (m, ...) -> (m, m)."""
    return squared_distances(x.flatten(1))


def weighted_mean(teacher: Tensor, student: Tensor) -> Tensor:
    """1/m sum_ij of the teacher's weights (m, m) times the student's squared distances (m, m)."""
    return (same_shape(teacher, student) * student).sum() / len(student)


pair_distances.label, weighted_mean.label = "pair distances", "inner product / m"
