"""Write constraints.txt: the versions of all that the project asks for, here and now; run where outputs were made."""

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "constraints.txt"


def asked_for() -> list[Requirement]:
    """What pyproject.toml names, extras included, but for the project itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != project["name"]]


def installed() -> dict[str, str]:
    """Version by name of what is asked for and what that needs in turn, as far as it is installed."""
    found, waiting = {}, asked_for()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        try:
            here = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = here.version.partition("+")[0]
        waiting += map(Requirement, here.requires or [])
    return dict(sorted(found.items()))


if __name__ == "__main__":
    head = (
        "# The versions that gave the stored outputs; make env CONSTRAINTS=constraints.txt installs them again.\n"
        f"# Written by make constraints, with Python {platform.python_version()}.\n"
    )
    FILE.write_text(head + "".join(f"{name}=={version}\n" for name, version in installed().items()), "utf-8")
