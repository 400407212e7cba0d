"""One term of a loss between teacher and student, d[T_T(F_T), T_S(F_S)] with its weight, and transforms to be built.

Transforms that are learned, or made of the teacher, are built from what one pass of both networks shows: nobody types a
number of channels. A `Learned` is a recipe, and becomes a module when the shapes are known.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import ShapeMismatch
from reptrans.matching.transforms import Distance, at_least_single, identity
from reptrans.training.evaluation import loss_of


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


Weight = float | Callable[[float], float]


@dataclass(frozen=True, eq=False)
class Match:
    """The distance of two transformed features, `weight` * d[T_T(F_T), T_S(F_S)].

    `teacher`, `student`: where to look, one tap or several (see `tapped`); a transform gets as many tensors.
    `distance(teacher, student)`: a scalar. `teacher_transform`, `student_transform`: callables, or a `Learned`.
    `weight`: a number, or a function of the share of the stage that is done, in [0, 1).
    `resize`: where the maps' sides differ, the larger ones are averaged down to the smaller (see `resized`).
    `who`: which of several teachers, from 0. `name`: of the term in the rows; made from taps and distance if "".
    """

    teacher: str | tuple[str, ...]
    student: str | tuple[str, ...]
    distance: Distance
    teacher_transform: Callable | Learned = identity
    student_transform: Callable | Learned = identity
    weight: Weight = 1.0
    resize: bool = False
    who: int = 0
    name: str = ""

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)

    @property
    def student_taps(self) -> tuple[str, ...]:
        return (self.student,) if isinstance(self.student, str) else tuple(self.student)

    @property
    def title(self) -> str:
        return self.name or f"{label(self.distance)} at {' and '.join(self.student_taps)}"

    def weight_at(self, progress: float) -> float:
        return self.weight(progress) if callable(self.weight) else self.weight

    def values(self, teacher: dict[str, Tensor], student: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], ...]:
        """(teacher's, student's) values at the taps, resized where asked for, in float32 at least."""
        t = tuple(at_least_single(teacher[tap]) for tap in self.teacher_taps)
        s = tuple(at_least_single(student[tap]) for tap in self.student_taps)
        if self.resize:
            t, s = zip(*(resized(a, b) for a, b in zip(t, s, strict=True)), strict=True)
        return t, s


@dataclass(frozen=True)
class CrossEntropy:
    """The task itself: `weight` * cross-entropy of the student's logits with the labels, in nats, mean over images."""

    weight: Weight = 1.0
    title: str = "cross_entropy"

    def weight_at(self, progress: float) -> float:
        return self.weight(progress) if callable(self.weight) else self.weight

    def value(self, logits: Tensor, labels: Tensor, counted: Tensor | None = None) -> Tensor:
        """The mean over all images, or over those that are `counted` (b,), which is 0 where none is."""
        if counted is None:
            return loss_of(at_least_single(logits), labels)
        counted = counted.to(at_least_single(logits).dtype)
        return (loss_of(at_least_single(logits), labels, "none") * counted).sum() / counted.sum().clamp_min(1)


def resized(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of the two sides, by averaging (adaptive average pooling); vectors stay as they are."""
    if teacher.ndim != 4 or student.ndim != 4 or teacher.shape[2:] == student.shape[2:]:
        return teacher, student
    size = tuple(min(a, b) for a, b in zip(teacher.shape[2:], student.shape[2:], strict=True))
    return averaged(teacher, size), averaged(student, size)


def averaged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (n, c, h, w) averaged down to `size`, (h, w)."""
    size = tuple(size)
    windows = [a // b for a, b in zip(maps.shape[2:], size, strict=True)]
    if tuple(w * s for w, s in zip(windows, size, strict=True)) == tuple(maps.shape[2:]):
        return F.avg_pool2d(maps, windows)  # the same, which many students at once are faster with
    return F.adaptive_avg_pool2d(maps, size)


def term_names(losses: Sequence[Match | CrossEntropy]) -> list[str]:
    """A name of its own for every term: its title, numbered where it stands several times."""
    titles = [loss.title for loss in losses]
    numbers = [titles[: place + 1].count(title) for place, title in enumerate(titles)]
    return [f"{t} {k}" if titles.count(t) > 1 else t for t, k in zip(titles, numbers, strict=True)]


def label(part: object) -> str:
    """How tables name a transform or distance."""
    return getattr(part, "label", None) or getattr(part, "__name__", type(part).__name__).replace("_", " ")
