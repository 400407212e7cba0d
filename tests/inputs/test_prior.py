"""Terms, transforms and projections against values by hand."""

import pytest
import torch

from reptrans.errors import BadValue
from reptrans.inputs import blur, jitter, linear, range_penalty, total_variation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_total_variation():
    images = torch.tensor([[[[0.0, 1.0, 3.0], [0.0, 1.0, 7.0]]], [[[2.0] * 3] * 2]])
    down, across = (0 + 0 + 4) / 3, (1 + 2 + 1 + 6) / 4
    assert total_variation(0.1)(images).tolist() == pytest.approx([0.1 * (down + across), 0.0])


def test_range_penalty():
    images = torch.tensor([-1.0, 0.0, 0.5, 3.0]).view(1, 1, 2, 2)
    assert range_penalty(2.0)(images).item() == pytest.approx(2 * (1 + 2) / 4)


def test_jitter_shifts_and_mirrors():
    images = torch.arange(5.0).expand(1, 1, 5, 5)
    shifted = [jitter(2)(images, generator(seed))[0, 0, 0].tolist() for seed in range(40)]
    mirrored = [2, 1, 0, 1, 2, 3, 4, 3, 2]
    assert {tuple(row) for row in shifted} == {tuple(float(v) for v in mirrored[i : i + 5]) for i in range(5)}
    assert torch.equal(jitter(0)(images, generator()), images)


@pytest.mark.parametrize(("sigma", "share"), [(2.4, 0.917), (1.5, 0.801), (0.4, 0.044)])
def test_the_blur_is_gaussian(sigma, share):
    point = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    point[0, 0, 3, 3] = 1.0
    done = blur(sigma)(point, 0.0)[0, 0]
    assert (done[3, 4] / done[3, 3]).item() == pytest.approx(share, abs=5e-4)
    assert done.sum().item() == pytest.approx(1) and (done > 0).sum() == 9


def test_a_width_may_fall():
    images = torch.rand(1, 1, 8, 8, generator=generator())
    falling = blur(linear(2.4, 0.4))
    assert torch.equal(falling(images, 0.5), blur(1.4)(images, 0.0))
    assert [linear(1.5, 1.0)(t / 4) for t in range(4)] == [1.5, 1.375, 1.25, 1.125]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: total_variation(-1.0), "weight is -1.0"),
        (lambda: range_penalty(float("nan")), "weight is nan"),
        (lambda: blur(1.0, kernel=4), "odd number"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(BadValue, match=words):
        make()
