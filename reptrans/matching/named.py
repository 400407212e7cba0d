"""What a caller may choose, names and numbers, with a word for whoever mistypes one."""

from reptrans.errors import BadValue, UnknownName, suggest


class Table(dict):
    """A dict from name to method whose KeyError says what names there are. `what` it holds stands in the message."""

    def __init__(self, what: str, entries: dict):
        super().__init__(entries)
        self.what = what

    def __missing__(self, name: str) -> object:
        raise UnknownName(f"there is no {self.what} {name!r}. {suggest(str(name).lower(), self)}")


def above_0(more: str = "", **numbers: float) -> None:
    """Raise BadValue for a number that is not above 0; `more` says what else it may be."""
    for name, value in numbers.items():
        if not value > 0:
            raise BadValue(f"{name} is {value!r}; it must be a number above 0{more}.")


def whole(**numbers: int) -> None:
    """Raise BadValue for what is no whole number from 1 on."""
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            raise BadValue(f"{name} is {value!r}; it must be a whole number from 1 on.")
