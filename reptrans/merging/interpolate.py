"""Arithmetic with weights: the straight path between two networks, the barrier on it, and task vectors."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd
from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.layers.network import copy_of
from reptrans.merging.align import check_same_architecture
from reptrans.training import evaluate

_ENDS = (0.0, 1.0)


def interpolated(a: nn.Module, b: nn.Module, share: float = 0.5) -> nn.Module:
    """A new network with (1 - share) θ_a + share θ_b, parameters and running statistics; counters are a's.

    `share` outside [0, 1] extrapolates the parameters alone: statistics are then those of the nearer network, for a
    variance could get negative, and a warning says so. Raises ShapeMismatch for two architectures, BadValue also for
    what has nothing in between: a mask that differs, a spectral norm.
    """
    merged = _mixed(a, b, share)
    if not 0 <= share <= 1:
        warn_of_statistics(merged, f"share is {share:g}, outside [0, 1]")
    return merged


def warn_of_statistics(net: nn.Module, why: str) -> None:
    """Warn that the running statistics of `net`, if it has any, did not follow its parameters."""
    if any(getattr(module, "running_var", None) is not None for module in net.modules()):
        warnings.warn(
            f"{why}: the running statistics of batch norm did not follow the parameters. Estimate them again with "
            "reestimated(net, loader).",
            stacklevel=3,
        )


def _mixed(a: nn.Module, b: nn.Module, share: float) -> nn.Module:
    _check_mixable(a, b)
    if not isinstance(share, (int, float)) or not math.isfinite(share):
        raise BadValue(f"share is {share!r}; it must be a number, 0 for the first network and 1 for the second.")
    merged, theirs = copy_of(a), b.state_dict()
    moved, within = {name for name, _ in a.named_parameters(remove_duplicate=False)}, min(max(share, 0.0), 1.0)
    state = {
        name: value.lerp(theirs[name].to(value), share if name in moved else within) if _moves(value) else value
        for name, value in a.state_dict().items()
    }
    merged.load_state_dict(state)
    return merged


def _moves(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _check_mixable(a: nn.Module, b: nn.Module) -> None:
    """Raise ShapeMismatch for two architectures, BadValue for what differs and has nothing in between."""
    check_same_architecture(a, b)
    theirs, parameters = b.state_dict(), dict(a.named_parameters(remove_duplicate=False))
    for name, value in a.state_dict().items():
        held = any(f"{name.removesuffix(end)}_orig" in parameters for end in ("_u", "_mask"))
        estimated = name not in parameters and (held or ".parametrizations." in f".{name}")
        mixes = (_moves(value) and not estimated) or name.endswith("num_batches_tracked")
        if mixes or value.equal(theirs[name].to(value)):
            continue
        if estimated:
            raise BadValue(
                f"{name} was found for the weights of one network, as in spectral_norm or pruning, and would not fit "
                "those between two. Make the weights plain in both first: remove_parametrizations(layer, 'weight'), "
                "remove_spectral_norm(layer), or prune.remove(layer, 'weight')."
            )
        raise BadValue(
            f"{name} ({str(value.dtype).removeprefix('torch.')}) differs between the two networks, and there is "
            "nothing in between. Give both the same, or store it in floating point, which is mixed."
        )


def path_rows(
    a: nn.Module,
    b: nn.Module,
    loader: Iterable,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    mend: Callable[[nn.Module, float], nn.Module] | None = None,
) -> pd.DataFrame:
    """Rows of share, accuracy, cross_entropy (nats) on the loader's images, along the straight path from `a` to `b`.

    `mend(network, share)` may return a corrected network for every point but the ends, re-estimated batch norm for
    instance. `shares` must hold 0 and 1, without which there is no barrier. Raises BadValue, ShapeMismatch.
    """
    if not set(_ENDS) <= set(shares):
        raise BadValue(f"shares are {list(shares)}; a path begins at 0 and ends at 1. Add what is missing.")
    rows = []
    for share in sorted(shares):
        mended = mend is not None and share not in _ENDS
        net = mend(_mixed(a, b, share), share) if mended else interpolated(a, b, share)
        found = evaluate(net, loader)
        rows.append({"share": share, "accuracy": found["accuracy"], "cross_entropy": found["cross_entropy"]})
    return pd.DataFrame(rows)


def barrier(rows: pd.DataFrame, value: str = "cross_entropy") -> float:
    """How much worse the path gets than the straight line between its ends.

        cross_entropy:  max_t L(t) - [(1 - t) L(0) + t L(1)]
        accuracy:       max_t [(1 - t) A(0) + t A(1)] - A(t)

    over the shares t that the rows have. Range [0, ∞) and [0, 1]; 0 = no barrier, which the ends themselves give.
    Raises UnknownName.
    Source: Entezari et al. 2022, equation 1; their figures also show the half-way point alone (Frankle et al. 2020).
    """
    choose(value, ["cross_entropy", "accuracy"], "there is no barrier in {}")
    at = rows.set_index("share")[value]
    line = (1 - at.index.to_series()) * at[0.0] + at.index.to_series() * at[1.0]
    worse = at - line if value == "cross_entropy" else line - at
    return float(worse.max())


def task_vector(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """τ = θ_tuned - θ_base by name: parameters and running statistics, without counters.

    Raises ShapeMismatch and BadValue as `interpolated`. Source: Ilharco et al. 2023, whose networks have no batch norm.
    """
    _check_mixable(base, tuned)
    after = tuned.state_dict()
    return {
        name: after[name].detach() - value.detach().to(after[name])
        for name, value in base.state_dict().items()
        if _moves(value)
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
    if not (isinstance(vectors, Sequence) and all(isinstance(vector, Mapping) for vector in vectors)):
        raise BadValue("vectors is a list of task vectors, one for each network; see task_vector.")
    scales = [scales] * len(vectors) if isinstance(scales, int | float) else list(scales)
    if not all(math.isfinite(scale) for scale in scales):
        raise BadValue(f"the scales are {scales}; they must be finite numbers.")
    if len(scales) != len(vectors):
        raise BadValue(f"{len(vectors)} task vectors and {len(scales)} scales were given; give one for each, or one.")
    copied = copy_of(base)
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
