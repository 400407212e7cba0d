"""The fast front computes what the network does; untrained networks get the statistics asked for."""

import copy

import pytest
import torch
from torch import nn

from reptrans.errors import LayerNotFound, ShapeMismatch, UnknownName
from reptrans.inputs import as_built, calibrated, fast_front, ladder
from reptrans.inputs.fronts import frozen
from reptrans.layers import front
from reptrans.models import build
from reptrans.training import evaluating


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES = normal(3, 3, 16, 16)


def network(name: str = "resnet8") -> nn.Module:
    """In train mode, with statistics and affine maps that a folded batch norm has to take over."""
    net = build(name, num_classes=5, image_size=16).double()
    net(normal(16, 3, 16, 16, seed=1))
    for i, module in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0, 0.3, generator=torch.Generator().manual_seed(i))
        nn.init.normal_(module.bias, 0.0, 0.3, generator=torch.Generator().manual_seed(50 + i))
    return net


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, images):
        z = self.conv(images)
        return self.bn(z) if z.sum() > -1e9 else z


@pytest.mark.parametrize("name", ["resnet8", "vgg4_bn", "torchvision/resnet18"])
@pytest.mark.parametrize("fold", [True, False])
def test_equals_the_network(name, fold):
    net = network(name)
    with evaluating(net), torch.no_grad():
        for layer in ladder(net):
            assert torch.allclose(fast_front(net, layer, fold=fold)(IMAGES), front(net, layer)(IMAGES), rtol=1e-9)
        assert torch.allclose(fast_front(net, fold=fold)(IMAGES), net(IMAGES), rtol=1e-9)


def test_batch_norms_are_folded_away_where_nobody_reads_the_convolution():
    net = network()
    kinds = {fold: [type(m) for m in fast_front(net, "layer2", fold=fold).modules()] for fold in (True, False)}
    assert nn.BatchNorm2d not in kinds[True] and nn.BatchNorm2d in kinds[False]
    only = fast_front(net, "conv1")
    with evaluating(net), torch.no_grad():
        assert torch.allclose(only(IMAGES), net.conv1(IMAGES))


class Twice(nn.Module):
    """Calls its convolution twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.conv(self.bn(self.conv(images)))


class Beside(Twice):
    """Reads its convolution also beside the batch norm."""

    def forward(self, images):
        z = self.conv(images)
        return z + self.bn(z)


@pytest.mark.parametrize("kind", [Twice, Beside])
def test_a_convolution_that_others_need_is_left_alone(kind):
    net = kind().double()
    net(normal(8, 3, 4, 4))
    with evaluating(net), torch.no_grad():
        assert torch.allclose(fast_front(net)(IMAGES), net(IMAGES))


def test_what_cannot_be_traced_runs_whole():
    net = Branching().double()
    net(IMAGES)
    with evaluating(net), torch.no_grad():
        assert torch.allclose(fast_front(net)(IMAGES), net(IMAGES))
        assert torch.allclose(fast_front(net, "conv")(IMAGES), net.conv(IMAGES))


class Viewing(nn.Module):
    """Flattens maps by view, which takes them channels first; in a part that no graph reaches, or not."""

    def __init__(self, hidden):
        super().__init__()
        self.conv, self.fc, self.hidden = nn.Conv2d(3, 4, 3), nn.Linear(144, 2), hidden

    def forward(self, x):
        maps = self.conv(x)
        return self.fc(maps.view(x.size(0), -1)) if not self.hidden or maps.sum() > -1e9 else maps


@pytest.mark.parametrize("hidden", [False, True])
def test_maps_may_be_flattened_by_view(hidden, capsys):
    net, x = Viewing(hidden).double().eval(), normal(2, 3, 8, 8)
    fast = fast_front(net)
    for _ in range(2):
        torch.testing.assert_close(fast(x), net(x))
    assert not capsys.readouterr().err


def test_images_are_normalised():
    net, mean, std = network(), (0.1, 0.2, 0.3), (2.0, 3.0, 4.0)
    done = (IMAGES - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    plain, own = fast_front(net, "layer1"), fast_front(net, "layer1", mean=mean, std=std)
    assert torch.allclose(own(IMAGES), plain(done), atol=1e-6)
    with pytest.raises(ShapeMismatch, match="1 channels, statistics of 3"):
        own(IMAGES[:, :1])


def test_half_the_digits_on_request():
    net = network().float()
    images = IMAGES.float()
    whole, half = fast_front(net, "layer2")(images), fast_front(net, "layer2", precision="bfloat16")(images)
    assert half.dtype == torch.float32
    assert 1e-5 < ((half - whole).norm() / whole.norm()).item() < 0.03


def test_the_network_is_left_as_it_was():
    net = network()
    net.layer1.eval()
    net.conv1.weight.requires_grad_(False)
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    view = fast_front(net, "layer2")
    view(IMAGES)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert [p.requires_grad for p in net.parameters()].count(False) == 1
    assert not any(p.requires_grad for p in view.parameters())
    outputs = view(IMAGES)
    nn.init.zeros_(net.conv1.weight)
    assert torch.equal(view(IMAGES), outputs)


def test_unknown_names_are_refused():
    with pytest.raises(LayerNotFound, match="Did you mean 'layer1'"):
        fast_front(network(), "layer11")
    with pytest.raises(UnknownName, match="no precision 'float16'"):
        fast_front(network(), "layer1", precision="float16")


def test_as_built_undoes_the_statistics():
    net = network()
    built = as_built(net)
    norms = [m for m in built.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not built.training and net.training
    assert all((m.running_mean == 0).all() and (m.running_var == 1).all() for m in norms)
    assert not any((m.running_mean == 0).all() for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_calibrated_statistics_are_those_of_the_images():
    net = build("resnet8", num_classes=5, image_size=16).double()
    done = calibrated(net, IMAGES)
    with torch.no_grad():
        z = net.conv1(IMAGES)
    assert torch.allclose(done.bn1.running_mean, z.mean((0, 2, 3)))
    assert torch.allclose(done.bn1.running_var, z.var((0, 2, 3)))
    assert not done.training and (net.bn1.running_mean == 0).all()


def test_calibrating_leaves_the_random_state():
    net, before = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3)).double(), torch.get_rng_state()
    calibrated(net, IMAGES)
    assert torch.equal(before, torch.get_rng_state())


def test_frozen_gives_everything_back():
    net = network()
    net.layer1.eval()
    net.conv1.weight.requires_grad_(False)
    before = [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]
    with pytest.raises(ZeroDivisionError), frozen([net]):
        assert not net.training and not any(p.requires_grad for p in net.parameters())
        raise ZeroDivisionError
    assert ([m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]) == before


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet8", ["conv1", "layer1", "layer2", "layer3"]),
        ("torchvision/resnet50", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        ("cnn3_w8", ["conv1", "conv2", "conv3"]),
        ("tiny10", ["conv1", "conv2", "conv4", "conv5", "conv7", "conv8"]),
    ],
)
def test_ladder(name, layers):
    assert ladder(build(name, image_size=32).eval()) == layers
