"""The experiment of the knowledge-extension notebook: new networks unlike an old one, by several conditions."""

from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field, field_validator

from reptrans.data import Dataset
from reptrans.errors import UnknownName, suggest
from reptrans.experiments.parameters import DatasetParameters
from reptrans.extension.hidden import MODES, Hidden
from reptrans.extension.lens import lensed
from reptrans.extension.losses import hidden_losses
from reptrans.extension.output import OUTPUT_LOSSES, Outputs
from reptrans.extension.sequence import Extended, extend
from reptrans.notebook import names, some_names
from reptrans.progress import progress
from reptrans.training import Plan


class ExtensionRun(DatasetParameters):
    """Old and new networks, what the new ones are to avoid, and where.

    `conditions`: names of hidden losses (lin_cka, exp_var, …), of output losses (adaptive_diversity, …), or lens,
    joined by commas; each is tried by itself beside independent training. `layer`: where hidden losses act; `report`:
    other layers whose similarity is reported. `mode`, `sign`, `depth` (-1: the loss's default), `kernel`, `w_dis` of
    Hidden; `weight` of output losses. `count`: networks in each sequence.
    """

    model: str = "cnn3_w8"
    image_size: int = Field(0, ge=0)
    limit: int = Field(25, ge=0)
    conditions: str = "lin_cka,exp_var,l2_corr,adaptive_diversity,lens"
    layer: str = "conv2"
    report: str = "conv1,conv2,conv3"
    mode: Literal[tuple(MODES)] = "extension"
    sign: Literal[-1, 1] = -1
    depth: int = Field(-1, ge=-1, le=100)
    kernel: Literal[1, 3, 5] = 1
    w_dis: float = Field(1.0, ge=0)
    weight: float = Field(1.0, ge=0)
    count: int = Field(2, ge=2, le=1000)
    seeds: int = Field(5, ge=1, le=1000)
    epochs: int = Field(30, ge=1)
    lr: float = Field(0.1, gt=0)
    batch_size: int = Field(50, ge=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["steps", "one_cycle", "cosine", "constant"] = "cosine"
    augment: str = "none"
    images: int = Field(500, ge=4)
    dtype: Literal["float32", "float64", "bfloat16"] = "float64"
    device: str = "auto"

    @field_validator("conditions")
    @classmethod
    def _are_known(cls, text: str) -> str:
        possible = [*hidden_losses(), *OUTPUT_LOSSES, "lens"]
        for name in some_names(text):
            if name not in possible:
                raise UnknownName(f"there is no condition {name!r}. {suggest(name, possible)}")
        return text

    @field_validator("report", "layer")
    @classmethod
    def _are_some(cls, text: str) -> str:
        some_names(text)
        return text

    @property
    def reported(self) -> list[str]:
        """The layers whose similarity is reported."""
        return list(dict.fromkeys([*names(self.report), self.layer]))

    def plan(self, seed: int) -> Plan:
        return Plan(
            epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay, schedule=self.schedule,
            precision=self.dtype, portable=True, seed=seed,
        )  # fmt: skip

    def condition(self, name: str, dataset: Dataset, seed: int):
        """What `extend` takes as its condition, for one name of `conditions`."""
        if name == "lens":
            plan = Plan(epochs=10, optimiser="adam", lr=1e-3, weight_decay=0.0, schedule="constant", seed=seed,
                        precision=self.dtype, portable=True)  # fmt: skip
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
