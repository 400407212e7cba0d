"""Numbers that a caller may choose, with a word for whoever mistypes one."""

from reptrans.errors import BadValue


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
