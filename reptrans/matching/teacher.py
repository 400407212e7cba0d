"""A frozen teacher: its values at any taps, computed once where the images stay the same."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptrans.data import Batch, Loader
from reptrans.errors import BadValue
from reptrans.matching.taps import check_taps, tapped
from reptrans.training import evaluating

MODES = ("eval", "batch")
BUDGET = 2**30


class Teacher:
    """Values of one frozen network on the batches of one loader.

    Without augmentation every image's values are computed once and kept on the device, for all taps together as long as
    they take less than `budget` bytes; several students can then share the passes by sharing the Teacher. Otherwise,
    and in mode "batch", each batch is a pass. The network's parameters, buffers and mode stay as they are.
    Modes: "eval"; "batch", in which batch norm uses the statistics of the batch, and keeps none of them.
    Gradient taps ("grad:...") differ from image to image, so they are kept like all others.
    """

    def __init__(self, net: nn.Module, loader: Loader, budget: int = BUDGET):
        self.net, self.loader, self.budget = net, loader, budget
        self.keeps = loader.augment == "none"
        self._kept: dict[str, Tensor] = {}
        self._too_large: set[str] = set()

    def values(self, batch: Batch, taps: Iterable[str], mode: str = "eval") -> dict[str, Tensor]:
        """{tap: detached value} for one batch of the loader."""
        taps = list(taps)
        if mode not in MODES:
            raise BadValue(f"the teacher's mode is {mode!r}; possible: {', '.join(MODES)}.")
        if mode == "eval" and self.keeps and self._prepared(batch, taps):
            return {tap: self._kept[tap].index_select(0, batch.index) for tap in taps}
        return self._run(batch, taps, mode)

    def over_all(self, taps: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """{tap: value} for every batch of the loader's images, in their order and without augmentation."""
        for batch in self.loader.plain():
            yield self._run(batch, list(taps), "eval")

    def _prepared(self, batch: Batch, taps: list[str]) -> bool:
        """Whether the values at all `taps` are kept, after computing those that fit."""
        missing = [tap for tap in taps if tap not in self._kept]
        if self._too_large.issuperset(missing) and missing:
            return False
        if missing and not self._fits(batch, missing):
            self._too_large.update(missing)
        elif missing:
            parts = list(self.over_all(missing))
            for tap in missing:
                self._kept[tap] = torch.cat([part[tap] for part in parts])
        return all(tap in self._kept for tap in taps)

    def _fits(self, batch: Batch, taps: list[str]) -> bool:
        one = Batch(batch.images[:1], batch.labels[:1], batch.index[:1])
        found = self._run(one, taps, "eval")
        new = sum(value.numel() * value.element_size() for value in found.values()) * len(self.loader.split)
        held = sum(value.numel() * value.element_size() for value in self._kept.values())
        return new + held <= self.budget

    def _run(self, batch: Batch, taps: list[str], mode: str) -> dict[str, Tensor]:
        check_taps(self.net, taps)
        with evaluating(self.net), _batch_statistics(self.net if mode == "batch" else None):
            return tapped(self.net, batch.images, batch.labels, taps, keep_graph=False)


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
