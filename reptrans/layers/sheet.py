"""The cheat sheet of a network: its layers, what they return, what they cost, where it can be cut."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reptrans.layers.cut import _traced, separating
from reptrans.layers.network import evaluating, watching
from reptrans.layers.trace import layer_names

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def layer_table(net: nn.Module, images: Tensor) -> "pd.DataFrame":
    """One row for every named layer that a forward pass of `images` (n, c, h, w) reaches, in order of `named_modules`.

    Columns: layer; type; output, the shape for one image; parameters, of the layer and all inside it; share, the part
    of the network's multiply-adds (of matrix products and convolutions) done in the layer, in [0, 1]; cut, whether the
    layer separates input from output.
    The network runs in eval mode; its mode, buffers and the random state are afterwards as they were.
    """
    import pandas as pd

    with evaluating(net), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        (shapes, flops), traced = _shapes_and_flops(net, images), _traced(net)
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


def _shapes_and_flops(net: nn.Module, images: Tensor) -> tuple[dict[str, tuple], dict[str, int]]:
    shapes: dict[str, tuple] = {}

    def see(name: str, output: object) -> None:
        shapes[name] = tuple(output.shape[1:]) if isinstance(output, Tensor) else (type(output).__name__,)

    with watching(net, layer_names(net), see), FlopCounterMode(display=False) as counter:
        net(images)
    root = type(net).__name__
    counts = {name.removeprefix(root).removeprefix("."): sum(per_op.values())
              for name, per_op in counter.get_flop_counts().items() if name != "Global"}  # fmt: skip
    counts[""] = counter.get_total_flops()
    return shapes, counts
