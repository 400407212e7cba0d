"""What a stitched network is trained towards: labels, or the predictions of its two parents."""

from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import UnknownName, suggest

TARGETS = ("hard", "soft_1", "soft_2", "soft_12", "soft_1_plus_2")


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """−Σ softmax(teacher / T) · log softmax(logits / T), mean over the batch, in nats; no factor T².

    logits, teacher (n, k). At least the entropy of the teacher's prediction, which it has where both agree.
    """
    return F.cross_entropy(logits / temperature, F.softmax(teacher / temperature, dim=1))


def needs_parents(target: str) -> bool:
    """Whether the target uses the logits of the front's and the end's own networks."""
    if target not in TARGETS:
        raise UnknownName(f"Unknown target {target!r}. {suggest(target, TARGETS)}")
    return target != "hard"


def soft_target_loss(target: str, logits: Tensor, front: Tensor, end: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy to the parents' predictions (n, k), in nats per example.

    soft_1: the front's network; soft_2: the end's; soft_12: the mean of these two losses; soft_1_plus_2: one loss to
    the mean of the two networks' logits (the source calls it a sum; its code takes the mean, as here).
    """
    if target == "soft_12":
        return 0.5 * sum(soft_cross_entropy(logits, parent, temperature) for parent in (front, end))
    teacher = {"soft_1": front, "soft_2": end, "soft_1_plus_2": (front + end) / 2}[target]
    return soft_cross_entropy(logits, teacher, temperature)
