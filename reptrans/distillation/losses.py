"""The losses of one stage of a method: what is looked at, what its recipes become, what they move.

Several students of one kind are trained side by side, as one set of stacked weights: each as if it were alone. Small
networks spend their time between operations; of many at once each operation is one. What a student sees and learns is
its own: batches, labels, teachers, weights of losses; the optimiser works by elements, so that no student knows of
another.
"""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.modules.batchnorm import _NormBase

from reptrans.data import Batch, Loader
from reptrans.distillation.method import Stage
from reptrans.matching import CrossEntropy, Learned, Match, Seen, Teacher, tapped, term_names
from reptrans.training import evaluating
from reptrans.training.evaluation import right, wide


class Losses(nn.Module):
    """The losses of one stage as an objective for `fit`, their recipes built: see `resolve`.

    `built`: {recipe: its module}, also of the stages before. `moves`: what is trained, see `moving`; at first, all of
    the student. `factor` multiplies the weights of the method's own matches, see `Stage.scaled`. `labels`: (labels of
    all the loader's images (n, ...), whether each counts in cross-entropy (n,)); None for the batches' own, which all
    do. In train mode all other modules of the student stay in eval mode, as does the teacher's side unless connectors
    alone are trained.
    """

    def __init__(
        self, stage: Stage, student: nn.Module, teachers: Sequence[Teacher], built: Mapping[Learned, nn.Module]
    ):
        super().__init__()
        self.stage, self.student, self.teachers, self.built = stage, student, teachers, built
        self.factor: float | Tensor = 1.0
        self.labels: tuple[Tensor, Tensor] | None = None
        self.names, self.moves = term_names(stage.losses), dict.fromkeys(student.parameters())
        self.scaled = set(stage.scaled)

        def modules(transforms: Iterable) -> nn.ModuleList:
            return nn.ModuleList(dict.fromkeys(built[t] for t in transforms if isinstance(t, Learned)))

        self.of_teacher = modules(match.teacher_transform for match in stage.matches)
        self.of_student = modules(match.student_transform for match in stage.matches)

    def train(self, mode: bool = True) -> "Losses":
        super().train(mode)
        for module in self.student.modules():
            own = set(module.parameters(recurse=False))
            # In a stage of the whole student, what has no parameters (dropout) trains as it always does.
            free = not own and self.stage.train == "all"
            if not (free or module in self.moves or own.intersection(self.moves)):
                module.training = False
        if self.stage.train != "connectors":
            self.of_teacher.eval()
        return self

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({term: weight * value}, {"accuracy"}) of a batch, `progress` in [0, 1) being the share of the stage done."""
        terms, figures = self.terms(batch.images, *self.known(batch), self.taught(batch), self.factor, progress)
        return terms, {"accuracy": figures["accuracy"] / self.counting}

    @property
    def counting(self) -> float:
        """The share of all images whose labels count."""
        return 1.0 if self.labels is None else self.labels[1].double().mean().item()

    def taught(self, batch: Batch) -> dict[int, dict[str, Tensor]]:
        """{which teacher: {tap: its value}} of a batch, for all that the stage compares."""
        if self.labels is not None:
            batch = batch._replace(labels=self.known(batch)[0])
        return taught_by(self.teachers, self.stage, batch, own_labels=self.labels is None)

    def known(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """(labels (b, ...) of a batch, of which images (b,) they count or None)."""
        if self.labels is None:
            return batch.labels, None
        return tuple(values.index_select(0, batch.index) for values in self.labels)

    def terms(
        self, images: Tensor, labels: Tensor, counted: Tensor | None, taught: dict, factor: float | Tensor,
        progress: float,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
        """The same from what the teachers say, {which: {tap: value}}; accuracy: who counts and is right, of all."""
        seen = tapped(self.student, images, labels, self.stage.student_taps)
        with torch.autocast(images.device.type, enabled=False):
            values = []
            for loss in self.stage.losses:
                weight = loss.weight_at(progress)
                if isinstance(loss, CrossEntropy):
                    values.append(weight * loss.value(seen["out"], labels, counted))
                else:
                    weight = weight * factor if loss in self.scaled else weight
                    values.append(weight * self._distance(loss, taught[loss.who], seen))
        hits = right(seen["out"].detach(), labels).to(wide(images.device))
        hits = hits if counted is None else hits.reshape(len(hits), -1).mean(1) * counted
        return dict(zip(self.names, values, strict=True)), {"accuracy": hits.mean()}

    def module(self, transform: object) -> object:
        """A recipe's module; any other transform itself."""
        return self.built[transform] if isinstance(transform, Learned) else transform

    def _distance(self, loss: Match, taught: dict, seen: dict) -> Tensor:
        teacher, student = loss.values(taught, seen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage.train == "connectors"):
            target = self.module(loss.teacher_transform)(*teacher)
        return loss.distance(target, self.module(loss.student_transform)(*student))


def taught_by(
    teachers: Sequence[Teacher], stage: Stage, batch: Batch, own_labels: bool = True
) -> dict[int, dict[str, Tensor]]:
    """{which teacher: {tap: its value}} of a batch, for all that a stage compares."""
    taps = stage.teacher_taps
    return {who: teachers[who].values(batch, taps[who], stage.teacher, own_labels=own_labels) for who in taps}


def look(stage: Stage, student: nn.Module, teachers: Sequence[Teacher], batch: Batch) -> tuple[dict, dict]:
    """({which teacher: {tap: its value}}, {tap: the student's value}) for all that a stage compares."""
    seen = tapped(student, batch.images, batch.labels, stage.student_taps)
    return taught_by(teachers, stage, batch), seen


def resolve(
    stage: Stage, student: nn.Module, teachers: Sequence[Teacher], example: Batch,
    built: Mapping[Learned, nn.Module] | None = None,
) -> Losses:  # fmt: skip
    """The stage's losses, with recipes made to modules by what `example` shows.

    `built`: {recipe: its module} of earlier stages, for one recipe is one module in all of them.
    """
    with evaluating(student):
        taught, seen = look(stage, student, teachers, example)
    built = built or {}
    for match in stage.matches:
        built = _with_recipes_of(match, *match.values(taught[match.who], seen), teachers[match.who], built)
    return Losses(stage, student, teachers, built)


def moving(
    losses: Losses, example: Batch, moved: Collection[nn.Parameter | nn.Module] = ()
) -> list[nn.Parameter | nn.Module]:
    """What the stage moves: parameters, and the student's batch norms that have none but count in its losses.

    `moved`: what earlier stages did. "reached" is found by differentiating the losses of `example` once.
    """
    connectors = [*losses.of_student.parameters()]
    if losses.stage.train == "connectors":
        return connectors + [*losses.of_teacher.parameters()]
    own = [p for p in losses.student.parameters() if p.requires_grad]
    if losses.stage.train != "all":
        own = _reached(losses, example, own)
    if losses.stage.train == "new":
        own = [part for part in own if part not in moved]
    return own + connectors


def _with_recipes_of(
    match: Match, own: tuple[Tensor, ...], shown: tuple[Tensor, ...], teacher: Teacher, built: Mapping
) -> dict[Learned, nn.Module]:
    """`built` with the modules for the match's recipes, `own` and `shown` being the teacher's and student's values."""
    built, target = dict(built), None

    def over_all():
        for found in teacher.over_all(match.teacher_taps):
            yield tuple(found[tap] for tap in match.teacher_taps)

    def made(transform: object) -> object:
        if not isinstance(transform, Learned):
            return transform
        if transform not in built:
            seen = Seen(tuple(x.detach() for x in shown), own, target, over_all, made)
            built[transform] = transform.make(seen).to(own[0].device, own[0].dtype)
        return built[transform]

    ours = made(match.teacher_transform)
    with torch.no_grad():
        target = (ours.eval() if isinstance(ours, nn.Module) else ours)(*own)
    made(match.student_transform)
    return built


def _reached(losses: Losses, example: Batch, own: list[nn.Parameter]) -> list[nn.Parameter | nn.Module]:
    """Those of the parameters that the losses depend on, and the batch norms without any of their own."""
    norms = [m for m in losses.student.modules() if isinstance(m, _NormBase) and not list(m.parameters())]
    outputs: dict[nn.Module, Tensor] = {}
    with ExitStack() as hooks, evaluating(losses):
        for norm in norms:
            hooks.enter_context(norm.register_forward_hook(lambda norm, _, value: outputs.update({norm: value})))
        total = sum(losses(example)[0].values())
    if not own or not total.requires_grad:
        return []
    outputs = {norm: value for norm, value in outputs.items() if value.requires_grad}
    found = torch.autograd.grad(total, [*own, *outputs.values()], allow_unused=True)
    return [part for part, g in zip([*own, *outputs], found, strict=True) if g is not None]


class Stacked:
    """Loaders in step: batches with images (s, b, ...), labels and index (s, b), for as long as the shortest."""

    def __init__(self, loaders: Sequence[Loader]):
        self.loaders, self.epoch = list(loaders), 0

    def __len__(self) -> int:
        return min(map(len, self.loaders))

    def __iter__(self) -> Iterator[Batch]:
        for loader in self.loaders:
            loader.epoch = self.epoch
        self.epoch += 1
        for batches in zip(*self.loaders, strict=False):
            yield Batch(*(torch.stack(values) for values in zip(*batches, strict=True)))


class Together(nn.Module):
    """The losses of several students as one objective over Stacked batches; terms are named `term@k`, k the student's.

    `moves`: the stacked parameters that are trained. After training, and before anybody looks at a student, `hand_back`
    copies its weights into it.
    """

    def __init__(self, members: Sequence[Losses]):
        super().__init__()
        self._alone = [_Terms(losses) for losses in members]  # in a list, so that they are no modules of this one
        values, self.stacked_buffers = stack_module_state(self._alone)
        self.names, self.values = list(values), nn.ParameterList(values.values())
        first = dict(self._alone[0].named_parameters())
        self.moves = [v for name, v in zip(self.names, self.values, strict=True) if first[name] in members[0].moves]
        self.factors = torch.tensor([losses.factor for losses in members], dtype=torch.float64).to(self.values[0])
        self.counting = torch.tensor([losses.counting for losses in members]).to(self.values[0])

    def train(self, mode: bool = True) -> "Together":
        self._alone[0].train(mode)
        return super().train(mode)

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        members = [alone.losses for alone in self._alone]
        each = [Batch(*values) for values in zip(*batch, strict=True)]
        pairs = list(zip(members, each, strict=True))
        taught = [losses.taught(own) for losses, own in pairs]
        stacked = {
            who: {tap: torch.stack([one[who][tap] for one in taught]) for tap in first}
            for who, first in taught[0].items()
        }
        labels, counted = zip(*(losses.known(own) for losses, own in pairs), strict=True)
        counted = None if counted[0] is None else torch.stack(counted)
        state = [dict(zip(self.names, self.values, strict=True)), self.stacked_buffers]

        def alone(values, buffers, images, labels, counted, taught, factor):
            given = (images, labels, counted, taught, factor, progress)
            return functional_call(self._alone[0], (values, buffers), given)

        at = (0, 0, 0, 0, None if counted is None else 0, 0, 0)
        with warnings.catch_warnings():
            # Some backward passes, such as that of adaptive pooling, are done one by one, and torch says so each time.
            warnings.filterwarnings("ignore", "There is a performance drop")
            terms, figures = vmap(alone, at, randomness="different")(
                *state, batch.images, torch.stack(labels), counted, stacked, self.factors
            )
        return _named(terms), _named({"accuracy": figures["accuracy"] / self.counting})

    def hand_back(self) -> None:
        """Copy all weights and buffers into the students and their connectors."""
        with torch.no_grad():
            for k, alone in enumerate(self._alone):
                own = dict(alone.named_parameters()) | dict(alone.named_buffers())
                for name, stacked in (*zip(self.names, self.values, strict=True), *self.stacked_buffers.items()):
                    own[name].copy_(stacked[k])


class _Terms(nn.Module):
    """A student's losses, called for their terms."""

    def __init__(self, losses: Losses):
        super().__init__()
        self.losses = losses

    def forward(self, *given) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.losses.terms(*given)


def _named(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}@{k}": one for name, values in found.items() for k, one in enumerate(values.unbind())}
