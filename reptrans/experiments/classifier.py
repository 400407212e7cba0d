"""The experiment of the training notebook: one network from several seeds, saved along the way."""

from typing import Literal

import pandas as pd
from pydantic import Field, field_validator

from reptrans.data import Dataset, load_dataset
from reptrans.files import file_name
from reptrans.models import build
from reptrans.notebook import Parameters, names, once, some_names
from reptrans.progress import progress
from reptrans.training import Plan, train_classifier


class ClassifierRun(Parameters):
    """Every option of the stitching study's training script, under the names this project uses.

    `init_seeds`: seeds of the first weights, joined by commas. `batch_seed`: seed of order and augmentation, -1 for the
    init seed. `save_frequency`: steps between snapshots of the weights; the first and the last are always kept.
    """

    model: str = "tiny10"
    dataset: str = "digits"
    image_size: int = Field(32, ge=0)
    limit: int = Field(0, ge=0)
    channels: Literal[0, 1, 3] = 0
    epochs: int = Field(4, ge=1)
    lr: float = Field(0.1, gt=0)
    batch_size: int = Field(50, ge=1)
    init_seeds: str = "0,1"
    batch_seed: int = Field(-1, ge=-1)
    weight_decay: float = Field(1e-4, ge=0)
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["steps", "one_cycle", "cosine", "constant"] = "one_cycle"
    augment: str = "none"
    save_frequency: int = Field(0, ge=0)
    out_dir: str = ""
    dtype: Literal["float32", "float64", "bfloat16"] = "float64"
    device: str = "auto"

    @field_validator("init_seeds")
    @classmethod
    def _are_seeds(cls, text: str) -> str:
        if not all(seed.isdecimal() and int(seed) < 2**63 for seed in some_names(text)):
            raise ValueError("seeds are whole numbers from 0 to 2^63 - 1, joined by commas")
        once([int(seed) for seed in names(text)])
        return text

    def load(self) -> Dataset:
        """The data set that the parameters name."""
        return load_dataset(
            self.dataset, image_size=self.image_size or None, limit=self.limit or None, channels=self.channels or None
        )

    def plan(self, seed: int) -> Plan:
        return Plan(
            epochs=self.epochs, lr=self.lr, weight_decay=self.weight_decay, optimiser=self.optimiser,
            schedule=self.schedule, precision=self.dtype, portable=True, seed=seed,
        )  # fmt: skip


def train_networks(p: ClassifierRun, dataset: Dataset, run) -> pd.DataFrame:
    """Train one network for each init seed in the run's folder; rows by epoch, with init_seed and batch_seed.

    `run` gives the folder: snapshots go to `<folder>/<model>-seed<i>/<step>.safetensors`, checkpoints to
    `run.checkpoint(name)`, from which an interrupted training goes on.
    """
    tables = []
    for seed in progress([int(seed) for seed in names(p.init_seeds)], "networks"):
        order = seed if p.batch_seed < 0 else p.batch_seed
        net = build(p.model, **dataset.form, seed=seed).to(p.plan(order).dtype)
        name = f"{file_name(p.model)}-seed{seed}"
        rows = train_classifier(
            net, dataset, p.plan(order), batch_size=p.batch_size, augment=p.augment, batch_seed=order, device=p.device,
            checkpoint=run.checkpoint(f"{name}.safetensors"), save_every=p.save_frequency or None,
            snapshots=run.folder / name, label=name,
        )  # fmt: skip
        tables.append(rows.assign(init_seed=seed, batch_seed=order))
    return pd.concat(tables, ignore_index=True)
