"""A plugin of pytest: cells of notebooks that nbval runs are compared as `printed` says."""

import platform
from importlib import metadata

from nbval.plugin import IPyNbCell
from packaging.specifiers import SpecifierSet
from printed import fault_of_picture, forgiven, plain


def pytest_collection_modifyitems(items):
    for item in items:
        if type(item) is IPyNbCell:
            item.__class__ = ToleratingCell


class Printed(str):
    """A stored text, equal to every text that says the same."""

    declared = 0.0

    def __eq__(self, new: object) -> bool:
        return isinstance(new, str) and str.__eq__(self, forgiven(self, new, self.declared))

    def __ne__(self, new: object) -> bool:
        return not self == new

    __hash__ = str.__hash__


def _pictures(outputs: list) -> list[str]:
    return [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]


class ToleratingCell(IPyNbCell):
    """nbval's cell, whose outputs are compared as this file says."""

    def sanitize(self, text):
        text = super().sanitize(text)
        if not isinstance(text, str):
            return text
        printed = Printed(plain(text))
        printed.declared = float(self.cell.metadata.get("tolerance", 0.0))
        return printed

    def compare_outputs(self, test, ref, skip_compare=None) -> bool:
        before, after = _pictures(ref), _pictures(test)
        faults = [f for pair in zip(before, after, strict=False) if (f := fault_of_picture(*pair))]
        if len(before) != len(after):
            faults = [f"{len(after)} pictures, and {len(before)} are stored"]
        if faults:
            self.comparison_traceback = faults
            return False
        agrees = super().compare_outputs(test, ref, skip_compare)
        if not agrees:
            self.comparison_traceback += self._other_versions()
        return agrees

    def _other_versions(self) -> list[str]:
        """A line for each package of this environment for whose version the stored outputs promise nothing."""
        ranges = self.parent.nb.metadata.get("outputs_hold_for", {})
        here = {name: platform.python_version() if name == "python" else metadata.version(name) for name in ranges}
        return [
            f"The stored outputs hold for {name} {ranges[name]}, and this is {version}.\n"
            for name, version in here.items()
            if not SpecifierSet(ranges[name]).contains(version, prereleases=True)
        ]

    def format_output_compare(self, key, left, right):
        # What is shown differs from the stored text in what is wrong alone.
        super().format_output_compare(key, str(left), forgiven(left, right, left.declared))
