"""Networks that torch does not copy, for a pass left values with a graph in them, and networks without values."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm

from reptrans import compare, stitch
from reptrans.data import Dataset, Split
from reptrans.errors import BadData, BadValue
from reptrans.inputs import fast_front
from reptrans.layers import front
from reptrans.layers.network import copy_of
from reptrans.merging import aligned, interpolated, reestimated


def plain() -> nn.Sequential:
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def pruned() -> nn.Module:
    net = plain()
    prune.l1_unstructured(net[3], "weight", 0.5)
    return net


def normed() -> nn.Module:
    net = plain()
    spectral_norm(net[3])
    return net


def hooked() -> nn.Module:
    net = plain()
    net[3].register_forward_hook(lambda module, given, output: output.relu())
    return net


class Keeping(nn.Module):
    """Keeps what it saw last, as networks do whose attention one wants to look at."""

    def __init__(self):
        super().__init__()
        self.net, self.kept = plain(), {}

    def forward(self, x):
        self.last = self.net[:3](x)
        self.kept["maps"] = [self.last]
        return self.net[3:](self.last)


def seen(make) -> nn.Module:
    """After a pass with gradients in train mode."""
    net = make()
    net(images(20))
    return net.eval()


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def data() -> Dataset:
    split = Split((255 * images(30)).byte(), torch.arange(30) % 3)
    return Dataset("own", split, split, ("a", "b", "c"), (0.5,), (0.5,))


@pytest.mark.parametrize("make", [pruned, normed, hooked, Keeping])
def test_a_copy_says_the_same_and_shares_nothing(make):
    net, x = seen(make), images(5)
    before = net(x)
    copied = copy_of(net)
    assert torch.equal(copied(x), before)
    held = {value.data_ptr() for value in (*net.parameters(), *net.buffers())}
    assert held.isdisjoint(value.data_ptr() for value in (*copied.parameters(), *copied.buffers()))
    with torch.no_grad():
        for value in copied.parameters():
            value.mul_(2)
    assert not torch.equal(copied(x), before)
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("make", [pruned, hooked, Keeping])
def test_a_fast_front_is_the_front(make):
    net, x = seen(make), images(5)
    layer = "net.5" if make is Keeping else "5"
    assert torch.allclose(fast_front(net, layer)(x), front(net, layer)(x), atol=1e-6)


@pytest.mark.parametrize("make", [pruned, normed, Keeping])
def test_copying_functions_take_them(make):
    net, layer = seen(make), "net.2" if make is Keeping else "2"
    _, scores = stitch(net, net, layer, data())
    assert scores["relative_accuracy"].item() == 1
    assert torch.allclose(interpolated(net, net, 0.5)(images(3)), net(images(3)), atol=1e-6)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def without_memory() -> nn.Module:
    with torch.device("meta"):
        return plain()


@pytest.mark.parametrize(
    ("make", "message"),
    [(lazy, "0.weight of .* takes its shape from the first"), (without_memory, "on the device meta")],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda net: aligned(net, net, images(8)),
        lambda net: interpolated(net, net, 0.5),
        lambda net: reestimated(net, [images(8)]),
        lambda net: fast_front(net, "0"),
    ],
    ids=["aligned", "interpolated", "reestimated", "fast_front"],
)
def test_weights_without_values_are_refused(make, message, use):
    with pytest.raises(BadValue, match=message):
        use(make())


def test_a_comparison_says_what_weights_without_values_lack():
    with pytest.raises(BadValue, match="on the device meta"):
        compare(without_memory(), plain(), images(8), ["0"])


class Turning(nn.Module):
    """Has complex weights, which a cast to real numbers would cut down to their first part."""

    def __init__(self):
        super().__init__()
        self.first, self.turn, self.last = nn.Flatten(), nn.Linear(64, 16, dtype=torch.complex64), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.turn(self.first(x).to(torch.complex64)).abs())


def test_complex_numbers_are_refused():
    net = Turning()
    with pytest.raises(BadData, match="the activations of layer 'turn': complex numbers"):
        compare(net, net, [(images(30), torch.arange(30) % 3)], ["turn"], ["turn"])
    with pytest.raises(BadValue, match="turn.weight of Turning is complex"):
        stitch(net, net, "first", data())
