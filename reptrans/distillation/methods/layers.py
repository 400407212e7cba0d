"""Methods that compare the channels of a layer as a set, the flow between layers, and layers chosen by their Grams."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, ShapeMismatch, check_whole, choose
from reptrans.matching import (
    CrossEntropy,
    Distance,
    Learned,
    Match,
    Seen,
    Teacher,
    affine,
    l2,
    norm_l2,
    unit,
    unit_channels,
)
from reptrans.randomness import generator_of

if TYPE_CHECKING:
    import pandas as pd


WEIGHTS = {"linear": 50.0, "polynomial": 50.0, "gaussian": 100.0}


def nst(pair: Pair, *, kernel: str = "polynomial", weight: float | None = None, everywhere: bool = False) -> Method:
    """Neuron selectivity transfer: the student's channels, as a set of spatial maps, are distributed as the teacher's.

    With p^i = t^i / ||t^i||, the c_t unit channel maps of one image (each of h*w numbers), and q^j those of the
    student:

        L = CE + weight / 2 * MMD^2,
        MMD^2 = mean_ii' k(p^i, p^i') + mean_jj' k(q^j, q^j')
                - 2 mean_ij k(p^i, q^j)               (biased; mean over images)

    with k(x, y) = x.y ("linear"), (x.y + c)^d ("polynomial"), exp(-||x - y||^2 / (2 sigma^2)) ("gaussian", sigma^2 the
    mean squared distance of the image's teacher-student pairs, held constant).
    Position: the end of the last group. No connector: numbers of channels may differ, sides are averaged to the
    smaller.
    Source: Huang and Wang 2017. Deviations: positions after ReLU, where the authors' ImageNet code takes the batch norm
    before it. Common errors: samples taken across channels in place of maps; the missing square of the MMD and factor 2
    of the cross term; a bare norm, which a silent channel turns into NaN.

    The method; `weight` defaults to the paper's, 50 (gaussian: 100). `everywhere`: at the end of every group.

    Raises UnknownName for a kernel that does not exist.
    """
    distance = mmd(kernel)
    scale = (WEIGHTS[kernel] if weight is None else weight) / 2
    groups = pair.groups if everywhere else pair.groups[-1:]
    matches = [Match(t, s, distance, unit_channels, unit_channels, scale, resize=True) for t, s in groups]
    return Method("nst", [Stage([CrossEntropy(), *matches])], scale_free=True)


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


def fsp(pair: Pair, *, connector: bool = True, share: float = 0.3, lr: float = 1e-3) -> Method:
    """Flow of the solution procedure (FSP): the student first learns how the teacher's features change in between.

        stage 1: L_FSP = sum_k || G_k^T - G_k^S ||^2_F   (mean over images),
                 G[i, j] = 1/(h w) sum_hw F1[i, h, w] F2[j, h, w],
                 an (m, n) matrix of the channels of two layers
        stage 2: CE

    Position: the first and the last activation of every group; of two maps the larger is max-pooled to the smaller.
    Maps of the two networks may differ in size, but must not in channels.
    Connector: an extension that the paper does not have: where channels differ, and only there, a 1x1 convolution takes
    the student's to the teacher's; `connector=False` refuses such students. It is left behind after stage 1.
    Source: Yim et al. 2017, who published no code. Deviations: `share` of the epochs is ours.
    Common errors: F1[i] F2[i], a vector in place of a matrix; norms of columns that are not squared, or squared twice;
    a weight on stage 2, where nothing is left to weigh; Grams of adjacent groups, average-pooled and divided by m n, as
    in the code of Tian et al. 2020.

    The method; stage 1 adds `share` of the epochs at the paper's rate `lr`.

    Raises ShapeMismatch, where channels differ and there is no connector.
    """
    matches = [
        Match((t1, t2), (s1, s2), squared_frobenius, gram, connected_gram() if connector else gram)
        for (t1, s1), (t2, s2) in zip(pair.starts, pair.groups, strict=True)
    ]
    stages = [Stage(matches, "reached", share, plan={"lr": lr}), Stage([CrossEntropy()])]
    return Method("fsp", stages)


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


def lsl(pair: Pair, *, pairs: int = 2, dimension: int = 64, weight: float = 1.0, seed: int = 0) -> Method:
    """Layer-level distillation: pairs of layers are chosen by Gram matrices, and aligned in a common vector space.

        L = CE + weight sum_k || X_t^k - X_s^k ||_2  (not squared; mean over images),
        X = P pooled(F)

    X_t = P_t pooled(F_t) with a fixed random P_t, X_s = P_s pooled(F_s) + b with P_s and b trained; both of
    `dimension`. The choice: g_l(x) are the unit pooled features of layer l, mu_lc their mean over class c, and with
    unit vectors n(.)
        G_l[c, c'] = n(mu_lc) . n(mu_lc')
        a_l = mean of |G_l| off its diagonal      (how similar are the classes?)
        A[l, l'] = n(vec G_l) . n(vec G_l')
        b_l = mean of A[l, l'] over l' != l       (how similar are the layers?)
    and the layers with the smallest a_l + b_l are taken, as many in the student as in the teacher, paired in depth's
    order.

    Position: chosen among all rectified layers. Connector: the two projections. One stage.
    Source: Li et al. 2019 (Applied Sciences 9:1966). A reconstruction: its public text names projection, alignment, an
    inter-class and an inter-layer Gram matrix, not their formulas, and there is no code; `pairs`, `dimension`, `weight`
    are ours. Projection and alignment layer are one map here, as the product of two linear maps is linear; the
    teacher's is fixed, for if both are trained X_t = X_s = 0 is a solution. The student's layers are chosen as it is
    given: train it for a few epochs before, or the choice is among random layers. Common errors: "Hessian" for Gram; a
    squared norm.

    The method at as many `pairs` of layers, found by one pass of both networks over the training images.

    `seed`: of the teacher's projections. Raises BadValue, where a network has fewer rectified layers.
    """
    check_whole("dimension", dimension, 1)
    matches = [
        Match(t, s, norm_l2, fixed_projection(dimension, seed + k), trained_projection(dimension), weight)
        for k, (t, s) in enumerate(selected_pairs(pair, pairs))
    ]
    return Method("lsl", [Stage([CrossEntropy(), *matches])])


def selected_pairs(pair: Pair, n: int) -> list[tuple[str, str]]:
    """(teacher tap, student tap) of the n layers that each network's own scores choose. Raises BadValue."""
    of_teacher, of_student = pair.of_teacher.layers, pair.of_student.layers
    if type(n) is not int or not 1 <= n <= min(len(of_teacher), len(of_student)):
        raise BadValue(
            f"{n!r} layers are to be chosen of each network, but the teacher has {len(of_teacher)} rectified and "
            f"the student {len(of_student)} rectified layers. Choose fewer, 1 at least, or give Positions with others."
        )
    loader = pair.teachers[0].loader
    labels = torch.cat([batch.labels for batch in loader.plain()])
    teacher, student = _features(pair.teachers[0], of_teacher), _features(Teacher(pair.student, loader), of_student)
    return list(zip(select_layers(teacher, labels, n), select_layers(student, labels, n), strict=True))


def select_layers(features_by_layer: Mapping[str, Tensor], labels: Tensor, n: int) -> list[str]:
    """The n layers with the smallest scores, in the mapping's order; of equal scores the first. See `layer_scores`."""
    if type(n) is not int or not 1 <= n <= len(features_by_layer):
        raise BadValue(
            f"{n!r} layers are to be chosen of {len(features_by_layer)}. Choose a whole number from 1 to that."
        )
    scores = layer_scores(features_by_layer, labels)
    best = set(scores["score"].round(12).sort_values(kind="stable").index[:n])
    return [layer for place, layer in enumerate(features_by_layer) if place in best]


def layer_scores(features_by_layer: Mapping[str, Tensor], labels: Tensor) -> "pd.DataFrame":
    """One row per layer: layer, between_classes a_l in [0, 1], between_layers b_l in [-1, 1], score a_l + b_l.

    Features (n, d), or (n, c, ...) to be averaged over what follows the channels; labels (n,). The names of classes and
    a rotation of a layer's features do not count. Raises BadValue for a single class, ShapeMismatch.
    """
    import pandas as pd

    found = {layer: class_gram(features, labels) for layer, features in features_by_layer.items()}
    grams = torch.stack(list(found.values()))
    off = grams[:, ~torch.eye(grams.shape[1], dtype=torch.bool, device=grams.device)]
    between = unit(grams) @ unit(grams).T
    others = (between.sum(1) - between.diagonal()) / max(1, len(between) - 1)
    a, b = off.abs().mean(1).tolist(), others.tolist()
    return pd.DataFrame({"layer": list(found), "between_classes": a, "between_layers": b}).assign(
        score=lambda rows: rows["between_classes"] + rows["between_layers"]
    )


def class_gram(features: Tensor, labels: Tensor) -> Tensor:
    """G_l, (k, k) with ones on the diagonal, of one layer's features and the k classes that occur in the labels."""
    if labels.ndim != 1 or len(labels) != len(features):
        raise ShapeMismatch(
            f"features are {tuple(features.shape)} and labels {tuple(labels.shape)}; they must be (n,)."
        )
    classes, index = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise BadValue("all images are of one class, but layers are chosen by how they tell classes apart.")
    features = _pooled(features).double()
    members = nn.functional.one_hot(index).double()
    # A class's sum has the direction of its mean.
    directions = unit(members.T @ unit(features))
    return directions @ directions.T


def fixed_projection(dimension: int, seed: int) -> Learned:
    """P_t of `lsl`, after pooling the teacher's features: entries N(0, 1 / c) drawn with `seed`; nothing trains it."""

    def make(seen: Seen) -> nn.Module:
        module = _projection(seen.teacher[0], dimension, bias=False)
        weight = module[-1].weight
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator_of(seed))
        return module.requires_grad_(False)

    return Learned(make, "fixed projection")


def trained_projection(dimension: int) -> Learned:
    """P_s and b of `lsl`, after pooling the student's features; both are trained."""
    return Learned(lambda seen: _projection(seen.student[0], dimension, bias=True), "projection")


def _projection(x: Tensor, dimension: int, *, bias: bool) -> nn.Sequential:
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if x.ndim == 4 else []
    return nn.Sequential(*pool, nn.Linear(x.shape[1], dimension, bias=bias))


def _pooled(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2) if x.ndim > 2 else x


def _features(net: Teacher, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """{layer: pooled features of all training images}, in the order of layers."""
    parts = [{layer: _pooled(x) for layer, x in found.items()} for found in net.over_all(layers)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}
