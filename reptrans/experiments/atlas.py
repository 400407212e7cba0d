"""What a layer is good for, by every experiment of the package that asks about layers: one long table."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TypeVar

import pandas as pd
from pydantic import Field, field_validator
from torch import nn

from reptrans.data import Dataset
from reptrans.data.dataset import smaller
from reptrans.distillation import METHODS, Method, Pair, distill, loaders
from reptrans.errors import BadValue, UnknownName, suggest
from reptrans.experiments.autoencoding import AutoencodingRun, autoencode
from reptrans.experiments.distillation import DistillationRun, Options, make_method
from reptrans.experiments.l2t import L2TRun, train_one
from reptrans.experiments.parameters import DatasetParameters, Keep, Names, Positive, piece
from reptrans.experiments.similarity import LayersCompared, each_pair, rehearse, same_layers
from reptrans.experiments.stitching import StitchingRun, layer_pairs, network_pairs, stitch_networks
from reptrans.l2t import Matching
from reptrans.l2t.matching import both
from reptrans.layers import cuttable_layers
from reptrans.matching import Positions, Teacher
from reptrans.models import build
from reptrans.notebook import Parameters, listed, names
from reptrans.tensorfiles import save_tensors

_Run = TypeVar("_Run", bound=Parameters)


# The usual one, and those that win where the answer is known, see Klabunde et al. 2025 and the notebook "grounded".
WINNERS = "debiased_cka,distance_correlation,knn_jaccard,second_order_cosine,procrustes_angular"


class AtlasRun(LayersCompared):
    """Pairs of networks A and B, the layers, and what is asked of each of them.

    Networks, data, `layers`, `measures`, `fold`, `images`, `epochs` as in LayersCompared, but for `measures` of "",
    which are five that win elsewhere, and `layers` of "all", which leaves out vectors where the student's layers give
    maps, and the reverse. `limit` also bounds the images that stitches are fitted on. `test_images`: evenly spaced ones
    that accuracies are of; 0 takes all. `student`, from `labelled` images of each class and for `student_epochs`: by
    `method` (with `options`, as in DistillationRun, its published weights times `factor`) from one layer of A to the
    last of `student_layers`, and by L2T-ww from all layers of A to all of these. `pictures`: evenly spaced test images,
    recovered from A's layers in `steps` steps.
    """

    image_size: int = Field(0, ge=0)
    front_model: str = "cnn5_w8"
    end_model: str = "cnn5_w8"
    layers: str = "all"
    measures: str = Field("", validate_default=True)
    test_images: int = Field(0, ge=0)
    student: str = "cnn3_w4"
    student_layers: Names = "relu1,relu2,relu3"
    method: str = "sp"
    options: Options = ""
    factor: Positive = 0.1
    labelled: int = Field(5, ge=1)
    student_epochs: int = Field(40, ge=1)
    batch_size: int = Field(25, ge=2)
    pictures: int = Field(4, ge=1, le=1000)
    steps: int = Field(100, ge=1)

    @field_validator("measures", mode="before")
    @classmethod
    def _or_the_winners(cls, text: str) -> str:
        return WINNERS if text == "" else text

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in METHODS:
            raise UnknownName(f"there is no method {name!r}. {suggest(name, METHODS)}")
        return name

    def stitching(self, layer: str) -> StitchingRun:
        """These pairs of networks, to be stitched at `layer`; see `LayersCompared.stitching`."""
        return self._as(LayersCompared, LayersCompared.model_fields).stitching(layer)

    def turned(self) -> "AtlasRun":
        """These pairs of networks with B in front of A."""
        return self.model_copy(update={
            "front_model": self.end_model, "front_checkpoint": self.end_checkpoint,
            "end_model": self.front_model, "end_checkpoint": self.front_checkpoint,
        })  # fmt: skip

    def distillation(self) -> DistillationRun:
        """How students are taught by one layer."""
        return self._as(
            DistillationRun, method=self.method, options=self.options, teacher=self.front_model, student=self.student,
            labelled=self.labelled, epochs=self.student_epochs, batch_size=self.batch_size,
        )  # fmt: skip

    def l2t(self, layers: list[str]) -> L2TRun:
        """How a student learns which of `layers` to match."""
        return self._as(
            L2TRun, source_model=self.front_model, source_layers=listed(layers), model=self.student,
            target_layers=self.student_layers, epochs=self.student_epochs, batch_size=self.batch_size,
        )  # fmt: skip

    def autoencoding(self, weights: str, layers: list[str], test_images: int) -> AutoencodingRun:
        """How images are recovered from `layers` of the network whose weights are in a file."""
        count = min(self.pictures, test_images)
        shown = listed(k * test_images // count for k in range(count))
        return self._as(
            AutoencodingRun, model=self.front_model, weights=weights, pictures=shown, layers=listed(layers),
            regimes="trained", starts=1, steps=self.steps,
        )  # fmt: skip

    def _as(self, kind: type[_Run], shared=(*DatasetParameters.model_fields, "dtype", "device"), **own) -> _Run:
        return kind(**{name: getattr(self, name) for name in shared}, **own)


FEWEST_LAYERS = 4
_STITCHED = {"least squares": "", "task loss": ", trained"}
_STUDENTS = 10_000  # their seeds begin here, so that none has the weights of a teacher, which may be of the same kind


def atlas(p: AtlasRun, dataset: Dataset, keep: Keep) -> pd.DataFrame:
    """Rows of seed, layer, depth, kind, quantity, value, higher_is_better, for every layer of every pair of networks.

    Of kind "cheap", the measures between A's layer and B's of the same name: see `similarity`. Of kind "expensive":
    "stitch A→B" and "stitch B→A", relative accuracy, by least squares, and ", trained" where there are `epochs`;
    "distillation gain", the test accuracy (fraction) of a student taught by the layer, minus that of the same student
    without, from the same weights and batches; "image kept", the correlation in [-1, 1] of images with what is
    recovered of them from A's layer; "pair weight", the λ that L2T-ww gives the layer in its last epoch, mean over
    target layers. `depth` counts A's layers from the input; `higher_is_better`: whether high values mean
    similar layers, as for all that is expensive.
    `keep(name)` gives a path: every finished piece is stored there, and an interrupted run goes on.
    Raises before anything is trained: BadValue for fewer than 4 layers and for methods that look elsewhere than at one
    layer, LayerNotFound, CannotCut, ShapeMismatch for what does not fit.
    """
    layers = check(p, dataset)
    scored = smaller(dataset, test=p.test_images)
    p = _as_files(p.model_copy(update={"layers": listed(layers)}), dataset, keep)

    def once(name: str, make: Callable[..., pd.DataFrame], *given) -> pd.DataFrame:
        return pd.DataFrame(piece(keep(f"{name}.safetensors"), lambda: make(*given).to_dict("records")))

    tables = [once("cheap", _cheap, p, dataset)]
    tables += [_stitched(way, turned, layers, scored, keep) for way, turned in (("A→B", p), ("B→A", p.turned()))]
    for (seed, net, *_), weights in zip(each_pair(p, dataset), names(p.front_checkpoint), strict=True):
        pair = (p, net, _few(p, scored, seed), seed, layers)
        found = {
            "distillation gain": once(f"gains-s{seed}", _gains, *pair, keep(f"students-s{seed}")),
            "image kept": once(f"images-s{seed}", _kept, p.autoencoding(weights, layers, len(dataset.test))),
            "pair weight": once(f"weights-s{seed}", _pair_weights, *pair, keep(f"l2t-s{seed}")),
        }
        tables += [table.assign(seed=seed, quantity=name) for name, table in found.items()]
    expensive = pd.concat(tables[1:]).assign(kind="expensive", higher_is_better=True)
    rows = pd.concat([tables[0], expensive], ignore_index=True)
    depths = {layer: k for k, layer in enumerate(cuttable_layers(net))}
    return rows.assign(depth=rows["layer"].map(depths))[
        ["seed", "layer", "depth", "kind", "quantity", "value", "higher_is_better"]
    ]


def check(p: AtlasRun, dataset: Dataset) -> list[str]:
    """The layers of an atlas, after all that could be refused later was tried on untrained networks."""
    sides = network_pairs(p.stitching(p.layers), dataset)[0][1:]
    front_net, end_net = (side.untrained() for side in sides)
    layers = list(dict.fromkeys(name for name, _ in layer_pairs(p.stitching(p.layers), front_net, end_net)))
    lesson = _Lesson(p, front_net, _few(p, dataset, 0), 0)
    example = next(iter(lesson.train.plain())).images[:2]
    if p.layers == "all":
        sources, targets = both(lesson.student(), lesson.teacher.net, _product(layers, p), example)
        axes = {x.ndim for x in targets.values()}
        layers = [layer for layer in layers if sources[layer].ndim in axes]
    if len(layers) < FEWEST_LAYERS:
        raise BadValue(
            f"{len(layers)} layers are named ({', '.join(layers)}), and a rank correlation needs {FEWEST_LAYERS} at "
            "least. Name more of them."
        )
    network_pairs(p.turned().stitching(p.layers), dataset)
    for layer in layers:
        lesson.method(layer)
    place = {"device": lesson.train.device, "dtype": lesson.plan.dtype}
    rehearse(p, [net.to(**place).eval() for net in (front_net, end_net)], dataset.loader("test", 100, **place))
    Matching(lesson.student(), lesson.teacher.net, _product(layers, p), example)
    return layers


def _product(layers: list[str], p: AtlasRun) -> list[tuple[str, str]]:
    return list(product(layers, names(p.student_layers)))


def _as_files(p: AtlasRun, dataset: Dataset, keep: Keep) -> AtlasRun:
    """The same run with every network of every pair in a file, so that all experiments load the same ones."""
    paths = {"front": [], "end": []}
    for seed, *sides in network_pairs(p.stitching(p.layers), dataset):
        for role, side in zip(paths, sides, strict=True):
            paths[role].append(path := keep(f"{role}-s{seed}.safetensors"))
            if not path.is_file():
                save_tensors(path, dict(side.get().state_dict()))
    files = {f"{role}_checkpoint": listed(found) for role, found in paths.items()}
    return p.model_copy(update=files | {"seeds": len(paths["front"])})


def _cheap(p: AtlasRun, dataset: Dataset) -> pd.DataFrame:
    return same_layers(p, dataset).rename(columns={"measure": "quantity"}).assign(kind="cheap")


def _stitched(way: str, p: AtlasRun, layers: list[str], dataset: Dataset, keep: Keep) -> pd.DataFrame:
    stored = way.replace("→", "-")
    found, _, _ = stitch_networks(p.stitching(listed(layers)), dataset, lambda name: keep(f"{stored}-{name}"))
    found = found[found["matching"].isin(_STITCHED)]
    return pd.DataFrame({
        "seed": found["seed"], "layer": found["front_layer"], "value": found["relative_accuracy"],
        "quantity": "stitch " + way + found["matching"].map(_STITCHED),
    })  # fmt: skip


class _Lesson:
    """One teacher, few labelled images, and for every layer the same fresh student."""

    def __init__(self, p: AtlasRun, net: nn.Module, few: Dataset, seed: int):
        self.p, self.few, self.seed, self.settings = p, few, seed, p.distillation()
        self.plan, device = self.settings.plan(seed), p.place["device"]
        self.train, self.test = loaders(few, p.batch_size, seed, "none", device, self.plan.dtype)
        self.teacher = Teacher(net.to(device, self.plan.dtype), self.train)

    def student(self) -> nn.Module:
        """The untrained student."""
        return build(self.p.student, **self.few.form, seed=_STUDENTS + self.seed).to(self.train.device, self.plan.dtype)

    def method(self, layer: str) -> Method:
        """The method with that layer of the teacher as all its positions."""
        pair = Pair(self.student(), (self.teacher,), _only(names(self.p.student_layers)[-1]), _only(layer))
        method = make_method(self.p.method, pair, self.p.options)
        looked = {tap for stage in method.stages for match in stage.matches for tap in match.teacher_taps}
        if looked != {layer} or method.rounds > 1:
            raise BadValue(
                f"the method {self.p.method!r} looks at {', '.join(sorted(looked)) or 'no layer'} of the teacher, and "
                f"here {layer} alone should teach. Choose another, for instance sp, nst or at."
            )
        return method

    def accuracy(self, method: Method, folder: Path) -> float:
        """The test accuracy of the student after its last epoch."""
        _, rows = distill(
            self.student(), self.teacher, method, self.train, self.plan, factor=self.p.factor,
            watch={"test": self.test}, look_every=self.plan.epochs, folder=folder,
            label=f"{method.name}, seed {self.seed}",
        )  # fmt: skip
        return rows["test_accuracy"].iloc[-1]


def _gains(p: AtlasRun, net: nn.Module, few: Dataset, seed: int, layers: list[str], folder: Path) -> pd.DataFrame:
    lesson = _Lesson(p, net, few, seed)
    plain = lesson.accuracy(METHODS["plain"](None), folder / "plain")
    gains = [lesson.accuracy(lesson.method(layer), folder / layer) - plain for layer in layers]
    return pd.DataFrame({"layer": layers, "value": gains})


def _kept(p: AutoencodingRun) -> pd.DataFrame:
    found = autoencode(p).rows.groupby("layer", sort=False)["correlation"].mean()
    return found.rename("value").reset_index()


def _pair_weights(
    p: AtlasRun, net: nn.Module, few: Dataset, seed: int, layers: list[str], folder: Path
) -> pd.DataFrame:
    settings, targets = p.l2t(layers), names(p.student_layers)
    _, _, rows = train_one(settings, "l2t_ww", net.to(**settings.place), few, _STUDENTS + seed, folder)
    last = rows.iloc[-1]
    return pd.DataFrame({"layer": layers, "value": [last[[f"{s} > {t}" for t in targets]].mean() for s in layers]})


def _few(p: AtlasRun, dataset: Dataset, seed: int) -> Dataset:
    return replace(dataset, train=dataset.train.limit(p.labelled, seed, dataset.classes))


def _only(layer: str) -> Positions:
    return Positions((layer,), (layer,), (layer,), (layer,), layer)
