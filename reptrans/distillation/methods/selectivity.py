"""Neuron selectivity transfer: the student's channels, as a set of spatial maps, are distributed as the teacher's.

With p^i = t^i / ||t^i||, the c_t unit channel maps of one image (each of h*w numbers), and q^j those of the student:

    L = CE + weight / 2 * MMD^2,
    MMD^2 = mean_ii' k(p^i, p^i') + mean_jj' k(q^j, q^j') - 2 mean_ij k(p^i, q^j)     (biased; mean over images)

with k(x, y) = x.y ("linear"), (x.y + c)^d ("polynomial"), exp(-||x - y||^2 / (2 sigma^2)) ("gaussian", sigma^2 the mean
squared distance of the image's teacher-student pairs, held constant).
Position: the end of the last group. No connector: numbers of channels may differ, sides are averaged to the smaller.
Source: Huang and Wang 2017. Deviations: positions after ReLU, where the authors' ImageNet code takes the batch norm
before it. Common errors: samples taken across channels in place of maps; the missing square of the MMD and factor 2
of the cross term; a bare norm, which a silent channel turns into NaN.
"""

import torch
from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import ShapeMismatch, choose
from reptrans.matching import CrossEntropy, Distance, Match, unit_channels

WEIGHTS = {"linear": 50.0, "polynomial": 50.0, "gaussian": 100.0}


def nst(pair: Pair, *, kernel: str = "polynomial", weight: float | None = None, everywhere: bool = False) -> Method:
    """The method; `weight` defaults to the paper's, 50 (gaussian: 100). `everywhere`: at the end of every group.

    Raises UnknownName for a kernel that does not exist.
    """
    distance = mmd(kernel)
    scale = (WEIGHTS[kernel] if weight is None else weight) / 2
    groups = pair.groups if everywhere else pair.groups[-1:]
    matches = [Match(t, s, distance, unit_channels, unit_channels, scale, resize=True) for t, s in groups]
    return Method(
        "nst", [Stage([CrossEntropy(), *matches])], entry=6, scale_free=True, paper="huang2017",
        loses="which channel it is, and its strength",
    )  # fmt: skip


def mmd(kernel: str = "polynomial", *, degree: int = 2, offset: float = 0.0) -> Distance:
    """The biased squared MMD of two sets of samples (n, c_t, d) and (n, c_s, d), mean over images, at least 0.

    Matrix products of the samples give every kernel's values, so no tensor of c_t * c_s * d numbers is made; and for
    "linear", and "polynomial" with degree 2 and offset 0, which are distances of means and of second moments, sums that
    are squares and so never below 0 by rounding. Raises UnknownName, ShapeMismatch.
    """
    choose(kernel, WEIGHTS, "there is no kernel {}")

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        p, q = teacher.detach(), student
        if p.shape[2] != q.shape[2]:
            raise ShapeMismatch(
                f"the teacher's maps have {p.shape[2]} positions and the student's {q.shape[2]}; samples of one set "
                "need the other's size. Give the match resize=True, or take layers of equal size."
            )
        if kernel == "linear":
            return (p.mean(1) - q.mean(1)).square().sum(1).mean()
        if kernel == "gaussian":
            return _gaussian(p, q).mean()
        if (degree, offset) == (2, 0) and p.shape[2] <= 2 * max(p.shape[1], q.shape[1]):
            return (_moment(p) - _moment(q)).square().sum((1, 2)).mean()
        pp, qq, pq = ((a @ b.mT + offset).pow(degree).mean((1, 2)) for a, b in ((p, p), (q, q), (p, q)))
        return (pp + qq - 2 * pq).mean()

    distance.label = f"MMD² ({kernel})"
    return distance


def _moment(x: Tensor) -> Tensor:
    """The second moment (n, d, d) of the samples (n, c, d)."""
    return x.mT @ x / x.shape[1]


def _gaussian(p: Tensor, q: Tensor) -> Tensor:
    across = _squared_distances(p, q)
    # Where all maps are the same there is no width to speak of, and every kernel value is 1.
    width = 2 * across.detach().mean((1, 2), keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)
    within = _squared_distances(p, p), _squared_distances(q, q)
    pp, qq, pq = (torch.exp(-d / width).mean((1, 2)) for d in (*within, across))
    return pp + qq - 2 * pq


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None] - 2 * x @ y.mT
    return squares.clamp_min(0)
