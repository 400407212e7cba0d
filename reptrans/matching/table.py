"""Methods by name, with a word for whoever mistypes one."""

from reptrans.errors import UnknownName, suggest


class Table(dict):
    """A dict from name to method whose KeyError says what names there are. `what` it holds stands in the message."""

    def __init__(self, what: str, entries: dict):
        super().__init__(entries)
        self.what = what

    def __missing__(self, name: str) -> object:
        raise UnknownName(f"there is no {self.what} {name!r}. {suggest(str(name).lower(), self)}")
