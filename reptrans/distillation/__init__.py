"""Distillation of features: the survey's methods as values, made of taps, transforms, distances, matches and stages.

In a few lines:

    teacher = Teacher(net, loader)
    pair = Pair.of(student, teacher, images)
    student, rows = distill(student, teacher, METHODS["nst"](pair), loader, Plan(epochs=60))
"""

from reptrans.attribution import attention_maps, map_agreement
from reptrans.distillation.distill import Member, distill, distill_together, loaders
from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods import METHODS
from reptrans.moved import moved

__all__ = [
    "METHODS",
    "Member",
    "Method",
    "Pair",
    "Stage",
    "attention_maps",
    "distill",
    "distill_together",
    "loaders",
    "map_agreement",
]


def __getattr__(name: str) -> object:
    return moved(__name__, name)
