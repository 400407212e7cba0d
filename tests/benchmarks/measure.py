"""How benchmarks measure: two ways in turns, what they have to compute, and how much memory a process took."""

from collections.abc import Callable, Sequence
from statistics import median
from time import process_time

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reptrans.layers import end, front
from reptrans.stitching import Stitch

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, in all threads: on an idle machine those of the clock, on a busy one hardly more."""
    start = process_time()
    work()
    return process_time() - start


def in_turns(**ways: Callable[[], float]) -> dict[str, list[float]]:
    """What each way measures of itself, REPEATS times after one go to warm up; one after another, so that a busy
    machine slows all of them."""
    times = [{name: way() for name, way in ways.items()} for _ in range(REPEATS + 1)]
    return {name: [run[name] for run in times[1:]] for name in ways}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median (least to most)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slow, fast, strict=True)]


def multiply_adds(net: nn.Module, layer: str, batch: int) -> dict[str, float]:
    """Of one step, in units of 10⁹: "plain" runs both networks whole, "uncached" only the halves that are needed,
    "cached" only what follows the layer; each with the backward pass to the stitch."""
    images, labels = torch.randn(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64)
    head, tail = front(net, layer), end(net, layer)
    with torch.no_grad():
        activations = head(images)
        forward, leading = _counted(lambda: net(images)), _counted(lambda: head(images))
    stitch = Stitch(activations.shape[1:], activations.shape[1:])
    cached = _counted(lambda: F.cross_entropy(tail(stitch(activations)), labels).backward())
    with torch.no_grad():
        following = _counted(lambda: tail(activations))
    return {"plain": 2 * forward + cached - following, "uncached": leading + cached, "cached": cached}


def _counted(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2e9
