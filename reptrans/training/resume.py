"""What a training leaves on disk: one checkpoint to go on from, and snapshots of the weights along the way."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from reptrans.errors import BadCheckpoint
from reptrans.tensorfiles import load_tensors, save_tensors
from reptrans.training.schedule import Plan


@dataclass
class Keeper:
    """Saves and brings back modules, optimiser and rows; with `checkpoint` and `snapshots` None it does nothing."""

    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer
    identity: dict
    checkpoint: Path | None = None
    snapshots: Path | None = None
    save_every: int | None = None

    def resume(self) -> list[dict]:
        """Bring everything back as the checkpoint has it; its rows, or [] where there is no checkpoint.

        Raises BadCheckpoint when it is incomplete or of another training.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return []
        state, meta = load_tensors(self.checkpoint)
        self._refuse_another(meta)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        return meta["rows"]

    def keep(self, rows: list[dict]) -> None:
        """Save what a later call needs to go on after the last of `rows`."""
        if self.checkpoint is not None:
            state = {"modules": _states(self.modules), "optimiser": self.optimiser.state_dict()}
            save_tensors(self.checkpoint, state, {"rows": rows, "identity": self.identity})

    def snapshot(self, step: int, last: bool = False) -> None:
        """Write the weights after `step` steps, if it is the first, the last or one of every `save_every`."""
        due = step == 0 or last or (self.save_every is not None and step % self.save_every == 0)
        if self.snapshots is None or not due:
            return
        states = _states(self.modules)
        if list(states) == [""]:
            states = states[""]
        save_tensors(self.snapshots / f"{step}.safetensors", states, {"step": step})

    def _refuse_another(self, meta: dict) -> None:
        there, here = _flat(meta.get("identity", {})), _flat(json.loads(json.dumps(self.identity)))
        for name in [*here, *(name for name in there if name not in here)]:
            if there.get(name, "absent") != here.get(name, "absent"):
                raise BadCheckpoint(
                    f"{self.checkpoint} belongs to another training: {name} is {there.get(name, 'absent')} there and "
                    f"{here.get(name, 'absent')} here. Give the same values to go on with it; delete it or name "
                    "another file to start anew."
                )


def identity(plan: Plan, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, loader: object) -> dict:
    """What must agree for a checkpoint to be one of the same training, as JSON data."""
    return {
        "plan": asdict(plan),
        "parameters": _shapes(modules),
        "groups": [_settings(group) for group in optimiser.param_groups],
        "loader": _order_of(loader),
    }


def _shapes(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Dotted name to shape, dtype left out; the order and the trained ones are part of it."""
    named = ((_dotted(m, name), p) for m, module in modules.items() for name, p in module.named_parameters())
    return {name: f"{tuple(p.shape)}{'' if p.requires_grad else ' frozen'}" for name, p in named}


def _settings(group: dict) -> dict:
    return {"tensors": len(group["params"])} | {name: value for name, value in group.items() if name != "params"}


def _order_of(loader: object) -> dict:
    """What decides which images come in which order."""
    names = ("seed", "batch_size", "shuffle", "augment", "drop_last")
    found = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    images = {"images": len(loader.split)} if hasattr(loader, "split") else {}
    return {"batches": len(loader)} | images | found


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
