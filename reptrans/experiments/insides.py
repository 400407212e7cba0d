"""What two networks are made of: which layers are similar, which can be stitched, and how their weights lie."""

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reptrans.data import Dataset, Loader
from reptrans.errors import ReptransError, ShapeMismatch
from reptrans.experiments.answers import labels_of, paired, share
from reptrans.experiments.sides import Side
from reptrans.layers import channel_axes, end, front
from reptrans.layers.values import answer
from reptrans.merging.align import aligned, check_same_architecture
from reptrans.merging.interpolate import interpolated
from reptrans.merging.repair import reestimated
from reptrans.similarity import MEASURES, Calibrated, Features, compare
from reptrans.stitching.direct import least_squares
from reptrans.stitching.frozen import collect_moments
from reptrans.stitching.stitch import Stitch, stitch_size
from reptrans.training import predict

if TYPE_CHECKING:
    from reptrans.experiments.diff import DiffRun

CLOSE = 0.5  # relative distance of all weights up to which B counts as a descendant of A
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
BEYOND = (-0.5, 1.5)  # of descendants
_PLACE = ("way", "front_layer", "end_layer")


def similar(a: Side, b: Side, p: "DiffRun") -> Calibrated:
    """Layers of A (rows) with layers of B (columns), what chance gives, and intervals; see `compare`."""
    layers, null = (a.layers(p.layers), b.layers(p.layers)), {"null": p.orders}
    if MEASURES[p.measure].needs != "grams":
        null["intervals"] = p.orders
    loaders = [side.loader(most=p.images) for side in (a, b)]
    if a.data is b.data:
        return compare(a.net, b.net, loaders[0], *layers, measure=p.measure, **null)
    stored = [Features.of(s.net, loader, own) for s, loader, own in zip((a, b), loaders, layers, strict=True)]
    return compare(*stored, measure=p.measure, **null)


def beside(effect: pd.DataFrame) -> dict[str, str]:
    """For every row's layer the column's: of the same name where both networks have the same layers, or else the most
    similar one."""
    if list(effect.index) == list(effect.columns):
        return dict(zip(effect.index, effect.index, strict=True))
    return effect.fillna(-np.inf).idxmax(axis=1).to_dict()


def matches(a: Side, b: Side, found: Calibrated) -> pd.DataFrame:
    """A row for each layer of A: layer, `beside` of B, value, chance, effect, p_searched, and low and high."""
    best = beside(found.effect)
    rows = found.rows().rename(columns={"front_layer": "layer", "end_layer": "beside", "mean": "chance"})
    rows = rows[rows["layer"].map(best) == rows["beside"]]
    columns = ["layer", "beside", "value", "chance", "effect", "p_searched", "low", "high"]
    return rows[[name for name in columns if name in rows]].reset_index(drop=True)


def stitches(a: Side, b: Side, found: Calibrated, p: "DiffRun") -> pd.DataFrame:
    """A row for each way and layer: way, front_layer, end_layer, agreement with the end network's own answers, and the
    share of its accuracy that is kept, with low and high: NaN without labels, or where it is not above chance.

    Layers as in `matches`, seen from the front; stitches are solved by least squares on training images.
    """
    if a.data is not b.data:
        raise ShapeMismatch(
            "the two networks take the images in different forms, and a stitched network has one input."
        )
    rows = []
    for one, other, effect in ((a, b, found.effect), (b, a, found.effect.T)):
        rows += _stitched(one, other, list(beside(effect).items()), p)
    return pd.DataFrame(rows)


def unjoined(effect: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """The pairs of layers that should be stitched and that `stitches` has no row of: "A's f → B's e"."""
    there = {(way[0], f, e) for way, f, e in zip(*(rows.get(name, ()) for name in _PLACE), strict=True)}
    wanted = [("A", "B", effect), ("B", "A", effect.T)]
    return [f"{a}'s {f} → {b}'s {e}" for a, b, of in wanted for f, e in beside(of).items() if (a, f, e) not in there]


@torch.no_grad()
def _stitched(one: Side, other: Side, pairs: list[tuple[str, str]], p: "DiffRun") -> list[dict]:
    scored, tails = one.loader(most=p.scored), _tails(one, other, pairs, p)
    fronts, told = front(one.net, sorted({f for f, _ in pairs})), {pair: [] for pair in tails}
    for batch in scored:
        activations = fronts(batch.images)
        for pair, tail in tails.items():
            told[pair].append(answer(tail(activations[pair[0]])).argmax(1).cpu())
    own, labels = predict(other.net, scored)
    classes, own, rows = own.shape[1], own.argmax(1), []
    usable = labels.ndim == 1 and classes == other.data.num_classes and share(own == labels)[1] > 1 / classes
    for (f, e), parts in told.items():
        given = torch.cat(parts)
        row = {"way": f"{one.letter} → {other.letter}", "front_layer": f, "end_layer": e}
        row["agreement"] = (given == own).double().mean().item()
        rows.append(row | _kept(given, own, labels, usable))
    return rows


def _tails(one: Side, other: Side, pairs: list[tuple[str, str]], p: "DiffRun") -> dict[tuple[str, str], nn.Module]:
    """Of each pair of layers that a stitch can join: the stitch and the end."""
    nets, example = (one.net, other.net), one.example
    layers = [sorted({pair[k] for pair in pairs}) for k in (0, 1)]
    axes = tuple(channel_axes(net, names, example) for net, names in zip(nets, layers, strict=True))
    there = [front(net, names)(example) for net, names in zip(nets, layers, strict=True)]
    forms = {(f, e): (there[0][f].shape[1:], there[1][e].shape[1:], (axes[0][f], axes[1][e])) for f, e in pairs}
    forms = {pair: form for pair, form in forms.items() if _fits(*form)}
    moments = collect_moments(*nets, list(forms), one.loader("train", p.fit_images), axes=axes) if forms else {}
    tails = {}
    for pair, (x, y, places) in forms.items():
        solved, stitch = least_squares(moments[pair]), Stitch(x, y, axes=places).to(example)
        stitch.set(solved.weight.to(example), solved.bias.to(example))
        tails[pair] = nn.Sequential(stitch, end(other.net, pair[1], example=example)).eval()
    return tails


def _fits(x: tuple, y: tuple, places: tuple) -> bool:
    try:
        return bool(stitch_size(x, y, places))
    except ShapeMismatch:  # tokens and vectors, say
        return False


def _kept(told: Tensor, own: Tensor, labels: Tensor, usable: bool) -> dict[str, float]:
    """The stitched network's accuracy as a share of the end's, with an interval of the paired difference."""
    if not usable:
        return dict.fromkeys(("share", "low", "high"), math.nan)
    found = paired(told == labels, own == labels)
    return {
        name: 1 + found[of] / found["b"] for name, of in (("share", "difference"), ("low", "low"), ("high", "high"))
    }


@dataclass(frozen=True)
class Weights:
    """B's units in the order of A's: `aligned`, None where that is not known, for the reason `why`; `moved`, a row for
    each layer with weights: layer, before and after the alignment the distance |θ_a − θ_b| / √(|θ_a|² + |θ_b|²), 0 for
    equal weights and 1 for weights at right angles; `apart`, both for all weights together."""

    aligned: nn.Module | None
    why: str
    moved: pd.DataFrame
    apart: tuple[float, float]

    @property
    def close(self) -> bool:
        """Whether the one looks like a descendant of the other, without any alignment."""
        return self.apart[0] < CLOSE


def weights(a: Side, b: Side, p: "DiffRun") -> Weights:
    """How far apart the weights are. Raises ShapeMismatch for two architectures."""
    check_same_architecture(a.net, b.net)
    try:
        images = next(iter(a.loader("train", p.images, p.images))).images
        # By what the units do, and from there by their weights, for those that never do anything.
        other, why = aligned(a.net, aligned(a.net, b.net, images, "activations"), images), ""
    except ReptransError as error:
        other, why = None, str(error)
    nets = [net for net in (b.net, other) if net is not None]
    moved = pd.DataFrame([{"layer": name} | dict(zip(("before", "after"), (_distance(layer, net.get_submodule(name))
                           for net in nets), strict=False)) for name, layer in _weighted(a.net)])  # fmt: skip
    return Weights(other, why, moved, tuple(_distance(a.net, net) for net in nets))


def _weighted(net: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, m) for name, m in net.named_modules() if name and next(m.parameters(recurse=False), None) is not None
    ]


def _distance(one: nn.Module, other: nn.Module) -> float:
    x, y = (torch.cat([v.detach().double().flatten() for v in net.parameters()]) for net in (one, other))
    length = (x.square().sum() + y.square().sum()).sqrt()
    return float((x - y).norm() / length) if length else 0.0


def line(a: Side, b: Side, found: Weights, p: "DiffRun") -> pd.DataFrame:
    """Rows of alignment, share t, class ("all" or its name), accuracy, and of "all" cross_entropy, on the straight line
    A + t (B − A), with B as it is ("none") and aligned; batch norms are estimated again between the ends. Beyond the
    ends too where B is close to A: there B − A is a task vector."""
    labels_of(a)  # without which there is no accuracy
    rows, scored = [], a.loader(most=p.scored)
    for alignment, other in (("none", b.net), ("aligned", found.aligned)):
        shares = (*SHARES, *(BEYOND if found.close and alignment == "none" else ()))
        for t in sorted(shares) if other is not None else ():
            net = a.net if t == 0 else other if t == 1 else _mixed(a, other, t, p)
            rows += _scores(net, scored, a.data, {"alignment": alignment, "share": t})
    return pd.DataFrame(rows)


def _mixed(a: Side, other: nn.Module, t: float, p: "DiffRun") -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "share is")  # the statistics, which are estimated again
        net = interpolated(a.net, other, t)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        return reestimated(net, a.loader("train", p.images))
    return net


def _scores(net: nn.Module, loader: Loader, data: Dataset, key: dict) -> list[dict]:
    """The accuracy on all images, and on those of each class."""
    logits, labels = predict(net, loader)
    right, loss = (logits.argmax(1) == labels).double(), nn.functional.cross_entropy(logits, labels).item()
    rows = [key | {"class": "all", "accuracy": right.mean().item(), "cross_entropy": loss}]
    known = [(name, right[labels == i]) for i, name in enumerate(data.classes)]
    return rows + [key | {"class": name, "accuracy": own.mean().item()} for name, own in known if len(own)]
