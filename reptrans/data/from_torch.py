"""Any torch Dataset of (image, label) as a part of a data set, in memory."""

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from reptrans.data.split import Split
from reptrans.data.streamed import GREY
from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.progress import progress


def split_of(part: data.Dataset, name: str) -> Split:
    """All (image, label) of a torch Dataset, as bytes and classes; see `Dataset.from_torch`."""
    if not isinstance(part, data.Dataset) or not hasattr(part, "__len__"):
        raise BadValue(
            f"the {name} part is a {type(part).__name__}. Give a torch Dataset that has a length and holds (image, "
            "label); of a DataLoader, its .dataset."
        )
    if not len(part):
        raise BadData(f"the {name} part is empty.")
    first, _ = _example(part, 0, name)
    if any(not torch.equal(_example(part, i, name)[0], _example(part, i, name)[0]) for i in range(min(8, len(part)))):
        raise BadData(f"the {name} part gives another image each time. Leave augmentation to loader(augment=…).")
    if (needed := len(part) * first.numel()) > psutil.virtual_memory().available / 2:
        raise BadValue(f"the {name} part needs {needed / 1e9:.0f} GB of memory. Name a folder of images instead.")
    images, labels = torch.empty(len(part), *first.shape, dtype=torch.uint8), []
    for i in progress(range(len(part)), f"{name} images"):
        image, label = _example(part, i, name)
        if image.shape != first.shape:
            raise ShapeMismatch(
                f"{name} image {i} is {tuple(image.shape)} and the first {tuple(first.shape)}. Resize them to one size."
            )
        images[i] = image
        labels.append(label)
    return Split(images, _classes(labels, name))


def class_names(part: data.Dataset, *splits: Split) -> tuple[str, ...]:
    """The names that the part, or what it is a part of, has for its classes; or else their numbers."""
    if names := getattr(part, "classes", None) or getattr(getattr(part, "dataset", None), "classes", None):
        return tuple(map(str, names))
    labels = splits[0].labels
    count = labels.shape[1] if labels.ndim > 1 else 1 + max(int(split.labels.max()) for split in splits)
    return tuple(map(str, range(count)))


def _example(part: data.Dataset, i: int, name: str) -> tuple[Tensor, object]:
    example = part[i]
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise BadData(f"{name} example {i} is a {type(example).__name__}, and not a pair (image, label).")
    return _as_bytes(example[0], f"{name} image {i}"), example[1]


def _as_bytes(image: object, which: str) -> Tensor:
    """uint8 (c, h, w) of a PIL image, of bytes, or of floats in [0, 1] that were bytes, as ToTensor makes them."""
    if isinstance(image, Image.Image) and image.mode[0] not in "IF":
        pixels = np.array(image.convert("L" if image.mode in GREY else "RGB"))
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in (1, 3):
        given = tuple(image.shape) if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise BadData(f"{which} is {given}. Possible: a PIL image of 8 bits, or a tensor (c, h, w), c being 1 or 3.")
    if image.dtype == torch.uint8:
        return image
    values = image.double() * 255
    rounded = values.round().clamp(0, 255)
    if not image.is_floating_point() or not (values - rounded).abs().max() < 1e-3:
        raise BadData(
            f"{which} holds {image.dtype} from {image.min().item():.3g} to {image.max().item():.3g}, no bytes over "
            "255. Leave Normalize out, for the loader normalises, and put Resize before ToTensor."
        )
    return rounded.to(torch.uint8)


def _classes(labels: list, name: str) -> Tensor:
    try:
        found = torch.tensor([label.tolist() if hasattr(label, "tolist") else label for label in labels])
    except (TypeError, ValueError):
        found = torch.tensor(0.5)
    if found.ndim not in (1, 2) or found.is_floating_point():
        raise BadData(
            f"the {name} labels are like {labels[0]!r:.60}. Give each image the number of its class; or, where it can "
            "be in several, as many whole numbers 0 and 1 as there are classes."
        )
    return found.long() if found.ndim == 1 else found.to(torch.uint8)
