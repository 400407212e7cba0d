"""One thread, the same draws in every run, the book as it is built once, and the real data that some tests need.

Those lie below $REPTRANS_SHARED, or in ../shared beside the checkout.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


class Book(NamedTuple):
    """The folder of the built site, and what the strict builds said against it: "" where they succeeded."""

    site: Path
    complaint: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what takes long and cannot be divided, so that at the end no process has it while all others are done: the
    book, which several files wait for, then the notebooks."""
    items.sort(key=lambda item: (item.path.name != "test_book.py", item.path.suffix != ".ipynb"))


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """A test that draws without a generator of its own draws the same in every run, whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def book(tmp_path_factory, worker_id) -> Book:
    """Built once, by whichever process of the tests wants it first."""
    if worker_id == "master":
        return _built(tmp_path_factory.mktemp("book"))
    folder = tmp_path_factory.getbasetemp().parent / "book"
    said = folder / "complaint"
    with FileLock(f"{folder}.lock"):
        if not said.exists():
            folder.mkdir()
            said.write_text(_built(folder).complaint, "utf-8")
    return Book(folder / "_build" / "html", said.read_text("utf-8"))


def _built(folder: Path) -> Book:
    program = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    command = [program, "build", str(ROOT), "--toc", str(ROOT / "book" / "_toc.yml"), "--path-output", str(folder)]
    site = folder / "_build" / "html"
    english = _said([*command, "-W", "-n", "--keep-going"])
    return Book(site, english or _said([sys.executable, str(ROOT / "book" / "spanish.py"), str(site)]))


def _said(command: list) -> str:
    """What a command wrote, if it failed."""
    surroundings = os.environ | {"NO_COLOR": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, timeout=600)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared("data/MNIST"): that path of the shared data; the test is skipped where it is absent."""
    root = Path(os.environ.get("REPTRANS_SHARED") or ROOT.parent / "shared")

    def find(relative: str) -> Path:
        if not (root / relative).exists():
            pytest.skip(f"needs {relative} of the shared data: set REPTRANS_SHARED")
        return root / relative

    return find
