"""Files appear whole or not at all: written under a temporary name in the same folder, then renamed."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

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
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except CannotWrite:
        raise
    except (OSError, SafetensorError) as error:
        raise CannotWrite(
            f"could not write {path.name} in {path.parent}: {reason(error)} ({free_space(path.parent)} free). "
            "Free some space or choose another folder."
        ) from error
    finally:
        _remove(temporary)


def reason(error: Exception) -> str:
    """What the system said, without number and file name."""
    return getattr(error, "strerror", None) or str(error)


def free_space(folder: Path) -> str:
    """The space left on the disk of `folder`, or of its nearest parent that exists, for instance '3.1 GB'."""
    while not folder.is_dir():
        folder = folder.parent
    free = float(shutil.disk_usage(folder).free)
    for unit in ("B", "kB", "MB", "GB"):
        if free < 1000:
            return f"{free:.3g} {unit}"
        free /= 1000
    return f"{free:.3g} TB"


def _flush(path: Path) -> None:
    """Force `path` to the disk, so that a power cut after the rename cannot leave an empty file."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Force the new name to the disk too, where system and disk can."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):
            handle = os.open(folder, os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _remove(temporary: Path) -> None:
    # Where even the folder is a file or has become unreadable there is nothing to remove, and the error in flight
    # says more than this one would.
    if os.path.lexists(temporary):
        temporary.unlink()
