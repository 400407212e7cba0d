"""Probabilistic knowledge transfer: who is near whom in the batch is the same for the student as for the teacher.

    p_i|j = K(t_i, t_j) / sum_{k != j} K(t_k, t_j),  q likewise of the student's features s
    L = sum_j sum_{i != j} p_i|j ln(p_i|j / q_i|j)                          (a sum over the batch, 0 for two images)
    K(a, b) = (cos(a, b) + 1) / 2 ("cosine"),  exp(-||a - b||^2 / sigma) ("gaussian")

Position: what the classifiers get. No connector: dimensions may differ.
Stages: the transfer alone, over all that comes before the classifier, then the task; or no task, or both
at once.
Source: Passalis and Tefas 2018. `like="authors"` is their code, which others took over: each image is also its own
neighbour, the sum is divided by n^2, and 1e-7 is added inside the logarithm; the weight is Tian et al.'s (2020), 30000.
Deviations: K is at least 1e-7, for that of opposite features is 0; sigma, if not given, is the mean squared distance
in the batch, of each network by itself; the authors' supervised kernel (weight 0.001) is left out.
Common errors: self-pairs, of which two images show it (their code gives more than 0); a denominator over the wrong
argument; cos / 2 + 1.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import choose
from reptrans.matching import CrossEntropy, Match, Transform, above_0, same_shape, unit
from reptrans.similarity.cka import squared_distances

WEIGHTS = {"paper": 1.0, "authors": 30000.0}
_LEAST = 1e-7


def pkt(
    pair: Pair, *, kernel: str = "cosine", sigma: float | None = None, like: str = "paper",
    weight: float | None = None, task: str = "after", share: float = 0.5,
) -> Method:  # fmt: skip
    """The method; `task` "after" trains all on the labels, after `share` of the epochs more for the match; "joint" adds
    cross-entropy to the only stage; with "none", the paper's, the classifier stays as it was.

    Raises UnknownName for `kernel`, `like`, `task`; BadValue for sigma.
    """
    usual = choose(like, WEIGHTS, "there is no variant {} of pkt")
    transform = neighbours(kernel, sigma, itself=like == "authors")
    distance = divergence if like == "paper" else mean_divergence
    match = Match(*pair.embedding, distance, transform, transform, usual if weight is None else weight)
    stages = {
        "none": [Stage([match], "reached")],
        "after": [Stage([match], "reached", share), Stage([CrossEntropy()])],
        "joint": [Stage([CrossEntropy(), match])],
    }
    stages = choose(task, stages, "pkt has no task {}")
    return Method(
        "pkt", stages, entry=12, scale_free=kernel == "cosine" or sigma is None, paper="passalis2018",
        loses="the features, and their distances: neighbours are shares",
    )  # fmt: skip


def neighbours(kernel: str = "cosine", sigma: float | None = None, *, itself: bool = False) -> Transform:
    """Features (n, ...) -> ln p (n, n - 1): row j holds all i != j; with `itself` (n, n), i = j among them.

    `sigma` > 0 of the Gaussian kernel, in squared units of the features. Raises UnknownName, BadValue.
    """
    kernels = {"cosine": _cosine, "gaussian": partial(_gaussian, sigma=sigma)}
    log_kernel = choose(kernel, kernels, "there is no kernel {}")
    if sigma is not None:
        above_0(", or None for the batch's own width", sigma=sigma)

    def transform(x: Tensor) -> Tensor:
        logs = log_kernel(x)
        return F.log_softmax(logs if itself else _others(logs), 1)

    transform.label = f"{kernel} neighbours"
    return transform


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """sum_ij p ln(p / q) of ln p and ln q, summed over the batch too; at least 0."""
    logs = same_shape(teacher, student)
    return (logs.exp() * (logs - student)).sum()


def mean_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean over pairs of p ln((p + 1e-7) / (q + 1e-7)), of ln p and ln q."""
    p, q = same_shape(teacher, student).exp(), student.exp()
    return (p * ((p + _LEAST) / (q + _LEAST)).log()).mean()


def _cosine(x: Tensor) -> Tensor:
    directions = unit(x)
    return ((directions @ directions.T + 1) / 2).clamp_min(_LEAST).log()


def _gaussian(x: Tensor, sigma: float | None) -> Tensor:
    squares = squared_distances(x.flatten(1))
    if sigma is None:
        sigma = squares.sum() / max(1, len(x) * (len(x) - 1))
        # Where all features are the same there is no width to speak of.
        sigma = torch.where(sigma > 0, sigma, 1.0)
    return -squares / sigma


def _others(x: Tensor) -> Tensor:
    """A square matrix (n, n) without its diagonal, (n, n - 1)."""
    # By positions and not by a mask, whose count a GPU would have to tell first.
    rows = torch.arange(len(x), device=x.device)[:, None]
    columns = rows[:-1].T
    return x.gather(1, columns + (columns >= rows))


divergence.label, mean_divergence.label = "KL", "mean KL with self-pairs"
