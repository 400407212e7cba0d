"""Where people come from: a folder in the form of Market-1501, with landmarks of its images, or drawn stick figures."""

import json
import math
import re
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

from reptrans.data.streamed import opened
from reptrans.errors import BadData, BadValue
from reptrans.paths import expanded
from reptrans.randomness import generator_of, in_double
from reptrans.reid.people import People, Reid
from reptrans.reid.scoring import JUNK

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(-1|\d+)_c(\d+)(?:s\d+)?_.*\.(?:jpg|jpeg|png)", re.IGNORECASE)

Landmarks = dict[str, Tensor]


def load_market(folder: str | Path, size: tuple[int, int] = (128, 64), landmarks: str | Path | None = None) -> Reid:
    """The images of a folder like Market-1501's, resized to `size` (height, width), in memory.

    It holds bounding_box_train, query and bounding_box_test with files `0002_c1s1_000451_03.jpg`: person 2, camera 1.
    Person -1 is junk and left out; person 0, a distractor, stays in the gallery and matches nobody. `landmarks`: a file
    as `read_landmarks` reads; images that it does not name have none.
    Raises BadData: a folder or file that is missing, broken or misnamed; a part without images.
    """
    folder, known = expanded(folder, "the folder of images"), None if landmarks is None else read_landmarks(landmarks)
    return Reid(folder.name, *(_people(folder / name, size, known) for name in FOLDERS.values()))


def read_landmarks(path: str | Path) -> Landmarks:
    """Landmarks (j, 2), rows and columns in pixels of the image as it is on disk, NaN where not seen, by file name.

    A text file with a line `name: [rows]: [columns]` for each image, -1 where a joint is not seen; a first line
    `name:keypoints_y:keypoints_x` is passed over. (The form of Zhu et al. 2019 for Market-1501, 18 joints.)
    Raises BadData naming the line.
    """
    path = expanded(path, "the file of landmarks")
    if not path.is_file():
        raise BadData(f"there is no file of landmarks {path}. It has a line 'name: [rows]: [columns]' for each image.")
    found, joints = {}, None
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("name:keypoints_y"):
            continue
        name, at = _landmark(line, f"line {number} of {path}")
        joints = joints or len(at)
        if len(at) != joints:
            raise BadData(f"line {number} of {path} has {len(at)} joints, those before it {joints}.")
        found[name] = at
    if not found:
        raise BadData(f"{path} names no image. Expected lines 'name: [rows]: [columns]'.")
    return found


def _landmark(line: str, where: str) -> tuple[str, Tensor]:
    try:
        name, rows, columns = line.split(":")
        at = torch.tensor([json.loads(rows), json.loads(columns)], dtype=torch.float64).T
        if at.ndim != 2 or len(at) == 0:
            raise ValueError
    except (ValueError, TypeError) as error:
        raise BadData(
            f"{where} is {line[:60]!r}; expected 'name: [rows]: [columns]', as many rows as columns."
        ) from error
    return name.strip(), at.where((at >= 0).all(1, keepdim=True), torch.nan)


def _people(folder: Path, size: tuple[int, int], known: Landmarks | None) -> People:
    files, who, cameras = _files(folder)
    images, scales = zip(*(_image(file, size) for file in files), strict=True)
    landmarks = None
    if known is not None:
        nobody = torch.full_like(next(iter(known.values())), torch.nan)
        # Centres of pixels lie at whole numbers: the image's edge, at -1/2, stays where it is.
        pairs = zip(files, scales, strict=True)
        landmarks = torch.stack([(known.get(f.name, nobody) + 0.5) * torch.tensor(s) - 0.5 for f, s in pairs])
    return People(torch.stack(images), torch.tensor(who), torch.tensor(cameras), landmarks)


def _files(folder: Path) -> tuple[list[Path], list[int], list[int]]:
    if not folder.is_dir():
        raise BadData(f"there is no folder {folder}. Market-1501's form has the folders {', '.join(FOLDERS.values())}.")
    found = []
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in (".jpg", ".jpeg", ".png"):
            continue
        if not (match := _NAME.fullmatch(file.name)):
            raise BadData(f"{file} is not named like 0002_c1s1_000451_03.jpg: person, camera, and any numbers.")
        if int(match[1]) != JUNK:
            found.append((file, int(match[1]), int(match[2])))
    if not found:
        raise BadData(f"{folder} has no images named like 0002_c1s1_000451_03.jpg.")
    return tuple(list(column) for column in zip(*found, strict=True))


def _image(file: Path, size: tuple[int, int]) -> tuple[Tensor, tuple[float, float]]:
    """The image (3, h, w) uint8, and by how much its height and width were multiplied."""
    with opened(file) as image:
        resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        return pil_to_tensor(resized), (size[0] / image.height, size[1] / image.width)


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
