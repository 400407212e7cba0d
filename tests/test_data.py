"""Data sets, their order and their augmentation: against slow plain loops, known counts and hashes."""

import errno
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from reptrans.data import Dataset, Loader, Split, Streamed, dataset_names, folder, load_dataset
from reptrans.data.dataset import measured_statistics
from reptrans.data.load import STATISTICS
from reptrans.data.loader import PAD, Draws, crop, cutout, flip
from reptrans.data.streamed import resized
from reptrans.errors import BadData, BadValue, NotAvailable, ShapeMismatch, UnknownName
from reptrans.progress import interactive, progress
from reptrans.tensorfiles import load_tensors, save_tensors

PLAIN = {"mean": (0.0,), "std": (1.0,)}


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def grey_split(n=23, size=6, classes=3) -> Split:
    images = torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Split(images, torch.arange(n) % classes)


def picture(path, size=(10, 10), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode=None).save(path)
    return path


def picture_tree(root, parts=("train", "test"), classes=("cat", "dog"), n=3, **form):
    for i, (part, name, k) in enumerate((p, c, k) for p in parts for c in classes for k in range(n)):
        picture(root / part / name / f"{k}.png", seed=i, **form)
    return root


def message(error, raised) -> str:
    assert raised.type is error
    return str(raised.value)


def passed(loader):
    """One pass: all images, labels and positions."""
    images, labels, index = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels), torch.cat(index)


# Loader


def test_plain_batches_are_the_normalised_images_in_order():
    split = grey_split()
    loader = Loader(split, 5, mean=(0.25,), std=(0.5,), dtype=torch.float64)
    sizes = [len(batch.images) for batch in loader]
    images, labels, index = passed(loader)
    assert sizes == [5, 5, 5, 5, 3] and len(loader) == 5
    assert torch.equal(index, torch.arange(23)) and torch.equal(labels, split.labels)
    assert torch.equal(images, (split.images.double() / 255 - 0.25) / 0.5)


def test_last_batch_can_be_dropped():
    loader = Loader(grey_split(), 5, **PLAIN, drop_last=True)
    assert len(loader) == 4 == len(list(loader))
    assert len(Loader(grey_split(20), 5, **PLAIN, drop_last=True)) == 4
    assert len(loader.plain()) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_that_of_images_and_of_yes_or_no_labels(dtype):
    split = Split(grey_split(4).images, torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]], dtype=torch.uint8))
    (batch,) = Loader(split, 4, mean=(0.3,), std=(0.2,), dtype=dtype)
    assert batch.images.dtype == batch.labels.dtype == dtype
    assert torch.equal(batch.labels, split.labels.to(dtype))
    exact = (split.images.double() / 255 - 0.3) / 0.2
    # Half a unit in the last place of bfloat16's 8 binary digits, relative to values up to 3.5.
    assert (batch.images.double() - exact).abs().max() < {torch.bfloat16: 2**-7}.get(dtype, 1e-6)


def test_shuffled_order_is_a_permutation_that_changes_with_epoch_and_seed():
    split = grey_split(50)
    loader = Loader(split, 7, **PLAIN, shuffle=True, seed=3)
    first, second = passed(loader), passed(loader)
    other = passed(Loader(split, 7, **PLAIN, shuffle=True, seed=4))
    # Were seed and epoch only added, seed 4 would begin with the second epoch of seed 3.
    orders = [tuple(index.tolist()) for _, _, index in (first, second, other)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({*orders, tuple(range(50))}) == 4
    for images, labels, index in (first, second):
        assert torch.equal(labels, split.labels[index])
        assert torch.equal(images, split.images[index].float() / 255)


def test_setting_the_epoch_resumes_exactly():
    settings = {**PLAIN, "shuffle": True, "seed": 1, "augment": "flip,crop,cutout"}
    whole, resumed = Loader(grey_split(), 5, **settings), Loader(grey_split(), 5, **settings)
    epochs = [passed(whole) for _ in range(3)]
    assert whole.epoch == 3
    resumed.epoch = 2
    assert all(torch.equal(a, b) for a, b in zip(epochs[2], passed(resumed), strict=True))
    assert not torch.equal(epochs[1][0], epochs[2][0])


def test_a_pass_counts_from_its_start():
    loader = Loader(grey_split(), 5, **PLAIN)
    next(iter(loader))
    assert loader.epoch == 1


def test_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    passed(Loader(grey_split(), 5, **PLAIN, shuffle=True, augment="flip,crop,cutout"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_augmentation_of_an_image_depends_neither_on_batch_size_nor_on_order():
    split = grey_split(40)
    views = []
    for batch_size, shuffle in ((40, False), (7, False), (7, True)):
        images, _, index = passed(
            Loader(split, batch_size, **PLAIN, shuffle=shuffle, augment="flip,crop,cutout", seed=5)
        )
        views.append(images[index.argsort()])
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])
    assert not torch.equal(views[0], split.images.float() / 255)


def test_flip_is_the_same_with_and_without_crop():
    alone, both = (Draws.of_epoch(k, 30, (6, 6), 2, 0, torch.device("cpu")) for k in (("flip",), ("flip", "crop")))
    assert torch.equal(alone.flip, both.flip)


def test_standard_is_flip_then_crop_and_unknown_kinds_are_refused():
    assert Loader(grey_split(), **PLAIN, augment="standard").augment == "flip,crop"
    assert Loader(grey_split(), **PLAIN, augment="cutout, flip").augment == "flip,cutout"
    with pytest.raises(UnknownName) as raised:
        Loader(grey_split(), **PLAIN, augment="flip,corp")
    assert message(UnknownName, raised) == (
        "there is no augmentation 'corp'. Did you mean 'crop'? Possible: none, standard, flip, crop, cutout; "
        "the last three also joined by commas."
    )


def test_over_and_plain_change_only_what_they_say():
    settings = {"mean": (0.1,), "std": (0.3,), "shuffle": True, "seed": 7, "augment": "flip", "drop_last": True}
    loader = Loader(grey_split(), 5, **settings, dtype=torch.float64)
    other = loader.over(grey_split(9), drop_last=False)
    assert (other.shuffle, other.seed, other.augment, other.drop_last) == (True, 7, "flip", False)
    assert (other.mean, other.std, other.dtype, len(other.split)) == ((0.1,), (0.3,), torch.float64, 9)
    images, _, index = passed(loader.plain())
    assert torch.equal(index, torch.arange(23))
    assert torch.equal(images, (grey_split().images.double() / 255 - 0.1) / 0.3)
    assert (loader.shuffle, loader.augment, loader.epoch) == (True, "flip", 0)


def test_activations_pass_as_they_are():
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loader = Loader(Split(values, torch.zeros(6, dtype=torch.int64)), 4, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert torch.equal(passed(loader)[0], values.float())
    with pytest.raises(BadValue) as raised:
        loader.over(loader.split, augment="flip")
    assert message(BadValue, raised) == (
        "augment is 'flip', but the split holds torch.float64 values. Only uint8 images can be augmented; "
        'choose "none".'
    )


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"batch_size": 0}, BadValue, "batch_size is 0; it must be a whole number from 1 on."),
        ({"seed": -1}, BadValue, "seed is -1; it must be a whole number from 0 on."),
        (
            {"dtype": torch.int32},
            BadValue,
            "dtype is torch.int32. Possible: torch.float32, torch.float64, torch.bfloat16.",
        ),
        (
            {"mean": (0.5,) * 3},
            ShapeMismatch,
            "images have 1 channels, but there are 3 means and 1 standard deviations. Give one of each for every "
            "channel.",
        ),
    ],
)
def test_wrong_settings_are_refused(settings, error, text):
    with pytest.raises(error) as raised:
        Loader(grey_split(), **(PLAIN | settings))
    assert message(error, raised) == text


# Augmentation


def colour_batch(n=64, h=7, w=9):
    return torch.randint(1, 256, (n, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_flip_mirrors_the_chosen_images_only_and_twice_is_nothing():
    images, chosen = colour_batch(), torch.arange(64) % 3 == 0
    once = flip(images, chosen)
    assert torch.equal(once[~chosen], images[~chosen])
    assert torch.equal(once[chosen][..., 0], images[chosen][..., -1])
    assert torch.equal(flip(once, chosen), images)


def test_crop_is_a_window_of_the_image_padded_with_black():
    images = colour_batch()
    draws = Draws.of_epoch(("crop",), 64, (7, 9), 0, 0, torch.device("cpu"))
    cropped = crop(images, draws.crop)
    assert cropped.shape == images.shape
    for image, result, (top, left) in zip(images, cropped, draws.crop.tolist(), strict=True):
        expected = torch.zeros_like(image)
        for y in range(7):
            for x in range(9):
                if 0 <= y + top - PAD < 7 and 0 <= x + left - PAD < 9:
                    expected[:, y, x] = image[:, y + top - PAD, x + left - PAD]
        assert torch.equal(result, expected)
    assert torch.equal(crop(images, torch.full((64, 2), PAD)), images)


def test_draws_cover_their_whole_range():
    draws = Draws.of_epoch(("flip", "crop", "cutout"), 4000, (5, 7), 0, 0, torch.device("cpu"))
    assert draws.crop.unique().tolist() == list(range(2 * PAD + 1))
    assert [draws.cutout[:, i].unique().tolist() for i in (0, 1)] == [list(range(5)), list(range(7))]
    assert 0.45 < draws.flip.double().mean() < 0.55
    assert Draws.of_epoch((), 5, (5, 7), 0, 0, torch.device("cpu")) == Draws()


def test_cutout_empties_a_square_cut_by_the_border():
    images = torch.ones(4, 2, 8, 8)
    result = cutout(images.clone(), torch.tensor([[4, 4], [0, 0], [7, 7], [0, 4]]))
    # Side 4, from centre − 2 to centre + 1.
    assert (result == 0).sum((1, 2, 3)).tolist() == [2 * 16, 2 * 4, 2 * 9, 2 * 8]
    expected = torch.ones(8, 8)
    expected[2:6, 2:6] = 0
    assert torch.equal(result[0, 0], expected) and torch.equal(result[0, 1], expected)


def test_cutout_fills_with_the_mean_and_crop_with_black():
    split = Split(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    settings = {"mean": (0.5,), "std": (0.25,)}
    assert passed(Loader(split, **settings, augment="cutout"))[0].unique().tolist() == [0.0, 2.0]
    seen = torch.cat([passed(Loader(split, **settings, augment="crop", seed=seed))[0] for seed in range(5)])
    assert seen.unique().tolist() == [-2.0, 2.0]


def test_loader_flips_about_half_and_only_mirrors():
    split = grey_split(400)
    images = passed(Loader(split, 64, **PLAIN, augment="flip"))[0]
    plain = split.images.float() / 255
    kept, mirrored = ((images == other).flatten(1).all(1) for other in (plain, plain.flip(3)))
    assert (kept ^ mirrored).all()
    assert 160 < mirrored.sum() < 240


def test_loader_leaves_what_cutout_does_not_cover():
    split = Split(colour_batch(h=8, w=12), torch.zeros(64, dtype=torch.int64))
    statistics = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    loader = Loader(split, 20, **statistics, augment="cutout", seed=9)
    images, whole = passed(loader)[0], passed(loader.plain())[0]
    centres = Draws.of_epoch(("cutout",), 64, (8, 12), 9, 0, torch.device("cpu")).cutout
    for image, expected, (y, x) in zip(images, whole, centres.tolist(), strict=True):
        expected[:, max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] = 0
        assert torch.equal(image, expected)


# Split


def test_select_takes_positions_in_the_order_given(tmp_path):
    files = tuple(picture(tmp_path / f"{k}.png", seed=k) for k in range(4))
    labels = torch.tensor([5, 6, 7, 8])
    streamed = Streamed(files, labels, (3, 10, 10))
    for split in (streamed, Split(streamed.batch(torch.arange(4)), labels)):
        chosen = split.select(torch.tensor([3, 0, 3]))
        assert (len(chosen), chosen.shape, chosen.labels.tolist()) == (3, (3, 10, 10), [8, 5, 8])
        for image, k in zip(chosen.batch(torch.arange(3)), (3, 0, 3), strict=True):
            assert torch.equal(image, torch.from_numpy(np.array(Image.open(files[k]))).permute(2, 0, 1))


def test_yes_or_no_labels_make_a_set_multi_label():
    images = grey_split(4).images
    several = Split(images, torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0]], dtype=torch.uint8))
    found = Dataset("two", several, several, ("left", "right"), (0.0,), (1.0,))
    assert (found.multi_label, found.num_classes) == (True, 2)
    assert torch.equal(next(iter(found.loader("train", 4))).labels, several.labels.float())


def test_limit_takes_the_first_of_every_class_in_the_splits_order():
    split = Split(torch.arange(8, dtype=torch.uint8).reshape(8, 1, 1, 1), torch.tensor([1, 0, 0, 1, 1, 0, 0, 1]))
    assert split.limit(2).images.flatten().tolist() == [0, 1, 2, 3]
    assert split.limit(2).labels.tolist() == [1, 0, 0, 1]
    drawn = split.limit(2, seed=1).images.flatten().tolist()
    assert drawn == sorted(drawn) == split.limit(2, seed=1).images.flatten().tolist()
    assert split.limit(2, seed=1).labels.bincount().tolist() == [2, 2]
    assert len({tuple(split.limit(2, seed=seed).images.flatten().tolist()) for seed in range(10)}) > 3


def test_limit_of_yes_or_no_labels_counts_images():
    split = Split(torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1), torch.ones(4, 3, dtype=torch.uint8))
    assert split.limit(3).images.flatten().tolist() == [0, 1, 2]
    with pytest.raises(BadValue) as raised:
        split.limit(5)
    assert message(BadValue, raised) == "limit is 5, but the split has 4 images. Choose a smaller limit."


def test_limit_names_the_class_that_is_too_small():
    with pytest.raises(BadValue) as raised:
        grey_split(8).limit(3)
    assert message(BadValue, raised) == "limit is 3, but class 2 has 2 images. Choose a smaller limit."
    with pytest.raises(BadValue) as raised:
        load_dataset("digits", limit=99)
    assert message(BadValue, raised) == "limit is 99, but class '4' has 98 images. Choose a smaller limit."
    with pytest.raises(BadValue) as raised:
        grey_split().limit(0)
    assert (
        message(BadValue, raised) == "limit is 0; it must be a whole number from 1 on: how many images of every class."
    )


def test_split_needs_a_label_for_every_image():
    with pytest.raises(ShapeMismatch) as raised:
        Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    assert message(ShapeMismatch, raised) == (
        "a split needs as many labels as images: images (3, 1, 2, 2), labels (2,)."
    )


# Known data sets


def test_digits():
    found = load_dataset("digits")
    assert (len(found.train), len(found.test), found.num_classes) == (1000, 797, 10)
    assert (found.channels, found.image_size, found.multi_label) == (1, (8, 8), False)
    assert found.train.labels.bincount().tolist() == [99, 102, 100, 104, 98, 100, 101, 99, 98, 99]
    assert found.test.labels.bincount().tolist() == [79, 80, 77, 79, 83, 82, 80, 80, 76, 81]
    # Grey 0 to 16: exactly these 17 values.
    assert found.train.images.unique().tolist() == [round(255 * grey / 16) for grey in range(17)]
    pixels = torch.cat([found.train.images, found.test.images]).numpy()
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert digest == "b41ca9fd335466eee997366c2e6f6bbe0a1b4582afe091fc4eba35f4a254182f"


def test_statistics_of_digits_are_those_of_the_training_images():
    found = load_dataset("digits")
    (mean,), (std,) = measured_statistics(found.train)
    pixels = found.train.images.double() / 255
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-12)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-12)
    assert (round(mean, 4), round(std, 4)) == (found.mean[0], found.std[0])


@pytest.mark.parametrize("image_size", [None, 32])
def test_measured_statistics_normalise_the_training_images(image_size):
    train = load_dataset("digits", image_size=image_size).train
    mean, std = measured_statistics(train)
    images = passed(Loader(train, 256, mean=mean, std=std, dtype=torch.float64))[0]
    assert images.shape == (1000, 1, *([image_size or 8] * 2))
    assert images.mean().item() == pytest.approx(0, abs=1e-12)
    # Not torch.std: its running sum over a million values is only good to 3e-12.
    assert images.square().mean().item() == pytest.approx(1, abs=1e-12)


def test_images_are_resized_and_training_images_limited():
    found = load_dataset("digits", image_size=16, limit=5, normalise="mnist")
    assert found.train.images.shape == (50, 1, 16, 16) and found.test.images.shape == (797, 1, 16, 16)
    assert found.train.labels.bincount().tolist() == [5] * 10
    assert (found.mean, found.std) == STATISTICS["mnist"]
    batch = next(iter(found.loader("test", 10)))
    assert torch.equal(batch.images, (found.test.images[:10].float() / 255 - 0.1307) / 0.3081)
    with pytest.raises(UnknownName) as raised:
        found.loader("tests")
    assert message(UnknownName, raised) == "a data set has no part 'tests'. Did you mean 'test'? Possible: train, test"


def test_resizing_takes_the_centre_of_the_longer_side():
    images = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    images[..., 2:6] = 200
    assert torch.equal(resized(images, 4), torch.full((1, 1, 4, 4), 200, dtype=torch.uint8))
    assert resized(images, 2).unique().tolist() != [0] and resized(images, 2).shape == (1, 1, 2, 2)
    assert resized(images, None) is images


def test_mnist_from_files_that_are_there(shared):
    found = load_dataset("mnist", shared("data/MNIST").parent)
    assert (found.train.images.shape, found.test.images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert found.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert found.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert found.classes == tuple("0123456789")
    pixels = found.train.images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (found.mean[0], found.std[0])


def test_jpeg_test_images_are_those_of_the_reference(shared, tmp_path):
    archive, reference = shared("data/cifar10-jpeg.tar.xz"), shared("reference/stitching.json")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, (m for m in files if m.name.startswith("cifar10-jpeg/test/")), filter="data")
    files = folder._class_files(tmp_path / "cifar10-jpeg" / "test")
    images = folder.decode(folder._flat(files), (3, 32, 32), resize=False)
    known = json.loads(reference.read_text())["protocol"]["sha256_decoded_uint8_NHWC"]["test_10000"]
    assert hashlib.sha256(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes()).hexdigest() == known
    assert [len(found) for found in files.values()] == [1000] * 10


@pytest.mark.parametrize(
    ("name", "into", "files"),
    [
        (
            "mnist",
            "MNIST/raw",
            "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
            "t10k-labels-idx1-ubyte.gz",
        ),
        ("cifar10", ".", "cifar-10-python.tar.gz"),
        ("svhn", "svhn", "train_32x32.mat, test_32x32.mat"),
    ],
)
def test_without_network_the_message_says_what_to_put_where(name, into, files, data_folder, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    # Nothing listens on the discard port, so every connection is refused at once.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # an earlier download's, which knows other proxies
    with pytest.raises(NotAvailable) as raised:
        load_dataset(name)
    refused = f"<urlopen error [Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)}>"
    assert message(NotAvailable, raised) == (
        f"{name} could not be downloaded or read ({refused}). Put {files} into {data_folder / into}, "
        "or give the folder that has it as root."
    )
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    ("name", "settings", "error", "text"),
    [
        (
            "cifar01",
            {},
            UnknownName,
            "there is no data set 'cifar01'. Did you mean 'cifar10' or 'cifar100'? Possible: "
            + ", ".join([*dataset_names(), "folder:PATH", "text:PATH"]),
        ),
        (
            "digits",
            {"normalise": "imagnet"},
            UnknownName,
            "there are no statistics of 'imagnet'. Did you mean 'imagenet'? Possible: digits, mnist, fashion_mnist, "
            "cifar10, cifar100, imagenet",
        ),
        (
            "digits",
            {"normalise": "cifar10"},
            ShapeMismatch,
            "digits has 1 channels, but the statistics of cifar10 are for 3. Choose another set for normalise, or "
            "none; or other channels.",
        ),
        (
            "digits",
            {"image_size": 0},
            BadValue,
            "image_size is 0; it must be a whole number of pixels from 1 on, or None.",
        ),
        ("digits", {"split_seed": -1}, BadValue, "split_seed is -1; it must be a whole number from 0 on."),
        ("digits", {"limit_seed": 1.5}, BadValue, "limit_seed is 1.5; it must be a whole number from 0 on."),
    ],
)
def test_wrong_requests_are_refused(name, settings, error, text):
    with pytest.raises(error) as raised:
        load_dataset(name, **settings)
    assert message(error, raised) == text


# Folders


def test_folder_is_read_in_order_of_class_and_name(tmp_path):
    root = picture_tree(tmp_path / "pets", classes=("dog", "cat"))
    found = load_dataset(f"folder:{root}")
    assert isinstance(found.train, Split) and isinstance(found, Dataset)
    assert (found.name, found.classes, found.train.labels.tolist()) == ("pets", ("cat", "dog"), [0, 0, 0, 1, 1, 1])
    for i, file in enumerate(sorted((root / "train").rglob("*.png"))):
        assert torch.equal(found.train.images[i], torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    pixels = found.train.images.double().transpose(0, 1).flatten(1) / 255
    assert torch.allclose(torch.tensor(found.mean).double(), pixels.mean(1), rtol=0, atol=1e-7)
    assert torch.allclose(torch.tensor(found.std).double(), pixels.std(1, correction=0), rtol=0, atol=1e-7)
    assert load_dataset(f"folder:{root}", normalise="cifar10").std == (0.2023, 0.1994, 0.2010)


def test_relative_folder_is_found_below_the_root_too(tmp_path, data_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture_tree(data_folder / "pets")
    assert load_dataset("folder:pets").name == "pets"
    with pytest.raises(BadData) as raised:
        load_dataset("folder:pats")
    assert message(BadData, raised) == (
        f"there is no folder 'pats', neither here nor in {data_folder}. Name one with a folder of images for each "
        "class: folder:PATH."
    )


def test_one_tree_is_split_in_every_class(tmp_path):
    root = picture_tree(tmp_path, parts=("tree",), n=10) / "tree"
    found = load_dataset(f"folder:{root}", split_seed=1)
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0] * 8 + [1] * 8, [0, 0, 1, 1])
    everything = torch.cat([found.train.images, found.test.images]).flatten(1)
    assert len(everything.unique(dim=0)) == 20
    assert torch.equal(load_dataset(f"folder:{root}", split_seed=1).test.images, found.test.images)
    assert not torch.equal(load_dataset(f"folder:{root}", split_seed=2).test.images, found.test.images)


def test_grey_folder_has_one_channel_and_a_mixed_one_three(tmp_path):
    root = picture_tree(tmp_path / "grey", mode="L")
    assert load_dataset(f"folder:{root}").channels == 1
    picture(root / "train" / "cat" / "9.png")
    assert load_dataset(f"folder:{root}").channels == 3


def test_decoded_images_are_kept_until_a_file_changes(tmp_path, data_folder):
    root = picture_tree(tmp_path / "pets")
    first = load_dataset(f"folder:{root}").train.images
    (kept,) = (data_folder / "cache").glob("pets-train-*.safetensors")
    save_tensors(kept, {"images": 255 - first})
    assert torch.equal(load_dataset(f"folder:{root}").train.images, 255 - first), "the cache was not read"
    changed = bytearray(kept.read_bytes())
    changed[-1] ^= 255
    for broken in (changed, changed[:20], b""):
        kept.write_bytes(broken)
        assert torch.equal(load_dataset(f"folder:{root}").train.images, first), "a broken cache was used"
    os.utime(root / "train" / "cat" / "0.png", (1, 1))
    load_dataset(f"folder:{root}")
    assert len(list((data_folder / "cache").glob("pets-train-*"))) == 2


@pytest.mark.parametrize(
    "content",
    [{"other": torch.zeros(3)}, {"images": torch.zeros(3, 5)}, {"images": torch.zeros(6, 3, 10, 10)}, {"images": 3},
     {"images": torch.zeros(6, 3, 10, 9, dtype=torch.uint8)}, [torch.zeros(1)], torch.zeros(6), {}],
)  # fmt: skip
def test_a_cache_of_another_content_is_made_anew(content, tmp_path, data_folder):
    root = picture_tree(tmp_path / "pets")
    first = load_dataset(f"folder:{root}").train.images
    (kept,) = (data_folder / "cache").glob("pets-train-*.safetensors")
    save_tensors(kept, content)
    for _ in range(2):
        assert torch.equal(load_dataset(f"folder:{root}").train.images, first)
    assert torch.equal(load_tensors(kept)[0]["images"], first)


@pytest.mark.parametrize("refuse", ["is a file", "cannot be read", "cannot be written"])
def test_images_are_read_where_nothing_can_be_kept(refuse, tmp_path, data_folder, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    root = picture_tree(tmp_path / "pets")
    if refuse == "is a file":
        data_folder.mkdir()
        (data_folder / "cache").write_text("")
    elif refuse == "cannot be read":
        monkeypatch.setattr(folder, "load_tensors", refused)
    else:
        monkeypatch.setattr("reptrans.files.os.replace", refused)
    assert len(load_dataset(f"folder:{root}").train) == 6


@pytest.mark.parametrize(
    ("parts", "used"),
    [
        (("Train", "Test"), ("Train", "Test")),
        (("TRAIN", "TEST"), ("TRAIN", "TEST")),
        (("training", "validation"), ("training", "validation")),
        (("train", "val"), ("train", "val")),
        (("train", "valid"), ("train", "valid")),
        (("train_set", "test-set"), ("train_set", "test-set")),
        (("train", "dev", "test"), ("train", "test")),
        (("Training", "Eval", "Testing"), ("Training", "Testing")),
    ],
)
def test_parts_have_common_names(parts, used, tmp_path):
    found = load_dataset(f"folder:{picture_tree(tmp_path / 'pets', parts=parts)}")
    assert found.classes == ("cat", "dog")
    for split, part in zip((found.train, found.test), used, strict=True):
        files = sorted((tmp_path / "pets" / part).rglob("*.png"))
        pixels = [torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files]
        assert torch.equal(split.images, torch.stack(pixels))


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("Train", "train"), "has the folders Train and train, and either could be the train part. Leave one."),
        (("train", "val", "valid"), "has the folders val and valid, and either could be the validation part. Leave "
         "one."),
        (("Training", "birds"), "has a folder Training, but no folder test. Add test, or give the class folders "
         "without Training to have them split 80 to 20."),
        (("VAL", "birds"), "has a folder VAL, but no folder train. Add train, or give the class folders without VAL to "
         "have them split 80 to 20."),
    ],
)  # fmt: skip
def test_parts_that_could_be_meant_otherwise_are_refused(parts, text, tmp_path):
    root = picture_tree(tmp_path / "pets", parts=parts)
    if len(list(root.iterdir())) < len(parts):
        pytest.skip("a disk on which Train is train")
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised) == f"{root} {text}"


@pytest.mark.parametrize("name", ["a b", "картинки", "n" * 200, "pets.", "a,b"])
def test_folders_of_any_name(name, tmp_path):
    root = picture_tree(tmp_path / name)
    assert torch.equal(load_dataset(f"folder:{root}").train.images, load_dataset(f"folder:{root}").train.images)


def test_streaming_gives_what_memory_gives(tmp_path, monkeypatch):
    root = picture_tree(tmp_path / "pets", size=(12, 9), n=7)
    in_memory = load_dataset(f"folder:{root}", image_size=8, limit=5)
    monkeypatch.setattr(folder, "MOST_SIDE", 7)
    streamed = load_dataset(f"folder:{root}", image_size=8, limit=5)
    assert isinstance(in_memory.train, Split) and isinstance(streamed.train, Streamed)
    assert (len(streamed.train), streamed.train.shape) == (10, (3, 8, 8))
    assert (streamed.mean, streamed.std) == (in_memory.mean, in_memory.std)
    settings = {"shuffle": True, "seed": 2, "augment": "standard"}
    for part in ("train", "test"):
        pairs = zip(
            passed(in_memory.loader(part, 4, **settings)), passed(streamed.loader(part, 4, **settings)), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_large_images_are_streamed_resized_and_cut_at_the_centre(tmp_path):
    root = picture_tree(tmp_path / "pets", size=(150, 100))
    found = load_dataset(f"folder:{root}", image_size=72, normalise="imagenet")
    assert isinstance(found.train, Streamed) and found.image_size == (72, 72)
    images = passed(found.loader("train", 4, dtype=torch.float64))[0]
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in STATISTICS["imagenet"])
    for image, file in zip(images, sorted((root / "train").rglob("*.png")), strict=True):
        # 150 x 100 becomes 108 x 72, of which 18 columns on either side go.
        pixels = np.array(Image.open(file).resize((108, 72), Image.Resampling.BILINEAR))[:, 18:90]
        assert torch.equal(image, (torch.from_numpy(pixels).permute(2, 0, 1).double() / 255 - mean) / std)


def test_a_streamed_pass_can_be_left_early(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MOST_SIDE", 7)
    found = load_dataset(f"folder:{picture_tree(tmp_path / 'pets', n=20)}")
    batches = iter(found.loader("train", 2))
    assert next(batches).index.tolist() == [0, 1]
    batches.close()


def test_corrupt_image_is_named(tmp_path):
    root = picture_tree(tmp_path / "pets")
    broken = root / "train" / "dog" / "1.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised) == (
        f"{broken} cannot be read as an image (UnidentifiedImageError). Replace or delete it."
    )
    # A header that is whole, before pixels that break off.
    broken.write_bytes(picture(tmp_path / "whole.png").read_bytes()[:120])
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised) == f"{broken} cannot be read as an image (OSError). Replace or delete it."


def test_broken_image_in_a_stream_is_named(tmp_path):
    good, bad = picture(tmp_path / "a.png"), tmp_path / "b.png"
    bad.write_bytes(b"")
    split = Streamed((good, bad), torch.tensor([0, 1]), (3, 10, 10))
    with pytest.raises(BadData) as raised:
        passed(Loader(split, 1, mean=(0.5,) * 3, std=(0.2,) * 3))
    assert message(BadData, raised) == (
        f"{bad} cannot be read as an image (UnidentifiedImageError). Replace or delete it."
    )


def test_images_of_different_sizes_need_image_size(tmp_path):
    root = picture_tree(tmp_path / "pets")
    odd = picture(root / "train" / "cat" / "1.png", size=(11, 12))
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised) == (
        f"{root / 'train' / 'cat' / '0.png'} is 10 x 10 pixels, {odd} is 11 x 12. "
        "Give image_size to bring all images to one size."
    )
    assert load_dataset(f"folder:{root}", image_size=8).image_size == (8, 8)


def test_what_the_sampled_headers_missed_is_noticed_on_reading(tmp_path):
    colour, large = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", size=(11, 12))
    with pytest.raises(BadData) as raised:
        Streamed((colour,), torch.tensor([0]), (1, 10, 10)).batch(torch.tensor([0]))
    assert (
        message(BadData, raised) == f"{colour} is in colour (mode RGB), but others are grey. Convert one or the other."
    )
    with pytest.raises(BadData) as raised:
        Streamed((large,), torch.tensor([0]), (3, 10, 10)).batch(torch.tensor([0]))
    assert message(BadData, raised) == (
        f"{large} is 11 x 12 pixels, others are 10 x 10. Give image_size to bring all images to one size."
    )


def test_sixteen_bits_are_refused_on_reading_too(tmp_path):
    deep = tmp_path / "a.png"
    Image.new("I;16", (10, 10)).save(deep)
    for channels in (1, 3):
        with pytest.raises(
            BadData, match=r"a.png has more than 8 bits per channel \(mode I;16\). Convert it to 8 bits."
        ):
            Streamed((deep,), torch.tensor([0]), (channels, 10, 10)).batch(torch.tensor([0]))


def test_linked_folders_are_followed_once(tmp_path):
    root = picture_tree(tmp_path / "pets")
    picture(tmp_path / "more" / "below" / "9.png")
    try:
        (root / "train" / "cat" / "more").symlink_to(tmp_path / "more", target_is_directory=True)
        (tmp_path / "more" / "back").symlink_to(root / "train" / "cat", target_is_directory=True)
    except OSError:
        pytest.skip("a system without links")
    assert load_dataset(f"folder:{root}").train.labels.tolist() == [0] * 4 + [1] * 3


def remove(*files):
    for file in files:
        file.unlink()


SPOILT = {
    "no images": (
        lambda root: remove(*(root / "train").rglob("*.png")),
        "{root}/train has no images in class folders. Expected for instance {root}/train/cat/001.png; images end in "
        ".bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp.",
    ),
    "an empty class": (
        lambda root: remove(*(root / "test" / "dog").iterdir()),
        "{root}/test has no images for: dog. Add some or delete the folder.",
    ),
    "no class folders": (
        lambda root: [shutil.rmtree(root / "train"), picture(root / "train" / "1.png")],
        "{root}/train has 1 images and no class folders, by which they are labelled. Give each class its folder: "
        "{root}/train/cat/1.png. Images without labels are taken by `compare` alone: a tensor, or a DataLoader, in "
        "place of a data set.",
    ),
    "other classes": (
        lambda root: (root / "test" / "dog").rename(root / "test" / "fox"),
        "train and test of {root} have different classes. Only in train: dog. Only in test: fox. "
        "Give both the same class folders.",
    ),
    "one class": (
        lambda root: (root / "train" / "cat").rename(root / "cat"),
        "{root}/train has one class only, dog. Classification needs at least two class folders.",
    ),
    "no test": (
        lambda root: shutil.rmtree(root / "test"),
        "{root} has a folder train, but no folder test. Add test, or give the class folders without train to have "
        "them split 80 to 20.",
    ),
    "no train": (
        lambda root: shutil.rmtree(root / "train"),
        "{root} has a folder test, but no folder train. Add train, or give the class folders without test to have "
        "them split 80 to 20.",
    ),
    "no test beside other folders": (
        lambda root: [shutil.rmtree(root / "test"), picture(root / "other" / "1.png")],
        "{root} has a folder train, but no folder test. Add test, or give the class folders without train to have "
        "them split 80 to 20.",
    ),
    "16 bits": (
        lambda root: Image.new("I;16", (10, 10)).save(root / "train" / "cat" / "0.png"),
        "{root}/train/cat/0.png has more than 8 bits per channel (mode I;16). Convert it to 8 bits.",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_folders_are_refused(what, tmp_path):
    spoil, text = SPOILT[what]
    root = picture_tree(tmp_path / "pets")
    spoil(root)
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised).replace(os.sep, "/") == text.format(root=root.as_posix())


def test_a_class_of_one_image_cannot_be_split(tmp_path):
    root = picture_tree(tmp_path, parts=("tree",), n=1) / "tree"
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised) == (
        f"class 'cat' has one image only, {root / 'cat' / '0.png'}. A split into train and test needs two."
    )


def test_a_channel_without_contrast_cannot_be_normalised(tmp_path):
    root = picture_tree(tmp_path / "pets")
    for file in root.rglob("*.png"):
        pixels = np.array(Image.open(file))
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(file)
    with pytest.raises(BadData) as raised:
        load_dataset(f"folder:{root}")
    assert message(BadData, raised) == (
        "channel 2 has one value in all of 6 training images: its standard deviation is 0. "
        'Give the statistics of a known set, for instance normalise="imagenet".'
    )


# Progress


def test_nobody_watching_means_no_bar(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    items = [1, 2]
    assert not interactive() and progress(items, "label") is items
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert interactive()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_somebody_at_a_terminal_sees_a_bar(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not interactive()
    monkeypatch.setattr(sys, "stderr", None)
    assert not interactive()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert interactive()
    assert list(progress(iter("abc"), "reading", 3)) == ["a", "b", "c"]
    assert "reading" in terminal.getvalue() and "/3" in terminal.getvalue()


def test_a_split_is_shown_in_one_line():
    assert repr(grey_split(4)) == "Split(4 images (1, 6, 6) uint8)"


def test_validation_images_are_training_images_of_every_class():
    digits = load_dataset("digits")
    apart = digits.with_validation(5, seed=3)
    assert torch.bincount(apart.validation.labels).tolist() == [5] * 10
    assert len(apart.train) + 50 == len(digits.train) and apart.test is digits.test
    both = torch.cat([apart.train.images, apart.validation.images]).flatten(1)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, digits.train.images.flatten(1).numpy()))
    assert torch.equal(apart.validation.images, digits.with_validation(5, seed=3).validation.images)
    assert not torch.equal(apart.validation.images, digits.with_validation(5, seed=4).validation.images)
    share = digits.with_validation(0.1)
    assert torch.equal(
        torch.bincount(share.validation.labels), torch.bincount(digits.train.labels).mul(0.1).round().long()
    )
    assert len(share.loader("validation")) and "validation" not in digits._parts


@pytest.mark.parametrize(
    ("holdout", "reason"),
    [
        (0, "whole number of examples from 1, or a share"),
        (1.5, "share in"),
        (True, "share in"),
        (0.001, "takes 0 of the"),
        (99, r"takes 99 of the \d+ training examples of class '0'"),
    ],
)
def test_validation_parts_that_cannot_be(holdout, reason):
    with pytest.raises(BadValue, match=reason):
        load_dataset("digits").with_validation(holdout)
    with pytest.raises(BadValue, match="already"):
        load_dataset("digits").with_validation(2).with_validation(2)
