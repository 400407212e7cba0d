"""One term of a loss between a teacher and a student: d[T_T(F_T), T_S(F_S)] with its weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.matching.connectors import Learned
from reptrans.matching.discrepancies import Distance
from reptrans.matching.transforms import identity
from reptrans.training.evaluation import loss_of

Weight = float | Callable[[float], float]


@dataclass(frozen=True, eq=False)
class Match:
    """The distance of two transformed features, `weight` * d[T_T(F_T), T_S(F_S)].

    `teacher`, `student`: where to look, one tap or several (see `taps`); a transform gets as many tensors.
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
        t = tuple(_wide(teacher[tap]) for tap in self.teacher_taps)
        s = tuple(_wide(student[tap]) for tap in self.student_taps)
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
            return loss_of(_wide(logits), labels)
        counted = counted.to(_wide(logits).dtype)
        return (loss_of(_wide(logits), labels, "none") * counted).sum() / counted.sum().clamp_min(1)


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


def _wide(x: Tensor) -> Tensor:
    # Squares and sums of thousands of bfloat16 numbers would keep two digits.
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
