"""What is made of features before two are compared, without parameters, and how far apart they then are.

Transforms: a norm is never divided by as it is, for a ReLU channel that is silent for an image has norm 0. Features
with a norm below 1e-12 (float64: 1e-24) become zeros, and get no gradient. Distances (teacher, student) -> scalar have
one reduction: summed inside an image, averaged over the batch. Published codes often average over the elements too;
their weights then go with that average. Such scales are the `like` options of the methods. No gradient reaches the
teacher's side through any of these.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.training.evaluation import wide


def above_0(more: str = "", **numbers: float) -> None:
    """Raise BadValue for a number that is not above 0; `more` says what else it may be."""
    for name, value in numbers.items():
        if not value > 0:
            raise BadValue(f"{name} is {value!r}; it must be a number above 0{more}.")


Transform = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


def unit(x: Tensor) -> Tensor:
    """Each image's whole feature as a unit vector x_i / ||x_i||_2, over all but the batch: (n, ...) -> (n, d)."""
    return _normalised(x.flatten(1))


def unit_channels(x: Tensor) -> Tensor:
    """Each channel's map as a unit vector: (n, c, h, w) -> (n, c, h*w), rows of norm 1, or 0 for a silent channel."""
    if x.ndim != 4:
        raise ShapeMismatch(f"channels as samples need maps (n, c, h, w), but the layer gives {tuple(x.shape)}.")
    return _normalised(x.flatten(2))


def attention(power: float = 2, reduce: str = "sum") -> Transform:
    """The spatial attention map as a unit vector: n(F(A)), F = sum_c |A_c|^p or max_c |A_c|^p, (n, c, h, w) -> (n, hw).

    Zagoruyko and Komodakis 2017. `power` p > 0; `reduce` "sum" or "max". The authors' code takes the mean over channels
    for the sum, which the unit norm makes the same.
    """
    if power <= 0 or reduce not in ("sum", "max"):
        raise BadValue(f"attention(power={power}, reduce={reduce!r}): the power is above 0, reduce is 'sum' or 'max'.")

    def transform(x: Tensor) -> Tensor:
        return unit(attention_map(x, power, reduce))

    transform.label = f"unit {reduce} |A|^{power:g}"
    return transform


def attention_map(x: Tensor, power: float, reduce: str) -> Tensor:
    """F(A), (n, h, w) of maps (n, c, h, w): the sum or the largest of |A_c|^power over channels."""
    if x.ndim != 4:
        raise ShapeMismatch(f"an attention map is of maps (n, c, h, w), but the layer gives {tuple(x.shape)}.")
    powers = x.abs() if power == 1 else x.abs().pow(power)
    return powers.sum(1) if reduce == "sum" else powers.amax(1)


def _normalised(x: Tensor) -> Tensor:
    """x over its norm along the last axis; zeros where there is none."""
    norm, least = x.norm(dim=-1, keepdim=True), 1e-24 if x.dtype == torch.float64 else 1e-12
    # Both branches are finite, for a NaN in the one not taken would reach the gradient.
    return x * torch.where(norm > least, 1 / norm.clamp_min(least), 0.0)


identity.label, unit.label, unit_channels.label = "identity", "unit", "unit channel maps"


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
        # In double precision: at high temperatures both softmaxes are almost the same.
        log_p, log_q = (
            F.log_softmax(logits.to(wide(logits.device)) / temperature, 1)
            for logits in (same_shape(teacher, student), student)
        )
        return per_image(log_p.exp() * (log_p - log_q)).to(student.dtype)

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


def without(x: Tensor, left_out: Tensor) -> Tensor:
    """x (n, k) without one entry of each row, the one at `left_out` (n,): (n, k - 1)."""
    # By positions and not by a mask, whose count a GPU would have to tell first.
    place = torch.arange(x.shape[1] - 1, device=x.device)
    return x.gather(1, place + (place >= left_out[:, None]))


def at_least_single(x: Tensor) -> Tensor:
    """x in float32 at least: squares and sums of thousands of bfloat16 numbers would keep two digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


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
