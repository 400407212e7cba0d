"""Stitching: join the front of one network to the end of another by one trained or solved layer.

    y = W x + b over the channels, between the front's activations x at one layer and those the end network expects.

Source: Csiszárik, Kőrösi-Szabó, Matszangosz, Papp, Varga 2021, "Similarity and Matching of Neural Network
Representations".
"""

from reptrans.stitching.direct import AffineMap, departure, direct_matching
from reptrans.stitching.experiment import Stitched, Stitching
from reptrans.stitching.initial import INITS, MASKS, initial_map, mask_matrix
from reptrans.stitching.networks import StitchingRun, layer_pairs, network_pairs, stitch_networks
from reptrans.stitching.settings import StitchingSettings
from reptrans.stitching.stitch import FORMS, Stitch, StitchedNetwork
from reptrans.stitching.targets import TARGETS, soft_cross_entropy, soft_target_loss
from reptrans.stitching.task import train_stitch

__all__ = [
    "FORMS", "INITS", "MASKS", "TARGETS", "AffineMap", "Stitch", "StitchedNetwork", "Stitched", "Stitching",
    "StitchingRun", "StitchingSettings", "departure", "direct_matching", "initial_map", "layer_pairs", "mask_matrix",
    "network_pairs", "soft_cross_entropy", "soft_target_loss", "stitch_networks", "train_stitch",
]  # fmt: skip
