"""Arithmetic with what fine-tuning changed: task vectors, added to and taken from a common base network."""

import copy
import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.merging.align import check_same_architecture
from reptrans.merging.interpolate import warn_of_statistics


def task_vector(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """τ = θ_tuned - θ_base by name: parameters and running statistics, without counters.

    Raises ShapeMismatch for two architectures. Source: Ilharco et al. 2023, whose networks have no batch norm.
    """
    check_same_architecture(base, tuned)
    after = tuned.state_dict()
    return {
        name: after[name].detach() - value.detach().to(after[name])
        for name, value in base.state_dict().items()
        if value.is_floating_point()
    }


def with_task_vectors(
    base: nn.Module, vectors: Sequence[Mapping[str, Tensor]], scales: float | Sequence[float] = 1.0
) -> nn.Module:
    """A copy of `base` with θ = θ_base + Σ_i scale_i τ_i; a negative scale forgets. One scale serves all.

    Running statistics follow where the scales are shares, from 0 on and at most 1 together; otherwise a variance could
    get negative, so that they stay the base's, and a warning says so. With batch norm, estimate them again
    (`reestimated`) in any case.
    Raises BadValue for another number of scales than of vectors, or one that is not finite; ShapeMismatch for the
    vectors of another network.
    """
    scales = [scales] * len(vectors) if isinstance(scales, int | float) else list(scales)
    if not all(math.isfinite(scale) for scale in scales):
        raise BadValue(f"the scales are {scales}; they must be finite numbers.")
    if len(scales) != len(vectors):
        raise BadValue(f"{len(vectors)} task vectors and {len(scales)} scales were given; give one for each, or one.")
    copied = copy.deepcopy(base)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    shares = all(scale >= 0 for scale in scales) and sum(scales) <= 1 + 1e-12
    moved = set(state) if shares else {name for name, _ in base.named_parameters(remove_duplicate=False)}
    for vector, scale in zip(vectors, scales, strict=True):
        for name, change in vector.items():
            if name not in state or state[name].shape != change.shape:
                has = f"{tuple(state[name].shape)}" if name in state else "none"
                raise ShapeMismatch(
                    f"a task vector has {name} {tuple(change.shape)}, {type(base).__name__} has {has}. Task vectors "
                    "are added to the base that they were taken from."
                )
            if name in moved:
                state[name] += scale * change.to(state[name])
    copied.load_state_dict(state)
    if not shares:
        warn_of_statistics(copied, f"scales are {', '.join(f'{scale:g}' for scale in scales)}, which are no shares")
    return copied
