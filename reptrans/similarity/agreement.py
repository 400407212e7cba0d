"""Whether two classifiers give the same answers, and make the same mistakes.

Answers are logits (n, k), or class numbers (n,); labels are class numbers (n,). Where several labels are true at once,
they are yes or no (n, k), and so are answers: logits above 0, or whole numbers 0 and 1; every entry then counts as one
answer. Values are Python floats. Where a quotient is 0 / 0 the value is NaN.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.randomness import checked_seed
from reptrans.similarity.checks import numbers, tensor_of


def disagreement(a: Tensor, b: Tensor) -> float:
    """Share of examples with different answers, in [0, 1], 0 = similar; at least the difference of the accuracies.

    a, b, as in all comparisons of answers: logits (n, k) or class numbers (n,); with several labels at once, (n, k) of
    yes and no. Raises ShapeMismatch; BadData for NaN, and for no examples.
    """
    a, b = _answers([a, b])
    return _mean(a != b)


def churn(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, float]:
    """What a change of classifier changes, as shares of all examples (Milani Fard et al. 2016).

    {"churn": answers that differ, their sum; "worse": right before; "better": right after; "neither": wrong twice}.
    """
    before, after, labels = _answers([before, after], labels)
    parts = {"worse": before == labels, "better": after == labels}
    parts["neither"] = ~(parts["worse"] | parts["better"])
    differ = before != after
    return {"churn": _mean(differ)} | {name: _mean(part & differ) for name, part in parts.items()}


def error_consistency(a: Tensor, b: Tensor, labels: Tensor) -> float:
    """Cohen's kappa of being right: κ = (o - e) / (1 - e).

    o: share of examples that both have right or both have wrong; e = a₁a₂ + (1-a₁)(1-a₂), expected of independent
    errors at these accuracies. Range within [-1, 1], see `error_consistency_range`; 1 = same errors, 0 = independent.
    Comparable only at equal accuracies. NaN if both are always right, or always wrong.
    Source: Geirhos et al. 2020, equations 1 to 3.
    """
    kinds, counts = _kinds(a, b, labels)
    return float(_kappa(counts @ kinds))


def error_consistency_interval(
    a: Tensor, b: Tensor, labels: Tensor, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of `error_consistency` over examples, by percentiles.

    Examples are drawn again with `seed`, with all their entries; only how many have both, one or none right matters, so
    that counts are drawn. Draws in which kappa is not defined are left out.
    """
    if not 0 < level < 1:
        raise BadValue(f"level lies between 0 and 1; given {level}.")
    kinds, counts = _kinds(a, b, labels)
    drawn = np.random.default_rng(checked_seed(seed)).multinomial(counts.sum(), counts / counts.sum(), resamples)
    kappas = _kappa(drawn @ kinds)
    kappas = kappas[~np.isnan(kappas)]
    tails = (1 - level) / 2, (1 + level) / 2
    return tuple(float(v) for v in np.quantile(kappas, tails)) if len(kappas) else (math.nan, math.nan)


def error_consistency_range(accuracy_a: float, accuracy_b: float) -> tuple[float, float]:
    """The smallest and largest kappa that two accuracies allow; at (0.95, 0.90): -0.071 to 0.643."""
    for value in (accuracy_a, accuracy_b):
        if not 0 <= value <= 1:
            raise BadValue(f"an accuracy is a fraction in [0, 1]; given {value}.")
    expected = accuracy_a * accuracy_b + (1 - accuracy_a) * (1 - accuracy_b)
    if expected == 1:
        return math.nan, math.nan
    observed = abs(accuracy_a + accuracy_b - 1), 1 - abs(accuracy_a - accuracy_b)
    return tuple((o - expected) / (1 - expected) for o in observed)


def cohen_kappa(a: Tensor, b: Tensor) -> float:
    """Agreement of the answers beyond chance, (o - Σ_k p_k q_k) / (1 - Σ_k p_k q_k), in [-1, 1] (Cohen 1960).

    NaN if both give one and the same answer throughout.
    """
    a, b = (v.flatten() for v in _answers([a, b]))
    classes = int(max(a.max(), b.max())) + 1
    p, q = (torch.bincount(v, minlength=classes).double() / len(v) for v in (a, b))
    expected = float((p * q).sum())
    return math.nan if expected == 1 else (_mean(a == b) - expected) / (1 - expected)


def error_ratio(a: Tensor, b: Tensor, labels: Tensor) -> float:
    """Of the examples both have wrong: differently wrong / same wrong, in [0, ∞], high = dissimilar.

    ∞ if they never give the same wrong answer, NaN if no example is wrong for both. Source: Aksela 2003.
    """
    a, b, labels = _answers([a, b], labels)
    wrong = (a != labels) & (b != labels)
    same, different = int((wrong & (a == b)).sum()), int((wrong & (a != b)).sum())
    return different / same if same else (math.inf if different else math.nan)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence of probabilities p, q (n, k), in bits: H((p+q)/2) - (H(p) + H(q)) / 2.

    Range [0, 1], 0 = similar. Probabilities of 0 add nothing. Differentiable inside.
    Raises ShapeMismatch; BadData if rows are no probabilities: give softmax(logits).
    """
    p, q = numbers(p, "p"), numbers(q, "q")
    if p.ndim != 2 or p.shape != q.shape:
        raise ShapeMismatch(f"jensen_shannon needs p and q (n, k); given {tuple(p.shape)} and {tuple(q.shape)}.")
    p, q = p.double(), q.double()
    for v in (p, q):
        if not ((v >= 0).all() and torch.allclose(v.sum(1), v.new_ones(len(v)), atol=1e-4)):
            raise BadData("jensen_shannon needs rows of probabilities that sum to 1; give logits.softmax(1).")
    entropy = [torch.special.entr(v).sum(1) for v in ((p + q) / 2, p, q)]
    return (entropy[0] - (entropy[1] + entropy[2]) / 2).clamp_min(0).mean() / math.log(2)


def ensemble_accuracy(logits: Sequence[Tensor], labels: Tensor) -> float:
    """Accuracy of the mean of the networks' probabilities, in [0, 1]; logits (n, k) of each, with the same k."""
    logits = [numbers(v, "the logits") for v in logits]
    if len({tuple(v.shape) for v in logits}) != 1 or logits[0].ndim != 2:
        given = [tuple(v.shape) for v in logits] or "none"
        raise ShapeMismatch(f"logits (n, k) with the same classes are needed, of one network or more; given {given}.")
    several = _whole(labels).ndim > 1
    mean = torch.stack([v.double().sigmoid() if several else v.double().softmax(1) for v in logits]).mean(0)
    answers, labels = _answers([mean - 0.5 if several else mean], labels)
    return _mean(answers == labels)


def agreement(a: Tensor, b: Tensor, labels: Tensor, seed: int = 0) -> dict[str, float]:
    """How alike two classifiers answer, of logits a and b (n, k) and labels (n,), as a row.

    accuracy_a, accuracy_b, ensemble_accuracy, disagreement, error_consistency (_low and _high its interval, drawn by
    `seed`; _least and _most its range), cohen_kappa, error_ratio, jensen_shannon: see the functions of these names.
    With labels (n, k) the divergence is that of each yes or no. Raises ShapeMismatch, BadData.
    """
    logits = [numbers(v, "the logits") for v in (a, b)]
    ensemble = ensemble_accuracy(logits, labels)
    a, b, labels = _answers(logits, labels)
    accuracies = [_mean(v == labels) for v in (a, b)]
    interval = error_consistency_interval(a, b, labels, seed=seed)
    possible = error_consistency_range(*accuracies)
    return {
        "accuracy_a": accuracies[0], "accuracy_b": accuracies[1],
        "ensemble_accuracy": ensemble,
        "disagreement": disagreement(a, b),
        "error_consistency": error_consistency(a, b, labels),
        "error_consistency_low": interval[0], "error_consistency_high": interval[1],
        "error_consistency_least": possible[0], "error_consistency_most": possible[1],
        "cohen_kappa": cohen_kappa(a, b),
        "error_ratio": error_ratio(a, b, labels),
        "jensen_shannon": float(jensen_shannon(*(_probabilities(v, labels.ndim > 1) for v in logits))),
    }  # fmt: skip


def _probabilities(logits: Tensor, several: bool) -> Tensor:
    """(n, k) of classes, or (n k, 2) of each yes and no."""
    if not several:
        return logits.double().softmax(1)
    yes = logits.double().sigmoid().flatten()
    return torch.stack([yes, 1 - yes], 1)


def _answers(answers: Sequence[Tensor], *labels: Tensor) -> list[Tensor]:
    """Class numbers (n,) of logits or class numbers, or yes and no (n, k) where one of them is; the labels last.

    Raises ShapeMismatch for unequal n or k; BadData for NaN, nothing, or what is no answer.
    """
    given = [tensor_of(v, "an answer") for v in answers] + [_whole(v) for v in labels]
    shapes = [tuple(v.shape) for v in given]
    several = any(v.ndim == 2 and not v.is_floating_point() for v in given)
    if any(len(shape) not in (1, 2) for shape in shapes) or len({s if several else s[0] for s in shapes}) > 1:
        raise ShapeMismatch(f"answers of the same examples are needed, (n, k) or (n,); given {shapes}.")
    if not all(v.numel() for v in given):
        raise BadData("there are no answers to compare.")
    if any(v.is_floating_point() and v.isnan().any() for v in given):
        raise BadData("answers hold NaN; look at the network and its input.")
    given = [v.to(given[0].device) for v in given]
    for v in given:
        _refuse_no_class(v, 2 if several else max((u.shape[1] for u in given if u.ndim == 2), default=None))
    if several:
        return [(v > 0).long() for v in given]
    return [v.argmax(1) if v.ndim == 2 else v.long() for v in given]


def _whole(labels: Tensor) -> Tensor:
    """Labels with yes and no (n, k) in whole numbers, which loaders give as floats."""
    labels = tensor_of(labels, "the labels")
    if labels.ndim < 2 or not labels.is_floating_point():
        return labels
    if ((labels != 0) & (labels != 1)).any():
        raise BadData(
            f"the labels are {tuple(labels.shape)} of {labels.dtype}. Give class numbers (n,), labels.argmax(1), or "
            "yes (1) and no (0) for each class."
        )
    return labels.long()


def _refuse_no_class(v: Tensor, classes: int | None) -> None:
    """Raise BadData for answers that are neither logits nor whole numbers from 0 below `classes` (None: any)."""
    if v.ndim == 2 and v.is_floating_point():
        return
    least, most = v.min().item(), v.max().item()
    if least < 0 or (classes is not None and most >= classes) or (v.is_floating_point() and (v % 1).any()):
        possible = "from 0" if classes is None else f"from 0 to {classes - 1}"
        raise BadData(
            f"answers {tuple(v.shape)} of {v.dtype} go from {least} to {most}; they are whole numbers {possible}."
        )


def _kinds(a: Tensor, b: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of examples, each by how many of its answers are right for (both, a alone, b alone, neither), and how many
    examples are of each."""
    a, b, labels = _answers([a, b], labels)
    a, b = a == labels, b == labels
    right = torch.stack([a & b, a & ~b, ~a & b, ~a & ~b], -1).long().cpu().numpy()
    if right.ndim == 2:
        return np.eye(4, dtype=np.int64), right.sum(0)
    return np.unique(right.sum(1), axis=0, return_counts=True)


def _kappa(counts: np.ndarray) -> np.ndarray:
    both, only_a, only_b, neither = np.moveaxis(counts / counts.sum(-1, keepdims=True), -1, 0)
    a, b = both + only_a, both + only_b
    expected = a * b + (1 - a) * (1 - b)
    certain = expected >= 1
    return np.where(certain, np.nan, (both + neither - expected) / np.where(certain, 1, 1 - expected))


def _mean(v: Tensor) -> float:
    return int(v.sum()) / v.numel()
