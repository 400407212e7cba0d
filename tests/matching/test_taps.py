import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.errors import BadData, BadValue, LayerNotFound
from reptrans.matching import tapped


class Net(nn.Module):
    """An in-place ReLU that is called twice, a layer that is never called, one that returns two tensors."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.relu, self.fc, self.idle = nn.ReLU(inplace=True), nn.Linear(4, 5), nn.Linear(2, 2)
        self.lstm = nn.LSTM(4, 4)

    def forward(self, x):
        x = self.relu(self.first(x))
        x = self.relu(self.second(x)).mean((2, 3))
        self.lstm(x)
        return self.fc(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


IMAGES = torch.randn(6, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % 5


def test_values_are_those_of_the_last_call_safe_from_what_works_in_place(net):
    found = tapped(net, IMAGES, None, ["first", "relu", "relu:in", "fc:in", "out"])
    first = F.conv2d(IMAGES, net.first.weight, net.first.bias, padding=1)
    second = F.conv2d(first.relu(), net.second.weight, net.second.bias, padding=1)
    torch.testing.assert_close(found["first"], first)
    torch.testing.assert_close(found["relu:in"], second)
    torch.testing.assert_close(found["relu"], second.relu())
    torch.testing.assert_close(found["fc:in"], second.relu().mean((2, 3)))
    torch.testing.assert_close(found["out"], net(IMAGES))
    assert list(found) == ["first", "relu", "relu:in", "fc:in", "out"] and all(v.requires_grad for v in found.values())
    assert not net.relu._forward_hooks and not net.relu._forward_pre_hooks


def test_the_gradient_of_a_linear_networks_loss_is_its_closed_form():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    found = tapped(net, x, y, ["grad:loss", "grad:logit"])
    weight = net[1].weight
    expected = (F.softmax(net(x), 1) - F.one_hot(y, 3)) @ weight
    torch.testing.assert_close(found["grad:loss"].flatten(1), expected)
    torch.testing.assert_close(found["grad:logit"].flatten(1), weight[y])


def test_a_gradient_is_of_each_image_by_itself_and_can_be_differentiated_again(net):
    whole = tapped(net, IMAGES, LABELS, ["grad:loss", "grad:attention@second"])
    alone = [tapped(net, IMAGES[k : k + 1], LABELS[k : k + 1], list(whole)) for k in range(6)]
    for tap, value in whole.items():
        torch.testing.assert_close(value, torch.cat([a[tap] for a in alone]))
    (by_weight,) = torch.autograd.grad(whole["grad:loss"].square().sum(), net.first.weight)
    assert by_weight.abs().max() > 0


def test_the_attention_gradient_is_that_of_the_largest_pooled_entry(net):
    found = tapped(net, IMAGES, None, ["grad:attention@first"])["grad:attention@first"]
    x = IMAGES.clone().requires_grad_()
    maps = F.conv2d(x, net.first.weight, net.first.bias, padding=1).abs().sum(1)
    # Windows of a third of 9 x 9, one by one.
    sums = torch.stack([maps[:, i : i + 3, j : j + 3].mean((1, 2)) for i in range(7) for j in range(7)], 1)
    (expected,) = torch.autograd.grad(sums.amax(1).sum(), x)
    torch.testing.assert_close(found, expected)


def test_without_a_graph_values_and_gradients_are_detached_and_the_images_stay_as_they_were(net):
    images = IMAGES.clone()
    with torch.no_grad():
        found = tapped(net, images, LABELS, ["fc", "grad:logit"], keep_graph=False)
    assert not any(value.requires_grad for value in found.values())
    assert found["grad:logit"].abs().max() > 0 and not images.requires_grad
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("tap", "error", "words"),
    [
        ("frist", LayerNotFound, "Did you mean 'first'"),
        ("grad:weights", BadValue, "grad:loss, grad:logit, grad:attention@LAYER"),
        ("grad:attention", BadValue, "grad:attention@LAYER"),
        ("grad:attention@frist", LayerNotFound, "Did you mean 'first'"),
        ("idle", BadValue, "a pass of the network never comes to 'idle'"),
        ("grad:attention@fc", BadValue, "an attention map is of maps"),
    ],
)
def test_what_cannot_be_tapped_is_said(net, tap, error, words):
    with pytest.raises(error) as found:
        tapped(net, IMAGES, LABELS, [tap])
    assert words in str(found.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_step_does_not_read_the_names_of_all_layers(net, monkeypatch):
    taps = ["first", "relu:in", "out"]
    expected = tapped(net, IMAGES, None, taps)
    monkeypatch.setattr(nn.Module, "named_modules", None)
    found = tapped(net, IMAGES, None, taps)
    assert all(torch.equal(found[tap], expected[tap]) for tap in taps)


def test_gradients_by_the_label_need_labels(net):
    with pytest.raises(BadValue, match="needs the images' labels"):
        tapped(net, IMAGES, None, ["grad:loss"])


def test_labels_are_a_tap_too(net):
    found = tapped(net, IMAGES, LABELS, ["labels", "fc", "grad:loss"])
    assert list(found) == ["labels", "fc", "grad:loss"] and torch.equal(found["labels"], LABELS)
    with pytest.raises(BadValue, match="the tap 'labels' needs the images' labels, but there are none"):
        tapped(net, IMAGES, None, ["labels"])


@pytest.mark.parametrize("tap", ["grad:loss", "grad:logit", "grad:attention@0"])
def test_batch_norm_in_train_mode_mixes_no_gradients_and_equal_networks_match(tap):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(147, 5)).double()
    whole = tapped(net.eval(), IMAGES, LABELS, [tap])[tap]
    trained = tapped(net.train(), IMAGES, LABELS, ["out", tap])
    torch.testing.assert_close(trained[tap], whole)
    (by_weight,) = torch.autograd.grad(trained[tap].square().sum(), net[0].weight)
    still = copy.deepcopy(net).eval()
    still[1].reset_running_stats()
    (expected,) = torch.autograd.grad(tapped(still, IMAGES, LABELS, [tap])[tap].square().sum(), still[0].weight)
    torch.testing.assert_close(by_weight, expected)
    assert net[1].training and int(net[1].num_batches_tracked) == 1, "one pass by the batch's statistics, for the rest"
    alone = [tapped(net.eval(), x[None], y[None], [tap])[tap] for x, y in zip(IMAGES, LABELS, strict=True)]
    torch.testing.assert_close(tapped(net.train(), IMAGES, LABELS, [tap])[tap], torch.cat(alone))


def test_of_several_tensors_a_tap_is_the_first(net):
    found = tapped(net, IMAGES, None, ["lstm"])["lstm"]
    torch.testing.assert_close(found, net.lstm(tapped(net, IMAGES, None, ["relu"])["relu"].mean((2, 3)))[0])


def test_labels_that_are_no_class_of_the_network_are_said(net):
    with pytest.raises(BadData, match="the labels go from 5 to 9, but the network has the classes 0 to 4"):
        tapped(net, IMAGES, LABELS + 5, ["grad:logit"])
