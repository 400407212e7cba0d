"""Scenes from a folder in COCO's format: images beside one .json file of annotations."""

import contextlib
import io
import json
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CocoDetection
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor

from reptrans.detection.data import Scenes
from reptrans.errors import BadData

_ROUNDING = 1.0  # pixels by which published annotations reach over the border


def coco_scenes(folder: str | Path, annotations: str | Path | None = None) -> Scenes:
    """The images of `folder` with the boxes of `annotations`, by default the folder's only .json file.

    Classes are the file's categories in the order of their ids. Annotations of crowds, and those without any width or
    height, which the original files contain, are left out; boxes that reach over the border by up to a pixel are cut.
    Images are read when they are used. Raises BadData.
    """
    folder = Path(folder)
    path = _annotations(folder) if annotations is None else Path(annotations)
    data = _read(folder, path)
    categories = sorted(data.coco.cats.values(), key=lambda category: category["id"])
    number_of = {category["id"]: number for number, category in enumerate(categories)}
    infos = [data.coco.imgs[i] for i in data.ids]
    if missing := [info["file_name"] for info in infos if not (folder / info["file_name"]).is_file()]:
        raise BadData(f"{path} names {len(missing)} images that are not in {folder}, the first is {missing[0]}.")
    found = [_boxes_of(data.coco.imgToAnns[info["id"]], info, number_of, path) for info in infos]
    boxes, labels = [pair[0] for pair in found], [pair[1] for pair in found]
    sizes = [(info["height"], info["width"]) for info in infos]
    return Scenes(data, boxes, labels, tuple(category["name"] for category in categories), sizes)


class _Images(CocoDetection):
    """The images as uint8 (3, h, w), read one at a time."""

    def __getitem__(self, number: int) -> Tensor:
        (image, _), info = super().__getitem__(number), self.coco.imgs[self.ids[number]]
        if image.size != (info["width"], info["height"]):
            raise BadData(
                f"{info['file_name']} is {image.size[0]} wide and {image.size[1]} high, its annotation says "
                f"{info['width']} and {info['height']}, so its boxes cannot be right."
            )
        return pil_to_tensor(image)


def _annotations(folder: Path) -> Path:
    found = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if len(found) != 1:
        what = f"has {len(found)} .json files" if folder.is_dir() else "is no folder"
        raise BadData(
            f"{folder} {what}; a folder in COCO's format holds its images and exactly one .json file of annotations "
            "(images, annotations, categories). Or name the file with annotations=."
        )
    return found[0]


def _read(folder: Path, path: Path) -> _Images:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
            data = _Images(str(folder), str(path))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise BadData(
            f"{path} cannot be read as COCO's annotations ({type(error).__name__}: {error}): it must be JSON with "
            "images, annotations and categories."
        ) from error
    if not data.ids or not data.coco.cats:
        raise BadData(f"{path} names {len(data.ids)} images and {len(data.coco.cats)} categories; both are needed.")
    return data


def _boxes_of(annotations: list[dict], info: dict, number_of: dict[int, int], path: Path) -> tuple[Tensor, Tensor]:
    kept = [a for a in annotations if not a.get("iscrowd", 0)]
    if bad := [a for a in kept if "bbox" not in a or a.get("category_id") not in number_of]:
        raise BadData(
            f"annotation {bad[0].get('id')} of {path} has no bbox, or a category_id that is none of the file's: "
            f"{bad[0].get('category_id')}."
        )
    boxes = torch.tensor([a["bbox"] for a in kept], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([number_of[a["category_id"]] for a in kept], dtype=torch.int64)
    boxes[:, 2:] += boxes[:, :2]
    cut = clip_boxes_to_image(boxes, (info["height"], info["width"]))
    boxes = cut.where((cut - boxes).abs() <= _ROUNDING, boxes)
    some = (boxes[:, 2] != boxes[:, 0]) & (boxes[:, 3] != boxes[:, 1])
    return boxes[some], labels[some]
