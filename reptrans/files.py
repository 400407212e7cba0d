"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from reptrans.errors import CannotWrite

_LONGEST_NAME = 64


def file_name(text: str) -> str:
    """A part of a file's name for any `text`: itself where it is plain and short, else what is plain of it and a hash.

    >>> file_name("layer1.0.conv2"), file_name("my layer")
    ('layer1.0.conv2', 'my_layer-94915f9c')
    """
    plain = re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", text).lstrip(".,=+-")
    if text and plain == text and len(text) <= _LONGEST_NAME:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: _LONGEST_NAME - 9] or '_'}-{digest}"


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Hand out a temporary path beside `path`; on success its content becomes `path`, on failure it is removed.

    The temporary name keeps the suffix, since writers choose the format by it.

    Raises:
        CannotWrite: naming the file, the reason and the space left, when the system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}-{uuid4().hex[:8]}{path.suffix}")
    try:
        with refusals(f"could not write {path.name} in {path.parent}", path.parent):
            temporary.touch()
            mode = temporary.stat().st_mode  # some writers would leave a file that its owner alone can read
            yield temporary
            temporary.chmod(mode)
            _flush(temporary, os.O_RDWR)  # a power cut after the rename cannot leave an empty file
            os.replace(temporary, path)
            if hasattr(os, "O_DIRECTORY"):
                with suppress(OSError):  # of a disk that cannot flush the new name
                    _flush(path.parent, os.O_DIRECTORY)
    finally:
        # Where even the folder is a file or has become unreadable there is nothing to remove, and the error in flight
        # says more than this one would.
        if os.path.lexists(temporary):
            temporary.unlink()


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it; CannotWrite where the system refuses."""
    with refusals(f"could not make the folder {folder}", folder.parent):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock file `path`, whose folder is made; filelock's Timeout where another process holds it for longer.

    Raises CannotWrite where the system refuses.
    """
    make_folder(path.parent)
    with refusals(f"could not write in {path.parent}", path.parent):
        held = FileLock(path).acquire(timeout=timeout)
    with held:
        yield


@contextmanager
def refusals(what: str, folder: Path) -> Iterator[None]:
    """Make CannotWrite of what the system refuses: `what`, the reason, and the space left where `folder` is."""
    try:
        yield
    except (CannotWrite, Timeout):
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotWrite(
            f"{what}: {reason} ({free_space(folder)} free). Free some space or choose another folder."
        ) from error


def free_space(folder: Path) -> str:
    """The space left on the disk of `folder`, or of its nearest parent that exists, for instance '3.1 GB'."""
    while not folder.is_dir():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB"


def _flush(path: Path, flags: int) -> None:
    """Force `path` to the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
