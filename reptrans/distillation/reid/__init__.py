"""Pose-guided feature distilling for person re-identification: data, networks, three stages, evaluation (FD-GAN).

`reidentify` runs the whole experiment; the losses are in `reptrans.distillation.methods.fd_gan`.
"""

from reptrans.distillation.reid.drawn import JOINTS, stick_figures
from reptrans.distillation.reid.evaluation import codes_of, find_again, pose_r2, retrieval
from reptrans.distillation.reid.experiment import ReidRun, reidentify
from reptrans.distillation.reid.market import load_market, read_landmarks
from reptrans.distillation.reid.networks import (
    Encoder,
    Generator,
    IdentityDiscriminator,
    PatchDiscriminator,
    Siamese,
    Verification,
    encoder,
)
from reptrans.distillation.reid.pairs import PairBatch, Pairs
from reptrans.distillation.reid.people import People, Reid, as_floats, pose_maps
from reptrans.distillation.reid.stages import (
    PUBLISHED,
    Parts,
    Rates,
    Stage,
    generated,
    parts,
    train_baseline,
    train_stage,
)

__all__ = [
    "JOINTS", "PUBLISHED",
    "Encoder", "Generator", "IdentityDiscriminator", "PairBatch", "Pairs", "Parts", "PatchDiscriminator", "People",
    "Rates", "Reid", "ReidRun", "Siamese", "Stage", "Verification",
    "as_floats", "codes_of", "encoder", "find_again", "generated", "load_market", "parts", "pose_maps", "pose_r2",
    "read_landmarks", "reidentify", "retrieval", "stick_figures", "train_baseline", "train_stage",
]  # fmt: skip
