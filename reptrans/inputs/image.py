"""How an image is written in numbers that an optimiser moves: as pixels, or as frequencies."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch, check_whole
from reptrans.randomness import checked_seed, generator_of


class Pixels(nn.Module):
    """The images (n, c, h, w) themselves, each value a parameter; called, it gives the images."""

    def __init__(self, start: Tensor):
        super().__init__()
        check_start(start)
        self.values = nn.Parameter(start.detach().clone())

    def forward(self) -> Tensor:
        return self.values

    @torch.no_grad()
    def set(self, images: Tensor) -> None:
        """Go on from these images."""
        self.values.copy_(images)


class Fourier(nn.Module):
    """Images (n, c, h, w) as Fourier coefficients z, those of low frequencies moving most:

        a = 1/2 + F⁻¹(z / max(f, 1 / max(h, w))) / 4

    with f in cycles per pixel and F orthonormal. Called, it gives the images; `start` is given back as it was, up to
    rounding. Source: Olah, Mordvintsev & Schubert (2017), lucid. Deviation: no sigmoid and no colour decorrelation.
    """

    def __init__(self, start: Tensor):
        super().__init__()
        check_start(start)
        self.size = tuple(start.shape[-2:])
        frequency = torch.hypot(torch.fft.fftfreq(self.size[0])[:, None], torch.fft.rfftfreq(self.size[1])[None])
        self.register_buffer("gain", 1 / frequency.clamp_min(1 / max(self.size)).to(start))
        self.values = nn.Parameter(self._coefficients(start.detach()))

    def forward(self) -> Tensor:
        spectrum = torch.view_as_complex(self.values) * self.gain
        return 0.5 + torch.fft.irfft2(spectrum, s=self.size, norm="ortho") / 4

    @torch.no_grad()
    def set(self, images: Tensor) -> None:
        """Go on from these images."""
        self.values.copy_(self._coefficients(images))

    def _coefficients(self, images: Tensor) -> Tensor:
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
