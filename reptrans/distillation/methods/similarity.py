"""Similarity preserving: two images that activate the teacher similarly activate the student similarly.

    L = CE + gamma / b^2 || G_T - G_S ||^2_F,   G = rows of Q Q^T, each divided by its L2 norm,   Q (b, c h w)

over the b images of a batch.
Position: the end of the last group. No connector: G is (b, b) whatever the features' shape. One stage.
Source: Tung and Mori 2019; gamma = 3000. Deviations: none.
Common errors: one norm for the whole matrix; unit features in place of unit rows; taking the mean and dividing by b^2.
"""

from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.matching import CrossEntropy, Match, mean_squares, unit


def sp(pair: Pair, *, weight: float = 3000.0, everywhere: bool = False) -> Method:
    """The method, `weight` being gamma; `everywhere`: at the end of every group."""
    groups = pair.groups if everywhere else pair.groups[-1:]
    matches = [Match(t, s, mean_squares, similarities, similarities, weight) for t, s in groups]
    return Method(
        "sp", [Stage([CrossEntropy(), *matches])], scale_free=True, paper="tung2019",
        loses="the features, and each image's strength",
    )  # fmt: skip


def similarities(x: Tensor) -> Tensor:
    """G, (b, b) with rows of norm 1, of features (b, ...); 0 for an image whose features are all 0."""
    flat = x.flatten(1)
    return unit(flat @ flat.T)


similarities.label = "unit rows of the batch's Gram"
