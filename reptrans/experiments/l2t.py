"""The experiment of the notebook: one source network, one target task with few images, and every method on it."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from reptrans.bench import TUNING, chosen, plain_trial, read_factors, verdicts
from reptrans.checkpoints import fingerprint, load_network, read_weights, trained
from reptrans.data import Dataset
from reptrans.data.dataset import of_classes, smaller
from reptrans.data.loader import training_loader
from reptrans.errors import BadValue, Diverged
from reptrans.experiments.parameters import (
    Count,
    DatasetParameters,
    Names,
    NotNegative,
    Positive,
    Thousand,
    Trained,
    Tried,
    Weight,
    piece,
)
from reptrans.l2t.baselines import METHODS, Answers, AttentionTransfer, Method, evenness, on_bright, start_from
from reptrans.l2t.matching import ACTIVATIONS, Matching, Pair, look
from reptrans.l2t.transfer import Meta, Transfer
from reptrans.models import build, from_l2t
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.randomness import drawing
from reptrans.training import Plan, evaluate, evaluating, fit
from reptrans.training.operations import operations
from reptrans.training.resume import split_content

_NEEDED = ("scratch", "fm_all", "l2t_ww")
_FEW = 200  # validation images on which learned weights and saliency are looked at


class L2TRun(Tried, Trained, DatasetParameters):
    """A source, a target task, the methods, how both are trained, and how the methods are compared (see `bench`).

    `source_classes`: the source learns so many classes of the data set, from all their images, and the target the
    others; its training, of `source_epochs`, is one cycle. With `source_weights`, a file for `source_model`, the target
    learns all classes.
    `limit`: from so many images of each class the target learns, drawn anew for every seed from those that are not for
    validation, 0 for all. `grid`, `factors`, `tuning_seeds`, `holdout`: see Tried.
    `source_layers`, `target_layers`: what "all" pairs; "one_to_one" takes those of equal sides, "single" the last of
    these. `look_every`: epochs between two looks at validation images. `T` to `order`
    as in Meta, `like`, `beta`, `activation` as in Matching. `test_images`: so many, evenly spaced; 0 for all.
    """

    image_size: NotNegative = 0
    limit: NotNegative = 5
    holdout: Positive = 50.0
    source_classes: int = Field(5, ge=2)
    source_model: str = "cnn3_w8"
    source_weights: str = ""
    source_epochs: Count = 15
    source_layers: Names = "relu1,relu2,relu3"
    model: str = "cnn3_w8"
    target_layers: Names = "relu1,relu2,relu3"
    methods: str = "scratch,fine_tuning,at,fm,fm_all,l2t_ww"
    tuning_seeds: Thousand = 8
    seeds: Thousand = 8
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
    look_every: Count = 10
    test_images: NotNegative = 0

    @field_validator("methods")
    @classmethod
    def _are_known(cls, text: str) -> str:
        for needed in _NEEDED:
            if needed not in names(text, METHODS):
                raise BadValue(f"{needed} is missing, with which the notebook compares the others")
        return text

    @classmethod
    def tried(cls) -> list[str]:
        return [*METHODS]

    def plan(self, seed: int) -> Plan:
        return super().plan(seed, nesterov=False)

    def source_recipe(self) -> dict:
        """How the source is trained, where its weights are not given."""
        plan = Plan(epochs=self.source_epochs, lr=0.1, schedule="one_cycle", precision=self.precision, portable=True)
        return {"plan": plan, "batch_size": 50}

    def meta(self) -> Meta:
        return Meta(T=self.T, every=self.every, warmup=self.warmup, lr=self.meta_lr, order=self.order, portable=True)


@dataclass
class Transferred:
    """`rows`: one per method, seed and epoch; `scores`, `validation`: test and validation accuracy of each seed (index)
    and method; `trials`: validation scores by which factors were chosen, empty where there were none; `chosen`:
    {method: factor}; `pairs`: lambda in the last epoch and evenness of w, by seed and pair of l2t_ww; `looks`: share of
    the saliency on bright pixels, as `scores`."""

    rows: pd.DataFrame
    scores: pd.DataFrame
    validation: pd.DataFrame
    trials: pd.DataFrame
    chosen: dict[str, float]
    pairs: pd.DataFrame
    looks: pd.DataFrame


def tasks(p: L2TRun) -> tuple[Dataset, Dataset]:
    """(what the source learns, what the target learns: all its images, of which `drawn` takes a few for each seed).

    Raises, before anything is trained, what of the images, networks, layers and methods does not fit: see `rehearse`.
    """
    whole = p.model_copy(update={"limit": 0}).load()
    if p.source_weights:
        return whole, smaller(whole, test=p.test_images).with_validation(p.holdout)
    if p.source_classes > whole.num_classes - 2:
        raise BadValue(
            f"source_classes is {p.source_classes}, but {whole.name} has {whole.num_classes} classes and the target "
            "needs two of them at least."
        )
    first = of_classes(whole, range(p.source_classes))
    other = of_classes(whole, range(p.source_classes, whole.num_classes))
    other = smaller(other, test=p.test_images).with_validation(p.holdout)
    rehearse(p, build(p.source_model, **first.form).to(**p.place).eval(), other)
    return first, other


def drawn(p: L2TRun, dataset: Dataset, seed: int) -> Dataset:
    """The data set with `limit` training images of each class alone, drawn by `seed`; BadValue where a class has
    fewer."""
    return replace(dataset, train=dataset.train.limit(p.limit, seed, dataset.classes)) if p.limit else dataset


def rehearse(p: L2TRun, source: nn.Module, dataset: Dataset) -> None:
    """Try a step's losses by every method on a few images, so that what does not fit is said before any training."""
    dataset = drawn(p, dataset, 0)
    few = dataset.loader("train", min(8, len(dataset.train)), **p.place)
    with drawing(0, double=False), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # pairs that are dead in an untrained source may not be in the trained one
        for name in names(p.methods, METHODS):
            transfer_of(p, METHODS[name], source, dataset, 0)[1].eval()(next(iter(few)))


def source_network(p: L2TRun, dataset: Dataset) -> nn.Module:
    """The frozen source: read from `source_weights`, or trained on `dataset` (or loaded, if it was before)."""
    if not p.source_weights:
        return trained(p.source_model, dataset, **p.source_recipe(), device=p.device).to(**p.place).eval()
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


def strengthened(p: L2TRun, name: str, factor: float) -> L2TRun:
    """The parameters of a method with `factor` times its published strength; where it has none, see `plain_trial`."""
    if not METHODS[name].weighted:
        rate, decay = plain_trial(factor)
        return p.model_copy(update={"lr": p.lr * rate, "weight_decay": p.weight_decay * decay})
    strengths = ("beta", "attention_weight", "answers_weight")
    return p.model_copy(update={strength: getattr(p, strength) * factor for strength in strengths})


def train_one(
    p: L2TRun, name: str, source: nn.Module, dataset: Dataset, seed: int, folder: Path
) -> tuple[nn.Module, Transfer, pd.DataFrame]:
    """(target, objective, rows by epoch) of one method and seed, from all training images of `dataset`.

    Where it has validation images, the accuracy on them stands in the rows of every `look_every`th and the last epoch.
    A file in `folder` keeps the training, from which an interrupted one goes on; a complete one is only read.
    """
    target, transfer = transfer_of(p, METHODS[name], source, dataset, seed)
    train = training_loader(dataset, p.batch_size, seed, p.augment, **p.place)

    def look_at(epoch: int) -> dict[str, float]:
        if dataset.validation is None or (epoch % p.look_every and epoch < p.epochs):
            return {}
        return {"validation_accuracy": _evaluated(p, target, dataset, "validation")["accuracy"]}

    rows = fit(
        transfer, transfer.modules_to_train(), train, p.plan(seed), parameters=transfer.trained(),
        after_step=transfer.after_step, every_epoch=look_at, checkpoint=folder / _file_name(p, name, dataset, seed),
        label=f"{name}, seed {seed}",
    )  # fmt: skip
    return target.eval(), transfer, rows.assign(method=name, seed=seed)


def train_all(p: L2TRun, source: nn.Module, dataset: Dataset, folder: Path) -> Transferred:
    """The trials of every method, if there is a grid, and then its trainings with the factor that was chosen or given.

    All methods of a seed start from the same weights and see the same images. Test images are looked at once for each
    network of the second part, at its end. What is done is kept in `folder`, and an interrupted run goes on from there.
    """
    rehearse(p, source, dataset)
    tried = trials(p, source, dataset, folder)
    factors = dict.fromkeys(names(p.methods, METHODS), 1.0)
    known = chosen(tried) if len(tried) else read_factors(p.factors, METHODS)
    factors |= {name: factor for name, factor in known.items() if name in factors}
    # Seed 0 is the source's, and a target of its kind would start from the very weights that it started from.
    jobs = list(product(range(1, p.seeds + 1), factors))
    made = {
        (seed, name): _kept(strengthened(p, name, factors[name]), name, source, drawn(p, dataset, seed), seed, folder)
        for seed, name in progress(jobs, "trainings")
    }

    def by_seed(figure: str) -> pd.DataFrame:
        table = pd.Series({job: each[figure] for job, each in made.items()}).unstack()
        return table[list(factors)].rename_axis(index="seed", columns=None)

    return Transferred(
        rows=pd.concat([pd.DataFrame(each["rows"]) for each in made.values()], ignore_index=True),
        scores=by_seed("test_accuracy"),
        validation=by_seed("validation_accuracy"),
        trials=tried,
        chosen=factors,
        pairs=pd.concat([pd.DataFrame(made[job]["pairs"]) for job in jobs if job[1] == "l2t_ww"], ignore_index=True),
        looks=by_seed("on_bright"),
    )


def trials(p: L2TRun, source: nn.Module, dataset: Dataset, folder: Path) -> pd.DataFrame:
    """Validation accuracy of every method, trial and tuning seed, at the end of training; empty without a grid."""
    seeds = [TUNING + 1 + k for k in range(p.tuning_seeds)]
    jobs = list(product(names(p.methods, METHODS), p.trials, seeds))
    rows = []
    for name, trial, seed in progress(jobs, "trials") if jobs else ():
        own, few = strengthened(p, name, trial), drawn(p, dataset, seed)
        kept = folder / f"trial-{_file_name(own, name, few, seed)}"
        score = piece(kept, _validated, own, name, source, few, seed, folder)["score"]
        rows.append({"method": name, "trial": trial, "seed": seed, "score": score})
    return pd.DataFrame(rows)


def gains(found: Transferred) -> tuple[pd.DataFrame, str]:
    """(table, note): what each method gains over scratch, and a method that learns weights over its pairs unlearned;
    l2t_ww also over the best of fixed pairs, by validation. See `verdicts`.

    The control is fine-tuning over scratch, or, where the networks are of two kinds and that is not there, fm_all over
    scratch: where equal weights of all pairs give nothing, there is nothing that learned ones could get right.
    """
    over = {name: ("scratch", name) for name in found.scores if name != "scratch"}
    more = [("l2t_w_single", "fm_single"), ("l2t_w", "fm"), ("l2t_ww", "fm_all"), ("l2t_ww", best_fixed(found))]
    there = [(name, base) for name, base in more if {name, base} <= set(found.scores)]
    over |= {f"{name} over {base}": (base, name) for name, base in there}
    scores = found.scores.assign(**{row: found.scores[name] for row, (_, name) in over.items()})
    control = ("fine_tuning" if "fine_tuning" in found.scores else "fm_all", "scratch")
    table, note = verdicts(scores, {row: base for row, (base, _) in over.items()}, control=control)
    table["method"] = [over[row][1] for row in table["method"]]
    table.insert(2, "factor", [found.chosen[name] for name in table["method"]])
    return table, note


def best_fixed(found: Transferred) -> str:
    """The method of given pairs with given weights whose validation accuracy is best; "" where there is none."""
    fixed = [name for name in found.validation if METHODS[name].fixed]
    return str(found.validation[fixed].mean().idxmax()) if fixed else ""


def agreement(table: pd.DataFrame, value: str) -> float:
    """Mean rank correlation of `value` by pair between every two seeds, from -1 to 1; NaN where there are no two.

    `table`: columns pair, seed and `value`. A seed whose values are all equal has no order, and is left out.
    """
    by_seed = table.pivot(index="pair", columns="seed", values=value)
    unequal = by_seed.loc[:, by_seed.nunique() > 1]
    each = [unequal[a].corr(unequal[b], method="spearman") for a, b in combinations(unequal, 2)]
    return float(pd.Series(each, dtype=float).mean())


def _kept(p: L2TRun, name: str, source: nn.Module, dataset: Dataset, seed: int, folder: Path) -> dict[str, object]:
    """`_reported`, or what it gave before."""
    file = _file_name(p, name, dataset, seed)
    found = piece(folder / f"report-{file}", _reported, p, name, source, dataset, seed, folder)
    (folder / file).unlink(missing_ok=True)  # weights and momentum of all trainings would fill a disk
    return found


def _reported(p: L2TRun, name: str, source: nn.Module, dataset: Dataset, seed: int, folder: Path) -> dict[str, object]:
    """All that is told of one training, as lists and numbers."""
    target, transfer, rows = train_one(p, name, source, dataset, seed, folder)
    some = next(iter(dataset.loader("validation", min(_FEW, len(dataset.validation)), **p.place)))
    return {
        "test_accuracy": _evaluated(p, target, dataset, "test")["accuracy"],
        "validation_accuracy": float(rows["validation_accuracy"].iloc[-1]),
        "on_bright": float(on_bright(target, some.images, some.labels, dataset.validation.batch(some.index)).mean()),
        "pairs": _pairs(transfer, rows, some.images, seed),
        "rows": {column: rows[column].tolist() for column in rows},
    }


def _pairs(transfer: Transfer, rows: pd.DataFrame, images: Tensor, seed: int) -> dict[str, list]:
    """By pair: lambda over the last epoch, and how even w is on some images; empty without a matching."""
    what = transfer.chosen(images)[0] if transfer.matching else {}
    named = {f"{s} > {t}": weights for (s, t), weights in what.items()}
    return {
        "pair": list(named),
        "lambda": [float(rows[pair].iloc[-1]) for pair in named],
        "evenness": [float(evenness(weights).mean()) for weights in named.values()],
        "seed": [seed] * len(named),
    }


def _validated(p: L2TRun, name: str, source: nn.Module, dataset: Dataset, seed: int, folder: Path) -> dict[str, float]:
    """Validation accuracy at the end of a training; 0 of one that diverged, which is a trial that failed."""
    try:
        score = float(train_one(p, name, source, dataset, seed, folder)[2]["validation_accuracy"].iloc[-1])
    except Diverged:
        score = 0.0
    (folder / _file_name(p, name, dataset, seed)).unlink(missing_ok=True)
    return {"score": score}


def _evaluated(p: L2TRun, target: nn.Module, dataset: Dataset, part: str) -> dict[str, float]:
    return evaluate(target, dataset.loader(part, max(p.batch_size, 250), **p.place))


def costs(p: L2TRun, source: nn.Module, dataset: Dataset) -> pd.DataFrame:
    """What a step costs by each method: multiply-adds, in forward passes of the target on the same batch.

    Columns: method; "step", the real one with the source's pass; "probe", what follows it where f or g is learned.
    """
    dataset = drawn(p, dataset, 0)
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

        unit = operations(lambda target=target: target(one.images))
        taken = {"step": operations(step) / unit}
        probe = operations(lambda t=transfer, o=optimiser, due=kept[0]: t.after_step(one, o, due)) / unit
        found.append({"method": name} | taken | {"probe": probe})
    return pd.DataFrame(found)


def _file_name(p: L2TRun, name: str, dataset: Dataset, seed: int) -> str:
    """Named after all that changes the result."""
    apart = ("methods", "grid", "factors", "tuning_seeds", "seeds", "device", "test_images")
    recipe = {key: value for key, value in p.model_dump().items() if key not in apart}
    data = [fingerprint(dataset), split_content(dataset.test)]
    text = json.dumps([recipe, asdict(METHODS[name]), data], sort_keys=True)
    return f"l2t-{name}-s{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.safetensors"


def _sides(seen: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(x.shape[2:])}" for name, x in seen.items())
