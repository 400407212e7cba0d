"""Bring the units of one network into the order of another's, by their weights or by what they do on images."""

from itertools import permutations

import torch
from torch import Tensor, fx, nn

from reptrans.errors import ShapeMismatch, choose
from reptrans.merging.units import Units, permuted, reordered, run_nodes, unit_groups
from reptrans.randomness import generator_of
from reptrans.similarity import Moments
from reptrans.training import evaluating
from reptrans.training.batches import checked_weights

#: What brings the units of one network into the order of another's, see `aligned`.
ALIGNMENTS = ("none", "weights", "activations")

_SWEEPS = 100
_AT_ONCE = 2**21  # numbers of the images in one pass, whose activations are kept until the other network's are there


def aligned(a: nn.Module, b: nn.Module, images: Tensor, by: str = "weights", seed: int = 0) -> nn.Module:
    """A copy of `b`, the same function, whose units stand in the order in which they are most like those of `a`.

    "weights": the permutations P, one for each group of units, that maximise the inner product of all weights

        Σ_l ⟨θ_a[l], (P θ_b)[l]⟩    (parameters alone: no running statistics)

    by coordinate ascent: one group after the other, in an order drawn from `seed`, gets its best assignment while the
    others stay, until none gets better. A local maximum; the images only check the groups.
    "activations": every group the assignment that maximises the sum of Pearson correlations on `images`, over all
    values of that group that a convolution or linear layer reads, every place of every image a sample. Units that do
    not vary on the images correlate with nothing, and share out what is left.
    "none": a copy of `b` as it is.
    Raises as `unit_groups`; ShapeMismatch for two architectures; UnknownName.
    Source: Ainsworth et al. 2023, section 3 ("weights": algorithm 1; "activations": also Li et al. 2016).
    """
    choose(by, ALIGNMENTS, "there is no alignment by {}")
    check_same_architecture(a, b)
    units = unit_groups(b, images)
    if by == "none":
        return permuted(b, units, {})
    found = _by_weights(a, b, units, seed) if by == "weights" else _by_activations(a, units, images)
    return permuted(b, units, found)


def check_same_architecture(a: nn.Module, b: nn.Module) -> None:
    """Raise ShapeMismatch unless the state dicts of both networks have the same names and shapes."""
    shapes = [{name: tuple(v.shape) for name, v in checked_weights(net).state_dict().items()} for net in (a, b)]
    if shapes[0] == shapes[1]:
        return
    name = next(name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
    has = [f"{name} {shape[name]}" if name in shape else f"no {name}" for shape in shapes]
    raise ShapeMismatch(
        f"weights can be compared and mixed only between networks of one architecture: the first has {has[0]}, the "
        f"second {has[1]}. Networks that differ can be compared by what they compute: match_models."
    )


def _by_weights(a: nn.Module, b: nn.Module, units: Units, seed: int) -> dict[int, Tensor]:
    names = {name for name, _ in b.named_parameters()} & set(units.axes)
    theirs, ours = ({n: v.detach().double() for n, v in net.state_dict().items() if n in names} for net in (a, b))
    found = {group: torch.arange(size) for group, size in units.sizes.items()}
    generator, beside = generator_of(seed), _neighbours(units, names)
    waiting = set(found)  # a group whose neighbours stay as they are would get the same assignment again
    for _ in range(_SWEEPS):
        for number in torch.randperm(len(found), generator=generator).tolist():
            group = list(found)[number]
            if group not in waiting:
                continue
            waiting.remove(group)
            gain = _gain(theirs, ours, units, found, group)
            order = _assigned(gain)
            now, then = (float(gain[torch.arange(len(p)), p].sum()) for p in (found[group], order))
            if then > now + 1e-9 * (1 + abs(now)):
                found[group] = order
                waiting |= beside[group]
        if not waiting:
            break
    return found


def _neighbours(units: Units, names: set[str]) -> dict[int, set[int]]:
    """For each group those whose gain depends on its order: of another axis of a weight that has both."""
    beside: dict[int, set[int]] = {group: set() for group in units.sizes}
    for name in names:
        groups = [{block.group for block in blocks} & set(units.sizes) for blocks in units.axes[name].values()]
        for own, other in permutations(groups, 2):
            for group in own:
                beside[group] |= other
    return beside


def _gain(a: dict, b: dict, units: Units, found: dict[int, Tensor], group: int) -> Tensor:
    """(units, units): the inner product gained where a's unit i gets b's unit j, all other groups as found."""
    total = torch.zeros(units.sizes[group], units.sizes[group], dtype=torch.float64)
    for name in (n for n in units.weights_of[group] if n in b):
        for axis, blocks in units.axes[name].items():
            other, start = reordered(b[name], units.axes[name], found, skip=axis), 0
            for block in blocks:
                if block.group == group:
                    x, y = (
                        v.narrow(axis, start, block.features).movedim(axis, 0).reshape(block.size, -1)
                        for v in (a[name], other)
                    )
                    total += (x @ y.T).cpu()
                start += block.features
    return total


def _by_activations(a: nn.Module, units: Units, images: Tensor) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {group: torch.zeros(size, size) for group, size in units.sizes.items()}
    nets, moments = (unit_groups(a, images), units), []  # moments of each value that is read, over all images
    with evaluating(a, units.traced.net), torch.no_grad():
        for part in images.split(max(1, _AT_ONCE // images[0].numel())):
            values = list(zip(*(_read(each, part) for each in nets), strict=True))
            for number, ((group, x), (same, y)) in enumerate(values):
                if group != same or x.shape != y.shape:
                    raise ShapeMismatch(
                        f"the two networks have the same weights but compute differently: {tuple(x.shape)} values are "
                        f"read in one where the other has {tuple(y.shape)}. Align networks of one architecture."
                    )
                if number == len(moments):
                    moments.append(Moments(x.shape[1], y.shape[1], x.device))
                moments[number].update(x, y)
    for ((group, _), _), seen in zip(values, moments, strict=True):
        found[group] = found[group] + seen.correlation.cpu()
    return {group: _assigned(correlation) for group, correlation in found.items()}


def _read(units: Units, images: Tensor) -> list[tuple[int, Tensor]]:
    """(group, activations (n, units, places)) of all that layers read, in the order of the forward pass."""
    found = []

    def see(node: fx.Node, value: object) -> None:
        start = 0
        for block in units.read.get(node, ()):
            if block.group in units.sizes:
                part = value.narrow(1, start, block.features)
                found.append((block.group, part.reshape(len(part), block.size, -1).clone()))
            start += block.features

    run_nodes(units.traced, images, see)
    return found


def _assigned(gain: Tensor) -> Tensor:
    """(units,): for each row the column of the assignment with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])
