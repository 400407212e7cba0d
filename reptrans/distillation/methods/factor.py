"""Factor transfer: a paraphraser says the teacher's map in fewer channels, a translator brings the student's map there.

    stage 1: L_rec = ||x - P(x)||   over the paraphraser P = decoder(encoder(x)) of the teacher's map x
    stage 2: L = CE + beta || n(F_T) - n(F_S) ||_p,  F_T = encoder(x_T),  F_S = translator(x_S),  n(v) = v / ||v||_2

n is over all elements of an image's factor, which has round(k c) channels, k = 0.5; p = 1.
Position: the end of the last group, after ReLU. Encoder: three 3x3 convolutions, each with LeakyReLU(0.1),
c -> c -> kc -> kc; the decoder has three transposed ones and goes back; the translator is an encoder of the student's
channels.
Source: Kim, Park and Kwak 2018. `like="authors"` is their code: both losses averaged over elements, the first as L1,
beta = 500. `like="paper"`: the sum ||.||_p, with `beta` (1) ours, and squared L2 in the first. Deviations: the first
loss is averaged over elements in both; `share` of stage 1; one optimiser; sides are averaged to the smaller.
Common errors: channels squared and averaged first, which is attention transfer on factors (RepDistiller); a norm for
every position or channel; a paraphraser that goes on moving in stage 2.
"""

from torch import Tensor, nn

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, choose
from reptrans.matching import CrossEntropy, Distance, Learned, Match, Seen, root, same_shape, unit

BETA = {"paper": 1.0, "authors": 500.0}


def ft(
    pair: Pair, *, rate: float = 0.5, p: float = 1, like: str = "authors", beta: float | None = None, share: float = 0.1
) -> Method:
    """The method; `rate` is k in (0, 1], stage 1 adds `share` of the epochs. Raises UnknownName, BadValue."""
    distance, beta = factor_distance(p, like), BETA[like] if beta is None else beta
    teacher, student = pair.groups[-1]
    whole = paraphraser(rate)
    factor = Learned(lambda seen: seen.made(whole).encoder, f"unit factor (k={rate:g})")
    rephrase = Match(teacher, student, reconstruction(like), whole, resize=True, name="paraphraser")
    match = Match(teacher, student, distance, factor, translator(), beta, resize=True)
    stages = [Stage([rephrase], "connectors", share), Stage([CrossEntropy(), match])]
    return Method(
        "ft", stages, entry=9, scale_free=True, paper="kim2018",
        loses="what the paraphraser leaves out, and the map's strength",
    )  # fmt: skip


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
