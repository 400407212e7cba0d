"""Distillation of object detectors: scenes, detectors that answer for the same boxes, training, average precision."""

from reptrans.detection.data import SceneBatch, SceneLoader, Scenes, coco_scenes, digit_scenes
from reptrans.detection.detectors import anchors_of, backbone_maps, detector, student_view, teacher_view
from reptrans.detection.draw import draw_scenes
from reptrans.detection.train import Efficient, Imitation, average_precision, detect, masks_of, train_detector

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
