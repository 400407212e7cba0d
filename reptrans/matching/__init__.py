"""What two networks are made to agree on: where to look, what to make of it, and how far apart that is.

`L = d[T_T(F_T), T_S(F_S)]`: taps name the features F, transforms are T, distances are d, and a `Match` is one such sum.
"""

from reptrans.matching.match import (
    CrossEntropy,
    Learned,
    Match,
    Seen,
    affine,
    conv1x1,
    conv1x1_bn,
    if_needed,
    label,
    resized,
    same_activation,
    term_names,
)
from reptrans.matching.positions import Positions, positions
from reptrans.matching.taps import Teacher, check_taps, tapped

# Types, and so without an entry in the reference.
from reptrans.matching.transforms import Distance as Distance
from reptrans.matching.transforms import Transform as Transform
from reptrans.matching.transforms import (
    above_0,
    attention,
    half_l2,
    identity,
    l1,
    l2,
    mean_squares,
    norm_l2,
    per_image,
    root,
    same_shape,
    soft_cross_entropy,
    softened_kl,
    unit,
    unit_channels,
)

__all__ = [
    "CrossEntropy",
    "Learned",
    "Match",
    "Positions",
    "Seen",
    "Teacher",
    "above_0",
    "affine",
    "attention",
    "check_taps",
    "conv1x1",
    "conv1x1_bn",
    "half_l2",
    "identity",
    "if_needed",
    "l1",
    "l2",
    "label",
    "mean_squares",
    "norm_l2",
    "per_image",
    "positions",
    "resized",
    "root",
    "same_activation",
    "same_shape",
    "soft_cross_entropy",
    "softened_kl",
    "tapped",
    "term_names",
    "unit",
    "unit_channels",
]
