"""Correlation congruence: the kernel of any two images of a batch is the same in both networks.

    L = CE + beta / b^2 || C_T - C_S ||^2_F,   C_ij = sum_{p=0..P} exp(-2 gamma) (2 gamma)^p / p! (f_i . f_j)^p

with unit features f: the Taylor polynomial of exp(-gamma ||f_i - f_j||^2).
Position: what the classifiers get. No connector: dimensions may differ. One stage.
Source: Peng et al. 2019; gamma = 0.4, P = 2. Deviations: batches are drawn evenly, where they take the same number of
images from each of a few classes; their logit term is left out; `weight` is ours.
`like="repdistiller"` is the code that the authors gave to Tian et al. 2020, which has no kernel at all: the mean over
neighbouring images of |d_i| . |d_{i+1}|, d_i = s_i - t_i. It depends on the order of the batch, and is 0 if every other
image agrees. Both networks' features went through trained layers there, which 0 satisfies; here the student's only.
Common errors: that code under the paper's name; features that are not unit vectors; exp(-2 gamma) left out.
"""

import math
from collections.abc import Callable

from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, UnknownName, suggest
from reptrans.matching import CrossEntropy, Match, conv1x1, mean_squares, unit
from reptrans.matching.distances import same_shape

WEIGHTS = {"paper": 100.0, "repdistiller": 0.02}


def cc(pair: Pair, *, gamma: float = 0.4, order: int = 2, like: str = "paper", weight: float | None = None) -> Method:
    """The method, `weight` being beta (0.02 for "repdistiller", by its authors). Raises UnknownName, BadValue."""
    if like not in WEIGHTS:
        raise UnknownName(f"there is no variant {like!r} of cc. {suggest(like, WEIGHTS)}")
    weight = WEIGHTS[like] if weight is None else weight
    if like == "paper":
        kernel = correlations(gamma, order)
        match = Match(*pair.embedding, mean_squares, kernel, kernel, weight)
    else:
        match = Match(*pair.embedding, neighbouring_products, student_transform=conv1x1(), weight=weight)
    return Method("cc", [Stage([CrossEntropy(), match])], scale_free=like == "paper")


def correlations(gamma: float = 0.4, order: int = 2) -> Callable[[Tensor], Tensor]:
    """Features (b, ...) -> C (b, b) with gamma > 0 and P = `order` from 1. Raises BadValue."""
    if not gamma > 0 or type(order) is not int or order < 1:
        raise BadValue(f"gamma is {gamma!r} and order {order!r}; gamma is above 0, order a whole number from 1.")

    def transform(x: Tensor) -> Tensor:
        cosines = unit(x) @ unit(x).T
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))

    transform.label = f"Gaussian kernel, order {order}"
    return transform


def neighbouring_products(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean over i of |d_i| . |d_{i+1}|, d = student - teacher, both (b, d); 0 for a single image."""
    apart = (student - same_shape(teacher, student)).abs().flatten(1)
    return (apart[:-1] * apart[1:]).sum() / max(1, len(apart) - 1)


neighbouring_products.label = "products of neighbours' differences"
