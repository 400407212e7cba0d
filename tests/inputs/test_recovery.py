"""Each measure against its closed form."""

import math

import numpy as np
import pytest
import torch

from reptrans.errors import ShapeMismatch
from reptrans.inputs import (
    aligned_mse,
    blurred_to,
    correlation,
    input_errors,
    mse,
    outside,
    psnr,
    ssim,
    triviality,
    uniqueness_spread,
)
from reptrans.inputs.recovery import cosine_to_others


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, X = uniform(3, 3, 14, 15), uniform(3, 3, 14, 15, seed=1)


def test_mse_and_psnr():
    off = A + torch.tensor([0.1, -0.01, 0.0]).view(3, 1, 1, 1)
    assert mse(off, A).tolist() == pytest.approx([1e-2, 1e-4, 0.0])
    assert psnr(off, A).tolist() == pytest.approx([20.0, 40.0, math.inf])


def test_correlation_is_pearsons():
    by_numpy = [np.corrcoef(x.flatten(), a.flatten())[0, 1] for x, a in zip(X, A, strict=True)]
    assert correlation(X, A).tolist() == pytest.approx(by_numpy)
    assert correlation(1 - 2 * A, A).tolist() == pytest.approx([-1.0] * 3)
    assert correlation(torch.ones_like(A), A).tolist() == [0.0] * 3


def test_aligned_mse_is_what_least_squares_leaves():
    expected = []
    for x, a in zip(X, A, strict=True):
        left = []
        for channel in range(3):
            design = np.stack([x[channel].flatten(), np.ones(14 * 15)], 1)
            left.append(np.linalg.lstsq(design, a[channel].flatten().numpy(), rcond=None)[1][0] / (14 * 15))
        expected.append(np.mean(left))
    assert aligned_mse(X, A).tolist() == pytest.approx(expected)


def test_aligned_mse_sees_no_affine_map_of_a_channel():
    maps = torch.tensor([[2.0, 0.3], [-1.0, 0.0], [0.1, 5.0]])
    moved = A * maps[:, 0].view(3, 1, 1) + maps[:, 1].view(3, 1, 1)
    assert aligned_mse(moved, A).max() < 1e-15
    constant = aligned_mse(torch.zeros_like(A), A)
    assert constant.tolist() == pytest.approx(A.flatten(2).var(2, correction=0).mean(1).tolist())


def ssim_by_loops(x: np.ndarray, y: np.ndarray, side: int) -> float:
    places = np.arange(side) - side // 2
    w = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    w, found = w / w.sum(), []
    for c in range(len(x)):
        for i in range(x.shape[1] - side + 1):
            for j in range(x.shape[2] - side + 1):
                p, q = (v[c, i : i + side, j : j + side] for v in (x, y))
                mp, mq = (w * p).sum(), (w * q).sum()
                vp, vq, cov = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum(), (w * (p - mp) * (q - mq)).sum()
                found.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(found))


def test_ssim():
    expected = [ssim_by_loops(x.numpy(), a.numpy(), 11) for x, a in zip(X, A, strict=True)]
    assert ssim(X, A).tolist() == pytest.approx(expected)
    assert ssim(A, A).tolist() == pytest.approx([1.0] * 3)
    assert torch.equal(ssim(X * 3 - 1, A), ssim((X * 3 - 1).clamp(0, 1), A))


def test_ssim_of_a_small_image_takes_a_smaller_window():
    x, a = X[:1, :, :6, :8], A[:1, :, :6, :8]
    assert ssim(x, a).item() == pytest.approx(ssim_by_loops(x[0].numpy(), a[0].numpy(), 5))


def test_outside():
    assert outside(torch.tensor([-0.1, 0.0, 1.0, 1.1]).view(1, 1, 2, 2)).item() == 0.5


def test_triviality_is_one_for_a_copy_and_zero_for_the_baseline():
    base = A.mean(0, keepdim=True)
    assert triviality(A * 0.5 + 0.1, A, base).tolist() == pytest.approx([1.0] * 3)
    assert triviality(base, A, base).abs().max() < 1e-12
    assert triviality(torch.zeros_like(A), A).abs().max() < 1e-12
    variance = A.numpy().var((2, 3))
    r = correlation(X.flatten(0, 1)[:, None], A.flatten(0, 1)[:, None]).view(3, 3).numpy()
    expected = (r**2 * variance).mean(1) / variance.mean(1)
    assert triviality(X, A).tolist() == pytest.approx(expected.tolist())


def test_spread_of_starts():
    assert uniqueness_spread(A[:1].expand(4, -1, -1, -1)) == pytest.approx(0, abs=1e-12)
    assert uniqueness_spread(torch.cat([A[:1], 1 - A[:1]])) == pytest.approx(0, abs=1e-12)
    pairs = [aligned_mse(A[i : i + 1], A[j : j + 1]).item() for i in range(3) for j in range(3) if i != j]
    variance = A.flatten(2).var(2, correction=0).mean().item()
    assert uniqueness_spread(A) == pytest.approx(np.mean(pairs) / variance)
    assert 0.9 < uniqueness_spread(A) <= 1
    assert math.isnan(uniqueness_spread(A[:1]))


def test_cosine_to_others():
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    half = 0.5**0.5
    assert cosine_to_others(rows).tolist() == pytest.approx([half / 2, half / 2, half])
    assert cosine_to_others(rows[:1]).isnan().all()


def test_a_blur_reaches_the_error_wanted():
    wanted = 0.3 * aligned_mse(torch.zeros_like(A), A)
    assert aligned_mse(blurred_to(A, wanted), A).tolist() == pytest.approx(wanted.tolist(), rel=1e-3)
    assert torch.allclose(blurred_to(A, torch.zeros(3)), A, atol=1e-6)


def test_all_at_once():
    table = input_errors(X, A)
    assert list(table) == ["mse", "psnr", "ssim", "correlation", "aligned_mse", "outside"]
    for name, measure in (("mse", mse), ("psnr", psnr), ("ssim", ssim), ("correlation", correlation)):
        assert table[name].tolist() == measure(X, A).tolist()


def test_one_reference_serves_all():
    assert mse(X, A[:1]).tolist() == mse(X, A[:1].expand(3, -1, -1, -1)).tolist()


@pytest.mark.parametrize("other", [A[:2], A[:, :1], A[..., :5]])
def test_what_cannot_be_compared_is_refused(other):
    with pytest.raises(ShapeMismatch, match="cannot be compared"):
        mse(X, other)
