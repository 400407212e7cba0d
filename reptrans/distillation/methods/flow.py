"""Flow of the solution procedure (FSP): the student first learns how the teacher's features change from layer to layer.

    stage 1: L_FSP = sum_k || G_k^T - G_k^S ||^2_F   (mean over images),
             G[i, j] = 1/(h w) sum_hw F1[i, h, w] F2[j, h, w], an (m, n) matrix of the channels of two layers
    stage 2: CE

Position: the first and the last activation of every group; of two maps the larger is max-pooled to the smaller. Maps of
the two networks may differ in size, but must not in channels.
Connector: an extension that the paper does not have: where channels differ, and only there, a 1x1 convolution takes the
student's to the teacher's; `connector=False` refuses such students. It is left behind after stage 1.
Source: Yim et al. 2017, who published no code. Deviations: `share` of the epochs is ours.
Common errors: F1[i] F2[i], a vector in place of a matrix; norms of columns that are not squared, or squared twice; a
weight on stage 2, where nothing is left to weigh; Grams of adjacent groups, average-pooled and divided by m n, as in
the code of Tian et al. 2020.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import ShapeMismatch
from reptrans.matching import CrossEntropy, Learned, Match, Seen, affine, l2


def fsp(pair: Pair, *, connector: bool = True, share: float = 0.3, lr: float = 1e-3) -> Method:
    """The method; stage 1 adds `share` of the epochs at the paper's rate `lr`.

    Raises ShapeMismatch, where channels differ and there is no connector.
    """
    matches = [
        Match((t1, t2), (s1, s2), squared_frobenius, gram, connected_gram() if connector else gram)
        for (t1, s1), (t2, s2) in zip(pair.starts, pair.groups, strict=True)
    ]
    stages = [Stage(matches, "reached", share, plan={"lr": lr}), Stage([CrossEntropy()])]
    return Method("fsp", stages, entry=11, paper="yim2017", loses="places")


def gram(first: Tensor, second: Tensor) -> Tensor:
    """G of maps (n, m, h, w) and (n, c, h', w'), (n, m, c)."""
    if first.ndim != 4 or second.ndim != 4:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ShapeMismatch(f"an FSP matrix is of two maps (n, c, h, w), but the layers give {shapes}.")
    size = tuple(min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True))
    a, b = (x if x.shape[2:] == size else F.adaptive_max_pool2d(x, size) for x in (first, second))
    return a.flatten(2) @ b.flatten(2).mT / (size[0] * size[1])


def connected_gram() -> Learned:
    """G of the student's two maps, each after a 1x1 convolution to the teacher's channels, where it has others."""

    def make(seen: Seen) -> nn.Module:
        sides = zip(seen.student, seen.teacher, strict=True)
        layers = (nn.Identity() if s.shape[1] == t.shape[1] else affine(s, t.shape[1]) for s, t in sides)
        return ConnectedGram(*layers)

    return Learned(make, f"{gram.label}, after 1x1 convs where channels differ")


class ConnectedGram(nn.Module):
    """The FSP matrix of two maps that are each mapped first."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return gram(self.first(first), self.second(second))


def squared_frobenius(teacher: Tensor, student: Tensor) -> Tensor:
    """||G^T - G^S||^2_F of each image, mean over images; both (n, m, c). Raises ShapeMismatch."""
    if teacher.shape != student.shape:
        raise ShapeMismatch(
            f"the teacher's two layers have {teacher.shape[1]} and {teacher.shape[2]} channels and the student's "
            f"{student.shape[1]} and {student.shape[2]}, so their FSP matrices cannot be compared. Take a student of "
            "equal widths, or give it a connector, fsp(pair, connector=True)."
        )
    return l2(teacher, student)


gram.label, squared_frobenius.label = "Gram of two layers, max-pooled", "squared Frobenius"
