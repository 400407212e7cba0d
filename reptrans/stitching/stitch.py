"""The stitch: an affine map over the channel axis, and the network that it makes of a front and an end."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.layers.axes import patch_square
from reptrans.layers.values import answer

#: The forms of a `Stitch`.
FORMS = ("free", "low rank", "orthogonal", "masked")


class Stitch(nn.Module):
    """y = W x + b over the channels of activations, the same at every place.

    `front_shape`, `end_shape`: shapes of one example's activations, (c, h, w), (h, w, c), (t, d) or (d,), and `axes`
    where each has its channels: 1 or -1, by default 1 for maps and -1 for others; see `layers.channel_axes`.
    Where the places differ in number (h, w), maps are resized first: bilinear, antialiased. Tokens meet maps as the
    square grid of patches that they are: what stands before the patches, a class token, is dropped on the way to maps,
    and is the mean of all places on the way to tokens. With `flatten` one dense map from all of c·h·w to all of
    c'·h'·w' takes the place of the channel map.
    `form`: "free"; "low rank" W = A B with `rank` inner channels; "orthogonal" W = s Q with trained scale s and
    (semi-)orthogonal Q; "masked" W = W₀ ∘ mask with a fixed `mask` (c', c). `batch_norm` puts a batch norm before and
    after, as Bansal et al. (2021) do.
    `weight` is always (out, in); `set` projects onto the form (low rank: truncated SVD; orthogonal: needs a
    scaled (semi-)orthogonal matrix; masked: entries outside the mask are dropped).
    Raises ShapeMismatch for shapes that share no channel map and a mask of another one; UnknownName; BadValue for a
    rank out of range and what is no shape.
    Source: Csiszárik et al. 2021; batch norm, orthogonal form and resizing are additions.
    """

    def __init__(
        self,
        front_shape: tuple[int, ...],
        end_shape: tuple[int, ...],
        *,
        axes: tuple[int | None, int | None] = (None, None),
        form: str = "free",
        rank: int | None = None,
        mask: Tensor | None = None,
        flatten: bool = False,
        batch_norm: bool = False,
    ):
        super().__init__()
        if not all(isinstance(shape, Sequence) for shape in (front_shape, end_shape)):
            raise BadValue(
                f"a stitch takes the shapes of one example's activations; given {front_shape!r} and {end_shape!r}. "
                "Between vectors of 3 and 5 features: Stitch((3,), (5,))."
            )
        self.front_shape, self.end_shape, self.flatten = tuple(front_shape), tuple(end_shape), flatten
        self.axes = tuple(axis_of(s, a) for s, a in zip((self.front_shape, self.end_shape), axes, strict=True))
        p, q = stitch_size(self.front_shape, self.end_shape, self.axes, flatten)
        grids = [places_of(*side) for side in zip((self.front_shape, self.end_shape), self.axes, strict=True)]
        self._keeps_places = grids[0] == grids[1] and len(grids[0]) == 1  # texts have as many tokens as they have
        self.weight = nn.Parameter(torch.empty(q, p))
        self.bias = nn.Parameter(torch.empty(q))
        self.before = nn.BatchNorm1d(p) if batch_norm else None
        self.after = nn.BatchNorm1d(q) if batch_norm else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.uniform_(self.bias, -(p**-0.5), p**-0.5)
        _parametrise(self, form, rank, mask)

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> "Stitch":
        """Take over a dense map, weight (out, in) and bias (out,), projected onto the form: see `Stitch`."""
        if parametrize.is_parametrized(self, "weight"):
            self.weight = weight.to(self.bias)
        else:
            self.weight.copy_(weight)
        self.bias.copy_(bias)
        return self

    @torch.no_grad()
    def calibrate(self, mean_x: Tensor, var_x: Tensor, mean_y: Tensor, var_y: Tensor) -> "Stitch":
        """Let the batch norms, if there are any, change nothing at first: their statistics are those of the stitch's
        input, (in,), and output, (out,), and their scale and offset undo the normalisation."""
        for norm, mean, var in ((self.before, mean_x, var_x), (self.after, mean_y, var_y)):
            if norm is not None:
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(var)
                norm.weight.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.copy_(mean)
        return self

    @torch.no_grad()
    def dense(self) -> dict[str, Tensor]:
        """The map as it acts in eval mode, whatever the form: weight (out, in), with the batch norms folded in, and
        bias (out,). Copies, never views of the parameters."""
        q, p = self.weight.shape
        a, c = (v.to(self.bias) for v in _affine_of(self.before, p))
        b, d = (v.to(self.bias) for v in _affine_of(self.after, q))
        weight, bias = b[:, None] * self.weight * a, b * (self.weight @ c + self.bias) + d
        return {"weight": weight.clone(), "bias": bias.clone()}

    def forward(self, x: Tensor) -> Tensor:
        if self.flatten:
            return self._affine(x.flatten(1)).unflatten(1, self.end_shape)
        x = channels_first(x, self.axes[0])
        if not self._keeps_places:
            x = at_places(x, places_of(self.end_shape, self.axes[1]))
        x = self._affine(x)
        return x if self.axes[1] == 1 else x.movedim(1, -1)

    def _affine(self, x: Tensor) -> Tensor:
        """Of (n, c, places), or of all features in a row with `flatten`."""
        if x.ndim == 4 and self.before is None:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)
        x = x.movedim(1, -1)
        x = _over_rows(self.before, x)
        return _over_rows(self.after, F.linear(x, self.weight, self.bias)).movedim(-1, 1)


def stitch_size(
    front: tuple[int, ...],
    end: tuple[int, ...],
    axes: tuple[int | None, int | None] = (None, None),
    flatten: bool = False,
) -> tuple[int, int]:
    """(p, q), features of the two sides of a stitch between activations of these shapes; ShapeMismatch for none."""
    if flatten:
        return torch.Size(front).numel(), torch.Size(end).numel()
    axes = [axis_of(shape, axis) for shape, axis in zip((front, end), axes, strict=True)]
    grids = [places_of(shape, axis) for shape, axis in zip((front, end), axes, strict=True)]
    tokens = [grid for grid in grids if len(grid) == 1]
    if grids[0] != grids[1] and (() in grids or len(tokens) == 2):
        raise ShapeMismatch(
            f"Activations of shape {front} and {end} share no channel map: maps are resized to maps, but tokens and "
            "vectors need equal places. Choose another pair of layers, or flatten=True for one dense map of all."
        )
    if grids[0] != grids[1] and tokens:
        patch_square(*tokens[0])
    return tuple(shape[0] if axis == 1 else shape[-1] for shape, axis in zip((front, end), axes, strict=True))


def channels_first(x: Tensor, axis: int) -> Tensor:
    """Activations (n, …) with the channels at `axis`, 1 or -1, as (n, c, places)."""
    return x if axis == 1 or x.ndim == 2 else x.movedim(-1, 1)


def places_of(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The places in activations of one example: (h, w) of maps, (t,) of tokens, () of a vector."""
    return tuple(shape[1:] if axis == 1 else shape[:-1])


def at_places(x: Tensor, places: tuple[int, ...]) -> Tensor:
    """x (n, c, …) at other places: maps are resized, tokens become maps and maps tokens; see `Stitch`."""
    if tuple(x.shape[2:]) == tuple(places):
        return x
    if x.ndim == 3:
        side, before = patch_square(x.shape[2])
        return at_places(x[:, :, before:].unflatten(2, (side, side)), places)
    if len(places) == 2:
        return F.interpolate(x, tuple(places), mode="bilinear", antialias=True)
    side, before = patch_square(*places)
    patches = at_places(x, (side, side)).flatten(2)
    return torch.cat([patches.mean(2, keepdim=True).expand(-1, -1, before), patches], 2)


def axis_of(shape: tuple[int, ...], axis: int | None) -> int:
    """Where one example's activations have their channels: `axis`, or the usual place, 1 of maps and -1 of others."""
    usual = 1 if len(shape) == 3 else -1
    return usual if axis is None or len(shape) == 1 else axis


def _over_rows(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x.flatten(0, -2)).view_as(x)


def _affine_of(norm: nn.BatchNorm1d | None, size: int) -> tuple[Tensor, Tensor]:
    """Scale and offset of a batch norm in eval mode; of nothing: 1 and 0."""
    if norm is None:
        return torch.ones(size), torch.zeros(size)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


def _parametrise(stitch: Stitch, form: str, rank: int | None, mask: Tensor | None) -> None:
    q, p = stitch.weight.shape
    choose(form, FORMS, "Unknown form of stitch {}")
    if form == "low rank":
        if rank is None or not 1 <= rank <= min(p, q):
            raise BadValue(f"A low-rank stitch of {p} → {q} channels needs a rank from 1 to {min(p, q)}; given {rank}.")
        parametrize.register_parametrization(stitch, "weight", _LowRank(rank))
    elif form == "orthogonal":
        with torch.no_grad():
            nn.init.orthogonal_(stitch.weight)
        parametrizations.orthogonal(stitch, "weight")
        parametrize.register_parametrization(stitch, "weight", _Scale())
    elif form == "masked":
        if mask is None or mask.shape != (q, p):
            given = None if mask is None else tuple(mask.shape)
            raise ShapeMismatch(f"A masked stitch of {p} → {q} channels needs a mask of shape {(q, p)}; given {given}.")
        parametrize.register_parametrization(stitch, "weight", _Mask(mask))


class _LowRank(nn.Module):
    """W = A B; a given W is split by its truncated SVD into equally large factors."""

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        root = s[: self.rank].sqrt()
        return (u[:, : self.rank] * root).contiguous(), (root[:, None] * vh[: self.rank]).contiguous()


class _Scale(nn.Module):
    """W = s Q with one trained factor s."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, q: Tensor) -> Tensor:
        return self.factor * q

    def right_inverse(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            self.factor.copy_(weight.norm() / min(weight.shape) ** 0.5)
        return weight / self.factor


class _Mask(nn.Module):
    """W = W₀ ∘ mask."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class StitchedNetwork(nn.Module):
    """images → end(stitch(front(images))): an ordinary network whose stitch alone is trained.

    Front and end are frozen: no gradients for their parameters (a property of the shared weights), and always in eval
    mode, so that batch norm uses running statistics and never updates them; `train()` reaches the stitch only.
    With `keep_skip` the end also takes the images, for what bypasses the layer in its own network.
    """

    def __init__(self, front: nn.Module, stitch: Stitch, end: nn.Module, keep_skip: bool = False):
        super().__init__()
        self.front, self.stitch, self.end, self.keep_skip = front, stitch, end, keep_skip
        for part in (front, end):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "StitchedNetwork":
        super().train(mode)
        self.front.eval()
        self.end.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        stitched = self.stitch(self.front(images))
        return answer(self.end(stitched, images) if self.keep_skip else self.end(stitched))
