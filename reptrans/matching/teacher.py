"""A frozen teacher: its values at any taps, computed once where the images stay the same."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptrans.data import Batch, Loader
from reptrans.errors import BadValue, choose
from reptrans.matching.taps import tapped
from reptrans.training import evaluating
from reptrans.training.batches import checked_network
from reptrans.training.evaluation import device_of

MODES = ("eval", "batch")
BUDGET = 2**30
_BY_LABELS = {"labels", "grad:loss", "grad:logit"}


class Teacher:
    """Values of one frozen network on the batches of one loader.

    Without augmentation every image's values are computed once and kept on the device, of the smallest of all taps that
    were asked for, as many as take at most `budget` bytes together; several students can then share the passes by
    sharing the Teacher. Otherwise, and in mode "batch", each batch is a pass. The network's parameters, buffers and
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
