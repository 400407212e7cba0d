"""A teacher's values: computed once where they can be kept, the same either way, and nothing of it changes."""

import copy

import pytest
import torch
from torch import nn

from reptrans.data import load_dataset
from reptrans.errors import BadValue, LayerNotFound
from reptrans.matching import Teacher, tapped
from reptrans.models import build

TAPS = ["relu1", "fc:in", "out", "grad:loss"]


class Counted(nn.Module):
    """A network that counts its passes."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, images):
        self.passes += 1
        return self.net(images)

    def get_submodule(self, name):
        return self.net.get_submodule(name)

    def named_modules(self, *arguments, **options):
        return self.net.named_modules(*arguments, **options)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", image_size=None, limit=5)


@pytest.fixture
def net():
    return Counted(build("cnn3_w4", num_classes=10, in_channels=1, image_size=(8, 8), seed=0).double())


def loader(digits, augment="none"):
    return digits.loader("train", 20, shuffle=True, seed=3, augment=augment, dtype=torch.float64)


def plain(net, batch):
    net.eval()
    return tapped(net, batch.images, batch.labels, TAPS, keep_graph=False)


@pytest.mark.parametrize(("augment", "budget"), [("none", 2**30), ("none", 100), ("standard", 2**30)])
def test_values_are_those_of_a_pass(digits, net, augment, budget):
    batches = loader(digits, augment)
    teacher = Teacher(net, batches, budget)
    for batch in batches:
        found, expected = teacher.values(batch, TAPS), plain(net, batch)
        for tap in TAPS:
            torch.testing.assert_close(found[tap], expected[tap])
            assert not found[tap].requires_grad


def test_kept_values_cost_one_pass_over_the_images_for_all_epochs_and_students(digits, net):
    batches = loader(digits)
    teacher = Teacher(net, batches)
    for _ in range(3):
        for batch in batches:
            teacher.values(batch, ["relu1", "out"])
    whole = len(batches.plain())
    assert net.passes == whole + 1  # and one image, to see how much there is to keep
    for batch in batches:
        teacher.values(batch, ["relu2"])  # a tap that another method wants
    assert net.passes == 2 * (whole + 1)


def test_what_does_not_fit_is_found_out_once(digits, net):
    batches = loader(digits)
    teacher = Teacher(net, batches, budget=1000)
    for batch in batches:
        teacher.values(batch, ["relu1"])
    assert net.passes == len(batches) + 1


def test_the_network_stays_as_it_was_in_both_modes(digits, net):
    batches = loader(digits)
    teacher = Teacher(net.train(), batches)
    before = copy.deepcopy(net.net.state_dict())
    batch = next(iter(batches))
    own, ours = teacher.values(batch, ["bn1"], "batch"), teacher.values(batch, ["bn1"], "eval")
    assert all(torch.equal(value, before[name]) for name, value in net.net.state_dict().items())
    assert all(module.training for module in net.net.modules())
    assert all(m.track_running_stats for m in net.net.modules() if isinstance(m, nn.BatchNorm2d))
    # By the batch's own statistics every channel has mean 0 and deviation 1.
    torch.testing.assert_close(own["bn1"].mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(
        own["bn1"].std((0, 2, 3), correction=0), torch.ones(4, dtype=torch.float64), atol=1e-2, rtol=0
    )
    assert (ours["bn1"].mean((0, 2, 3)).abs() > 1e-3).any()


def test_over_all_gives_every_image_in_order_without_augmentation(digits, net):
    teacher = Teacher(net, loader(digits, "standard"))
    found = torch.cat([values["out"] for values in teacher.over_all(["out"])])
    net.eval()
    expected = torch.cat([net(batch.images) for batch in loader(digits).plain()])
    torch.testing.assert_close(found, expected)


def test_a_mode_or_tap_that_is_not_there_is_said(digits, net):
    teacher, batch = Teacher(net, loader(digits)), next(iter(loader(digits)))
    with pytest.raises(BadValue, match="the teacher's mode is 'train'. Possible: eval, batch"):
        teacher.values(batch, ["out"], "train")
    with pytest.raises(LayerNotFound, match="has no layer 'relu9'"):
        teacher.values(batch, ["relu9"])


@pytest.mark.parametrize("asked", [[["relu1", "out"], ["out"]], [["out"], ["relu1", "out"]], [["relu1"], ["out"]]])
def test_what_is_kept_does_not_depend_on_the_order_of_requests(digits, net, asked):
    batches = loader(digits)
    batch = next(iter(batches.plain()))
    teacher = Teacher(net, batches, budget=50 * 4 * 8 * 8 * 8)
    for taps in asked:
        teacher.values(batch, taps)
    teacher.values(batch, ["out"])
    passes = net.passes
    teacher.values(batch, ["out"])
    assert net.passes == passes, "what fits is kept"
    teacher.values(batch, ["relu1"])
    assert net.passes > passes, "what does not fit beside it is not"
