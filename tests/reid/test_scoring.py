"""Retrieval by hand, and pose that can be read where it is written."""

import math

import pytest
import torch
from torch import nn

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.reid import People, codes_of, find_again, pose_r2, retrieval, stick_figures


def people(identities: list[int], cameras: list[int]) -> People:
    images = torch.zeros(len(identities), 3, 4, 2, dtype=torch.uint8)
    return People(images, torch.tensor(identities), torch.tensor(cameras))


GALLERY = people([1, 2, 1, 3, 1], [2, 2, 2, 2, 2])
ONE = people([1], [1])


@pytest.mark.parametrize(
    ("distances", "rank1", "precision"),
    [
        ([1, 4, 2, 5, 3], 1, 1),  # right ones at ranks 1, 2, 3
        ([2, 1, 4, 3, 5], 0, (1 / 2 + 2 / 4 + 3 / 5) / 3),
        ([3, 1, 4, 2, 5], 0, (1 / 3 + 2 / 4 + 3 / 5) / 3),
        ([1, 2, 5, 3, 4], 1, (1 + 2 / 4 + 3 / 5) / 3),
    ],
)
def test_rank1_and_average_precision_by_hand(distances, rank1, precision):
    found = retrieval(torch.tensor([distances], dtype=torch.float64), ONE, GALLERY)
    assert found == {"rank1": rank1, "mAP": pytest.approx(precision), "queries": 1}


def test_equal_distances_earn_nothing():
    found = retrieval(torch.zeros(1, 5), ONE, GALLERY)
    assert found == {"rank1": 0, "mAP": pytest.approx((1 / 3 + 2 / 4 + 3 / 5) / 3), "queries": 1}


def test_the_same_camera_and_junk_are_passed_over():
    gallery = people([1, -1, 2, 1, 2], [1, 2, 1, 2, 2])
    # Nearest are herself by the same camera and junk; somebody else by the same camera stays in.
    found = retrieval(torch.tensor([[0.0, 1.0, 4.0, 3.0, 2.0]]), ONE, gallery)
    assert found == {"rank1": 0, "mAP": 0.5, "queries": 1}


def test_queries_are_averaged_and_those_without_an_answer_left_out():
    query = people([1, 2, 9], [1, 1, 1])
    distances = torch.tensor([[1.0, 4, 2, 5, 3], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
    found = retrieval(distances, query, GALLERY)
    assert found == {"rank1": 0.5, "mAP": pytest.approx((1 + 0.5) / 2), "queries": 2}


def test_retrieval_refuses():
    with pytest.raises(ShapeMismatch, match=r"distances are \(5, 1\), for 1 queries and 5 images"):
        retrieval(torch.zeros(5, 1), ONE, GALLERY)
    with pytest.raises(BadData, match="NaN"):
        retrieval(torch.full((1, 5), math.nan), ONE, GALLERY)
    with pytest.raises(BadData, match="no query has an image"):
        retrieval(torch.zeros(1, 5), people([4], [1]), GALLERY)


class Pixels(nn.Module):
    """The image's numbers as its code; in train mode, nothing."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1) * self.one * (not self.training)


def test_codes_are_those_of_eval_mode_and_leave_no_trace():
    net, figures = Pixels(), stick_figures(4, 6, 2, height=16).train
    codes = codes_of(net, figures, batch_size=5)
    assert net.training and not codes.requires_grad
    torch.testing.assert_close(codes, figures.images.flatten(1).double() / 127.5 - 1)


def test_find_again_uses_euclidean_distances():
    figures = stick_figures(6, 8, 4, height=16)
    query, gallery = figures.query, figures.gallery
    a, b = (p.images.flatten(1).double() / 127.5 for p in (query, gallery))
    by_hand = (a[:, None] - b).square().sum(2).sqrt()
    assert find_again(Pixels(), query, gallery) == pytest.approx(retrieval(by_hand, query, gallery))


class Told(nn.Module):
    """Codes that were given beforehand."""

    def __init__(self, codes):
        super().__init__()
        self.codes, self.one = codes, nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.codes


FIGURES = stick_figures(24, 10, 12, height=16).gallery


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pose_written_into_codes_is_read_off_them_whoever_it_is():
    hidden = FIGURES.landmarks.flatten(1).double() @ normal(12, 16)
    person = 50 * normal(24, 16, seed=1)[FIGURES.identities]
    assert pose_r2(Told(hidden + person), FIGURES) > 0.999


def test_codes_that_know_nothing_of_the_pose_have_none():
    assert pose_r2(Told(normal(len(FIGURES), 16)), FIGURES) < 0.05
    assert pose_r2(Told(normal(24, 16)[FIGURES.identities]), FIGURES) == pytest.approx(0, abs=0.01)


def test_pose_hidden_in_noise_is_read_in_part():
    """As much noise as signal, about each person's mean: half of the variance."""
    told = FIGURES.landmarks.flatten(1).double()
    told = (told - told.mean(0)) / told.std(0)
    found = [pose_r2(Told(told + noise * normal(*told.shape)), FIGURES) for noise in (0.3, 1.0, 3.0)]
    assert found[0] > 0.8 and 0.3 < found[1] < 0.7 and -0.1 < found[2] < 0.3


def test_more_features_than_images_and_features_that_rarely_speak_do_no_harm():
    told = FIGURES.landmarks.flatten(1).double() / 3
    seldom = torch.zeros(len(FIGURES), 40, dtype=torch.float64)
    seldom[torch.arange(40) * 2 % len(FIGURES), torch.arange(40)] = 1e-3
    assert pose_r2(Told(torch.cat([told, seldom], 1)), FIGURES) > 0.99
    assert -0.05 < pose_r2(Told(normal(len(FIGURES), 400)), FIGURES) < 0.05


def test_images_that_lack_a_joint_are_left_out():
    hidden, landmarks = FIGURES.landmarks.flatten(1).double() @ normal(12, 16), FIGURES.landmarks.clone()
    landmarks[:5, 2] = torch.nan
    some = People(FIGURES.images, FIGURES.identities, FIGURES.cameras, landmarks)
    assert pose_r2(Told(hidden[5:]), some) > 0.999


def test_pose_needs_landmarks_and_persons():
    none = People(FIGURES.images, FIGURES.identities, FIGURES.cameras)
    with pytest.raises(BadData, match="no landmarks, so there is no pose to read"):
        pose_r2(Pixels(), none)
    few = FIGURES.select(FIGURES.identities < 15)
    with pytest.raises(BadData, match="3 persons have two images with all joints; 5 folds"):
        pose_r2(Pixels(), few)
    with pytest.raises(BadValue, match="folds is 2"):
        pose_r2(Pixels(), FIGURES, folds=2)
