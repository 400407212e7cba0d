"""The cheat sheet of a network: its layers, what they return, what they cost, where it can be cut."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reptrans.layers.cut import _traced, separating

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def layer_table(net: nn.Module, images: Tensor) -> "pd.DataFrame":
    """One row for every named layer that a forward pass of `images` (n, c, h, w) reaches, in order of `named_modules`.

    Columns: layer; type; output, the shape for one image; parameters, of the layer and all inside it; share, the part
    of the network's multiply-adds done in the layer, in [0, 1]; cut, whether the layer separates input from output.
    The network runs in eval mode; its mode, buffers and the random state are afterwards as they were.
    """
    import pandas as pd

    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            shapes, flops = _shapes_and_flops(net, images)
        traced = _traced(net)
    finally:
        for module, mode in modes.items():
            module.training = mode
    cuts = set(separating(traced)) if traced else set()
    total = max(flops.get("", 0), 1)
    rows = [
        {
            "layer": name,
            "type": type(module).__name__,
            "output": shapes[name],
            "parameters": sum(p.numel() for p in module.parameters()),
            "share": flops.get(name, 0) / total,
            "cut": name in cuts,
        }
        for name, module in net.named_modules()
        if name in shapes and name
    ]
    return pd.DataFrame(rows)


def multiply_adds(net: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward pass of `net` on `inputs` (matrix products and convolutions; the rest is not
    counted, as is usual)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return counter.get_total_flops() // 2


def _shapes_and_flops(net: nn.Module, images: Tensor) -> tuple[dict[str, tuple], dict[str, int]]:
    shapes: dict[str, tuple] = {}

    def store_as(name: str):
        def hook(module, inputs, output):
            shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else (type(output).__name__,)

        return hook

    hooks = [module.register_forward_hook(store_as(name)) for name, module in net.named_modules() if name]
    try:
        with FlopCounterMode(display=False) as counter:
            net(images)
    finally:
        for hook in hooks:
            hook.remove()
    root = type(net).__name__
    counts = {name.removeprefix(root).removeprefix("."): sum(per_op.values())
              for name, per_op in counter.get_flop_counts().items() if name != "Global"}  # fmt: skip
    counts[""] = counter.get_total_flops()
    return shapes, counts
