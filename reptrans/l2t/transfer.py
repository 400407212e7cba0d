"""Training a target network beside a frozen source: an objective for `fit`, and the probe that moves f and g.

    matching = Matching(target, source, pairs, images)
    transfer = Transfer(target, source, [matching], Meta())
    fit(transfer, transfer.modules_to_train(), loader, plan,
        parameters=transfer.trained(), after_step=transfer.after_step)

A step is the paper's: the real step on task and matching, which is `fit`'s; from there T steps of matching and one of
the task, only tried; then f and g move so that the task's loss at the end of those would be smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reptrans.errors import BadValue, Diverged, ShapeMismatch, check_whole, choose
from reptrans.l2t.matching import Looked, Matching, Pair, look, means
from reptrans.l2t.probe import ORDERS, CheaperNorms, MetaGradient, batch_statistics, meta_gradient
from reptrans.training import accuracy, classification_loss, evaluating
from reptrans.training.batches import Batch, answers_of, checked_network
from reptrans.training.evaluation import device_of, keeping_random_state
from reptrans.training.schedule import round_weights


@dataclass(frozen=True)
class Meta:
    """How f and g are learned. Defaults: Jang et al. 2019, authors' code: Adam with L2 decay at a constant rate.

    `T`: matching steps of a probe; 0 learns nothing. `every`: the probe follows every n-th step. `warmup`: steps
    before the first one; while the target's loss still jumps, the meta-gradient is mostly noise. `order`: "second", or
    "first" without the products with the Hessian (see `meta_gradient`). `portable`: as in `Plan`. Raises BadValue.
    """

    T: int = 2
    every: int = 1
    warmup: int = 0
    lr: float = 1e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    order: str = "second"
    portable: bool = False

    def __post_init__(self) -> None:
        for name, least in (("T", 0), ("every", 1), ("warmup", 0)):
            check_whole(name, getattr(self, name), least)
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadValue(f"{name} of the meta-learner is {getattr(self, name)!r}; it must be a number from 0 on.")
        choose(self.order, ORDERS, "order is {}", BadValue)

    def due(self, step: int) -> bool:
        """Whether a probe follows the step before which `step` were done."""
        return self.T > 0 and step >= self.warmup and (step - self.warmup) % self.every == 0


class Transfer(nn.Module):
    """Cross-entropy of the target, and the terms of `parts`, each of which looks at both networks' layers.

    `source`: frozen, in eval mode at every use; needed where there are parts. `parts`: a Matching, at most one, and
    others (AttentionTransfer, Answers). With `meta`, what the Matching's weights have to learn is learned by probes on
    the batch of each step; they use batch statistics, leave running ones alone, and draw the same dropout masks at
    every evaluation. Without, f and g stay as they are. `classes`: how many the data have. Its own state holds f's and
    g's Adam, so that a training goes on to the same numbers. Raises BadValue, ShapeMismatch.
    Source: Jang et al. 2019, authors' code. Deviation: there the sweep updates running statistics a second time.
    """

    def __init__(
        self,
        target: nn.Module,
        source: nn.Module | None = None,
        parts: Sequence[nn.Module] = (),
        meta: Meta | None = None,
        *,
        example: Tensor,
        classes: int | None = None,
    ):
        super().__init__()
        checked_network(target)
        self._target, self._source = (target,), (source,)  # in tuples: networks stay modules of their own
        self.parts, self.meta, self.steps = nn.ModuleList(parts), meta, 0
        _check(target, source, parts, example, classes)
        self._target_layers = list(dict.fromkeys(name for part in parts for name in part.target_layers))
        self._source_layers = list(dict.fromkeys(name for part in parts for name in part.source_layers))
        learned = list(self.matching.weights.parameters()) if meta and self.matching else []
        self._adam = torch.optim.Adam(learned, meta.lr, meta.betas, weight_decay=meta.weight_decay) if learned else None

    @property
    def matching(self) -> Matching | None:
        return next((part for part in self.parts if isinstance(part, Matching)), None)

    def modules_to_train(self) -> dict[str, nn.Module]:
        """What `fit` takes as its modules."""
        return {"target": self._target[0], "transfer": self}

    def trained(self) -> list[nn.Parameter]:
        """What `fit` moves: all but f and g, which the probe does."""
        apart = set(self.matching.weights.parameters()) if self.matching else ()
        return [p for p in (*self._target[0].parameters(), *self.parameters()) if p.requires_grad and p not in apart]

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple | None]:
        """Terms, figures, and what a probe goes on from if one is due, for `after_step`.

        Terms: "cross_entropy" (nats), those of the parts; figures: "accuracy", the mean lambdas.
        """
        logits, target = look(self._target[0], self._target_layers, batch.images)
        terms = {"cross_entropy": classification_loss(logits, batch.labels)}
        figures = {"accuracy": accuracy(logits, batch.labels)}
        looked, due = Looked(logits, target, *self._source_look(batch.images)), ()
        with torch.autocast(logits.device.type, enabled=False):
            for part in self.parts:
                more, seen, *rest = part(looked)
                terms, figures, due = terms | more, figures | seen, due or rest
        due = due[0] if self._adam and self.meta.due(self.steps) else None
        self.steps += self.training
        return terms, figures, due

    def after_step(self, batch: Batch, optimiser: torch.optim.Optimizer, due: tuple | None) -> dict[str, Tensor]:
        """The probe, if one is due, from where the real step led, and Adam's step on f and g; {"outer_loss": nats}."""
        if due is None:
            return {}
        prepared, weights = due
        found = self.probe(batch, optimiser, prepared, list(weights.values()))
        self._refuse_divergence(found, list(weights), optimiser)
        self._adam.zero_grad()
        torch.autograd.backward(list(weights.values()), found.gradient)
        self._adam.step()
        if self.meta.portable:
            round_weights(self.matching.weights.parameters())
        return {"outer_loss": found.outer_loss}

    def probe(
        self, batch: Batch, optimiser: torch.optim.Optimizer, prepared: dict, weights: list[Tensor]
    ) -> MetaGradient:
        """The meta-gradient for the coefficients `weights` by target layer, from the parameters as they are now."""
        learner = _Learner(self._target[0], self.matching.pairs)
        known = {p for group in optimiser.param_groups for p in group["params"]}
        moved = {name: p for name, p in learner.named_parameters() if p in known}
        theta = {name: p.detach() for name, p in moved.items()}
        paces = {name: optimiser.state.get(p, {}).get("momentum_buffer") for name, p in moved.items()}
        velocity = {name: torch.zeros_like(moved[name]) if v is None else v.detach() for name, v in paces.items()}

        def run(at: dict[str, Tensor], prepared: dict | None) -> tuple[Tensor, list[Tensor]]:
            with keeping_random_state(device_of(learner)):
                return functional_call(learner, at, (batch.images, prepared))

        with batch_statistics(learner), CheaperNorms():
            return meta_gradient(
                lambda at: run(at, prepared)[1], lambda at: classification_loss(run(at, None)[0], batch.labels),
                theta, velocity, weights, T=self.meta.T, order=self.meta.order, **_settings(optimiser),
            )  # fmt: skip

    def chosen(self, images: Tensor) -> tuple[dict[Pair, Tensor], dict[Pair, Tensor]]:
        """(w (n, C), lambda (n,)) of every pair for some images, without gradients."""
        matching = self.matching
        with torch.no_grad():
            z = means(self._source_look(images)[1])
            what, where = matching.weights.channel_weights(z), matching.weights.pair_weights(z)
        pairs = matching.pairs.pairs
        return dict(zip(pairs, what, strict=True)), dict(zip(pairs, where.T, strict=True))

    def get_extra_state(self) -> dict:
        return {"steps": self.steps, "adam": self._adam.state_dict() if self._adam else None}

    def set_extra_state(self, state: dict) -> None:
        self.steps = state["steps"]
        if self._adam:
            self._adam.load_state_dict(state["adam"])

    def _source_look(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        if not self.parts:
            return None, {}
        with evaluating(self._source[0]), torch.no_grad():
            return look(self._source[0], self._source_layers, images)

    def _refuse_divergence(self, found: MetaGradient, layers: list[str], optimiser: torch.optim.Optimizer) -> None:
        if all(bool(value.isfinite().all()) for value in (*found.gradient, found.outer_loss)):
            return
        parts = self.matching.pairs.split(dict(zip(layers, found.gradient, strict=True)))
        s, t = next((pair for pair, g in parts.items() if not g.isfinite().all()), next(iter(parts)))
        # The outer loss where no gradient is odd.
        values = torch.cat([parts[s, t].flatten(), found.outer_loss.flatten()])
        raise Diverged(
            f"the meta-gradient for the pair {s} > {t} became {float(values[~values.isfinite()][0])} at step "
            f"{self.steps}, learning rate {optimiser.param_groups[0]['lr']:.4g}; the probe's matching losses were "
            f"{', '.join(f'{float(v):.4g}' for v in found.losses)}. Lower lr or beta, or lengthen warmup."
        )


class _Learner(nn.Module):
    """Target and regressors as one function of all their parameters: images -> (logits, D by target layer)."""

    def __init__(self, target: nn.Module, pairs: nn.Module):
        super().__init__()
        self.target, self.pairs = target, pairs

    def forward(self, images: Tensor, prepared: dict | None) -> tuple[Tensor, list[Tensor]]:
        layers = list(self.pairs.of_target) if prepared else []
        logits, seen = look(self.target, layers, images)
        return logits, list(self.pairs(prepared, seen).values()) if prepared else []


def _settings(optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """What `meta_gradient` needs to know of torch's SGD."""
    names = ("lr", "momentum", "weight_decay", "nesterov")
    settings = [{name: group.get(name) for name in names} for group in optimiser.param_groups]
    if not isinstance(optimiser, torch.optim.SGD) or any(other != settings[0] for other in settings):
        raise BadValue(
            f"the probe tries steps of SGD with one setting for all parameters, but the optimiser is "
            f"{type(optimiser).__name__} with {len(settings)} groups. Choose optimiser='sgd' and one group."
        )
    return settings[0]


def _check(target: nn.Module, source: nn.Module | None, parts: Sequence, example: Tensor, classes: int | None) -> None:
    if parts and source is None:
        raise BadValue("there are parts, which look at a source network, but source is None. Give one.")
    if sum(isinstance(part, Matching) for part in parts) > 1:
        raise BadValue("parts holds more than one Matching. Put all pairs into one; Together joins several sources.")
    with evaluating(target), torch.no_grad():
        shape = tuple(answers_of(target, example).shape)
    if classes is not None and shape[1:] != (classes,):
        raise ShapeMismatch(
            f"the target's output is {shape}, but the data have {classes} classes. Build it with num_classes={classes}."
        )
