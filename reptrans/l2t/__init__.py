"""Learning what and where to transfer: which source layers, and which of their channels, a target network should match.

`Pairs` measure, `Weights` weigh, `meta_gradient` says how the weights should move; `Transfer` is what `fit` minimises.
"""

from reptrans.l2t.baselines import (
    METHODS,
    Answers,
    AttentionTransfer,
    Method,
    evenness,
    on_bright,
    saliency,
    start_from,
)
from reptrans.l2t.matching import Matching, Pairs, Together, Weights, dead
from reptrans.l2t.probe import MetaGradient, meta_gradient
from reptrans.l2t.transfer import Meta, Transfer
from reptrans.moved import moved

__all__ = [
    "METHODS",
    "Answers",
    "AttentionTransfer",
    "Matching",
    "Meta",
    "MetaGradient",
    "Method",
    "Pairs",
    "Together",
    "Transfer",
    "Weights",
    "dead",
    "evenness",
    "meta_gradient",
    "on_bright",
    "saliency",
    "start_from",
]


def __getattr__(name: str) -> object:
    return moved(__name__, name)
