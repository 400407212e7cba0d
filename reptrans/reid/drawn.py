"""Generated people: stick figures; colours and proportions are the identity, joints are the pose."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reptrans.errors import BadValue
from reptrans.randomness import generator_of, in_double
from reptrans.reid.people import People, Reid

JOINTS = ("head", "left hand", "right hand", "hip", "left foot", "right foot")
CAMERAS, QUERIES = 2, 2  # queries of each person by each camera
# Limbs from joint to joint (6 is the neck), and which of a person's four colours each has.
_LIMBS = ((1, 6, 1), (2, 6, 1), (4, 3, 2), (5, 3, 2), (6, 3, 0), (0, 0, 3))


def stick_figures(
    identities: int = 40,
    poses: int = 20,
    held_out: int = 12,
    seed: int = 0,
    *,
    height: int = 64,
    clutter: int = 3,
    contrast: float = 0.3,
    tint: float = 0.1,
) -> Reid:
    """`identities` people in `poses` poses each, half as wide as high; `held_out` of them only in query and gallery.

    A person is four colours (torso, arms, legs, head) and six proportions; a pose is the place of the hip and the
    angles of torso, arms and legs, drawn anew for every image. Odd images are by camera 1: each of the two cameras
    multiplies red, green and blue by numbers from 1 - tint to 1 + tint. Behind everybody lie smooth colours, from
    (1 - contrast) / 2 to (1 + contrast) / 2, and `clutter` loose sticks of any colour. Queries are the first two
    images of each held-out person by each camera, the gallery is all others of them. Landmarks are exact.
    A function of the arguments alone. Raises BadValue.
    """
    _check(identities, poses, held_out, height, clutter, contrast, tint)
    g, scale = generator_of(seed), height / 64
    who, number = torch.arange(identities).repeat_interleave(poses), torch.arange(poses).repeat(identities)
    cameras, first, unseen = number % CAMERAS, number < CAMERAS * QUERIES, who >= identities - held_out
    with in_double():
        proportions, colours = _persons(identities, g)
        landmarks = _landmarks(proportions[who], g)
        images = _background(len(who), (height, height // 2), clutter, contrast, g)
        images = _drawn(images, landmarks * scale, proportions[who] * scale, colours[who])
        seen = 1 + tint * _between(g, -1, 1, CAMERAS, 3)
        images = images * seen[cameras][:, :, None, None] + 0.03 * torch.randn(images.shape, generator=g)
    joints = (scale * landmarks[:, : len(JOINTS)]).float()
    everybody = People(images.clamp(0, 1).mul(255).round().byte(), who, cameras, joints)
    return Reid("stick figures", *(everybody.select(part) for part in (~unseen, unseen & first, unseen & ~first)))


def _persons(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lengths of torso, arm, leg, half-widths of torso, limbs, head, in 1/64 of the height (n, 6); colours."""
    low, high = torch.tensor([[13, 8, 15, 1.8, 1.0, 2.6], [18, 13, 21, 3.4, 1.9, 4.0]])
    return low + (high - low) * torch.rand(n, 6, generator=g), _between(g, 0.15, 0.95, n, 4, 3)


def _landmarks(proportions: Tensor, g: torch.Generator) -> Tensor:
    """Row and column of the six joints and the neck, (n, 7, 2), inside an image of 64 x 32."""
    n = len(proportions)
    torso, arm, leg, _, _, head = proportions.T
    hip = torch.stack([_between(g, 33, 39, n), _between(g, 12, 19, n)], 1)
    lean = _between(g, -0.3, 0.3, n)
    neck = hip + _towards(math.pi + lean, torso)
    hands = [neck + _towards(lean + side * _between(g, 0.2, 2.6, n), arm) for side in (-1, 1)]
    feet = [hip + _towards(side * _between(g, 0.05, 0.6, n), leg) for side in (-1, 1)]
    joints = torch.stack([neck + _towards(math.pi + lean, head + 1), *hands, hip, *feet, neck], 1)
    return joints.clamp(torch.zeros(2), torch.tensor([63.0, 31.0]))


def _towards(angle: Tensor, length: Tensor) -> Tensor:
    """The step (n, 2), rows and columns, of `length` at `angle` from straight down, towards higher columns."""
    return length[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


def _background(n: int, size: tuple[int, int], clutter: int, contrast: float, g: torch.Generator) -> Tensor:
    low = (1 - contrast) / 2
    images = interpolate(_between(g, low, low + contrast, n, 3, 8, 4), size, mode="bilinear")
    for _ in range(clutter):
        ends, colour = torch.rand(2, n, 2, generator=g) * torch.tensor(size), _between(g, 0.15, 0.95, n, 3)
        images = _stick(images, *ends, _between(g, 0.5, 1.5, n) * size[0] / 64, colour)
    return images


def _drawn(images: Tensor, joints: Tensor, proportions: Tensor, colours: Tensor) -> Tensor:
    *_, body, limb, head = proportions.T
    width = {0: body, 1: limb, 2: limb, 3: head}
    for start, end, part in _LIMBS:
        images = _stick(images, joints[:, start], joints[:, end], width[part], colours[:, part])
    return images


def _stick(images: Tensor, start: Tensor, end: Tensor, width: Tensor, colour: Tensor) -> Tensor:
    """`images` (n, 3, h, w) with a stick of half-width `width` (n,) from `start` to `end` (n, 2) over each."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(side) for side in images.shape[2:]), indexing="ij"), -1)
    along = (end - start)[:, None, None]
    offset = grid - start[:, None, None]
    share = (offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)
    distance = (offset - share.clamp(0, 1)[..., None] * along).norm(dim=-1)
    cover = (width[:, None, None] + 0.5 - distance).clamp(0, 1)[:, None]
    return images + cover * (colour[:, :, None, None] - images)


def _between(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g)


def _check(identities: int, poses: int, held_out: int, height: int, clutter: int, contrast: float, tint: float) -> None:
    if not 2 <= held_out <= identities - 2:
        raise BadValue(
            f"held_out is {held_out} of {identities} identities; there must be 2 held out and 2 to learn from at least."
        )
    if poses < CAMERAS * (QUERIES + 1):
        least = CAMERAS * (QUERIES + 1)
        raise BadValue(f"poses is {poses}; {CAMERAS} cameras with {QUERIES} queries each take {least} at least.")
    if height < 16 or height % 2:
        raise BadValue(f"height is {height}; it must be an even number of pixels from 16 on.")
    if clutter < 0 or not 0 <= tint <= 1 or not 0 <= contrast <= 1:
        raise BadValue(
            f"clutter is {clutter}, contrast {contrast}, tint {tint}; they must be from 0 on, the last two up to 1."
        )
