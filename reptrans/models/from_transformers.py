"""Networks of transformers: of a type with fresh weights, or of a folder or a cached repository with theirs.

Images get a classification head, text the base network, without one. No code and no pickle of a repository is ever run.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

from reptrans.errors import BadCheckpoint, BadValue, NotAvailable, UnknownName, near
from reptrans.models.library import Asked, library, refuse_large, refuse_other, rehearsed
from reptrans.paths import expanded


def transformers_network(asked: Asked) -> nn.Module:
    """`hf/TYPE` (bert, gpt2, vit), `hf/path/to/folder` with config.json, or `hf/OWNER/NAME` of the hub.

    A type has fresh weights, and `options` are those of its configuration: `hidden_size=32, num_hidden_layers=2`. A
    folder has the weights of its safetensors, or fresh ones if there is only config.json. A repository is looked for in
    the local cache; `weights="default"` also fetches it. `num_classes`, `in_channels` and `image_size` are for images.
    Raises UnknownName, BadValue, BadCheckpoint for a folder that is not complete, NotAvailable.
    """
    name, num_classes, in_channels, image_size, weights, options = asked
    library("transformers", "hf", name)
    if weights not in (None, "default"):
        raise UnknownName(f"{name} has no weights {weights!r}. Possible: default, which may fetch them, or None.")
    place, facts = name.removeprefix("hf/"), (num_classes, in_channels, image_size)
    if place in _types():
        if weights:
            raise BadValue(
                f"{name} is a type of network, without trained weights. Name a folder or a repository that has some: "
                "hf/path/to/folder, hf/OWNER/NAME."
            )
        return _fresh(name, _of_type(name, place, options), facts)
    folder = _folder(name, place, fetch=weights is not None)
    config = _of_folder(name, folder, options)
    if any(folder.glob("*.safetensors")):
        return _loaded(name, folder, config, facts)
    # A configuration alone is a wish for fresh weights only where somebody put it into a folder of theirs.
    if weights or folder != expanded(place, name) or any(folder.glob("*.bin")):
        raise BadCheckpoint(
            f"{folder} has no weights in safetensors, and pickled ones are not loaded, since they may run code. Fetch "
            'them (weights="default"), or save the network again with save_pretrained of a present transformers.'
        )
    return _fresh(name, config, facts)


def tokenizer_of(name: str) -> Path | None:
    """The tokenizer.json beside the network `hf/…`, in its folder or the local cache; None where there is none."""
    if not name.startswith("hf/"):
        return None
    place = name.removeprefix("hf/")
    folder = expanded(place, name)
    if folder.is_dir():
        return folder / "tokenizer.json" if (folder / "tokenizer.json").is_file() else None
    with suppress(NotAvailable, ValueError):  # no repository either: the network says so
        found = library("huggingface_hub", "hf", name).try_to_load_from_cache(place, "tokenizer.json")
        return Path(found) if isinstance(found, str) else None
    return None


def _types() -> list[str]:
    from transformers import CONFIG_MAPPING

    return list(CONFIG_MAPPING.keys())


def _of_type(name: str, kind: str, options: dict):
    from transformers import AutoConfig

    config = _tried(name, lambda: AutoConfig.for_model(kind))
    _check_options(name, config, options)
    return _tried(name, lambda: AutoConfig.for_model(kind, **options))


def _of_folder(name: str, folder: Path, options: dict):
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises errors of many classes for a broken file
        raise BadCheckpoint(
            f"{folder / 'config.json'} is no configuration of a network that transformers itself has "
            f"({_reason(error)}). Code that comes with a repository is not run."
        ) from error
    # A file may name kernels of the hub here, which are code as well.
    config._attn_implementation = config._experts_implementation = None
    _check_options(name, config, options)
    _tried(name, lambda: config.update(options))
    return config


def _check_options(name: str, config, options: dict) -> None:
    for option in options:
        if option.startswith("_") or not hasattr(config, option):
            known = [key for key in config.to_dict() if not key.startswith("_")]
            raise BadValue(f"{name} has no option {option!r}. {near(option, known)}Its options: {', '.join(known)}")


def _folder(name: str, place: str, fetch: bool) -> Path:
    """The folder that `place` is, or the one in the local cache for a repository."""
    folder = expanded(place, name)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise BadCheckpoint(f"{folder} has no config.json. Give a folder that save_pretrained of transformers wrote.")
    hub = library("huggingface_hub", "hf", name)
    try:
        wanted = ["config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json"]
        found = hub.snapshot_download(place, allow_patterns=wanted, local_files_only=not fetch)
    except Exception as error:  # of the hub, of its HTTP client, or for what is no name of a repository
        raise NotAvailable(
            f"{name} is no type of network, no folder, and no repository "
            f"{'that could be fetched' if fetch else 'in the local cache'} ({type(error).__name__}). "
            f"{near(place, _types())}{'' if fetch else 'weights=' + chr(34) + 'default' + chr(34) + ' fetches it. '}"
            f"The cache is {hub.constants.HF_HUB_CACHE}."
        ) from error
    return Path(found)


def _fresh(name: str, config, facts: tuple) -> nn.Module:
    num_classes, in_channels, image_size = facts
    kind = _class(name, config)
    if _sees(config):
        config.num_labels = 10 if num_classes is None else num_classes
        _set_images(name, config, in_channels, image_size)
    config.dtype = None
    make = lambda: kind.from_config(config, dtype=torch.get_default_dtype())  # noqa: E731
    refuse_large(name, make, "Make it smaller: hidden_size=..., num_hidden_layers=...")
    if not _sees(config):
        return _tried(name, make).train()
    shape = (1, in_channels, *image_size)
    return _tried(name, lambda: rehearsed(make(), shape), f" for images {shape}")


def _set_images(name: str, config, in_channels: int, image_size: tuple[int, int]) -> None:
    """The form of the images, where the configuration has it."""
    config = getattr(config, "vision_config", config)
    if hasattr(config, "num_channels"):
        config.num_channels = in_channels
    elif in_channels != 3:
        raise BadValue(
            f"{name} takes images of 3 channels, in_channels is {in_channels}. channels=3 of load_dataset repeats grey "
            "images three times."
        )
    if hasattr(config, "image_size"):
        own = config.image_size
        height, width = image_size
        config.image_size = list(image_size) if height != width or isinstance(own, list | tuple) else height


def _loaded(name: str, folder: Path, config, facts: tuple) -> nn.Module:
    num_classes, in_channels, _ = facts
    kind = _class(name, config)
    own = {"num_classes": config.num_labels, "in_channels": getattr(config, "num_channels", 3)}
    if _sees(config):
        given = {"num_classes": num_classes, "in_channels": in_channels}
        refuse_other(f"of {name}", own, given, "choose a type: hf/vit.")
    net, lacking = _read(name, kind, folder, config)
    pools = "add_pooling_layer" in inspect.signature(type(net).__init__).parameters
    if lacking and pools and all(key.startswith("pooler.") for key in lacking):
        net, lacking = _read(name, kind, folder, config, add_pooling_layer=False)
    if lacking:
        raise BadCheckpoint(
            f"{folder} has no weights, or none of that shape, for {', '.join(lacking[:3])}"
            f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''} of {type(net).__name__}. They would be "
            "drawn at random; build what it does hold in a function of your own: path/to/file.py:function."
        )
    return net.train()


def _read(name: str, kind, folder: Path, config, **more) -> tuple[nn.Module, list[str]]:
    """The network, and the names of its weights that the files lack."""
    safe = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which are refused by the caller
    try:
        with _quiet():
            net, found = kind.from_pretrained(folder, config=config, dtype=torch.float32, **told, **safe, **more)
    except Exception as error:  # transformers, safetensors and torch have no error class in common
        raise BadCheckpoint(f"The weights in {folder} cannot be loaded ({_reason(error)}). Replace them.") from error
    mismatched = [entry[0] for entry in found["mismatched_keys"]]
    return net, sorted({*found["missing_keys"], *mismatched})


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, transformers draws no bars and prints no report: what matters of it stands in an error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _sees(config) -> bool:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def _class(name: str, config):
    """With a classification head for images, without one for everything else."""
    from transformers import MODEL_MAPPING, AutoModel, AutoModelForImageClassification

    if _sees(config):
        return AutoModelForImageClassification
    if type(config) not in MODEL_MAPPING:
        raise BadValue(f"{name}: transformers has no base network for the type {config.model_type!r}. Choose another.")
    return AutoModel


def _tried(name: str, make, more: str = ""):
    """What `make` gives; whatever transformers raises becomes a BadValue."""
    try:
        return make()
    except Exception as error:
        raise BadValue(f"{name} cannot be made with these options{more}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
