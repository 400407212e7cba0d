"""Layer-level distillation: pairs of layers are chosen by their Gram matrices, and aligned in a common vector space.

    L = CE + weight sum_k || X_t^k - X_s^k ||_2      (not squared; mean over images),   X = P pooled(F)

X_t = P_t pooled(F_t) with a fixed random P_t, X_s = P_s pooled(F_s) + b with P_s and b trained; both of `dimension`.
The choice: g_l(x) are the unit pooled features of layer l, mu_lc their mean over class c, and with unit vectors n(.)
    G_l[c, c'] = n(mu_lc) . n(mu_lc'),   a_l = mean of |G_l| off its diagonal        (how similar are the classes?)
    A[l, l'] = n(vec G_l) . n(vec G_l'),   b_l = mean of A[l, l'] over l' != l       (how similar are the layers?)
and the layers with the smallest a_l + b_l are taken, as many in the student as in the teacher, paired in depth's order.

Position: chosen among all rectified layers. Connector: the two projections. One stage.
Source: Li et al. 2019 (Applied Sciences 9:1966). A reconstruction: its public text names projection, alignment, an
inter-class and an inter-layer Gram matrix, not their formulas, and there is no code; `pairs`, `dimension`, `weight` are
ours. Projection and alignment layer are one map here, as the product of two linear maps is linear; the teacher's is
fixed, for if both are trained X_t = X_s = 0 is a solution. The student's layers are chosen as it is given: train it for
a few epochs before, or the choice is among random layers. Common errors: "Hessian" for Gram; a squared norm.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import CrossEntropy, Learned, Match, Seen, Teacher, norm_l2, unit, whole
from reptrans.randomness import generator_of

if TYPE_CHECKING:
    import pandas as pd


def lsl(pair: Pair, *, pairs: int = 2, dimension: int = 64, weight: float = 1.0, seed: int = 0) -> Method:
    """The method at as many `pairs` of layers, found by one pass of both networks over the training images.

    `seed`: of the teacher's projections. Raises BadValue, where a network has fewer rectified layers.
    """
    whole(dimension=dimension)
    matches = [
        Match(t, s, norm_l2, fixed_projection(dimension, seed + k), trained_projection(dimension), weight)
        for k, (t, s) in enumerate(selected_pairs(pair, pairs))
    ]
    return Method(
        "lsl", [Stage([CrossEntropy(), *matches])], entry=10, paper="li2019layer",
        loses="places, and what a random projection merges",
    )  # fmt: skip


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
    """P_t after pooling, entries N(0, 1 / c) drawn with `seed`; nothing trains it."""

    def make(seen: Seen) -> nn.Module:
        module = _projection(seen.teacher[0], dimension, bias=False)
        weight = module[-1].weight
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator_of(seed))
        return module.requires_grad_(False)

    return Learned(make, "fixed projection")


def trained_projection(dimension: int) -> Learned:
    """P_s and b after pooling."""
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
