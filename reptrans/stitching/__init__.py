"""Stitching: join the front of one network to the end of another by one trained or solved layer.

    y = W x + b over the channels

leads from the front's activations x at one layer to those that the end network expects.
Source: Csiszárik, Kőrösi-Szabó, Matszangosz, Papp, Varga 2021, "Similarity and Matching of Neural Network
Representations".
"""

from reptrans.moved import moved
from reptrans.stitching.direct import INITS, MASKS, AffineMap, departure, direct_matching, initial_map, mask_matrix
from reptrans.stitching.null import NullStitch, stitch_from_noise, stitch_from_others
from reptrans.stitching.relative import inverse_relative, relative
from reptrans.stitching.stitch import FORMS, Stitch, StitchedNetwork
from reptrans.stitching.task import TARGETS, soft_cross_entropy, soft_target_loss, train_stitch

__all__ = [
    "FORMS", "INITS", "MASKS", "TARGETS", "AffineMap", "NullStitch", "Stitch", "StitchedNetwork", 
    "departure", "direct_matching", "initial_map", "inverse_relative", "mask_matrix", "relative",
    "soft_cross_entropy", "soft_target_loss", "stitch_from_noise", "stitch_from_others", "train_stitch",
]  # fmt: skip


def __getattr__(name: str) -> object:
    return moved(__name__, name)
