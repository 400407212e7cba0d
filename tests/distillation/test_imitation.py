"""Entry 2: the mask and the loss against numbers by hand, what must not change them, and the authors' own values."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.distillation.methods.imitation import imitation_connector, imitation_loss, imitation_mask, imitation_masks
from reptrans.errors import BadValue, ShapeMismatch

REFERENCE = Path(__file__).parent.parent / "reference" / "detection.safetensors"


@pytest.fixture(scope="module")
def reference():
    return {
        name: value.double() if value.is_floating_point() else value for name, value in load_file(REFERENCE).items()
    }


def square(x, y, side):
    return [x, y, x + side, y + side]


def grid(size, stride, *sides):
    """Square anchors of several sides around the centres of a size x size grid, (size, size, k, 4)."""
    centres = [stride * (i + 0.5) for i in range(size)]
    rows = [[[square(x - s / 2, y - s / 2, s) for s in sides] for x in centres] for y in centres]
    return torch.tensor(rows, dtype=torch.float64)


ANCHORS = grid(8, 8, 8, 20)
BOXES = torch.tensor([square(3, 5, 18), square(30, 34, 9), [10, 40, 40, 62]], dtype=torch.float64)


def test_mask_by_hand():
    # One row of three anchors, 4 x 4, at x = 0, 2, 4; the box is the first: overlaps 1, 8/24 = 1/3 and 0.
    anchors = torch.tensor([[[square(0, 0, 4)], [square(2, 0, 4)], [square(4, 0, 4)]]], dtype=torch.float64)
    box = torch.tensor([square(0, 0, 4)], dtype=torch.float64)
    assert imitation_mask(anchors, box, 0.5).tolist() == [[True, False, False]]
    assert imitation_mask(anchors, box, 0.3).tolist() == [[True, True, False]]
    assert imitation_mask(anchors, box, 0.0).tolist() == [[True, True, False]]


def test_the_threshold_is_a_share_of_the_boxs_own_best_overlap():
    # A quarter of an anchor: its best overlap is 1/4, so 0.3 as it stands would keep nothing.
    anchors = torch.tensor([[[square(0, 0, 4)], [square(4, 0, 4)]]], dtype=torch.float64)
    small = torch.tensor([square(0, 0, 2)], dtype=torch.float64)
    whole = torch.tensor([square(4, 0, 4)], dtype=torch.float64)
    assert imitation_mask(anchors, small, 0.3).tolist() == [[True, False]]
    assert imitation_mask(anchors, torch.cat([small, whole]), 0.3).tolist() == [[True, True]]


def test_any_anchor_of_a_place_counts():
    anchors = torch.tensor([[[square(20, 20, 4), square(0, 0, 4)]]], dtype=torch.float64)
    assert imitation_mask(anchors, torch.tensor([square(0, 0, 4)], dtype=torch.float64)).tolist() == [[True]]


def test_mask_is_that_of_the_authors(reference):
    anchors = reference["anchors"].reshape(6, 8, 3, 4).clone()
    anchors[..., 2:] += 1  # inclusive corners there
    for image, expected in zip(reference["boxes"], reference["mask"], strict=True):
        boxes = image[image.abs().sum(1) > 0][:, :4].clone()
        boxes[:, 2:] += 1
        assert torch.equal(imitation_mask(anchors, boxes), expected)


def test_loss_is_that_of_the_authors(reference):
    loss = imitation_loss(reference["student"], reference["teacher"], reference["mask"])
    torch.testing.assert_close(loss, reference["loss"], rtol=1e-6, atol=0)


def test_gradient_is_that_of_the_authors(reference):
    student = reference["student"].requires_grad_()
    imitation_loss(student, reference["teacher"], reference["mask"]).backward()
    torch.testing.assert_close(student.grad, reference["gradient"], rtol=1e-4, atol=1e-7)


def test_a_box_twice_is_a_box_once():
    twice = torch.cat([BOXES, BOXES[:1]])
    assert torch.equal(imitation_mask(ANCHORS, twice), imitation_mask(ANCHORS, BOXES))


def test_masks_nest_as_psi_grows():
    masks = [imitation_mask(ANCHORS, BOXES, psi) for psi in (0.0, 0.2, 0.4, 0.6, 0.8, 0.999)]
    sizes = [int(mask.sum()) for mask in masks]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] >= 1
    assert all((small <= large).all() for large, small in zip(masks, masks[1:], strict=False))


def test_psi_0_keeps_every_overlap_and_psi_near_1_the_best_place():
    box = torch.tensor([square(3, 5, 18)], dtype=torch.float64)
    reach = (ANCHORS[..., 0] < 21) & (ANCHORS[..., 2] > 3) & (ANCHORS[..., 1] < 23) & (ANCHORS[..., 3] > 5)
    assert torch.equal(imitation_mask(ANCHORS, box, 0.0), reach.any(-1))
    # The centre of the box, (12, 14), lies in the second row and column.
    assert imitation_mask(ANCHORS, box, 1 - 1e-9).nonzero().tolist() == [[1, 1]]


def test_a_box_that_overlaps_nothing_keeps_nothing():
    outside = torch.tensor([square(500, 500, 9)], dtype=torch.float64)
    assert not imitation_mask(ANCHORS, outside).any()
    assert torch.equal(imitation_mask(ANCHORS, torch.cat([BOXES, outside])), imitation_mask(ANCHORS, BOXES))


def test_no_boxes_no_places():
    assert not imitation_mask(ANCHORS, torch.zeros(0, 4, dtype=torch.float64)).any()


def test_each_box_belongs_to_the_level_that_fits_it():
    fine, coarse = grid(8, 8, 10), grid(4, 16, 30)
    small, large = square(3, 3, 10), square(2, 2, 30)
    # At psi 0 either box would count at the other's level too.
    masks = imitation_masks([fine, coarse], torch.tensor([small, large], dtype=torch.float64), 0.0)
    alone = [imitation_mask(level, torch.tensor([box], dtype=torch.float64), 0.0)
             for level, box in ((fine, small), (coarse, large))]  # fmt: skip
    assert [torch.equal(*pair) for pair in zip(masks, alone, strict=True)] == [True, True]


@pytest.mark.parametrize("places", [1, 7, 64])
def test_a_constant_difference_costs_the_same_whatever_the_mask(places):
    # 1/2 of three channels' 2² = 6.
    teacher = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.zeros(2, 64, dtype=torch.bool)
    mask[:, :places] = True
    assert imitation_loss(teacher + 2, teacher, mask.view(2, 8, 8)).item() == pytest.approx(6, rel=1e-12)


def test_images_share_the_count_of_places():
    student, teacher = torch.tensor([[[1.0, 1.0]], [[3.0, 0.0]]]), torch.zeros(2, 1, 2)
    mask = torch.tensor([[True, True], [True, False]])
    # (1 + 1 + 9) / (2 * 3); a mean of the images' own losses would be (1/2 + 9/2) / 2.
    assert imitation_loss(student, teacher, mask).item() == pytest.approx(11 / 6)


def test_gradient_is_zero_outside_and_never_the_teachers():
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(1, 3, 8, 8, generator=generator, requires_grad=True)
    teacher = torch.randn(1, 3, 8, 8, generator=generator, requires_grad=True)
    mask = imitation_mask(ANCHORS, BOXES)[None]
    imitation_loss(student, teacher, mask).backward()
    assert torch.equal(student.grad.abs().sum(1) > 0, mask)
    assert teacher.grad is None


def test_values_outside_do_not_count_even_if_infinite():
    student, mask = torch.zeros(1, 1, 2, requires_grad=True), torch.tensor([[True, False]])
    loss = imitation_loss(student, torch.tensor([[[1.0, torch.inf]]]), mask)
    assert loss.item() == 0.5


def test_an_empty_mask_gives_zero_and_a_zero_gradient():
    student = torch.ones(2, 3, 4, 4, requires_grad=True)
    loss = imitation_loss(student, torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_zero_at_equality():
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert imitation_loss(maps, maps.clone(), imitation_mask(ANCHORS, BOXES)[None]).item() == 0


def test_connector_is_a_convolution_and_a_relu_with_tiny_weights():
    state = torch.get_rng_state()
    connector = imitation_connector(8, 64, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    conv = connector[0]
    assert conv(torch.zeros(1, 8, 5, 7)).shape == (1, 64, 5, 7)
    assert conv.kernel_size == (3, 3) and not conv.bias.any()
    assert conv.weight.std().item() == pytest.approx(1e-4, rel=0.05)
    assert (connector(torch.randn(1, 8, 5, 7, generator=torch.Generator().manual_seed(0))) >= 0).all()
    assert torch.equal(imitation_connector(8, 64, seed=3)[0].weight, conv.weight)
    assert not torch.equal(imitation_connector(8, 64, seed=4)[0].weight, conv.weight)


@pytest.mark.parametrize("psi", [-0.1, 1.0, float("nan")])
def test_psi_is_a_share(psi):
    with pytest.raises(BadValue, match=r"psi is .*; it is a share of a box's best overlap, at least 0 and below 1"):
        imitation_mask(ANCHORS, BOXES, psi)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeMismatch, match=r"are \(3, 5\); they must be \(g, 4\)"):
        imitation_mask(ANCHORS, torch.zeros(3, 5))
    with pytest.raises(ShapeMismatch, match=r"are \(64, 4\); they must be \(h, w, k, 4\)"):
        imitation_mask(torch.zeros(64, 4), BOXES)
    with pytest.raises(ShapeMismatch, match=r"student \(1, 2, 3\), teacher \(1, 4, 3\) and mask \(1, 3\) do not fit"):
        imitation_loss(torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match="do not fit"):
        imitation_loss(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), torch.ones(1, 1, dtype=torch.bool))
