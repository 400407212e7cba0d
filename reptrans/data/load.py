"""`load_dataset`: one door to every data set, by name, folder or file.

Those known by name are digits from scikit-learn, shapes that are drawn, and others from torchvision's files.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reptrans.data.dataset import Dataset, measured_statistics
from reptrans.data.folder import Parts, load_folder
from reptrans.data.shapes import parse, shapes
from reptrans.data.split import Split
from reptrans.data.streamed import Streamed, averaged, repeated, resized
from reptrans.data.text import TEXT_OPTIONS, TextDataset, load_text
from reptrans.errors import BadData, BadValue, NotAvailable, ShapeMismatch, check_whole, choose
from reptrans.paths import data_root, expanded


def dataset_names() -> list[str]:
    """The names that `load_dataset` knows, besides folder:PATH and text:PATH."""
    return ["digits", "shapes", *SOURCES]


def load_dataset(
    name: str | Path,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    limit_seed: int | None = None,
    split_seed: int = 0,
    normalise: str | None = None,
    channels: int | None = None,
    **text,
) -> Dataset | TextDataset:
    """A data set by name, "folder:PATH" or a Path for folders of images, as train and test split.

    "shapes" are drawn when asked for, without files or downloads: shapes in colour on backgrounds, whose shape, colour,
    texture and background are known and independent. "shapes:colour" makes the colour the label, "shapes:shape+texture"
    the pairs of both; "shapes:shape:difficulty=2:shortcut=colour@0.9" sets options, in any order: difficulty from 0 to
    5, by default 1; images, 4,000 to train on; seed, 0; shortcut=FACTOR@SHARE, the share of training images in which
    the factor follows the label.
    A folder holds train and test with a folder for each class, or class folders alone, of which a fifth is the test
    split, drawn by `split_seed`; so is it of a text.
    "text:PATH" is a UTF-8 file with an example in each line, and after a tab its class; it makes a TextDataset. For it
    alone: `tokenizer`, a tokenizer.json or its folder, None for the bytes; `length`, 512, where lines are cut, in
    tokens.
    Arguments: `root`, where torchvision's files lie or are downloaded to, by default `data_root()`; a relative PATH is
    looked for in the working directory, then in `root`. `image_size` in pixels: the shorter side is resized (bilinear,
    antialiased), the centre is cropped; None keeps the images' own size. `limit`: so many training images of every
    class (of CelebA: in all), the first ones or, with `limit_seed`, a random choice; the test split stays whole.
    `normalise`: the name of the set whose mean and std are used; by default its own, which of folders, shapes, svhn,
    stl10 and celeba are measured on the training split (on 10,000 evenly spaced images; on 500 if they are streamed).
    `channels`: 3 repeats grey images three times, for networks made for colour; 1 averages the colours; None or 0
    leaves them as they are. The statistics follow.
    A folder's data set is named after the folder. Resized images of torchvision's sets are held in memory.
    Raises UnknownName, BadValue, BadData, ShapeMismatch (statistics for other channels), and NotAvailable.
    """
    name = _name(name)
    about = {"image_size": image_size, "normalise": normalise, "channels": channels}
    _check(name, split_seed, limit_seed, **about)
    root = expanded(root, "root") if root is not None else data_root()
    _check_kind(name, about, text)
    if name.startswith("text:"):
        return _text(name, root, limit, limit_seed, split_seed, text)
    if name.startswith("folder:"):
        folder = _found(name.removeprefix("folder:"), root)
        name, parts = folder.resolve().name, load_folder(folder, image_size, split_seed)
        own = None
    elif _is_shapes(name):
        parts, own = shapes(name, image_size), None  # difficulty moves the statistics
    else:
        parts = digits() if name == "digits" else from_torchvision(name, root, image_size)
        own = STATISTICS.get(name)
    if channels == 1 and parts.train.shape[0] == 3:
        parts, own = replace(parts, train=averaged(parts.train), test=averaged(parts.test)), None
    mean, std = STATISTICS[normalise] if normalise else own or measured_statistics(parts.train)
    repeat = channels == 3 and parts.train.shape[0] == 1
    if repeat and len(mean) == 1:
        mean, std = mean * 3, std * 3
    found = 3 if repeat else parts.train.shape[0]
    if len(mean) != found:
        raise ShapeMismatch(
            f"{name} has {found} channels, but the statistics of {normalise} are for {len(mean)}. "
            "Choose another set for normalise, or none; or other channels."
        )
    if limit is not None:
        parts = replace(parts, train=parts.train.limit(limit, limit_seed, parts.classes))
    if isinstance(parts.train, Split):  # streamed images are made so when they are read
        train, test = (replace(part, images=resized(part.images, image_size)) for part in (parts.train, parts.test))
        parts = replace(parts, train=train, test=test)
    if repeat:
        parts = replace(parts, train=repeated(parts.train), test=repeated(parts.test))
    return Dataset(name, parts.train, parts.test, parts.classes, mean, std)


def _name(given: str | Path) -> str:
    if isinstance(given, str | Path):
        return given if isinstance(given, str) else f"folder:{given}"
    raise BadValue(
        f"load_dataset takes the name of a data set or the Path of a folder, not {given!r:.60}. Possible: "
        f"{', '.join([*dataset_names(), 'folder:PATH', 'text:PATH'])}."
    )


def _check(name: str, split_seed: int, limit_seed: int | None, *, image_size, normalise, channels) -> None:
    if _is_shapes(name):
        parse(name)
    elif not name.startswith(("folder:", "text:")):
        choose(name, [*dataset_names(), "folder:PATH", "text:PATH"], "there is no data set {}")
    if channels is not None and (type(channels) is not int or channels not in (0, 1, 3)):
        raise BadValue(
            f"channels is {channels!r}. Possible: 3 (grey is repeated), 1 (colours are averaged), 0 (as is)."
        )
    if image_size is not None:
        check_whole("image_size", image_size, 1, of=" of pixels", more=", or None.")
    check_whole("split_seed", split_seed, 0)
    check_whole("limit_seed", limit_seed or 0, 0)
    if normalise is not None:
        choose(normalise, STATISTICS, "there are no statistics of {}")


def _is_shapes(name: str) -> bool:
    return name.partition(":")[0] == "shapes"


def _found(path: str, root: Path) -> Path:
    """The folder that `path` means: as it is, or else below `root`."""
    given = expanded(path, "folder")
    if path and (folder := next((p for p in (given, root / given) if p.is_dir()), None)):
        return folder
    also = "" if given.is_absolute() else f", neither here nor in {root}"
    raise BadData(f"there is no folder {path!r}{also}. Name one with a folder of images for each class: folder:PATH.")


def _text(name: str, root: Path, limit: int | None, limit_seed: int | None, split_seed: int, text: dict) -> TextDataset:
    place = name.removeprefix("text:")
    given = expanded(place, "text")
    file = next((p for p in (given, root / given) if p.is_file()), None)
    if file is None:
        raise BadData(f"there is no file {place!r}, neither here nor in {root}. Name a file of text: text:PATH.")
    parts, vocabulary = load_text(file, split_seed, **text)
    train = parts.train if limit is None else parts.train.limit(limit, limit_seed, parts.classes)
    return TextDataset(file.stem, train, parts.test, parts.classes, vocabulary)


def _check_kind(name: str, images: dict, text: dict) -> None:
    """Refuses what is for images where `name` is text, the reverse, and what is for neither."""
    options = ["root", "limit", "limit_seed", "split_seed", *images, *TEXT_OPTIONS]
    for what in text:
        choose(what, options, "load_dataset has no argument {}", BadValue, listed="Its arguments")
    is_text = name.startswith("text:")
    wrong = {key: value for key, value in (images if is_text else text).items() if value not in (None, 0)}
    for what, value in wrong.items():
        kinds = "images; {} is text" if is_text else "text:PATH; {} has images"
        raise BadValue(f"{what} is {value!r}, which is for {kinds.format(name)}. Leave {what} out.")


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
