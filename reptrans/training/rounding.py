"""Trainings whose digits repeat on every processor: computed in double precision, kept in single.

Two processors add the same numbers in another order and differ in the last of 53 bits. Training is chaotic: after some
hundred steps that difference stands in the first digits. Where the weights are rounded to 24 bits after every step, it
is wiped out before it can grow, but for the weight (one in 10⁸ or 10⁹ at each step) that lies just between two of the
rounded numbers.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def round_to_single(tensors: Iterable[Tensor]) -> None:
    """Round each float64 tensor, in place, to the nearest numbers of float32; others are so already."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            tensor.copy_(tensor.float())
