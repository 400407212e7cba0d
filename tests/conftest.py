"""One thread, and the real data that some tests need: below $REPTRANS_SHARED, or ../shared beside the checkout."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared("data/MNIST"): that path of the shared data; the test is skipped where it is absent."""
    checkout = Path(__file__).resolve().parent.parent
    root = Path(os.environ.get("REPTRANS_SHARED") or checkout.parent / "shared")

    def find(relative: str) -> Path:
        if not (root / relative).exists():
            pytest.skip(f"needs {relative} of the shared data: set REPTRANS_SHARED")
        return root / relative

    return find
