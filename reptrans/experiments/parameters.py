"""What experiments share: kinds of parameters, where they run, what they train, the data set, and kept pieces."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import AfterValidator, Field, field_validator, model_validator
from torch import nn

from reptrans.bench import check_grid, number, read_factors
from reptrans.checkpoints import load_network, trained
from reptrans.data import Dataset, load_dataset
from reptrans.errors import BadValue, UnknownName, suggest
from reptrans.models import build
from reptrans.models.from_transformers import tokenizer_of
from reptrans.notebook import Parameters, parts, some_names
from reptrans.progress import stop_if_late
from reptrans.similarity.null import check_null
from reptrans.tensorfiles import load_tensors, save_tensors
from reptrans.training import Plan, pick_device

Count = Annotated[int, Field(ge=1)]
Thousand = Annotated[int, Field(ge=1, le=1000)]
NotNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Schedule = Literal["steps", "one_cycle", "cosine", "constant"]
Optimiser = Literal["sgd", "adam", "adamw"]


def named(options: Callable[[], Iterable[str]] = lambda: (), what: str = "") -> type:
    """A text of names joined by commas, at least one; where there are `options`, some of them or all."""

    def check(text: str) -> str:
        known = list(options())
        for name in some_names(text, known if known and text == "all" else None):
            if known and name not in known:
                raise UnknownName(f"there is no {what} {name!r}. {suggest(name, known)}")
        return text

    return Annotated[str, AfterValidator(check)]


def _enough(number: int) -> int:
    if not number:
        raise BadValue("a null of 0 orders says nothing of chance. Give 20 or more.")
    check_null(number, 0)
    return number


Orders = Annotated[int, AfterValidator(_enough)]  # of the examples, at random, for a null
Names = named()
Exact = Literal["auto", "float32", "float64"]
Precision = Literal["auto", "float32", "float64", "bfloat16"]  # bfloat16 is for what has a use of autocast


class Place(Parameters):
    """Where an experiment computes, and in what precision; "auto" is float64 on a CPU and float32 on a GPU."""

    dtype: Precision = "auto"
    device: str = "auto"

    @property
    def precision(self) -> str:
        """`dtype`, decided."""
        usual = "float64" if pick_device(self.device).type == "cpu" else "float32"
        return usual if self.dtype == "auto" else self.dtype

    @property
    def place(self) -> dict[str, object]:
        """Device and type of images and weights, as a Loader takes them; bfloat16 is autocast over float32."""
        device = pick_device(self.device)
        if device.type == "cuda":  # products of float32 in TF32
            torch.set_float32_matmul_precision("high")
        return {"device": device, "dtype": Plan(precision=self.precision).dtype}


class Trained(Place):
    """How an experiment trains what it is about; see Plan."""

    epochs: Count = 30
    lr: Positive = 0.1
    batch_size: Count = 50
    weight_decay: Weight = 5e-4
    schedule: Schedule = "cosine"
    augment: str = "none"

    def plan(self, seed: int, **more) -> Plan:
        """The plan of these parameters; `more` of Plan's."""
        same = {name: getattr(self, name) for name in ("epochs", "lr", "weight_decay", "schedule")}
        return Plan(**same | {"precision": self.precision, "portable": True, "seed": seed} | more)


class DatasetParameters(Parameters):
    """The parameters that name a data set; 0 and "" stand for "as it is". Meanings as in `load_dataset`."""

    dataset: str = "digits"
    image_size: int = Field(32, ge=0, le=10_000)
    limit: NotNegative = 0
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


class TwoNetworks(Parameters):
    """A front and an end network: names, and files with their weights, one path or several joined by commas."""

    front_model: str = "tiny10"
    end_model: str = "tiny10"
    front_checkpoint: str = ""
    end_checkpoint: str = ""


class TrainingParameters(Place, DatasetParameters):
    """The data set, and how the networks of an experiment are trained on it, once; see Plan.

    `train_lr`: the highest learning rate of SGD. `train_augment`: none, standard, or some of flip, crop and cutout.
    """

    train_epochs: Count = 4
    train_lr: Positive = 0.1
    train_batch_size: Count = 50
    train_schedule: Schedule = "one_cycle"
    train_augment: str = "none"

    def train_plan(self, seed: int) -> Plan:
        """The plan of these parameters, in the precision of the experiment."""
        return Plan(
            epochs=self.train_epochs, lr=self.train_lr, schedule=self.train_schedule, precision=self.precision,
            portable=True, seed=seed,
        )  # fmt: skip

    def recipe(self, seed: int) -> dict:
        """What `trained` is told of these parameters."""
        return {"plan": self.train_plan(seed), "batch_size": self.train_batch_size, "augment": self.train_augment}

    def trained(self, model: str, dataset: Dataset, seed: int, folder: Path | None = None) -> nn.Module:
        """`trained` by these parameters."""
        return trained(model, dataset, seed, **self.recipe(seed), folder=folder, device=self.device)

    def network(self, model: str, dataset: Dataset, seed: int, path: str | Path = "") -> nn.Module:
        """The network whose weights are in the file at `path`, or else one that is trained from `seed`."""
        if not path:
            return self.trained(model, dataset, seed)
        place = self.place
        net = build(model, **dataset.form).to(place["dtype"])
        return load_network(net, path).to(place["device"]).eval()


class Tried(Parameters):
    """How the methods of a comparison are tried before it; see `bench`.

    `grid`: what the published weights of every method are multiplied by in its trials, "" for none; the best by
    validation over `tuning_seeds` seeds is kept for other ones. `factors`: the same, given, as in at:0.3,sp:0.1; others
    stay as published. `holdout`: training images of each class for validation alone, or that share of them, below 1.
    """

    grid: str = ""
    factors: str = ""
    tuning_seeds: Thousand = 2
    holdout: Positive = 20.0

    @classmethod
    def tried(cls) -> Collection[str]:
        """The names that may have a factor; each comparison says which."""
        return ()

    @property
    def trials(self) -> list[float]:
        """The factors of `grid`."""
        return [number(text) for text in parts(self.grid)]

    @field_validator("grid")
    @classmethod
    def _is_a_grid(cls, text: str) -> str:
        if text:
            check_grid(map(number, parts(text)))
        return text

    @field_validator("factors")
    @classmethod
    def _are_factors(cls, text: str) -> str:
        read_factors(text, cls.tried())
        return text

    @model_validator(mode="after")
    def _is_one_choice(self) -> Self:
        if self.grid and self.factors:
            raise BadValue(
                f"grid {self.grid!r} asks for trials and factors {self.factors!r} gives their outcome. Leave one empty."
            )
        return self


Keep = Callable[[str], Path]  # a name, to the path of what is kept under it


def piece(path: Path, make: Callable[..., object], *given) -> object:
    """What was stored at `path`, or else what `make(*given)` gives, stored there: so an interrupted run goes on.

    Raises OutOfTime, see `stop_if_late`, before anything new is made.
    """
    if not path.is_file():
        stop_if_late()
        save_tensors(path, make(*given))
    return load_tensors(path)[0]
