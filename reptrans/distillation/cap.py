"""One rule for the weights of all methods: what is matched may at first count this much beside the task, no more."""

from dataclasses import replace

from torch import nn

from reptrans.data import Batch
from reptrans.distillation.distill import StageObjective
from reptrans.distillation.method import Method, Pair, Stage
from reptrans.matching import CrossEntropy, Match
from reptrans.randomness import drawing


def capped(method: Method, pair: Pair, batch: Batch, share: float = 0.1) -> Method:
    """The method with the matches of a stage scaled down together, where on `batch` their sum would be more than
    `share` times the cross-entropy before the first step, both with their weights.

    Published weights belong to networks far larger: on small ones some keep the student from learning anything else.
    By this rule methods are compared without tuning any. Nothing is scaled up, for a loss that is small at first need
    not stay so. Stages without cross-entropy, where one factor is no more than a learning rate, and softened logits
    stay as they are. The student is the pair's, as it is; connectors are new.
    """
    student = pair.student if method.prepare is None else method.prepare(pair.student, pair.teacher)
    built: dict = {}
    stages = [_capped(stage, student, pair, batch, built, share) for stage in method.stages]
    return replace(method, stages=stages)


def _capped(stage: Stage, student: nn.Module, pair: Pair, batch: Batch, built: dict, share: float) -> Stage:
    scaled = [loss for loss in stage.matches if loss.student_taps != ("out",)]
    task = [loss for loss in stage.losses if isinstance(loss, CrossEntropy)]
    with drawing(0):
        objective = StageObjective(student, pair.teachers, stage, batch, built, set())
    if not scaled or not task:
        return stage
    objective.to(batch.images.device, batch.images.dtype)
    terms = dict(zip(stage.losses, objective.eval()(batch)[0].values(), strict=True))
    matched = abs(sum(terms[loss].item() for loss in scaled))
    most = share * sum(terms[loss].item() for loss in task)
    if matched <= most:
        return stage
    factor = most / matched
    return replace(stage, losses=[_times(loss, factor) if loss in scaled else loss for loss in stage.losses])


def _times(match: Match, factor: float) -> Match:
    weight = match.weight
    return replace(match, weight=(lambda p: factor * weight(p)) if callable(weight) else factor * weight)
