"""Pose-guided feature distilling for person re-identification: data, networks, three stages, evaluation (FD-GAN).

`reidentify` runs the whole experiment; the losses are in `reptrans.distillation.methods.fd_gan`.
"""

from reptrans.reid.architectures import (
    Encoder,
    Generator,
    IdentityDiscriminator,
    PatchDiscriminator,
    Siamese,
    Verification,
    encoder,
)
from reptrans.reid.people import PairBatch, Pairs, People, Reid, as_floats, pose_maps
from reptrans.reid.scoring import codes_of, find_again, pose_r2, retrieval
from reptrans.reid.sources import load_market, read_landmarks, stick_figures
from reptrans.reid.stages import Parts, Rates, Stage, generated, parts, train_baseline, train_stage

__all__ = [
    "Encoder", "Generator", "IdentityDiscriminator", "PairBatch", "Pairs", "Parts", "PatchDiscriminator", "People",
    "Rates", "Reid", "Siamese", "Stage", "Verification",
    "as_floats", "codes_of", "encoder", "find_again", "generated", "load_market", "parts", "pose_maps", "pose_r2",
    "read_landmarks", "retrieval", "stick_figures", "train_baseline", "train_stage",
]  # fmt: skip
