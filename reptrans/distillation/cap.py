"""One rule for the weights of all methods: what is matched may at first count this much beside the task, no more."""

from dataclasses import replace

from reptrans.data import Batch
from reptrans.distillation.distill import Losses, resolve
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
    built, stages = {}, []
    for stage in method.stages:
        with drawing(0):
            losses = resolve(stage, student, pair.teachers, batch, built)
        built = losses.built
        stages.append(_capped(losses, batch, share))
    return replace(method, stages=stages)


def _capped(losses: Losses, batch: Batch, share: float) -> Stage:
    stage = losses.stage
    scaled = [loss for loss in stage.matches if loss.student_taps != ("out",)]
    task = [loss for loss in stage.losses if isinstance(loss, CrossEntropy)]
    if not scaled or not task:
        return stage
    losses.to(batch.images.device, batch.images.dtype)
    terms = dict(zip(stage.losses, losses.eval()(batch)[0].values(), strict=True))
    matched = abs(sum(terms[loss].item() for loss in scaled))
    most = share * sum(terms[loss].item() for loss in task)
    if matched <= most:
        return stage
    factor = most / matched
    return replace(stage, losses=[_times(loss, factor) if loss in scaled else loss for loss in stage.losses])


def _times(match: Match, factor: float) -> Match:
    weight = match.weight
    return replace(match, weight=(lambda p: factor * weight(p)) if callable(weight) else factor * weight)
