"""`load_dataset`: one door to every data set, by name, folder or file."""

from dataclasses import replace
from pathlib import Path

from reptrans.data.channels import averaged, repeated
from reptrans.data.dataset import Dataset, measured_statistics
from reptrans.data.folder import load_folder
from reptrans.data.resize import resized
from reptrans.data.shapes import parse, shapes
from reptrans.data.sources import SOURCES, STATISTICS, digits, from_torchvision
from reptrans.data.split import Split
from reptrans.data.text import TEXT_OPTIONS, TextDataset, load_text
from reptrans.errors import BadData, BadValue, ShapeMismatch, check_whole, choose
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
    """A data set by name, "folder:PATH" or a Path for folders of images (see `load_folder`), as train and test split.

    "shapes" are drawn when asked for, without files or downloads: shapes in colour on backgrounds, whose shape, colour,
    texture and background are known and independent. "shapes:colour" makes the colour the label;
    "shapes:shape:difficulty=2:shortcut=colour@0.9" sets options, all named in `reptrans.data.shapes`.
    "text:PATH" is a file of text, one example a line, of which a TextDataset is made; `tokenizer` and `length` are for
    it alone (see `load_text`).
    Arguments: `root`, where torchvision's files lie or are downloaded to, by default `data_root()`; a relative PATH is
    looked for in the working directory, then in `root`. `image_size` in pixels: the shorter side is resized
    (bilinear, antialiased), the centre is cropped; None keeps the images' own size. `limit`: so many training images
    of every class (of CelebA: in all), the first ones or, with `limit_seed`, a random choice; the test split stays
    whole. `split_seed`: for a folder without test images. `normalise`: the name of the set whose mean and std are
    used; by default its own, which of folders, shapes, svhn, stl10 and celeba are measured on the training split
    (on 10,000 evenly spaced images; on 500 if they are streamed). `channels`: 3 repeats grey images three times, for
    networks made for colour; 1 averages the colours; None or 0 leaves them as they are. The statistics follow.
    A folder's data set is named after the folder. Resized images of torchvision's sets are held in memory.
    Raises UnknownName, BadValue, BadData, ShapeMismatch (statistics for other channels), and NotAvailable.
    """
    name = _name(name)
    _check(name, image_size, split_seed, limit_seed, normalise, channels)
    root = expanded(root, "root") if root is not None else data_root()
    _check_kind(name, {"image_size": image_size, "normalise": normalise, "channels": channels}, text)
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


def _check(
    name: str,
    image_size: int | None,
    split_seed: int,
    limit_seed: int | None,
    normalise: str | None,
    channels: int | None,
) -> None:
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
