"""How alike two representations of the same examples are, streamed or at once."""

from reptrans.similarity.cka import linear_cka
from reptrans.similarity.moments import Moments, channel_axis, channel_blocks

__all__ = ["Moments", "channel_axis", "channel_blocks", "linear_cka"]
