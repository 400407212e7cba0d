"""A layer inverted in one line: as the parts do it, without a trace in the network, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from reptrans import invert, optimise_input
from reptrans.errors import BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.inputs import Pixels, fast_front, match, noise
from reptrans.models import build

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return build("cnn3_w8", num_classes=4, image_size=12, seed=1)


def test_it_is_the_descent_from_noise_to_the_images_activations(net):
    found = invert(net, "relu1", IMAGES, MEAN, STD, steps=5, seed=3, distance="l2")
    view = fast_front(net, "relu1", mean=MEAN, std=STD)
    start = Pixels(noise(2, (3, 12, 12), seed=3))
    same = optimise_input(match(view, view(IMAGES), "l2"), start, steps=5, reference=IMAGES)
    assert torch.equal(found.images, same.images) and found.rows.equals(same.rows)
    assert {"mse", "psnr", "relative_error"} <= set(found.rows)


def test_a_first_layer_tells_the_image(net):
    found = invert(net.double(), "conv1", IMAGES, MEAN, STD, steps=200, prior=())
    assert found.rows["correlation"].min() > 0.98 and found.images.dtype == torch.float64
    other = invert(net, "conv1", IMAGES, steps=5, prior=())
    assert not torch.equal(other.images, invert(net, "conv1", IMAGES, MEAN, STD, steps=5, prior=()).images)


def test_the_network_is_left_as_it_was(net):
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    found = invert(net.train(), None, IMAGES, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(m.training for m in net.modules()) and all(p.requires_grad for p in net.parameters()) and modes
    assert found.images.shape == IMAGES.shape


@pytest.mark.parametrize(("more", "error", "said"), [
    ({"net": "tiny10"}, BadValue, "a network is a torch.nn.Module, and 'tiny10' was given."),
    ({"layer": "relu9"}, LayerNotFound, "has no layer 'relu9'. Did you mean 'relu1'"),
    ({"images": IMAGES * 255}, BadValue, "images range from"),
    ({"images": (2, 3, 12, 12)}, BadValue, "images must be a tensor (n, channels, height, width), and a tuple"),
    ({"mean": MEAN}, ShapeMismatch, "3 means and 0 standard deviations; give one of each for every channel."),
    ({"mean": [0.5], "std": [0.5]}, ShapeMismatch, "images of 3 channels, statistics of 1."),
    ({"distance": "l3"}, UnknownName, "there is no distance 'l3' of activations. Possible: l1, l2, cosine"),
    ({"step": 3}, BadValue, "optimise_input has no argument 'step'. Did you mean 'steps'"),
    ({"steps": -1}, BadValue, "steps is -1"),
])  # fmt: skip
def test_what_is_refused_before_the_first_step(net, more, error, said, monkeypatch):
    monkeypatch.setattr("reptrans.inputs.optimise._Descent.step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(error) as caught:
        invert(**{"net": net.float(), "layer": "relu1", "images": IMAGES} | more)
    assert said in str(caught.value)


def test_a_tensor_is_optimised_as_pixels_of_it(net):
    view = fast_front(net.float(), "relu1")
    objective, start = match(view, view(IMAGES)), noise(2, (3, 12, 12))
    found = optimise_input(objective, start, steps=3)
    assert torch.equal(found.images, optimise_input(objective, Pixels(start), steps=3).images)
    assert torch.equal(start, noise(2, (3, 12, 12)))
    with pytest.raises(BadValue, match="the image is a tuple; give Pixels"):
        optimise_input(objective, (2, 3, 12, 12))
