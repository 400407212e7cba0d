"""What can go wrong at the public door.

Every message states the fact, the value received, the values possible and the next step. Each class also derives
from the built-in error that a Python programmer would expect to catch.
"""

import difflib
from collections.abc import Iterable


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


def suggest(name: str, options: Iterable[str], what: str = "Possible") -> str:
    """The end of a message about an unknown name: near matches first, then all that is possible.

    >>> suggest("bn9", ["bn1", "bn2", "fc"])
    "Did you mean 'bn1' or 'bn2'? Possible: bn1, bn2, fc"
    """
    options = list(options)
    near = difflib.get_close_matches(str(name), options, n=3)
    hint = "Did you mean " + " or ".join(repr(n) for n in sorted(near)) + "? " if near else ""
    return f"{hint}{what}: {', '.join(options)}"
