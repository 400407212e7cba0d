"""How well a network does on images: loss, accuracy, logits. Looking leaves no trace.

Modes of all submodules, the random state, gradients and the loader's epoch are afterwards as they were before.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats, a scalar.

    `logits`: (n, k). `labels`: (n,) class numbers: -log softmax(logits)[label], mean over n. Or (n, k) zeros and ones,
    several true at once: -y log s(x) - (1 - y) log(1 - s(x)) with the logistic s, mean over all n * k entries.
    Raises ShapeMismatch.
    """
    return _loss(logits, labels, "mean")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers, a scalar in [0, 1].

    `logits`: (n, k). `labels`: (n,), right where the largest logit is the label's; or (n, k), several true at once,
    right where the logit's sign says so (above 0: true), mean over all entries. Raises ShapeMismatch.
    """
    right = _right(logits, labels)
    return right.to(wide(logits.device)).mean()


def predict(net: nn.Module, loader: Iterable) -> tuple[Tensor, Tensor]:
    """(logits, labels) of all the loader's images, in its order, on the CPU; the network in eval mode meanwhile."""
    with _answers(net, loader) as answers:
        pairs = [(logits.cpu(), labels.cpu()) for logits, labels in answers]
    if not pairs:
        raise _no_images()
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


def evaluate(net: nn.Module, loader: Iterable) -> dict[str, float]:
    """{"accuracy": in [0, 1], "cross_entropy": nats per image, "images": how many}, the network in eval mode meanwhile.

    Means are over images, not over batches. For several true labels at once both are also means over labels.
    """
    right = loss = entries = images = 0
    with _answers(net, loader) as answers:
        for logits, labels in answers:
            right += int(_right(logits, labels).sum())
            loss += float(_loss(logits.to(wide(logits.device)), labels, "sum"))
            entries += labels.numel()
            images += len(labels)
    if not images:
        raise _no_images()
    return {"accuracy": right / entries, "cross_entropy": loss / entries, "images": images}


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """All modules in eval mode inside, each of them in its own former mode afterwards."""
    with keeping_modes(*nets):
        for net in nets:
            net.eval()
        yield


@contextmanager
def keeping_modes(*nets: nn.Module) -> Iterator[None]:
    """Give every submodule its mode back at the end."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def keeping_random_state(device: torch.device) -> Iterator[None]:
    """Give the CPU's and a CUDA `device`'s random state back at the end."""
    # Apple's GPUs have no state by device number, which fork_rng needs; theirs is left to the caller.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def device_of(net: nn.Module) -> torch.device:
    """Where the network's first parameter or buffer is; the CPU if it has none."""
    return next((tensor.device for tensor in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def wide(device: torch.device) -> torch.dtype:
    """The type for sums: float64, but float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def _answers(net: nn.Module, loader: Iterable) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """An iterator over (logits, labels) of each batch, to be used inside the with-block."""
    epoch = getattr(loader, "epoch", None)
    try:
        with evaluating(net), keeping_random_state(device_of(net)), torch.no_grad():
            yield ((net(images), labels) for images, labels, *_ in loader)
    finally:
        if epoch is not None:
            loader.epoch = epoch


def _loss(logits: Tensor, labels: Tensor, reduction: str) -> Tensor:
    if _several(logits, labels):
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)
    return F.cross_entropy(logits, labels, reduction=reduction)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits > 0) == (labels > 0) if _several(logits, labels) else logits.argmax(1) == labels


def _several(logits: Tensor, labels: Tensor) -> bool:
    """Whether labels are (n, k), several true at once, and not (n,) class numbers."""
    if logits.ndim == 2 and (labels.shape == logits.shape or labels.shape == logits.shape[:1]):
        return labels.ndim == 2
    raise ShapeMismatch(
        f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit. Logits must be (n, k); labels (n,) "
        "class numbers, or (n, k) zeros and ones."
    )


def _no_images() -> BadValue:
    return BadValue("the loader gave no images. Is the split empty, or smaller than one batch with drop_last=True?")
