"""Classification networks of torchvision and timm, with fresh weights or trained ones; and what all libraries share."""

import http.client
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from reptrans.errors import BadValue, NotAvailable, ShapeMismatch, UnknownName, choose, near
from reptrans.randomness import drawing, made_as

FRESH = "use weights=None for fresh weights."


class Asked(NamedTuple):
    """What is asked of a library, as `build` takes it; `image_size` is (height, width)."""

    name: str
    num_classes: int | None
    in_channels: int
    image_size: tuple[int, int]
    weights: str | None
    options: dict


def library(module: str, extra: str, name: str) -> ModuleType:
    """The imported module. Raises NotAvailable where it is not installed, with the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotAvailable(
            f"{name} needs {module}, which cannot be imported ({error}). Install it: pip install 'reptrans[{extra}]'."
        ) from error


def refuse_other(weights: str, own: dict[str, int], given: dict[str, int | None], advice: str) -> None:
    """Raises BadValue for another number of classes or of channels than the trained weights have."""
    for what, asked in given.items():
        if asked not in (None, own[what]):
            hint = "channels=3 of load_dataset repeats grey images" if what == "in_channels" else "Leave it out"
            raise BadValue(f"The weights {weights} have {what}={own[what]}, not {asked}. {hint}, or {advice}")


def refuse_large(name: str, make: Callable[[], nn.Module], hint: str) -> None:
    """Raises BadValue if the weights, 8 bytes each while they are drawn, do not fit into this machine's memory.

    The network is made once without memory for its weights; one for which that fails is let through.
    """
    try:
        with drawing(0), torch.device("meta"):
            weights = sum(p.numel() for p in make().parameters())
    except Exception:  # said where the network is made
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if 8 * weights > memory:
        raise BadValue(
            f"{name} has {weights / 1e9:.1f} billion weights, {8 * weights / 2**30:.0f} GiB while they are drawn; this "
            f"machine has {memory / 2**30:.0f} GiB. {hint}"
        )


@torch.no_grad()
def rehearsed(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network after it has seen one empty image: it says now what it has against that size, not in a training."""
    with made_as(torch.float32):
        net.float().eval()(torch.zeros(shape))
    return net.train()


def torchvision_network(asked: Asked) -> nn.Module:
    """`torchvision/NAME` with fresh weights (`None`), the `"default"` ones, or those of an enum name (IMAGENET1K_V1).

    Raises UnknownName for a network or for weights, BadValue for another number of channels than 3 or of classes than
    the weights have, NotAvailable when the weights cannot be downloaded.
    """
    import torchvision  # slow to import, and most users of this package never need it

    name, num_classes, in_channels, image_size, weights, options = asked
    short = name.removeprefix("torchvision/")
    known = torchvision.models.list_models(module=torchvision.models)
    choose(short, known, "torchvision has no classification network {}", listed="Networks")
    if in_channels != 3:
        raise BadValue(
            f"{name} takes images of 3 channels, in_channels is {in_channels}. channels=3 of load_dataset repeats "
            "grey images three times; or choose a network of this package (model_names())."
        )
    chosen = _weights(name, torchvision.models.get_model_weights(short), weights)
    if chosen is not None:
        own = {"num_classes": len(chosen.meta["categories"])}
        refuse_other(f"{chosen.name} of {name}", own, {"num_classes": num_classes}, FRESH)
        num_classes = own["num_classes"]
    arguments = _arguments(short, chosen, num_classes or 10, image_size) | options
    try:
        return torchvision.models.get_model(short, weights=chosen, **arguments)
    except TypeError as error:
        if not options:
            raise
        raise BadValue(f"{name} does not accept the options {options}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        if chosen is None:
            raise
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise NotAvailable(
            f"The weights {chosen.name} of {name} could not be downloaded ({error}). Download {chosen.url} where you "
            f"can and put the file into {folder}, under the name {Path(chosen.url).name}."
        ) from error


def _weights(name: str, known, asked: str | None):
    if asked is None:
        return None
    table = {"default": known.DEFAULT} | {member.name: member for member in known}
    return choose(asked, table, f"{name} has no weights {{}}", listed="Weights")


def _arguments(short: str, weights, num_classes: int, image_size: tuple[int, int]) -> dict:
    arguments = {"num_classes": num_classes}
    if short in ("googlenet", "inception_v3"):
        arguments["aux_logits"] = False  # a tensor, not a tuple, in train mode too
        if weights is None:
            arguments["init_weights"] = True  # torchvision warns where nobody says so
    if short.startswith("vit_") and weights is None:
        arguments["image_size"] = _vit_side(short, image_size)
    return arguments


def _vit_side(short: str, image_size: tuple[int, int]) -> int:
    """The side of the square images of a vision transformer, whose position embedding is made for one size."""
    patch = int(short.split("_")[2])
    if image_size[0] != image_size[1] or image_size[0] % patch:
        raise ShapeMismatch(
            f"torchvision/{short} needs square images of a multiple of {patch} pixels, its patch; image_size is "
            f"{image_size[0]} x {image_size[1]}."
        )
    return image_size[0]


def timm_network(asked: Asked) -> nn.Module:
    """`timm/NAME` with fresh weights (`None`), the `"default"` ones, or those of a tag (a1_in1k).

    A network made for one size of images (a vision transformer) is made for `image_size`, and one that does not take
    images of that size is refused. Trained weights are fetched as safetensors, never pickled, and the size of their
    images is kept, unless the option `img_size` says another.
    Raises UnknownName for a network or for weights, BadValue for what timm refuses or for other classes or channels
    than the weights have, NotAvailable without timm or where the weights cannot be fetched.
    """
    name, num_classes, in_channels, image_size, weights, options = asked
    timm = library("timm", "timm", name)
    short, _, tag = name.removeprefix("timm/").partition(".")
    if not timm.is_model(short):
        known = timm.list_models()
        raise UnknownName(
            f"timm has no network {short!r}. {near(short, known)}timm.list_models() lists all {len(known)} of them."
        )
    if fetching := [option for option in options if option.startswith(("pretrained", "checkpoint", "cache"))]:
        raise BadValue(f'{name} takes no {fetching[0]}: trained weights are asked for by weights="default" or a tag.')
    tag = _tag(timm, short, tag, weights)
    facts = {"in_chans": in_channels, "num_classes": 10 if num_classes is None else num_classes}
    if weights is not None:
        facts |= _trained(timm, name, f"{short}.{tag}" if tag else short, num_classes, in_channels)
    size = image_size if weights is None else None
    make = lambda: _make(timm, short, size, facts | options)  # noqa: E731
    refuse_large(name, make, "Choose a smaller network.")
    try:
        net = make()
        return net if weights else rehearsed(net, (1, (facts | options)["in_chans"], *image_size))
    # timm's networks check what they are given with errors of many classes; the cause is chained.
    except Exception as error:
        raise BadValue(_refused(timm, name, short, facts | options, image_size, error)) from error


def _make(timm: ModuleType, short: str, image_size: tuple[int, int] | None, arguments: dict) -> nn.Module:
    """With `img_size` where the network takes one: most take images of any size."""
    if image_size and "img_size" not in arguments:
        square = image_size[0] if image_size[0] == image_size[1] else image_size
        try:
            return timm.create_model(short, img_size=square, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    return timm.create_model(short, **arguments)


def _tag(timm: ModuleType, short: str, named: str, asked: str | None) -> str:
    """The tag of the weights that are meant, by the name (resnet50.a1_in1k) or by `weights`; "" is timm's default."""
    known = [full.partition(".")[2] for full in timm.list_models(f"{short}.*", pretrained=True)]
    for tag in (named, asked):
        choose(tag or "default", ["default", *known], f"timm/{short} has no weights {{}}", listed="Weights")
    return named if asked in (None, "default") else asked


def _trained(timm: ModuleType, name: str, full: str, num_classes: int | None, in_channels: int) -> dict:
    """What `create_model` needs besides, to load these weights."""
    found = timm.get_pretrained_cfg(full)
    if found is None or not found.hf_hub_id:
        raise NotAvailable(
            f"timm has no weights of {name} as safetensors, and pickled ones are not loaded, since they may run code. "
            "Choose other weights or another network."
        )
    own = {"num_classes": found.num_classes, "in_channels": found.input_size[0]}
    given = {"num_classes": num_classes, "in_channels": in_channels}
    refuse_other(f"{full} of timm", own, given, FRESH)
    file = {"file": _fetched(name, found.hf_hub_id), "custom_load": False}
    return {"pretrained": True, "pretrained_cfg": found.tag or None, "pretrained_cfg_overlay": file,
            "num_classes": found.num_classes}  # fmt: skip


def _fetched(name: str, repository: str) -> str:
    """The path of model.safetensors, from the local cache or downloaded."""
    hub = library("huggingface_hub", "timm", name)
    repository, _, revision = repository.partition("@")
    try:
        return hub.hf_hub_download(repository, "model.safetensors", revision=revision or None)
    except Exception as error:  # of the hub, of its HTTP client, or of the disk
        raise NotAvailable(
            f"The weights of {name}, model.safetensors of {repository}, could not be fetched ({type(error).__name__}). "
            f"Where there is a connection: hf download {repository} model.safetensors; then copy the cache folder, "
            f"{hub.constants.HF_HUB_CACHE}."
        ) from error


def _refused(
    timm: ModuleType, name: str, short: str, arguments: dict, image_size: tuple[int, int], error: Exception
) -> str:
    own = timm.get_pretrained_cfg(short)
    usual = f" Its usual images are {' x '.join(map(str, own.input_size))}." if own and own.input_size else ""
    reason = (str(error).strip().rstrip(".").splitlines() or [type(error).__name__])[0]
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if not key.startswith("pretrained"))
    return (
        f"{name} cannot be made for images of {image_size[0]} x {image_size[1]} pixels with {given}: {reason}.{usual}"
    )
