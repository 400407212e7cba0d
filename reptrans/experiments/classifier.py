"""The experiment of the training notebook: one network from several seeds, saved along the way."""

import pandas as pd
from pydantic import Field, field_validator

from reptrans.data import Dataset
from reptrans.experiments.parameters import Count, DatasetParameters, NotNegative, Optimiser, Schedule, Trained, Weight
from reptrans.files import file_name
from reptrans.models import build
from reptrans.notebook import names, once, some_names
from reptrans.progress import progress
from reptrans.training import Plan, train_classifier


class ClassifierRun(Trained, DatasetParameters):
    """Every option of the stitching study's training script, under the names this project uses.

    `init_seeds`: seeds of the first weights, joined by commas. `batch_seed`: seed of order and augmentation, -1 for the
    init seed. `save_frequency`: steps between snapshots of the weights; the first and the last are always kept.
    """

    model: str = "tiny10"
    epochs: Count = 4
    init_seeds: str = "0,1"
    batch_seed: int = Field(-1, ge=-1)
    weight_decay: Weight = 1e-4
    optimiser: Optimiser = "sgd"
    schedule: Schedule = "one_cycle"
    save_frequency: NotNegative = 0
    out_dir: str = ""

    @field_validator("init_seeds")
    @classmethod
    def _are_seeds(cls, text: str) -> str:
        if not all(seed.isdecimal() and int(seed) < 2**63 for seed in some_names(text)):
            raise ValueError("seeds are whole numbers from 0 to 2^63 - 1, joined by commas")
        once([int(seed) for seed in names(text)])
        return text

    def plan(self, seed: int) -> Plan:
        return super().plan(seed, optimiser=self.optimiser)


def train_networks(p: ClassifierRun, dataset: Dataset, run) -> pd.DataFrame:
    """Train one network for each init seed in the run's folder; rows by epoch, with init_seed and batch_seed.

    `run`: a `Run`, which gives the folder: snapshots go to `<folder>/<model>-seed<i>/<step>.safetensors`, checkpoints
    to `run.checkpoint(name)`, from which an interrupted training goes on.
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
