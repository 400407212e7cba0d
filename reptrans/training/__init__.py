"""Training and looking at results: one loop, `fit`, for everything in the project that has parameters to move."""

from reptrans.training.evaluation import accuracy, classification_loss, evaluate, evaluating, predict
from reptrans.training.loop import fit, pick_device, train_classifier
from reptrans.training.schedule import Plan

__all__ = [
    "Plan",
    "accuracy",
    "classification_loss",
    "evaluate",
    "evaluating",
    "fit",
    "pick_device",
    "predict",
    "train_classifier",
]
