"""Distances (teacher, student) -> scalar, with one reduction for all: summed inside an image, averaged over the batch.

Published codes often average over the elements too; their weights then go with that average. Such scales are the
`like` options of the methods. No gradient reaches the teacher's side through any of these.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import ShapeMismatch
from reptrans.matching.named import above_0

Distance = Callable[[Tensor, Tensor], Tensor]


def l2(teacher: Tensor, student: Tensor) -> Tensor:
    """||t - s||^2_2 of each image, mean over images; equal shapes (n, ...). Raises ShapeMismatch."""
    return per_image((same_shape(teacher, student) - student).square())


def mean_squares(teacher: Tensor, student: Tensor) -> Tensor:
    """The squared difference averaged over elements as well as images: `l2` over the number of a feature's elements."""
    return (same_shape(teacher, student) - student).square().mean()


def half_l2(teacher: Tensor, student: Tensor) -> Tensor:
    """Half of `l2`."""
    return l2(teacher, student) / 2


def l1(teacher: Tensor, student: Tensor) -> Tensor:
    """||t - s||_1 of each image, mean over images."""
    return per_image((same_shape(teacher, student) - student).abs())


def norm_l2(teacher: Tensor, student: Tensor) -> Tensor:
    """||t - s||_2 of each image, not squared, mean over images.

    Where the two are equal there is no derivative; 0 is taken.
    """
    return root((same_shape(teacher, student) - student).square().flatten(1).sum(1)).mean()


def softened_kl(temperature: float = 4.0) -> Distance:
    """KL(softmax(t / T) || softmax(s / T)) of logits (n, k), mean over images; without the factor T^2. T > 0."""
    above_0(temperature=temperature)

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        log_p = F.log_softmax(same_shape(teacher, student) / temperature, 1)
        return per_image(log_p.exp() * (log_p - F.log_softmax(student / temperature, 1)))

    distance.label = f"KL at T={temperature:g}"
    return distance


def soft_cross_entropy(temperature: float = 1.0) -> Distance:
    """-sum_i p_i ln q_i, p and q the softmaxes of t / T and s / T over all elements of an image; mean over images.

    Its minimum is not 0 but the entropy of p. T > 0.
    """
    above_0(temperature=temperature)

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        p = F.softmax(same_shape(teacher, student).flatten(1) / temperature, 1)
        return -per_image(p * F.log_softmax(student.flatten(1) / temperature, 1))

    distance.label = f"cross-entropy at T={temperature:g}"
    return distance


def root(x: Tensor, of: Callable[[Tensor], Tensor] = Tensor.sqrt) -> Tensor:
    """A root of x >= 0; at 0, where there is no derivative, 0 is taken."""
    zero = x == 0
    # Both branches are finite, for a NaN in the one not taken would reach the gradient.
    return torch.where(zero, x, of(torch.where(zero, 1.0, x)))


def per_image(values: Tensor) -> Tensor:
    """Summed over all that is not the batch, mean over the batch."""
    return values.flatten(1).sum(1).mean()


def same_shape(teacher: Tensor, student: Tensor) -> Tensor:
    """The teacher's side, detached; ShapeMismatch if the two differ in shape."""
    if teacher.shape != student.shape:
        raise ShapeMismatch(
            f"the teacher's feature is {tuple(teacher.shape)} and the student's {tuple(student.shape)} after their "
            "transforms. Where the sides of maps differ, give the match resize=True; where the channels do, give it a "
            "connector, student_transform=conv1x1_bn."
        )
    return teacher.detach()


mean_squares.label = "mean squared difference"
l2.label, half_l2.label, l1.label, norm_l2.label = "squared L2", "half squared L2", "L1", "L2 (not squared)"
