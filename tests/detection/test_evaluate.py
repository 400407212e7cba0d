"""Average precision of answers made up by hand."""

import pytest
import torch
from torch import nn

from reptrans.detection import Scenes, average_precision, detect
from reptrans.errors import BadValue

ONE, TWO, FAR = [0.0, 0, 10, 10], [20.0, 20, 32, 30], [40.0, 40, 50, 50]
SCENES = Scenes(
    [torch.zeros(3, 64, 64, dtype=torch.uint8)] * 2,
    [torch.tensor([ONE]), torch.tensor([TWO])],
    [torch.tensor([1]), torch.tensor([1])],
    ("a", "b", "c"),
)


class Answers(nn.Module):
    """Finds what it is told, image after image."""

    def __init__(self, *images):
        super().__init__()
        self.answers, self.modes = iter(images), set()

    def forward(self, images):
        self.modes.add(self.training)
        return [self.one(next(self.answers)) for _ in images]

    def one(self, found):
        boxes = torch.tensor([box for box, _, _ in found]).reshape(-1, 4)
        return {"boxes": boxes, "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
                "scores": torch.tensor([score for _, _, score in found])}  # fmt: skip


def precision(*images, **settings):
    return average_precision(Answers(*images), SCENES.loader(1), **settings)


def test_all_found_is_one_and_nothing_is_zero():
    assert precision([(ONE, 2, 0.9)], [(TWO, 2, 0.6)]) == pytest.approx(1)
    assert precision([], []) == 0


def test_by_hand():
    # Right, wrong, right: precision 1 up to recall 1/2 (51 of 101 recalls), then 2/3.
    found = precision([(ONE, 2, 0.9), (FAR, 2, 0.8)], [(TWO, 2, 0.7)])
    assert found == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)


def test_a_box_found_twice_is_an_error():
    found = precision([(ONE, 2, 0.9), (ONE, 2, 0.8)], [(TWO, 2, 0.7)])
    assert found == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)


def test_another_class_or_too_little_overlap_is_not_found():
    assert precision([(ONE, 1, 0.9)], [(TWO, 3, 0.6)]) == 0
    part = [0.0, 0, 10, 6]  # IoU 0.6 with ONE
    assert precision([(part, 2, 0.9)], [(TWO, 2, 0.6)]) == pytest.approx(1)
    assert precision([(part, 2, 0.9)], [(TWO, 2, 0.6)], overlap=0.7) < 0.6


def test_looking_leaves_no_trace():
    net, loader = Answers([], []).train(), SCENES.loader(1)
    detect(net, loader)
    assert net.training and net.modes == {False} and loader.epoch == 0


def test_overlap_out_of_range():
    with pytest.raises(BadValue, match="overlap is 0; an intersection over union lies above 0 and up to 1"):
        precision([], [], overlap=0)
