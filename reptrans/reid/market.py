"""A folder in the form of Market-1501, and landmarks of its images."""

import json
import re
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from reptrans.data.streamed import opened
from reptrans.errors import BadData
from reptrans.paths import expanded
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
