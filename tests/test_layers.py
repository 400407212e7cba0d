"""Layers by name: cuts are exact, looking leaves no trace, messages help."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.errors import BadValue, CannotCut, InPlaceChange, LayerNotFound
from reptrans.layers import cuttable_layers, end, front, layer_table, record
from reptrans.models import build

OURS = ["lenet", "tiny10", "nbn_tiny10", "dense", "resnet20_w1", "resnet8", "resnet32_l2t", "wrn_16_1", "vgg8",
        "vgg9_bn", "resnet18_cifar", "cnn3_w4", "inceptionv1"]  # fmt: skip
THEIRS = ["resnet18", "googlenet", "convnext_tiny", "vit_b_16", "swin_t"]


def images(side=32, n=2, channels=3):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def cut_everywhere(net, x):
    """Every layer that can be cut: end(front(x)) is net(x) to the bit, and the end leaves its input alone."""
    net.eval()
    with torch.no_grad():
        whole, names = net(x), cuttable_layers(net)
        together = front(net, names)(x)
        for name in names:
            kept = together[name].clone()
            assert torch.equal(end(net, name)(together[name]), whole), name
            assert torch.equal(together[name], kept), name
            assert torch.equal(front(net, name)(x), kept), name
    return names


@pytest.mark.parametrize("name", OURS)
def test_cuts_of_our_networks_are_exact_everywhere(name):
    assert len(cut_everywhere(build(name), images())) >= 3


@pytest.mark.parametrize("name", THEIRS)
def test_cuts_of_torchvision_networks_are_exact(name):
    net = build(f"torchvision/{name}", image_size=224).eval()
    x = images(224, n=1)
    with torch.no_grad():
        whole, names = net(x), cuttable_layers(net)
        together = front(net, names)(x)
        for layer in [names[0], names[1], names[len(names) // 3], names[len(names) // 2], names[-1]]:
            assert torch.equal(end(net, layer)(together[layer]), whole), layer
            assert torch.equal(front(net, layer)(x), together[layer]), layer


def test_front_agrees_with_hooks():
    net = build("resnet20_w1").eval()
    names = ["bn1", "layer1.0.bn1", "layer2.0.add", "layer3"]
    with torch.no_grad(), record(net, names, clone=True) as activations:
        net(images())
    found = front(net, names)(images())
    for name in names:
        assert torch.equal(found[name], activations[name])


def test_parts_share_the_weights():
    net = build("tiny10").eval()
    part = front(net, "bn3")
    assert part.get_parameter("conv1.weight") is net.conv1.weight
    assert {name.split(".")[0] for name, _ in part.named_parameters()} == {
        "conv1",
        "bn1",
        "conv2",
        "bn2",
        "conv3",
        "bn3",
    }


class Branching(nn.Module):
    """Its forward asks for a value, so it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.skip = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        hidden = self.a(x)
        if hidden.sum() > -1e9:
            hidden = hidden * 2
        return self.b(hidden)


class BranchingBypassed(Branching):
    def forward(self, x):
        return super().forward(x) + self.skip(x)


def test_untraceable_network_gives_the_same_answers_by_hooks():
    net, x = Branching().eval(), torch.randn(5, 6)
    activations = front(net, "a")(x)
    assert torch.equal(activations, net.a(x))
    assert torch.equal(end(net, "a", example=x)(activations), net(x))
    assert front(net, ["a", "b"])(x).keys() == {"a", "b"}
    with pytest.raises(BadValue, match="give example=images"):
        end(Branching(), "a")
    with pytest.raises(CannotCut, match="name a layer"):
        cuttable_layers(net)


def test_untraceable_bypass_is_found_out():
    net, x = BranchingBypassed().eval(), torch.randn(5, 6)
    with pytest.raises(CannotCut, match="part of the network bypasses it"):
        end(net, "a", example=x)
    assert torch.equal(end(net, "a", keep_skip=True)(net.a(x), x), net(x))


def test_untraceable_block_is_opaque_and_the_rest_can_be_cut():
    net, x = nn.Sequential(nn.Linear(6, 6), Branching(), nn.Linear(3, 2)).eval(), torch.randn(4, 6)
    assert cuttable_layers(net) == ["0", "1"]
    assert torch.equal(end(net, "1")(front(net, "1")(x)), net(x))
    assert torch.equal(end(net, "1.a", example=x)(front(net, "1.a")(x)), net(x))
    assert cuttable_layers(net, x) == ["0", "1.a", "1.b", "1"]


class Writes(nn.Module):
    """In-place operations in every spelling, one of them through a view and one with its result unused."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, extra=None):
        x = self.first(x)
        x.relu_()
        view = x.view(-1, 2, 2).flatten(1)
        F.relu(view, True)
        torch.sin_(view)
        x = self.second(view)
        x += view
        return x if extra is None else x + extra


def test_in_place_operations_of_the_network_are_kept_in_order():
    net, x = Writes().eval(), torch.randn(3, 4)
    assert cut_everywhere(net, x) == ["first"]
    assert torch.equal(front(net, "first")(x), net.first(x))


def test_record_refuses_a_value_that_was_overwritten():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.randn(2, 3)
    with pytest.raises(InPlaceChange, match="layer '0' was overwritten by a later in-place operation"):
        with record(net, "0"):
            net(x)
    with record(net, "0", clone=True) as activations:
        net(x)
    assert torch.equal(activations["0"], net[0](x))


def test_record_leaves_no_trace_even_after_an_error():
    net = build("tiny10")
    net.bn2.eval()
    modes = [module.training for module in net.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), record(net, ["bn1", "fc"]):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in net.modules())
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_record_keeps_the_graph_on_request():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with record(net, "0", detach=False) as activations:
        net(torch.ones(1, 2))
    activations["0"].sum().backward()
    assert net[0].bias.grad.tolist() == [1.0, 1.0]


def test_unknown_layer_names_near_matches():
    with pytest.raises(LayerNotFound) as error:
        front(build("lenet"), "con1")
    assert str(error.value) == (
        "LeNet has no layer 'con1'. Did you mean 'conv1' or 'conv2'? Its layers: conv1, relu1, pool1, conv2, relu2, "
        "pool2, flatten, fc1, relu3, fc2, relu4, fc3"
    ).replace("LeNet", type(build("lenet")).__name__)


def test_layer_in_a_branch_is_refused_or_keeps_the_skip_path():
    net, x = build("resnet20_w1").eval(), images()
    with pytest.raises(CannotCut, match=r"'layer1.0.bn1' of \w+ does not separate its input from its output") as error:
        end(net, "layer1.0.bn1")
    assert "Layers where it can be cut: conv1, bn1" in str(error.value)
    with torch.no_grad():
        inside = front(net, "layer1.0.bn1")(x)
        assert torch.equal(end(net, "layer1.0.bn1", keep_skip=True)(inside, x), net(x))


def test_layer_table_of_a_known_network():
    net = build("tiny10")
    table = layer_table(net, images(n=1)).set_index("layer")
    assert net.training
    assert table.loc["bn3", "output"] == (32, 13, 13)
    assert table.loc["conv3", "parameters"] == 32 * 16 * 9 + 32
    by_hand = {1: (3, 16, 3, 30), 2: (16, 16, 3, 28), 3: (16, 32, 3, 13), 4: (32, 32, 3, 11), 5: (32, 32, 3, 9),
               6: (32, 64, 3, 4), 7: (64, 64, 3, 2), 8: (64, 64, 1, 2)}  # fmt: skip
    cost = {f"conv{k}": i * o * f * f * s * s for k, (i, o, f, s) in by_hand.items()} | {"fc": 640}
    for name, work in cost.items():
        assert table.loc[name, "share"] == pytest.approx(work / sum(cost.values()))
    assert table["share"][list(cost)].sum() == pytest.approx(1.0)
    assert table.loc["relu8", "cut"] and not table.loc["fc", "cut"]


def test_layer_table_leaves_batch_norm_statistics_alone():
    net = build("tiny10")
    before = net.bn1.running_mean.clone()
    layer_table(net, images())
    assert torch.equal(net.bn1.running_mean, before)
