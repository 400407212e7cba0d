"""Two frozen networks, stitched at some layers by all matchings asked for: one row for each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from reptrans.data import Dataset, Loader, Split, TextDataset
from reptrans.data.loader import training_loader
from reptrans.data.split import balanced
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.experiments.parameters import (
    Count,
    NotNegative,
    Optimiser,
    Positive,
    Precision,
    Schedule,
    Trained,
    Weight,
)
from reptrans.layers import channel_axes, end, front
from reptrans.notebook import names
from reptrans.randomness import generator_of
from reptrans.similarity import Moments, linear_cka
from reptrans.stitching.direct import (
    BY_CHANCE,
    DIRECT,
    INITS,
    MASKS,
    AffineMap,
    check_init,
    departure,
    direct_matching,
    initial_map,
    mask_matrix,
)
from reptrans.stitching.frozen import SHARE, Seen, collect_moments, logits_of, recognised, rows_of
from reptrans.stitching.stitch import FORMS, Stitch, StitchedNetwork, stitch_size
from reptrans.stitching.task import TARGETS, needs_parents, train_stitch
from reptrans.training import Plan, accuracy, classification_loss
from reptrans.training.batches import answers_of, checked_weights


class StitchingSettings(Trained):
    """The source's options under the source's names, and its defaults but for the start, which is solved here.

    Training: `epochs`, `lr`, `optimiser`, `weight_decay`, `schedule`, `batch_size`, `augment`. The stitch: `init`,
    `mask`, `form` with `rank`, `flatten`, `batch_norm`, `keep_skip`. Its loss: `target`, `temperature`, `l1`,
    `cka_reg`. Closed forms beside it: `direct`, a comma list of kinds of `direct_matching`, or all, with `rank` and
    `ridge`. `memory`: GiB that activations computed once may take; `cka_images`: images for CKA at the cut.
    """

    direct: str = "all"
    init: Literal[INITS] = "ps_inv"
    mask: Literal[MASKS] = "identity"
    form: Literal[FORMS[:-1]] = "free"
    rank: int = Field(4, ge=1, le=100_000)
    ridge: Weight = 1e-3
    flatten: bool = False
    batch_norm: bool = False
    keep_skip: bool = False
    target: Literal[TARGETS] = "hard"
    temperature: Positive = 1.0
    l1: Weight = 0.0
    cka_reg: float = 0.0
    epochs: NotNegative = 30
    lr: Positive = 1e-3
    optimiser: Optimiser = "adam"
    weight_decay: Weight = 0.0
    schedule: Schedule = "steps"
    batch_size: Count = 128
    cka_images: int = Field(2000, ge=4)
    memory: Weight = 4.0
    dtype: Precision = "float32"

    @field_validator("direct")
    @classmethod
    def _are_known(cls, text: str) -> str:
        names(text, DIRECT)
        return text

    @model_validator(mode="after")
    def _agree(self) -> "StitchingSettings":
        if self.mask != "identity" and self.form != "free":
            raise ValueError(f"mask {self.mask!r} and form {self.form!r} exclude each other; leave one at its default")
        if self.mask != "identity" and self.init not in ("ps_inv", "random", "ones-zeros"):
            raise ValueError(f"init {self.init!r} puts weights where mask {self.mask!r} has none; take ps_inv, random "
                             "or ones-zeros")  # fmt: skip
        return self

    @property
    def needs_moments(self) -> bool:
        """Whether any closed form is asked for: as a result, a start, a mask, or the statistics of a batch norm."""
        chance = self.init in BY_CHANCE and self.mask in ("identity", "random-permutation")
        return not chance or self.batch_norm or bool(self.direct_kinds)

    @property
    def direct_kinds(self) -> list[str]:
        """The closed forms asked for."""
        return names(self.direct, DIRECT)

    @property
    def uses_rank(self) -> bool:
        ranked = {"reduced rank", "sparse"} & set(self.direct_kinds)
        return bool(ranked) or self.init in ("reduced-rank", "sparse") or self.form == "low rank"

    @property
    def starts_from_least_squares(self) -> bool:
        return (self.init, self.mask, self.form) == ("ps_inv", "identity", "free")

    def plan(self, seed: int) -> Plan:
        return super().plan(seed, optimiser=self.optimiser, portable=False)


_MOST_FLAT = 8192  # features of both sides together; their moments are this number squared, in float64
_MOST_WEIGHTS = 2**28  # of one stitch: 2 GiB in float64, and as much again for each moment of its optimiser


@dataclass
class Stitched:
    """What one pair of layers gave: `rows`, one for each matching; `maps`, matching -> weight (out, in) and bias;
    `history`, a row for each epoch; `network`, the stitched network after training."""

    rows: pd.DataFrame
    maps: dict[str, dict[str, Tensor]]
    history: pd.DataFrame
    network: StitchedNetwork


def _checked_pairs(pairs: object) -> list[tuple[str, str]]:
    """(front layer, end layer) each. Raises BadValue."""
    listed = isinstance(pairs, (list, tuple)) and len(pairs) > 0
    for pair in pairs if listed else [pairs]:
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(name, str) for name in pair)
        if not (listed and whole):
            raise BadValue(
                f"a pair of layers is {pair!r}. Give the front's and the end's layer, ('bn3', 'bn3') say; Stitching "
                "takes a list of such pairs."
            )
    return [tuple(pair) for pair in pairs]


@dataclass(frozen=True, eq=False)
class Cut:
    """One pair of layers: the parts before and behind it, and what of them a stitch must know.

    `own`: what leads to the end network's layer. `shapes`, `axes`: of one example's activations and their channels, in
    front and end. `size`: (p, q) of the stitch.
    """

    front_layer: str
    end_layer: str
    front: nn.Module
    own: nn.Module
    end: nn.Module
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    axes: tuple[int, int]
    flatten: bool

    @property
    def pair(self) -> tuple[str, str]:
        return self.front_layer, self.end_layer

    @property
    def size(self) -> tuple[int, int]:
        return stitch_size(*self.shapes, self.axes, self.flatten)

    def stitch(self, **form) -> Stitch:
        """A new stitch, whose weights are to be set; the caller's random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            return Stitch(*self.shapes, axes=self.axes, flatten=self.flatten, **form)


class Stitching:
    """A front and an end network on one data set, checked and ready to be stitched at `pairs` (front layer, end layer).

    Of a TextDataset, whose networks name no classes, accuracy is the share of the test texts' tokens for which the
    stitched network's answer has its largest cosine with the end network's own answer to the same token.
    Fitted on `dataset.train`, scored on `dataset.test`, and every row says so. Both networks are frozen and taken over:
    eval mode, no gradients for their parameters, the settings' dtype and device. What pairs share is computed once: the
    networks' own logits, the moments of all pairs in one pass, and activations as far as the settings' memory allows.
    `seen` shares them with another Stitching of the same networks, data and settings.
    Raises before any compute: LayerNotFound, CannotCut for layers; ShapeMismatch for class counts or activations that
    do not fit; BadValue for settings that contradict each other.
    """

    def __init__(
        self,
        front_net: nn.Module,
        end_net: nn.Module,
        pairs: list[tuple[str, str]],
        dataset: Dataset,
        settings: StitchingSettings | None = None,
        *,
        seed: int = 0,
        seen: Seen | None = None,
    ):
        self.settings = s = settings or StitchingSettings()
        self.dataset, self.pairs, self.seed = dataset, _checked_pairs(pairs), seed
        self.front_net, self.end_net = (self._frozen(net) for net in (front_net, end_net))
        self.seen = Seen(s.memory) if seen is None else seen
        form = s.place
        self.train = training_loader(dataset, s.batch_size, seed, s.augment, **form)
        # On a CPU, activations that stay within the cache; larger ones cost the system more than the arithmetic.
        most = 100 if form["device"].type == "cpu" else 500
        self.test = dataset.loader("test", max(s.batch_size, most), **form)
        self.texts = isinstance(dataset, TextDataset)
        self._check_classes()
        if dataset.multi_label and needs_parents(s.target):
            raise BadValue(
                f"target {s.target!r} is a softmax over classes that exclude each other, but {dataset.name} has "
                "several true labels at once. Choose target='hard'."
            )
        self.cuts = {cut.pair: cut for cut in self._cuts()}
        for cut in self.cuts.values():
            self._check(cut)

    def stitch(self, front_layer: str, end_layer: str, checkpoint: Path | None = None) -> Stitched:
        """Match one of the pairs in every way asked for; `checkpoint` lets interrupted training resume."""
        s, cut, m = self.settings, self.cuts[front_layer, end_layer], self.moments.get((front_layer, end_layer))
        images, is_activations = self._score_set(cut)
        rows, maps = [], {}

        def score(matching: str, network: StitchedNetwork) -> None:
            maps[matching] = network.stitch.dense()
            tail = nn.Sequential(network.stitch, network.end) if is_activations else network
            logits, labels = logits_of(tail.eval(), images, "tokens")
            rows.append({"matching": matching} | self._scores(logits, labels) | self._fit(m, maps[matching]))

        for kind in s.direct_kinds:
            if kind == "identity" and len(set(cut.size)) > 1:
                continue  # where widths differ there is none
            score(kind, self._network(cut, cut.stitch(), direct_matching(m, kind, rank=s.rank, ridge=s.ridge)))
        network = self._start(cut, m)
        if not (s.starts_from_least_squares and "least squares" in maps):
            score("start", network)
        history = pd.DataFrame()
        if s.epochs:
            history = self._train(cut, network, checkpoint)
            score("task loss", network)
        table = pd.DataFrame(rows)
        for column, value in reversed(self._common(cut, m).items()):
            table.insert(0, column, value)
        return Stitched(table, maps, history, network)

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The two networks' own logits on the score set, and its labels."""
        (front_logits, labels), (end_logits, _) = (
            self.seen.logits(net, self.test) for net in (self.front_net, self.end_net)
        )
        return {"front": front_logits, "end": end_logits, "labels": labels}

    @cached_property
    def moments(self) -> dict[tuple[str, str], Moments]:
        """Moments of the fit set for all pairs, from one pass; empty if nothing asked for needs them."""
        if not self.settings.needs_moments:
            return {}
        once = self.train.over(self.dataset.train, shuffle=False, drop_last=False)
        seen = None if self._tells_input else self.seen
        return collect_moments(
            self.front_net, self.end_net, list(self.cuts), once, self.settings.flatten, self._axes, seen
        )

    def _frozen(self, net: nn.Module) -> nn.Module:
        for name, weight in checked_weights(net).named_parameters():
            if weight.is_complex():
                raise BadValue(f"{name} of {type(net).__name__} is complex, and a stitch is a map of real numbers.")
        return net.to(**self.settings.place).eval().requires_grad_(False)

    @cached_property
    def _example(self) -> Tensor:
        two = self.test.plain().over(self.dataset.test.select(torch.arange(min(2, len(self.dataset.test)))))
        return next(iter(two)).images

    def _check_classes(self) -> None:
        if self.texts:
            if self.settings.epochs:
                raise BadValue(
                    f"{self.dataset.name} is text, on which stitches are solved and not trained: choose epochs=0."
                )
            return
        for role, net in (("front", self.front_net), ("end", self.end_net)):
            with torch.no_grad():
                classes = answers_of(net, self._example).shape[-1]
            if classes != self.dataset.num_classes:
                raise ShapeMismatch(
                    f"The {role} network {type(net).__name__} tells {classes} classes apart, but {self.dataset.name} "
                    f"has {self.dataset.num_classes}. Choose the data set it was trained on, or a network with "
                    f"{self.dataset.num_classes} outputs."
                )

    @torch.no_grad()
    def _cuts(self) -> Iterator[Cut]:
        """All pairs, from one pass of each network for the shapes."""
        example, nets = self._example, (self.front_net, self.end_net)
        layers = [sorted({pair[side] for pair in self.pairs}) for side in (0, 1)]
        values = [front(net, named)(example) for net, named in zip(nets, layers, strict=True)]
        self._axes = [channel_axes(net, named, example) for net, named in zip(nets, layers, strict=True)]
        fronts, owns = ({n: front(net, n) for n in named} for net, named in zip(nets, layers, strict=True))
        ends = {n: end(self.end_net, n, keep_skip=self.settings.keep_skip, example=example) for n in layers[1]}
        for f, e in self.pairs:
            shapes = tuple(values[0][f].shape[1:]), tuple(values[1][e].shape[1:])
            axes = self._axes[0][f], self._axes[1][e]
            yield Cut(f, e, fronts[f], owns[e], ends[e], shapes, axes, self.settings.flatten)

    def _check(self, cut: Cut) -> None:
        s, (p, q), front_layer = self.settings, cut.size, cut.front_layer
        if p * q > _MOST_WEIGHTS:
            raise BadValue(
                f"a stitch of {p} → {q} features at {front_layer} has {p * q / 1e9:.1f} billion weights, more than "
                f"{_MOST_WEIGHTS / 1e9:.1f}. Choose a deeper layer, or flatten=False."
            )
        check_init(s.init, p, q, s.mask != "identity", s.form)
        if s.needs_moments and p + q > _MOST_FLAT:
            raise BadValue(
                f"Closed forms between {p} and {q} features at {front_layer} need moments of {p + q} squared numbers; "
                f"at most {_MOST_FLAT} features are taken. Choose a deeper layer, flatten=False, or direct='' with "
                f"init from {', '.join(BY_CHANCE)}."
            )
        if s.uses_rank and s.rank > min(p, q):
            raise BadValue(f"rank {s.rank} is more than the {min(p, q)} channels at {front_layer} allow.")

    def _network(self, cut: Cut, stitch: Stitch, start: AffineMap) -> StitchedNetwork:
        stitch.to(**self.settings.place).set(*(v.to(stitch.bias.device) for v in (start.weight, start.bias)))
        return StitchedNetwork(cut.front, stitch, cut.end, self._tells_input)

    def _start(self, cut: Cut, m: Moments | None) -> StitchedNetwork:
        """The stitch that training starts from."""
        s, generator = self.settings, generator_of(self.seed)
        p, q = cut.size
        mask = mask_matrix(s.mask, p, q, m, generator)
        form = s.form if mask is None else "masked"
        start = initial_map(
            s.init, p, q, moments=m, generator=generator, rank=s.rank, ridge=s.ridge, mask=mask, form=form
        )
        rank = s.rank if form == "low rank" else None
        stitch = cut.stitch(form=form, rank=rank, mask=mask, batch_norm=s.batch_norm)
        network = self._network(cut, stitch, start)
        if s.batch_norm:
            mapped = start.weight.to(m.xx) @ m.xx @ start.weight.to(m.xx).T
            stitch.calibrate(m.mean_x, m.xx.diagonal(), start.weight.to(m.xx) @ m.mean_x + start.bias.to(m.xx),
                             mapped.diagonal())  # fmt: skip
        return network

    def _train(self, cut: Cut, network: StitchedNetwork, checkpoint: Path | None) -> pd.DataFrame:
        s = self.settings
        return train_stitch(
            network, self.train, s.plan(self.seed), target=s.target, parents=(self.front_net, self.end_net),
            temperature=s.temperature, l1=s.l1, cka_reg=s.cka_reg, end_front=cut.own,
            memory=s.memory, front_activations=self._activations(0, cut, self.train), checkpoint=checkpoint,
            label=f"stitch at {cut.front_layer}",
        )  # fmt: skip

    @property
    def _tells_input(self) -> bool:
        """Whether the end is told the input too: what bypasses the layer, or what of a text is padding."""
        return self.settings.keep_skip or self.texts

    def _score_set(self, cut: Cut) -> tuple[Loader, bool]:
        """The score set as the front leaves it (True); with a bypass, or where memory is short, as images."""
        table = self._activations(0, cut, self.test)
        if table is None:
            return self.test, False
        return self.test.over(Split(table, self.test.split.labels)), True

    def _activations(self, side: int, cut: Cut, loader: Loader) -> Tensor | None:
        """What the front (0) or the end network (1) says at its layer of all images, where that can be kept.

        For all pairs in one pass, or, where that is too much, for this one.
        """
        if self._tells_input:
            return None
        net, layer = (self.front_net, self.end_net)[side], cut.pair[side]
        known = self.seen.activations(net, sorted({pair[side] for pair in self.pairs}), loader, SHARE)
        known = known or self.seen.activations(net, [layer], loader)
        return None if known is None else known[layer]

    def _scores(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        wanted, right = self.own["end"], labels
        if self.texts:
            (logits, labels), (wanted, right) = recognised(logits, wanted), recognised(wanted, wanted)
        own, reached = accuracy(wanted, right).item(), accuracy(logits, labels).item()
        same = (logits > 0) == (wanted > 0) if labels.ndim > 1 else logits.argmax(1) == wanted.argmax(1)
        return {
            "accuracy": reached,
            "relative_accuracy": reached / own if own else float("nan"),
            "cross_entropy": classification_loss(logits, labels).item(),
            "agreement": same.double().mean().item(),
        }

    def _fit(self, m: Moments | None, dense: dict[str, Tensor]) -> dict[str, float]:
        """How the map does on the activations themselves, from the fit set's moments."""
        if m is None:
            return {"r2": float("nan"), "departure": float("nan")}
        affine = AffineMap(dense["weight"].to(m.xx), dense["bias"].to(m.xx))
        return {"r2": affine.r2(m), "departure": departure(m, affine)}

    def _some_rows(self, cut: Cut) -> list[Tensor]:
        """Both networks' activations on the images for CKA, (n, features)."""
        tables = [self._activations(side, cut, self.test) for side in (0, 1)]
        if any(table is None for table in tables):
            return rows_of((cut.front, cut.own), self.test, self.settings.cka_images)
        some = balanced(self.test.split.labels, self.settings.cka_images)
        return [table[some.to(table.device)].flatten(1) for table in tables]

    @torch.no_grad()
    def _common(self, cut: Cut, m: Moments | None) -> dict[str, object]:
        """The columns that all rows of a pair share."""
        s, labels = self.settings, self.own["labels"]
        x, y = self._some_rows(cut)
        accuracies = [math.nan, 1.0] if self.texts else [accuracy(self.own[k], labels).item() for k in ("front", "end")]
        return {
            "dataset": self.dataset.name, "front_layer": cut.front_layer, "end_layer": cut.end_layer, "seed": self.seed,
            "init": s.init, "mask": s.mask, "form": s.form, "target": s.target, "epochs": s.epochs,
            "fit_set": "train", "fit_images": len(self.dataset.train), "augment": s.augment,
            "score_set": "test", "score_images": len(self.dataset.test),
            "front_accuracy": accuracies[0], "end_accuracy": accuracies[1],
            "cka": linear_cka(x, y).item(), "cka_images": len(x),
            "cka_channels": m.linear_cka.item() if m is not None else float("nan"),
        }  # fmt: skip
