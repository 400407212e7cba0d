"""Networks by name: those of the studies this package follows, of torchvision, timm and transformers, and your own.

>>> net = build("resnet20_w1", num_classes=10, seed=3)
>>> "tiny10" in model_names()
True
"""

from torch import nn

from reptrans.errors import BadValue, check_whole
from reptrans.models.families import make, model_names
from reptrans.models.from_transformers import transformers_network
from reptrans.models.from_user import source_digest, users_network
from reptrans.models.library import Asked, timm_network, torchvision_network
from reptrans.models.resnet import from_l2t
from reptrans.randomness import drawing

__all__ = ["build", "from_l2t", "model_names", "source_digest"]

LIBRARIES = {"torchvision": torchvision_network, "timm": timm_network, "hf": transformers_network}


def build(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | tuple[int, int] = 32,
    seed: int = 0,
    weights: str | None = None,
    **options,
) -> nn.Module:
    """The network `name` on the CPU, in train mode, a function of the arguments alone: the global random state is kept.

    Arguments: `name`, one of `model_names()`, `torchvision/NAME`, `timm/NAME`, of transformers `hf/TYPE` (fresh
    weights), `hf/path/to/folder` (with config.json, and weights in safetensors if there are any) or `hf/OWNER/NAME` (of
    the hub's local cache), or `module:function` or `path/to/file.py:function` of your own, which is run;
    `num_classes`, 10 unless trained `weights` say otherwise; `image_size`, pixels, a side or (height, width);
    `seed` of the initial weights; `weights`, for libraries only: "default" or the name of a set; `options`, for what
    only some networks have (`batch_norm` of inceptionv1, `hidden_size` of hf/bert).
    Images are (n, in_channels, height, width), the output is (n, num_classes) logits; of hf/ what transformers returns.
    Raises UnknownName, BadValue, ShapeMismatch for images too small for the network, NotAvailable for a library that is
    not installed or for weights that cannot be downloaded.
    """
    if not isinstance(name, str):
        raise BadValue(
            f"build takes the name of a network, not {_described(name)}. Names: model_names(), timm/resnet18."
        )
    size = _height_width(image_size)
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None:
            check_whole(argument, value, 1)
    if library := LIBRARIES.get(name.partition("/")[0] if "/" in name else ""):
        with drawing(seed):
            return library(Asked(name, num_classes, in_channels, size, weights, options)).float()
    if weights is not None:
        raise BadValue(
            f"weights={weights!r} is for networks of {', '.join(LIBRARIES)}; {name} starts with random weights. To "
            "load a file into it, use load_network of reptrans.checkpoints."
        )
    num_classes = 10 if num_classes is None else num_classes
    if ":" in name:
        offered = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size, "seed": seed}
        with drawing(seed, double=False):  # the types of a user's network are its own affair
            return users_network(name, offered, options)
    with drawing(seed):
        return make(name, num_classes, in_channels, size, options).float()


def _height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise BadValue(f"image_size is {image_size!r}; it must be a side in pixels or (height, width), each from 1 on.")
    return size


def _described(value: object) -> str:
    if isinstance(value, nn.Module):
        return f"a network ({type(value).__name__}), which is built already"
    return repr(value) if value is None else f"{type(value).__name__}"
