"""The experiment of the layerwise autoencoding notebook: how much of an image does each layer of a network keep?"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from reptrans.checkpoints import load_network, trained
from reptrans.data.load import STATISTICS
from reptrans.errors import BadValue, choose
from reptrans.experiments.parameters import (
    Count,
    DatasetParameters,
    NotNegative,
    Place,
    Positive,
    Thousand,
    Weight,
    named,
)
from reptrans.inputs.fronts import FastFront, as_built, calibrated, fast_front, ladder
from reptrans.inputs.image import Fourier, Pixels, crops, load_pictures, noise
from reptrans.inputs.objective import match, total_variation
from reptrans.inputs.optimise import Inversion, optimise_input
from reptrans.inputs.recovery import aligned_mse, blurred_to, cosine_to_others, triviality, uniqueness_spread
from reptrans.models import build
from reptrans.notebook import names, once, some_names
from reptrans.progress import progress

REGIMES = ("trained", "as built", "calibrated")


class AutoencodingRun(Place, DatasetParameters):
    """A network, trained and not, the layers to be inverted, the images, and how the descent goes.

    `weights`: of the trained network: "dataset", trained here on the data set, once for each draw; "none", no trained
    network; "default" or another name of torchvision's; or the path of a file. `pictures`: as for `load_pictures`.
    `layers`: names, or "auto", the first layer and the outermost blocks. `regimes`: trained, as built, calibrated.
    `draws`: seeds of the weights. `normalise`: with a data set "" is its own statistics, without one, none.
    """

    model: str = "resnet8"
    image_size: NotNegative = 16
    weights: str = "dataset"
    pictures: str = "0,1,2,3"
    layers: str = "auto"
    regimes: named(lambda: REGIMES, "regime") = "trained,as built,calibrated"
    draws: Thousand = 3
    starts: Thousand = 2
    steps: Count = 200
    lr: Positive = 0.05
    variation: Weight = 0.1
    form: Literal["pixels", "fourier"] = "pixels"
    distance: Literal["l1", "l2", "cosine"] = "l1"
    shift: Positive = 0.04

    @field_validator("pictures", "layers", "regimes")
    @classmethod
    def _are_some(cls, text: str) -> str:
        once([int(name) if name.isdecimal() else name for name in some_names(text)])
        return text

    @model_validator(mode="after")
    def _has_networks(self) -> "AutoencodingRun":
        if self.weights == "none" and names(self.regimes) == ["trained"]:
            raise BadValue("weights 'none' and regimes 'trained' leave no network. Choose other weights or regimes.")
        return self


@dataclass
class Autoencoded:
    """`rows`, one for each (network, draw, layer, image, start); `trace`, the same at some steps; `references`
    (n, c, h, w); `results`, {(network, draw, layer): (n, starts, c, h, w)}."""

    rows: pd.DataFrame
    trace: pd.DataFrame
    references: Tensor
    results: dict[tuple[str, int, str], Tensor]


def autoencode(p: AutoencodingRun, folder: Path | None = None) -> Autoencoded:
    """Invert each layer of each network, for every image from every start.

    Columns beside those of `Inversion.rows`: triviality T; spread, between the starts' results (`uniqueness_spread`),
    NaN for one start; m_g_over_m_r, |f(x) - f(a)| over |f(a + n) - f(a)| with noise n of standard deviation `shift`;
    m_i_over_shift, |x - a| / |n|; sensitivity, |f(a + n) - f(a)| / |f(a)|; cosine_other, between the activations of two
    of the images (mean over the others); mse_over_least, the last MSE over the least of the trace; and with a data set
    label_agreement, 1 where a network of another seed gives x the class that it gives a, and blur_agreement, the same
    for a copy of a that is blurred until its aligned MSE is x's.
    Networks trained on the way are kept in `folder`. Raises what its parts do, before any descent.
    """
    bench = _Bench(p, folder)
    tables, traces, results = [], [], {}
    for network, draw, net in progress(bench.networks(), "networks", total=len(names(p.regimes)) * p.draws):
        for layer in bench.layers:
            view = fast_front(net, layer, mean=bench.mean, std=bench.std, precision=bench.precision)
            found = bench.invert(view)
            key = {"network": network, "draw": draw, "layer": layer}
            tables.append(bench.rows(found, view).assign(**key))
            traces.append(bench.by_image(found.trace).assign(**key))
            results[network, draw, layer] = found.images.unflatten(0, (-1, p.starts))
    first = ["network", "draw", "layer", "image", "start"]
    rows, trace = (pd.concat(t, ignore_index=True) for t in (tables, traces))
    return Autoencoded(*(t[first + [c for c in t if c not in first]] for t in (rows, trace)), bench.images, results)


class _Bench:
    """What all inversions of a run share: the images, the starts, the noise, the networks."""

    def __init__(self, p: AutoencodingRun, folder: Path | None):
        self.p, self.folder, (self.device, self.dtype) = p, folder, p.place.values()
        self.precision = "bfloat16" if p.dtype == "bfloat16" else ""
        self.pictures = names(p.pictures)
        self.dataset = p.load() if p.weights == "dataset" or any(n.isdigit() for n in self.pictures) else None
        self.images = self._cast(load_pictures(self.pictures, self.dataset, p.image_size or None))
        self.mean, self.std = self._statistics()
        count, shape = len(self.images), self.images.shape[1:]
        self.start = self._cast(noise(p.starts, shape, dtype=torch.float64)).repeat(count, 1, 1, 1)
        self.targets = self.images.repeat_interleave(p.starts, 0)
        shift = noise(count, shape, seed=1000, mean=0.0, std=p.shift, dtype=torch.float64)
        self.shift = self._cast(shift).repeat_interleave(p.starts, 0)
        self.layers = self._layers()
        self.judge = self._judge()

    def networks(self) -> Iterator[tuple[str, int, nn.Module]]:
        """(regime, draw, network in eval mode) of all asked for; weights that are no draw come once."""
        for regime in names(self.p.regimes):
            if regime == "trained" and self.p.weights == "none":
                continue
            once = regime == "trained" and self.p.weights != "dataset"
            for draw in range(1 if once else self.p.draws):
                yield regime, draw, self._network(regime, draw).to(self.device, self.dtype)

    def invert(self, view: FastFront) -> Inversion:
        with torch.no_grad():
            target = view(self.targets)
        image = (Fourier if self.p.form == "fourier" else Pixels)(self.start)
        prior = (total_variation(self.p.variation),) if self.p.variation else ()
        return optimise_input(
            match(view, target, self.p.distance), image, prior=prior, steps=self.p.steps, lr=self.p.lr,
            reference=self.targets, portable=True,
        )  # fmt: skip

    def by_image(self, table: pd.DataFrame) -> pd.DataFrame:
        """The column row as two, image and start."""
        place = table["row"]
        return table.drop(columns="row").assign(
            image=[self.pictures[i] for i in place // self.p.starts], start=place % self.p.starts
        )

    @torch.no_grad()
    def rows(self, found: Inversion, view: FastFront) -> pd.DataFrame:
        x, a, p = found.images, self.targets, self.p
        there, here, shifted = (view(images).flatten(1) for images in (x, a, a + self.shift))
        m_r = (shifted - here).norm(dim=1)
        spreads = [uniqueness_spread(xs) for xs in x.split(p.starts)]
        least = found.trace.groupby("row")["mse"].min().to_numpy()
        columns = {
            "triviality": triviality(x, a, self.baseline),
            "m_g_over_m_r": (there - here).norm(dim=1) / m_r,
            "m_i_over_shift": (x - a).flatten(1).norm(dim=1) / self.shift.flatten(1).norm(dim=1),
            "sensitivity": m_r / here.norm(dim=1),
            "cosine_other": cosine_to_others(here[:: p.starts]).repeat_interleave(p.starts),
        }
        table = found.rows.assign(**{name: values.double().cpu().numpy() for name, values in columns.items()})
        table["spread"] = [spread for spread in spreads for _ in range(p.starts)]
        table["mse_over_least"] = table["mse"] / least
        return self.by_image(table.assign(**self._agreement(x)))

    @cached_property
    def baseline(self) -> Tensor | None:
        """The mean training image, or None."""
        if not (self.dataset and all(name.isdigit() for name in self.pictures)):
            return None
        return self._cast(self.dataset.train.images.double().mean(0, keepdim=True) / 255)

    def _judge(self) -> nn.Module | None:
        """A network trained from a seed that no other has here."""
        if self.p.weights != "dataset":
            return None
        return fast_front(self._trained(self.p.draws).to(self.device, self.dtype), mean=self.mean, std=self.std)

    def _agreement(self, x: Tensor) -> dict[str, list[float]]:
        if self.judge is None:
            return dict.fromkeys(("label_agreement", "blur_agreement"), [math.nan] * len(x))
        blurred = blurred_to(self.targets, aligned_mse(x, self.targets))
        wanted = self.judge(self.targets).argmax(1)
        same = {name: (self.judge(images).argmax(1) == wanted).double().tolist()
                for name, images in (("label_agreement", x), ("blur_agreement", blurred))}  # fmt: skip
        return same

    def _network(self, regime: str, draw: int) -> nn.Module:
        if regime == "trained":
            return self._trained(draw)
        net = self._built(draw)
        return as_built(net) if regime == "as built" else calibrated(net.to(self.device, self.dtype), self._crowd)

    def _built(self, seed: int) -> nn.Module:
        classes = self.dataset.num_classes if self.dataset else None
        channels, size = self.images.shape[1], tuple(self.images.shape[2:])
        return build(self.p.model, num_classes=classes, in_channels=channels, image_size=size, seed=seed)

    def _trained(self, draw: int) -> nn.Module:
        weights = self.p.weights
        if weights == "dataset":
            return trained(self.p.model, self.dataset, draw, folder=self.folder, device=self.p.device)
        if "." in weights or "/" in weights:
            return load_network(self._built(0), weights).eval()
        return build(self.p.model, weights=weights).eval()

    @cached_property
    def _crowd(self) -> Tensor:
        """64 training images, or 8 crops of each picture, as the network takes them."""
        if self.baseline is not None:
            images = self._cast(self.dataset.train.batch(torch.arange(min(64, len(self.dataset.train)))).double() / 255)
        else:
            images = crops(self.images, 8)
        mean, std = (self._cast(torch.tensor(v)).view(-1, 1, 1) for v in (self.mean or (0.0,), self.std or (1.0,)))
        return (images - mean) / std

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if self.dataset:
            return self.dataset.mean, self.dataset.std
        name = self.p.normalise
        return choose(name, STATISTICS, "there are no statistics of {}") if name else ((), ())

    def _layers(self) -> list[str]:
        net = self._built(0).eval()
        wanted = ladder(net) if self.p.layers == "auto" else names(self.p.layers)
        for layer in wanted:
            fast_front(net, layer)
        if self.p.weights not in ("dataset", "none"):
            self._trained(0)
        return wanted

    def _cast(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)


EXACT, RECOGNISABLE, SMALL, LARGE = 60.0, 0.5, 0.1, 0.5  # dB of PSNR; correlation; relative error D; spread of starts


def claims(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each claim and network: claim, network, measured (in words), held.

    The layers are taken in the order in which the rows name them; "deepest" is the last of them. Thresholds: a copy is
    exact from 60 dB, a picture is wrong below correlation 0.5, D is small below 0.1, a spread large above 0.5.
    Source: the claims of Badger's pages on depth and layerwise autoencoding (blog, 2021 to 2023).
    """
    found = [entry for name, one in rows.groupby("network", sort=False) for entry in _of_one(name, one)]
    parts = dict(list(rows.groupby("network", sort=False)))
    for other in ("as built", "calibrated"):
        if {"trained", other} <= set(parts):
            found += _of_training(parts["trained"], parts[other], other)
    return pd.DataFrame(found, columns=["claim", "network", "measured", "held"])


def _of_one(name: str, rows: pd.DataFrame) -> Iterator[tuple]:
    layers = list(pd.unique(rows["layer"]))
    first, last = (rows[rows["layer"] == layer] for layer in (layers[0], layers[-1]))
    least = first["psnr"].min()
    yield "the first layer is inverted exactly", name, f"least PSNR {min(least, 99):.0f} dB", least >= EXACT
    t = rows.groupby("layer", sort=False)["triviality"].mean()
    yield "depth removes copying", name, f"T from {t.iloc[0]:.2f} to {t.iloc[-1]:.2f}", t.iloc[-1] < t.iloc[0] - 0.1
    passed = ((last["m_g_over_m_r"] < 1) & (last["correlation"] < RECOGNISABLE)).mean()
    told = f"{100 * passed:.0f} % of the searches"
    yield "at the deepest layer m_g < m_r, yet the picture is wrong", name, told, passed > 0.5
    d, spread = last["relative_error"].mean(), last["spread"].mean()
    lost = d < SMALL and spread > LARGE
    yield "the deepest layer is not unique", name, f"D {d:.2f}, spread {spread:.2f}", lost
    rising = (rows["mse_over_least"] > 1.1).mean()
    yield "m_i rises at the end of the descent", name, f"{100 * rising:.0f} % of the searches", rising > 0.5


def _of_training(trained: pd.DataFrame, other: pd.DataFrame, name: str) -> Iterator[tuple]:
    by_layer = [rows.groupby("layer", sort=False) for rows in (trained, other)]
    gain = by_layer[0]["triviality"].mean() - by_layer[1]["triviality"].mean()
    beyond = [rows["label_agreement"].mean() - rows["blur_agreement"].mean() for rows in (trained, other)]
    against = f"trained - {name}"
    yield "training keeps more of the image", against, f"T {gain.mean():+z.2f}, mean over layers", gain.mean() > 0.05
    if pd.notna(beyond[0]):
        told = f"{beyond[0]:.2f} and {beyond[1]:.2f} of the labels beyond a blur"
        yield "training keeps more of what the image means", against, told, beyond[0] > beyond[1] + 0.05
