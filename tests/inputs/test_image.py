"""Pixels, Fourier coefficients and starts."""

import pytest
import torch

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.inputs import Fourier, Pixels, noise
from reptrans.inputs.image import check_images


@pytest.mark.parametrize("form", [Pixels, Fourier])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 5)])
def test_the_start_comes_back(form, size):
    start = noise(2, (3, *size), dtype=torch.float64)
    assert torch.allclose(form(start)(), start, atol=1e-14)


@pytest.mark.parametrize("form", [Pixels, Fourier])
def test_an_image_can_be_set(form):
    image, other = form(noise(1, (1, 6, 6), dtype=torch.float64)), torch.rand(1, 1, 6, 6, dtype=torch.float64)
    image.set(other)
    assert torch.allclose(image(), other, atol=1e-14)


def test_low_frequencies_move_most():
    heights = {}
    for k in (1, 2, 4):
        image = Fourier(torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64))
        with torch.no_grad():
            image.values[0, 0, 0, k, 0] = 1.0
        heights[k] = (image() - 0.5).abs().max().item()
    # A cosine of amplitude 2 / 16 (both halves of the spectrum), times 1 / f = 16 / k, over 4.
    assert heights == pytest.approx({k: 2 / 16 * 16 / k / 4 for k in heights})


def test_a_start_depends_on_its_own_seed_alone():
    both = noise(3, (1, 4, 4), seed=5)
    assert torch.equal(both[1:], noise(2, (1, 4, 4), seed=6))
    many = noise(1, (3, 100, 100), dtype=torch.float64)
    assert many.mean().item() == pytest.approx(0.7, abs=2e-3) and many.std().item() == pytest.approx(0.05, rel=0.02)


def test_starts_leave_the_random_state():
    before = torch.get_rng_state()
    noise(2, (1, 4, 4))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.full((1, 1, 2, 2), 255.0), BadValue, "from 255 to 255.*Divide by 255"),
        (torch.full((1, 1, 2, 2), -1.0), BadValue, "before any normalisation"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), BadValue, "uint8.*Divide by 255"),
        (torch.zeros(3, 2, 2), ShapeMismatch, r"\(n, channels, height, width\).*\(3, 2, 2\)"),
        (torch.zeros(0, 3, 2, 2), ShapeMismatch, r"\(0, 3, 2, 2\)"),
        (torch.full((1, 1, 2, 2), torch.nan), BadValue, "NaN"),
    ],
)
def test_what_is_no_image_is_refused(images, error, words):
    with pytest.raises(error, match=words):
        check_images(images)


def test_no_starts_are_refused():
    with pytest.raises(BadValue, match="count is 0"):
        noise(0, (1, 4, 4))
