"""Networks as the input optimiser runs them: cut, frozen and fast; and untrained ones with a stated batch norm."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import update_bn

from reptrans.errors import ShapeMismatch, UnknownName, suggest
from reptrans.layers import cuttable_layers, front
from reptrans.layers.network import copy_of
from reptrans.layers.trace import trace
from reptrans.layers.values import answer
from reptrans.training import evaluating
from reptrans.training.batches import checked_weights
from reptrans.training.evaluation import keeping_random_state

PRECISIONS = ("", "bfloat16")


class FastFront(nn.Module):
    """Images in [0, 1] -> activations of one layer of a copy of a network: see `fast_front`."""

    def __init__(self, part: nn.Module, mean: Sequence[float], std: Sequence[float], halved: bool):
        super().__init__()
        like = next(part.parameters(), torch.zeros(()))
        self.part, self.halved, self.layout = part, halved, torch.channels_last
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if len(self.mean):
            if images.shape[1] != len(self.mean):
                raise ShapeMismatch(f"images of {images.shape[1]} channels, statistics of {len(self.mean)}.")
            images = (images - self.mean) / self.std
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.halved):
            try:
                return answer(self._run(images)).to(images.dtype)
            except RuntimeError as error:
                if self.layout is torch.contiguous_format or "view size is not compatible" not in str(error):
                    raise
            # Code that flattens maps by view() takes them channels first alone.
            self.layout = torch.contiguous_format
            self.part.to(memory_format=self.layout)
            return answer(self._run(images)).to(images.dtype)

    def _run(self, images: Tensor) -> object:
        # Not self.part(), by which a graph prints its code before it raises.
        return nn.Module.__call__(self.part, images.contiguous(memory_format=self.layout))


def fast_front(
    net: nn.Module,
    layer: str | None = None,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    precision: str = "",
    fold: bool = True,
) -> FastFront:
    """The part of `net` up to `layer` (None: all of it), made to be run many times on images in [0, 1].

    A frozen copy in eval mode: cut at the layer, each batch norm folded into the convolution before it, channels last.
    The network is left as it was, and what happens to it later does not show. `mean` and `std`: by channel, what the
    network's images are normalised by. `precision` "bfloat16": computes in bfloat16 where autocast allows,
    1.5 to 2 times as fast; a first step at layer1 of a ResNet-50 then differs by a fifth, so check that rows agree.
    Equal to `front(net, layer)` up to rounding; a network that `torch.fx` cannot trace runs whole, unfolded.
    Raises LayerNotFound, CannotCut, ShapeMismatch (statistics), UnknownName (precision).
    """
    if len(mean) != len(std):
        raise ShapeMismatch(
            f"{len(mean)} means and {len(std)} standard deviations; give one of each for every channel."
        )
    if precision not in PRECISIONS:
        raise UnknownName(f"there is no precision {precision!r}. {suggest(precision, map(repr, PRECISIONS))}")
    with evaluating(checked_weights(net)):
        part = copy_of(front(net, layer) if layer else _whole(net)).eval().requires_grad_(False)
    if fold and isinstance(part, fx.GraphModule):
        _fold_batch_norm(part)
    part = part.to(memory_format=torch.channels_last)
    return FastFront(part, mean, std, precision == "bfloat16").eval().requires_grad_(False)


def as_built(net: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms have the statistics they are built with, mean 0 and variance 1.

    In an untrained network they then do nothing, and the scale of activations grows or shrinks with depth.
    """
    net = copy_of(net).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return net


def calibrated(net: nn.Module, images: Tensor) -> nn.Module:
    """A copy in eval mode whose batch norms have the statistics of one pass over `images`, in train mode.

    `images` (n, c, h, w) as the network takes them, several of them: normalised, if it is used to that.
    """
    net = copy_of(net)
    with keeping_random_state(images.device):  # dropout draws in train mode
        update_bn([images], net)
    return net.eval()


def ladder(net: nn.Module) -> list[str]:
    """The first layer that separates input from output, and the outermost blocks that do; where these are fewer than
    two, up to six convolutions, evenly spaced."""
    layers = cuttable_layers(net)
    inner = dict(net.named_modules())
    blocks = [name for name in layers if "." not in name and list(inner[name].children())]
    if len(blocks) > 1:
        return list(dict.fromkeys([layers[0], *blocks]))
    convolutions = [name for name in layers if isinstance(inner[name], nn.Conv2d)] or layers
    steps = min(6, len(convolutions))
    return [convolutions[round(i * (len(convolutions) - 1) / max(steps - 1, 1))] for i in range(steps)]


@contextmanager
def frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode and no gradients for any parameter inside; each as it was afterwards."""
    moving = [p for net in networks for p in net.parameters() if p.requires_grad]
    try:
        for net in networks:
            net.requires_grad_(False)
        with evaluating(*networks):
            yield
    finally:
        for p in moving:
            p.requires_grad_(True)


def _whole(net: nn.Module) -> nn.Module:
    try:
        return fx.GraphModule(net, trace(net).graph)
    except Exception:  # foreign code: whatever it raises, the network itself does the same work, unfolded
        return net


def _fold_batch_norm(part: fx.GraphModule) -> None:
    """Every batch norm whose one input is a convolution that nobody else reads becomes a part of it."""
    calls = Counter(node.target for node in part.graph.nodes if node.op == "call_module")
    for node in list(part.graph.nodes):
        if node.op != "call_module" or not isinstance(bn := part.get_submodule(node.target), nn.BatchNorm2d):
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) > 1 or bn.running_mean is None:
            continue
        conv = part.get_submodule(before.target)
        if type(conv) is nn.Conv2d and calls[before.target] == calls[node.target] == 1 and not _hooked(conv, bn):
            part.set_submodule(before.target, fuse_conv_bn_eval(conv, bn))
            node.replace_all_uses_with(before)
            part.graph.erase_node(node)
    part.delete_all_unused_submodules()
    part.recompile()


def _hooked(*modules: nn.Module) -> bool:
    """Whether anything is done between the modules, or before each pass, as pruning does it to the weights."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
