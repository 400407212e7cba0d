"""Scenes with what is in them, what detectors find, and where a student would imitate."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from reptrans.detection.data import Scenes
from reptrans.detection.detectors import backbone_maps
from reptrans.detection.train import detect, masks_of
from reptrans.training import evaluating
from reptrans.training.evaluation import device_of


def draw_scenes(
    nets: dict[str, FasterRCNN], scenes: Scenes, *, psi: float = 0.5, images: int = 3, score: float = 0.3
) -> np.ndarray:
    """A row for each detector and one for the imitation mask of the last, a column for each of the first images.

    White boxes: what is there. Coloured: what the detector finds with at least `score`, with its class. The mask is
    shown at the finest level, over the image as the detector scales and pads it. The axes, (rows, images).
    """
    few = scenes.first(min(images, len(scenes)))
    figure, axes = plt.subplots(len(nets) + 1, len(few), figsize=(1.6 * len(few), 1.6 * len(nets) + 1.8), squeeze=False)
    for row, (name, net) in zip(axes, nets.items(), strict=False):
        row[0].set_ylabel(name)
        for number, found in enumerate(detect(net, _loader(net, few))):
            _image(row[number], few.images[number])
            _boxes(row[number], few.boxes[number], "white")
            sure = found["scores"] >= score
            labels = [few.classes[label - 1] for label in found["labels"][sure].tolist()]
            _boxes(row[number], found["boxes"][sure], "orange", labels)
    axes[-1, 0].set_ylabel("imitation mask")
    for ax, image, mask in zip(axes[-1], *_masks(net, few, psi), strict=True):
        _image(ax, image)
        _cells(ax, mask, image)
    return axes


def _masks(net: FasterRCNN, scenes: Scenes, psi: float) -> tuple[Tensor, Tensor]:
    """The images as the detector scales and pads them, in [0, 1], and their masks at the finest level."""
    (batch,) = _loader(net, scenes)
    with evaluating(net), torch.no_grad():
        images, targets = net.transform(batch.images, batch.targets)
        masks = masks_of(net, images, backbone_maps(net, images), targets, psi)[0]
    mean, std = (
        torch.tensor(values, device=images.tensors.device)[:, None, None]
        for values in (net.transform.image_mean, net.transform.image_std)
    )
    return (images.tensors * std + mean).clamp(0, 1).cpu(), masks.cpu()


def _cells(ax: Axes, mask: Tensor, image: Tensor) -> None:
    """The mask's places, each around the centre of its anchors, which is the upper left corner of its part."""
    (rows, columns), (height, width) = mask.shape, image.shape[1:]
    down, across = height / rows / 2, width / columns / 2
    where = np.ma.masked_where(~mask.numpy(), np.ones(mask.shape))
    extent = (-across - 0.5, width - across - 0.5, height - down - 0.5, -down - 0.5)
    ax.imshow(where, cmap="cool", alpha=0.5, vmin=1, vmax=2, extent=extent)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _loader(net: FasterRCNN, scenes: Scenes):
    return scenes.loader(len(scenes), device=device_of(net), dtype=next(net.parameters()).dtype)


def _image(ax: Axes, image: Tensor) -> None:
    ax.imshow(image.permute(1, 2, 0))
    ax.set(xticks=[], yticks=[])


def _boxes(ax: Axes, boxes: Tensor, colour: str, labels: list[str] | None = None) -> None:
    """Box edges lie between pixels; Matplotlib's pixel x reaches from x - 1/2 to x + 1/2."""
    for number, (x, y, right, bottom) in enumerate(boxes.tolist()):
        ax.add_patch(Rectangle((x - 0.5, y - 0.5), right - x, bottom - y, fill=False, color=colour, linewidth=1.5))
        if labels:
            dark = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "pad": 1}
            ax.text(x + 1, y + 1, labels[number], color=colour, fontsize=10, va="top", clip_on=True, bbox=dark)
