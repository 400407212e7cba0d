"""The same boxes for both detectors: torchvision's own losses, the teacher's answers, anchors, what is refused."""

import copy

import pytest
import torch

from reptrans.detection import anchors_of, backbone_maps, detector, digit_scenes, student_view, teacher_view
from reptrans.detection.detectors import compared_channels
from reptrans.detection.train import detection_terms
from reptrans.errors import BadValue, ShapeMismatch, UnknownName


@pytest.fixture(scope="module")
def batch():
    return next(iter(digit_scenes(3, classes="014").loader(3, dtype=torch.float64)))


def sized(net):
    """In float64, for the 64 pixels of the scenes; torchvision's own detectors would enlarge them to 320."""
    net.transform.min_size, net.transform.max_size = (64,), 64
    return net.double()


def seen(net, batch):
    return net.transform(batch.images, batch.targets)


@pytest.mark.parametrize("name", ["small_8_16_16", "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn"])
def test_terms_without_a_teacher_are_torchvisions_losses(batch, name):
    net = sized(detector(name, 3)).train()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        own = detection_terms(*student_view(net, *seen(net, batch)))
        torch.manual_seed(5)
        theirs = net(batch.images, batch.targets)
    pairs = {"rpn_class": "loss_objectness", "rpn_box": "loss_rpn_box_reg", "box_class": "loss_classifier",
             "box_box": "loss_box_reg"}  # fmt: skip
    assert {name: value.item() for name, value in own.items()} == {
        name: pytest.approx(theirs[other].item(), rel=1e-6) for name, other in pairs.items()
    }


def test_an_image_without_boxes_is_all_background():
    split = digit_scenes(2)
    split.boxes[0], split.labels[0] = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    net = detector("small_4_4_4", 10).double().train()
    _, choice = student_view(net, *seen(net, next(iter(split.loader(1, dtype=torch.float64)))))
    assert len(choice.proposals_truth.labels) > 0
    assert not choice.proposals_truth.labels.any() and not choice.anchors_truth.labels.any()


def test_teacher_answers_for_the_students_boxes(batch):
    """A teacher equal to the student says the same; another one says something else about the same boxes."""
    student, other = (detector("small_4_8_8", 3, seed=seed).double().eval() for seed in (0, 1))
    images, targets = seen(student, batch)
    view, choice = student_view(student, images, targets)
    same, different = (teacher_view(net, images, choice) for net in (copy.deepcopy(student), other))
    for module in ("regions", "classes"):
        for own, equal, unequal in zip(*(getattr(v, module) for v in (view, same, different)), strict=True):
            assert torch.equal(own, equal)
            assert own.shape == unequal.shape and not torch.allclose(own, unequal)
            assert own.requires_grad and not equal.requires_grad


def test_offsets_are_those_of_the_true_class(batch):
    net = detector("small_4_8_8", 3).double().eval()
    # Every offset says which class it is for.
    torch.nn.init.zeros_(net.roi_heads.box_predictor.bbox_pred.weight)
    net.roi_heads.box_predictor.bbox_pred.bias.data = torch.arange(4).repeat_interleave(4).double()
    view, choice = student_view(net, *seen(net, batch))
    labels = choice.proposals_truth.labels
    assert labels.max() > 0
    assert torch.equal(view.classes.offsets, labels.double()[:, None].expand(-1, 4))


def test_region_logits_are_one_logit_against_zero(batch):
    net = detector("small_4_8_8", 3).double().eval()
    images, targets = seen(net, batch)
    view, choice = student_view(net, images, targets)
    (scores,), _ = net.rpn.head(list(backbone_maps(net, images).values()))
    assert torch.equal(view.regions.logits[:, 0], torch.zeros(len(choice.anchors)).double())
    flat = scores.permute(0, 2, 3, 1).flatten()
    assert torch.equal(view.regions.logits[:, 1], flat[choice.anchors])


def test_anchors_stand_at_their_places(batch):
    net = detector("small_4_8_8", 3).double().eval()
    images, _ = seen(net, batch)
    (anchors,) = anchors_of(net, images, backbone_maps(net, images))
    assert anchors.shape == (8, 8, 3, 4)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    grid = 8.0 * torch.arange(8).double()
    assert torch.equal(centres[..., 1], grid[:, None, None].expand(8, 8, 3))
    assert torch.equal(centres[..., 0], grid[None, :, None].expand(8, 8, 3))
    heights = (anchors[..., 3] - anchors[..., 1])[0, 0]
    assert heights.tolist() == sorted(heights.tolist()) and heights[0] < heights[2]


def test_levels_have_their_own_anchors(batch):
    net = sized(detector("torchvision/fasterrcnn_mobilenet_v3_large_320_fpn", 3)).eval()
    images, _ = seen(net, batch)
    maps = backbone_maps(net, images)
    anchors = anchors_of(net, images, maps)
    assert [level.shape[:2] for level in anchors] == [level.shape[-2:] for level in maps.values()]
    assert torch.equal(torch.cat([level.reshape(-1, 4) for level in anchors]),
                       net.rpn.anchor_generator(images, list(maps.values()))[0])  # fmt: skip


def channels(student, teacher, batch, heads=True):
    student, teacher = student.double().eval(), teacher.double().eval()
    return compared_channels(student, teacher, seen(student, batch)[0], heads=heads)


def test_channels_of_both_backbones(batch):
    assert channels(detector("small_4_8_16", 3), detector("small_4_8_32", 3), batch) == {"0": (16, 32)}


def test_detectors_that_cannot_be_compared_are_refused(batch):
    student = detector("small_4_8_8", 3)
    with pytest.raises(BadValue, match=r"images have min_size \(64,\), the teacher's \(96,\); both must see the same"):
        channels(student, detector("small_4_8_8", 3, image_size=96), batch)
    with pytest.raises(ShapeMismatch, match="the student has 3 classes, the teacher 2"):
        channels(student, detector("small_4_8_8", 2), batch)
    other = detector("small_4_8_8", 3)
    other.rpn.anchor_generator.cell_anchors[0] += 1
    with pytest.raises(ShapeMismatch, match=r"have different anchors \(192 and 192 in an image\).*same anchor sizes"):
        channels(student, other, batch)
    assert channels(student, other, batch, heads=False) == {"0": (8, 8)}
    other.backbone.stages[3][0].stride = (2, 2)
    with pytest.raises(
        ShapeMismatch, match=r"backbone maps are \[\(8, 8\)\] high and wide, the teacher's \[\(4, 4\)\]"
    ):
        channels(student, other, batch)


def test_a_detector_follows_from_its_seed_and_leaves_no_trace():
    state = torch.get_rng_state()
    first, again, other = (detector("small_4_4_4", 2, seed=seed).backbone.stages[0][0].weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ["small_8_16", "small_8_x_16", "small_0_8_8", "smal_8_16_16", "torchvision/retinanet"])
def test_unknown_detectors_are_refused(name):
    with pytest.raises(UnknownName, match="fasterrcnn_resnet50_fpn"):
        detector(name, 3)


def test_a_detector_needs_a_class():
    with pytest.raises(BadValue, match="classes is 0; a detector needs at least one besides the background"):
        detector("small_4_4_4", 0)
