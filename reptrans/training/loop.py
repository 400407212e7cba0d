"""The one training loop: terms of a loss go down over the parameters it is given.

Classifiers, stitches, students and connectors are all trained by `fit`; what differs is the objective. The plan and its
learning rates are in `schedule`, what is left on disk in `resume`, looking at results in `evaluation`.
The sum of an objective's named scalars is minimised, and their means over an epoch become its row.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reptrans.data.loader import mixed, training_loader
from reptrans.errors import BadValue, Diverged, ShapeMismatch, choose
from reptrans.layers.network import keeping_modes
from reptrans.progress import progress
from reptrans.training.batches import answers_of, batches, checked_weights
from reptrans.training.evaluation import (
    accuracy,
    classification_loss,
    evaluate,
    keeping_random_state,
    seed_generators,
    wide,
)
from reptrans.training.layout import channels_last
from reptrans.training.resume import Keeper, identity
from reptrans.training.schedule import Plan, autocast, build_optimiser, learning_rate_factor, round_weights

if TYPE_CHECKING:
    import pandas as pd


Scalars = dict[str, Tensor | float]

_STEPS_BETWEEN_LOOKS = 50
_OWN_COLUMNS = ("epoch", "step", "lr")
Objective = Callable[[object, float], tuple]  # (terms, figures), or with a third value for `after_step`
AfterStep = Callable[..., Scalars]


def fit(
    objective: Objective,
    modules: nn.Module | dict[str, nn.Module],
    loader: Iterable,
    plan: Plan,
    *,
    parameters: Iterable[nn.Parameter] | list[dict] | None = None,
    checkpoint: str | Path | None = None,
    facts: Mapping[str, object] | None = None,
    every_epoch: Callable[[int], dict[str, float]] | None = None,
    after_step: AfterStep | None = None,
    save_every: int | None = None,
    snapshots: str | Path | None = None,
    label: str = "",
) -> "pd.DataFrame":
    """Minimise the sum of the objective's terms over the loader's batches; one row per epoch.

    `objective(batch, progress) -> (terms, figures)`: named scalars, means over the batch; figures are only reported;
    progress in [0, 1) is the share of all steps already done. Nothing but `parameters` gets gradients.
    `loader`: batches as it yields them, (images, labels) or mappings too, on the device of the parameters; `images` and
    `labels` of a batch give both. It has a length.
    `modules`: one or several by name; in train mode from each epoch's start on (a module keeps frozen parts in eval
    mode by its own `train`), afterwards in their former modes. `parameters`: those with requires_grad in `modules` if
    None; a group's own "lr" is its highest learning rate.
    `checkpoint`: a file written after every epoch. If it is there, training goes on from it, to the same bits as
    without the interruption on the same machine; state of the objective that is not in `modules` is not kept. It is
    refused for another plan, network, optimiser, order or content of the loader, and for other `facts`: plain data by
    which this objective is told from another, as its weights and temperatures, for `fit` cannot look into it. Of a
    DataLoader, the content of tensors, of their subsets and of lists is known.
    `after_step(batch, optimiser) -> figures`: called after every step, for what else is learned from the same batch. It
    leaves the parameters alone. An objective may return a third value, which `after_step(batch, optimiser, value)` then
    gets. `snapshots`: a folder for the weights, `<step>.safetensors`: the first, every `save_every` steps, and the
    last.
    Rows: epoch (from 1), step (done so far), lr (of the last step; the first group's), each term and figure as its mean
    over the epoch's images as seen in training, and what `every_epoch(epoch)` gives.
    Raises BadValue, BadCheckpoint, CannotWrite, and Diverged for a term that is not finite: before that step is taken;
    on a GPU up to 50 steps later, but before anything is written.
    """
    import pandas as pd

    modules = dict(modules) if isinstance(modules, dict) else {"": checked_weights(modules)}
    groups = _groups(modules, parameters, plan)
    _refuse_contradictions(modules, groups, loader, plan, checkpoint, save_every, snapshots)
    optimiser = build_optimiser(plan, groups)
    # The identity is taken first: the groups' learning rates are still the highest ones.
    known = identity(plan, modules, optimiser, loader, facts or {}) if checkpoint else {}
    keeper = Keeper(modules, optimiser, known, checkpoint, snapshots, save_every)
    loop = _Loop(objective, loader, plan, keeper, every_epoch, after_step)
    with keeping_random_state(loop.device), keeping_modes(*modules.values()):
        return pd.DataFrame(loop.run(label))


def train_classifier(
    net: nn.Module,
    dataset: object,
    plan: Plan,
    *,
    batch_size: int = 128,
    augment: str = "none",
    batch_seed: int = 0,
    device: str | torch.device = "cpu",
    **saving,
) -> "pd.DataFrame":
    """Train `net` in place on the labels of a Dataset; rows with accuracy and cross-entropy (nats), train and test.

    `batch_seed` decides order and augmentation. An incomplete last batch is left out, unless it is the only one. Train
    columns are means over the epoch while the weights moved; test columns are in eval mode at its end. `saving`:
    `checkpoint`, `save_every`, `snapshots`, `label` of `fit`. Raises BadValue for what is no Dataset, and what `fit`
    does.
    """
    device = pick_device(str(device))
    checked_weights(net).to(device)
    if not hasattr(dataset, "train"):
        raise BadValue(
            f"the data are a {type(dataset).__name__}, and not a Dataset with a train and a test part: see "
            "load_dataset. Loaders of your own are trained on with fit."
        )
    place = {"device": device, "dtype": plan.dtype}
    train = training_loader(dataset, batch_size, batch_seed, augment, **place)
    test = dataset.loader("test", batch_size, **place)

    def objective(batch, progress):
        logits = answers_of(net, batch.images)
        _check_classes(logits, dataset)
        terms = {"train_cross_entropy": classification_loss(logits, batch.labels)}
        return terms, {"train_accuracy": accuracy(logits, batch.labels)}

    def on_test(epoch):
        found = evaluate(net, test, plan)
        return {"test_cross_entropy": found["cross_entropy"], "test_accuracy": found["accuracy"]}

    with channels_last([net], next(iter(train.plain())).images):
        return fit(objective, net, train, plan, every_epoch=on_test, **saving)


def pick_device(name: str = "auto") -> torch.device:
    """The device `name`: "auto" is a GPU if there is one, else the CPU; "mps" is taken only when asked for.

    Raises BadValue for one that is not there.
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    there += ["cuda"] * (len(there) > 1) + ["mps"] * torch.backends.mps.is_available()
    found = {"auto": "cuda" if "cuda" in there else "cpu"} | {device: device for device in there}
    return torch.device(choose(name, found, "there is no device {} here", BadValue))


def total_of(terms: Scalars, figures: Scalars) -> Tensor:
    """The sum of the terms; BadValue for what is no scalar, has two meanings, or moves no parameter."""
    for name, value in (terms | figures).items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise BadValue(f"{name} is a tensor {tuple(value.shape)}; a term or figure is a scalar. Take its mean.")
    if both := sorted(set(terms) & set(figures)):
        raise BadValue(f"{both[0]!r} is the name of a term and of a figure. Give each its own.")
    total = sum(terms.values())
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise BadValue(
            f"no parameter can make the loss smaller: the terms ({', '.join(terms) or 'none'}) do not depend on any "
            "that requires a gradient."
        )
    return total.reshape(())


def row_of(own: dict, means: dict, found: dict) -> dict:
    """One epoch's row: its own columns, the means, and what was found at its end; BadValue if a name comes twice."""
    taken = [name for name in (*means, *found) if name in _OWN_COLUMNS or (name in means and name in found)]
    if taken:
        raise BadValue(f"{taken[0]!r} would stand twice in a row. Rename the term, figure or entry of every_epoch.")
    return own | means | found


class Sums:
    """Means over the images of one epoch, and the look-out for terms that are not finite.

    Values are fetched together, for every fetch stops a GPU: there every 50 steps, on the CPU at each.
    """

    def __init__(self, epochs: int, epoch: int, device: torch.device) -> None:
        self.epochs, self.epoch, self.device = epochs, epoch, device
        self.between_looks = 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS
        self.waiting: list[tuple] = []
        self.totals: dict[str, float] = {}
        self.images: dict[str, int] = {}

    def add(self, terms: Scalars, figures: Scalars, images: int, step: int, lr: float) -> None:
        values = [torch.as_tensor(v, device=self.device).detach().reshape(()) for v in (terms | figures).values()]
        fetched = torch.stack([value.to(wide(self.device)) for value in values])
        self.waiting.append((list(terms), list(figures), fetched, images, step, lr))
        if len(self.waiting) >= self.between_looks:
            self.look()

    def look(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        values = iter(torch.cat([fetched for _, _, fetched, *_ in waiting]).tolist())
        for terms, figures, _, images, step, lr in waiting:
            for name in (*terms, *figures):
                value = next(values)
                if name in terms and not math.isfinite(value):
                    raise self._diverged(name, value, step, lr)
                self.totals[name] = self.totals.get(name, 0.0) + value * images
                self.images[name] = self.images.get(name, 0) + images

    def means(self) -> dict[str, float]:
        self.look()
        return {name: total / self.images[name] for name, total in self.totals.items()}

    def _diverged(self, name: str, value: float, step: int, lr: float) -> Diverged:
        return Diverged(
            f"{name} became {value} in epoch {self.epoch} of {self.epochs}, at step {step}, learning rate {lr:.4g}. "
            "Lower lr, set clip, or look for values that are not finite in the images."
        )


@dataclass
class _Loop:
    """What stays the same during one call of `fit`."""

    objective: Objective
    loader: Iterable
    plan: Plan
    keeper: Keeper
    every_epoch: Callable[[int], dict[str, float]] | None
    after_step: AfterStep | None

    def __post_init__(self) -> None:
        self.optimiser = self.keeper.optimiser
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.highest = [group["lr"] for group in self.optimiser.param_groups]
        self.device = self.parameters[0].device

    def run(self, label: str) -> list[dict]:
        rows = self.keeper.resume()
        steps = (self.plan.epochs - len(rows)) * len(self.loader)
        ticks = iter(progress(range(steps), label, steps))
        if not rows:
            self.keeper.snapshot(0)
        for epoch in range(len(rows), self.plan.epochs):
            rows.append(self._epoch(epoch, ticks))
            if epoch + 1 == self.plan.epochs:
                self.keeper.snapshot(rows[-1]["step"])
            self.keeper.keep(rows)
        next(ticks, None)
        self.optimiser.zero_grad()
        return rows

    def _epoch(self, epoch: int, ticks: Iterator) -> dict:
        # From both numbers, so that an epoch's draws do not need those before.
        seed_generators(mixed(self.plan.seed, epoch), self.device)
        for module in self.keeper.modules.values():
            module.train()
        if hasattr(self.loader, "epoch"):
            self.loader.epoch = epoch
        sums = Sums(self.plan.epochs, epoch + 1, self.device)
        step = epoch * len(self.loader)
        for batch in batches(self.loader, self.device):
            next(ticks, None)
            self._step(step, batch, sums)
            step += 1
            if self.keeper.save_every and step % self.keeper.save_every == 0:
                sums.look()
                self.keeper.snapshot(step)
        own = {"epoch": epoch + 1, "step": step, "lr": float(self.optimiser.param_groups[0]["lr"])}
        means = sums.means()
        found = self.every_epoch(epoch + 1) if self.every_epoch else {}
        return row_of(own, means, {k: v.item() if hasattr(v, "item") else v for k, v in found.items()})

    def _step(self, step: int, batch: object, sums: Sums) -> None:
        share = learning_rate_factor(self.plan, step, len(self.loader))
        for group, highest in zip(self.optimiser.param_groups, self.highest, strict=True):
            group["lr"] = highest * share
        with autocast(self.plan, self.device):
            terms, figures, *kept = self.objective(batch, step / (self.plan.epochs * len(self.loader)))
            total = total_of(terms, figures)
        images = len(batch.labels if batch.index is None else batch.index)
        of_step = images, step + 1, self.optimiser.param_groups[0]["lr"]
        sums.add(terms, figures, *of_step)
        self.optimiser.zero_grad()
        # `inputs`: a teacher's or a frozen half's parameters get no gradients, whatever their requires_grad says.
        total.backward(inputs=self.parameters)
        if self.plan.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
        self.optimiser.step()
        if self.plan.portable:
            round_weights(self.parameters, self.plan.bits)
        if self.after_step and (found := self.after_step(batch, self.optimiser, *kept)):
            sums.add({}, found, *of_step)


def _groups(modules: dict[str, nn.Module], parameters: Iterable | None, plan: Plan) -> list[dict]:
    """The optimiser's groups, each parameter once."""
    if parameters is None:
        found = chain.from_iterable(module.parameters() for module in modules.values())
        parameters = [p for p in found if p.requires_grad]
    parameters = list(parameters)
    if not parameters:
        raise BadValue("there is nothing to train: no parameter that requires a gradient was given.")
    if not isinstance(parameters[0], dict):
        parameters = [{"params": parameters}]
    return [{"lr": plan.lr, **group, "params": list(dict.fromkeys(group["params"]))} for group in parameters]


def _refuse_contradictions(modules, groups, loader, plan, checkpoint, save_every, snapshots) -> None:
    if not hasattr(loader, "__len__"):
        raise BadValue(
            f"the loader is a {type(loader).__name__} without a length, which schedules need. Give a loader, or a list "
            "of batches (images, labels)."
        )
    if len(loader) == 0:
        raise BadValue("the loader has no batches. Is the split smaller than one batch with drop_last=True?")
    drawn = (loader, getattr(loader, "sampler", None))
    if checkpoint and any(isinstance(getattr(part, "generator", None), torch.Generator) for part in drawn):
        raise BadValue(
            "the loader draws its order from a generator of its own, whose state no checkpoint keeps. Leave `generator`"
            " out: the order then comes from plan.seed."
        )
    if save_every is not None and (snapshots is None or isinstance(save_every, bool) or save_every < 1):
        raise BadValue(f"save_every is {save_every!r}; it must be a number of steps from 1 on, and needs `snapshots`.")
    names = {p: f"{m}.{name}".lstrip(".") for m, module in modules.items() for name, p in module.named_parameters()}
    for number, p in enumerate(chain.from_iterable(group["params"] for group in groups)):
        name = names.get(p, f"parameters[{number}]")
        if p.dtype != plan.dtype:
            raise BadValue(
                f"precision {plan.precision!r} needs weights of {plan.dtype}, but {name} is {p.dtype}. "
                f"Convert the network with .to({plan.dtype}), or choose another precision."
            )
        if p not in names and (checkpoint or snapshots):
            raise BadValue(f"{name} is trained but in none of the modules, so it would not be saved. Add its module.")


def _check_classes(logits: torch.Tensor, dataset: object) -> None:
    if logits.shape[1:] != (dataset.num_classes,):
        raise ShapeMismatch(
            f"the network's output is {tuple(logits.shape)}, but {dataset.name} has {dataset.num_classes} classes. "
            f"Build the network with num_classes={dataset.num_classes}."
        )
