"""Scenes: what is drawn, what is read from COCO's files, what is refused, and the batches."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from reptrans.detection import Scenes, coco_scenes, digit_scenes
from reptrans.detection import data as drawing
from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.experiments.detection import DetectionRun

IMAGE = torch.zeros(3, 40, 60, dtype=torch.uint8)


def scenes(boxes, labels=None, images=1):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Scenes([IMAGE] * images, [boxes], [labels], ("a", "b"))


def test_same_arguments_same_scenes_and_no_trace():
    state = torch.get_rng_state()
    first, again, other = digit_scenes(6), digit_scenes(6), digit_scenes(6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("images", "boxes", "labels"):
        assert all(torch.equal(*pair) for pair in zip(getattr(first, part), getattr(again, part), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(first.images, other.images, strict=True))
    assert torch.equal(digit_scenes(2).images[1], first.images[1])


def test_boxes_are_tight_around_what_was_painted(monkeypatch):
    """Upon black and without fragments, what is not black is a digit."""
    monkeypatch.setattr(drawing, "_ground", lambda rng, size, grey: torch.zeros(3, size, size, dtype=torch.float64))
    monkeypatch.setattr(drawing, "_FRAGMENTS", 0)
    found = digit_scenes(20, most=1)
    for image, boxes in zip(found.images, found.boxes, strict=True):
        lit = image.sum(0) > 0
        columns, rows = lit.any(0).nonzero().flatten(), lit.any(1).nonzero().flatten()
        assert boxes.tolist() == [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]


def test_digits_never_overlap_and_have_the_promised_sizes():
    found = digit_scenes(40, most=4)
    counts = [len(boxes) for boxes in found.boxes]
    assert min(counts) >= 1 and max(counts) == 4
    for boxes in found.boxes:
        painted = torch.zeros(64, 64)
        for x, y, right, bottom in boxes.int().tolist():
            painted[y:bottom, x:right] += 1
            assert 8 <= bottom - y <= 26
        assert painted.max() == 1


def test_the_two_parts_use_different_digits():
    images, _ = drawing._all_digits()
    place_of = {image.numpy().tobytes(): number for number, image in enumerate(images)}
    drawn = {
        part: {place_of[drawing._digit(np.random.default_rng(seed), part, 3).numpy().tobytes()] for seed in range(99)}
        for part in ("train", "test")
    }
    assert max(drawn["train"]) < 1_000 <= min(drawn["test"])
    assert min(len(places) for places in drawn.values()) > 30


def test_classes_are_the_digits_asked_for():
    found = digit_scenes(30, classes="70")
    assert found.classes == ("7", "0")
    assert set(torch.cat(found.labels).tolist()) == {0, 1}


def test_grey_scenes_have_equal_channels():
    (image,) = digit_scenes(1, grey=True).images
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    (image,) = digit_scenes(1).images
    assert not torch.equal(image[0], image[1])


@pytest.mark.parametrize("wrong", [{"part": "val"}, {"classes": "a"}, {"classes": "11"}, {"classes": ""}, {"count": 0},
                                   {"most": 0}, {"size": 16}])  # fmt: skip
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(BadValue, match="part is train or test, classes different digits such as '0123'"):
        digit_scenes(**({"count": 1} | wrong))


@pytest.mark.parametrize("box", [[5, 5, 5, 9], [9, 5, 5, 9], [-1, 0, 5, 5], [0, 0, 61, 5], [0, 0, 5, 41],
                                 [0, float("nan"), 5, 5]])  # fmt: skip
def test_boxes_outside_or_without_extent_are_refused(box):
    with pytest.raises(BadData, match=r"image 0, 60 wide and 40 high, has the box .*Are they x, y, width, height\?"):
        scenes([[1, 1, 5, 5], box])


def test_a_box_may_reach_to_the_border():
    assert len(scenes([[0, 0, 60, 40]])) == 1


@pytest.mark.parametrize("labels", [[2], [-1], [0.0]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(BadData, match="image 0 has labels .* they must be int64 from 0 to 1, the background has none"):
        scenes([[1, 1, 5, 5]], labels)


def test_missing_boxes_are_refused():
    with pytest.raises(BadData, match="there are 2 images, 1 lists of boxes, 1 lists of labels; each image needs one"):
        scenes([[1, 1, 5, 5]], images=2)
    with pytest.raises(BadData, match="there is not a single box in any image"):
        scenes([])
    with pytest.raises(ShapeMismatch, match=r"image 0 has boxes \(1, 4\) and labels \(2,\)"):
        scenes([[1, 1, 5, 5]], [0, 0])


def test_order_of_batches_follows_from_seed_and_epoch():
    split = digit_scenes(5)
    loader = split.loader(2, shuffle=True, seed=3)
    first, second = ([batch.index.tolist() for batch in loader] for _ in range(2))
    loader.epoch = 0
    assert [batch.index.tolist() for batch in loader] == first != second
    assert sorted(sum(first, [])) == [0, 1, 2, 3, 4] and len(first) == len(loader) == 3
    assert [batch.index.tolist() for batch in split.loader(2)] == [[0, 1], [2, 3], [4]]


def test_batches_count_classes_from_one_and_pixels_to_one():
    split = digit_scenes(3)
    (batch,) = split.loader(3, dtype=torch.float64)
    assert batch.images[1].dtype == batch.targets[1]["boxes"].dtype == torch.float64
    assert torch.equal((batch.images[1] * 255).round(), split.images[1].double())
    assert torch.equal(batch.targets[1]["labels"], split.labels[1] + 1)


def test_batch_size_is_refused_below_1():
    with pytest.raises(BadValue, match="batch_size is 0; it must be a whole number from 1 on"):
        digit_scenes(1).loader(0)


@pytest.fixture
def coco(tmp_path):
    """A folder of two images and a function that writes annotations beside them."""
    Image.new("RGB", (60, 40), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("L", (30, 20), 7).save(tmp_path / "b.png")

    def write(*annotations, **other):
        images = [{"id": 7, "file_name": "a.png", "width": 60, "height": 40},
                  {"id": 4, "file_name": "b.png", "width": 30, "height": 20}]  # fmt: skip
        categories = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]
        numbered = [{"id": number, "iscrowd": 0, **a} for number, a in enumerate(annotations)]
        content = {"images": images, "annotations": numbered, "categories": categories} | other
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        return tmp_path

    return write


DOG = {"image_id": 7, "category_id": 9, "bbox": [10, 5, 20, 30]}


def test_coco_folder(coco, capsys):
    found = coco_scenes(coco(DOG, {"image_id": 7, "category_id": 3, "bbox": [0.5, 1, 2, 3]}))
    # Images in the order of their ids, classes in that of theirs.
    assert found.classes == ("cat", "dog")
    assert [boxes.tolist() for boxes in found.boxes] == [[], [[10, 5, 30, 35], [0.5, 1, 2.5, 4]]]
    assert [labels.tolist() for labels in found.labels] == [[], [1, 0]]
    assert found.images[1][:, 0, 0].tolist() == [255, 0, 0] and found.images[1].shape == (3, 40, 60)
    assert found.images[0][:, 0, 0].tolist() == [7, 7, 7]
    assert capsys.readouterr().out == ""


def test_coco_leaves_out_crowds_and_lines_and_cuts_at_the_border(coco):
    crowd, line = DOG | {"iscrowd": 1}, DOG | {"bbox": [10, 5, 20, 0]}
    over = DOG | {"bbox": [-0.4, 5, 61, 35.5]}
    assert coco_scenes(coco(crowd, line, over)).boxes[1].tolist() == [[0, 5, 60, 40]]


def test_coco_refuses_boxes_far_outside(coco):
    with pytest.raises(BadData, match=r"image 1, 60 wide and 40 high, has the box \[10.0, 5.0, 70.0, 35.0\]"):
        coco_scenes(coco(DOG | {"bbox": [10, 5, 60, 30]}))


def test_coco_says_what_is_missing(coco, tmp_path):
    with pytest.raises(BadData, match=r"has 0 \.json files; a folder in COCO's format holds its images and exactly"):
        coco_scenes(tmp_path)
    with pytest.raises(BadData, match=r"nowhere is no folder; a folder in COCO's format"):
        coco_scenes(tmp_path / "nowhere")
    with pytest.raises(BadData, match="annotation 0 of .* has no bbox, or a category_id .*: 5"):
        coco_scenes(coco(DOG | {"category_id": 5}))
    with pytest.raises(BadData, match="names 1 images that are not in .*, the first is c.png"):
        coco_scenes(coco(DOG, images=[{"id": 7, "file_name": "c.png", "width": 60, "height": 40}]))
    with pytest.raises(BadData, match="names 0 images and 2 categories; both are needed"):
        coco_scenes(coco(images=[]))
    with pytest.raises(BadData, match="there is not a single box"):
        coco_scenes(coco())
    (tmp_path / "boxes.json").write_text("[1, 2")
    with pytest.raises(BadData, match="cannot be read as COCO's annotations"):
        coco_scenes(tmp_path)
    (tmp_path / "boxes.json").write_text("{}")
    with pytest.raises(BadData, match="names 0 images and 0 categories"):
        coco_scenes(tmp_path)


def test_coco_images_of_another_size_than_annotated_are_refused(coco):
    found = coco_scenes(coco(DOG, images=[{"id": 7, "file_name": "a.png", "width": 80, "height": 40}]))
    with pytest.raises(BadData, match=re.escape("a.png is 60 wide and 40 high, its annotation says 80 and 40")):
        found.images[0]


def test_run_reads_digits_and_folders(coco, tmp_path):
    train, held, test = DetectionRun(train=3, test=1, classes="01", holdout=1).load()
    assert (len(train), len(held), len(test), train.classes) == (2, 1, 1, ("0", "1"))
    assert [len(part) for part in DetectionRun(train=4, test=1, holdout=0.25).load()] == [3, 1, 1]
    with pytest.raises(BadValue, match="3 of 3 scenes cannot be held out: some have to stay on both sides"):
        DetectionRun(train=3, test=1, holdout=3).load()
    folder = coco(DOG, DOG | {"image_id": 4, "bbox": [1, 1, 9, 9]})
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for file in ("a.png", "b.png", "boxes.json"):
            (tmp_path / part / file).write_bytes((folder / file).read_bytes())
    train, held, test = DetectionRun(dataset=f"coco:{tmp_path}", holdout=1).load()
    assert (len(train), len(held), train.classes, len(test)) == (1, 1, ("cat", "dog"), 2)
    with pytest.raises(BadData, match="there are no scenes 'mnist'. Possible: digits, coco:PATH"):
        DetectionRun(dataset="mnist").load()
