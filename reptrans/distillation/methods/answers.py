"""Methods that compare what the networks answer; and plain training, what everything else is compared with."""

from collections.abc import Callable

import torch
from torch import Tensor

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import CrossEntropy, Distance, Match, above_0, label, softened_kl
from reptrans.matching.match import Weight
from reptrans.matching.transforms import without


def plain(pair: Pair) -> Method:
    """Training on the labels alone, what everything else is compared with."""
    return Method("plain", [Stage([CrossEntropy()])], scale_free=True)


def kd(pair: Pair, *, temperature: float = 4.0, weight: float = 0.9, task: float = 0.1) -> Method:
    """Knowledge distillation: the student's softened answers follow the teacher's.

        L = CE(z_s, y) + weight T^2 KL(softmax(z_t / T) || softmax(z_s / T))

    Position: the logits. No connector. One stage.
    Source: Hinton, Vinyals and Dean 2015. Deviations: none; the factor T^2 keeps the gradient's scale as T changes.
    Common errors: averaging over classes as well as images, which divides the weight by k; leaving T^2 out.

    The method with `task` times cross-entropy; defaults T = 4, 0.1 and 0.9 are those of Tian et al. 2020.
    """
    return Method("kd", [Stage([CrossEntropy(task), logits(temperature, weight)])])


def logits(temperature: float = 4.0, weight: Weight = 1.0) -> Match:
    """The match of the softened logits, `weight` T^2 KL; other methods use it for their second stage."""
    scaled = (lambda p: weight(p) * temperature**2) if callable(weight) else weight * temperature**2
    return Match("out", "out", softened_kl(temperature), weight=scaled, name="kd")


def dkd(
    pair: Pair, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: float = 1 / 12
) -> Method:
    """Decoupled knowledge distillation: what is said of the right class, and of the others, weighed apart.

        L = CE + w(p) T^2 [ alpha KL(b_t || b_s) + beta KL(q_t || q_s) ],
        w(p) = min(1, p / warmup)

    b = (p_y, 1 - p_y) are the softened probabilities of the label y and of all else (TCKD), q those of the other
    classes alone, which sum to 1 (NCKD). Plain distillation is KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_y of the
    teacher) KL(q_t || q_s): its second part is all but silent where the teacher is sure. p is the share of the training
    that is done.
    Position: the logits, and the labels. No connector. One stage.
    Source: Zhao et al. 2022, authors' code: alpha = 1, T = 4, beta = 8 by default, 6 for WRN-40-2 to WRN-16-2 and
    VGG-13 to VGG-8, 2 for ResNet-56 to ResNet-20; 20 of 240 epochs of warm-up. Deviations: the weight rises with every
    step, there with every epoch.
    Common errors: q of all classes with the label's logit at 0, which is no small logit; p_y of the student as the
    factor of NCKD; beta as large as 8 without warm-up.

    The method; `warmup` is the share of the epochs in which the weight rises, in [0, 1). Raises BadValue.
    """
    terms = (("target", label_or_not(temperature), alpha), ("others", others, beta))
    matches = [
        # The labels are the student's, so that where some are not known both sides are asked about the same class.
        Match(
            "out", ("out", "labels"), apart(part, temperature), student_transform=with_labels,
            weight=rising(weight * temperature**2, warmup), name=f"dkd {name}",
        )
        for name, part, weight in terms
    ]  # fmt: skip
    return Method("dkd", [Stage([CrossEntropy(), *matches])])


def with_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, labels) as they are: what `apart` compares."""
    return logits, labels


def apart(part: Callable[[Tensor, Tensor], Tensor], temperature: float = 4.0) -> Distance:
    """KL at T of part(logits, labels), mean over images, of the teacher's logits and the student's (logits, labels).

    The distance raises ShapeMismatch for networks of different classes.
    """
    kl = softened_kl(temperature)

    def distance(teacher: Tensor, student: tuple[Tensor, Tensor]) -> Tensor:
        logits, labels = student
        if teacher.shape != logits.shape:
            raise ShapeMismatch(
                f"the teacher's answers are {tuple(teacher.shape)} and the student's {tuple(logits.shape)}; decoupled "
                "distillation compares networks of the same classes."
            )
        return kl(part(teacher, labels), part(logits, labels))

    distance.label = f"{kl.label} of {label(part)}"
    return distance


def label_or_not(temperature: float = 4.0) -> Callable[[Tensor, Tensor], Tensor]:
    """(n, 2) with softmax(. / T) = b of logits (n, k) and labels (n,): z_y, T ln sum_{i != y} exp(z_i / T). T > 0."""
    above_0(temperature=temperature)

    def transform(logits: Tensor, labels: Tensor) -> Tensor:
        rest = temperature * torch.logsumexp(others(logits, labels) / temperature, 1, keepdim=True)
        return torch.cat([logits.gather(1, labels[:, None]), rest], 1)

    transform.label = "the label and all else"
    return transform


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (n, k - 1) of all classes but the label's, of (n, k) and labels (n,). Raises ShapeMismatch."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ShapeMismatch(
            f"logits are {tuple(logits.shape)} and labels {tuple(labels.shape)}; they must be (n, classes) and (n,)."
        )
    return without(logits, labels)


def rising(weight: float, share: float) -> Weight:
    """weight * min(1, p / share) of the progress p; the weight itself for a share of 0. Raises BadValue."""
    if not 0 <= share < 1:
        raise BadValue(f"warmup is {share!r}; it is a share of the epochs, from 0 on and below 1.")
    return (lambda progress: weight * min(1.0, progress / share)) if share else weight


others.label, with_labels.label = "the other classes", "with labels"
