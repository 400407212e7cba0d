"""Knowledge distillation: the student's softened answers follow the teacher's.

    L = CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))

Position: the logits. No connector. One stage.
Source: Hinton, Vinyals and Dean 2015. Deviations: none; the factor T^2 keeps the gradient's scale as T changes.
Common errors: averaging over classes as well as images, which divides the weight by k; leaving T^2 out.
"""

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.matching import CrossEntropy, Match, softened_kl


def plain(pair: Pair) -> Method:
    """Training on the labels alone, what everything else is compared with."""
    return Method("plain", [Stage([CrossEntropy()])], scale_free=True)


def kd(pair: Pair, *, temperature: float = 4.0, weight: float = 0.9, task: float = 0.1) -> Method:
    """The method with `task` times cross-entropy; defaults T = 4, 0.1 and 0.9 are those of Tian et al. 2020."""
    return Method(
        "kd", [Stage([CrossEntropy(task), logits(temperature, weight)])], paper="hinton2015",
        loses="the features",
    )  # fmt: skip


def logits(temperature: float = 4.0, weight=1.0) -> Match:
    """The match of the softened logits, `weight` T^2 KL; other methods use it for their second stage."""
    scaled = (lambda p: weight(p) * temperature**2) if callable(weight) else weight * temperature**2
    return Match("out", "out", softened_kl(temperature), weight=scaled, name="kd")
