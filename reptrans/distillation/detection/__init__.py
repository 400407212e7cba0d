"""Distillation of object detectors: scenes, detectors that answer for the same boxes, training, average precision."""

from reptrans.distillation.detection.coco import coco_scenes
from reptrans.distillation.detection.data import SceneBatch, SceneLoader, Scenes
from reptrans.distillation.detection.detectors import detector
from reptrans.distillation.detection.digits import digit_scenes
from reptrans.distillation.detection.draw import draw_scenes
from reptrans.distillation.detection.evaluate import average_precision, detect
from reptrans.distillation.detection.experiment import DetectionRun, distil_detectors
from reptrans.distillation.detection.train import METHODS, PLAIN, Efficient, Imitation, masks_of, train_detector
from reptrans.distillation.detection.views import anchors_of, backbone_maps, student_view, teacher_view

__all__ = [
    "METHODS",
    "PLAIN",
    "DetectionRun",
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
    "distil_detectors",
    "draw_scenes",
    "masks_of",
    "student_view",
    "teacher_view",
    "train_detector",
]
