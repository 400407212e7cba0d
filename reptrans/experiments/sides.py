"""Two networks by name or file, and the same images for both: what the notebook on differences compares."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reptrans.checkpoints import SUFFIXES, copy_weights, fitted, read_weights
from reptrans.data import Dataset, Loader, TextDataset
from reptrans.data.split import Split, balanced
from reptrans.errors import BadCheckpoint, BadData, CannotCut, ShapeMismatch, UnknownName
from reptrans.inputs.fronts import fast_front
from reptrans.layers import cuttable_layers
from reptrans.models import build, from_l2t, model_names
from reptrans.models.families import make
from reptrans.tensorfiles import load_tensors
from reptrans.training import predict
from reptrans.training.batches import answers_of

if TYPE_CHECKING:
    from reptrans.experiments.diff import DiffRun


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two networks, called A or B, and the images as it takes them; `most`: test images it answers to."""

    letter: str
    name: str
    net: nn.Module
    data: Dataset
    most: int = 0

    def loader(self, part: str = "test", most: int = 0, size: int = 100) -> Loader:
        """Batches of the part's first images of each class, `most` in all, or of all of them."""
        like = next(self.net.parameters())
        loader = self.data.loader(part, size, device=like.device, dtype=like.dtype)
        return loader.over(loader.split.select(balanced(loader.split.labels, most))) if most else loader

    @cached_property
    def answered(self) -> Split:
        """The test images whose answers are compared."""
        test = self.data.test
        return test.select(balanced(test.labels, self.most)) if self.most else test

    @cached_property
    def logits(self) -> Tensor:
        """(n, k), float64, on the CPU."""
        return predict(self.net, self.loader().over(self.answered))[0].double()

    @cached_property
    def answers(self) -> Tensor:
        return self.logits.argmax(1)

    @property
    def example(self) -> Tensor:
        """Two images, as the network takes them."""
        return next(iter(self.loader(most=2, size=2))).images[:2]

    def layers(self, most: int) -> list[str]:
        """At most so many of the layers where the network can be cut, evenly spaced."""
        known = list(cuttable_layers(self.net, self.example))
        if not known:
            raise CannotCut(f"{self.letter} has no layer that separates its input from its output.")
        spaced = np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int)
        return [known[k] for k in spaced]

    def module(self) -> nn.Module:
        """Images in [0, 1] -> logits, for descents on images."""
        return fast_front(self.net, mean=self.data.mean, std=self.data.std)


def sides(p: "DiffRun", train: bool = True) -> tuple[Side, Side]:
    """A and B, ready; with `train` False a network without a file has its first weights, to see what does not fit.

    Raises UnknownName, BadCheckpoint, BadData, ShapeMismatch and what else loading data and networks raises.
    """
    form = {"image_size": p.image_size_b or p.image_size, "normalise": p.normalise_b or p.normalise}
    known: dict[str, Dataset] = {}
    found = _side(p, "A", p.a, p.seed_a, {}, known, train), _side(p, "B", p.b, p.seed_b, form, known, train)
    for side in found:
        with torch.no_grad():
            answers_of(side.net, side.example)
    return found


def _side(p: "DiffRun", letter: str, text: str, seed: int, form: dict, known: dict, train: bool) -> Side:
    q = p.model_copy(update=form)
    data = _loaded(q, known)
    name, file = _name_and_file(text)
    if file is None:
        net = q.trained(name, data, seed) if train else build(name, **data.form)
        return Side(letter, f"{name} seed {seed}", net.to(**p.place).eval(), data, p.test_images)
    state = read_weights(file)
    state = from_l2t(state) if name in ("", "resnet32_l2t") else state
    if (channels := _channels(state)) not in (0, data.channels):
        data = _loaded(q.model_copy(update={"channels": channels}), known)
    net = _built(name or _network_in(file, state, data.form), state, data.form)
    copy_weights(net, state, Path(file))
    return Side(letter, text, net.to(**p.place).eval(), data, p.test_images)


def _built(name: str, state: dict[str, Tensor], form: dict, build: Callable[..., nn.Module] = build) -> nn.Module:
    """The network `name` for as many classes as the weights say: as long as the last of its weights is theirs."""
    net = build(name, **form)
    head = [f".{name}" for name, _ in net.named_parameters()][-1]
    classes = next((len(v) for n, v in state.items() if f".{n}".endswith(head) and v.ndim), form["num_classes"])
    return net if classes == form["num_classes"] else build(name, **form | {"num_classes": classes})


def _without_memory(name: str, **form) -> nn.Module:
    """One of this package's networks, whose weights have names and shapes alone."""
    with torch.device("meta"):
        return make(name, *form.values(), {})


def _loaded(p: "DiffRun", known: dict[str, Dataset]) -> Dataset:
    """The data set that `p` names, one and the same for both sides if they take the same images."""
    key = repr((p.image_size, p.normalise, p.channels))
    if key not in known:
        known[key] = p.load()
    if isinstance(known[key], TextDataset):
        raise BadData(f"{p.dataset} is text; networks of images are compared here. Of texts, see `compare`.")
    return known[key]


def _name_and_file(text: str) -> tuple[str, str | None]:
    """("", FILE), (NETWORK, FILE) or (NETWORK, None); either may hold an @ of its own."""
    if "@" not in text or Path(text).is_file():
        return ("", text) if text.lower().endswith(SUFFIXES) else (text, None)
    parts = text.split("@")
    ways = [("@".join(parts[:k]), "@".join(parts[k:])) for k in range(1, len(parts))]
    return next((way for way in ways if Path(way[1]).is_file()), ways[-1])


def _channels(state: dict[str, Tensor]) -> int:
    """Channels of the images that the first convolution takes, if they are grey or have colours; else 0."""
    first = next((v.shape[1] for v in state.values() if v.ndim == 4), 0)
    return first if first in (1, 3) else 0


def _network_in(file: str, state: dict[str, Tensor], form: dict) -> str:
    """Which of this package's networks the weights in `file` are of: as it says itself, or by names and shapes."""
    if file.endswith(".safetensors") and (recipe := load_tensors(file)[1].get("recipe")):
        return recipe["model"]
    known: dict[str, str] = {}  # by what they are made of: some have two names
    for name in model_names():
        with suppress(ShapeMismatch, BadCheckpoint):  # for other sizes of images; of other weights
            net = _built(name, state, form, _without_memory)
            fitted(net, state, Path(file))
            known.setdefault(repr(net), name)
    if len(known) == 1:
        return known.popitem()[1]
    if names := " and ".join(known.values()):
        raise UnknownName(f"the weights in {file} fit {names}, which do other things with them. Name one: NAME@{file}.")
    raise UnknownName(
        f"the weights in {file} are of none of this package's networks for images {form['image_size']}. Name theirs: "
        f"NETWORK@{file}, where NETWORK is torchvision/NAME, timm/NAME, hf/TYPE or path/to/file.py:function."
    )
