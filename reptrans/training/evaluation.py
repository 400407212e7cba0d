"""How well a network does on images: loss, accuracy, logits. Looking leaves no trace.

Modes of all submodules, the random state, gradients and the loader's epoch are afterwards as they were before.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.layers.network import each, evaluating
from reptrans.training.batches import answers_of, batches, checked_network
from reptrans.training.schedule import Plan, autocast


def classification_loss(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Mean cross-entropy in nats, a scalar; with `reduction="none"` that of each image, (n,).

    `logits`: (n, k). `labels`: (n,) class numbers: -log softmax(logits)[label], mean over n. Or (n, k) zeros and ones,
    several true at once: -y log s(x) - (1 - y) log(1 - s(x)) with the logistic s, mean over all n * k entries.
    Raises ShapeMismatch.
    """
    check_answers(logits, labels)
    return loss_of(logits, labels, reduction)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers, a scalar in [0, 1].

    `logits`: (n, k). `labels`: (n,), right where the largest logit is the label's; or (n, k), several true at once,
    right where the logit's sign says so (above 0: true), mean over all entries. Raises ShapeMismatch.
    """
    check_answers(logits, labels)
    return right(logits, labels).to(wide(logits.device)).mean()


def predict(net: nn.Module, loader: Iterable) -> tuple[Tensor, Tensor]:
    """(logits, labels) of all the loader's images, in its order, on the CPU; the network in eval mode meanwhile.

    `loader`: batches as `evaluate` takes them. Raises BadValue where it gives none.
    """
    with _answers(net, loader) as answers:
        pairs = [(logits.cpu(), labels.cpu()) for logits, labels in answers]
    if not pairs:
        raise _no_images()
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def evaluate(net: nn.Module, loader: Iterable, plan: Plan | None = None) -> dict[str, float]:
    """{"accuracy": in [0, 1], "cross_entropy": nats per image, "images": how many}, the network in eval mode meanwhile.

    `loader`: one of `dataset.loader`, a torch DataLoader, or any iterable of batches (images, labels), or of mappings
    with both; they are moved to the network. `net` may return its logits in a dict or tuple: "logits", else the first
    tensor. With a `plan` of precision "bfloat16" the network computes in it. Means are over images, not over batches.
    For several true labels at once both are also means over labels. Raises BadValue, BadData, ShapeMismatch.
    """
    sums, entries, images = [], 0, 0
    with _answers(net, loader, plan) as answers:
        for logits, labels in answers:
            check_answers(logits, labels)
            hits, loss = right(logits, labels).sum(), loss_of(logits.to(wide(logits.device)), labels, "sum")
            odd = logits.isnan().flatten(1).any(1).sum()
            sums.append(torch.stack([hits.to(loss.dtype), loss, odd.to(loss.dtype)]))
            entries += labels.numel()
            images += len(labels)
    if not images:
        raise _no_images()
    # Fetched together, for every fetch stops a GPU.
    hits, loss, odd = (sum(column) for column in zip(*torch.stack(sums).tolist(), strict=True))
    refuse_nan(int(odd), images)
    return {"accuracy": hits / entries, "cross_entropy": loss / entries, "images": images}


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """Give the CPU's and a CUDA `device`'s random state back at the end."""
    # Apple's GPUs have no state by device number, which fork_rng needs; theirs is left to the caller.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's and `device`'s generator."""
    # torch.manual_seed would reseed every GPU, also those whose state nobody gives back.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def device_of(net: nn.Module) -> torch.device:
    """Where the network's first parameter or buffer is; the CPU if it has none."""
    return next((tensor.device for tensor in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def wide(device: torch.device) -> torch.dtype:
    """The type for sums: float64, but float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def _answers(net: nn.Module, loader: Iterable, plan: Plan | None = None) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """An iterator over (logits, labels) of each batch, to be used inside the with-block."""
    device, epoch = device_of(checked_network(net)), getattr(loader, "epoch", None)
    try:
        with evaluating(net), keeping_random_state(device), torch.no_grad(), autocast(plan, device):
            found = batches(loader, device)
            # A copy: a network may write to its input, which a list of batches gives again.
            yield ((answers_of(net, each(batch.images, torch.clone)), batch.labels) for batch in found)
    finally:
        if epoch is not None:
            loader.epoch = epoch


def loss_of(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """`classification_loss` of what is known to fit: no value is looked at."""
    if labels.ndim < 2:
        return F.cross_entropy(logits, labels.long(), reduction=reduction)
    found = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)
    return found.mean(1) if reduction == "none" else found


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Where an answer is right, (n,), or (n, k) for yes-or-no labels, of what is known to fit."""
    return (logits > 0) == (labels > 0) if labels.ndim > 1 else logits.argmax(1) == labels


def refuse_nan(odd: int, images: int) -> None:
    """Raise BadData where the answers to `odd` of the images hold NaN, which no class is nearest to."""
    if odd:
        raise BadData(
            f"the network's answers to {odd} of {images} images are not numbers (NaN). Look for weights or images that "
            "are not finite."
        )


def check_answers(logits: Tensor, labels: Tensor) -> None:
    """Refuse what is neither logits (n, k) with labels (n,) class numbers, nor with (n, k), several true at once."""
    if not (logits.ndim == 2 and (labels.shape == logits.shape or labels.shape == logits.shape[:1])):
        raise ShapeMismatch(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit. Logits must be (n, k); labels "
            "(n,) class numbers, or (n, k) zeros and ones."
        )
    if labels.ndim == 1:
        check_labels(labels, logits.shape[1])
    elif labels.device.type == "cpu" and not ((labels == 0) | (labels == 1)).all():
        raise BadData("labels (n, k) say yes or no, 1 or 0, of each class, and these hold other numbers.")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise BadData for labels (n,) that are no numbers of `classes` classes; their values are looked at on the CPU."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise BadData(f"the labels are {labels.dtype}; they must be whole numbers of classes: labels.long().")
    # On a GPU a look would wait for all that is under way.
    if labels.device.type != "cpu" or not len(labels) or (labels.min() >= 0 and labels.max() < classes):
        return
    raise BadData(
        f"the labels go from {int(labels.min())} to {int(labels.max())}, but the network has the classes 0 to "
        f"{classes - 1}. Build it with as many classes as the data have, or number them from 0."
    )


def _no_images() -> BadValue:
    return BadValue("the loader gave no images. Is the split empty, or smaller than one batch with drop_last=True?")
