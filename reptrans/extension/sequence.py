"""Networks one after another, each conditioned on all before it, and a table of what that did to them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reptrans import paths
from reptrans.checkpoints import default_recipe, fingerprint
from reptrans.data import Batch, Dataset, Loader, Split
from reptrans.data.loader import training_loader
from reptrans.errors import BadValue, check_whole
from reptrans.extension.condition import Condition, labelled
from reptrans.extension.hidden import own_name
from reptrans.files import file_name
from reptrans.layers import cuttable_layers
from reptrans.models import build
from reptrans.randomness import drawing
from reptrans.similarity import compare, ensemble_accuracy, error_consistency, jensen_shannon
from reptrans.training import Plan, fit, pick_device, predict
from reptrans.training.resume import content, structure

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
    check_whole("count", count, 2, more=": a first network, and one beside it.")
    usual_plan, usual_size = default_recipe(dataset)
    s = _Setting(
        model, dataset, plan or usual_plan, usual_size if batch_size is None else batch_size, augment, seed,
        Path(folder or paths.networks_root()), pick_device(device), layers, fold, images,
    )  # fmt: skip
    _rehearse(s, condition)
    if rehearsal:
        return None
    networks, histories, tables = [], [], []
    for k in range(count):
        objective, history = _trained(s, k, networks, condition if k else None)
        histories.append(history)
        if k:
            others = [_trained(s, k, networks, None)[0]] if independent and condition else []
            tables += [_report(s, k, each, networks, _pairs(s, objective)) for each in (objective, *others)]
        networks.append(objective.predictor().eval())
    return Extended(pd.concat(tables, ignore_index=True), networks, pd.concat(histories, ignore_index=True))


class Alone(Condition):
    """The objective of a network beside which there is none: cross-entropy."""

    def __init__(self, new: nn.Module):
        nn.Module.__init__(self)  # and not the Condition's, which wants old networks
        self._new, self._olds, self.settings = (new,), (), {"kind": "none"}

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return labelled(self.new(batch.images), batch.labels)

    def modules_to_train(self) -> dict[str, nn.Module]:
        return {"new": self.new}


def network_seed(seed: int, k: int) -> int:
    """The seed of weights and batches of network k in the sequence `seed`."""
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0] >> np.uint32(1))


@dataclass(frozen=True)
class _Setting:
    """What stays the same in one sequence; see `extend`."""

    model: str | Builder
    dataset: Dataset
    plan: Plan
    batch_size: int
    augment: str
    seed: int
    folder: Path
    device: torch.device
    layers: Sequence[str] | None
    fold: str
    images: int

    def network(self, seed: int) -> nn.Module:
        net = self.model(seed) if callable(self.model) else build(self.model, **self.dataset.form, seed=seed)
        return net.to(self.device, self.plan.dtype)

    def test(self) -> Loader:
        return self.dataset.loader("test", max(self.batch_size, 500), device=self.device, dtype=self.plan.dtype)

    def first(self, count: int) -> Split:
        """The first test images."""
        return self.dataset.test.select(torch.arange(min(count, len(self.dataset.test))))


def _trained(s: _Setting, k: int, olds: list[nn.Module], make: MakeCondition | None) -> tuple[Condition, pd.DataFrame]:
    """Objective and rows of network k, trained or, where its file says that it was, loaded."""
    seed = network_seed(s.seed, k)
    net = s.network(seed)
    built = [structure(net), content(net.state_dict().values())]
    objective = _objective(s, net, list(olds), make)
    loader = training_loader(s.dataset, s.batch_size, seed, s.augment, device=s.device, dtype=s.plan.dtype)
    file = s.folder / _file_name(s, k, built, objective.settings, olds if make else [])
    plan = replace(s.plan, seed=seed)
    rows = fit(objective, objective.modules_to_train(), loader, plan, checkpoint=file, label=f"network {k}")
    return objective, rows.assign(seed=s.seed, k=k, condition=objective.settings["kind"])


def _rehearse(s: _Setting, make: MakeCondition | None) -> None:
    """Let everything that does not fit be said before minutes go into training: a step's losses, and a report."""
    new, old = (s.network(seed).eval() for seed in (0, 1))
    small = replace(s, dataset=replace(s.dataset, test=s.first(_FEW)))
    with drawing(0, double=False):
        objective = _objective(s, new, [old], getattr(make, "rehearse", make)).eval()
        objective(next(iter(small.test())))
    _report(small, 1, objective, [old], _pairs(s, objective))


def _objective(s: _Setting, new: nn.Module, olds: list[nn.Module], make: MakeCondition | None) -> Condition:
    objective = make(new, olds, example=next(iter(s.test().over(s.first(2)))).images) if make else Alone(new)
    if not hasattr(objective, "settings"):
        raise BadValue(f"{type(objective).__name__} is no Condition: derive it from reptrans.extension.Condition.")
    return objective


def _file_name(s: _Setting, k: int, built: list[str], settings: dict, olds: list[nn.Module]) -> str:
    """Named after all that changes the result; `built`: structure and first weights. With the old networks' weights."""
    recipe = [built, fingerprint(s.dataset), [s.plan.facts(), s.batch_size, s.augment, s.seed], settings]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for tensor in (t for old in olds for t in old.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    name = f"extension-{file_name(s.dataset.name)}-s{s.seed}-{k}-{settings['kind']}"
    return f"{name}-{digest.hexdigest()[:8]}.safetensors"


def _pairs(s: _Setting, objective: Condition) -> dict[str, str]:
    """{new layer: old layer} to report on: those asked for, or the objective's own, or else all."""
    found = s.layers or getattr(objective, "layers", None) or cuttable_layers(objective.new)
    return found if isinstance(found, dict) else {name: name for name in found}


def _report(s: _Setting, k: int, objective: Condition, olds: list[nn.Module], pairs: dict[str, str]) -> pd.DataFrame:
    """The rows of one network beside `olds`."""
    net = objective.predictor().eval()
    (*old, new), (labels, *_) = zip(*(predict(each, s.test()) for each in (*olds, net)), strict=True)
    (*shares, share) = [logits.double().softmax(1) for logits in (*old, new)]
    common = {
        "accuracy": _right(new, labels),
        "old_accuracy": float(np.mean([_right(v, labels) for v in old])),
        "ensemble_accuracy": ensemble_accuracy([*old, new], labels),
        "error_consistency": float(np.mean([error_consistency(v, new, labels) for v in old])),
        "jensen_shannon": float(np.mean([jensen_shannon(p, share).item() for p in shares])),
    }
    loader, rows = s.test().over(s.first(s.images)), []
    for name, other in pairs.items():
        here = [own_name(net, name)]
        tables = [compare(net, each, loader, here, [own_name(each, other)], fold=s.fold) for each in olds]
        similarity = float(np.mean([table.iloc[0, 0] for table in tables]))
        rows.append({"seed": s.seed, "k": k, "condition": objective.settings["kind"], "layer": name,
                     "similarity": similarity} | common)  # fmt: skip
    return pd.DataFrame(rows)


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
