"""Stitching the plain way, as the code of Csiszárik et al. (2021) does it: what reptrans is measured against.

Both networks run whole in every step, joined by hooks; every image is augmented by itself; every activation is kept.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Frankenstein(nn.Module):
    """Front and end network in eval mode, and a trained 1x1 convolution between two of their layers."""

    def __init__(self, front: nn.Module, end: nn.Module, front_layer: str, end_layer: str, p: int, q: int):
        super().__init__()
        self.front, self.end = front.eval().requires_grad_(False), end.eval().requires_grad_(False)
        self.transform = nn.Conv2d(p, q, 1)
        self.caught = None
        self.hooks = [
            front.get_submodule(front_layer).register_forward_hook(self._catch),
            end.get_submodule(end_layer).register_forward_hook(lambda *_: self.transform(self.caught)),
        ]

    def _catch(self, module, inputs, output):
        # A copy, for a ReLU that works in place would overwrite it.
        self.caught = output.clone()

    def forward(self, images: Tensor) -> Tensor:
        self.front(images)
        return self.end(images)

    def unhook(self) -> None:
        for hook in self.hooks:
            hook.remove()


class Images(Dataset):
    """uint8 images (n, c, h, w) one by one as PIL images, through torchvision's transforms."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float], augment: bool):
        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels
        random = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, padding=4)] if augment else []
        self.transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def epoch(net: Frankenstein, batches: DataLoader, optimiser: torch.optim.Optimizer) -> list[float]:
    """One epoch of the transformation; the loss of every step."""
    losses = []
    for images, labels in batches:
        optimiser.zero_grad()
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        (logits.argmax(1) == labels).float().mean().item()
    return losses


def pseudo_inverse(
    front: nn.Module, end: nn.Module, layer: str, batches: Callable[[], Sequence[Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Weight (q, p) and bias (q,) of least squares at one layer: keep all activations, append ones, invert."""
    caught = {}
    hooks = [
        net.get_submodule(layer).register_forward_hook(
            lambda m, i, output, side=side: caught.setdefault(side, []).append(output.clone())
        )
        for side, net in (("x", front), ("y", end))
    ]
    with torch.no_grad():
        for images in batches():
            front(images)
            end(images)
    for hook in hooks:
        hook.remove()
    x, y = (torch.cat(caught[side]).movedim(1, -1).flatten(0, -2).numpy() for side in ("x", "y"))
    with_ones = np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], axis=1)
    solved = np.linalg.pinv(with_ones) @ y
    return solved[:-1].T, solved[-1]
