"""Portable trainings: weights in single precision after each step, so that other rounding changes nothing."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from reptrans.data import load_dataset
from reptrans.errors import BadValue
from reptrans.inputs import Pixels, match, optimise_input
from reptrans.models import build
from reptrans.training import Plan, classification_loss, fit, train_classifier
from reptrans.training.schedule import round_weights


def is_single(tensor: torch.Tensor) -> bool:
    return torch.equal(tensor, tensor.float().to(tensor.dtype))


def test_rounds_to_the_nearest_number_of_float32():
    tensors = [torch.tensor([1 + 2.0**-25, 1 + 3 * 2.0**-25, 1e-45, 0.1], dtype=torch.float64), torch.ones(2)]
    round_weights(tensors)
    assert tensors[0][:2].tolist() == [1.0, 1 + 2.0**-23] and all(map(is_single, tensors))


def test_rounds_to_fewer_bits():
    of_8 = [1 + 2.0**-7, -1 - 2.0**-7, 0.0, 3 * 2.0**-30, 255.0]
    tensors = [torch.tensor([*of_8, 1 + 2.0**-9, 257.0, -0.1], dtype=torch.float64), torch.full((2,), 0.1)]
    round_weights(tensors, bits=8)
    assert tensors[0].tolist() == [*of_8, 1.0, 256.0, -205 * 2.0**-11]
    assert (tensors[1] == 0.1).all()  # float32 is left alone


def test_a_plan_keeps_as_many_bits_as_it_says():
    dataset, net = load_dataset("digits", limit=5), build("cnn3_w4", num_classes=10, in_channels=1, image_size=8)
    plan = Plan(epochs=1, precision="float64", portable=True, bits=16)
    train_classifier(net.double(), dataset, plan, batch_size=20)
    for p in net.parameters():
        mantissa = torch.frexp(p.detach()).mantissa * 2.0**16
        assert torch.equal(mantissa, mantissa.round())


def test_a_file_is_named_by_its_bits_only_where_they_are_fewer():
    assert "bits" not in Plan(portable=True).facts() and Plan(portable=True, bits=16).facts()["bits"] == 16
    with pytest.raises(BadValue, match="bits is 4; it must be a whole number from 8 to 24"):
        Plan(bits=4)


def trained(portable: bool, disturbance: float) -> nn.Module:
    """A network after 60 steps, whose loss was each time multiplied by 1 + disturbance."""
    dataset = load_dataset("digits", limit=20)
    net = build("cnn3_w4", num_classes=10, in_channels=1, image_size=8, seed=1).double()

    def objective(batch, progress):
        return {"loss": classification_loss(net(batch.images), batch.labels) * (1 + disturbance)}, {}

    loader = dataset.loader("train", 20, shuffle=True, dtype=torch.float64)
    fit(objective, net, loader, Plan(epochs=6, lr=0.1, precision="float64", portable=portable))
    return net


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_difference_in_the_last_bit_is_wiped_out():
    exact = trained(True, 0.0)
    assert all(is_single(p) for p in exact.parameters())
    assert equal(exact, trained(True, 2.0**-51))


def test_without_rounding_it_stays():
    exact = trained(False, 0.0)
    assert not all(is_single(p) for p in exact.parameters())
    assert not equal(exact, trained(False, 2.0**-51))


def test_what_is_not_trained_is_not_rounded():
    net = nn.Sequential(nn.Linear(64, 10), nn.Linear(10, 10)).double()
    net[1].weight.data.fill_(0.1)
    dataset = load_dataset("digits", limit=2)

    def objective(batch, progress):
        return {"loss": classification_loss(net(batch.images.flatten(1)), batch.labels)}, {}

    loader = dataset.loader("train", 20, dtype=torch.float64)
    plan = Plan(epochs=1, precision="float64", portable=True)
    fit(objective, net, loader, plan, parameters=net[0].parameters())
    assert is_single(net[0].weight) and (net[1].weight == 0.1).all() and not is_single(net[1].weight)


def test_inputs_too():
    net = build("cnn3_w2", num_classes=10, in_channels=1, image_size=8).double().eval()
    target = net(torch.full((1, 1, 8, 8), 0.3, dtype=torch.float64)).detach()
    for portable in (True, False):
        start = Pixels(torch.full((1, 1, 8, 8), 0.5, dtype=torch.float64))
        found = optimise_input(match(net, target), start, steps=3, portable=portable)
        assert is_single(found.images) is portable


DIGEST = """
import hashlib, torch
from reptrans.data import load_dataset
from reptrans.models import build
from reptrans.training import Plan, train_classifier
torch.set_num_threads(1)
dataset = load_dataset("digits", limit=30, image_size=16)
net = build("resnet8", num_classes=10, in_channels=1, image_size=16, seed=2).double()
plan = Plan(epochs=2, lr=0.1, precision="float64", portable=True)
train_classifier(net, dataset, plan, batch_size=20, augment="standard")
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest())
"""


@pytest.mark.parametrize("setting", ["default", "avx2"])
def test_other_arithmetic_gives_the_same_network(setting):
    """Another process, whose kernels add in another order."""
    dataset = load_dataset("digits", limit=30, image_size=16)
    net = build("resnet8", num_classes=10, in_channels=1, image_size=16, seed=2).double()
    plan = Plan(epochs=2, lr=0.1, precision="float64", portable=True)
    train_classifier(net, dataset, plan, batch_size=20, augment="standard")
    here = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest()
    other = os.environ | {"ATEN_CPU_CAPABILITY": setting}
    assert subprocess.check_output([sys.executable, "-c", DIGEST], env=other, text=True).strip() == here
