"""Entry 2, fine-grained feature imitation (Wang et al., CVPR 2019): copy the teacher's map only near objects.

    m_g(i, j, k) = IoU(box g, anchor k at place (i, j))
    I(i, j) = 1 if any m_g(i, j, k) > psi * max(m_g)
    L_im = 1 / (2 N_p) sum_ij I(i, j) sum_c (f(s)_cij - t_cij)^2,  N_p = sum I
    total: L_detection + 0.01 L_im

Position: the backbone's map, which feeds the region proposals; f is a 3x3 convolution and a ReLU.
Source: the authors' code. Deviations: boxes are continuous, x2 - x1 wide, not inclusive corners (add 1 to x2 and y2 for
the authors' numbers); several images share one N_p, which their script, one image at a time, leaves open; a box of
several feature levels belongs to the one whose anchors overlap it best, which they leave open too, and N_p counts the
places of all levels.
Common errors: a threshold psi instead of psi times the box's own best overlap; a mean over all places or channels; 0/0
in images without objects; a box that overlaps nothing, whose threshold is 0, keeping every place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.randomness import drawing

# Its line in the table of all methods, for it is none of a pair of classifiers.
ROW = {
    "entry": "2",
    "method": "imitation",
    "teacher transform": "imitation mask",
    "student transform": "3x3 conv + ReLU",
    "position (student)": "backbone",
    "distance": "half squared L2 / places",
    "stages": "detection + half squared L2 / places (student)",
    "paper": "wang2019imitation",
    "loses": "all that is not near an object",
}


def imitation_mask(anchors: Tensor, boxes: Tensor, psi: float = 0.5) -> Tensor:
    """The places near objects, (h, w) bool: I of the formula, for one image and one feature level.

    `anchors`: (h, w, k, 4), also those crossing the border. `boxes`: (g, 4), g from 0 on. Both x1, y1, x2, y2 in
    pixels. `psi` in [0, 1): 0 keeps every place that overlaps, near 1 only each box's best. Raises BadValue,
    ShapeMismatch.
    """
    return imitation_masks([anchors], boxes, psi)[0]


def imitation_masks(anchors: Sequence[Tensor], boxes: Tensor, psi: float = 0.5) -> list[Tensor]:
    """`imitation_mask` for several feature levels: a box counts at the level of its best anchor, the first at a tie."""
    from torchvision.ops import box_iou  # slow to import, and classifiers never need it

    if not 0 <= psi < 1:
        raise BadValue(f"psi is {psi}; it is a share of a box's best overlap, at least 0 and below 1.")
    for given, form in ((boxes, "(g, 4)"), *((level, "(h, w, k, 4)") for level in anchors)):
        if given.ndim != form.count(",") + 1 or given.shape[-1] != 4:
            raise ShapeMismatch(f"boxes or anchors are {tuple(given.shape)}; they must be {form}: x1, y1, x2, y2.")
    if not len(boxes):
        return [level.new_zeros(level.shape[:2], dtype=torch.bool) for level in anchors]
    overlaps = [box_iou(boxes, level.reshape(-1, 4)) for level in anchors]
    best, where = torch.stack([overlap.amax(1) for overlap in overlaps], 1).max(1)
    masks = []
    for number, (level, overlap) in enumerate(zip(anchors, overlaps, strict=True)):
        kept = (overlap > psi * best[:, None]) & (where == number)[:, None]
        masks.append(kept.reshape(len(boxes), *level.shape[:3]).any(-1).any(0))
    return masks


def imitation_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """The L_im of the formula, a scalar from 0 on; exactly 0, with a zero gradient, for an empty mask.

    `student` (after f) and `teacher`: (n, c, ...) of one shape; `mask`: (n, ...) bool; for several levels flatten and
    join their places. No gradient reaches the teacher. Raises ShapeMismatch.
    """
    if student.shape != teacher.shape or mask.shape != (student.shape[0], *student.shape[2:]):
        raise ShapeMismatch(
            f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and mask {tuple(mask.shape)} do not fit. "
            "Both maps must be (n, c, ...), the student's after its connector, and the mask (n, ...)."
        )
    squares = (student - teacher.detach()).square().sum(1)
    # `where`, not a product: a value that is not finite outside the mask must not count.
    return squares.where(mask, 0.0).sum() / (2 * mask.sum().clamp(min=1))


def imitation_connector(student: int, teacher: int, seed: int = 0) -> nn.Sequential:
    """f of the formula for L_im, (n, student, h, w) -> (n, teacher, h, w): weights N(0, 1e-4²) drawn with `seed`,
    biases 0."""
    with drawing(seed):
        conv = nn.Conv2d(student, teacher, 3, padding=1)
        nn.init.normal_(conv.weight, std=1e-4)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.ReLU()).float()
