"""How many floating-point operations something takes: the same on every machine, unlike its time."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


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
