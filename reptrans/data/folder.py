"""A data set from folders of images, one folder for each class: in memory where it fits, streamed where it does not."""

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reptrans.data.split import Split, a_fifth
from reptrans.data.streamed import GREY, Streamed, decode, opened
from reptrans.errors import BadCheckpoint, BadData, CannotWrite
from reptrans.files import file_name
from reptrans.paths import data_root
from reptrans.tensorfiles import load_tensors, save_tensors

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Held in memory: images up to this side, and parts that need no more than this together.
MOST_SIDE, MOST_BYTES = 64, 2 * 2**30
LOOKED_AT = 1_000
# What folders of parts are called, in capital or small letters. A part for validation is the test part where there is
# no other; its name must come after.
_CALLED = {"train": r"train(ing)?", "test": r"test(ing)?", "validation": r"val(id|idation)?|eval(uation)?|dev"}

Classes = dict[str, list[Path]]


@dataclass(frozen=True)
class Parts:
    """What a source gives: two splits and the names of the classes."""

    train: Split | Streamed
    test: Split | Streamed
    classes: tuple[str, ...]


def load_folder(folder: Path, image_size: int | None, split_seed: int) -> Parts:
    """`folder`/train and `folder`/test with class folders; or class folders alone, split 80 to 20 in every class.

    The parts may also be called training and testing, in capital letters too; where there is no test, one of val,
    valid, validation, eval and dev takes its place. Folders of these names are never classes.
    Classes are the sorted names of the folders; images are sorted by name within a class, those of folders below
    included. Grey if all of (up to 1,000 evenly spaced) images are, else RGB. Images of at most 64 pixels a side, as
    delivered, and 2 GiB together are decoded once and kept under `data_root()/cache`, where that can be written to;
    others are streamed.
    Raises BadData.
    """
    train, test = _two_parts(folder, split_seed)
    files = {"train": _flat(train), "test": _flat(test)}
    shape = _shape(files["train"] + files["test"], image_size)
    resize, splits = image_size is not None, {}
    for part, classes in (("train", train), ("test", test)):
        labels = torch.cat([torch.full((len(found),), i) for i, found in enumerate(classes.values())])
        splits[part] = Streamed(tuple(files[part]), labels, shape, resize)
    c, h, w = shape
    if max(h, w) <= MOST_SIDE and (len(files["train"]) + len(files["test"])) * c * h * w <= MOST_BYTES:
        splits = {part: _in_memory(split, folder, f"{folder.name} {part}") for part, split in splits.items()}
    return Parts(splits["train"], splits["test"], tuple(train))


def _two_parts(folder: Path, split_seed: int) -> tuple[Classes, Classes]:
    there = _part_folders(folder)
    if not there:
        return a_fifth(_class_files(folder), split_seed, "image")
    if len(there) == 1:
        ((part, name),) = there.items()
        missing = "test" if part == "train" else "train"
        raise BadData(
            f"{folder} has a folder {name}, but no folder {missing}. Add {missing}, or give the class folders "
            f"without {name} to have them split 80 to 20."
        )
    first, second = there["train"], there["test"]
    train, test = _class_files(folder / first), _class_files(folder / second)
    if list(train) != list(test):
        only = [", ".join(a for a in x if a not in y) or "none" for x, y in ((train, test), (test, train))]
        raise BadData(
            f"{first} and {second} of {folder} have different classes. Only in {first}: {only[0]}. "
            f"Only in {second}: {only[1]}. Give both the same class folders."
        )
    return train, test


def _part_folders(folder: Path) -> dict[str, str]:
    """The folder's name for "train" and for "test", of those that are there. Raises BadData for two of one part."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = {}
    for part, pattern in _CALLED.items():
        called = rf"({pattern})([ _-]?(set|split|data|images))?"
        some = [name for name in names if re.fullmatch(called, name, re.IGNORECASE)]
        if len(some) > 1:
            raise BadData(
                f"{folder} has the folders {' and '.join(some)}, and either could be the {part} part. Leave one."
            )
        if some:
            found.setdefault("test" if part == "validation" else part, some[0])
    return found


def _class_files(folder: Path) -> Classes:
    """The image files of each class folder, both sorted by name."""
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    classes = {name: _images(folder / name) for name in names}
    if not any(classes.values()):
        if loose := [file for file in _images(folder) if file.parent == folder]:
            raise BadData(
                f"{folder} has {len(loose)} images and no class folders, by which they are labelled. Give each class "
                f"its folder: {folder / 'cat' / loose[0].name}. Images without labels are taken by `compare` alone: a "
                "tensor, or a DataLoader, in place of a data set."
            )
        raise BadData(
            f"{folder} has no images in class folders. Expected for instance {folder / 'cat' / '001.png'}; "
            f"images end in {', '.join(sorted(SUFFIXES))}."
        )
    if empty := [name for name, files in classes.items() if not files]:
        raise BadData(f"{folder} has no images for: {', '.join(empty)}. Add some or delete the folder.")
    if len(classes) == 1:
        raise BadData(f"{folder} has one class only, {names[0]}. Classification needs at least two class folders.")
    return classes


def _images(folder: Path) -> list[Path]:
    """The image files in `folder` and below, sorted by name; links to folders are followed, but none to one seen."""
    found, seen = [], set()
    for top, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        folders[:] = sorted(folders) if real not in seen else []
        found += [os.path.join(top, name) for name in names if real not in seen and not name.startswith(".")]
        seen.add(real)
    return [Path(name) for name in sorted(found) if os.path.splitext(name)[1].lower() in SUFFIXES]


def _flat(classes: Classes) -> list[Path]:
    return [file for files in classes.values() for file in files]


def _shape(files: list[Path], image_size: int | None) -> tuple[int, int, int]:
    """(c, h, w) as the images will be delivered, from the headers of up to 1,000 of them."""
    grey, sizes = True, {}
    for file in files[:: -(-len(files) // LOOKED_AT)]:
        with opened(file) as image:
            grey = grey and image.mode in GREY
            sizes.setdefault(image.size, file)
    if image_size is None and len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise BadData(
            f"{first} is {a[0]} x {a[1]} pixels, {second} is {b[0]} x {b[1]}. "
            "Give image_size to bring all images to one size."
        )
    width, height = next(iter(sizes)) if image_size is None else (image_size, image_size)
    return 1 if grey else 3, height, width


def _in_memory(split: Streamed, folder: Path, label: str) -> Split:
    """The split decoded, from the cache if the files are the same as when it was made."""
    name = file_name(label.replace(" ", "-"))
    path = data_root() / "cache" / f"{name}-{_fingerprint(split, folder)}.safetensors"
    images = _cached(path, (len(split), *split.shape))
    if images is None:
        images = decode(split.files, split.shape, split.resize, label)
        # Where nothing can be kept, the images are there all the same.
        with suppress(CannotWrite):
            save_tensors(path, {"images": images})
    return Split(images, split.labels)


def _cached(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The images in the file; None where there is none that can be read and holds such images."""
    try:
        images = load_tensors(path)[0]["images"]
    except (BadCheckpoint, OSError, LookupError, TypeError):
        return None
    good = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape == shape
    return images if good else None


def _fingerprint(split: Streamed, folder: Path) -> str:
    """Changes when the folder, a file's name, size or time, or the form of the images does."""
    digest = hashlib.sha256(repr((str(folder.resolve()), split.shape, split.resize)).encode())
    for file in split.files:
        stat = file.stat()
        digest.update(f"{file.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
