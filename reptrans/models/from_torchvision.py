"""Classification networks of torchvision, with or without its trained weights."""

import http.client
from pathlib import Path

import torch
from torch import nn

from reptrans.errors import BadValue, NotAvailable, ShapeMismatch, choose
from reptrans.models.library import FRESH, refuse_other


def torchvision_network(
    name: str,
    num_classes: int | None,
    in_channels: int,
    image_size: tuple[int, int],
    weights: str | None,
    options: dict,
) -> nn.Module:
    """`torchvision/NAME` with fresh weights (`None`), the `"default"` ones, or those of an enum name (IMAGENET1K_V1).

    Raises UnknownName for a network or for weights, BadValue for another number of channels than 3 or of classes than
    the weights have, NotAvailable when the weights cannot be downloaded.
    """
    import torchvision  # slow to import, and most users of this package never need it

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
