"""The output category: make a new network answer differently from old ones.

Where the terms' gradients get in each other's way, they are projected, or the terms take turns: both give terms of
unchanged value and another gradient, so that one `fit` serves them too.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, UnknownName, choose, suggest
from reptrans.extension.condition import Condition, check_numbers, labelled
from reptrans.layers import front
from reptrans.matching.transforms import without
from reptrans.training.batches import Batch, answers_of

STEPS = ("together", "pcgrad", "alternating")


def inverted_cross_entropy(new: Tensor, olds: list[Tensor], labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean cross-entropy (nats, >= 0) over the k - 1 wrong classes against the old distribution turned upside down.

    With q the old networks' mean probabilities among the wrong classes (softmax of logits / temperature), the target
    is (1 - q) / (k - 2); the right class has no part in it, so that the task is not fought.
    """
    return _inverted(new, olds, labels, temperature).mean()


def inverted_where_both_wrong(new: Tensor, olds: list[Tensor], labels: Tensor) -> Tensor:
    """`inverted_cross_entropy`, only at examples that the new network and the old ensemble both have wrong; 0 where
    there is none."""
    wrong = (new.argmax(1) != labels) & (_mean_probabilities(olds).argmax(1) != labels)
    return torch.where(wrong, _inverted(new, olds, labels, 1.0), 0).sum() / wrong.sum().clamp_min(1)


def logit_cosine(new: Tensor, olds: list[Tensor], labels: Tensor) -> Tensor:
    """Mean cosine of the logits, in [-1, 1]."""
    return sum(F.cosine_similarity(new, old, dim=1).mean() for old in olds) / len(olds)


def wrong_class_cosine(new: Tensor, olds: list[Tensor], labels: Tensor) -> Tensor:
    """Mean cosine of the probabilities of the wrong classes, in [0, 1].

    Deviation: each vector is divided by its own norm (the authors' code divides the old one by the new one's).
    """
    mine = without(new, labels).softmax(1)
    return sum(F.cosine_similarity(mine, without(old, labels).softmax(1), dim=1).mean() for old in olds) / len(olds)


def adaptive_diversity(
    new: Tensor, olds: list[Tensor], labels: Tensor, entropy: float = 2.0, volume: float = 0.5, eps: float = 1e-6
) -> Tensor:
    """-entropy H(mean p) - volume log det(M'M + eps I), M: unit vectors of wrong-class probabilities, one per network.

    Bounded: H in [0, log k], the determinant in [eps^m, (1 + eps)^m] for m networks. Needs m <= k - 1 to move.
    Source: Pang et al. 2019 (ADP), equations 3 to 5, weights of their experiments; old networks without gradients.
    """
    unit = torch.stack([F.normalize(without(v, labels).softmax(1), dim=1) for v in (new, *olds)], 1)
    gram = unit @ unit.mT + eps * torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device)
    return entropy * ensemble_entropy(new, olds, labels) - volume * torch.linalg.slogdet(gram).logabsdet.mean()


def ensemble_entropy(new: Tensor, olds: list[Tensor], labels: Tensor) -> Tensor:
    """Minus the entropy (nats) of the mean of all networks' probabilities, in [-log k, 0]."""
    return -_entropy(_mean_probabilities([new, *olds])).mean()


def focal_ensemble_entropy(new: Tensor, olds: list[Tensor], labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Minus the entropy weighted with (1 - p_label)^gamma, where the ensemble is unsure of the label, in [-log k, 0].

    The weight has no gradient: otherwise being wrong would pay. Deviation: the authors' sign makes entropy smaller.
    """
    p = _mean_probabilities([new, *olds])
    weight = (1 - p.gather(1, labels[:, None])[:, 0]).detach().clamp_min(0) ** gamma
    return -(weight * _entropy(p)).mean()


def entropy_weighted_boosting(new: Tensor, olds: list[Tensor], labels: Tensor) -> Tensor:
    """Cross-entropy (nats) with weight H(mean old p) / log k, in [0, 1]: harder where the old networks are unsure."""
    weight = _entropy(_mean_probabilities(olds)) / math.log(new.shape[1])
    return (weight * F.cross_entropy(new, labels, reduction="none")).mean()


#: What `Outputs` minimises beside cross-entropy, by name: functions of the new logits (n, k), a list of the old
#: networks' logits, labels (n,), and options. inverted_cross_entropy, inverted_where_both_wrong, logit_cosine,
#: wrong_class_cosine, adaptive_diversity, ensemble_entropy, focal_ensemble_entropy, entropy_weighted_boosting.
OUTPUT_LOSSES: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss
    for loss in (
        inverted_cross_entropy, inverted_where_both_wrong, logit_cosine, wrong_class_cosine, adaptive_diversity,
        ensemble_entropy, focal_ensemble_entropy, entropy_weighted_boosting,
    )
}  # fmt: skip


class Outputs(Condition):
    """CE + weight * loss(new logits, old logits, labels): answers that differ from the old networks'.

    `loss`: a name of OUTPUT_LOSSES; `options` go to it (temperature of inverted_cross_entropy: 1, 2, 4, 5, 8 by the
    authors). `step`: "together"; "pcgrad", conflicting gradients projected first; "alternating", every second step
    (the others are CE on all weights) moves the layers up to `before` by the loss alone.
    Raises UnknownName, BadValue, LayerNotFound, ShapeMismatch.
    Source: Wald et al. 2023, authors' code; each loss names its deviations.
    """

    def __init__(
        self,
        new: nn.Module,
        olds: Sequence[nn.Module],
        loss: str = "adaptive_diversity",
        *,
        example: Tensor,
        weight: float = 1.0,
        step: str = "together",
        before: str | None = None,
        **options: float,
    ):
        for what, given, possible in (("output loss", loss, OUTPUT_LOSSES), ("step", step, STEPS)):
            choose(given, possible, f"there is no {what} {{}}")
        check_numbers(weight=weight)
        if (step == "alternating") != (before is not None):
            raise BadValue(
                f"step is {step!r} and before is {before!r}: before names the last layer that alternating steps move, "
                "and is for step='alternating' alone."
            )
        chosen = {"loss": loss, "weight": weight, "step": step, "before": before, "options": options}
        super().__init__(new, olds, example, chosen)
        with torch.no_grad():
            _try(loss, answers_of(self.olds[0], example), options)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._before = parameters_before(new, before) if before else None

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms and figures of a batch."""
        s, logits = self.settings, answers_of(self.new, batch.images)
        terms, figures = labelled(logits, batch.labels)
        with torch.no_grad():
            olds = [answers_of(old, batch.images) for old in self.olds]
        olds = [old.to(torch.promote_types(old.dtype, torch.float32)) for old in olds]
        with torch.autocast(logits.device.type, enabled=False):
            found = OUTPUT_LOSSES[s["loss"]](logits.to(olds[0].dtype), olds, batch.labels, **s["options"])
        terms["diversity"] = s["weight"] * found
        if not torch.is_grad_enabled() or s["step"] == "together":
            return terms, figures
        if s["step"] == "pcgrad":
            return pcgrad(terms, [p for p in self.new.parameters() if p.requires_grad]), figures
        self.steps += 1
        return alternating(terms, "diversity", self._before, even=int(self.steps) % 2 == 0), figures


def pcgrad(terms: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The terms, each with its gradient g_i projected: for all j != i with g_i g_j < 0, g_i -= (g_i g_j / |g_j|²) g_j.

    Over all `parameters` as one vector, with g_j as they were; in the order of the terms (the original draws the order,
    which makes no difference for two). Nothing but `parameters` gets gradients. Source: Yu et al. 2020, algorithm 1.
    """
    own = {name: _gradient(term, parameters) for name, term in terms.items()}
    sizes, done = [p.numel() for p in parameters], {}
    for name, term in terms.items():
        g = own[name].clone()
        for other in (own[n] for n in terms if n != name):
            overlap, length = g @ other, other @ other
            g -= torch.where((overlap < 0) & (length > 0), overlap / length.clamp_min(1e-30), 0) * other
        done[name] = _with_gradient(term, parameters, g.split(sizes))
    return done


def alternating(
    terms: dict[str, Tensor], regulariser: str, parameters: Sequence[nn.Parameter], even: bool
) -> dict[str, Tensor]:
    """The terms; at odd steps only those but `regulariser` move anything, at even steps it alone moves `parameters`."""
    if not even:
        return {n: term.detach() if n == regulariser else term for n, term in terms.items()}
    found = torch.autograd.grad(terms[regulariser], parameters, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
    moved = _with_gradient(terms[regulariser], *zip(*used, strict=True))
    return {n: moved if n == regulariser else term.detach() for n, term in terms.items()}


def parameters_before(net: nn.Module, layer: str) -> list[nn.Parameter]:
    """The trained parameters that lead to `layer`, the layer's own included. Raises BadValue, LayerNotFound."""
    part = front(net, layer)
    if not isinstance(part, fx.GraphModule):
        raise BadValue(f"{type(net).__name__} cannot be traced, so what leads to {layer!r} is not known. Use 'pcgrad'.")
    wanted = {id(p) for p in part.parameters() if p.requires_grad}
    found = [p for p in net.parameters() if id(p) in wanted]
    if not found:
        raise BadValue(f"no parameter of {type(net).__name__} leads to {layer!r}. Name a layer behind the first ones.")
    return found


def _with_gradient(term: Tensor, parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor]) -> Tensor:
    """The value of `term`, with `gradient` (of the parameters' sizes, in any shape) as its gradient."""
    zero = sum(((p - p.detach()) * g.view_as(p)).sum() for p, g in zip(parameters, gradient, strict=True))
    return term.detach() + zero


def _gradient(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def _inverted(new: Tensor, olds: list[Tensor], labels: Tensor, temperature: float) -> Tensor:
    if temperature <= 0:
        raise BadValue(f"temperature is {temperature!r}; it must be a number above 0.")
    q = _mean_probabilities([without(old, labels) / temperature for old in olds])
    target = (1 - q) / (q.shape[1] - 1)
    return -(target * (without(new, labels) / temperature).log_softmax(1)).sum(1)


def _mean_probabilities(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack([v.softmax(1) for v in logits]).mean(0)


def _entropy(p: Tensor) -> Tensor:
    """Nats; a probability that underflows to 0 adds nothing, and has no infinite gradient."""
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(1)


def _try(loss: str, logits: Tensor, options: dict) -> None:
    """The loss once, so that a wrong option is met before any training."""
    if logits.ndim != 2 or logits.shape[1] < 3:
        raise ShapeMismatch(
            f"the networks' output is {tuple(logits.shape)}; losses on outputs need (n, k) with k of 3 or more, to "
            "have two wrong classes at least. Use Hidden."
        )
    known = list(inspect.signature(OUTPUT_LOSSES[loss]).parameters)[3:]
    for name in options.keys() - set(known):
        raise UnknownName(f"{loss} has no option {name!r}. {suggest(name, known) if known else 'It takes none.'}")
    OUTPUT_LOSSES[loss](logits, [logits], logits.argmax(1), **options)
