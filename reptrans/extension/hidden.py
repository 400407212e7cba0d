"""The intermediate category: make hidden layers of a new network dissimilar (or similar) to those of old ones.

Losses say how similar the new activations and their approximation are: for each measure, what either side minimises. z,
the new network's activations, and a, their approximation, are (n, c, h, w). Correlations and R² are per channel, over
all n*h*w values, then averaged over channels; a channel without variance has correlation 0. All are free of NaN at
constant features, with finite gradients. Source: Wald et al. 2023 ("Exploring new ways: enforcing representational
dissimilarity to learn new features and reduce error consistency"), authors' code; deviations are named.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, check_whole, choose
from reptrans.extension.condition import Condition, check_numbers, labelled, reverse_gradient
from reptrans.layers import end, front, record
from reptrans.layers.values import answer, chosen, replaced
from reptrans.matching.transforms import at_least_single, unit
from reptrans.randomness import drawing
from reptrans.similarity import linear_cka
from reptrans.training import evaluating
from reptrans.training.batches import Batch, answers_of

#: What `Hidden` does with the approximation of the old activations.
MODES = ("extension", "reversal", "subtraction", "unusable")


class Hidden(Condition):
    """Knowledge Extension of old networks, or with `sign=1` distillation of their features, at named layers.

    With z the new activations, a = A(old activations) their approximation and sg the stop-gradient, in mode

        "extension"    w_ce CE + w_sim S_a(sg z, a) + w_dis S_n(z, sg a)
        "reversal"     w_ce CE + w_sim S_a(old, A(GRL z))
        "subtraction"  w_ce CE(z - sg a goes on in place of z) + w_sim S_a(sg z, a)
        "unusable"     w_ce CE + w_sim CE(old network's tail(A(GRL z)))

    GRL reverses the gradient and multiplies it by w_dis. S_n and S_a are the two sides of `loss` (see
    `hidden_losses`); with sign 1, S_n is S_a and nothing is reversed. One backward pass serves all. In the modes with
    GRL the loss of the new network has no lower bound, as is usual for reversed gradients.

    Arguments: `layers`, names, or {new layer: old layer}; `example`, images that the shapes are learned from;
    `depth`, `kernel` of the approximators (None: depth 0 for lin_cka and l2_rel_rep in mode "extension", else 1);
    `aggregate`, one approximator for all old networks' channels together, else one for each, and the mean;
    `start`, share of the training before w_dis acts, `ramp`, share over which it then grows along half a cosine;
    `alpha`, `top` as in `hidden_losses`; `seed` of the approximators. Old maps of another size are resized to the new
    ones (new to old in mode "unusable"). Terms are means over layers.
    Raises LayerNotFound, UnknownName, BadValue, ShapeMismatch, CannotCut ("unusable").
    Source: Wald et al. 2023, authors' code. Deviations: start and ramp are shares of the training, not epochs and
    10,000 steps; lin_cka without approximator is the default.
    """

    def __init__(
        self,
        new: nn.Module,
        olds: Sequence[nn.Module],
        layers: str | Sequence[str] | dict[str, str],
        loss: str = "lin_cka",
        *,
        example: Tensor,
        mode: str = "extension",
        sign: int = -1,
        depth: int | None = None,
        kernel: int = 1,
        aggregate: bool = True,
        w_ce: float = 1.0,
        w_sim: float = 1.0,
        w_dis: float = 1.0,
        start: float = 0.0,
        ramp: float = 0.0,
        alpha: float = 1.0,
        top: int = 1000,
        seed: int = 0,
    ):
        layers = {layers: layers} if isinstance(layers, str) else layers
        pairs = dict(layers) if isinstance(layers, dict) else {name: name for name in layers}
        _check(pairs, loss, mode, sign)
        check_numbers(w_ce=w_ce, w_sim=w_sim, w_dis=w_dis, start=start, ramp=ramp)
        check_numbers(1e-6, alpha=alpha, top=top)
        if depth is None:
            depth = 0 if mode == "extension" and loss in ("lin_cka", "l2_rel_rep") else 1
        chosen = {
            "layers": pairs, "loss": loss, "mode": mode, "sign": sign, "depth": depth, "kernel": kernel,
            "aggregate": aggregate, "w_ce": w_ce, "w_sim": w_sim, "w_dis": w_dis, "start": start, "ramp": ramp,
            "alpha": alpha, "top": top, "seed": seed,
        }  # fmt: skip
        super().__init__(new, olds, example, chosen)
        self.layers, self.loss = pairs, hidden_losses(alpha, top)[loss]
        self._fronts = tuple(front(old, list({own_name(old, o) for o in pairs.values()})) for old in self.olds)
        if mode == "unusable":
            self._tails = [{n: end(old, o, example=example) for n, o in pairs.items()} for old in self.olds]
        with evaluating(new), torch.no_grad():
            seen = [run(example) for run in self._fronts]
            self._ndims = [{n: each[own_name(old, o)].ndim for n, o in pairs.items()}
                           for old, each in zip(self.olds, seen, strict=True)]  # fmt: skip
            self._build(self._new_activations(example)[1], self._old_activations(example))

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms and figures of a batch, `progress` in [0, 1) being the share of the training done."""
        s = self.settings
        olds = self._old_activations(batch.images)
        logits, new = (self._subtracted if s["mode"] == "subtraction" else self._new_activations)(batch.images, olds)
        terms, figures = labelled(logits, batch.labels, s["w_ce"])
        force = s["w_dis"] * half_cosine(progress, s["start"], s["ramp"])
        with torch.autocast(logits.device.type, enabled=False):
            if s["mode"] in ("extension", "subtraction"):
                return self._min_max(new, olds, force, terms, figures)
            found = [self._adversary(name, new[name], olds[name], force, batch.labels) for name in self.layers]
        return terms | {s["mode"]: s["w_sim"] * _mean(found)}, figures

    def predictor(self) -> nn.Module:
        return Subtracted(self) if self.settings["mode"] == "subtraction" else self.new

    def approximations(self, name: str, olds: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """What stands for the old activations at the new layer `name`: one (n, c, h, w), or one for each network."""
        chains = self.approximators[_key(name)]
        return [a(old) for a, old in zip(chains, self._gathered(olds, size), strict=True)]

    def _min_max(self, new: dict, olds: dict, force: float, terms: dict, figures: dict) -> tuple[dict, dict]:
        s, approximate, moving, close_to = self.settings, [], [], {}
        side = self.loss.new if s["sign"] < 0 else self.loss.approximator
        for name, z in new.items():
            close = self.approximations(name, olds[name], z.shape[2:])
            approximate += [self.loss.approximator(z.detach(), a) for a in close if s["depth"]]
            each = [side(z, a.detach()) for a in close] if s["mode"] == "extension" else []
            moving += each
            close_to |= {f"{'alike' if s['sign'] < 0 else 'apart'}_{name}": _mean(each).detach()} if each else {}
        terms = terms | ({"approximation": s["w_sim"] * _mean(approximate)} if approximate else {})
        return terms | ({"extension": force * _mean(moving)} if moving else {}), figures | close_to

    def _adversary(self, name: str, z: Tensor, olds: list[Tensor], force: float, labels: Tensor) -> Tensor:
        z = reverse_gradient(z, -self.settings["sign"] * force)
        heads = self.approximators[_key(name)]
        if self.settings["mode"] == "reversal":
            olds = self._gathered(olds, z.shape[2:])
            return _mean([self.loss.approximator(old, head(z)) for head, old in zip(heads, olds, strict=True)])
        _ = self.olds  # back to eval mode, for the tails share their modules
        found = []
        for head, old, tail, ndims in zip(heads, olds, self._tails, self._ndims, strict=True):
            inner = head(resized(z, old.shape[2:]))
            found.append(F.cross_entropy(answer(tail[name](from_maps(inner, ndims[name]))), labels))
        return _mean(found)

    def _gathered(self, olds: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Old maps at the new size; with aggregate their channels side by side, as one."""
        olds = [resized(old, size) for old in olds]
        return [torch.cat(olds, 1)] if self.settings["aggregate"] else olds

    def _new_activations(self, images: Tensor, _: object = None) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits, {layer: activations as maps}) of the new network."""
        with record(self.new, list(self.layers), clone=True, detach=False) as seen:
            logits = answers_of(self.new, images)
        return logits, {name: as_maps(seen[name], name) for name in self.layers}

    def _old_activations(self, images: Tensor) -> dict[str, list[Tensor]]:
        """{new layer: activations of each old network as maps}."""
        _ = self.olds  # back to eval mode, for the fronts share their modules
        with torch.no_grad():
            seen = [run(images) for run in self._fronts]
        named = list(zip(self._olds, seen, strict=True))
        return {n: [as_maps(each[own_name(old, o)], o) for old, each in named] for n, o in self.layers.items()}

    def _subtracted(self, images: Tensor, olds: dict[str, list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits with the approximation taken off at every layer, {layer: activations before that})."""
        new = {}

        def take_off(name: str, module: nn.Module, inputs: tuple, output: object) -> object:
            value = chosen(output, who=f"layer {name!r}")
            new[name] = z = as_maps(value, name).clone()
            with torch.autocast(z.device.type, enabled=False):
                close = _mean(self.approximations(name, olds[name], z.shape[2:])).detach()
            return replaced(output, "", value - from_maps(close, value.ndim).to(value.dtype))

        with ExitStack() as hooks:
            for name in self.layers:
                layer = self.new.get_submodule(name)
                # First in line, so that whoever records the layer sees what goes on from it.
                hooks.callback(layer.register_forward_hook(partial(take_off, name), prepend=True).remove)
            return answers_of(self.new, images), new

    def _build(self, new: dict[str, Tensor], olds: dict[str, list[Tensor]]) -> None:
        s, self.approximators = self.settings, nn.ModuleDict()
        backwards = s["mode"] in ("reversal", "unusable")
        if s["mode"] != "extension" and s["depth"] == 0:
            raise BadValue(f"depth is 0, but mode {s['mode']!r} needs an approximator. Choose depth=1.")
        with drawing(s["seed"]):
            for name, z in new.items():
                widths = [old.shape[1] for old in olds[name]]
                widths = [sum(widths)] if s["aggregate"] and s["mode"] != "unusable" else widths
                if s["depth"] == 0 and self.loss.per_channel and any(width != z.shape[1] for width in widths):
                    raise ShapeMismatch(
                        f"layer {name!r} has {z.shape[1]} channels, the old activations "
                        f"{' and '.join(map(str, widths))}, and {s['loss']} compares channel by channel. Choose "
                        "depth=1 for an approximator, or lin_cka."
                    )
                ways = [(z.shape[1], w) if backwards else (w, z.shape[1]) for w in widths]
                chains = nn.ModuleList(approximator(*way, s["depth"], s["kernel"]) for way in ways)
                self.approximators[_key(name)] = chains.to(z.device, z.dtype)


class Subtracted(nn.Module):
    """The network `new` with the approximation of the old ones taken off its activations."""

    def __init__(self, condition: Hidden):
        super().__init__()
        self.new, self.condition = condition.new, condition

    def forward(self, images: Tensor) -> Tensor:
        return self.condition._subtracted(images, self.condition._old_activations(images))[0]


def own_name(net: nn.Module, name: str) -> str:
    """The name that a layer of the trained network has in `net`, which may be wrapped."""
    return f"new.{name}" if isinstance(net, Subtracted) else name


def half_cosine(progress: float, start: float, ramp: float) -> float:
    """0 before `start`, (1 - cos(pi (progress - start) / ramp)) / 2 over the next `ramp`, then 1."""
    if progress < start:
        return 0.0
    return 1.0 if progress >= start + ramp else (1 - math.cos(math.pi * (progress - start) / ramp)) / 2


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ModuleDict takes no dots


def _mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values) / len(values)


def _check(layers: dict[str, str], loss: str, mode: str, sign: int) -> None:
    if not layers:
        raise BadValue("layers is empty; name one layer at least, one from the middle of the network, say.")
    for what, given, possible in (("loss", loss, hidden_losses()), ("mode", mode, MODES)):
        choose(given, possible, f"there is no {what} {{}} of hidden layers")
    if sign not in (-1, 1):
        raise BadValue(f"sign is {sign!r}; it must be -1 (away from the old networks) or 1 (towards them).")
    if sign == 1 and mode == "subtraction":
        raise BadValue("sign is 1, but mode 'subtraction' only takes the old features away. Choose mode='extension'.")


class Bias(nn.Module):
    """Adds a learned number to each channel; 0 at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def approximator(source: int, target: int, depth: int = 1, kernel: int = 1) -> nn.Sequential:
    """bias, (depth - 1) times [conv source -> source, BatchNorm, ReLU], conv source -> target without bias, bias.

    Maps (n, source, h, w) to (n, target, h, w); depth 1 is linear, depth 0 is nothing at all. `kernel`: odd.
    Source: Wald et al. 2023, authors' code; the inner convolutions too have no bias, which BatchNorm would remove.
    """
    check_whole("depth", depth, 0, more="; 0 is no approximator.")
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise BadValue(f"kernel is {kernel!r}; it must be odd: 1, 3 or 5, say.")
    if depth == 0:
        return nn.Sequential()
    layers: list[nn.Module] = [Bias(source)]
    for _ in range(depth - 1):
        layers += [_conv(source, source, kernel), nn.BatchNorm2d(source), nn.ReLU()]
    return nn.Sequential(*layers, _conv(source, target, kernel), Bias(target))


def as_maps(x: Tensor, layer: str = "") -> Tensor:
    """Maps (n, c, h, w) as they are; (n, c) as (n, c, 1, 1); tokens (n, t, c) as (n, c, t, 1); float32 or more."""
    if x.ndim == 3:
        x = x.transpose(1, 2)
    if not 2 <= x.ndim <= 4:
        raise ShapeMismatch(
            f"layer {layer!r} gives {tuple(x.shape)}; possible are maps (n, c, h, w), tokens (n, t, c), vectors (n, c)."
        )
    return at_least_single(x[(..., *[None] * (4 - x.ndim))])


def from_maps(x: Tensor, ndim: int) -> Tensor:
    """Maps back as activations of `ndim` axes: what `as_maps` had before."""
    return x if ndim == 4 else x.flatten(2).mT if ndim == 3 else x.flatten(1)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, c, h, w) at another height and width: linear in both, averaging where it shrinks."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _conv(source: int, target: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(source, target, kernel, padding=kernel // 2, bias=False)


Side = Callable[[Tensor, Tensor], Tensor]


class Loss(NamedTuple):
    """`new(z, a)`: small where they differ. `approximator(z, a)`: small where they agree. Scalars."""

    new: Side
    approximator: Side
    per_channel: bool = True


def correlation(z: Tensor, a: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Pearson's r of each channel (c,), in [-1, 1]; with `chosen` (c, n*h*w), over the chosen values alone."""
    first, second = (unit(_centred(_channels(v), chosen)) for v in (z, a))
    return (first * second).sum(1)


def squared_correlation(z: Tensor, a: Tensor, top: int | None = None) -> Tensor:
    """mean_c r²_c, in [0, 1]; with `top`, over the largest values, see `top_values`."""
    chosen = None if top is None else _channels(top_values(z, a, top))
    return _mean_of_channels(correlation(z, a, chosen).square(), chosen)


def explained_variance(z: Tensor, a: Tensor, alpha: float = 1.0, top: int | None = None) -> Tensor:
    """mean_c CELU_alpha(R²_c), R²_c = 1 - |z_c - a_c|² / (|z_c - mean|² + 1e-4), in (-alpha, 1]; `top` as above.

    Deviation: the authors' code takes alpha and leaves it out.
    """
    chosen = None if top is None else _channels(top_values(z, a, top))
    return _mean_of_channels(F.celu(_r2(_channels(z), _channels(a), chosen), alpha), chosen)


def linear_cka_of_pixels(z: Tensor, a: Tensor) -> Tensor:
    """Biased linear CKA, pixels as examples and channels as features, in [0, 1]; 0 at constant features."""
    value = linear_cka(*(v.movedim(1, -1).flatten(0, -2) for v in (z, a)))
    return value if value.requires_grad or not value.isnan() else z.sum() * 0 + a.sum() * 0


def relative_representation_distance(z: Tensor, a: Tensor) -> Tensor:
    """Mean squared difference of the two (n, n) matrices of cosines between examples, in [0, 4]."""
    first, second = (F.normalize(v.flatten(1), eps=1e-8) for v in (z, a))
    return (first @ first.T - second @ second.T).square().mean()


def top_values(z: Tensor, a: Tensor, k: int = 1000) -> Tensor:
    """True at the k largest absolute values of each example of z, and at those of a: (n, c, h, w).

    Deviation: the authors' correlation takes both sides twice when there are as many of each.
    """
    chosen = torch.zeros_like(z, dtype=torch.bool).flatten(1)
    for v in (z, a):
        largest = v.detach().abs().flatten(1).topk(min(k, v[0].numel()), dim=1).indices
        chosen.scatter_(1, largest, True)
    return chosen.view_as(z)


def hidden_losses(alpha: float = 1.0, top: int = 1000) -> dict[str, Loss]:
    """Every loss by name, of new activations z and approximations a of the old ones, with r their correlation by
    channel.

        name          s, what the new network minimises  the approximator
        l1_corr       mean |r|, [0, 1]                   1 - s
        l2_corr       mean r², [0, 1]                    1 - s
        wl1_corr      Σ w |r|, w: z's share of deviation Σ w (1 - |r|)
        log_corr      mean log clip(r), [-16.1, 0]       mean log clip(1 - r)
        exp_var       mean CELU(R²), (-alpha, 1]         -s
        topk_exp_var  the same on the largest values     -s
        topk_l2_corr  mean r² on the largest values      1 - s
        lin_cka       CKA of pixels, [0, 1]              1 - s
        l2_rel_rep    -(squared distance of cosines)     -s

    `alpha` bounds R² from below; `top`: so many largest values of each example, of z and of a. The authors' names are
    these without underscores: L1Corr, WL1Corr, TopkExpVar, LinCKA, L2RelRep. log_corr clips to [1e-7, 1 - 1e-7], so
    that negative r has no gradient. wl1_corr does not differentiate w.
    """
    return {
        "l1_corr": _one_minus(lambda z, a: correlation(z, a).abs().mean()),
        "l2_corr": _one_minus(squared_correlation),
        "wl1_corr": Loss(_weighted, lambda z, a: _share(z).sum() - _weighted(z, a)),
        "log_corr": Loss(
            lambda z, a: _log(correlation(z, a)).mean(), lambda z, a: _log(1 - correlation(z, a)).mean()
        ),
        "exp_var": _minus(partial(explained_variance, alpha=alpha)),
        "topk_exp_var": _minus(partial(explained_variance, alpha=alpha, top=top)),
        "topk_l2_corr": _one_minus(partial(squared_correlation, top=top)),
        "lin_cka": _one_minus(linear_cka_of_pixels)._replace(per_channel=False),
        "l2_rel_rep": Loss(
            lambda z, a: -relative_representation_distance(z, a), relative_representation_distance, False
        ),
    }  # fmt: skip


def _one_minus(s: Side) -> Loss:
    return Loss(s, lambda z, a: 1 - s(z, a))


def _minus(s: Side) -> Loss:
    return Loss(s, lambda z, a: -s(z, a))


def _weighted(z: Tensor, a: Tensor) -> Tensor:
    return (_share(z) * correlation(z, a).abs()).sum()


def _share(z: Tensor) -> Tensor:
    deviation = _centred(_channels(z.detach())).norm(dim=1)
    return deviation / deviation.sum().clamp_min(torch.finfo(z.dtype).tiny)


def _log(r: Tensor) -> Tensor:
    return r.clamp(1e-7, 1 - 1e-7).log()


def _mean_of_channels(values: Tensor, chosen: Tensor | None) -> Tensor:
    """The mean over channels, those that have a chosen value."""
    there = None if chosen is None else chosen.any(1)
    return values.mean() if there is None else torch.where(there, values, 0).sum() / there.sum()


def _channels(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (c, n*h*w)."""
    return x.transpose(0, 1).flatten(1)


def _centred(x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Rows without their means; with `chosen`, means over the chosen ones and 0 elsewhere."""
    x = x - x[:, :1].detach()  # so that a constant row becomes exactly 0
    if chosen is None:
        return x - x.mean(1, keepdim=True)
    mean = (x * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp_min(1)
    return (x - mean) * chosen


def _r2(x: Tensor, y: Tensor, chosen: Tensor | None = None) -> Tensor:
    rest = (x - y).square() if chosen is None else (x - y).square() * chosen
    return 1 - rest.sum(1) / (_centred(x, chosen).square().sum(1) + 1e-4)
