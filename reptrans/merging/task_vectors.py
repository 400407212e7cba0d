"""Arithmetic with what fine-tuning changed: task vectors, added to and taken from a common base network."""

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.merging.align import check_same_architecture


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

    With batch norm, estimate its statistics again (`reestimated`).
    Raises BadValue for another number of scales than of vectors; ShapeMismatch for the vectors of another network.
    """
    scales = [scales] * len(vectors) if isinstance(scales, int | float) else list(scales)
    if len(scales) != len(vectors):
        raise BadValue(f"{len(vectors)} task vectors and {len(scales)} scales were given; give one for each, or one.")
    copied = copy.deepcopy(base)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    for vector, scale in zip(vectors, scales, strict=True):
        for name, change in vector.items():
            if name not in state or state[name].shape != change.shape:
                has = f"{tuple(state[name].shape)}" if name in state else "none"
                raise ShapeMismatch(
                    f"a task vector has {name} {tuple(change.shape)}, {type(base).__name__} has {has}. Task vectors "
                    "are added to the base that they were taken from."
                )
            state[name] += scale * change.to(state[name])
    copied.load_state_dict(state)
    return copied
