"""Which axis of a layer's output holds the channels: known from the layer, or from a second image size, never guessed.

(8, 64, 64, 32) may be 64 maps of 64 x 32, or maps of 64 x 64 with 32 channels at each place.
"""

import math
from collections.abc import Iterable
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import ShapeMismatch
from reptrans.layers.network import first_examples, leaving_no_trace, located, run, watching
from reptrans.layers.values import chosen

_FIRST = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.PixelShuffle, nn.LocalResponseNorm,
)  # fmt: skip
_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.MultiheadAttention, nn.modules.rnn.RNNBase)


def channel_axes(net: nn.Module, names: Iterable[str], images: object) -> dict[str, int]:
    """For each layer, the axis of its output that holds the channels: 1, as in (n, c, h, w), or -1, as in (n, t, d).

    Convolutions and the like have it first, linear layers and layer norms last. Of others the one axis behind the
    examples that stays when the images' size changes; where the network takes no other size, that of the layers
    inside, or else the usual one: 1 of maps, -1 of vectors and tokens. `images`: two are enough.
    """
    inner, places = located(net, names)
    inputs = first_examples(images, 2)
    shapes = _shapes(inner, places, inputs)
    known = {name: _of(inner.get_submodule(layer), shapes.get(name, ())) for name, (layer, _) in places.items()}
    open_ = [name for name, axis in known.items() if axis is None and len(shapes.get(name, ())) > 2]
    for change in (2.0, 0.5) if open_ and isinstance(inputs, Tensor) and inputs.ndim > 2 else ():
        others = _shapes(inner, {name: places[name] for name in open_}, _resized(inputs, change))
        for name in open_:
            known[name] = known[name] or _unchanged(shapes[name], others.get(name, ()))
    return {name: known[name] or _usual(inner.get_submodule(places[name][0]), shapes.get(name, ())) for name in places}


def as_map(values: Tensor) -> Tensor:
    """Values with their channels last as maps (n, c, h, w): of (n, h, w, c), or of tokens (n, t, d).

    Tokens are a square of patches, behind a class token and its like, which are dropped. Raises ShapeMismatch.
    """
    if values.ndim == 4:
        return values.movedim(-1, 1)
    if values.ndim != 3:
        raise ShapeMismatch(f"values {tuple(values.shape)} are no tokens (n, t, d), so they are no map.")
    side, before = patch_square(values.shape[1])
    return values[:, before:].movedim(-1, 1).unflatten(2, (side, side))


def patch_square(tokens: int) -> tuple[int, int]:
    """(side of the square of patches, tokens before it); ShapeMismatch for what no vision transformer has.

    Before the patches come none, a class token, one more of a teacher, or a class token and four registers.
    """
    side = math.isqrt(tokens)
    if tokens - side**2 not in (0, 1, 2, 5):
        raise ShapeMismatch(
            f"{tokens} tokens are no square of patches behind a few others, so they are no map. Choose a layer with "
            "maps, or, to stitch, with tokens on both sides or flatten=True."
        )
    return side, tokens - side**2


def _of(module: nn.Module, shape: tuple[int, ...] = ()) -> int | None:
    """By the layer's type; of a layer norm with a forward of its own, as for maps in ConvNeXt, by the one axis of its
    `shape` that is as long as what it normalises."""
    if isinstance(module, nn.LayerNorm) and type(module).forward is not nn.LayerNorm.forward:
        fits = [axis for axis in (1, -1) if len(shape) > 2 and module.normalized_shape == (shape[axis],)]
        return fits[0] if len(fits) == 1 else None
    return 1 if isinstance(module, _FIRST) else -1 if isinstance(module, _LAST) else None


def _unchanged(shape: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """1 or -1, if that alone of the axes behind the examples is as long as before."""
    same = [axis for axis in range(1, len(shape)) if len(other) == len(shape) and shape[axis] == other[axis]]
    return {1: 1, len(shape) - 1: -1}.get(same[0]) if len(same) == 1 else None


def _usual(module: nn.Module, shape: tuple[int, ...]) -> int:
    inside = [axis for part in module.modules() if (axis := _of(part)) is not None]
    if len(shape) == 4:
        return -1 if inside and set(inside) == {-1} else 1
    return -1


def _resized(images: Tensor, factor: float) -> Tensor:
    size = [max(1, round(side * factor)) for side in images.shape[2:]]
    return F.interpolate(images.float(), size=size, mode="nearest").to(images.dtype)


@torch.no_grad()
def _shapes(net: nn.Module, places: dict[str, tuple[str, str]], inputs: object) -> dict[str, tuple[int, ...]]:
    """The shapes of the layers' values, as far as the network comes with these inputs."""
    found: dict[str, tuple[int, ...]] = {}

    def see(name: str, output: object) -> None:
        found[name] = tuple(chosen(output, places[name][1]).shape)

    layers = {name: layer for name, (layer, _) in places.items()}
    # Another size may not fit the layers that follow; what came before them has been seen.
    with suppress(RuntimeError, AssertionError, ValueError), watching(net, layers, see), leaving_no_trace(net):
        run(net, inputs)
    return found
