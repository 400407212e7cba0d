"""The experiment of the notebook: one source network, one target task with few images, and every method on it."""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reptrans.checkpoints import fingerprint, load_network, read_weights, trained
from reptrans.data import Dataset
from reptrans.errors import BadValue
from reptrans.experiments.parameters import (
    Count,
    DatasetParameters,
    Names,
    NotNegative,
    Positive,
    Thousand,
    Trained,
    Weight,
)
from reptrans.l2t.baselines import METHODS, Answers, AttentionTransfer, Method, start_from
from reptrans.l2t.matching import Matching, look
from reptrans.l2t.regressors import Pair
from reptrans.l2t.subsets import of_classes, smaller
from reptrans.l2t.transfer import Meta, Transfer
from reptrans.l2t.weights import ACTIVATIONS
from reptrans.models import build, from_l2t
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.randomness import drawing
from reptrans.training import Plan, evaluate, evaluating, fit


class L2TRun(Trained, DatasetParameters):
    """A source, a target task, the methods, and how both are trained.

    `source_classes`: the source learns so many classes of the data set, from all their images, and the target the
    others, from `limit` images each. With `source_weights`, a file for `source_model`, the target learns all classes.
    `source_layers`, `target_layers`: what "all" pairs; "one_to_one" takes those of equal sides, "single" the last of
    these. `T` to `order` as in Meta, `like`, `beta`, `activation` as in Matching. `test_images`: the first so many; 0
    for all.
    """

    image_size: NotNegative = 0
    limit: NotNegative = 5
    source_classes: int = Field(5, ge=2)
    source_model: str = "cnn3_w8"
    source_weights: str = ""
    source_layers: Names = "relu1,relu2,relu3"
    model: str = "cnn3_w8"
    target_layers: Names = "relu1,relu2,relu3"
    methods: str = "all"
    seeds: Thousand = 3
    epochs: Count = 80
    batch_size: Count = 25
    weight_decay: Weight = 1e-4
    beta: Weight = 0.5
    attention_weight: Weight = 1.0
    answers_weight: Weight = 1.0
    T: int = Field(2, ge=0, le=1000)
    every: Count = 1
    warmup: NotNegative = 8
    meta_lr: Positive = 3e-3
    order: Literal["second", "first"] = "second"
    activation: Literal[ACTIVATIONS] = "relu6"
    like: Literal["", "authors"] = ""
    test_images: NotNegative = 0

    @field_validator("methods")
    @classmethod
    def _are_known(cls, text: str) -> str:
        for needed in ("scratch", "l2t_ww"):
            if needed not in names(text, METHODS):
                raise BadValue(f"{needed} is missing, with which the notebook compares the others")
        return text

    def plan(self, seed: int) -> Plan:
        return super().plan(seed, nesterov=False)

    def meta(self) -> Meta:
        return Meta(T=self.T, every=self.every, warmup=self.warmup, lr=self.meta_lr, order=self.order, portable=True)


def tasks(p: L2TRun) -> tuple[Dataset, Dataset]:
    """(what the source learns, what the target learns).

    Raises, before anything is trained, what of the networks, layers and methods does not fit: see `rehearse`.
    """
    if p.source_weights:
        dataset = p.load()
        return dataset, smaller(dataset, test=p.test_images)
    whole = p.model_copy(update={"limit": 0}).load()
    if p.source_classes > whole.num_classes - 2:
        raise BadValue(
            f"source_classes is {p.source_classes}, but {whole.name} has {whole.num_classes} classes and the target "
            "needs two of them at least."
        )
    first = of_classes(whole, range(p.source_classes))
    other = of_classes(whole, range(p.source_classes, whole.num_classes))
    other = smaller(other, p.limit, p.test_images)
    rehearse(p, build(p.source_model, **first.form).to(**p.place).eval(), other)
    return first, other


def rehearse(p: L2TRun, source: nn.Module, dataset: Dataset) -> None:
    """Try a step's losses by every method on a few images, so that what does not fit is said before any training."""
    few = dataset.loader("train", min(8, len(dataset.train)), **p.place)
    with drawing(0, double=False), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # pairs that are dead in an untrained source may not be in the trained one
        for name in names(p.methods, METHODS):
            transfer_of(p, METHODS[name], source, dataset, 0)[1].eval()(next(iter(few)))


def source_network(p: L2TRun, dataset: Dataset) -> nn.Module:
    """The frozen source: read from `source_weights`, or trained on `dataset` (or loaded, if it was before)."""
    if not p.source_weights:
        return trained(p.source_model, dataset, device=p.device).to(**p.place)
    state = read_weights(p.source_weights)
    theirs = any(name.startswith("block1.") for name in state)
    head = [value for value in state.values() if value.ndim == 2][-1]
    net = build(p.source_model, **dataset.form | {"num_classes": len(head)})
    return load_network(net, p.source_weights, translate=from_l2t if theirs else None).to(**p.place).eval()


def pairs_of(kind: str, target: nn.Module, source: nn.Module, layers: tuple[list, list], example: Tensor) -> list[Pair]:
    """The (source layer, target layer) that "single", "one_to_one" or "all" stands for; see `L2TRun`."""
    with evaluating(source, target), torch.no_grad():
        (_, s), (_, t) = (look(net, of, example, True) for net, of in zip((source, target), layers, strict=True))
    if kind == "all":
        return list(product(*layers))
    equal = [next(((a, b) for b in layers[1] if s[a].shape[2:] == t[b].shape[2:]), None) for a in layers[0]]
    equal = [pair for pair in equal if pair]
    if not equal:
        raise BadValue(
            f"no source layer has maps of a target layer's size, which {kind!r} pairs need: source "
            f"{_sides(s)}; target {_sides(t)}. Name other layers."
        )
    return equal[-1:] if kind == "single" else equal


def transfer_of(
    p: L2TRun, method: Method, source: nn.Module, dataset: Dataset, seed: int
) -> tuple[nn.Module, Transfer]:
    """(a new target, the objective of its training) by one method."""
    target = build(p.model, **dataset.form, seed=seed).to(**p.place)
    example = next(iter(dataset.loader("train", min(8, len(dataset.train)), **p.place))).images
    if method.starts:
        start_from(target, source, example)
    parts, layers = [], (names(p.source_layers), names(p.target_layers))
    pairs = pairs_of(method.pairs, target, source, layers, example) if method.pairs else []
    if method.attention:
        parts.append(AttentionTransfer(target, source, pairs, example, p.attention_weight))
    if method.answers:
        parts.append(Answers(target, source, example, p.answers_weight, seed=seed))
    if method.matching:
        parts.append(Matching(
            target, source, pairs, example, like=p.like or None, seed=seed, what=method.what, where=method.where,
            beta=p.beta, activation=p.activation,
        ))  # fmt: skip
    return target, Transfer(target, source, parts, p.meta(), example=example, classes=dataset.num_classes)


def train_one(
    p: L2TRun, name: str, source: nn.Module, dataset: Dataset, seed: int, folder: Path
) -> tuple[nn.Module, Transfer, pd.DataFrame]:
    """(target, objective, rows by epoch) of one method and seed; test figures in the last row.

    A file in `folder` keeps the training, from which an interrupted one goes on; a complete one is only read.
    """
    target, transfer = transfer_of(p, METHODS[name], source, dataset, seed)
    train = dataset.loader(
        "train", p.batch_size, shuffle=True, seed=seed, augment=p.augment, drop_last=len(dataset.train) >= p.batch_size,
        **p.place,
    )  # fmt: skip

    def at_the_end(epoch: int) -> dict[str, float]:
        if epoch < p.epochs:
            return {}
        found = evaluate(target, dataset.loader("test", max(p.batch_size, 250), **p.place))
        return {"test_accuracy": found["accuracy"], "test_cross_entropy": found["cross_entropy"]}

    rows = fit(
        transfer, transfer.modules_to_train(), train, p.plan(seed), parameters=transfer.trained(),
        after_step=transfer.after_step, every_epoch=at_the_end, checkpoint=folder / _file_name(p, name, dataset, seed),
        label=f"{name}, seed {seed}",
    )  # fmt: skip
    return target.eval(), transfer, rows.assign(method=name, seed=seed)


def train_all(p: L2TRun, source: nn.Module, dataset: Dataset, folder: Path) -> pd.DataFrame:
    """`train_one` for every method and seed: all rows, by epoch."""
    rehearse(p, source, dataset)
    jobs = [(seed, name) for seed in range(p.seeds) for name in names(p.methods, METHODS)]
    tables = [train_one(p, name, source, dataset, seed, folder)[2] for seed, name in progress(jobs, "trainings")]
    return pd.concat(tables, ignore_index=True)


def costs(p: L2TRun, source: nn.Module, dataset: Dataset) -> pd.DataFrame:
    """What a step costs by each method: multiply-adds, in forward passes of the target on the same batch.

    Columns: method; "step", the real one with the source's pass; "probe", what follows it where f or g is learned.
    """
    one = next(iter(dataset.loader("train", min(p.batch_size, len(dataset.train)), **p.place)))
    found = []
    for name in names(p.methods, METHODS):
        at_once = p.model_copy(update={"warmup": 0, "every": 1})
        target, transfer = transfer_of(at_once, METHODS[name], source, dataset, 0)
        optimiser = torch.optim.SGD(transfer.trained(), lr=1e-3, momentum=0.9)

        kept = []

        def step(transfer=transfer, optimiser=optimiser, kept=kept) -> None:
            terms, _, due = transfer(one)
            sum(terms.values()).backward(inputs=transfer.trained())
            optimiser.step()
            kept.append(due)

        unit = _multiply_adds(lambda target=target: target(one.images))
        taken = {"step": _multiply_adds(step) / unit}
        probe = _multiply_adds(lambda t=transfer, o=optimiser, due=kept[0]: t.after_step(one, o, due)) / unit
        found.append({"method": name} | taken | {"probe": probe})
    return pd.DataFrame(found)


def _multiply_adds(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def _file_name(p: L2TRun, name: str, dataset: Dataset, seed: int) -> str:
    """Named after all that changes the result."""
    apart = ("methods", "seeds", "device", "test_images")
    recipe = {key: value for key, value in p.model_dump().items() if key not in apart}
    text = json.dumps([recipe, asdict(METHODS[name]), fingerprint(dataset)], sort_keys=True)
    return f"l2t-{name}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.safetensors"


def _sides(seen: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(x.shape[2:])}" for name, x in seen.items())
