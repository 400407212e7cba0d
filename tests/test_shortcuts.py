"""Two networks stitched in one line: what comes out is what the parts give, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from reptrans import Stitching, StitchingSettings, build, evaluate, load_dataset, stitch
from reptrans.errors import BadValue, CannotCut, LayerNotFound, ShapeMismatch, UnknownName


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", limit=10)


@pytest.fixture(scope="module")
def nets(digits):
    form = digits.form
    return [build("cnn3_w8", **form, seed=0), build("cnn3_w4", **form, seed=1)]


def test_it_is_solved_by_least_squares_and_scored_on_the_test_images(digits, nets):
    network, scores = stitch(*nets, "bn2", digits)
    assert list(scores["matching"]) == ["least squares"] and len(scores) == 1
    loader = digits.loader("test", 100)
    assert evaluate(network, loader)["accuracy"] == pytest.approx(scores["accuracy"].item())
    settings = StitchingSettings(direct="least squares", epochs=0)
    same = Stitching(*copy.deepcopy(nets), [("bn2", "bn2")], digits, settings).stitch("bn2", "bn2")
    assert same.rows.equals(scores)
    assert torch.equal(network.stitch.dense()["weight"], same.network.stitch.dense()["weight"])


def test_it_is_trained_where_epochs_are_given(digits, nets):
    network, scores = stitch(*nets, ("bn3", "bn2"), digits, epochs=2, direct="", init="random", lr=0.01, batch_size=20)
    assert list(scores["matching"]) == ["start", "task loss"]
    assert list(scores["front_layer"]) == ["bn3"] * 2 and list(scores["end_layer"]) == ["bn2"] * 2
    trained = evaluate(network, digits.loader("test", 100))
    assert trained["cross_entropy"] == pytest.approx(scores["cross_entropy"].iloc[1], rel=1e-5)
    assert scores["cross_entropy"].iloc[1] < scores["cross_entropy"].iloc[0]


def test_the_networks_stay_as_they_are(digits, nets):
    before = [copy.deepcopy(net.state_dict()) for net in nets]
    network, _ = stitch(*(net.train() for net in nets), "bn1", digits, epochs=1, batch_size=50)
    for net, state in zip(nets, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert net.training and all(p.requires_grad for p in net.parameters())
    assert not {id(p) for p in network.parameters()} & {id(p) for net in nets for p in net.parameters()}


@pytest.mark.parametrize(("more", "error", "said"), [
    ({"front_net": "tiny10"}, BadValue, "a network is a torch.nn.Module, and 'tiny10' was given."),
    ({"layer": "bn9"}, LayerNotFound, "has no layer 'bn9'. Did you mean 'bn1'"),
    ({"layer": ("bn1", "bn2", "bn3")}, BadValue, "a pair of layers is ('bn1', 'bn2', 'bn3'). Give the front's and the"),
    ({"layer": None}, BadValue, "a pair of layers is None."),
    ({"dataset": [1]}, BadValue, "the data set is a list. Give a Dataset: load_dataset(name), or Dataset.from_torch"),
    ({"epoch": 3}, UnknownName, "epoch = 3: there is no such parameter. Did you mean 'epochs'?"),
    ({"direct": "lstsq"}, BadValue, "there is no 'lstsq'."),
    ({"end_net": nn.Sequential(nn.Flatten(), nn.Linear(64, 7))}, ShapeMismatch, "tells 7 classes apart"),
    ({"end_net": nn.Sequential(nn.Conv2d(3, 8, 3))}, ShapeMismatch, "Sequential does not take"),
])  # fmt: skip
def test_what_is_refused(digits, nets, more, error, said):
    given = {"front_net": nets[0], "end_net": nets[1], "layer": "bn2", "dataset": digits}
    with pytest.raises(error) as caught:
        stitch(**given | more)
    assert said in str(caught.value)


@pytest.mark.parametrize("pairs", ["bn3", ["bn3"], [("bn3",)], [("bn3", "bn3", "bn3")], [], [(1, 2)], None])
def test_pairs_of_layers_that_are_none(digits, nets, pairs):
    with pytest.raises(BadValue, match="a pair of layers is .* Give the front's and the end's layer"):
        Stitching(*copy.deepcopy(nets), pairs, digits)


def test_a_layer_that_cannot_be_cut_is_refused(digits):
    nets = [build("resnet8", **digits.form, seed=seed) for seed in (0, 1)]
    with pytest.raises(CannotCut):
        stitch(*nets, "layer2.0.conv1", digits)
