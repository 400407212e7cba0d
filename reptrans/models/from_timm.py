"""Classification networks of timm, with fresh weights or its trained ones."""

from types import ModuleType

from torch import nn

from reptrans.errors import BadValue, NotAvailable, UnknownName, choose, near
from reptrans.models.library import FRESH, library, refuse_large, refuse_other, rehearsed


def timm_network(
    name: str,
    num_classes: int | None,
    in_channels: int,
    image_size: tuple[int, int],
    weights: str | None,
    options: dict,
) -> nn.Module:
    """`timm/NAME` with fresh weights (`None`), the `"default"` ones, or those of a tag (a1_in1k).

    A network made for one size of images (a vision transformer) is made for `image_size`, and one that does not take
    images of that size is refused. Trained weights are fetched as safetensors, never pickled, and the size of their
    images is kept, unless the option `img_size` says another.
    Raises UnknownName for a network or for weights, BadValue for what timm refuses or for other classes or channels
    than the weights have, NotAvailable without timm or where the weights cannot be fetched.
    """
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
