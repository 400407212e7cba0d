"""Transforms that are learned, or made of the teacher: built from what one pass of both networks shows.

Nobody types a number of channels: a `Learned` is a recipe, and becomes a module when the shapes are known.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from reptrans.errors import ShapeMismatch


@dataclass(frozen=True)
class Seen:
    """What a recipe may look at: example values at the taps of one match.

    `student`, `teacher`: the values of one batch, after any resizing; `target`: the teacher's after its own transform,
    None while that is being built. `teacher_values()` gives the teacher's for every batch of the training images.
    `made(learned)` is the module of another recipe, built now if it is not yet: so one of them can be a part of the
    other.
    """

    student: tuple[Tensor, ...]
    teacher: tuple[Tensor, ...]
    target: Tensor | None
    teacher_values: Callable[[], Iterator[tuple[Tensor, ...]]]
    made: Callable[["Learned"], nn.Module] | None = None


@dataclass(frozen=True, eq=False)
class Learned:
    """A transform still to be built: `make(seen)` returns the module.

    One `Learned` is one module, in however many matches and stages it stands, so a paraphraser trained in the first
    stage is the one that the second uses. `label` is how tables name it.
    """

    make: Callable[[Seen], nn.Module]
    label: str


def channels(x: Tensor) -> int:
    """The number of channels of maps (n, c, h, w), or of features of a vector (n, d); ShapeMismatch for others."""
    if x.ndim not in (2, 4):
        raise ShapeMismatch(f"a connector joins maps (n, c, h, w) or vectors (n, d), not {tuple(x.shape)}.")
    return x.shape[1]


def conv1x1() -> Learned:
    """A 1x1 convolution with bias (for vectors a linear layer) from the student's channels to the target's."""
    return Learned(lambda seen: affine(seen.student[0], channels(seen.target)), "1x1 conv")


def conv1x1_bn() -> Learned:
    """A 1x1 convolution without bias to the target's channels, weights N(0, 2 / c_out) (He, fan-out), and BN."""

    def make(seen: Seen) -> nn.Module:
        outputs, maps = channels(seen.target), seen.student[0].ndim == 4
        mixing = affine(seen.student[0], outputs, bias=False)
        nn.init.kaiming_normal_(mixing.weight, mode="fan_out", nonlinearity="relu")
        return nn.Sequential(mixing, (nn.BatchNorm2d if maps else nn.BatchNorm1d)(outputs))

    return Learned(make, "1x1 conv + BN")


def if_needed(connector: Learned) -> Learned:
    """Nothing where student and target have equally many channels, else `connector`."""

    def make(seen: Seen) -> nn.Module:
        same = channels(seen.student[0]) == channels(seen.target)
        return nn.Identity() if same else connector.make(seen)

    return Learned(make, f"{connector.label} if needed")


def affine(x: Tensor, outputs: int, *, bias: bool = True) -> nn.Module:
    """A layer that mixes the channels of maps like x, or the features of vectors like x, to `outputs`."""
    if x.ndim == 4:
        return nn.Conv2d(channels(x), outputs, 1, bias=bias)
    return nn.Linear(channels(x), outputs, bias=bias)


def same_activation(target: Tensor) -> nn.Module:
    """A ReLU where the target is nowhere negative, as after a ReLU; else nothing."""
    return nn.ReLU() if bool((target >= 0).all()) else nn.Identity()
