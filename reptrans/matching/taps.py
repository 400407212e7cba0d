"""A tap is a text that says where in a network to look; `tapped` runs the network once and returns what is there.

"layer2"                 the output of a layer
"layer2:in"              its input (of a ReLU: the pre-activations)
"blocks.3:map"           its output with the channels last, tokens (n, t, d) or (n, h, w, c), as a map (n, c, h, w)
"out"                    the network's output
"labels"                 the images' labels, for what is said of the right class
"grad:loss"              the gradient, by the image, of the image's own cross-entropy with its label
"grad:logit"             the gradient, by the image, of the logit of its label
"grad:attention@layer2"  the gradient, by the image, of the largest entry of the layer's pooled attention map
Gradients are those of each image by itself, in a pass of their own where batch norm would mix the images: there it
uses its running statistics. What a layer or the network returns may be a tuple or dict, see `layers.values`. A layer
that a pass calls several times stands for its last call.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from reptrans.errors import BadValue, suggest
from reptrans.layers.axes import as_map
from reptrans.layers.trace import check_layers
from reptrans.layers.values import chosen
from reptrans.training.batches import answers_of, checked_network
from reptrans.training.evaluation import check_labels

_GRADIENTS = ("loss", "logit", "attention")


def tapped(
    net: nn.Module, images: Tensor, labels: Tensor | None, taps: Iterable[str], *, keep_graph: bool = True
) -> dict[str, Tensor]:
    """The value at every tap of one pass of `net`, in the mode it is in.

    Values are copies, safe from in-place operations behind them. With `keep_graph` they can be differentiated by the
    network's parameters, gradients by the image too; without, all are detached, and only gradients cost a backward
    pass. `labels` (n,) are needed for "labels", "grad:loss" and "grad:logit".
    Raises LayerNotFound; BadValue for a tap of another form, a layer without a tensor, or missing labels.
    """
    taps = list(dict.fromkeys(taps))
    check_taps(net, taps)
    gradients = [tap for tap in taps if tap.startswith("grad:")]
    direct, places = set(taps) - {"labels", *gradients}, {_place(g) for g in gradients}
    with torch.set_grad_enabled(bool(gradients) or (keep_graph and torch.is_grad_enabled())):
        if gradients:
            images = images.detach().clone().requires_grad_()
        norms = _moving_norms(net) if gradients else []
        # First, before the other pass moves the running statistics.
        with _by_running_statistics(norms):
            of = _forward(net, images, places) if norms else {}
        values = _forward(net, images, direct if norms else direct | places) if direct or not norms else {}
        for tap in gradients:
            scalar = _scalar(tap, (of or values)[_place(tap)], labels).sum()
            # The sum over images: each image's own gradient, for no image's scalar depends on another image.
            (values[tap],) = torch.autograd.grad(scalar, images, create_graph=keep_graph, retain_graph=True)
    if "labels" in taps:
        values["labels"] = _needed(labels, "labels")
    return {tap: values[tap] if keep_graph else values[tap].detach() for tap in taps}


def check_taps(net: nn.Module, taps: Iterable[str]) -> None:
    """Raise LayerNotFound or BadValue for the first tap that `net` cannot have."""
    checked_network(net)
    for tap in taps:
        kind, _, layer = tap.removeprefix("grad:").partition("@")
        if tap.startswith("grad:") and (kind not in _GRADIENTS or (kind == "attention") != bool(layer)):
            raise BadValue(
                f"there is no tap {tap!r}. Gradients by the image are grad:loss, grad:logit, grad:attention@LAYER."
            )
        if _place(tap) not in ("out", "labels"):
            _module(net, _place(tap))


def _place(tap: str) -> str:
    """The tap whose value a gradient is taken of; any other tap itself."""
    return tap.partition("@")[2] or "out" if tap.startswith("grad:") else tap


def _module(net: nn.Module, tap: str) -> nn.Module:
    name = tap.removesuffix(":in").removesuffix(":map")
    try:
        return net.get_submodule(name)
    except AttributeError:
        # Only now are all names read: every step of a training asks for its taps.
        check_layers(net, [name])
        raise


def _moving_norms(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]


@contextmanager
def _by_running_statistics(norms: list[nn.Module]) -> Iterator[None]:
    held = [dict(norm._buffers) for norm in norms]
    try:
        for norm in norms:
            # Copies: a gradient is taken back through them after another pass has moved the statistics in place.
            norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()
            norm.training = False
        yield
    finally:
        for norm, buffers in zip(norms, held, strict=True):
            norm._buffers.update(buffers)
            norm.training = True


def _forward(net: nn.Module, images: Tensor, wanted: set[str]) -> dict[str, Tensor]:
    values = {}

    def keep(tap: str, value: object) -> None:
        found = chosen(value, who=f"what stands at {tap!r}")
        found = as_map(found) if tap.endswith(":map") else found.clone()
        values[tap] = found.contiguous()  # whatever the network's own layout is: losses may view it

    with ExitStack() as hooks:
        for tap in sorted(wanted - {"out"}):
            module = _module(net, tap)
            if tap.endswith(":in"):
                hook = module.register_forward_pre_hook(lambda m, inputs, tap=tap: keep(tap, inputs[0]))
            else:
                hook = module.register_forward_hook(lambda m, inputs, output, tap=tap: keep(tap, output))
            hooks.enter_context(hook)
        values["out"] = answers_of(net, images)
    for tap in wanted - set(values):
        raise BadValue(f"a pass of the network never comes to {tap!r}. {suggest(tap, sorted(values))}")
    return values


def _scalar(tap: str, value: Tensor, labels: Tensor | None) -> Tensor:
    """The scalar (n,) of every image that a gradient tap differentiates."""
    if tap.startswith("grad:attention"):
        return _top_attention(value)
    check_labels(_needed(labels, tap), value.shape[1])
    if tap == "grad:loss":
        return F.cross_entropy(value, labels, reduction="none")
    return value.gather(1, labels[:, None]).squeeze(1)


def _needed(labels: Tensor | None, tap: str) -> Tensor:
    if labels is None:
        raise BadValue(f"the tap {tap!r} needs the images' labels, but there are none.")
    return labels


def _top_attention(maps: Tensor) -> Tensor:
    """The largest entry (n,) of sum_c |a_c|, averaged over windows of a third of the map's side."""
    if maps.ndim != 4:
        raise BadValue(f"an attention map is of maps (n, c, h, w), but the layer gives {tuple(maps.shape)}.")
    attention = maps.abs().sum(1, keepdim=True)
    window = [max(1, round(side / 3)) for side in maps.shape[2:]]
    return F.avg_pool2d(attention, window, stride=1).flatten(1).amax(1)
