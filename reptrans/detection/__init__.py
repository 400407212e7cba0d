"""Distillation of object detectors: scenes, detectors that answer for the same boxes, training, average precision."""

from reptrans.detection.coco import coco_scenes
from reptrans.detection.data import SceneBatch, SceneLoader, Scenes
from reptrans.detection.detectors import detector
from reptrans.detection.digits import digit_scenes
from reptrans.detection.draw import draw_scenes
from reptrans.detection.evaluate import average_precision, detect
from reptrans.detection.train import Efficient, Imitation, masks_of, train_detector
from reptrans.detection.views import anchors_of, backbone_maps, student_view, teacher_view

__all__ = [
    "Efficient",
    "Imitation",
    "SceneBatch",
    "SceneLoader",
    "Scenes",
    "anchors_of",
    "average_precision",
    "backbone_maps",
    "coco_scenes",
    "detect",
    "detector",
    "digit_scenes",
    "draw_scenes",
    "masks_of",
    "student_view",
    "teacher_view",
    "train_detector",
]
