"""What a training leaves on disk: one checkpoint to go on from, and snapshots of the weights along the way."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import CodeType

import numpy as np
import torch
from torch import Tensor, nn

from reptrans.errors import BadCheckpoint
from reptrans.layers.values import tensors_in
from reptrans.progress import stop_if_late
from reptrans.randomness import random_states_kept
from reptrans.tensorfiles import digest_of, load_tensors, save_tensors
from reptrans.training.schedule import Plan


@dataclass
class Keeper:
    """Saves and brings back modules, optimiser and rows; with `checkpoint` and `snapshots` None it does nothing."""

    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
    identity: dict
    checkpoint: str | Path | None = None
    snapshots: str | Path | None = None
    save_every: int | None = None

    def resume(self) -> list[dict]:
        """Bring everything back as the checkpoint has it; its rows, or [] where there is no checkpoint.

        Raises BadCheckpoint when it is incomplete or of another training.
        """
        if self.checkpoint is None or not Path(self.checkpoint).exists():
            return []
        state, meta = load_tensors(self.checkpoint)
        self._refuse_another(meta)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        return meta["rows"]

    def keep(self, rows: list[dict]) -> None:
        """Save what a later call needs to go on after the last of `rows`; see `stop_if_late`."""
        if self.checkpoint is not None:
            state = {"modules": _states(self.modules), "optimiser": self.optimiser.state_dict()}
            save_tensors(self.checkpoint, state, {"rows": rows, "identity": self.identity})
            stop_if_late()

    def snapshot(self, step: int) -> None:
        """Write the weights after `step` steps."""
        if self.snapshots is not None:
            states = _states(self.modules)
            states = states[""] if list(states) == [""] else states
            save_tensors(Path(self.snapshots) / f"{step}.safetensors", states, {"step": step})

    def _refuse_another(self, meta: dict) -> None:
        there, here = _flat(meta.get("identity", {})), _flat(json.loads(json.dumps(self.identity)))
        for name in [*here, *(name for name in there if name not in here)]:
            if there.get(name, "absent") != here.get(name, "absent"):
                raise BadCheckpoint(
                    f"{self.checkpoint} belongs to another training: {name} is {there.get(name, 'absent')} there and "
                    f"{here.get(name, 'absent')} here. Give the same values to go on with it; move it away or name "
                    "another file to start anew."
                )


def identity(
    plan: Plan, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, loader: object, facts: Mapping = {}
) -> dict:
    """What must agree for a checkpoint to be one of the same training, as JSON data; `facts`: of the objective."""
    return {
        "plan": plan.facts(),
        "parameters": _shapes(modules),
        "groups": [
            {"tensors": len(group["params"])} | {name: value for name, value in group.items() if name != "params"}
            for group in optimiser.param_groups
        ],
        "loader": _order_of(loader),
        "code": {name or "network": structure(module) for name, module in modules.items()},
        "objective": dict(facts),
    }


def weights_of(*nets: nn.Module | None) -> list[str]:
    """A digest of the weights and buffers of each network, whatever moves them."""
    states = (net.state_dict() for net in nets if net is not None)
    return [digest_of({k: v for k, v in state.items() if isinstance(v, Tensor)}) for state in states]


def recipe_of(value: object) -> str:
    """8 hex digits of what a value of dataclasses and functions says: fields, code, and what functions closed over."""
    return hashlib.sha256(repr(_told(value)).encode()).hexdigest()[:8]


def _told(value: object, depth: int = 12) -> object:
    if not depth or isinstance(value, type):
        return type(value).__qualname__
    if is_dataclass(value):
        return [type(value).__qualname__, *(_told(getattr(value, field.name), depth - 1) for field in fields(value))]
    if isinstance(value, (list, tuple)):
        return [_told(part, depth - 1) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))  # whose order is another in every process
    if isinstance(value, Mapping):
        return {str(name): _told(part, depth - 1) for name, part in value.items()}
    if isinstance(value, (Tensor, nn.Module)):
        return content([value]) if isinstance(value, Tensor) else structure(value)
    if hasattr(value, "__code__"):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        return [_instructions(value.__code__), _told(closed, depth - 1), _told(value.__defaults__, depth - 1)]
    return _without_addresses(repr(value))


def _without_addresses(text: str) -> str:
    """Functions are printed with their address, which says nothing."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def structure(net: nn.Module) -> str:
    """8 hex digits of how `net` is built: its modules, shapes and plain attributes, and the code of its classes."""
    modules = dict(net.named_modules())
    kinds = {kind for module in modules.values() for kind in type(module).__mro__}
    own = (kind for kind in kinds - {object} if kind.__module__.partition(".")[0] not in ("torch", "torchvision"))
    facts = [
        _without_addresses(str(net)),
        {name: str(tuple(value.shape)) for name, value in net.state_dict().items() if isinstance(value, Tensor)},
        {name: _plain(module) for name, module in modules.items()},
        sorted(f"{kind.__qualname__} {_code(kind)}" for kind in own),
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def _plain(module: nn.Module) -> dict[str, object]:
    """The attributes that are numbers, texts or yes and no, but for those that say what is done with the module now."""
    found = {name: value for name, value in vars(module).items() if name != "training" and not name.startswith("_")}
    return {name: value for name, value in sorted(found.items()) if type(value) in (bool, int, float, str)}


def _code(kind: type) -> list:
    functions = (getattr(value, "__func__", value) for value in vars(kind).values())
    return [_instructions(function.__code__) for function in functions if hasattr(function, "__code__")]


def _instructions(code: CodeType) -> list:
    """What the code does, and not where it stands."""
    # Of a set, the order is another in every process.
    consts = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in code.co_consts]
    inner = [_instructions(c) if isinstance(c, CodeType) else repr(c) for c in consts]
    return [code.co_name, code.co_code.hex(), code.co_names, inner]


def _shapes(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Dotted name to shape, dtype left out; the order and the trained ones are part of it."""
    named = ((_dotted(m, name), p) for m, module in modules.items() for name, p in module.named_parameters())
    return {name: f"{tuple(p.shape)}{'' if p.requires_grad else ' frozen'}" for name, p in named}


def _order_of(loader: object) -> dict:
    """What decides which images come in which order."""
    names = ("seed", "batch_size", "shuffle", "augment", "drop_last", "mean", "std")
    found = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    if hasattr(loader, "split"):
        found |= {"images": len(loader.split), "content": split_content(loader.split)}
    elif isinstance(loader, (list, tuple)):
        found["content"] = content(value for _, value in tensors_in(loader))
    elif hasattr(loader, "dataset"):
        found["content"] = _dataset_content(loader.dataset)
    return {"batches": len(loader)} | found


def _dataset_content(dataset: object) -> str:
    """Of torch's TensorDataset all; of others how many, and some spread over them, unless they are drawn anew."""
    if tensors := getattr(dataset, "tensors", None):
        return content(tensors)
    if hasattr(dataset, "indices"):
        return f"{_dataset_content(dataset.dataset)} {content([torch.as_tensor(dataset.indices)])}"
    if not hasattr(dataset, "__len__"):
        return ""
    some = ["", ""]
    with random_states_kept(), suppress(Exception):  # foreign code: what it raises, the training will raise again
        some = [_some_content(dataset) for _ in range(2)]
    return f"{len(dataset)} {some[0]}" if some[0] == some[1] else str(len(dataset))


def _some_content(dataset: object) -> str:
    examples = [dataset[i] for i in range(0, len(dataset), max(1, len(dataset) // 64))]
    parts = [tuple(example.values()) if isinstance(example, Mapping) else example for example in examples]
    parts = [part if isinstance(part, (tuple, list)) else (part,) for part in parts]
    return content(torch.as_tensor(np.asarray(value)) for part in parts for value in part)


def split_content(split: object) -> str:
    """8 hex digits of all images and labels; see `content`."""
    images = getattr(split, "images", None)
    if isinstance(images, (list, tuple)):  # pictures of several sizes, with several labels each
        return content((*images, *split.labels))
    return content(some_of(split) if images is None or images.is_floating_point() else (images, split.labels))


def some_of(split: object) -> tuple[Tensor, Tensor]:
    """(images, labels) that stand for a split: images or ids of tokens spread over it, and all labels."""
    some = split.batch(torch.arange(0, len(split), max(1, len(split) // 64)))
    return some if isinstance(some, Tensor) else next(iter(some.values())), split.labels


def content(tensors: Iterable[Tensor]) -> str:
    """8 hex digits of the tensors; of fractions, what rounding does not touch: it is not the same on every machine."""
    found = hashlib.sha256()
    for tensor in tensors:
        x = tensor.detach().cpu().flatten()
        found.update(str(tuple(tensor.shape)).encode())
        found.update(_coarse(x.double()) if x.is_floating_point() else x.view(torch.uint8).numpy())
    return found.hexdigest()[:8]


def _coarse(x: Tensor) -> bytes:
    """The length of the vector, and how far it points in two fixed directions, as far as rounding leaves it."""
    places = torch.arange(len(x), dtype=x.dtype)
    shares = (float(direction @ x / x.norm()) for direction in (places.cos(), (2**0.5 * places).cos()))
    # The 0.0 makes 0 of -0.
    return f"{x.norm():.2e} {[round(share, 4) + 0.0 for share in shares]}".encode()


def _states(modules: dict[str, nn.Module]) -> dict[str, dict]:
    return {name: dict(module.state_dict()) for name, module in modules.items()}


def _flat(node: object, name: str = "") -> dict[str, object]:
    """Dotted name to leaf."""
    if not isinstance(node, (dict, list)):
        return {name: node}
    children = node.items() if isinstance(node, dict) else enumerate(node)
    return {k: v for key, child in children for k, v in _flat(child, _dotted(name, key)).items()}


def _dotted(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
