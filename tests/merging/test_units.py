"""Groups of units read off the graph: what is tied, what stays, and that a permuted network is the same function."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.merging import permuted, unit_groups
from reptrans.models import build

NAMES = ("cnn3_w8", "lenet", "dense", "tiny10", "nbn_tiny10", "resnet8", "resnet20_w1", "wrn_16_1", "vgg4_bn")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_permuted_network_is_the_same_function(name):
    net, images = build(name, image_size=32, seed=1).double().eval(), normal(2, 3, 32, 32)
    units = unit_groups(net, images)
    moved = permuted(net, units, units.random(torch.Generator().manual_seed(3)))
    assert (net(images) - moved(images)).abs().max() <= 1e-10 * net(images).abs().max()
    same = [torch.equal(a, b) for a, b in zip(net.parameters(), moved.parameters(), strict=True)]
    assert not all(same)


def test_an_answer_may_have_a_name_and_images_may_be_written_to():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            x -= 1
            return {"logits": self.second(F.relu(self.first(x)))}

    assert sorted(unit_groups(Told(), torch.ones(2, 4)).sizes.values()) == [6]


def test_groups_of_a_chain_are_its_layers():
    units = unit_groups(build("cnn3_w8", in_channels=1, image_size=8), torch.zeros(1, 1, 8, 8))
    assert sorted(units.sizes.values()) == [8, 16, 32]


def test_a_residual_sum_ties_all_that_is_added():
    units = unit_groups(build("resnet20_w1"), torch.zeros(1, 3, 32, 32))
    # One group for each stage (the stem belongs to the first), and one inside each of nine blocks.
    assert sorted(units.sizes.values()) == sorted([16, 32, 64] + 3 * [16] + 3 * [32] + 3 * [64])
    stem, block = units.axes["conv1.weight"][0], units.axes["layer1.2.conv2.weight"][0]
    assert stem == block
    assert units.axes["layer1.0.conv1.weight"][1] == stem


def test_flattening_gives_every_unit_its_places():
    units = unit_groups(build("lenet", image_size=32), torch.zeros(1, 3, 32, 32))
    (block,) = units.axes["fc1.weight"][1]
    assert (block.size, block.repeat) == (16, 25)
    assert units.axes["conv2.weight"][0][0].group == block.group


class Parts(nn.Module):
    """Depthwise and grouped convolutions, concatenation, a gate of one channel, functional pooling, `view`."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 12, 3, groups=6)
        self.mix, self.grouped = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1, groups=2)
        self.gate, self.prelu = nn.Conv2d(8, 1, 1), nn.PReLU(6)
        self.norm, self.fc = nn.GroupNorm(1, 6), nn.Linear(30 * 9, 3)

    def forward(self, x):
        x = self.prelu(self.norm(self.stem(x)))
        deep = self.deep(x)
        mixed = F.relu(self.mix(deep))
        both = torch.cat([deep, mixed * self.gate(mixed).sigmoid(), self.grouped(mixed), F.max_pool2d(x, 3, 1)], 1)
        pooled = F.adaptive_avg_pool2d(both, 3)
        return self.fc(pooled.view(pooled.size(0), -1))


@torch.no_grad()
def test_depthwise_grouped_and_joined_channels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, images = Parts().double().eval(), normal(2, 1, 8, 8)
    units = unit_groups(net, images)
    assert list(units.sizes.values()) == [6]  # the grouped convolution pins what it reads
    assert units.axes["deep.weight"][0][0].repeat == 2
    assert [block.features for block in units.axes["fc.weight"][1]] == [12 * 9, 8 * 9, 4 * 9, 6 * 9]
    moved = permuted(net, units, units.random(torch.Generator().manual_seed(1)))
    assert torch.allclose(moved(images), net(images), rtol=0, atol=1e-12)


class Shuffled(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.conv, self.fc, self.what = nn.Conv2d(1, 4, 1), nn.Linear(4, 2), what

    def forward(self, x):
        return self.fc(self.what(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("what", "named"),
    [
        (nn.LocalResponseNorm(2), r"'what' \(LocalResponseNorm\)"),
        (nn.ChannelShuffle(2), r"'what' \(ChannelShuffle\)"),
        (lambda x: x.flip(1), "flip"),
        (lambda x: x[:, [1, 0, 3, 2]], "getitem"),
        (lambda x: x.cumsum(1), "cumsum"),
        (lambda x: x.mean(1, keepdim=True) + x, "mean"),
        (lambda x: x.mean(1).unsqueeze(3), "mean"),  # 4 rows in place of 4 channels
    ],
)
def test_unknown_operations_are_refused(what, named):
    with pytest.raises(BadValue, match=f"{named}.*not known.*match_models"):
        unit_groups(Shuffled(what), torch.zeros(1, 1, 4, 4))


class Twice(nn.Module):
    """One tensor under two names, of which the graph sees one: what rules over names cannot know."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(x.flatten(1)).relu()))


def test_the_check_finds_what_the_rules_miss():
    with pytest.raises(BadValue, match="changes its outputs by .* match_models"):
        unit_groups(Twice(), torch.ones(1, 1, 2, 2))


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_other_refusals():
    with pytest.raises(BadValue, match="Branching cannot be traced"):
        unit_groups(Branching(), torch.zeros(1, 1, 2, 2))
    with pytest.raises(ShapeMismatch, match=r"does not take images \(1, 2, 8, 8\)"):
        unit_groups(build("cnn3_w8", in_channels=1, image_size=8), torch.zeros(1, 2, 8, 8))


def test_looking_leaves_no_trace():
    net = build("cnn3_w8", in_channels=1, image_size=8).train()
    before = [v.clone() for v in net.state_dict().values()]
    unit_groups(net, torch.ones(2, 1, 8, 8))
    assert net.training and net.bn1.training
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
