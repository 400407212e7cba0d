"""Networks made by a function of the user's own: `module:function` or `path/to/file.py:function`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from reptrans.errors import BadValue, UnknownName, suggest


def users_network(name: str, offered: dict, options: dict) -> nn.Module:
    """Call the named function with those of the `offered` arguments that it accepts, and with all `options`.

    Raises UnknownName if there is no such module, file or function; BadValue if the function does not accept an option
    or returns no `nn.Module`. What the user's own code raises comes through as it is.
    """
    place, _, function_name = name.rpartition(":")
    make = _function(name, _module(place), function_name)
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
    spec = importlib.util.spec_from_file_location(f"reptrans_user_{path.stem}", path)
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
