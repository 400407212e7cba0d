"""What loaders may yield and networks may return, and what is said about all else."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from reptrans.data import Batch, load_dataset
from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.models import build
from reptrans.training import Plan, evaluate, fit, predict, train_classifier

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 10


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Returning(nn.Module):
    """The network `net`, whose logits come in another form."""

    def __init__(self, form):
        super().__init__()
        self.net, self.form = network(), form

    def forward(self, images):
        return self.form(self.net(images))


FORMS = {
    "dict": lambda y: {"hidden": y * 0, "logits": y},
    "tuple": lambda y: (y, y * 0),
    "list": lambda y: [y],
    "named tuple": lambda y: namedtuple("Answer", "aux logits")(y * 0, y),
    "dataclass": Output,
    "nested": lambda y: ({"scores": y},),
    "ordered dict": lambda y: OrderedDict(out=y, aux=y * 0),
}


def network(channels: int = 1) -> nn.Module:
    return build("cnn3_w2", num_classes=10, in_channels=channels, image_size=(8, 8), seed=0)


def pairs(images=IMAGES, labels=LABELS):
    return [(images[:5], labels[:5]), (images[5:], labels[5:])]


LOADERS = {
    "tuples": pairs(),
    "lists": [list(batch) for batch in pairs()],
    "data loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_sampler=[range(5), range(5, 12)]),
    "mappings": [{"pixel_values": x, "labels": y, "id": ["a"] * len(y)} for x, y in pairs()],
    "three": [(x, y, "more") for x, y in pairs()],
    "batches": [Batch(x, y, torch.arange(len(y))) for x, y in pairs()],
    "bytes for labels": [(x, y.to(torch.uint8)) for x, y in pairs()],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_may_return_its_logits_in_any_form(form):
    net, loader = Returning(FORMS[form]), pairs()
    assert evaluate(net, loader) == evaluate(net.net, loader)
    assert torch.equal(predict(net, loader)[0], predict(net.net, loader)[0])


def test_an_answer_without_a_tensor_is_refused_by_its_parts():
    with pytest.raises(BadValue) as caught:
        evaluate(Returning(lambda y: {"loss": 0.5, "text": "a"}), pairs())
    assert str(caught.value) == "Returning returns a dict with loss, text, in which there is no tensor."


@pytest.mark.parametrize("form", LOADERS)
def test_a_batch_may_have_any_form(form):
    loader = LOADERS[form]
    assert evaluate(network(), loader) == pytest.approx(evaluate(network(), pairs()), rel=1e-12)
    assert torch.equal(predict(network(), loader)[1], LABELS)
    rows = []
    for batches in (loader, pairs()):
        net = network()

        def objective(batch, progress, net=net):
            return {"loss": F.cross_entropy(net(batch.images), batch.labels.long())}, {}

        rows.append(fit(objective, net, batches, Plan(epochs=2, lr=0.01)))
    assert rows[0].equals(rows[1])


def test_an_objective_finds_the_batch_as_the_loader_gave_it():
    net, seen = network(), []

    def unpacking(batch, progress):
        images, labels = batch
        seen.append(type(batch[0]))
        return {"loss": F.cross_entropy(net(images), labels)}, {}

    def by_key(batch, progress):
        return {"loss": F.cross_entropy(net(batch["pixel_values"]), batch["labels"])}, {}

    fit(unpacking, net, LOADERS["tuples"], Plan(epochs=1))
    fit(by_key, net, LOADERS["mappings"], Plan(epochs=1))
    assert seen == [torch.Tensor] * 2


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (IMAGES, BadValue, "the loader is a tensor (12, 1, 8, 8). Give an iterable of batches (images, labels)"),
        ("digits", BadValue, "the loader is 'digits'. Give"),
        (None, BadValue, "the loader is a NoneType. Give"),
        ([IMAGES], BadValue, "the loader's batches are a tensor (12, 1, 8, 8). Give"),
        ((IMAGES, LABELS), BadValue, "the loader's batches are a tensor (12, 1, 8, 8). Give"),
        (TensorDataset(IMAGES, LABELS), BadValue, "the loader is a TensorDataset. Give"),
        ([(IMAGES[0], 3)], BadData, "the loader's labels are 3, and not a tensor (n, …)."),
        ([{"a": IMAGES, "labels": LABELS}], BadValue, "the loader's batches have no 'images', only a, labels."),
        ([(IMAGES, LABELS[:3])], ShapeMismatch, "a batch has images (12, 1, 8, 8) and labels (3,); give one label"),
        (pairs(labels=LABELS + 6)[:1], BadData, "the labels go from 6 to 10, but the network has the classes 0 to 9."),
        (pairs(labels=LABELS - 100), BadData, "the labels go from -100 to -96, but the network has"),
        (pairs(labels=LABELS.double()), BadData, "the labels are torch.float64; they must be whole numbers"),
        (
            pairs(IMAGES.byte()),
            ShapeMismatch,
            "Sequential does not take images (5, 1, 8, 8) of torch.uint8: its weights are torch.float32. Convert the "
            "images by images.to(torch.float32) after scaling them as in its training.",
        ),
        (
            pairs(IMAGES.double()),
            ShapeMismatch,
            "Sequential does not take images (5, 1, 8, 8) of torch.float64: its weights are torch.float32. Convert the "
            "images by images.to(torch.float32).",
        ),
        (pairs(IMAGES.flatten(1)), ShapeMismatch, "of torch.float32: its first layer 'conv1' takes (n, c, h, w)."),
    ],
)
def test_what_no_network_takes_is_said(loader, error, message):
    for look in (evaluate,) if "the labels" in message else (evaluate, predict):  # predict hands labels on
        with pytest.raises(error) as caught:
            look(network(), loader)
        assert message in str(caught.value)
        assert caught.value.__cause__ is None


def test_grey_images_for_a_network_of_colours_are_said_before_anything_moves():
    digits = load_dataset("digits", image_size=None, limit=2)
    net = network(channels=3)
    before = [value.clone() for value in net.state_dict().values()]
    with pytest.raises(ShapeMismatch) as caught:
        train_classifier(net, digits, Plan(epochs=1))
    assert str(caught.value) == (
        "Sequential does not take images (20, 1, 8, 8) of torch.float32: its first layer 'conv1' takes 3 channels. "
        "Build it with in_channels=1, or repeat grey images: images.expand(-1, 3, -1, -1)."
    )
    assert all(torch.equal(x, y) for x, y in zip(before, net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "call",
    [
        lambda: evaluate("resnet8", pairs()),
        lambda: predict("resnet8", pairs()),
        lambda: fit(lambda *_: None, "resnet8", pairs(), Plan(epochs=1)),
        lambda: train_classifier("resnet8", load_dataset("digits", image_size=None, limit=2), Plan(epochs=1)),
    ],
)
def test_a_name_is_no_network(call):
    with pytest.raises(BadValue) as caught:
        call()
    assert str(caught.value) == (
        "a network is a torch.nn.Module, and 'resnet8' was given. Make one of a name with build(name)."
    )


def test_a_loader_is_no_dataset():
    with pytest.raises(BadValue, match="the data are a DataLoader, and not a Dataset with a train and a test part"):
        train_classifier(network(), LOADERS["data loader"], Plan(epochs=1))


def test_an_error_of_the_network_itself_keeps_its_cause():
    with pytest.raises(
        ShapeMismatch, match=r"Flat does not take images \(5, 1, 8, 8\) of torch.float32: .*mat1"
    ) as caught:
        evaluate(type("Flat", (nn.Linear,), {})(3, 10), pairs())
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_mixed_precision_is_that_of_the_plan():
    exact, halved = (evaluate(network(), pairs(), plan) for plan in (None, Plan(precision="bfloat16")))
    assert exact["cross_entropy"] != halved["cross_entropy"]
    assert exact["cross_entropy"] == pytest.approx(halved["cross_entropy"], rel=0.02)
