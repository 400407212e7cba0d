"""Relational knowledge distillation: distances and angles between images are the same in both networks.

    L = CE + w_D mean_ij h(psi_T(i, j), psi_S(i, j)) + w_A mean_ijk h(cos_T(i, j, k), cos_S(i, j, k))
    psi(i, j) = ||f_i - f_j||_2 / mu, mu the batch's mean distance;  cos(i, j, k) of the angle at j between i and k;
    h = Huber's loss: x^2 / 2 for a difference |x| <= 1, |x| - 1/2 beyond

Position: what the classifiers get. No connector: dimensions may differ. One stage.
Source: Park et al. 2019, authors' code; w_D = 25 and w_A = 50 as in Tian et al. 2020. Deviations: as in the code, means
are over all b^2 and b^3 tuples, of which those with an image twice have terms of 0; the paper sums over the others.
Common errors: mu of the teacher for both networks; squared distances; a root at 0, whose gradient is not finite.
"""

from torch import Tensor
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.matching import CrossEntropy, Match, root, same_shape


def rkd(pair: Pair, *, distance: float = 25.0, angle: float = 50.0) -> Method:
    """The method with weights w_D and w_A; a weight of 0 leaves its term out."""
    terms = ((distances, distance, "rkd distances"), (angles, angle, "rkd angles"))
    matches = [Match(*pair.embedding, huber, f, f, weight, name=name) for f, weight, name in terms if weight]
    return Method(
        "rkd", [Stage([CrossEntropy(), *matches])], scale_free=True, paper="park2019relational",
        loses="the features, and the scale of distances",
    )  # fmt: skip


def distances(x: Tensor) -> Tensor:
    """psi, (b, b), of features (b, ...): their mean over distances above 0 is 1; all 0 if all features are the same."""
    lengths = root(_differences(x).square().sum(2))
    apart = lengths > 0
    mean = lengths.sum() / apart.sum().clamp_min(1)
    return lengths / mean.where(apart.any(), 1.0)


def angles(x: Tensor) -> Tensor:
    """cos, (b, b, b) in [-1, 1], of features (b, ...), the vertex first; 0 where two of the three are the same."""
    differences = _differences(x)
    lengths = root(differences.square().sum(2, keepdim=True))
    directions = differences / lengths.where(lengths > 0, 1.0)
    return directions @ directions.mT


def huber(teacher: Tensor, student: Tensor) -> Tensor:
    """h, mean over all entries."""
    return F.smooth_l1_loss(student, same_shape(teacher, student))


def _differences(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat[None] - flat[:, None]


huber.label, distances.label, angles.label = "Huber", "relative distances", "angles"
