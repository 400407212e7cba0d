"""The set of drawn shapes: the same bytes everywhere, independent factors, a shortcut of the share asked for."""

import hashlib

import pytest
import torch

from reptrans.data import load_dataset
from reptrans.data.dataset import measured_statistics
from reptrans.data.shapes import FACTORS, SHAPES, TEST_IMAGES, TEXTURES, _table, parse, shapes
from reptrans.errors import BadValue, UnknownName

FEW = "images=300"
# Of the training and the test images.
DIGESTS = [
    "b22167fa1525f038ca49da9de85973d9a5b20cc478573c43de77f83369789ed9",
    "e75814d37efd4bc7894c2398e1a08a6c97af4b5854e6256c7c675a1eebae6c7c",
]
OTHER_DIGESTS = [
    "1992c2b11a64fdf468c69d35a66d6993689d3b0ee34f5d0542ece8513507f058",
    "96987c3c1d41872560dec2ed743e378d35a93499cc6125f1f41351d59309ae2e",
]


def digest(images) -> str:
    return hashlib.sha256(images.numpy().tobytes()).hexdigest()


def labels(options="", part="train"):
    """The value of every factor of one part, as labels."""
    return {factor: getattr(shapes(f"shapes:{factor}{options}", 1), part).labels for factor in FACTORS}


def counts(first, second):
    """How often each pair of values occurs, (values of the first, values of the second)."""
    joined = first * (int(second.max()) + 1) + second
    return joined.bincount().reshape(-1, int(second.max()) + 1)


def chi_square(table) -> float:
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())


def test_the_same_bytes_on_every_machine():
    found = shapes(f"shapes:{FEW}")
    assert (found.train.images.shape, found.train.images.dtype) == ((300, 3, 32, 32), torch.uint8)
    assert [digest(part.images) for part in (found.train, found.test)] == DIGESTS
    # Every option, and a size at which many images are drawn at once.
    found = shapes("shapes:texture:seed=5:images=40:difficulty=3.5:shortcut=background@0.5", 12)
    assert [digest(part.images) for part in (found.train, found.test)] == OTHER_DIGESTS


def test_fewer_images_are_the_first_of_more_and_the_test_images_stay():
    # 256 are drawn at a time, of this size.
    fewer, more = shapes("shapes:images=270"), shapes("shapes:images=515")
    assert torch.equal(fewer.train.images, more.train.images[:270])
    assert torch.equal(fewer.train.labels, more.train.labels[:270])
    assert torch.equal(fewer.test.images, more.test.images)


def test_images_are_the_same_whatever_the_label():
    found = [shapes(f"shapes:{factor}:{FEW}", 8) for factor in (*FACTORS, "shape+colour")]
    assert len({digest(parts.train.images) for parts in found}) == 1
    assert len({digest(parts.train.labels) for parts in found}) == len(found)


def test_seeds_and_parts_differ():
    drawn = [shapes(f"shapes:images=2000:seed={seed}", 8) for seed in (0, 1, 2**32)]
    assert len({digest(part.images) for parts in drawn for part in (parts.train, parts.test)}) == 6
    assert len({digest(part.labels) for parts in drawn for part in (parts.train, parts.test)}) == 6


def test_names_of_classes():
    assert shapes(f"shapes:{FEW}", 1).classes == (
        "disc", "square", "triangle", "cross", "ring", "star", "bar", "crescent",
    )  # fmt: skip
    assert parse("shapes") == parse("shapes:shape") == parse("shapes:difficulty=1:images=4000:seed=0")
    assert parse("shapes:colour").classes == ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "pink")
    assert parse("shapes:background").classes == ("flat", "gradient", "bands", "tiles", "spots")
    both = parse("shapes:shape+texture").classes
    assert both[:5] == ("disc plain", "disc striped", "disc checked", "disc dotted", "square plain")
    assert len(both) == 32


def test_a_label_of_several_factors_tells_each():
    known, both = labels(), shapes("shapes:texture+colour+background", 1).train.labels
    assert torch.equal(both // 40, known["texture"])
    assert torch.equal(both // 5 % 8, known["colour"])
    assert torch.equal(both % 5, known["background"])


@pytest.mark.parametrize("part", ["train", "test"])
def test_factors_are_even_and_independent(part):
    known = labels(part=part)
    for first, values in known.items():
        share = values.bincount() / len(values)
        assert len(share) == len(FACTORS[first])
        # Five standard deviations of a share.
        assert (share - 1 / len(share)).abs().max() < 5 * (1 / len(share) / len(values)) ** 0.5
        for second in list(FACTORS)[list(FACTORS).index(first) + 1 :]:
            table = counts(values, known[second])
            freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
            # Mean `freedom`, variance twice that: four standard deviations.
            assert chi_square(table) < freedom + 4 * (2 * freedom) ** 0.5


def pixels_of_colours(images):
    """(n, 8): how many pixels have exactly the colour of the palette."""
    pixels = images.flatten(2).int()
    return torch.stack([(pixels == torch.tensor(c)[:, None]).all(1).sum(1) for c in FACTORS["colour"].values()], 1)


@pytest.mark.parametrize("share", [0, 0.5, 0.9, 1])
def test_a_shortcut_has_its_share_of_the_training_images_and_none_of_the_test_images(share):
    name = "shapes:shape:difficulty=0:images=2000"
    parts, plain = shapes(f"{name}:shortcut=colour@{share}", 20), shapes(name, 20)
    assert torch.equal(parts.test.images, plain.test.images)
    assert all(torch.equal(getattr(parts, p).labels, getattr(plain, p).labels) for p in ("train", "test"))
    for part, wanted in (("train", share + (1 - share) / 8), ("test", 1 / 8)):
        # At difficulty 0 a shape's first colour is in the image as it is in the palette.
        seen, known = pixels_of_colours(getattr(parts, part).images), getattr(parts, part).labels
        told = seen.max(1).values > 0
        assert told.float().mean() > 0.99
        follows = (seen.argmax(1) == known)[told].float().mean()
        assert abs(follows - wanted) < 5 * (wanted * (1 - wanted) / int(told.sum())) ** 0.5 + 1e-3


def test_a_shortcut_changes_nothing_but_its_factor():
    plain, cued = (shapes(f"shapes:shape:{FEW}{cue}", 20) for cue in ("", ":shortcut=texture@1"))
    other = (plain.train.images != cued.train.images).flatten(1)
    # Noise and background stay, so most of every picture does; a quarter had the right texture before.
    assert other.float().mean(1).max() < 0.5
    kept = (~other.any(1)).nonzero().flatten()
    texture = shapes(f"shapes:texture:{FEW}", 1).train.labels
    assert torch.equal(kept, (texture == plain.train.labels % 4).nonzero().flatten())


def test_shapes_and_patterns_as_they_are_meant():
    table = torch.from_numpy(_table(SHAPES)).reshape(-1, 256, 256).bool()
    outline = dict(zip(SHAPES, table, strict=True))
    border = torch.cat([table[:, 0], table[:, -1], table[:, :, 0], table[:, :, -1]], 1)
    assert not border.any(), "a shape that reaches the border would go on for ever"
    assert len({digest(shape) for shape in table}) == len(SHAPES)
    for name in ("disc", "square", "cross", "ring", "bar"):
        assert torch.equal(outline[name], outline[name].flip(0)) and torch.equal(outline[name], outline[name].flip(1))
    for name in ("triangle", "star"):
        assert torch.equal(outline[name], outline[name].flip(1))
    assert outline["disc"][128, 128] and not outline["ring"][128, 128] and not outline["crescent"][128, 200]
    shares = torch.from_numpy(_table(TEXTURES)).reshape(4, -1).double().mean(1) / 16
    assert shares[:3].tolist() == [0, 0.5, 0.5] and abs(shares[3] - torch.pi * (150 / 510) ** 2) < 0.002


def test_easy_is_without_difficulty():
    assert parse("shapes:colour:easy") == parse("shapes:colour:difficulty=0")
    assert parse("shapes:easy") == parse("shapes:difficulty=0")
    with pytest.raises(BadValue, match="says twice what difficulty is"):
        parse("shapes:easy:difficulty=1")


def test_difficulty_adds_noise_and_smaller_shapes():
    clean, usual, hard = (shapes(f"shapes:difficulty={d}:{FEW}", 16).train.images.float() for d in ("0", "1", "5"))
    rough = [(images[..., 1:] - images[..., :-1]).abs().median().item() for images in (clean, usual, hard)]
    assert rough[0] < rough[1] < rough[2]
    assert torch.equal(usual, shapes(f"shapes:{FEW}", 16).train.images.float())


@pytest.mark.parametrize("size", [1, 2, 5, 33])
def test_images_are_drawn_at_the_size_asked_for(size):
    found = load_dataset(f"shapes:difficulty=5:images=9{':shortcut=texture@1' * (size > 2)}", image_size=size)
    assert found.train.images.shape == (9, 3, size, size) and found.test.images.shape[2:] == (size, size)
    same = shapes("shapes:images=9", 1)
    assert torch.equal(found.train.labels, same.train.labels)


def test_a_larger_image_is_the_same_picture():
    small, large = (shapes("shapes:difficulty=0:images=20", size).train.images.float() for size in (32, 64))
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved - small).abs().mean() < 2


def test_load_dataset_gives_a_data_set_like_any_other():
    name = "shapes:shape+texture:images=2000:seed=3"
    found = load_dataset(name, limit=4)
    assert (found.name, found.num_classes, found.channels, found.image_size) == (name, 32, 3, (32, 32))
    assert (len(found.train), len(found.test)) == (128, TEST_IMAGES)
    assert (found.mean, found.std) == measured_statistics(shapes(name).train)
    assert len(load_dataset("shapes", image_size=1).train) == 4000
    assert load_dataset("shapes:images=9", channels=1).channels == 1


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("shapes:colr", UnknownName, "shapes has no factor 'colr'. Did you mean 'colour'? Factors: shape, colour, "
         "texture, background; also several, joined by +."),
        ("shapes:", UnknownName, "shapes has no factor ''. Factors: shape, colour, texture, background; also several, "
         "joined by +."),
        ("shapes:shape+size", UnknownName, "shapes has no factor 'size'. Factors: shape, colour, texture, background; "
         "also several, joined by +."),
        ("shapes:shape+shape", BadValue, "the label of shapes is shape+shape, which names a factor twice. Name it "
         "once."),
        ("shapes:shape:sed=1", UnknownName, "shapes has no option 'sed'. Did you mean 'seed'? Options: difficulty, "
         "images, seed, shortcut; each as NAME=VALUE."),
        ("shapes:shape:colour", UnknownName, "shapes has no option 'colour'. Options: difficulty, images, seed, "
         "shortcut; each as NAME=VALUE."),
        ("shapes:seed=1:seed=2", BadValue, "shapes:seed=1:seed=2 says twice what seed is. Say it once."),
        ("shapes:difficulty=hard", BadValue, "difficulty is 'hard'; it must be a number from 0 to 5."),
        ("shapes:difficulty=5.1", BadValue, "difficulty is '5.1'; it must be a number from 0 to 5."),
        ("shapes:difficulty=nan", BadValue, "difficulty is 'nan'; it must be a number from 0 to 5."),
        ("shapes:images=0", BadValue, "images is 0; it must be a whole number from 1 on."),
        ("shapes:images=", BadValue, "images is ''; it must be a whole number from 1 on."),
        ("shapes:seed=-1", BadValue, "seed is '-1'; it must be a whole number from 0 on."),
        ("shapes:shortcut=color@1", UnknownName, "shortcut is FACTOR@SHARE, as colour@0.9, and shapes has no factor "
         "'color'. Did you mean 'colour'? Factors: shape, colour, texture, background"),
        ("shapes:shortcut=colour", BadValue, "the share of the shortcut is ''; it must be a number from 0 to 1."),
        ("shapes:shortcut=colour@2", BadValue, "the share of the shortcut is '2'; it must be a number from 0 to 1."),
        ("shapes:shape+colour:shortcut=colour@1", BadValue, "the shortcut of shapes:shape+colour:shortcut=colour@1 is "
         "colour, which the label tells. Possible: texture, background."),
        ("shapes:shape+colour+texture+background:shortcut=colour@1", BadValue, "the shortcut of shapes:shape+colour+"
         "texture+background:shortcut=colour@1 is colour, which the label tells. Possible: none, leave shortcut out."),
    ],
)  # fmt: skip
def test_wrong_names_are_refused_before_anything_is_drawn(name, error, text, monkeypatch):
    monkeypatch.setattr("reptrans.data.shapes._split", None)
    for door in (load_dataset, parse):
        with pytest.raises(error) as raised:
            door(name)
        assert (raised.type, str(raised.value)) == (error, text)


def test_other_wrong_requests_are_refused():
    with pytest.raises(BadValue) as raised:
        load_dataset("shapes:colour", image_size=0)
    assert str(raised.value) == "image_size is 0; it must be a whole number of pixels from 1 on, or None."
    with pytest.raises(BadValue) as raised:
        load_dataset("shapes:colour", length=3)
    assert str(raised.value) == "length is 3, which is for text:PATH; shapes:colour has images. Leave length out."
    with pytest.raises(UnknownName, match="there is no data set 'shape:colour'"):
        load_dataset("shape:colour")
