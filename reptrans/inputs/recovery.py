"""Numbers beside the pictures: how far one image is from another, and one representation from another."""

import math

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import ShapeMismatch


def mse(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of each pair of images, (n,) from two (n, c, h, w); one reference may serve all.

    Raises ShapeMismatch, as all that compare images.
    """
    a, b = _pair(images, reference)
    return (a - b).square().flatten(1).mean(1)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, -10 log10 MSE in dB for images in [0, 1], (n,); infinite where they are equal.

    Mean brightness rules it: beside it belongs a number that brightness does not move, `correlation` say.
    """
    return -10 * mse(images, reference).log10()


def correlation(images: Tensor, reference: Tensor) -> Tensor:
    """Pearson correlation over all values of each pair of images, (n,) in [-1, 1]; 0 where one is constant."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in _pair(images, reference))
    spread = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(spread > 0, (a * b).sum(1) / spread.clamp_min(torch.finfo(a.dtype).tiny), 0)


def aligned_mse(images: Tensor, reference: Tensor) -> Tensor:
    """E(x, a): MSE that is left after the best affine map of each channel, min over s, t of mean (s x + t - a)², (n,).

    By channel it is var(a) (1 - r²), with r the correlation of x and a; the mean over channels. Not symmetric.
    """
    x, a = (v.flatten(2) - v.flatten(2).mean(2, keepdim=True) for v in _pair(images, reference))
    energy = x.square().mean(2)
    explained = (x * a).mean(2).square() / energy.clamp_min(torch.finfo(x.dtype).tiny)
    return (a.square().mean(2) - explained).clamp_min(0).mean(1)


def ssim(images: Tensor, reference: Tensor, side: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity of images cut to [0, 1], (n,): the mean over windows of

        (2 m_x m_y + 0.01²) (2 cov + 0.03²)
        / ((m_x² + m_y² + 0.01²) (var_x + var_y + 0.03²))

    with Gaussian weights (standard deviation `sigma`) in windows of `side` x `side` pixels that lie inside the image;
    a smaller image gets the largest odd window that fits. Source: Wang, Bovik, Sheikh & Simoncelli (2004).
    """
    x, y = (v.clamp(0, 1) for v in _pair(images, reference))
    side = min(side, (min(x.shape[-2:]) - 1) // 2 * 2 + 1)
    channels = x.shape[1]
    places = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    window = torch.outer(weights, weights) / weights.sum() ** 2

    def local(values: Tensor) -> Tensor:
        return F.conv2d(values, window.expand(channels, 1, side, side), groups=channels)

    mx, my = local(x), local(y)
    vx, vy, cov = local(x * x) - mx**2, local(y * y) - my**2, local(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    map_ = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return map_.flatten(1).mean(1)


def outside(images: Tensor) -> Tensor:
    """Share of values below 0 or above 1, (n,)."""
    return ((images < 0) | (images > 1)).flatten(1).double().mean(1)


def triviality(images: Tensor, reference: Tensor, baseline: Tensor | None = None) -> Tensor:
    """T = 1 - E(x, a) / E(b, a), with E the `aligned_mse`: 1 for a copy, 0 for nothing kept beyond the baseline, (n,).

    `baseline`: b, the mean image of a data set; None for a constant image, E(b, a) being the variance of a by channel.
    Negative where the baseline is nearer.
    """
    baseline = torch.zeros_like(reference) if baseline is None else baseline
    return 1 - aligned_mse(images, reference) / aligned_mse(*_pair(baseline, reference))


def uniqueness_spread(images: Tensor) -> float:
    """How different several results (k, c, h, w) for one image are: mean of E(x_i, x_j) over mean of var(x_j), i ≠ j.

    In [0, 1]: 0 for one and the same picture, 1 for unrelated ones, NaN for one result. A large spread at a small
    relative error D is a null space; with a large D the optimiser has failed, and the spread says nothing.
    """
    i, j = (~torch.eye(len(images), dtype=torch.bool, device=images.device)).nonzero().T
    variance = images.flatten(2).var(2, correction=0).mean()
    return (aligned_mse(images[i], images[j]).mean() / variance).item() if len(images) > 1 else math.nan


def input_errors(images: Tensor, reference: Tensor) -> pd.DataFrame:
    """How far images are from their reference, in a row for each: mse, psnr, ssim, correlation, aligned_mse,
    outside."""
    x, a = (v.detach().double() if v.device.type != "mps" else v.detach() for v in (images, reference))
    columns = {"mse": mse(x, a), "psnr": psnr(x, a), "ssim": ssim(x, a), "correlation": correlation(x, a),
               "aligned_mse": aligned_mse(x, a), "outside": outside(x)}  # fmt: skip
    return pd.DataFrame({name: values.tolist() for name, values in columns.items()})


def blurred_to(images: Tensor, errors: Tensor) -> Tensor:
    """Each image (n, c, h, w) blurred by a Gaussian until its aligned MSE to itself is the error given (n,).

    The width is found by halving, up to the image's side; an error that no blur reaches gives that one.
    """
    side = min(images.shape[-2:])
    found = []
    for image, error in zip(images.split(1), errors.tolist(), strict=True):
        low, high = 1e-3, float(side)
        for _ in range(20):
            middle = (low * high) ** 0.5
            done = gaussian_blur(image, middle, side - 1)
            low, high = (low, middle) if aligned_mse(done, image).item() > error else (middle, high)
        found.append(done)
    return torch.cat(found)


def gaussian_blur(images: Tensor, width: float, reach: int) -> Tensor:
    """Images (n, c, h, w) blurred by a Gaussian of this standard deviation, cut off at `reach` pixels, one side after
    the other; the borders are mirrored."""
    weights = (-0.5 * (torch.arange(-reach, reach + 1).to(images) / width).square()).exp()
    lines = F.pad(images, [reach] * 4, mode="reflect").flatten(0, 1)[:, None]
    lines = F.conv2d(lines, (weights / weights.sum())[None, None, None, :])
    return F.conv2d(lines, (weights / weights.sum())[None, None, :, None]).view_as(images)


def cosine_to_others(activations: Tensor) -> Tensor:
    """For each row (n, d), the mean cosine with all other rows; NaN for one row."""
    unit = F.normalize(activations, dim=1)
    return ((unit @ unit.T).sum(1) - 1) / (len(unit) - 1) if len(unit) > 1 else torch.full((1,), torch.nan)


def _pair(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    as_many = len(images) == len(reference) or 1 in (len(images), len(reference))
    if images.shape[1:] != reference.shape[1:] or not as_many:
        raise ShapeMismatch(
            f"images {tuple(images.shape)} and references {tuple(reference.shape)} cannot be compared; both must be "
            "(n, channels, height, width), of one size."
        )
    count = max(len(images), len(reference))
    return images.expand(count, -1, -1, -1), reference.expand(count, -1, -1, -1)
