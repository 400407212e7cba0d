"""What a stitch reaches with nothing in front of it: activations of other examples, and noise clustered by class.

Where the front says nothing of the example, or nothing but its class, the accuracy that is left comes from the stitch
and the end, and is no sign of a shared representation.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrans.data import Loader, Split
from reptrans.errors import BadData, BadValue, check_whole
from reptrans.layers import channel_axes, end, front
from reptrans.layers.network import copy_of
from reptrans.layers.values import answer
from reptrans.similarity import Moments
from reptrans.stitching.direct import least_squares
from reptrans.stitching.frozen import blocks, logits_of
from reptrans.stitching.stitch import Stitch, StitchedNetwork, places_of, stitch_size
from reptrans.training import accuracy


class NullStitch(NamedTuple):
    """Of the score set, in [0, 1]: `accuracy` of the stitched network, `end_accuracy` of the end network by itself,
    `relative_accuracy`, the one over the other, which may exceed 1, and `chance`, the share of the largest class."""

    accuracy: float
    end_accuracy: float
    relative_accuracy: float
    chance: float


Training = Callable[[StitchedNetwork, Loader], object]


def stitch_from_others(
    nets: tuple[nn.Module, nn.Module],
    layers: tuple[str, str],
    loaders: tuple[Loader, Loader],
    *,
    generator: torch.Generator,
    flatten: bool = False,
    training: Training | None = None,
) -> NullStitch:
    """Stitch the front's activations of other examples: what is left is chance, in whatever way the stitch is found.

    `nets` and `layers`: of (front, end). `loaders`: of (fit set, score set); in both, the front's activations come in
    an order that `generator` draws, the labels and the end's own activations in theirs. The stitch is least squares;
    `training` then trains it, a function of the stitched network and a loader of the fit set whose images are the
    front's activations: `lambda network, loader: train_stitch(network, loader, plan)`.
    The networks stay as they are. The front's activations of both sets, and the end's of the fit set, are held in
    memory, without augmentation. Raises BadData for texts, and for several labels at once; LayerNotFound, CannotCut,
    ShapeMismatch for layers.
    """
    _check(loaders)
    part = _frozen(nets[0])
    axis = channel_axes(part, layers[:1], _images(loaders[0]))[layers[0]]
    sides = [_table(front(part, layers[0]), loader) for loader in loaders]
    shuffled = [x[torch.randperm(len(x), generator=generator).to(x.device)] for x in sides]
    return _stitched(shuffled, axis, _frozen(nets[1]), layers[1], loaders, flatten, training)


def stitch_from_noise(
    net: nn.Module,
    layer: str,
    loaders: tuple[Loader, Loader],
    *,
    spread: float,
    generator: torch.Generator,
    channels: int | None = None,
    flatten: bool = False,
    training: Training | None = None,
) -> NullStitch:
    """Stitch noise that is clustered by class into `net` at `layer`: what labels alone, without any image, reach.

        x = √(1 − spread) μ_k + √spread ε for an example of class k;  μ_k, ε ~ N(0, I)

    x has the layer's places and `channels` channels, by default the layer's number. Each class has one centre μ_k, the
    same at all places and in both sets; ε is drawn for every entry. `spread` in [0, 1] is the noise's share of the
    variance: 0 gives the class away, 1 says nothing. Arguments and memory as in `stitch_from_others`.
    A front that is to share more than the labels has to exceed this. Least squares over channels makes the same output
    of x at every place, so maps that differ in place only are out of its reach; `flatten` and `training` are not held
    back by that. Raises BadValue for a spread or a number of channels out of range, else what `stitch_from_others`
    does.
    Source: Smith et al. 2025, whose stitches are trained on the task: give `training`.
    """
    if not 0 <= spread <= 1:
        raise BadValue(f"spread is the noise's share of the variance, from 0 to 1; given {spread}.")
    if channels is not None:
        check_whole("channels", channels, 1)
    _check(loaders)
    net, example = _frozen(net), _images(loaders[0])
    own, axis = front(net, layer)(example), channel_axes(net, [layer], example)[layer]
    channels, places = channels or own.shape[axis], places_of(own.shape[1:], axis)
    labels = [loader.split.labels.cpu() for loader in loaders]
    centres = torch.randn(int(torch.cat(labels).max()) + 1, channels, *[1] * len(places), generator=generator)
    drawn = [torch.randn(len(k), channels, *places, generator=generator) for k in labels]
    sides = [(1 - spread) ** 0.5 * centres[k] + spread**0.5 * noise for k, noise in zip(labels, drawn, strict=True)]
    sides = [x.movedim(1, axis).to(own) for x in sides]
    return _stitched(sides, axis, net, layer, loaders, flatten, training)


def _stitched(
    sides: list[Tensor],
    axis: int,
    net: nn.Module,
    layer: str,
    loaders: tuple[Loader, Loader],
    flatten: bool,
    training: Training | None,
) -> NullStitch:
    """Fit and score a stitch from activations of all examples of both sets, channels at `axis`, into `net`."""
    fit, score = (old.plain().over(Split(x, old.split.labels)) for x, old in zip(sides, loaders, strict=True))
    example, y = _images(loaders[0]), _table(front(net, layer), loaders[0])
    axes, shapes = (axis, channel_axes(net, [layer], example)[layer]), (sides[0].shape[1:], y.shape[1:])
    m = Moments(*stitch_size(*shapes, axes, flatten), y.device)
    for batch in fit:
        m.update(*blocks(batch.images, y[batch.index], axes, flatten))
    solved, stitch = least_squares(m), Stitch(*shapes, axes=axes, flatten=flatten).to(y)
    network = StitchedNetwork(nn.Identity(), stitch.set(solved.weight, solved.bias), end(net, layer, example=example))
    if training:
        training(network, loaders[0].over(fit.split, augment="none"))
    (logits, labels), (own, _) = (logits_of(*of) for of in ((network.eval(), score), (net, loaders[1].plain())))
    reached, whole = accuracy(logits, labels).item(), accuracy(own, labels).item()
    relative = reached / whole if whole else float("nan")
    return NullStitch(reached, whole, relative, labels.bincount().max().item() / len(labels))


def _frozen(net: nn.Module) -> nn.Module:
    return copy_of(net).eval().requires_grad_(False)


@torch.no_grad()
def _table(part: nn.Module, loader: Loader) -> Tensor:
    """What `part` says of every example, in the split's order."""
    return torch.cat([answer(part(batch.images)) for batch in loader.plain()])


def _images(loader: Loader) -> Tensor:
    return next(iter(loader.plain())).images[:2]


def _check(loaders: tuple[Loader, Loader]) -> None:
    for loader in loaders:
        if not isinstance(loader, Loader) or loader.split.labels.ndim > 1:
            raise BadData(
                "These nulls are of images with one label each. Give dataset.loader('train') and "
                "dataset.loader('test') of such a data set."
            )
