"""Entry 14, efficient object detection by distillation (Chen et al., NeurIPS 2017): classes, boxes and a hint.

    L = L_RPN + L_RCN + gamma L_hint,
        each module 1/N sum L_cls + lambda/N sum L_reg
    L_cls = mu CE(P_s, y) + (1 - mu) L_soft,
        L_soft = -sum_c w_c P_t,c ln P_s,c,  w = 1.5 for background, else 1
    L_reg = smooth L1(R_s, y) + nu L_b,  for each box
        L_b = |R_s - y|^2 if |R_s - y|^2 + m > |R_t - y|^2 else 0
    L_hint = |V - Z|^2 (or L1),
        V the student's map after a 1x1 convolution, Z the teacher's

Position: both modules' class scores and box offsets, on the same anchors and proposals for both networks; the hint on
the backbone's map, with the convolution even where shapes agree. lambda = 1, gamma = nu = 0.5, temperature 1.
Source: the paper as publicly described; there is no authors' code. Deviations: mu and m could not be recovered, mu is
0.5 here and m a re-implementation's 0.01; both networks' scores are taken as logits.
Common errors: class weights left out; one bound for the whole batch instead of one for each box; hints on outputs; one
lambda for mu and for the boxes' weight; teacher and student scored on different proposals.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.matching import per_image
from reptrans.randomness import drawing

# Its line in the table of all methods, for it is none of a pair of classifiers.
ROW = {
    "entry": "14",
    "method": "efficient detection",
    "teacher transform": "softmax, box offsets, identity",
    "student transform": "softmax, box offsets, 1x1 conv",
    "position (student)": "class scores, box offsets, backbone",
    "distance": "weighted cross-entropy, bounded squared L2, squared L2",
    "stages": "detection + all three (student)",
    "paper": "chen2017",
    "loses": "the teacher's boxes where the student's are better",
}


def soft_cross_entropy(student: Tensor, teacher: Tensor, background: float = 1.5) -> Tensor:
    """L_soft, nats, mean over rows, a scalar from 0 on; its least value is not 0 but the teacher's (weighted) entropy.

    `student`, `teacher`: logits (r, k), class 0 the background; r = 0 gives 0. The weights do not depend on the
    student, so a student that minimises L_soft has P_s proportional to w P_t. Raises ShapeMismatch.
    """
    _refuse_different(student=student, teacher=teacher)
    weights = torch.ones_like(student[:1])
    weights[:, 0] = background
    rows = -(weights * teacher.detach().softmax(1) * student.log_softmax(1)).sum(1)
    return rows.sum() / max(len(rows), 1)


def bounded_errors(student: Tensor, teacher: Tensor, target: Tensor, margin: float = 0.01) -> Tensor:
    """L_b of each box, (r,): its squared error, or 0 where it is better than the teacher's by `margin` or more.

    All three: offsets (r, 4). The gradient is the plain squared error's or zero; none reaches the teacher.
    Raises ShapeMismatch.
    """
    _refuse_different(student=student, teacher=teacher, target=target)
    own, bound = ((offsets - target).square().sum(1) for offsets in (student, teacher))
    return own.where(own + margin > bound, 0.0)


def hint_loss(student: Tensor, teacher: Tensor, norm: str = "l2") -> Tensor:
    """L_hint: squares ("l2") or absolute values ("l1") summed over an image's (c, h, w), mean over n.

    `student`: (n, c, h, w), after `hint_connector`. No gradient reaches the teacher. Raises ShapeMismatch, BadValue.
    """
    _refuse_different(student=student, teacher=teacher)
    size = choose(norm, {"l2": Tensor.square, "l1": Tensor.abs}, "there is no norm {}", BadValue)
    return per_image(size(student - teacher.detach()))


def hint_connector(student: int, teacher: int, seed: int = 0) -> nn.Conv2d:
    """The 1x1 convolution of the hint, (n, student, h, w) -> (n, teacher, h, w), drawn with `seed`."""
    with drawing(seed):
        return nn.Conv2d(student, teacher, 1).float()


def classification(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, soft: float = 0.5, background: float = 1.5
) -> Tensor:
    """L_cls with 1 - mu = `soft` in [0, 1], mean over rows; plain cross-entropy with `soft` 0. `labels`: (r,) int64."""
    hard = F.cross_entropy(student, labels, reduction="sum") / max(len(labels), 1)
    return hard if not soft else (1 - soft) * hard + soft * soft_cross_entropy(student, teacher, background)


def regression(
    student: Tensor, target: Tensor, objects: Tensor, teacher: Tensor | None = None,
    bounded: float = 0.5, margin: float = 0.01,
) -> Tensor:  # fmt: skip
    """L_reg with nu = `bounded`: summed over rows with an object (`objects`, (r,) bool), divided by all r.

    Smooth L1 turns linear at 1/9, as in torchvision's detectors. `bounded` 0 is their plain box loss.
    """
    student, target = student[objects], target[objects]
    loss = F.smooth_l1_loss(student, target, beta=1 / 9, reduction="sum")
    if bounded:
        loss = loss + bounded * bounded_errors(student, teacher[objects], target, margin).sum()
    return loss / max(len(objects), 1)


def _refuse_different(**given: Tensor) -> None:
    if len({value.shape for value in given.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())
        raise ShapeMismatch(f"{shapes}: all must have one shape. Do both networks answer for the same boxes?")
