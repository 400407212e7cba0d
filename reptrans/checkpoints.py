"""Trained networks on disk: read weights of any plain kind, load them strictly, train once and keep.

`save_tensors` and `load_tensors`, for nested tensors in one file, are in `tensorfiles`.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Literal

import pandas as pd
import torch
from filelock import FileLock
from pydantic import Field
from torch import Tensor, nn

from reptrans import paths
from reptrans.data import Dataset
from reptrans.errors import BadCheckpoint, BadValue, CannotWrite
from reptrans.models import build
from reptrans.notebook import DatasetParameters
from reptrans.tensorfiles import existing, incomplete, load_tensors, save_tensors
from reptrans.training import Plan, pick_device, train_classifier

__all__ = [
    "TrainingParameters",
    "default_recipe",
    "fingerprint",
    "load_network",
    "load_tensors",
    "read_weights",
    "save_tensors",
    "trained",
]

State = dict[str, Tensor]

_SUFFIXES = (".safetensors", ".pt", ".pth", ".tar")
_NESTING = ("state_dict", "model_state_dict", "model", "net")


def read_weights(path: str | Path) -> State:
    """The weights in a file, by name, on the CPU: .safetensors, or .pt, .pth, .tar as written by torch.save.

    A dict around them ('state_dict', 'model_state_dict', 'model', 'net') and the prefix 'module.' of a network saved
    from several GPUs are taken off. No file can run code: pickles of anything but plain data are refused.
    Raises BadCheckpoint for a file that is missing, incomplete, refused or has no weights; BadValue for another suffix.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise BadValue(f"{path.name} has the suffix {path.suffix!r}. Possible: {', '.join(_SUFFIXES)}")
    state = load_tensors(path)[0] if path.suffix == ".safetensors" else _unpickled(existing(path))
    return _weights_in(state, path)


def load_network(net: nn.Module, path: str | Path, *, translate: Callable[[State], State] | None = None) -> nn.Module:
    """Copy all weights of the file into `net`, and return it; nothing is copied unless everything fits.

    `translate` turns the file's names into the network's. A BatchNorm counter (`num_batches_tracked`) that a file from
    before torch 0.4.1 lacks stays as it is. Raises BadCheckpoint naming the first weight that is missing, of another
    shape, or too much.
    """
    state = read_weights(path)
    copy_weights(net, translate(state) if translate else state, Path(path))
    return net


def copy_weights(net: nn.Module, state: State, path: Path) -> None:
    """`net`'s weights become those of `state`, read from `path`; see `load_network`."""
    wanted = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    counters = {name: value for name, value in wanted.items() if name.endswith(".num_batches_tracked")}
    if difference := _first_difference(state, wanted, set(counters), _called(net)):
        raise BadCheckpoint(f"{path} does not fit: {difference}.")
    net.load_state_dict(counters | state)


def trained(
    model: str,
    dataset: Dataset,
    seed: int = 0,
    *,
    plan: Plan | None = None,
    batch_size: int | None = None,
    batch_seed: int | None = None,
    augment: str = "none",
    folder: str | Path | None = None,
    device: str = "cpu",
    shipped: bool = True,
) -> nn.Module:
    """The network `model` trained on the Dataset: loaded if it was trained before, else trained once and kept.

    `seed` decides the initial weights, `batch_seed` (None: the same number) order and augmentation. `plan` and
    `batch_size`: None for `default_recipe`, with `seed`. `folder`: None for `reptrans.paths.networks_root()`. The file
    is named after model, dataset, seed and a hash of all that changes the result, and holds recipe, rows and a digest
    of recipe and weights as metadata. The networks of the notebooks' defaults are shipped with the package and need no
    training, unless `shipped` is False. An interrupted training goes on from its last whole epoch. Returned in eval
    mode, on `device`, in the plan's precision. Raises BadCheckpoint for a file whose recipe or digest does not fit.
    """
    usual_plan, usual_size = default_recipe(dataset, seed)
    plan, batch_size = plan or usual_plan, batch_size or usual_size
    batch_seed = seed if batch_seed is None else batch_seed
    order = {"batch_size": batch_size, "batch_seed": batch_seed, "augment": augment}
    recipe = {"model": model, "dataset": fingerprint(dataset), "seed": seed, **order, "plan": asdict(plan)}
    path = Path(folder or paths.networks_root()) / _file_name(model, dataset, seed, recipe)
    if shipped and (own := paths.shipped_networks() / path.name).is_file():
        path = own
    device = pick_device(str(device))
    shape = {"num_classes": dataset.num_classes, "in_channels": dataset.channels, "image_size": dataset.image_size}
    net = build(model, **shape, seed=seed).to(plan.dtype)
    with _alone(path):
        if path.exists():
            _load_own(net, path, recipe)
        else:
            partial = path.with_name(f"{path.stem}.partial.safetensors")
            rows = train_classifier(net, dataset, plan, **order, device=device, checkpoint=partial, label=path.stem)
            _keep(net, path, partial, recipe, rows)
    return net.to(device).eval()


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


def default_recipe(dataset: Dataset, seed: int = 0) -> tuple[Plan, int]:
    """Plan and batch size of `trained`: seconds on one core for up to 5,000 images, else the defaults of Plan and 128.

    The short one is in float64 and portable, so that the weights are the same on every CPU.
    """
    if len(dataset.train) <= 5000:
        return Plan(epochs=4, lr=0.1, schedule="one_cycle", precision="float64", portable=True, seed=seed), 50
    return Plan(seed=seed), 128


def fingerprint(dataset: Dataset) -> str:
    """Name, sizes and a checksum that tell one Dataset from another: `digits-1438-359-1x32x32-0f3a9c21`.

    The checksum is over all training labels, up to 64 training images spread over the split, mean and std.
    """
    train = dataset.train
    chosen = torch.arange(0, len(train), max(1, len(train) // 64))
    images = train.batch(chosen)
    digest = hashlib.sha256()
    for tensor in (images, train.labels):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr((tuple(dataset.mean), tuple(dataset.std))).encode())
    sides = "x".join(str(size) for size in images.shape[1:])
    return f"{dataset.name}-{len(train)}-{len(dataset.test)}-{sides}-{digest.hexdigest()[:8]}"


def digest(recipe: dict, state: State) -> str:
    """16 hex digits that tell whether a file still holds what was trained by `recipe`: of it and of all weights."""
    found = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for name, value in sorted(state.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of several processes that want the network at `path`, one trains it and the others wait, and load it."""
    if path.exists():  # perhaps in a folder that cannot be written to
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.stem}.lock")).acquire()
    except OSError as error:
        raise CannotWrite(f"could not write in {path.parent}: {error.strerror}. Choose another folder.") from error
    with held:
        yield


def _unpickled(path: Path) -> object:
    with path.open("rb") as file, warnings.catch_warnings():
        # About the pickle protocol, which says nothing to who only wants to know whether the file can be read.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        # A file that breaks off, or is none of torch's, raises whatever the reader happened to stumble over.
        except Exception as error:
            raise (_refusal(path) if _is_refusal(error, file, path) else incomplete(path)) from error


def _is_refusal(error: Exception, file: BinaryIO, path: Path) -> bool:
    """Whether the reader met a complete name that is not of plain weights, and not one cut short by the file's end."""
    met_a_name = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
    return met_a_name and (zipfile.is_zipfile(path) or file.read(1) != b"")


def _refusal(path: Path) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} was refused: it is a pickle of more than weights, and reading it would run code. "
        "Where you trust it, save its state_dict() with torch.save, and read that."
    )


def _weights_in(state: object, path: Path) -> State:
    while isinstance(state, dict) and (inner := [n for n in _NESTING if isinstance(state.get(n), dict)]):
        state = state[inner[0]]
    if not isinstance(state, dict) or not state:
        raise BadCheckpoint(f"{path} holds no weights: a dict of tensors was expected, found {_described(state)}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise BadCheckpoint(
                f"{path} holds no weights: a dict of tensors was expected, but its entry {name!r} is "
                f"{_described(value)}."
            )
    prefixed = all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if prefixed else name: value.detach() for name, value in state.items()}


def _described(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(repr, list(value)[:5]))}" if value else "an empty dict"
    return f"a {type(value).__name__}"


def _called(net: nn.Module) -> str:
    # The class says which network it is, unless it is one of torch's containers.
    return "the network" if type(net).__module__.startswith("torch.nn.") else type(net).__name__


def _first_difference(state: State, wanted: State, optional: set[str], net: str) -> str | None:
    """What a reader should know about the first name, in the network's order, that does not agree; None if all do."""
    missing = [name for name in wanted if name not in state and name not in optional]
    unexpected = [name for name in state if name not in wanted]
    reshaped = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    wrong = [name for name in wanted if name in missing or name in reshaped] + unexpected
    if not wrong:
        return None
    name, count = wrong[0], f"{len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
    has = f"{name} {tuple(state[name].shape)}" if name in state else f"no {name}"
    needs = f"needs {tuple(wanted[name].shape)}" if name in wanted else "has no such weight"
    return f"the checkpoint has {has}, {net} {needs} ({count}, of {len(wanted)})"


def _file_name(model: str, dataset: Dataset, seed: int, recipe: dict) -> str:
    short = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9_.]+", "_", model)
    return f"{plain}-{dataset.name}-s{seed}-{short}.safetensors"


def _keep(net: nn.Module, path: Path, partial: Path, recipe: dict, rows: pd.DataFrame) -> None:
    state = dict(net.state_dict())
    found = {"recipe": recipe, "rows": rows.to_dict("records"), "digest": digest(recipe, state)}
    save_tensors(path, state, found)
    partial.unlink(missing_ok=True)


def _load_own(net: nn.Module, path: Path, recipe: dict) -> None:
    state, meta = load_tensors(path)
    if meta.get("recipe") != json.loads(json.dumps(recipe)):
        raise BadCheckpoint(f"{path} is not of the recipe its name stands for. Delete it, and it is trained again.")
    if (there := meta.get("digest")) != (here := digest(recipe, state)):
        raise BadCheckpoint(
            f"{path}: its digest is {there}, but {here} is that of its weights and of its recipe ({meta['recipe']}). "
            "The file was changed after it was written. Delete it, and it is trained again."
        )
    copy_weights(net, state, path)
