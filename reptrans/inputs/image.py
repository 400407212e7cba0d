"""Images: written in numbers that an optimiser moves, as pixels or as frequencies; read from data or files; shown."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from reptrans.data import Dataset
from reptrans.data.streamed import opened, resized_picture
from reptrans.errors import BadValue, ShapeMismatch, UnknownName, check_whole, suggest
from reptrans.figures import WIDEST
from reptrans.paths import expanded
from reptrans.randomness import checked_seed, generator_of


class Pixels(nn.Module):
    """The images (n, c, h, w) themselves, each value a parameter; called, it gives the images."""

    def __init__(self, start: Tensor):
        super().__init__()
        check_start(start)
        self._prepare(start)
        self.values = nn.Parameter(self._written(start.detach()).clone())

    def forward(self) -> Tensor:
        return self.values

    @torch.no_grad()
    def set(self, images: Tensor) -> None:
        """Go on from these images."""
        self.values.copy_(self._written(images))

    def _prepare(self, start: Tensor) -> None:
        """What has to be known of the images before they are written."""

    def _written(self, images: Tensor) -> Tensor:
        return images


class Fourier(Pixels):
    """Images (n, c, h, w) as Fourier coefficients z, those of low frequencies moving most:

        a = 1/2 + F⁻¹(z / max(f, 1 / max(h, w))) / 4

    with f in cycles per pixel and F orthonormal. Called, it gives the images; `start` is given back as it was, up to
    rounding. Source: Olah, Mordvintsev & Schubert (2017), lucid. Deviation: no sigmoid and no colour decorrelation.
    """

    def _prepare(self, start: Tensor) -> None:
        self.size = tuple(start.shape[-2:])
        frequency = torch.hypot(torch.fft.fftfreq(self.size[0])[:, None], torch.fft.rfftfreq(self.size[1])[None])
        self.register_buffer("gain", 1 / frequency.clamp_min(1 / max(self.size)).to(start))

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.values) * self.gain
        return 0.5 + torch.fft.irfft2(spectrum, s=self.size, norm="ortho") / 4

    def _written(self, images: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft2(4 * (images - 0.5), norm="ortho") / self.gain)


def noise(
    count: int,
    shape: Sequence[int],
    *,
    seed: int = 0,
    mean: float = 0.7,
    std: float = 0.05,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`count` starts (n, c, h, w) from N(mean, std²), on the CPU; the i-th depends on seed + i alone.

    Defaults: those of Badger's scripts, where the second number of N(0.7, 1/20) is a standard deviation too.
    """
    check_whole("count", count, 1)
    for size in shape:
        check_whole("a size of the images", size, 1)
    if not std >= 0:
        raise BadValue(f"std is {std}; it must be 0 or above.")
    seeds = range(checked_seed(seed), seed + count)
    draws = [torch.randn(*shape, generator=generator_of(i), dtype=torch.float64) for i in seeds]
    return (mean + std * torch.stack(draws)).to(dtype)


def check_images(images: Tensor, what: str = "images") -> None:
    """Refuse what is no batch of images in [0, 1]. Raises ShapeMismatch, BadValue."""
    check_start(images, what)
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        advice = "Divide by 255." if high > 2 else "Give them as they are before any normalisation, in [0, 1]."
        raise BadValue(f"{what} range from {low:.3g} to {high:.3g}, and 0 to 1 is expected. {advice}")


def check_start(images: Tensor, what: str = "images") -> None:
    """Refuse what is no batch of finite real images. Raises ShapeMismatch, BadValue."""
    if not isinstance(images, Tensor):
        raise BadValue(
            f"{what} must be a tensor (n, channels, height, width), and a {type(images).__name__} was given. Starts of "
            "a shape are drawn by noise(n, (channels, height, width))."
        )
    if images.ndim != 4 or not images.numel():
        raise ShapeMismatch(f"{what} must be (n, channels, height, width), and these are {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise BadValue(f"{what} are {images.dtype}; floating point in [0, 1] is expected. Divide by 255.")
    if not torch.isfinite(images).all():
        raise BadValue(f"{what} hold NaN or infinity.")


SAMPLES = ("china", "flower")


def load_pictures(given: Sequence[str], dataset: Dataset | None, size: int | None) -> Tensor:
    """Images (n, c, h, w) in [0, 1], float64, one for each of `given`:

    "17", the 17th test image of the data set (counted from 0); "china" or "flower", scikit-learn's photographs; or the
    path of an image file. Photographs are resized to cover a square of `size` pixels (None: 224), and its centre kept.
    Raises BadValue, UnknownName, BadData, ShapeMismatch where they differ in size or channels.
    """
    if not given:
        raise BadValue("no pictures are named. Possible: numbers of test images, china, flower, paths of image files.")
    found = [_from_dataset(int(name), dataset) if name.isdigit() else _photograph(name, size or 224) for name in given]
    shapes = {tuple(image.shape) for image in found}
    if len(shapes) > 1:
        raise ShapeMismatch(
            f"the pictures {', '.join(given)} have the shapes {', '.join(map(str, sorted(shapes)))} (channels, height, "
            "width). Name photographs, or images of a data set, not both."
        )
    return torch.stack(found)


def picture_grid(
    pictures: dict[str, Tensor], columns: Sequence[str] = (), captions: dict[str, Sequence[str]] | None = None
) -> Axes:
    """Draw a row of pictures for each entry, {name of the row: (n, c, h, w)}; values are cut to [0, 1].

    `captions`: {name of the row: a text below each of its pictures}.
    """
    height, width = len(pictures), len(next(iter(pictures.values())))
    side = min(1.05, (WIDEST - 1.2) / width)
    size = (side * width + 1.2, side * height + 0.3)
    figure, axes = plt.subplots(height, width, figsize=size, squeeze=False, layout="constrained")
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        for ax, text in zip(row, (captions or {}).get(name, ()), strict=False):
            ax.set_xlabel(text, fontsize="x-small", labelpad=2)
        shown = images.detach().cpu().clamp(0, 1).movedim(1, -1).double().numpy()
        for ax, image in zip(row, shown, strict=True):
            ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, name in zip(axes[0], columns, strict=False):
        ax.set_title(name, fontsize="medium")
    return axes[0, 0]


def crops(images: Tensor, count: int) -> Tensor:
    """`count` crops of three quarters of the side from each image, at seeded places, resized to the image's size."""
    g, (height, width) = torch.Generator().manual_seed(0), images.shape[-2:]
    h, w = 3 * height // 4, 3 * width // 4
    parts = []
    for image in images.repeat_interleave(count, 0).split(1):
        top, left = (int(torch.randint(free + 1, (), generator=g)) for free in (height - h, width - w))
        parts.append(tv.resized_crop(image, top, left, h, w, [height, width], antialias=True))
    return torch.cat(parts)


def _from_dataset(index: int, dataset: Dataset | None) -> Tensor:
    if dataset is None or index >= len(dataset.test):
        have = f"{dataset.name} has {len(dataset.test)} test images" if dataset else "there is no data set here"
        raise BadValue(f"test image {index} was asked for, and {have}.")
    return dataset.test.batch(torch.tensor([index]))[0].double() / 255


def _photograph(name: str, size: int) -> Tensor:
    if name in SAMPLES:
        from sklearn.datasets import load_sample_image

        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
    else:
        picture = _opened(name)
    return torch.from_numpy(np.array(resized_picture(picture, size))).permute(2, 0, 1).double() / 255


def _opened(name: str) -> Image.Image:
    path = expanded(name, "a picture")
    if not path.is_file():
        raise UnknownName(f"there is no picture {name!r}. {suggest(name, [*SAMPLES, 'a number', 'PATH of a file'])}")
    with opened(path) as picture:
        return picture.convert("RGB")
