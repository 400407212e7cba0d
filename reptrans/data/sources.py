"""The data sets known by name: digits from scikit-learn, the others from torchvision's files or downloads."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reptrans.data.folder import Parts
from reptrans.data.split import Split
from reptrans.data.streamed import Streamed
from reptrans.errors import NotAvailable

_MNIST_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_CELEBA_FILES = (
    "img_align_celeba.zip (unpacked), list_attr_celeba.txt, identity_CelebA.txt, list_bbox_celeba.txt, "
    "list_landmarks_align_celeba.txt, list_eval_partition.txt"
)


@dataclass(frozen=True)
class Source:
    """A class of torchvision.datasets, and which files it reads from which folder below the root."""

    cls: str
    files: str
    folder: str = "."
    within: str = "."
    classes: tuple[str, ...] = ()


_DIGITS = tuple("0123456789")
SOURCES = {
    "mnist": Source("MNIST", ", ".join(_MNIST_FILES), "MNIST/raw", classes=_DIGITS),
    "fashion_mnist": Source("FashionMNIST", ", ".join(_MNIST_FILES), "FashionMNIST/raw"),
    "cifar10": Source("CIFAR10", "cifar-10-python.tar.gz"),
    "cifar100": Source("CIFAR100", "cifar-100-python.tar.gz"),
    # torchvision has no folder of its own for these files.
    "svhn": Source("SVHN", "train_32x32.mat, test_32x32.mat", "svhn", within="svhn", classes=_DIGITS),
    "stl10": Source("STL10", "stl10_binary.tar.gz"),
    "celeba": Source("CelebA", _CELEBA_FILES, "celeba"),
}

# Per channel: means, standard deviations, of images in [0, 1]. Sets that are not here are measured when loaded.
STATISTICS = {
    "digits": ((0.3070,), (0.3762,)),
    "mnist": ((0.1307,), (0.3081,)),
    # MNIST's, as in the stitching authors' code: their trained networks expect them. The set's own: 0.2860, 0.3530.
    "fashion_mnist": ((0.1307,), (0.3081,)),
    # The stitching authors' values too. This std, found in many programs, is a mean of the images' own deviations
    # and a fifth smaller than that of all pixels (0.247, 0.243, 0.262), but the published weights were trained with it.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    # For networks from torchvision, on whatever images.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def digits() -> Parts:
    """scikit-learn's 1,797 digits, 8 x 8, grey 0 to 16 as round(255·x/16): the first 1,000 to train, 797 to test.

    The file goes from writer to writer, so the test images are by other writers than the training images, but for
    the one at the border. No download. Source: Alpaydin & Kaynak 1998, UCI, the test part of optdigits.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images)[:, None].mul(255 / 16).round().to(torch.uint8)
    labels = torch.from_numpy(found.target).long()
    return Parts(Split(images[:1000], labels[:1000]), Split(images[1000:], labels[1000:]), _DIGITS)


def from_torchvision(name: str, root: Path, image_size: int | None) -> Parts:
    """One of SOURCES, below `root`; torchvision downloads what is not there.

    CelebA is streamed, with 40 yes-or-no labels; STL-10 without its unlabelled images.
    Raises NotAvailable, with the files and the folder to put them into.
    """
    source = SOURCES[name]
    try:
        sets = [_part(source, root / source.within, part) for part in ("train", "test")]
    # torchvision, urllib and gdown have no error class in common; the cause is chained.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise NotAvailable(
            f"{name} could not be downloaded or read ({reason}). "
            f"Put {source.files} into {root / source.folder}, or give the folder that has it as root."
        ) from error
    if name == "celeba":
        return _celeba(sets, root / "celeba" / "img_align_celeba", image_size)
    train, test = (Split(_tensor(found), _labels(found)) for found in sets)
    return Parts(train, test, source.classes or tuple(sets[0].classes))


def _part(source: Source, root: Path, part: str) -> object:
    from torchvision import datasets

    by_split = source.cls in ("SVHN", "STL10", "CelebA")
    which = {"split": part} if by_split else {"train": part == "train"}
    return getattr(datasets, source.cls)(str(root), download=True, **which)


def _tensor(found: object) -> Tensor:
    """uint8 (n, c, h, w), from (n, h, w) grey, (n, h, w, 3) or (n, 3, h, w)."""
    images = torch.as_tensor(found.data)
    if images.ndim == 3:
        return images[:, None]
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def _labels(found: object) -> Tensor:
    return torch.as_tensor(found.targets if hasattr(found, "targets") else found.labels).long()


def _celeba(sets: list, folder: Path, image_size: int | None) -> Parts:
    # All aligned images are 178 x 218.
    shape = (3, 218, 178) if image_size is None else (3, image_size, image_size)
    train, test = (
        Streamed(tuple(folder / name for name in s.filename), s.attr.to(torch.uint8), shape, image_size is not None)
        for s in sets
    )
    return Parts(train, test, tuple(name for name in sets[0].attr_names if name))
