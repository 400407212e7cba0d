"""The experiment of the knowledge-extension notebook: new networks dissimilar to an old one, by several conditions."""

from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field

from reptrans.bench import effect
from reptrans.data import Dataset
from reptrans.experiments.parameters import DatasetParameters, Names, NotNegative, Thousand, Trained, Weight, named
from reptrans.extension.hidden import MODES, Hidden, hidden_losses
from reptrans.extension.lens import lensed
from reptrans.extension.output import OUTPUT_LOSSES, Outputs
from reptrans.extension.sequence import Extended, extend
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.training import Plan


class ExtensionRun(Trained, DatasetParameters):
    """Old and new networks, what the new ones are to avoid, and where.

    `conditions`: names of hidden losses (lin_cka, exp_var, …), of output losses (adaptive_diversity, …), or lens,
    joined by commas; each is tried by itself beside independent training. `layer`: where hidden losses act; `report`:
    other layers whose similarity is reported. `mode`, `sign`, `depth` (-1: the loss's default), `kernel`, `w_dis` of
    Hidden; `weight` of output losses. `count`: networks in each sequence.
    """

    model: str = "cnn5_w8"
    image_size: NotNegative = 0
    limit: NotNegative = 25
    conditions: named(lambda: [*hidden_losses(), *OUTPUT_LOSSES, "lens"], "condition") = (
        "lin_cka,exp_var,adaptive_diversity,lens"
    )
    layer: Names = "conv3"
    report: Names = "conv1,conv2,conv3,conv4,conv5"
    mode: Literal[tuple(MODES)] = "extension"
    sign: Literal[-1, 1] = -1
    depth: int = Field(-1, ge=-1, le=100)
    kernel: Literal[1, 3, 5] = 1
    w_dis: Weight = 1.0
    weight: Weight = 1.0
    count: int = Field(2, ge=2, le=1000)
    seeds: Thousand = 8
    images: int = Field(500, ge=4)

    @property
    def reported(self) -> list[str]:
        """The layers whose similarity is reported."""
        return list(dict.fromkeys([*names(self.report), self.layer]))

    def condition(self, name: str, dataset: Dataset, seed: int):
        """What `extend` takes as its condition, for one name of `conditions`."""
        if name == "lens":
            plan = Plan(epochs=10, optimiser="adam", lr=1e-3, weight_decay=0.0, schedule="constant", seed=seed,
                        precision=self.precision, portable=True)  # fmt: skip
            return lensed(dataset, plan, batch_size=self.batch_size, scales=2, seed=seed)
        if name in OUTPUT_LOSSES:
            return partial(Outputs, loss=name, weight=self.weight)
        depth = None if self.depth < 0 else self.depth
        return partial(
            Hidden, layers=self.layer, loss=name, mode=self.mode, sign=self.sign, depth=depth, kernel=self.kernel,
            w_dis=self.w_dis, seed=seed,
        )  # fmt: skip


def extend_all(p: ExtensionRun, dataset: Dataset, folder: Path) -> pd.DataFrame:
    """`extend` for every seed and condition: its rows, with the condition's name; "independent" is none at all.

    Networks are kept in `folder`, from which an interrupted run goes on. Raises what `extend` does, for all conditions
    before any of them is trained.
    """

    def extended(name: str, seed: int, **how) -> Extended | None:
        return extend(
            p.model, dataset, p.count, p.condition(name, dataset, seed), p.plan(seed), seed, layers=p.reported,
            batch_size=p.batch_size, augment=p.augment, images=p.images, folder=folder, device=p.device, **how,
        )  # fmt: skip

    tables, conditions = [], names(p.conditions)
    for name in conditions:
        extended(name, 0, rehearsal=True)
    for seed in progress(range(p.seeds), "seeds"):
        for number, name in enumerate(conditions):
            rows = extended(name, seed, independent=number == 0).rows
            rows["condition"] = rows["condition"].map(lambda kind, name=name: "independent" if kind == "none" else name)
            # Independent training first, since all else is read beside it.
            tables.append(rows.sort_values("condition", key=lambda c: c != "independent", kind="stable"))
    return pd.concat(tables, ignore_index=True)


def prices(rows: pd.DataFrame, layer: str) -> pd.DataFrame:
    """What each condition changes in the last network of a sequence, against independent training from the same seed.

    For every condition the paired difference of `similarity` at `layer`, of `accuracy` and of `ensemble_accuracy`, each
    with the 95 % interval of its mean over seeds (`_low`, `_high`), and the number of seeds.
    """
    last = rows[rows["k"] == rows["k"].max()]
    at = last[last["layer"] == layer].drop_duplicates(["seed", "condition"])
    found = {}
    for value in ("similarity", "accuracy", "ensemble_accuracy"):
        table = at.pivot(index="seed", columns="condition", values=value)
        for name in at["condition"].unique():
            if name != "independent":
                each = effect(table[name] - table["independent"])
                own = {value: each.mean, f"{value}_low": each.low, f"{value}_high": each.high, "n": each.n}
                found.setdefault(name, {"condition": name}).update(own)
    return pd.DataFrame(found.values())
