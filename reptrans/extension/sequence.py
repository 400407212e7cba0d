"""Networks one after another, each conditioned on all before it, and a table of what that did to them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reptrans import paths
from reptrans.checkpoints import default_recipe, fingerprint
from reptrans.data import Dataset
from reptrans.errors import BadValue
from reptrans.extension.condition import Condition, labelled
from reptrans.extension.hidden import own_name
from reptrans.files import file_name
from reptrans.layers import cuttable_layers
from reptrans.models import build
from reptrans.randomness import drawing
from reptrans.similarity import compare, ensemble_accuracy, error_consistency, jensen_shannon
from reptrans.training import Plan, fit, pick_device, predict

_FEW = 32  # images of a rehearsal: as many as similarities need

Builder = Callable[[int], nn.Module]
MakeCondition = Callable[..., Condition]


@dataclass
class Extended:
    """`rows`, see `extend`; `networks`, the first and all conditioned on those before; `history`, rows by epoch."""

    rows: pd.DataFrame
    networks: list[nn.Module]
    history: pd.DataFrame


def extend(
    model: str | Builder,
    dataset: Dataset,
    count: int = 2,
    condition: MakeCondition | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int | None = None,
    augment: str = "none",
    independent: bool = True,
    fold: str = "pixels",
    images: int = 1000,
    folder: str | Path | None = None,
    device: str = "cpu",
    rehearsal: bool = False,
) -> Extended | None:
    """Train `count` networks in sequence, network k (from 0) with `condition(new, olds, example=images)` on 0 to k - 1.

        extend("tiny10", digits, 2, functools.partial(Hidden, layers="bn5"))

    Rows, for each k from 1 and each layer: seed, k, condition, layer; similarity, the debiased CKA of the layer on the
    first `images` test images (the mean over the old networks; `fold`: see `similarity.fold`); test accuracy, the mean
    old_accuracy, ensemble_accuracy (mean softmax of 0 to k); error_consistency (kappa, comparable only at equal
    accuracy) and jensen_shannon (bits), means over old networks. With `independent`, rows of the same for a network
    from the same weights and batches without condition, condition "none": what would have been.
    `model`: a name, or a function from a seed to a network. `layers`: None for the condition's, else all where the
    network can be cut. `plan`, `batch_size`: None for `default_recipe`. `folder` (None: that of trained networks) keeps
    a file for each network, from which an interrupted training goes on.
    Raises, before anything is trained, BadValue, what the condition raises, and what `compare` does at the layers: both
    are tried on untrained networks, which with `rehearsal` is all. A condition that trains has a `rehearse` for that.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 2:
        raise BadValue(f"count is {count!r}; it must be a whole number from 2 on: a first network, and one beside it.")
    usual_plan, usual_size = default_recipe(dataset)
    trainer = _Trainer(
        model, dataset, plan or usual_plan, usual_size if batch_size is None else batch_size, augment, seed,
        Path(folder or paths.networks_root()), pick_device(device),
    )  # fmt: skip
    trainer.rehearse(condition, layers, fold)
    if rehearsal:
        return None
    networks, histories, tables = [], [], []
    for k in range(count):
        made = trainer.train(k, networks, condition if k else None)
        histories.append(made.history)
        if k:
            others = [trainer.train(k, networks, None)] if independent and condition else []
            for each in (made, *others):
                tables.append(_report(trainer, k, each, networks, layers or made.layers, fold, images))
        networks.append(made.network)
    return Extended(pd.concat(tables, ignore_index=True), networks, pd.concat(histories, ignore_index=True))


class Alone(nn.Module):
    """The objective of a network beside which there is none: cross-entropy."""

    def __init__(self, new: nn.Module):
        super().__init__()
        self._new, self.settings = (new,), {"kind": "none"}

    def forward(self, batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return labelled(self._new[0](batch.images), batch.labels)

    def modules_to_train(self) -> dict[str, nn.Module]:
        return {"new": self._new[0]}

    def predictor(self) -> nn.Module:
        return self._new[0]


@dataclass
class _Made:
    network: nn.Module
    kind: str
    layers: dict[str, str]
    history: pd.DataFrame


@dataclass
class _Trainer:
    """What stays the same in one sequence."""

    model: str | Builder
    dataset: Dataset
    plan: Plan
    batch_size: int
    augment: str
    seed: int
    folder: Path
    device: torch.device

    def train(self, k: int, olds: list[nn.Module], condition: MakeCondition | None) -> _Made:
        """Network k, trained or, where its file says that it was, loaded."""
        seed = network_seed(self.seed, k)
        new = self._build(seed).to(self.device, self.plan.dtype)
        objective = self._objective(new, list(olds), condition)
        history = fit(
            objective, objective.modules_to_train(), self._loader(seed), replace(self.plan, seed=seed),
            checkpoint=self.folder / self._file_name(k, objective.settings, olds if condition else []),
            label=f"network {k}",
        )  # fmt: skip
        kind, pairs = objective.settings["kind"], self._pairs(objective, new)
        return _Made(objective.predictor().eval(), kind, pairs, history.assign(seed=self.seed, k=k, condition=kind))

    def rehearse(self, condition: MakeCondition | None, layers: object, fold: str) -> None:
        """Let everything that does not fit be said before minutes go into training: a step's losses, and a report."""
        new, old = (self._build(seed).to(self.device, self.plan.dtype).eval() for seed in (0, 1))
        few = self.dataset.test.select(torch.arange(min(_FEW, len(self.dataset.test))))
        small = replace(self, dataset=replace(self.dataset, test=few))
        with drawing(0, double=False):
            objective = self._objective(new, [old], getattr(condition, "rehearse", condition)).eval()
            objective(next(iter(small.test())))
        made = _Made(objective.predictor().eval(), "", self._pairs(objective, new), pd.DataFrame())
        _report(small, 1, made, [old], layers or made.layers, fold, _FEW)

    def _objective(self, new: nn.Module, olds: list[nn.Module], condition: MakeCondition | None) -> nn.Module:
        objective = condition(new, olds, example=self._example()) if condition else Alone(new)
        if not hasattr(objective, "settings"):
            raise BadValue(f"{type(objective).__name__} is no Condition: derive it from reptrans.extension.Condition.")
        return objective

    def _pairs(self, objective: nn.Module, new: nn.Module) -> dict[str, str]:
        """{new layer: old layer} of the objective, or else all layers."""
        return getattr(objective, "layers", {}) or {name: name for name in cuttable_layers(new)}

    def test(self) -> object:
        return self.dataset.loader("test", max(self.batch_size, 500), device=self.device, dtype=self.plan.dtype)

    def _build(self, seed: int) -> nn.Module:
        if callable(self.model):
            return self.model(seed)
        d = self.dataset
        return build(self.model, **d.form, seed=seed)

    def _example(self) -> Tensor:
        two = self.dataset.test.select(torch.arange(min(2, len(self.dataset.test))))
        return next(iter(self.test().over(two))).images

    def _loader(self, seed: int) -> object:
        whole = len(self.dataset.train) >= self.batch_size
        return self.dataset.loader(
            "train", self.batch_size, shuffle=True, seed=seed, augment=self.augment, drop_last=whole,
            device=self.device, dtype=self.plan.dtype,
        )  # fmt: skip

    def _file_name(self, k: int, settings: dict, olds: list[nn.Module]) -> str:
        """Named after all that changes the result, the old networks' weights included."""
        name = self.model if isinstance(self.model, str) else f"{self.model.__module__}.{self.model.__qualname__}"
        training = [asdict(self.plan), self.batch_size, self.augment, self.seed]
        recipe = [name, fingerprint(self.dataset), training, settings]
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        for tensor in (t for old in olds for t in old.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        name = f"extension-{file_name(self.dataset.name)}-s{self.seed}-{k}-{settings['kind']}"
        return f"{name}-{digest.hexdigest()[:8]}.safetensors"


def network_seed(seed: int, k: int) -> int:
    """The seed of weights and batches of network k in the sequence `seed`."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0] >> np.uint32(1))


def _report(
    t: _Trainer, k: int, made: _Made, olds: list[nn.Module], layers: object, fold: str, images: int
) -> pd.DataFrame:
    """The rows of one network beside `olds`."""
    pairs = dict(layers) if isinstance(layers, dict) else {name: name for name in layers}
    answers = [predict(net, t.test()) for net in (*olds, made.network)]
    labels, (*old, new) = answers[0][1], [logits for logits, _ in answers]
    shares = [v.double().softmax(1) for v in (*old, new)]
    common = {
        "accuracy": _right(new, labels),
        "old_accuracy": float(np.mean([_right(v, labels) for v in old])),
        "ensemble_accuracy": ensemble_accuracy([*old, new], labels),
        "error_consistency": float(np.mean([error_consistency(v, new, labels) for v in old])),
        "jensen_shannon": float(np.mean([jensen_shannon(p, shares[-1]).item() for p in shares[:-1]])),
    }
    first = t.dataset.test.select(torch.arange(min(images, len(labels))))
    loader = t.test().over(first)
    rows = []
    for name, other in pairs.items():
        there = [[own_name(net, other)] for net in olds]
        here = [own_name(made.network, name)]
        tables = [compare(made.network, net, loader, here, o, fold=fold) for net, o in zip(olds, there, strict=True)]
        alike = [table.iloc[0, 0] for table in tables]
        rows.append({"seed": t.seed, "k": k, "condition": made.kind, "layer": name,
                     "similarity": float(np.mean(alike))} | common)  # fmt: skip
    return pd.DataFrame(rows)


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
