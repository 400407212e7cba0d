"""Grey images for colour networks and colours for grey ones; and what is no image, no label, no name at the door."""

import numpy as np
import pytest
import torch
from PIL import Image

from reptrans.data import Dataset, Loader, Split, Streamed, folder, load_dataset
from reptrans.data.dataset import measured_statistics
from reptrans.data.load import STATISTICS
from reptrans.errors import BadData, BadValue, ReptransError, ShapeMismatch
from reptrans.models import build


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))


@pytest.fixture
def pictures(tmp_path):
    """Makes a folder of pictures, 10 x 10, "L" or "RGB"."""

    def make(mode: str):
        shape = (10, 10) if mode == "L" else (10, 10, 3)
        for i, place in enumerate(
            f"{part}/{name}/{k}.png" for part in ("train", "test") for name in "ab" for k in "12"
        ):
            file = tmp_path / mode / place
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)).save(file)
        return tmp_path / mode

    return make


def message(error, call, *arguments, **settings) -> str:
    with pytest.raises(ReptransError) as raised:
        call(*arguments, **settings)
    assert raised.type is error
    return str(raised.value)


def images_of(data, part="train"):
    return torch.cat([batch.images for batch in data.loader(part, 300, dtype=torch.float64)])


@pytest.mark.parametrize("settings", [{}, {"image_size": 12, "limit": 5}, {"normalise": "mnist"}])
def test_grey_images_are_repeated_with_their_statistics(settings):
    grey, colour = load_dataset("digits", **settings), load_dataset("digits", **settings, channels=3)
    assert (colour.channels, colour.mean, colour.std) == (3, grey.mean * 3, grey.std * 3)
    for part in ("train", "test"):
        assert torch.equal(images_of(colour, part), images_of(grey, part).expand(-1, 3, -1, -1))
    assert torch.equal(colour.train.select(torch.tensor([2])).images[0, 1], grey.train.images[2, 0])


def test_repeated_grey_takes_the_statistics_of_colours():
    found = load_dataset("digits", channels=3, normalise="imagenet")
    assert (found.mean, found.std) == STATISTICS["imagenet"]
    expected = (found.train.images[0, 1].double() / 255 - 0.456) / 0.224
    torch.testing.assert_close(images_of(found)[0, 1], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("channels", [None, 0, 1])
def test_as_they_are(channels):
    found = load_dataset("digits", channels=channels)
    assert (found.channels, found.mean) == (1, (0.3070,))


@pytest.mark.parametrize("most_side", [64, 4])
def test_colours_are_averaged_in_memory_and_streamed(most_side, pictures, monkeypatch):
    monkeypatch.setattr(folder, "MOST_SIDE", most_side)
    colour, grey = (load_dataset(f"folder:{pictures('RGB')}", channels=channels) for channels in (3, 1))
    assert isinstance(grey.train, Streamed) is (most_side == 4) and (colour.channels, grey.channels) == (3, 1)
    index = torch.arange(4)
    mean = colour.train.batch(index).double().mean(1, keepdim=True).round()
    assert torch.equal(grey.train.batch(index).double(), mean)
    assert (grey.mean, grey.std) == measured_statistics(Split(mean.to(torch.uint8), grey.train.labels))
    chosen = grey.train.limit(1)
    assert chosen.shape == (1, 10, 10) and torch.equal(chosen.batch(torch.tensor([1])).double(), mean[2:3])


@pytest.mark.parametrize("most_side", [64, 4])
def test_a_grey_folder_for_a_colour_network(most_side, pictures, monkeypatch):
    monkeypatch.setattr(folder, "MOST_SIDE", most_side)
    root = pictures("L")
    grey, colour = load_dataset(f"folder:{root}"), load_dataset(root, channels=3)
    assert torch.equal(images_of(colour), images_of(grey).expand(-1, 3, -1, -1))


def test_the_default_digits_go_into_colour_networks():
    data = load_dataset("digits", image_size=32, channels=3)
    net = build("torchvision/squeezenet1_1", in_channels=data.channels, image_size=data.image_size).eval()
    assert net(next(iter(data.loader("test", 2))).images).shape == (2, 10)


@pytest.mark.parametrize("value", [2, -1, 3.0, True, "3"])
def test_other_channels_are_refused(value):
    assert message(BadValue, load_dataset, "digits", channels=value) == (
        f"channels is {value!r}. Possible: 3 (grey is repeated), 1 (colours are averaged), 0 (as is)."
    )


@pytest.mark.parametrize("given", [None, 3, ["digits"]])
def test_only_names_and_paths_are_data_sets(given):
    assert message(BadValue, load_dataset, given) == (
        f"load_dataset takes the name of a data set or the Path of a folder, not {given!r}. Possible: digits, shapes, "
        "mnist, fashion_mnist, cifar10, cifar100, svhn, stl10, celeba, folder:PATH, text:PATH."
    )


BYTES = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
CLASSES = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("images", "labels", "error", "text"),
    [
        (BYTES.long(), CLASSES, BadData, "images are torch.int64. Give torch.uint8 from 0 to 255, or floats, which are "
         "not normalised."),
        (BYTES.bool(), CLASSES, BadData, "images are torch.bool. Give torch.uint8 from 0 to 255, or floats, which are "
         "not normalised."),
        (BYTES.cfloat(), CLASSES, BadData, "images are torch.complex64. Give torch.uint8 from 0 to 255, or floats, "
         "which are not normalised."),
        (BYTES.numpy(), CLASSES, BadData, "the images of a split are ndarray. Give a tensor: torch.as_tensor(images)."),
        (BYTES, [0, 1, 2], BadData, "the labels of a split are list. Give a tensor: torch.as_tensor(labels)."),
        (BYTES[:, 0], CLASSES, ShapeMismatch, "images of bytes are (n, channels, height, width), not (3, 2, 2). Of "
         "grey images without an axis of channels give images[:, None]."),
        (BYTES, CLASSES.int(), BadData, "labels are torch.int32. One class for each image is torch.int64: "
         "labels.long()."),
        (BYTES, CLASSES.float(), BadData, "labels are torch.float32. One class for each image is torch.int64: "
         "labels.long()."),
        (BYTES, CLASSES - 1, BadData, "labels hold -1, which is no class. Classes count from 0."),
    ],
)  # fmt: skip
def test_what_is_no_image_or_no_label_is_refused(images, labels, error, text):
    assert message(error, Split, images, labels) == text


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (CLASSES, "the test labels of three hold 2, but there are 2 classes, numbered from 0: a, b."),
        (torch.tensor([[0, 1, 1]] * 3), "the test labels of three are (3, 3), from 0 to 1. They should say yes (1) or "
         "no (0) for each of the 2 classes."),
        (torch.tensor([[0, 2]] * 3), "the test labels of three are (3, 2), from 0 to 2. They should say yes (1) or "
         "no (0) for each of the 2 classes."),
    ],
)  # fmt: skip
def test_labels_that_are_no_class_of_the_set_are_refused(labels, text):
    train = Split(BYTES, torch.tensor([0, 1, 0]))
    assert message(BadData, Dataset, "three", train, Split(BYTES, labels), ("a", "b"), (0.5,), (0.5,)) == text
    empty = train.select(torch.tensor([], dtype=torch.int64))
    assert Dataset("none", empty, empty, ("a",), (0.5,), (0.5,)).num_classes == 1


def test_devices_that_are_not_there_are_refused_before_the_first_batch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = {"split": Split(BYTES, CLASSES), "mean": (0.5,), "std": (0.5,)}
    assert message(BadValue, Loader, **arguments, device="gpu") == (
        "device is 'gpu'. Possible: cpu, cuda, cuda:0, cuda:1, mps."
    )
    assert message(BadValue, Loader, **arguments, device="cuda:1") == (
        "device is 'cuda:1', but PyTorch finds no such GPU here. Choose cpu."
    )
    for batch_size in (0, -1, 1.5, True, None):
        assert message(BadValue, Loader, **arguments, batch_size=batch_size) == (
            f"batch_size is {batch_size!r}; it must be a whole number from 1 on."
        )
