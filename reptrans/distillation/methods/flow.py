"""Flow of the solution procedure (FSP): the student first learns how the teacher's features change from layer to layer.

    stage 1: L_FSP = sum_k || G_k^T - G_k^S ||^2_F   (mean over images),
             G[i, j] = 1/(h w) sum_hw F1[i, h, w] F2[j, h, w], an (m, n) matrix of the channels of two layers
    stage 2: CE

Position: the first and the last activation of every group; of two maps the larger is max-pooled to the smaller. Maps of
the two networks may differ in size, but must not in channels.
Connector: an extension that the paper does not have: where channels differ, and only there, a 1x1 convolution takes the
student's to the teacher's; `connector=False` refuses such students. It is left behind after stage 1.
Source: Yim et al. 2017, who published no code. Deviations: `share` of the epochs is ours. `like="repdistiller"` (Tian
et al. 2020) takes the Grams of adjacent groups, average-pools, and divides by m n.
Common errors: F1[i] F2[i], a vector in place of a matrix; norms of columns that are not squared, or squared twice; a
weight on stage 2, where nothing is left to weigh.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import ShapeMismatch, UnknownName, suggest
from reptrans.matching import CrossEntropy, Learned, Match, Seen, affine, l2, mean_squares

_POOL = {"max": F.adaptive_max_pool2d, "average": F.adaptive_avg_pool2d}
_LIKE = ("paper", "repdistiller")


def fsp(pair: Pair, *, like: str = "paper", connector: bool = True, share: float = 0.3, lr: float = 1e-3) -> Method:
    """The method; stage 1 takes `share` of the epochs at the paper's rate `lr`.

    Raises UnknownName for `like`; ShapeMismatch, where channels differ and there is no connector.
    """
    if like not in _LIKE:
        raise UnknownName(f"there is no variant {like!r} of fsp. {suggest(like, _LIKE)}")
    if like == "paper":
        places, pooling, distance = list(zip(pair.starts, pair.groups, strict=True)), "max", squared_frobenius
    else:
        every = list(dict.fromkeys([pair.starts[0], *pair.groups]))
        places, pooling, distance = list(pairwise(every)), "average", mean_squared
    grams = gram(pooling)
    matches = [
        Match((t1, t2), (s1, s2), distance, grams, connected_gram(pooling) if connector else grams)
        for (t1, s1), (t2, s2) in places
    ]
    stages = [Stage(matches, "reached", share, plan={"lr": lr}), Stage([CrossEntropy()], share=1 - share)]
    return Method("fsp", stages, entry=11)


def gram(pooling: str = "max") -> Callable[[Tensor, Tensor], Tensor]:
    """G of maps (n, m, h, w) and (n, c, h', w'), (n, m, c); `pooling` "max" or "average". Raises UnknownName."""
    if pooling not in _POOL:
        raise UnknownName(f"there is no pooling {pooling!r}. {suggest(pooling, _POOL)}")

    def transform(first: Tensor, second: Tensor) -> Tensor:
        if first.ndim != 4 or second.ndim != 4:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ShapeMismatch(f"an FSP matrix is of two maps (n, c, h, w), but the layers give {shapes}.")
        size = tuple(min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
        a, b = (x if x.shape[2:] == size else _POOL[pooling](x, size) for x in (first, second))
        return a.flatten(2) @ b.flatten(2).mT / (size[0] * size[1])

    transform.label = f"Gram of two layers, {pooling}-pooled"
    return transform


def connected_gram(pooling: str = "max") -> Learned:
    """G of the student's two maps, each after a 1x1 convolution to the teacher's channels, where it has others."""

    def make(seen: Seen) -> nn.Module:
        layers = [_connector(s, t.shape[1]) for s, t in zip(seen.student, seen.teacher, strict=True)]
        return ConnectedGram(*layers, pooling)

    return Learned(make, f"Gram of two layers, {pooling}-pooled, after 1x1 convs where channels differ")


class ConnectedGram(nn.Module):
    """The FSP matrix of two maps that are each mapped first."""

    def __init__(self, first: nn.Module, second: nn.Module, pooling: str):
        super().__init__()
        self.first, self.second, self.gram = first, second, gram(pooling)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.gram(self.first(first), self.second(second))


def squared_frobenius(teacher: Tensor, student: Tensor) -> Tensor:
    """||G^T - G^S||^2_F of each image, mean over images; both (n, m, c). Raises ShapeMismatch."""
    _same_channels(teacher, student)
    return l2(teacher, student)


def mean_squared(teacher: Tensor, student: Tensor) -> Tensor:
    """The same divided by the number m c of a matrix's entries."""
    _same_channels(teacher, student)
    return mean_squares(teacher, student)


def _connector(maps: Tensor, channels: int) -> nn.Module:
    return nn.Identity() if maps.shape[1] == channels else affine(maps, channels)


def _same_channels(teacher: Tensor, student: Tensor) -> None:
    if teacher.shape != student.shape:
        raise ShapeMismatch(
            f"the teacher's two layers have {teacher.shape[1]} and {teacher.shape[2]} channels and the student's "
            f"{student.shape[1]} and {student.shape[2]}, so their FSP matrices cannot be compared. Take a student of "
            "equal widths, or give it a connector, fsp(pair, connector=True)."
        )


squared_frobenius.label, mean_squared.label = "squared Frobenius", "mean squared difference"
