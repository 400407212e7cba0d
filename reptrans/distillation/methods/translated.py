"""Methods that compare what modules, trained along, make of the values of layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.answers import rising
from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.matching import (
    CrossEntropy,
    Distance,
    Learned,
    Match,
    Seen,
    affine,
    mean_squares,
    per_image,
    root,
    same_shape,
    unit,
)
from reptrans.matching.match import averaged

BETA = {"paper": 1.0, "authors": 500.0}


def ft(
    pair: Pair, *, rate: float = 0.5, p: float = 1, like: str = "authors", beta: float | None = None, share: float = 0.1
) -> Method:
    """Factor transfer: a paraphraser says the teacher's map in fewer channels, a translator brings the student's there.

        stage 1: L_rec = ||x - P(x)||   over the paraphraser
                 P = decoder(encoder(x)) of the teacher's map x
        stage 2: L = CE + beta || n(F_T) - n(F_S) ||_p,
                 F_T = encoder(x_T),  F_S = translator(x_S),  n(v) = v / ||v||_2

    n is over all elements of an image's factor, which has round(k c) channels, k = 0.5; p = 1.
    Position: the end of the last group, after ReLU. Encoder: three 3x3 convolutions, each with LeakyReLU(0.1),
    c -> c -> kc -> kc; the decoder has three transposed ones and goes back; the translator is an encoder of the
    student's channels.
    Source: Kim, Park and Kwak 2018. `like="authors"` is their code: both losses averaged over elements, the first as
    L1, beta = 500. `like="paper"`: the sum ||.||_p, with `beta` (1) ours, and squared L2 in the first. Deviations: the
    first loss is averaged over elements in both; `share` of stage 1; one optimiser; sides are averaged to the smaller.
    Common errors: channels squared and averaged first, which is attention transfer on factors (RepDistiller); a norm
    for every position or channel; a paraphraser that goes on moving in stage 2.

    The method; `rate` is k in (0, 1], stage 1 adds `share` of the epochs. Raises UnknownName, BadValue.
    """
    distance, beta = factor_distance(p, like), BETA[like] if beta is None else beta
    teacher, student = pair.groups[-1]
    whole = paraphraser(rate)
    factor = Learned(lambda seen: seen.made(whole).encoder, f"unit factor (k={rate:g})")
    rephrase = Match(teacher, student, reconstruction(like), whole, resize=True, name="paraphraser")
    match = Match(teacher, student, distance, factor, translator(), beta, resize=True)
    stages = [Stage([rephrase], "connectors", share), Stage([CrossEntropy(), match])]
    return Method("ft", stages, scale_free=True)


def factor_distance(p: float = 1, like: str = "authors") -> Distance:
    """||n(F_T) - n(F_S)||_p of each image, mean over images; "authors": of |n(F_T) - n(F_S)|^p the mean over elements.

    (n, ...) of equal shapes. Unchanged when either is multiplied, image by image, by a positive number; a factor of
    zeros gives zeros. Raises UnknownName; BadValue for p below 1; ShapeMismatch.
    """
    choose(like, BETA, "there is no variant {} of factor transfer")
    if not p >= 1:
        raise BadValue(f"p is {p!r}; a norm needs a number from 1 on.")

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        powers = (unit(same_shape(teacher, student)) - unit(student)).abs().pow(p)
        if like == "authors":
            return powers.mean()
        return root(powers.sum(1), lambda total: total.pow(1 / p)).mean()

    distance.label = f"L{p:g} of unit vectors" + (", mean" if like == "authors" else "")
    return distance


class Paraphraser(nn.Module):
    """Encoder and decoder of maps with c channels; x -> x - decoder(encoder(x)), (n, c, h, w)."""

    def __init__(self, c: int, rate: float = 0.5):
        super().__init__()
        k = round(rate * c)
        self.encoder = encoder(c, k)
        self.decoder = _three(nn.ConvTranspose2d, (k, k, c, c))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.decoder(self.encoder(x))


def paraphraser(rate: float = 0.5) -> Learned:
    """The recipe of a Paraphraser of the teacher's channels. Raises BadValue for a rate that leaves no channel."""
    if not 0 < rate <= 1:
        raise BadValue(f"rate is {rate!r}; it is the factor's share of the teacher's channels, above 0 and at most 1.")

    def make(seen: Seen) -> nn.Module:
        c = seen.teacher[0].shape[1]
        if round(rate * c) < 1:
            raise BadValue(f"rate {rate:g} of {c} channels leaves none for the factor. Choose at least {1 / c:.2g}.")
        return Paraphraser(c, rate)

    return Learned(make, "paraphraser")


def translator() -> Learned:
    """The recipe of an encoder from the student's channels to the target's."""
    return Learned(lambda seen: encoder(seen.student[0].shape[1], seen.target.shape[1]), "translator")


def encoder(c: int, k: int) -> nn.Sequential:
    """Three 3x3 convolutions with LeakyReLU(0.1), (n, c, h, w) -> (n, k, h, w)."""
    return _three(nn.Conv2d, (c, c, k, k))


def reconstruction(like: str = "authors") -> Distance:
    """|x - P(x)| ("authors") or its square ("paper"), averaged over elements; x - P(x) is the first argument."""

    def distance(residual: Tensor, student: Tensor) -> Tensor:
        return residual.abs().mean() if like == "authors" else residual.square().mean()

    distance.label = f"mean {'L1' if like == 'authors' else 'square'} of the reconstruction"
    return distance


def _three(kind: type[nn.Module], channels: tuple[int, int, int, int]) -> nn.Sequential:
    layers = [kind(a, b, 3, padding=1) for a, b in zip(channels, channels[1:], strict=False)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU(0.1))))


def feed(pair: Pair, *, rounds: int = 1, p: float = 1, like: str = "authors", beta: float | None = None) -> Method:
    """Feature-level ensemble: one non-linear transformation of the student's map for every teacher.

        L = CE + beta sum_n || n(x_T^n) - n(NTL_n(x_S)) ||_p,   p = 1,
        n(v) = v / ||v||_2 over all elements of an image

    Several teachers at once (parallel), or `rounds` above 1 (sequential): the trained student is the only teacher of
    the next round's, which starts where the first did. Position: the end of the last group, after ReLU; the teachers'
    maps as they are. Connector NTL_n: three 3x3 convolutions with LeakyReLU, left behind after training. One stage.
    Source: Park and Kwak 2019; no code is published. Deviations: `beta` and the mean over elements are those of factor
    transfer's code, which this is with a paraphraser that changes nothing; LeakyReLU(0.1) as there.
    Common errors: one transformation for all teachers; the mean of the teachers' maps as the target, whose channels do
    not correspond.

    The method with all teachers of the pair; `like` is the reduction, see `ft`.

    More than one round needs a student that is built like its teacher. Raises UnknownName, BadValue.
    """
    distance, beta = factor_distance(p, like), BETA[like] if beta is None else beta
    teacher, student = pair.groups[-1]
    if rounds > 1 and (len(pair.teachers) > 1 or teacher != student):
        raise BadValue(
            f"in {rounds} rounds a trained student is the next one's only teacher, but there are {len(pair.teachers)} "
            f"teachers, looked at in {teacher!r}, and a student looked at in {student!r}. Give one teacher of the "
            "student's architecture."
        )
    matches = [
        Match(teacher, student, distance, student_transform=translator(), weight=beta, resize=True, who=n)
        for n in range(len(pair.teachers))
    ]
    return Method("feed", [Stage([CrossEntropy(), *matches])], scale_free=True, rounds=rounds)


_LEAST_VARIANCE = 1e-5


def vid(pair: Pair, *, like: str = "authors", weight: float = 1.0, variance: float = 5.0) -> Method:
    """Variational information distillation: the student's features predict the teacher's, as well as a Gaussian can.

        L = CE + sum_k lambda_k L_k,
        L_k = sum_chw [ ln sigma_c + (t_chw - mu_chw(s))^2 / (2 sigma_c^2) ]

    mu is learned from the student's features, sigma^2_c = ln(1 + exp(alpha_c)) + 1e-5 is learned for every channel of
    the teacher and starts at 5. -L_k bounds the mutual information of both layers from below, up to a constant. It has
    no least value; channels that cannot be predicted get a large variance and weigh little.
    Position: the ends of all groups, sides averaged to the smaller. Connector: three 1x1 convolutions without bias,
    ReLUs between, as wide as the teacher. One stage.
    Source: Ahn et al. 2019. `like="authors"` is their code, with the mean over c, h, w in place of the sum, and lambda
    = 1.
    Deviations: ln(2 pi) / 2 is left out, and so are the logits, which they match too; `like="paper"` has the sum, whose
    lambda must be smaller by as much as maps are large.
    Common errors: one variance for all channels, or a variance without lower bound; ln sigma^2 in place of ln sigma.

    The method, `weight` being every lambda_k, `variance` where sigma^2 starts. Raises UnknownName, BadValue.
    """
    distance = choose(like, {"authors": mean_surprise, "paper": surprise}, "there is no variant {} of vid")
    matches = [
        Match(t, s, distance, student_transform=predicted(variance), weight=weight, resize=True) for t, s in pair.groups
    ]
    return Method("vid", [Stage([CrossEntropy(), *matches])], zero=False)


def predicted(variance: float = 5.0) -> Learned:
    """The connector: a `Prediction` of the target's channels. Raises BadValue for a variance up to 1e-5."""
    if not variance > _LEAST_VARIANCE:
        raise BadValue(f"variance is {variance!r}; it must be a number above {_LEAST_VARIANCE:g}.")

    def make(seen: Seen) -> nn.Module:
        outputs = seen.target.shape[1]
        first, second, third = (affine(x, outputs, bias=False) for x in (seen.student[0], seen.target, seen.target))
        return Prediction(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third), outputs, variance)

    return Learned(make, "mean and variance")


class Prediction(nn.Module):
    """mu(s) and sigma^2: features (n, c_s, ...) -> ((n, c_t, ...), (c_t, 1, 1) or (c_t,))."""

    def __init__(self, mean: nn.Module, channels: int, variance: float):
        super().__init__()
        self.mean = mean
        # The inverse of ln(1 + exp(alpha)), written so that a large variance does not overflow.
        start = variance - _LEAST_VARIANCE
        self.alpha = nn.Parameter(torch.full((channels,), start + math.log(-math.expm1(-start))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance = F.softplus(self.alpha) + _LEAST_VARIANCE
        return self.mean(x), variance.reshape(-1, *[1] * (x.ndim - 2))


def surprise(teacher: Tensor, student: tuple[Tensor, Tensor]) -> Tensor:
    """L_k of the teacher's features (n, c, ...) and the student's (mean, variance) of them; mean over images."""
    mean, variance = student
    return per_image((same_shape(teacher, mean) - mean).square() / variance + variance.log()) / 2


def mean_surprise(teacher: Tensor, student: tuple[Tensor, Tensor]) -> Tensor:
    """`surprise` divided by the number of elements of an image's features."""
    return surprise(teacher, student) / teacher[0].numel()


surprise.label, mean_surprise.label = "-ln q(t | s)", "-ln q(t | s) / (c h w)"


def review(pair: Pair, *, weight: float = 5.0, warmup: float = 1 / 12) -> Method:
    """Knowledge review: each level of the student, joined with all deeper ones, is to say what the teacher's says.

        L = CE + weight w(p) sum_k HCL(F_t^k, A_k),   w(p) = min(1, p / warmup)
        Y_k = conv1(F_s^k),   X_K = Y_K,   X_k = a o Y_k + b o up(X_{k+1}),
        (a, b) = sigmoid(conv([Y_k, up(X_{k+1})])),   A_k = conv2(X_k)
        HCL(T, A) = sum_l 2^-l MSE(pool_l T, pool_l A) / sum_l 2^-l

    The attention-based fusion (ABF) has two maps, a and b, for each place; conv1 is a 1x1 and conv2 a 3x3 convolution
    without bias, each with batch norm; all X have min(512, the channels of the student's deepest level). up and what
    takes X_k to the teacher's side repeat the nearest element. The hierarchical context loss (HCL) compares maps as
    they are (l = 0), then averaged to 4x4, 2x2 and 1x1, as far as these are smaller (l = 1, 2, 3).
    Position: the ends of all groups and, as the deepest level, what the classifiers get; of the teacher before ReLU.
    Source: Chen et al. 2021, authors' code: weight 5 for most pairs, 8 for ShuffleNetV2, 0.6 and 1 for thin ResNets; 20
    of 240 epochs of warm-up. Deviations: the weight rises with every step, there with every epoch; of their VGG they
    leave out the first group.
    Common errors: one fusion map and its complement; MSE of the sum in place of the mean; levels paired from the input.

    The method; `warmup` is the share of the epochs in which the weight rises, in [0, 1). Raises BadValue.
    """
    teacher = tuple(t for t, _ in pair.before) + pair.embedding[:1]
    student = tuple(s for _, s in pair.groups) + pair.embedding[1:]
    weight = rising(weight, warmup)
    match = Match(teacher, student, hierarchical_context, levels, reviewed(), weight, name="review")
    return Method("review", [Stage([CrossEntropy(), match])])


def levels(*features: Tensor) -> tuple[Tensor, ...]:
    """Maps (n, c, h, w) as they are and vectors (n, c) as maps (n, c, 1, 1). Raises ShapeMismatch for others."""
    for x in features:
        if x.ndim not in (2, 4):
            raise ShapeMismatch(f"a level is a map (n, c, h, w) or a vector (n, c), not {tuple(x.shape)}.")
    return tuple(x[:, :, None, None] if x.ndim == 2 else x for x in features)


def hierarchical_context(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """The sum of HCL over levels of equal shapes (n, c, h, w); from 0 on. Raises ShapeMismatch."""
    return sum(_of_level(t, s) for t, s in zip(teacher, student, strict=True))


def reviewed() -> Learned:
    """The recipe of a `Review` from the student's levels to the target's shapes."""

    def make(seen: Seen) -> nn.Module:
        shown = levels(*seen.student)
        return Review([x.shape[1] for x in shown], [tuple(t.shape[1:]) for t in seen.target])

    return Learned(make, "review (ABF)")


class Review(nn.Module):
    """All A_k of the student's levels, (n, channels[k], h, w) or (n, channels[k]), in the `shapes` (c, h, w)."""

    def __init__(self, channels: Sequence[int], shapes: Sequence[tuple[int, int, int]]):
        super().__init__()
        middle = min(512, channels[-1])
        self.sizes = [shape[1:] for shape in shapes]
        self.inner = nn.ModuleList(_convolution(c, middle, 1) for c in channels)
        self.outer = nn.ModuleList(_convolution(middle, shape[0], 3) for shape in shapes)
        self.fusion = nn.ModuleList(nn.Conv2d(2 * middle, 2, 1) for _ in channels[:-1])

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        found, deeper = [], None
        for k, x in reversed(list(enumerate(levels(*features)))):
            x = self.inner[k](x)
            if deeper is not None:
                deeper = _nearest(deeper, x.shape[2:])
                own, other = self.fusion[k](torch.cat([x, deeper], 1)).sigmoid().split(1, 1)
                x = own * x + other * deeper
            deeper = _nearest(x, self.sizes[k])
            found.append(self.outer[k](deeper))
        return tuple(reversed(found))


def _of_level(teacher: Tensor, student: Tensor) -> Tensor:
    sides = [side for side in (4, 2, 1) if side < student.shape[2]]
    total = mean_squares(teacher, student)
    for number, side in enumerate(sides, start=1):
        pooled = (averaged(x, (side, side)) for x in (teacher, student))
        total = total + mean_squares(*pooled) / 2**number
    return total / sum(2.0**-number for number in range(len(sides) + 1))


def _convolution(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out))


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="nearest")


hierarchical_context.label, levels.label = "hierarchical context", "all levels"
