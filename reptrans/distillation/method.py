"""What a distillation method is: a list of stages, each saying what is minimised, what may move, and for how long."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from torch import Tensor, nn

from reptrans.errors import BadValue, choose
from reptrans.matching import CrossEntropy, Match, Positions, Teacher, label, positions

# What may move, and how the table of methods says it.
TRAIN = {"all": "student", "reached": "layers reached", "new": "next layers", "connectors": "connector"}


@dataclass(frozen=True)
class Stage:
    """One training: the losses whose sum is minimised, over what, for which share of the epochs.

    `train`: which parameters of the student move: "all"; "reached", those that the losses depend on; "new", those of
    them that no earlier stage moved; "connectors", none. Connectors of the losses always move, except the teacher's
    side, which moves only with `train="connectors"`. All else is frozen: no gradient, and batch norm in eval mode.
    `share`: of the plan's epochs, in (0, 1]; the task has all of them, and what comes before it is added.
    `teacher`: its mode, see `Teacher`. `plan`: what the stage sets otherwise
    than the plan ({"optimiser": "adam", "lr": 1e-3}).
    """

    losses: Sequence[Match | CrossEntropy]
    train: str = "all"
    share: float = 1.0
    teacher: str = "eval"
    plan: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose(self.train, TRAIN, "train is {}", BadValue)
        if not 0 < self.share <= 1:
            raise BadValue(f"share is {self.share!r}; it is a share of the epochs, above 0 and at most 1.")

    @property
    def matches(self) -> list[Match]:
        return [loss for loss in self.losses if isinstance(loss, Match)]

    @property
    def answers(self) -> list[Match]:
        """Those of the matches that compare what the networks answer, as kd does."""
        return [match for match in self.matches if "out" in match.student_taps]

    @property
    def scaled(self) -> list[Match]:
        """What a factor of the method's weights multiplies: its matches, but for answers that stand beside others."""
        return [match for match in self.matches if match not in self.answers] or self.answers

    @property
    def student_taps(self) -> list[str]:
        return sorted({tap for match in self.matches for tap in match.student_taps} | {"out"})

    @property
    def teacher_taps(self) -> dict[int, list[str]]:
        """The taps of the teachers that its matches look at, by the teacher's place."""
        return {
            who: sorted({tap for match in self.matches if match.who == who for tap in match.teacher_taps})
            for who in dict.fromkeys(match.who for match in self.matches)
        }

    def __str__(self) -> str:
        what = [label(loss.distance) if isinstance(loss, Match) else "cross-entropy" for loss in self.losses]
        return f"{' + '.join(dict.fromkeys(what))} ({TRAIN[self.train]})"


@dataclass(frozen=True)
class Method:
    """A recipe of distillation, as a value that can print itself.

    `entry`: its number in the survey, None for what is not in it. `zero`: whether its matches are 0 when student and
    teacher are equal and connectors pass everything on. `scale_free`: whether they stay the same when the student's
    features are multiplied by a positive number. `prepare`: makes of (student, teacher) the student that is trained.
    `rounds`: how often all is repeated, each time with the trained student as the teacher of a new one.
    `paper`: its key in the bibliography. `loses`: what the transforms leave out of the teacher's features, the column
    that Heo et al. 2019 add to the comparison of methods.
    """

    name: str
    stages: Sequence[Stage]
    entry: int | None = None
    zero: bool = True
    scale_free: bool = False
    prepare: Callable[[nn.Module, nn.Module], nn.Module] | None = None
    rounds: int = 1
    paper: str = ""
    loses: str = ""

    def row(self) -> dict[str, object]:
        """The method's line in the table of all methods: taps, transforms, distance and stages as they are."""
        matches = list(dict.fromkeys(match for stage in self.stages for match in stage.matches))
        return {
            "entry": "" if self.entry is None else str(self.entry),
            "method": self.name,
            "teacher transform": _all(label(m.teacher_transform) for m in matches),
            "student transform": _all(label(m.student_transform) for m in matches),
            "position (student)": _all(" × ".join(m.student_taps) for m in matches),
            "distance": _all(label(m.distance) for m in matches),
            "stages": " → ".join(_counted(map(str, self.stages))) + (f", {self.rounds} rounds" * (self.rounds > 1)),
        }


@dataclass(frozen=True)
class Pair:
    """Student and teachers with their usual positions: what a method is made for.

    `teachers` are all of one architecture, or at least have the first one's taps.
    """

    student: nn.Module
    teachers: tuple[Teacher, ...]
    of_student: Positions
    of_teacher: Positions

    @classmethod
    def of(cls, student: nn.Module, teachers: Teacher | Sequence[Teacher], images: Tensor) -> "Pair":
        """The pair with the positions that `positions` finds in the student and the first teacher."""
        teachers = (teachers,) if isinstance(teachers, Teacher) else tuple(teachers)
        if not teachers:
            raise BadValue("there is no teacher. Give one Teacher, or several.")
        return cls(student, teachers, positions(student, images), positions(teachers[0].net, images))

    @property
    def teacher(self) -> nn.Module:
        return self.teachers[0].net

    @property
    def groups(self) -> list[tuple[str, str]]:
        """(teacher tap, student tap) of the ends of groups; the last with the last, and so on to the front."""
        return _from_the_end(self.of_teacher.groups, self.of_student.groups)

    @property
    def before(self) -> list[tuple[str, str]]:
        """(teacher tap, student tap) of what the ReLUs that end the groups get, as in `groups`."""
        return _from_the_end(self.of_teacher.before, self.of_student.before)

    @property
    def starts(self) -> list[tuple[str, str]]:
        """(teacher tap, student tap) of the first activations in the groups, as in `groups`."""
        return _from_the_end(self.of_teacher.starts, self.of_student.starts)

    @property
    def embedding(self) -> tuple[str, str]:
        """(teacher tap, student tap) of what the classifiers get."""
        return self.of_teacher.embedding, self.of_student.embedding


def _from_the_end(teacher: Sequence[str], student: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(reversed(teacher), reversed(student), strict=False))[::-1]


def _counted(parts: Iterable[str]) -> list[str]:
    """Equal neighbours once, with their number."""
    runs = [(part, len(list(same))) for part, same in groupby(parts)]
    return [f"{count} × {part}" if count > 1 else part for part, count in runs]


def _all(parts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(parts))
