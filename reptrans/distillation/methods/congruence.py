"""Correlation congruence: the kernel of any two images of a batch is the same in both networks.

    L = CE + beta / b^2 || C_T - C_S ||^2_F,   C_ij = sum_{p=0..P} exp(-2 gamma) (2 gamma)^p / p! (f_i . f_j)^p

with unit features f: the Taylor polynomial of exp(-gamma ||f_i - f_j||^2).
Position: what the classifiers get. No connector: dimensions may differ. One stage.
Source: Peng et al. 2019; gamma = 0.4, P = 2. Deviations: batches are drawn evenly, where they take the same number of
images from each of a few classes; their logit term is left out; `weight` is ours.
Common errors: under the paper's name the code that the authors gave to Tian et al. 2020, which has no kernel at all but
the mean over neighbouring images of |d_i| . |d_{i+1}|, d_i = s_i - t_i, 0 if every other image agrees; features that
are not unit vectors; exp(-2 gamma) left out.
"""

import math

from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue
from reptrans.matching import CrossEntropy, Match, Transform, mean_squares, unit


def cc(pair: Pair, *, gamma: float = 0.4, order: int = 2, weight: float = 100.0) -> Method:
    """The method, `weight` being beta. Raises BadValue."""
    kernel = correlations(gamma, order)
    match = Match(*pair.embedding, mean_squares, kernel, kernel, weight)
    return Method(
        "cc", [Stage([CrossEntropy(), match])], scale_free=True, paper="peng2019",
        loses="the features, and their lengths",
    )  # fmt: skip


def correlations(gamma: float = 0.4, order: int = 2) -> Transform:
    """Features (b, ...) -> C (b, b) with gamma > 0 and P = `order` from 1. Raises BadValue."""
    if not gamma > 0 or type(order) is not int or order < 1:
        raise BadValue(f"gamma is {gamma!r} and order {order!r}; gamma is above 0, order a whole number from 1.")

    def transform(x: Tensor) -> Tensor:
        cosines = unit(x) @ unit(x).T
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))

    transform.label = f"Gaussian kernel, order {order}"
    return transform
