"""Methods that compare where the networks look: by their activations, or by their gradients by the image."""

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.answers import kd
from reptrans.errors import choose
from reptrans.matching import CrossEntropy, Match, attention, l2, mean_squares, norm_l2, unit

BETA = {"paper": 2.0, "authors": 1000.0}


def at(
    pair: Pair, *, power: float = 2, reduce: str = "sum", like: str = "paper", beta: float | None = None,
    with_kd: bool = False,
) -> Method:  # fmt: skip
    """Attention transfer: the student looks where the teacher looks, by its activations or by its gradient.

        activation: L = CE + beta/2 sum_j || n(F(A_S^j)) - n(F(A_T^j)) ||_2,
                    n(v) = v / ||v||_2,
                    F(A) = sum_c |A_c|^p or max_c |A_c|^p
        gradient:   L = CE + beta/2 || J_S - J_T ||_2,
                    J = d CE(x, y) / d x of each image by itself

    Position: the end of every group; the image. No connector: channels are summed, sides averaged to the smaller.
    Source: Zagoruyko and Komodakis 2017. `like="authors"` is their code, which others took over: the *squared*
    difference, averaged over positions and images, times beta = 1000 without the half; one image's term is then
    d^2/(h*w), d its norm above. They never published the gradient form. Deviations: beta = 2 of the paper's form is
    ours, as the paper's 1000 goes with the average.
    Common errors: a plus between the two maps; p = 1 without the absolute value; J divided by the batch size, which the
    mean of the cross-entropy brings in.

    The activation-based method. `with_kd` adds softened logits (T = 4, 0.9, and 0.1 times CE), as the authors do.

    Raises UnknownName for `like`.
    """
    usual = choose(like, BETA, "there is no variant {} of attention transfer")
    beta = usual if beta is None else beta
    distance, weight = (norm_l2, beta / 2) if like == "paper" else (mean_squares, beta)
    transform = attention(power, reduce)
    matches = [Match(t, s, distance, transform, transform, weight, resize=True) for t, s in pair.groups]
    task = kd(pair).stages[0].losses if with_kd else [CrossEntropy()]
    return Method("at", [Stage([*task, *matches])], scale_free=True)


def at_gradient(pair: Pair, *, beta: float = 2.0) -> Method:
    """The gradient-based method; every step differentiates the student twice."""
    match = Match("grad:loss", "grad:loss", norm_l2, weight=beta / 2)
    return Method("at_gradient", [Stage([CrossEntropy(), match])])


def jacobian(pair: Pair, *, at_attention: bool = False, weight: float = 1.0) -> Method:
    """Jacobian matching: the student's answer changes with the image as the teacher's does.

        L = (KD) + weight || J_s / ||J_s|| - J_t / ||J_t|| ||^2_2,
        J = d z_y / d x of each image by itself

    z_y is the logit of the image's class, or with `at_attention=True` the largest entry of the attention map sum_c
    |A_c| (averaged over windows of a third of its side) at the end of every group, whose unit map is matched too.
    Position: the image; all pixels. No connector: all Jacobians have the image's shape. One stage, differentiated
    twice.
    Source: Srinivas and Fleuret 2018; it shows that for squared errors matching with noise xi ~ N(0, s^2 I) on the
    image is matching plus s^2 ||J_t - J_s||^2_F, exactly so for affine networks. Deviations: the class is the label's,
    not the largest logit's; `weight` is ours. Common errors: choosing the brightest pixel of the *image* (the largest
    entry is of the attention map, the derivative by all pixels); one norm for the whole batch; dividing by the number
    of pixels.

    The method beside `kd`, which it regularises.
    """
    losses = [*kd(pair).stages[0].losses]
    if at_attention:
        unit_map = attention(1)
        for t, s in pair.groups:
            losses.append(Match(t, s, norm_l2, unit_map, unit_map, weight, resize=True))
            losses.append(Match(f"grad:attention@{t}", f"grad:attention@{s}", l2, unit, unit, weight))
    else:
        losses.append(Match("grad:logit", "grad:logit", l2, unit, unit, weight))
    return Method("jacobian", [Stage(losses)], scale_free=True)
