"""Jacobian matching: the student's answer changes with the image as the teacher's does.

    L = (KD) + weight || J_s / ||J_s|| - J_t / ||J_t|| ||^2_2,  J = d z_y / d x of each image by itself

z_y is the logit of the image's class, or with `at_attention=True` the largest entry of the attention map sum_c |A_c|
(averaged over windows of a third of its side) at the end of every group, whose unit map is matched too.
Position: the image; all pixels. No connector: all Jacobians have the image's shape. One stage, differentiated twice.
Source: Srinivas and Fleuret 2018; it shows that for squared errors matching with noise xi ~ N(0, s^2 I) on the image
is matching plus s^2 ||J_t - J_s||^2_F, exactly so for affine networks. Deviations: the class is the label's, not the
largest logit's; `weight` is ours. Common errors: choosing the brightest pixel of the *image* (the largest entry is of
the attention map, the derivative by all pixels); one norm for the whole batch; dividing by the number of pixels.
"""

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.kd import kd
from reptrans.matching import Match, attention, l2, norm_l2, unit


def jacobian(pair: Pair, *, at_attention: bool = False, weight: float = 1.0) -> Method:
    """The method beside `kd`, which it regularises."""
    losses = [*kd(pair).stages[0].losses]
    if at_attention:
        unit_map = attention(1)
        for t, s in pair.groups:
            losses.append(Match(t, s, norm_l2, unit_map, unit_map, weight, resize=True))
            losses.append(Match(f"grad:attention@{t}", f"grad:attention@{s}", l2, unit, unit, weight))
    else:
        losses.append(Match("grad:logit", "grad:logit", l2, unit, unit, weight))
    return Method(
        "jacobian", [Stage(losses)], entry=15, scale_free=True, paper="srinivas2018",
        loses="the features, and the Jacobian's size",
    )  # fmt: skip
