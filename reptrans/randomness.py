"""First weights and made data that are the same on every processor: drawn from a seed, in double precision.

A number drawn in single precision may differ in its last bit from one processor to the next (the same formula, with or
without a fused multiply-add), and a training makes another network of that. Drawn in double precision and rounded, it
is the same.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch

from reptrans.errors import BadValue, check_whole


def generator_of(seed: int) -> torch.Generator:
    """A generator on the CPU that begins at `seed`. Raises BadValue for what is no whole number from 0 to 2⁶³ - 1."""
    return torch.Generator().manual_seed(checked_seed(seed))


def checked_seed(seed: int) -> int:
    """The seed itself, as Python's own number. Raises BadValue as `generator_of`."""
    check_whole("seed", seed, 0)
    if seed >= 2**63:
        raise BadValue(f"seed is {seed}; it must be below 2^63, {2**63}.")
    return int(seed)


@contextmanager
def drawing(seed: int, double: bool = True) -> Iterator[None]:
    """Within, torch draws on the CPU from `seed`, and new tensors are float64; then the random state is as it was.

    `double` False: new tensors are of the type that they usually are.
    """
    seed = checked_seed(seed)
    # torch.manual_seed would also reseed the GPUs, which fork_rng(devices=[]) does not restore.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), in_double() if double else nullcontext():
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def random_states_kept() -> Iterator[Callable[[], bool]]:
    """Python's, NumPy's and torch's random states (of the CPU) are afterwards as they were.

    Gives a function that says whether anything was drawn since.
    """
    python, numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    before = _random_states()
    try:
        yield lambda: _random_states() != before
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if not torch._C._len_torch_dispatch_stack():
            torch.set_rng_state(torchs)


def _random_states() -> tuple[object, ...]:
    """The three states as what can be compared: the parts of NumPy's may be arrays."""
    numpy = np.random.get_state(legacy=False)["state"]
    parts = {name: np.asarray(part, object).tolist() for name, part in numpy.items()}
    # Within torch's mode of tensors without values, its state is none.
    torchs = b"" if torch._C._len_torch_dispatch_stack() else torch.get_rng_state().numpy().tobytes()
    return random.getstate(), parts, torchs


def in_double() -> AbstractContextManager[None]:
    """Within, tensors that are made without a type are float64."""
    return made_as(torch.float64)


@contextmanager
def made_as(dtype: torch.dtype) -> Iterator[None]:
    """Within, tensors that are made without a type are of this one."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
