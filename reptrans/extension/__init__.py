"""Train a network that knows something else than the old ones: at its input, its output, or in between.

`Hidden`, `Outputs` and `ThroughLens` are objectives for `fit`, over any network by layer names; `extend` trains a whole
sequence and reports.
"""

from reptrans.extension.condition import Beside, Condition, reverse_gradient
from reptrans.extension.hidden import MODES, Hidden, half_cosine, hidden_losses
from reptrans.extension.lens import Lens, LensTraining, ThroughLens, lensed
from reptrans.extension.output import OUTPUT_LOSSES, Outputs, alternating, pcgrad
from reptrans.extension.sequence import Extended, extend
from reptrans.moved import moved

__all__ = [
    "MODES",
    "OUTPUT_LOSSES",
    "Beside",
    "Condition",
    "Extended",
    "Hidden",
    "Lens",
    "LensTraining",
    "Outputs",
    "ThroughLens",
    "alternating",
    "extend",
    "half_cosine",
    "hidden_losses",
    "lensed",
    "pcgrad",
    "reverse_gradient",
]


def __getattr__(name: str) -> object:
    return moved(__name__, name)
