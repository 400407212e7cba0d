"""What experiments share: the parameters that name a data set, and those of the networks that are trained on it."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import nn

from reptrans.checkpoints import trained
from reptrans.data import Dataset, load_dataset
from reptrans.models.from_transformers import tokenizer_of
from reptrans.notebook import Parameters, parts
from reptrans.training import Plan


class DatasetParameters(Parameters):
    """The parameters that name a data set; 0 and "" stand for "as it is". Meanings as in `load_dataset`."""

    dataset: str = "digits"
    image_size: int = Field(32, ge=0, le=10_000)
    limit: int = Field(0, ge=0)
    normalise: str = ""
    channels: Literal[0, 1, 3] = 0

    def load(self) -> Dataset:
        """The data set that the parameters name; raises what `load_dataset` does.

        Text is read by the tokenizer that lies beside the first network that has one, or else byte by byte.
        """
        about = {"image_size": self.image_size, "normalise": self.normalise, "channels": self.channels}
        if self.dataset.startswith("text:"):  # for which the usual size of images says nothing
            about = {name: value for name, value in about.items() if value != type(self).model_fields[name].default}
            about["tokenizer"] = next(filter(None, map(tokenizer_of, self._networks())), None)
        given = {name: value or None for name, value in about.items()}
        return load_dataset(self.dataset, limit=self.limit or None, **given)

    def _networks(self) -> list[str]:
        """The networks that the parameters name."""
        named = ("front_model", "end_model", "model", "models")
        return [name for field in named for name in parts(getattr(self, field, ""))]


class TrainingParameters(DatasetParameters):
    """The data set, and how the networks of an experiment are trained on it, once; see Plan.

    `train_lr`: the highest learning rate of SGD. `train_augment`: none, standard, or some of flip, crop and cutout. The
    experiment, which inherits, says `dtype` and `device`.
    """

    train_epochs: int = Field(4, ge=1)
    train_lr: float = Field(0.1, gt=0)
    train_batch_size: int = Field(50, ge=1)
    train_schedule: Literal["steps", "one_cycle", "cosine", "constant"] = "one_cycle"
    train_augment: str = "none"

    def train_plan(self, seed: int) -> Plan:
        """The plan of these parameters, in the precision of the experiment."""
        return Plan(
            epochs=self.train_epochs, lr=self.train_lr, schedule=self.train_schedule, precision=self.dtype,
            portable=True, seed=seed,
        )  # fmt: skip

    def recipe(self, seed: int) -> dict:
        """What `trained` is told of these parameters."""
        return {"plan": self.train_plan(seed), "batch_size": self.train_batch_size, "augment": self.train_augment}

    def trained(self, model: str, dataset: Dataset, seed: int, folder: Path | None = None) -> nn.Module:
        """`trained` by these parameters."""
        return trained(model, dataset, seed, **self.recipe(seed), folder=folder, device=self.device)
