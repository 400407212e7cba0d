"""Torch Datasets as data sets: every form of image and label that is taken, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils import data
from torchvision.transforms import functional as F

from reptrans import Dataset
from reptrans.data import dataset as from_torch
from reptrans.errors import BadData, BadValue, ShapeMismatch

BYTES = torch.randint(0, 256, (12, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
GREY = BYTES[:, :1]


class Pairs(data.Dataset):
    """Images in any form, labels that count 0, 1, 2, 0, 1, …"""

    def __init__(self, images, labels=None, classes=None):
        self.images, self.labels = images, labels or [i % 3 for i in range(len(images))]
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


def made(images, labels=None, **more):
    return Dataset.from_torch(Pairs(images, labels), Pairs(images[:4], labels and labels[:4]), **more)


FORMS = {
    "bytes": BYTES,
    "ToTensor": [F.to_tensor(F.to_pil_image(image)) for image in BYTES],
    "PIL": [F.to_pil_image(image) for image in BYTES],
    "palette": [F.to_pil_image(image // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE) for image in BYTES],
}


@pytest.mark.parametrize("form", FORMS)
def test_images_of_every_form_are_the_same_bytes(form):
    dataset = made(FORMS[form])
    assert torch.equal(dataset.train.images, BYTES // 128 * 255 if form == "palette" else BYTES)
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4 and len(dataset.test) == 4
    assert dataset.classes == ("0", "1", "2") and dataset.image_size == (6, 5)


def test_grey_images_have_one_channel():
    dataset = made([F.to_pil_image(image) for image in GREY])
    assert torch.equal(dataset.train.images, GREY) and dataset.channels == 1


def test_statistics_are_measured_or_given():
    values = BYTES.double() / 255
    dataset = made(BYTES)
    assert dataset.mean == pytest.approx(values.mean((0, 2, 3)).tolist())
    assert dataset.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist())
    given = made(BYTES, mean=[0.1, 0.2, 0.3])
    assert given.mean == (0.1, 0.2, 0.3) and given.std == dataset.std
    batch = next(iter(made(BYTES, mean=(0.0,) * 3, std=(1.0,) * 3).loader("test", 4)))
    assert torch.equal(batch.images, BYTES[:4].float() / 255)


def test_names_of_classes_come_from_the_set_or_the_caller():
    named = Pairs(BYTES, classes=["cat", "dog", "eel"])
    assert Dataset.from_torch(data.Subset(named, range(9)), named).classes == ("cat", "dog", "eel")
    assert Dataset.from_torch(named, named, classes="abc", name="animals").classes == ("a", "b", "c")


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, bool])
def test_labels_may_be_any_whole_number(kind):
    labels = [kind(i % 2) for i in range(12)]
    assert made(BYTES, labels).train.labels.tolist() == [0, 1] * 6


def test_labels_of_several_classes_at_once():
    dataset = made(BYTES, [[i % 2, 1] for i in range(12)])
    assert dataset.multi_label and dataset.num_classes == 2
    assert dataset.train.labels.dtype == torch.uint8 and dataset.train.labels[:2].tolist() == [[0, 1], [1, 1]]


class Shifting(Pairs):
    """Another image at each look."""

    looks = 0

    def __getitem__(self, i):
        self.looks += 1
        return self.images[i].roll(self.looks, -1), 0


class Stream(data.IterableDataset):
    def __iter__(self):
        return iter([(BYTES[0], 0)])


WHOLE = Pairs(BYTES)
REFUSED = [
    (data.DataLoader(WHOLE), BadValue, "the train part is a DataLoader. Give a torch Dataset that has a length"),
    (Stream(), BadValue, "the train part is a Stream."),
    (BYTES, BadValue, "the train part is a Tensor."),
    (Pairs([]), BadData, "the train part is empty."),
    (data.TensorDataset(BYTES), BadData, "train example 0 is a tuple, and not a pair (image, label)."),
    (Shifting(BYTES), BadData, "the train part gives another image each time. Leave augmentation to loader(augment=…)"),
    (Pairs([*BYTES[:9], BYTES[0, :, :3]]), ShapeMismatch, "train image 9 is (3, 3, 5) and the first (3, 6, 5). Resize"),
    (Pairs(BYTES[..., :3]), ShapeMismatch, "train images are (3, 6, 3) and test images (3, 6, 5). Give one size."),
    (Pairs(BYTES.float()), BadData, "train image 0 holds torch.float32 from "),
    (Pairs(BYTES / 255 - 0.5), BadData, "Leave Normalize out, for the loader normalises, and put Resize before ToT"),
    (Pairs(BYTES / 300), BadData, "no bytes over 255."),
    (Pairs(torch.full((3, 1, 4, 4), torch.nan)), BadData, "train image 0 holds torch.float32 from nan to nan"),
    (Pairs(BYTES.long()), BadData, "train image 0 holds torch.int64"),
    (Pairs(BYTES[:, 0]), BadData, "train image 0 is (6, 5). Possible: a PIL image of 8 bits, or a tensor (c, h, w)"),
    (Pairs(BYTES.permute(0, 2, 3, 1).numpy()), BadData, "train image 0 is a ndarray. Possible:"),
    (Pairs([Image.new("F", (4, 4))]), BadData, "train image 0 is a Image."),
    (Pairs(BYTES, ["cat"] * 12), BadData, "the train labels are like 'cat'. Give each image the number of its class"),
    (Pairs(BYTES, [0.5] * 12), BadData, "the train labels are like 0.5."),
    (Pairs(BYTES, [[1]] * 11 + [[1, 0]]), BadData, "the train labels are like [1]."),
    (Pairs(BYTES, [-1] * 12), BadData, "labels hold -1, which is no class."),
]


@pytest.mark.parametrize(("train", "error", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_taken_is_refused(train, error, said):
    with pytest.raises(error) as caught:
        Dataset.from_torch(train, WHOLE)
    assert said in str(caught.value)


def test_statistics_of_other_channels_and_labels_beyond_the_classes():
    with pytest.raises(ShapeMismatch, match="images have 3 channels, but there are 1 means"):
        made(BYTES, mean=[0.5], std=[1.0])
    with pytest.raises(BadData, match="labels of own hold 2, but there are 2 classes"):
        made(BYTES, classes=["a", "b"])


def test_what_memory_cannot_hold_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(from_torch.psutil, "virtual_memory", lambda: type("", (), {"available": 1000})())
    with pytest.raises(BadValue, match="the train part needs 0 GB of memory. Name a folder of images instead."):
        made(BYTES)
