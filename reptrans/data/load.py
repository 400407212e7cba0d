"""`load_dataset`: one door to every data set, by name or folder."""

from dataclasses import replace
from pathlib import Path

from reptrans.data.dataset import Dataset, measured_statistics
from reptrans.data.folder import Parts, load_folder
from reptrans.data.resize import resized
from reptrans.data.sources import SOURCES, STATISTICS, digits, from_torchvision
from reptrans.data.split import Split
from reptrans.errors import BadData, BadValue, ShapeMismatch, UnknownName, suggest
from reptrans.paths import data_root


def dataset_names() -> list[str]:
    """The names that `load_dataset` knows, besides folder:PATH."""
    return ["digits", *SOURCES]


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    image_size: int | None = None,
    limit: int | None = None,
    limit_seed: int | None = None,
    split_seed: int = 0,
    normalise: str | None = None,
) -> Dataset:
    """A data set by name, or "folder:PATH" for folders of images (see `load_folder`), as train and test split.

    Arguments: `root`, where torchvision's files lie or are downloaded to, by default `data_root()`; a relative PATH is
    looked for in the working directory, then in `root`. `image_size` in pixels: the shorter side is resized
    (bilinear, antialiased), the centre is cropped; None keeps the images' own size. `limit`: so many training images
    of every class (of CelebA: in all), the first ones or, with `limit_seed`, a random choice; the test split stays
    whole. `split_seed`: for a folder without test images. `normalise`: the name of the set whose mean and std are
    used; by default its own, which of folders, svhn, stl10 and celeba are measured on the training split
    (on 10,000 evenly spaced images; on 500 if they are streamed).
    A folder's data set is named after the folder. Resized images of torchvision's sets are held in memory.
    Raises UnknownName, BadValue, BadData, ShapeMismatch (statistics for other channels), and NotAvailable.
    """
    _check(name, image_size, split_seed, limit_seed, normalise)
    root = Path(root).expanduser() if root is not None else data_root()
    if name.startswith("folder:"):
        folder = _found(name.removeprefix("folder:"), root)
        name, parts = folder.resolve().name, load_folder(folder, image_size, split_seed)
        own = None
    else:
        parts = digits() if name == "digits" else from_torchvision(name, root, image_size)
        own = STATISTICS.get(name)
    mean, std = STATISTICS[normalise] if normalise else own or measured_statistics(parts.train)
    if len(mean) != parts.train.shape[0]:
        raise ShapeMismatch(
            f"{name} has {parts.train.shape[0]} channels, but the statistics of {normalise} are for {len(mean)}. "
            "Choose another set for normalise, or none."
        )
    if limit is not None:
        parts = replace(parts, train=parts.train.limit(limit, limit_seed, parts.classes))
    parts = _resized(parts, image_size)
    return Dataset(name, parts.train, parts.test, parts.classes, mean, std)


def _check(name: str, image_size: int | None, split_seed: int, limit_seed: int | None, normalise: str | None) -> None:
    if not name.startswith("folder:") and name not in dataset_names():
        raise UnknownName(f"there is no data set {name!r}. {suggest(name, [*dataset_names(), 'folder:PATH'])}")
    if image_size is not None and (type(image_size) is not int or image_size < 1):
        raise BadValue(f"image_size is {image_size!r}. It must be a whole number of pixels from 1, or None.")
    for what, seed in (("split_seed", split_seed), ("limit_seed", limit_seed or 0)):
        if type(seed) is not int or seed < 0:
            raise BadValue(f"{what} is {seed!r}. It must be a whole number from 0.")
    if normalise is not None and normalise not in STATISTICS:
        raise UnknownName(f"there are no statistics of {normalise!r}. {suggest(normalise, STATISTICS)}")


def _found(path: str, root: Path) -> Path:
    """The folder that `path` means: as it is, or else below `root`."""
    given = Path(path).expanduser()
    if path and (folder := next((p for p in (given, root / given) if p.is_dir()), None)):
        return folder
    also = "" if given.is_absolute() else f", neither here nor in {root}"
    raise BadData(f"there is no folder {path!r}{also}. Name one with a folder of images for each class: folder:PATH.")


def _resized(parts: Parts, image_size: int | None) -> Parts:
    """Images in memory at `image_size`; streamed ones, and folders, are so already."""
    if not isinstance(parts.train, Split):
        return parts
    train, test = (Split(resized(s.images, image_size), s.labels) for s in (parts.train, parts.test))
    return replace(parts, train=train, test=test)
