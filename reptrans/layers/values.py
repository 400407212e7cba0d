"""Which tensor stands for what a module returns: one rule for layers, networks and losses.

A tensor stands for itself. Of a tuple, list, dict, dataclass or ModelOutput it is the part that the caller names, or
else `logits` for a whole network, or else the first tensor, depth first. A part is a path of keys, names and numbers:
`1`, `hidden_states.3`, `last_hidden_state`.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from torch import Tensor

from reptrans.errors import BadValue, suggest


def answer(value: object, who: str = "the network") -> Tensor:
    """The logits in what a whole network returned: itself, its `logits`, else its first tensor; BadValue for none."""
    if isinstance(value, Tensor):
        return value
    logits = dict(_children(value)).get("logits", getattr(value, "logits", None))
    return logits if isinstance(logits, Tensor) else chosen(value, "", who)


def chosen(value: object, part: str = "", who: str = "the layer") -> Tensor:
    """The tensor in `value` that the path `part` leads to, by default the first. Raises BadValue, naming all parts."""
    found = dict(tensors_in(value))
    if not part and found:
        return next(iter(found.values()))
    if part in found:
        return found[part]
    if not found:
        raise BadValue(f"{who} returns {_described(value)}, in which there is no tensor.")
    raise BadValue(f"{who} returns {_described(value)} without the part {part!r}. {suggest(part, found, 'Its parts')}")


def replaced(value: object, part: str, tensor: Tensor) -> object:
    """`value` with `tensor` in place of what `chosen(value, part)` gives; everything else is the same object."""
    path = part or next((name for name, _ in tensors_in(value)), "")
    if not path:
        return tensor
    key, _, rest = path.partition(".")
    new = {name: replaced(child, rest, tensor) if name == key else child for name, child in _children(value)}
    if isinstance(value, Mapping):
        return type(value)({own: new[str(own)] for own in value})
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **new)
    return type(value)(*new.values()) if hasattr(value, "_fields") else type(value)(new.values())


def tensors_in(value: object, kind: type = Tensor) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) for every tensor inside `value`, depth first; a tensor itself has the path "".

    `kind`: what counts as a tensor; a graph's stand-in, say.
    """
    if isinstance(value, kind):
        yield "", value
        return
    for name, child in _children(value):
        for path, tensor in tensors_in(child, kind):
            yield f"{name}.{path}" if path else name, tensor


def _children(value: object) -> Iterator[tuple[str, object]]:
    # A ModelOutput is a dict that lacks what was not asked for, and a dataclass that has it as None.
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((str(i), child) for i, child in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def _described(value: object) -> str:
    parts = [name for name, _ in _children(value)]
    return f"a {type(value).__name__}" + (f" with {', '.join(parts[:8])}" if parts else "")
