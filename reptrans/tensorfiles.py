"""Nested tensors in one safetensors file: whole or not at all, plain data, readable without this package.

The tensors lie under dotted names; what joins them (dicts with any plain keys, lists, tuples, numbers, strings, None)
is written as JSON into the file's metadata, with a digest of it all. Nothing is ever pickled.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reptrans.errors import BadCheckpoint, BadValue, suggest
from reptrans.files import atomic, make_folder

_SKELETON, _META, _DIGEST = "reptrans.skeleton", "reptrans.meta", "reptrans.digest"
_SCALARS = (str, int, float, bool, type(None))


def save_tensors(path: str | Path, state: object, meta: dict | None = None) -> None:
    """Write `state`, nested dicts, lists and tuples of tensors and JSON scalars, with `meta`, JSON data, to `path`.

    Folders are made; an older file stays as it was until the new one is complete; views and shared tensors are copied.
    Raises BadValue for anything that is neither tensor nor scalar, CannotWrite where the system refuses.
    """
    path, tensors = Path(path), {}
    skeleton = _take_apart(state, "", tensors)
    described = {_SKELETON: json.dumps(skeleton), _META: json.dumps(meta or {})}
    described[_DIGEST] = digest_of(tensors, *described.values())
    make_folder(path.parent)
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata=described)


def load_tensors(path: str | Path) -> tuple[object, dict]:
    """What `save_tensors` was given: (state, meta), the tensors on the CPU.

    A safetensors file of other origin gives its tensors by name, and its metadata.
    Raises BadCheckpoint for a file that is missing, incomplete, damaged or of another format.
    """
    path = existing(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            described = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise incomplete(path) from error
    here = digest_of(tensors, described.get(_SKELETON), described.get(_META))
    if (there := described.get(_DIGEST, here)) != here:
        raise BadCheckpoint(
            f"{path} is damaged: the digest of what was written is {there}, of what it holds now {here}. "
            "Take it from a copy, or train or download it again."
        )
    if _SKELETON not in described:
        return tensors, described
    try:
        return _put_together(json.loads(described[_SKELETON]), tensors), dict(json.loads(described[_META]))
    # Text that is no skeleton raises whatever its reader happened to stumble over, too deep a nesting included.
    except Exception as error:
        raise incomplete(path) from error


def digest_of(tensors: dict[str, Tensor], *more: object) -> str:
    """16 hex digits that tell whether something is still the same: of all tensors and their names, and of JSON data."""
    found = hashlib.sha256("".join(json.dumps(part, sort_keys=True) for part in more).encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def existing(path: str | Path) -> Path:
    """`path`, if a file is there; BadCheckpoint with what is in its folder otherwise."""
    path = Path(path)
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise BadCheckpoint(f"there is no file {path}: its folder does not exist.")
    there = sorted(p.name for p in path.parent.iterdir() if p.is_file() and not p.name.startswith("."))
    listed = suggest(path.name, there, "In that folder") if there else "Its folder holds no files."
    raise BadCheckpoint(f"there is no file {path}. {listed}")


def incomplete(path: Path) -> BadCheckpoint:
    """The error for a file that breaks off or is not what its name says."""
    size = path.stat().st_size
    return BadCheckpoint(
        f"{path} ({size} bytes) is not a complete checkpoint: it breaks off or is of another format. "
        "Train or download it again, or save its weights with torch.save."
    )


def _take_apart(node: object, name: str, tensors: dict[str, Tensor]) -> object:
    """The skeleton of `node`: scalars as they are, anything else as {kind: content}; tensors go into `tensors`."""
    inner = f"{name}." if name else ""
    match node:
        case Tensor():
            name = name or "tensor"
            while name in tensors:  # {"a.b": x, "a": {"b": y}} has two of one dotted name
                name += "~"
            # A clone of its own: safetensors refuses tensors that share memory, and a view would drag its base along.
            tensors[name] = node.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name}
        case dict():
            if odd := [key for key in node if type(key) not in _SCALARS]:
                raise BadValue(f"cannot save {name or 'the state'}: its key {odd[0]!r} is not a string or a number.")
            return {"dict": [[key, _take_apart(child, f"{inner}{key}", tensors)] for key, child in node.items()]}
        case list() | tuple():
            kind = "list" if isinstance(node, list) else "tuple"
            return {kind: [_take_apart(child, f"{inner}{i}", tensors) for i, child in enumerate(node)]}
    if type(node) in _SCALARS:
        return node
    raise BadValue(
        f"cannot save {name or 'the state'}: it is a {type(node).__name__}. "
        "Possible: tensors, numbers, strings, True, False, None, and dicts, lists and tuples of these."
    )


def _put_together(node: object, tensors: dict[str, Tensor]) -> object:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_together(child, tensors) for key, child in content}
    return {"list": list, "tuple": tuple}[kind](_put_together(child, tensors) for child in content)
