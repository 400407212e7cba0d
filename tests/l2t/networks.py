"""Small networks and batches of the tests, and the reference's bilevel problem as a `Transfer`."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from reptrans.data.loader import Batch
from reptrans.l2t import Matching, Meta, Transfer
from reptrans.models import build
from reptrans.tensorfiles import load_tensors

REFERENCE = Path(__file__).resolve().parent.parent / "reference"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int, width: int = 4, classes: int = 5) -> nn.Sequential:
    return build(f"cnn3_w{width}", num_classes=classes, in_channels=1, image_size=8, seed=seed).double()


def batch(n: int = 6, seed: int = 9) -> Batch:
    return Batch(normal(n, 1, 8, 8, seed=seed), torch.arange(n) % 5, torch.arange(n))


class Again:
    """A loader that gives the same batch again and again."""

    def __init__(self, one: Batch, times: int):
        self.one, self.times = one, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self):
        return iter([self.one] * self.times)


class Constant(nn.Module):
    """Gives the same maps whatever it gets."""

    def __init__(self, maps: Tensor):
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Tensor:
        return self.maps[: len(images)]


class Constants(nn.Module):
    """A source whose layers `s0`, `s1`, … give fixed maps."""

    def __init__(self, maps: list[Tensor]):
        super().__init__()
        for k, each in enumerate(maps):
            self.add_module(f"s{k}", Constant(each))

    def forward(self, images: Tensor) -> Tensor:
        return [layer(images) for layer in self.children()][-1].flatten(1)


def fill(module: nn.Module, values: dict[str, Tensor], number: int) -> None:
    """Layer `number` of the reference's parameters into `module`."""
    with torch.no_grad():
        module.weight.copy_(values[f"{number}.weight"])
        module.bias.copy_(values[f"{number}.bias"])


def fill_matching(matching: Matching, f: dict, g: dict, regressors: dict) -> None:
    """The reference's f, g and regressors, numbered by pair, into `matching`."""
    pairs = matching.pairs
    for k in range(len(pairs.pairs)):
        if len(matching.weights.f):
            fill(matching.weights.f[k], f, k)
        if len(matching.weights.g):
            fill(matching.weights.g[k], g, k)
    with torch.no_grad():
        for t, names in pairs.of_target.items():
            numbers = [pairs.pairs.index((s, t)) for s in names]
            for part in ("weight", "bias"):
                joined = torch.cat([regressors[f"{k}.{part}"] for k in numbers])
                getattr(pairs.regressors[t], part).copy_(joined)


def toy(T: int) -> tuple[nn.Module, Transfer, dict, Batch]:
    """(target, transfer, the reference's values, its batch) of the reference's problem with T matching steps."""
    state = load_tensors(REFERENCE / "l2t_toy.safetensors")[0]
    target = nn.Sequential(OrderedDict(
        c1=nn.Conv2d(3, 6, 3, padding=1), b1=nn.BatchNorm2d(6), r1=nn.ReLU(), pool=nn.MaxPool2d(2),
        c2=nn.Conv2d(6, 8, 3, padding=1), b2=nn.BatchNorm2d(8), r2=nn.ReLU(), mean=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(), fc=nn.Linear(8, 5),
    )).double()  # fmt: skip
    target.load_state_dict(state["init"]["target"])
    source = Constants(state["source"])
    pairs = [(f"s{s}", f"r{t + 1}") for s, t in state["pairs"]]
    matching = Matching(target, source, pairs, state["x"], like="authors")
    fill_matching(matching, state["init"]["f"], state["init"]["g"], state["init"]["regressor"])
    meta = Meta(T=T, lr=state["meta_lr"], weight_decay=state["meta_weight_decay"])
    transfer = Transfer(target, source, [matching], meta, example=state["x"], classes=5)
    return target, transfer, state, Batch(state["x"], state["y"], torch.arange(len(state["y"])))
