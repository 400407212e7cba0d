"""Stage by stage: every group of the student learns the teacher's map by itself, on top of those that are done.

    stage k = 1..K: L_k = || f_t^k - r_k(f_s^k) ||^2_2 over group k alone,    stage K + 1: CE over the head alone

Position: the end of every group. Connector r_k: none where channels agree, else a 1x1 convolution, left behind. What
earlier stages moved is frozen, batch norm's statistics included. No loss has a weight, for none stands beside another.
Source: Gao et al. 2018. No code is published; the connector is our reading, `head` ours. Deviations: L_k is averaged
over elements, so that one learning rate suits all groups; sides are averaged to the smaller.
Common errors: ||f_t^2 - f_s^2||, the square in the wrong place; freezing by gradients alone, while batch norm in train
mode goes on moving its statistics; no loss for the head.
"""

from collections.abc import Mapping

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.matching import CrossEntropy, Match, conv1x1, if_needed, mean_squares


def sskd(pair: Pair, *, share: float = 0.5, head_plan: Mapping[str, object] | None = None) -> Method:
    """The method; the stages before the last have together `share` of the epochs more, in equal parts.

    `head_plan`: what the last stage sets otherwise than the plan, None for a high learning rate, {"lr": 0.5}, as one
    layer is fitted on fixed features. Greedy regression wants students that are not much narrower than the teacher.
    """
    each = share / len(pair.groups)
    stages = [
        Stage([Match(t, s, mean_squares, student_transform=if_needed(conv1x1()), resize=True)], "new", each)
        for t, s in pair.groups
    ]
    return Method(
        "sskd", [*stages, Stage([CrossEntropy()], "new", plan=head_plan or {"lr": 0.5})], entry=3, paper="gao2018",
        loses="nothing",
    )  # fmt: skip
