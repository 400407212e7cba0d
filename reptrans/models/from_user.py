"""Networks made by a function of the user's own: `module:function` or `path/to/file.py:function`."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from reptrans.errors import BadValue, UnknownName, suggest

_PREFIX = "reptrans_user_"


def users_network(name: str, offered: dict, options: dict) -> nn.Module:
    """Call the named function with those of the `offered` arguments that it accepts, and with all `options`.

    A file may import its neighbours, as where Python runs it. Raises UnknownName if there is no such module, file or
    function; BadValue if the function does not accept an option or returns no `nn.Module`. What the user's own code
    raises comes through as it is.
    """
    place, _, function_name = name.rpartition(":")
    with _beside(Path(place).resolve().parent) if place.endswith(".py") else nullcontext(), _seeded():
        return _made(name, _function(name, _module(place), function_name), offered, options)


def source_digest(name: str) -> str | None:
    """16 hex digits of the files that made a user's network: the function's, and what it imports from beside it.

    None for the name of a library's network, and for a module without a file.
    """
    place, _, _ = name.rpartition(":")
    is_file = place.endswith(".py")
    origin = Path(place if is_file else getattr(sys.modules.get(place), "__file__", None) or "").resolve()
    if not origin.is_file():
        return None
    depth = 0 if is_file or place == "__main__" else place.count(".") + (origin.name == "__init__.py")
    root = origin.parents[depth]
    files = [origin] if "site-packages" in root.parts else _imported_files(origin, root)
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _imported_files(origin: Path, root: Path) -> list[Path]:
    """The file and those of its neighbours, below `root`, that it imports, found without running any; sorted."""
    found, left = set(), [origin]
    while left:
        path = left.pop()
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            left += [file for file in _files_of(node, path, root) if file.is_file() and file not in found]
    return sorted(found)


def _files_of(node: ast.AST, path: Path, root: Path) -> Iterator[Path]:
    """Where the modules lie that an import statement in `path` may mean, but for this package's own."""
    names, folder = [], root
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        folder = path.parents[node.level - 1] if node.level else root
        names = [f"{node.module or ''}.{alias.name}".lstrip(".") for alias in node.names]
    for parts in (name.split(".") for name in names if _top(name) != __package__.partition(".")[0]):
        for place in (folder.joinpath(*parts[:k]) for k in range(1, len(parts) + 1)):
            yield from (place.with_name(f"{place.name}.py"), place / "__init__.py")


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Within, the files in `folder` are imported afresh and before all others of their names; then all is as it was."""
    packages = {path.parent.name for path in folder.glob("*/__init__.py")}
    own = {path.stem for path in folder.glob("*.py")} | {name for name in packages if not _lies_in(folder, name)}
    own -= sys.stdlib_module_names
    aside = {name: module for name, module in sys.modules.items() if _top(name) in own}
    before = {_top(name) for name in sys.modules} - own
    for name in aside:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        new = {name for name in map(_top, list(sys.modules)) if name not in before and _lies_in(folder, name)}
        for name in [name for name in sys.modules if _top(name) in new and not name.startswith(_PREFIX)]:
            del sys.modules[name]
        sys.modules.update(aside)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _lies_in(folder: Path, name: str) -> bool:
    """Whether the loaded module or package `name` is a neighbour in `folder`."""
    module = sys.modules.get(name)
    places = list(getattr(module, "__path__", [])) or [getattr(module, "__file__", None) or ""]
    return any(Path(place).parent == folder for place in places)


@contextmanager
def _seeded() -> Iterator[None]:
    """Within, Python and NumPy draw from torch's seed, so that first weights drawn by them follow from it too."""
    known = random.getstate(), np.random.get_state()
    random.seed(torch.initial_seed())
    np.random.seed(torch.initial_seed() % 2**32)
    try:
        yield
    finally:
        random.setstate(known[0])
        np.random.set_state(known[1])


def _made(name: str, make: Callable[..., nn.Module], offered: dict, options: dict) -> nn.Module:
    accepted = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        if refused := [option for option in options if option not in accepted]:
            raise BadValue(f"{name} has no argument {refused[0]!r}. {suggest(refused[0], accepted, 'Its arguments')}")
        offered = {key: value for key, value in offered.items() if key in accepted}
    net = make(**offered | options)
    if not isinstance(net, nn.Module):
        raise BadValue(f"{name} returned {type(net).__name__}, not a torch.nn.Module.")
    return net


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        return _run_file(Path(place))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise UnknownName(
            f"There is no module {place!r} on the Python path. Install it, start Python in its folder, or give the "
            "file: path/to/file.py:function."
        ) from error


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UnknownName(f"There is no file {path}, looked for in {Path.cwd()}.")
    spec = importlib.util.spec_from_file_location(f"{_PREFIX}{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and the like look their own module up
    spec.loader.exec_module(module)
    return module


def _function(name: str, module: ModuleType, function_name: str) -> Callable[..., nn.Module]:
    make = getattr(module, function_name, None)
    if not callable(make):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UnknownName(f"{name}: there is no function {function_name!r}. {suggest(function_name, own, 'It has')}")
    return make
