"""Trained networks on disk: read weights of any plain kind, load them strictly, train once and keep.

`save_tensors` and `load_tensors`, for nested tensors in one file, are in `tensorfiles`.
"""

import hashlib
import json
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from os.path import commonprefix
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reptrans import paths
from reptrans.data import Dataset
from reptrans.errors import BadCheckpoint, BadValue, suggest
from reptrans.files import file_name, locked
from reptrans.models import build, source_digest
from reptrans.tensorfiles import digest_of, existing, incomplete, load_tensors, save_tensors
from reptrans.training import Plan, pick_device, train_classifier
from reptrans.training.resume import content, some_of, split_content, structure

__all__ = [
    "default_recipe",
    "fingerprint",
    "load_network",
    "load_tensors",
    "read_weights",
    "save_tensors",
    "trained",
]

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".th", ".tar")
# Where the weights lie in what training scripts save: of several, the first of these is taken.
_NESTING = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
# Names before the network's own: of several GPUs, of torch.compile, of a module that holds it for training.
_WRAPPERS, _HOLDERS = ("module.", "_orig_mod."), ("model.", "net.")
# What old scripts save beside weights and is plain data: one NumPy number, and the options of a command line.
_PLAIN = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdg"),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    Namespace,
]


def read_weights(path: str | Path, part: str = "") -> State:
    """The weights in a file, by name, on the CPU: .safetensors, or .pt, .pth, .ckpt, .bin, .th, .tar of torch.save.

    What lies around them is taken off: dicts ('state_dict', 'model_state_dict', 'model', 'net', 'state_dict_ema',
    'model_ema': the first of these that is there, with a warning that names the others, or `part`), and the prefixes
    'module.' and '_orig_mod.' of a network saved from several GPUs or compiled. No file can run code: pickles of
    anything but plain data are refused. Raises BadCheckpoint for a file that is missing, incomplete, damaged, refused
    or has no weights; BadValue for another suffix or part.
    """
    path = paths.expanded(path, "a checkpoint")
    if path.suffix.lower() not in SUFFIXES:
        raise BadValue(f"{path.name} has the suffix {path.suffix!r}. Possible: {', '.join(SUFFIXES)}")
    state = load_tensors(path)[0] if path.suffix.lower() == ".safetensors" else _unpickled(existing(path))
    return _weights_in(state, path, part)


def load_network(
    net: nn.Module, path: str | Path, *, translate: Callable[[State], State] | None = None, part: str = ""
) -> nn.Module:
    """Copy all weights of the file into `net`, and return it; nothing is copied unless everything fits.

    `translate` turns the file's names into the network's; `part` as in `read_weights`. A prefix of all names, such as
    'model.', may be there on one side and not on the other. A BatchNorm counter (`num_batches_tracked`) that a file
    from before torch 0.4.1 lacks stays as it is. Raises BadCheckpoint naming the first weight that is missing, of
    another shape, too much, not finite or no fraction.
    """
    state = read_weights(path, part)
    copy_weights(net, translate(state) if translate else state, Path(path))
    return net


def copy_weights(net: nn.Module, state: State, path: Path) -> None:
    """`net`'s weights become those of `state`, read from `path`; see `load_network`."""
    state, own = fitted(net, state, path), net.state_dict()
    for name, value in state.items():
        _refuse_no_weight(name, value, own[name], path)
    net.load_state_dict(state, strict=False)


def fitted(net: nn.Module, state: State, path: Path) -> State:
    """`state` under the names that `net` has; BadCheckpoint where names or shapes do not fit."""
    wanted = {name: value for name, value in net.state_dict().items() if isinstance(value, Tensor)}
    state = _renamed(state, list(wanted))
    state = {name: value for name, value in wanted.items() if name.endswith(".num_batches_tracked")} | state
    _refuse_difference(state, wanted, path, type(net))
    return state


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
    is named after model, dataset, seed and a hash of all that changes the result (of a network from elsewhere also its
    structure, first weights and code), and holds recipe, rows and a digest of recipe and weights as metadata. The
    networks of the notebooks' defaults are shipped with the package and need no training, unless `shipped` is False. An
    interrupted training goes on from its last whole epoch. Returned in eval mode, on `device`, in the plan's precision.
    Raises BadCheckpoint for a file whose recipe, digest or training images do not fit.
    """
    usual_plan, usual_size = default_recipe(dataset, seed)
    plan, batch_size = plan or usual_plan, usual_size if batch_size is None else batch_size
    batch_seed = seed if batch_seed is None else batch_seed
    order = {"batch_size": batch_size, "batch_seed": batch_seed, "augment": augment}
    net = build(model, **dataset.form, seed=seed).to(plan.dtype)
    recipe = {"model": model, "dataset": fingerprint(dataset), "seed": seed, **order, "plan": plan.facts()}
    recipe |= _made_elsewhere(model, net)
    path = Path(folder or paths.networks_root()) / _file_name(model, dataset, seed, recipe)
    if shipped and (own := paths.shipped_networks() / path.name).is_file():
        path = own
    device = pick_device(str(device))
    # Of several processes that want the network, one trains it and the others wait, and load it. One that is there may
    # be in a folder that cannot be written to.
    with nullcontext() if path.exists() else locked(path.with_name(f".{path.stem}.lock")):
        if path.exists():
            _load_own(net, path, recipe, split_content(dataset.train))
        else:
            partial = path.with_name(f"{path.stem}.partial.safetensors")
            rows = train_classifier(net, dataset, plan, **order, device=device, checkpoint=partial, label=path.stem)
            state = dict(net.state_dict())
            about = {"recipe": recipe, "rows": rows.to_dict("records"), "digest": digest_of(state, recipe)}
            about["images"] = split_content(dataset.train)
            save_tensors(path, state, about)
            partial.unlink(missing_ok=True)
    return net.to(device).eval()


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
    images, labels = some_of(dataset.train)
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    statistics = (dataset.mean, dataset.std) if isinstance(dataset, Dataset) else ((), ())
    digest.update(repr(tuple(map(tuple, statistics))).encode())
    sides = "x".join(str(size) for size in images.shape[1:])
    return f"{dataset.name}-{len(labels)}-{len(dataset.test)}-{sides}-{digest.hexdigest()[:8]}"


def _made_elsewhere(model: str, net: nn.Module) -> dict:
    """What tells a network that is not of this package from another of its name: files, structure, first weights."""
    if not {"/", ":"} & set(model):
        return {}
    start = [value for value in net.state_dict().values() if isinstance(value, Tensor)]
    return {"network": {"files": source_digest(model), "structure": structure(net), "start": content(start)}}


def _unpickled(path: Path) -> object:
    with path.open("rb") as file, warnings.catch_warnings():
        # About the pickle protocol, which says nothing to who only wants to know whether the file can be read.
        warnings.simplefilter("ignore", UserWarning)
        try:
            with torch.serialization.safe_globals(_PLAIN):
                return torch.load(file, map_location="cpu", weights_only=True)
        # A file that breaks off, or is none of torch's, raises whatever the reader happened to stumble over.
        except Exception as error:
            if "TorchScript" in str(error):
                raise _refusal(path, "a TorchScript program", f"torch.jit.load({path.name!r}).state_dict()") from error
            met = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
            # A name of something else than weights, and not one that is cut short by the file's end.
            if met and (zipfile.is_zipfile(path) or file.read(1)):
                raise _refusal(path, f"a pickle of more than weights ({met[1]})", "its state_dict()") from error
            raise incomplete(path) from error


def _refusal(path: Path, holds: str, weights: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} was refused: it is {holds}, and reading it would run code. "
        f"Where you trust it, save {weights} with torch.save, and read that."
    )


def _weights_in(state: object, path: Path, part: str = "") -> State:
    offered = []
    while isinstance(state, dict) and (inner := [n for n in _NESTING if isinstance(state.get(n), dict)]):
        taken = part if part in inner else inner[0]
        if not part and len(inner) > 1:
            others = " or ".join(f"part={name!r}" for name in inner[1:])
            warnings.warn(f"{path} holds several networks, and {taken!r} is taken. Another: {others}.", stacklevel=3)
        state, offered = state[taken], offered + inner
    if part and part not in offered:
        raise BadValue(f"{path} has no part {part!r}. {suggest(part, offered or ['none, for it has no parts'])}.")
    entries = state.items() if isinstance(state, dict) else ()
    odd = [entry for entry in entries if not isinstance(entry[0], str) or not isinstance(entry[1], Tensor)]
    if odd or not entries:
        found = f"but its entry {odd[0][0]!r} is {_described(odd[0][1])}" if odd else f"found {_described(state)}"
        raise BadCheckpoint(f"{path} holds no weights: a dict of tensors was expected, {found}.")
    bare = _levels(list(state), _WRAPPERS)[-1]
    return {name: value.detach() for name, value in zip(bare, state.values(), strict=True)}


def _levels(names: list[str], prefixes: tuple[str, ...] = _WRAPPERS + _HOLDERS) -> list[list[str]]:
    """The names without torch.compile's mark, then again and again without a prefix that all of them have."""
    levels = [[name.replace("_orig_mod.", "") for name in names]]
    while prefix := next((p for p in prefixes if names and all(n.startswith(p) for n in levels[-1])), ""):
        levels.append([name.removeprefix(prefix) for name in levels[-1]])
    return levels


def _renamed(state: State, wanted: list[str]) -> State:
    """`state` under the names of `wanted`, where they agree but for prefixes of all; the other names stay."""
    pairs = [(theirs, ours) for theirs in _levels(list(state)) for ours in _levels(wanted)]
    theirs, ours = max(pairs, key=lambda pair: len(set(pair[0]) & set(pair[1])))
    own = dict(zip(ours, wanted, strict=True))
    return {own.get(bare, name): value for bare, (name, value) in zip(theirs, state.items(), strict=True)}


def _refuse_no_weight(name: str, value: Tensor, own: Tensor, path: Path) -> None:
    """BadCheckpoint unless `value` may stand in the place of the network's `own`."""
    if own.is_floating_point() and not value.is_floating_point():
        raise BadCheckpoint(
            f"{path} does not fit: {name} is {value.dtype}, and the network's is {own.dtype}. Save the weights as "
            "real floating-point numbers."
        )
    value = value.to(own.dtype)
    # A mask of a network may be infinite; then it is so in both.
    if not value.isfinite().all() and not ((value == own.to(value.device)) | value.isfinite()).all():
        raise BadCheckpoint(
            f"{path} is no use: {name} holds NaN or infinity in {own.dtype}. Take the weights from before the training "
            "diverged, or from another copy."
        )


def _described(value: object) -> str:
    if isinstance(value, dict):
        return f"a dict with {', '.join(map(repr, list(value)[:5]))}" if value else "an empty dict"
    return f"a {type(value).__name__}"


def _refuse_difference(state: State, wanted: State, path: Path, kind: type) -> None:
    """BadCheckpoint about the first name, in the network's order, that does not agree."""
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    reshaped = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    wrong = [name for name in wanted if name in missing or name in reshaped] + unexpected
    if not wrong:
        return
    name, count = wrong[0], f"{len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
    has = f"{name} {tuple(state[name].shape)}" if name in state else f"no {name}"
    needs = f"needs {tuple(wanted[name].shape)}" if name in wanted else "has no such weight"
    if name in missing and unexpected:
        near = max(unexpected, key=lambda other: len(commonprefix([other[::-1], name[::-1]])))
        has = f"{has} but {near} {tuple(state[near].shape)}"
    # The class says which network it is, unless it is one of torch's containers.
    net = "the network" if kind.__module__.startswith("torch.nn.") else kind.__name__
    raise BadCheckpoint(f"{path} does not fit: the checkpoint has {has}, {net} {needs} ({count}, of {len(wanted)}).")


def _file_name(model: str, dataset: Dataset, seed: int, recipe: dict) -> str:
    short = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    return f"{file_name(model)}-{file_name(dataset.name)}-s{seed}-{short}.safetensors"


def _load_own(net: nn.Module, path: Path, recipe: dict, images: str) -> None:
    again = "Move it away, and it is trained again."
    try:
        state, meta = load_tensors(path)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{error} {again}") from error
    if meta.get("recipe") != json.loads(json.dumps(recipe)):
        raise BadCheckpoint(f"{path} is not of the recipe its name stands for. {again}")
    if meta.get("images", images) != images:
        raise BadCheckpoint(f"{path} was trained on other images under the same name, with the same labels. {again}")
    if (there := meta.get("digest")) != (here := digest_of(state, recipe)):
        raise BadCheckpoint(
            f"{path}: its digest is {there}, but {here} is that of its weights and of its recipe ({meta['recipe']}). "
            f"The file was changed after it was written. {again}"
        )
    copy_weights(net, state, path)
