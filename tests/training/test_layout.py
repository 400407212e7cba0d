"""Where convolutions are faster with their channels last, networks have them so; what cannot is left alone."""

import pytest
import torch
from torch import nn

from reptrans.data import Loader, Split
from reptrans.layers import end, front
from reptrans.models import build
from reptrans.stitching import Stitch, StitchedNetwork, train_stitch
from reptrans.training import Plan
from reptrans.training.layout import channels_last

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Viewing(nn.Module):
    """Flattens its maps by a view, as many networks do; channels last would be an error there."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5 * 64, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


class Strided(nn.Module):
    """Reads memory as if it were contiguous; with channels last it would say something else, and no error."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        y = self.conv(x)
        return self.fc(torch.as_strided(y, (len(x), 5, 64), (320, 64, 1)).amax(2))


class Wanting(nn.Module):
    """In train mode it takes targets too, as detectors do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, targets=None):
        if self.training:
            raise ValueError(f"targets are {targets}")
        return self.conv(x).mean((2, 3))


def laid_out(net: nn.Module) -> bool:
    return net.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_inside_it_is_channels_last_and_outside_as_before():
    net, other = (build("cnn3_w4", num_classes=4, image_size=(8, 8), seed=seed) for seed in (0, 1))
    before, made = {k: v.clone() for k, v in net.state_dict().items()}, net.eval()(IMAGES)
    with channels_last([net, other], IMAGES):
        assert laid_out(net) and laid_out(other)
        torch.testing.assert_close(net(IMAGES), made, rtol=1e-4, atol=1e-5)
    assert all(p.is_contiguous() for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_an_error_inside_restores_too():
    net = build("cnn3_w4", num_classes=4, image_size=(8, 8))
    with pytest.raises(ZeroDivisionError), channels_last([net], IMAGES):
        raise ZeroDivisionError
    assert all(p.is_contiguous() for p in net.parameters())


@pytest.mark.parametrize(
    ("others", "images"),
    [
        ([], IMAGES.double()),
        ([], IMAGES.flatten(1)),
        ([Viewing()], IMAGES),
        ([Strided()], IMAGES),
        ([nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())], IMAGES),
        ([], IMAGES[:, :2]),
        ([], {"x": IMAGES}),
    ],
    ids=["double precision", "no images", "a view", "strides", "dropout on maps", "other channels", "keywords"],
)
def test_left_alone(others, images):
    net = build("cnn3_w4", num_classes=4, image_size=(8, 8)).to(getattr(images, "dtype", None))
    with channels_last([net, *others], images):
        assert net.conv2.weight.is_contiguous()


@pytest.mark.parametrize("other", [Wanting(), nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.BatchNorm1d(4))])
def test_a_network_that_fails_in_train_mode_is_tried_in_eval_mode(other):
    net = build("cnn3_w4", num_classes=4, image_size=(8, 8))
    with channels_last([net, other], IMAGES[:1]):
        assert laid_out(net)


def test_a_layout_of_ones_own_is_kept():
    net = build("cnn3_w4", num_classes=4, image_size=(8, 8)).to(memory_format=torch.channels_last)
    with channels_last([net], IMAGES):
        pass
    assert laid_out(net)


def test_it_draws_nothing_and_moves_no_statistics():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    with channels_last([net], IMAGES):
        assert torch.equal(torch.rand(1), drawn) and not net[1].running_mean.any()


def test_a_stitch_before_a_network_that_views_its_maps_is_trained():
    net = Viewing()
    cut = front(net, "conv"), end(net, "conv", example=IMAGES)
    network = StitchedNetwork(cut[0], Stitch((5, 8, 8), (5, 8, 8)), cut[1])
    loader = Loader(Split((IMAGES * 255).byte(), torch.tensor([0, 1, 2, 3])), 2, mean=(0.5,) * 3, std=(0.5,) * 3)
    rows = train_stitch(network, loader, Plan(epochs=2, lr=0.01))
    assert rows["task"].notna().all()
