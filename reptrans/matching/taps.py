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
A `Teacher` keeps the values of a frozen network at any taps, computed once where the images stay the same.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from reptrans.data import Batch, Loader
from reptrans.errors import BadValue, choose, suggest
from reptrans.layers.axes import as_map
from reptrans.layers.trace import check_layers
from reptrans.layers.values import chosen
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network
from reptrans.training.evaluation import check_labels, device_of

_GRADIENTS = ("loss", "logit", "attention")


def tapped(
    net: nn.Module, images: Tensor, labels: Tensor | None, taps: Iterable[str], *, keep_graph: bool = True
) -> dict[str, Tensor]:
    """The value at every tap of one pass of `net`, in the mode it is in. A tap is a text that says where to look:

        "layer2"                 the output of a layer
        "layer2:in"              its input (of a ReLU: the pre-activations)
        "blocks.3:map"           its output with channels last, as a map (n, c, h, w)
        "out"                    the network's output
        "labels"                 the images' labels
        "grad:loss"              the gradient of the image's cross-entropy
        "grad:logit"             the gradient of the logit of its label
        "grad:attention@layer2"  the gradient of the largest entry of the
                                 layer's pooled attention map

    Gradients are by the image, (n, c, h, w), of each image by itself.
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
    """Raise LayerNotFound or BadValue for the first tap, see `tapped`, that `net` cannot have."""
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


MODES = ("eval", "batch")
BUDGET = 2**30
_BY_LABELS = {"labels", "grad:loss", "grad:logit"}


class Teacher:
    """Values of one frozen network on the batches of one loader.

    Without augmentation every image's values are computed once and kept on the device, of the smallest of all taps that
    were asked for, as many as take at most `budget` bytes (1 GiB) together; several students can then share the passes
    by sharing the Teacher. Otherwise, and in mode "batch", each batch is a pass. The network's parameters, buffers and
    mode stay as they are.
    Modes: "eval"; "batch", in which batch norm uses the statistics of the batch, and keeps none of them.
    Gradient taps ("grad:...") differ from image to image, so they are kept like all others.
    """

    def __init__(self, net: nn.Module, loader: Loader, budget: int = BUDGET):
        self.net, self.loader, self.budget = checked_network(net), loader, budget
        self.keeps = loader.augment == "none"
        self._kept: dict[str, Tensor] = {}
        self._sizes: dict[str, int] = {}

    def values(
        self, batch: Batch, taps: Iterable[str], mode: str = "eval", *, own_labels: bool = True
    ) -> dict[str, Tensor]:
        """{tap: detached value} for one batch of the loader.

        `own_labels`: whether the batch has the loader's labels. With others, what depends on them is not kept.
        """
        taps = list(taps)
        choose(mode, MODES, "the teacher's mode is {}", BadValue)
        same = own_labels or not _BY_LABELS.intersection(taps)
        if mode == "eval" and self.keeps and same and self._prepared(batch, taps):
            return {tap: self._kept[tap].index_select(0, batch.index) for tap in taps}
        return self._run(batch, taps, mode)

    @cached_property
    def answers(self) -> Tensor:
        """What the network returns for all the loader's images (n, ...), in their order and without augmentation."""
        return torch.cat([found["out"] for found in self.over_all(["out"])])

    def over_all(self, taps: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """{tap: value} for every batch of the loader's images, in their order and without augmentation."""
        for batch in self.loader.plain():
            yield self._run(batch, list(taps), "eval")

    def _prepared(self, batch: Batch, taps: list[str]) -> bool:
        """Whether the values at all `taps` are kept, after computing those that fit."""
        self._measure(batch, [tap for tap in taps if tap not in self._sizes])
        fit = self._fitting()
        self._kept = {tap: value for tap, value in self._kept.items() if tap in fit}
        if not fit.issuperset(taps):
            return False
        if missing := [tap for tap in taps if tap not in self._kept]:
            parts = list(self.over_all(missing))
            self._kept |= {tap: torch.cat([part[tap] for part in parts]) for tap in missing}
        return True

    def _measure(self, batch: Batch, taps: list[str]) -> None:
        """Take note of the bytes that all images' values at `taps` need."""
        if taps:
            found = self._run(Batch(batch.images[:1], batch.labels[:1], batch.index[:1]), taps, "eval")
            each = {tap: value.numel() * value.element_size() for tap, value in found.items()}
            self._sizes |= {tap: size * len(self.loader.split) for tap, size in each.items()}

    def _fitting(self) -> set[str]:
        """The taps that are kept: the smallest first, so that it does not matter which was asked for first."""
        order = sorted(self._sizes, key=lambda tap: (self._sizes[tap], tap))
        together = accumulate(self._sizes[tap] for tap in order)
        return {tap for tap, size in zip(order, together, strict=True) if size <= self.budget}

    def _run(self, batch: Batch, taps: list[str], mode: str) -> dict[str, Tensor]:
        # On the network's own device, which need not be that of the batch.
        images, labels = batch.images.to(device_of(self.net)), batch.labels.to(device_of(self.net))
        with evaluating(self.net), _batch_statistics(self.net if mode == "batch" else None):
            found = tapped(self.net, images, labels, taps, keep_graph=False)
        return {tap: value.to(batch.images.device) for tap, value in found.items()}


@contextmanager
def _batch_statistics(net: nn.Module | None) -> Iterator[None]:
    """Inside, batch norms of `net` normalise by the batch and keep no statistics."""
    norms = [m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats] if net else []
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for norm in norms:
            norm.training, norm.track_running_stats = False, True
