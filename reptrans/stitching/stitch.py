"""The stitch: an affine map over the channel axis, and the network that it makes of a front and an end."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from reptrans.errors import BadValue, ShapeMismatch, UnknownName, suggest
from reptrans.similarity import channel_axis

FORMS = ("free", "low rank", "orthogonal", "masked")


class Stitch(nn.Module):
    """y = W x + b over the channels of activations, the same at every place.

    `front_shape`, `end_shape`: shapes of one example's activations, (c, h, w), (h, w, c), (t, d) or (d,).
    Where the places differ in number (h, w), maps are resized first: bilinear, antialiased. With `flatten` one dense
    map from all of c·h·w to all of c'·h'·w' takes the place of the channel map.
    `form`: "free"; "low rank" W = A B with `rank` inner channels; "orthogonal" W = s Q with trained scale s and
    (semi-)orthogonal Q; "masked" W = W₀ ∘ mask with a fixed `mask` (c', c). `batch_norm` puts a batch norm before and
    after, as Bansal et al. (2021) do.
    `weight` is always (out, in); `set` projects onto the form (low rank: truncated SVD; orthogonal: needs a
    scaled (semi-)orthogonal matrix; masked: entries outside the mask are dropped).
    Source: Csiszárik et al. 2021; batch norm, orthogonal form and resizing are additions.
    """

    def __init__(
        self,
        front_shape: tuple[int, ...],
        end_shape: tuple[int, ...],
        *,
        form: str = "free",
        rank: int | None = None,
        mask: Tensor | None = None,
        flatten: bool = False,
        batch_norm: bool = False,
    ):
        super().__init__()
        self.front_shape, self.end_shape, self.flatten = tuple(front_shape), tuple(end_shape), flatten
        if flatten:
            self.axis, p, q = 1, torch.Size(front_shape).numel(), torch.Size(end_shape).numel()
        else:
            self.axis, p, q = _channels(self.front_shape, self.end_shape)
        self.weight = nn.Parameter(torch.empty(q, p))
        self.bias = nn.Parameter(torch.empty(q))
        self.before = nn.BatchNorm1d(p) if batch_norm else None
        self.after = nn.BatchNorm1d(q) if batch_norm else None
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.uniform_(self.bias, -(p**-0.5), p**-0.5)
        _parametrise(self, form, rank, mask)

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> "Stitch":
        """Take over a dense map; a constrained form keeps its nearest member."""
        if parametrize.is_parametrized(self, "weight"):
            self.weight = weight.to(self.bias)
        else:
            self.weight.copy_(weight)
        self.bias.copy_(bias)
        return self

    @torch.no_grad()
    def calibrate(self, mean_x: Tensor, var_x: Tensor, mean_y: Tensor, var_y: Tensor) -> "Stitch":
        """Let the batch norms, if there are any, change nothing at first: their statistics are those of the stitch's
        input and output, and their scale and offset undo the normalisation."""
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
        return self._affine(resize_to(x, self.end_shape))

    def _affine(self, x: Tensor) -> Tensor:
        if self.axis == 1 and x.ndim == 4 and self.before is None:
            return F.conv2d(x, self.weight[:, :, None, None], self.bias)
        x = x.movedim(self.axis, -1)
        x = _over_rows(self.before, x)
        return _over_rows(self.after, F.linear(x, self.weight, self.bias)).movedim(-1, self.axis)


def resize_to(x: Tensor, end_shape: tuple[int, ...]) -> Tensor:
    """Maps x (n, c, h, w) at the size of `end_shape` (c', h', w'), bilinear and antialiased; others as they are."""
    if x.ndim < 4 or channel_axis(x.shape) != 1 or x.shape[2:] == end_shape[1:]:
        return x
    return F.interpolate(x, end_shape[1:], mode="bilinear", antialias=True)


def _over_rows(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x.flatten(0, -2)).view_as(x)


def _affine_of(norm: nn.BatchNorm1d | None, size: int) -> tuple[Tensor, Tensor]:
    """Scale and offset of a batch norm in eval mode; of nothing: 1 and 0."""
    if norm is None:
        return torch.ones(size), torch.zeros(size)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


def _channels(front: tuple[int, ...], end: tuple[int, ...]) -> tuple[int, int, int]:
    """(axis, p, q) for a channel map between the two shapes; ShapeMismatch where there is none."""
    a, b = channel_axis((1, *front)), channel_axis((1, *end))
    places = lambda shape, axis: shape[: axis - 1] + shape[axis:]  # noqa: E731
    same_places = places(front, a) == places(end, b)
    if a != b or len(front) != len(end) or not (same_places or (a == 1 and len(front) == 3)):
        raise ShapeMismatch(
            f"Activations of shape {front} and {end} share no channel map: maps are resized to maps, but tokens and "
            "vectors need equal places. Choose another pair of layers, or flatten=True for one dense map of all."
        )
    return a, front[a - 1], end[b - 1]


def _parametrise(stitch: Stitch, form: str, rank: int | None, mask: Tensor | None) -> None:
    q, p = stitch.weight.shape
    if form not in FORMS:
        raise UnknownName(f"Unknown form of stitch {form!r}. {suggest(form, FORMS)}")
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
        return self.end(stitched, images) if self.keep_skip else self.end(stitched)
