"""Errors that users may meet.

Every message states the fact, the value received, the values possible and the next step. Each class also derives
from the built-in error that a Python programmer would expect to catch.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

_Called = TypeVar("_Called", bound=Callable)


class ReptransError(Exception):
    """The root of all errors raised for what a user gave."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the message alone, for the frames below tell its reader nothing."""
        return f"{type(self).__name__}: {self}".splitlines()


class UnknownName(ReptransError, ValueError):
    """A dataset, network, method or parameter name that does not exist."""


class LayerNotFound(ReptransError, LookupError):
    """A layer name that `named_modules` of the network does not know."""


class CannotCut(ReptransError, ValueError):
    """A layer that exists but does not separate the network's input from its output."""


class ShapeMismatch(ReptransError, ValueError):
    """Two things that should fit together and do not; both shapes are named."""


class BadValue(ReptransError, ValueError):
    """A parameter out of its range, or one that contradicts another."""


class BadData(ReptransError, ValueError):
    """A dataset that is empty, corrupt or not of the expected form."""


class BadCheckpoint(ReptransError, ValueError):
    """A file that is not a complete, plain checkpoint of the network it is loaded into."""


class NotAvailable(ReptransError, OSError):
    """Something that must be downloaded, where it cannot be; the message says what to put where."""


class CannotWrite(ReptransError, OSError):
    """A folder that cannot be written to, or a full disk."""


class InPlaceChange(ReptransError, RuntimeError):
    """A recorded activation was overwritten by a later in-place operation."""


class Diverged(ReptransError, ArithmeticError):
    """A loss term became NaN or infinite; the term, the step and the learning rate are named."""


class OutOfTime(ReptransError, TimeoutError):
    """The time given to a run is over; all that was done is kept."""


def choose(
    name: object,
    table: Iterable,
    said: str,
    error: type[ReptransError] = UnknownName,
    *,
    listed: str = "Possible",
    more: str = "",
) -> object:
    """What stands in `table` under `name`: its value in a mapping, `name` itself in a list.

    Otherwise raises `error`. `said` is the beginning of its message, "{}" in it the name; `listed` is what the possible
    names are called, and `more` is the end.

    >>> choose("relu", {"relu": max}, "there is no activation {}")
    <built-in function max>
    >>> choose("bn9", ["bn1", "fc"], "bn9 is no layer")
    Traceback (most recent call last):
    reptrans.errors.UnknownName: bn9 is no layer. Did you mean 'bn1'? Possible: bn1, fc
    """
    if name not in table:
        raise error(f"{said.replace('{}', repr(name))}. {suggest(name, table, listed)}{more}")
    return table[name] if isinstance(table, Mapping) else name


def check_whole(name: str, value: object, least: int, *, of: str = "", more: str = ".") -> None:
    """Raises BadValue for what is no whole number from `least` on; `of`: of what, as " of pixels".

    >>> check_whole("length", 0, 1, of=" of tokens")
    Traceback (most recent call last):
    reptrans.errors.BadValue: length is 0; it must be a whole number of tokens from 1 on.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadValue(f"{name} is {value!r}; it must be a whole number{of} from {least} on{more}")


def suggest(name: object, options: Iterable[str], what: str = "Possible") -> str:
    """The end of a message about an unknown name: near matches first, then all that is possible.

    >>> suggest("bn9", ["bn1", "bn2", "fc"])
    "Did you mean 'bn1' or 'bn2'? Possible: bn1, bn2, fc"
    """
    options = list(options)
    return f"{near(name, options, most=3)}{what}: {', '.join(options) or 'none'}"


def near(name: object, options: Iterable[str], most: int = 5) -> str:
    """ "Did you mean 'a' or 'b'? ", or nothing: alone for lists of a thousand names, which no message should hold.

    Capital letters do not matter, and names that contain the text are nearest.
    """
    text, folded = str(name).casefold(), {option.casefold(): option for option in map(str, options)}
    holding = [text] if text in folded else [option for option in folded if len(text) > 2 and text in option]
    close = holding[:most] or difflib.get_close_matches(text, folded, n=most)
    found = sorted(folded[option] for option in close)
    return f"Did you mean {' or '.join(map(repr, found))}? " if found else ""


class Table(dict):
    """A dict by name, whose error for a name that it does not have is UnknownName; `what` it holds stands in it."""

    def __init__(self, what: str, entries: Mapping):
        super().__init__(entries)
        self.what = what

    def __missing__(self, name: str) -> object:
        raise UnknownName(f"there is no {self.what} {name!r}. {suggest(name, self)}")


def own_arguments(called: _Called) -> _Called:
    """The function or class, which refuses an argument that it does not have by its near names: BadValue.

    >>> own_arguments(lambda optimiser: optimiser)(optimizer="adam")
    Traceback (most recent call last):
    reptrans.errors.BadValue: <lambda> has no argument 'optimizer'. Did you mean 'optimiser'? Possible: optimiser
    """
    if isinstance(called, type):
        called.__init__ = own_arguments(called.__init__)
        return called
    names = [name for name in inspect.signature(called).parameters if name != "self"]

    @functools.wraps(called)
    def checked(*args, **given):
        for name in given:
            who = called.__qualname__.removesuffix(".__init__").rpartition(".")[2]
            choose(name, names, f"{who} has no argument {{}}", BadValue)
        return called(*args, **given)

    return checked
