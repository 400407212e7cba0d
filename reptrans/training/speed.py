"""What a training costs: its operations, and whether it is faster with channels last, as a short measurement tells."""

import time
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from reptrans.training.batches import answers_of
from reptrans.training.evaluation import keeping_random_state
from reptrans.training.schedule import Plan, autocast

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def faster_layout(net: nn.Module, images: Tensor, plan: Plan, repeats: int = 3) -> str:
    """Which of LAYOUTS takes less time for a forward and backward pass of a copy of `net`, at best of `repeats`.

    Images that are no maps, and double precision, which has no kernels of its own for it, stay contiguous.
    """
    if images.ndim != 4 or plan.dtype == torch.float64:
        return "contiguous"
    with keeping_random_state(images.device):
        return min(LAYOUTS, key=lambda name: _seconds(net, images, plan, LAYOUTS[name], repeats))


def _seconds(net: nn.Module, images: Tensor, plan: Plan, layout: torch.memory_format, repeats: int) -> float:
    net = deepcopy(net).to(images.device, memory_format=layout).train()
    images = images.to(memory_format=layout)
    best = float("inf")
    for _ in range(repeats + 1):  # the first is for caches
        start = time.perf_counter()
        with autocast(plan, images.device):
            loss = answers_of(net, images).float().square().mean()
        loss.backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        best = min(best, time.perf_counter() - start)
    return best


def operations(run: Callable[[], object]) -> int:
    """Those of the products and convolutions in `run()`, backward passes and gradients of gradients included.

    Counted by torch's own formulas; what works by elements counts nothing.
    """
    with _Counted() as found:
        run()
    return found.total


class _Counted(TorchDispatchMode):
    # torch's FlopCounterMode also follows modules, by hooks that autograd.grad inside of them breaks.
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **kwargs, out_val=out)
        return out
