"""Activation boundaries: first the student's neurons become active where the teacher's are, then it learns the task.

    stage 1: L_AB = sum_l 2^(l-L) || rho(t_l) o sigma(mu - r(s_l)) + (1 - rho(t_l)) o sigma(mu + r(s_l)) ||^2_2
    stage 2: T^2 KL(softmax(z_t / T) || softmax(z_s / T)) alone, T = 3

rho(t) = 1 where t > 0, else 0; sigma is the ReLU, mu = 1 the margin.
Position: before the ReLU that ends each group. Connector r: none where channels agree, else 1x1 convolution and batch
norm. Stage 1 moves the student up to its last group and r; the teacher normalises by the batch's statistics. Stage 2
moves all of the student. Source: Heo et al. 2019, authors' code, whose factor 3/1000 of stage 1 is `scale`. Deviations:
the factor T^2, which the authors leave out; `share`; sides are averaged to the smaller.
Common errors: the sign of the gradient, -dL/ds = 2 (mu - s) where t > 0 and s < mu, -2 (mu + s) where t <= 0 and
s > -mu, else 0; a dot product for the elementwise o; t = 0 taken as active.
"""

import torch
from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.kd import logits
from reptrans.errors import choose
from reptrans.matching import CrossEntropy, Distance, Match, above_0, conv1x1_bn, if_needed, per_image, same_shape


def ab(
    pair: Pair, *, margin: float = 1.0, scale: float = 3e-3, share: float = 0.3, mode: str = "batch", then: str = "kd",
    temperature: float = 3.0,
) -> Method:  # fmt: skip
    """The method; stage 1 adds `share` of the epochs, `mode` is the teacher's in it, and `then` ("kd" or "task")
    what stage 2 minimises: Tian et al. 2020 take mode="eval", then="task". Raises BadValue, UnknownName."""
    matches = [
        Match(t, s, boundary(margin), active, if_needed(conv1x1_bn()), scale / 2**k, resize=True)
        for k, (t, s) in enumerate(reversed(pair.before))
    ]
    seconds = {"kd": logits(temperature), "task": CrossEntropy()}
    second = choose(then, seconds, "there is no second stage {} of ab")
    first = Stage(matches[::-1], "reached", share, teacher=mode)
    return Method(
        "ab", [first, Stage([second])], entry=13, zero=False, paper="heo2019boundaries",
        loses="values: only signs are kept",
    )  # fmt: skip


def boundary(margin: float = 1.0) -> Distance:
    """L_AB of one layer, summed inside an image, mean over images; from 0 on. Of the teacher, only t > 0 matters.

    0 where s >= margin at active and s <= -margin at other places. Raises BadValue for a margin that is not above 0.
    """
    above_0(margin=margin)

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        short = margin - torch.where(same_shape(teacher, student) > 0, student, -student)
        return per_image(short.relu().square())

    distance.label = f"squared hinge, margin {margin:g}"
    return distance


def active(x: Tensor) -> Tensor:
    """rho: 1 where x > 0, else 0, also at 0."""
    return (x > 0).to(x.dtype)


active.label = "sign"
