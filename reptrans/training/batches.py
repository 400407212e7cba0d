"""What loaders may yield and networks may return: batches of any common form, one answer, mistakes said in words."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedTensorMixin

from reptrans.data import Batch
from reptrans.errors import BadData, BadValue, ReptransError, ShapeMismatch, suggest
from reptrans.layers.network import each, unwrap
from reptrans.layers.values import answer

IMAGES = ("images", "image", "pixel_values", "inputs", "input", "x")
LABELS = ("labels", "label", "targets", "target", "y")


class _Listed(tuple):
    """(images, labels, …) as a loader gave them, with the names that a Batch has; the positions are not known."""

    images = property(lambda self: self[0])
    labels = property(lambda self: self[1])
    index = None


class _Named(dict):
    """A mapping as a loader gave it, with the names that a Batch has; the positions are not known."""

    images = property(lambda self: self[_key(self, IMAGES)])
    labels = property(lambda self: self[_key(self, LABELS)])
    index = None


def batches(loader: Iterable, device: torch.device) -> Iterator:
    """The loader's batches with their tensors on `device`, each with `images` and `labels`.

    A batch is a Batch, (images, labels, …) as torch's DataLoader gives, or a mapping with both; other objects that
    have an `index` are passed on as they are. Raises BadValue, BadData.
    """
    if isinstance(loader, (Tensor, str, Mapping)) or not hasattr(loader, "__iter__"):
        raise BadValue(f"the loader is {_described(loader)}. {_ADVICE}")
    for batch in loader:
        yield as_batch(batch, device)


def as_batch(batch: object, device: torch.device) -> object:
    """One batch of a loader, see `batches`."""
    if isinstance(batch, Batch):
        return Batch(*(each(value, lambda tensor: tensor.to(device)) for value in batch))
    if isinstance(getattr(batch, "index", None), Tensor):
        return batch
    if isinstance(batch, Mapping):
        found = _Named({name: _moved(value, device) for name, value in batch.items()})
    elif isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = _Listed(_moved(value, device) for value in batch)
    else:
        raise BadValue(f"the loader's batches are {_described(batch)}. {_ADVICE}")
    for what, value in (("images", found.images), ("labels", found.labels)):
        if not isinstance(value, Tensor) or not value.ndim:
            raise BadData(f"the loader's {what} are {_described(value)}, and not a tensor (n, …). {_ADVICE}")
    if len(found.images) != len(found.labels):
        shapes = f"{tuple(found.images.shape)} and labels {tuple(found.labels.shape)}"
        raise ShapeMismatch(f"a batch has images {shapes}; give one label for each image.")
    return found


def checked_network(net: nn.Module) -> nn.Module:
    """`net`; BadValue where it is none, a name for instance."""
    return net if isinstance(net, nn.Module) else unwrap(net)


def checked_weights(net: nn.Module) -> nn.Module:
    """`net`; BadValue where it is none, or where its weights have no values yet."""
    for name, weight in chain(checked_network(net).named_parameters(), net.named_buffers()):
        if isinstance(weight, UninitializedTensorMixin):
            raise BadValue(
                f"{name} of {type(net).__name__} takes its shape from the first images: call net(images) once."
            )
    refuse_meta(net)
    return net


def refuse_meta(net: nn.Module) -> None:
    """Raise BadValue for weights on the device meta."""
    for name, weight in chain(net.named_parameters(), net.named_buffers()):
        if weight.is_meta:
            raise BadValue(
                f"{name} of {type(net).__name__} is on the device meta, where weights have shapes and no values. Give "
                "them some: net.to_empty(device='cpu'), then net.load_state_dict(…)."
            )


def answers_of(net: nn.Module, images: Tensor) -> Tensor:
    """The logits (n, k) that `net` gives for images, whatever it returns; see `explained` for what is raised."""
    with explained(net, images):
        found = net(images)
    return answer(found, type(net).__name__)


@contextmanager
def explained(net: nn.Module, inputs: Tensor | Mapping) -> Iterator[None]:
    """An error of the network about its input, images or keywords, becomes one sentence: ShapeMismatch.

    Raises BadValue for what is no input at all, and for weights without values.
    """
    if not isinstance(inputs, (Tensor, Mapping)):
        given = _described(inputs)
        raise BadValue(f"{type(net).__name__} takes a tensor (n, …) or a mapping of tensors; given {given}.")
    try:
        yield
    except (ReptransError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        refuse_meta(net)
        images = isinstance(inputs, Tensor)
        reason = _reason(net, inputs) if images else ""
        first = reason or (str(error).splitlines() or [type(error).__name__])[0]
        given = f"images {tuple(inputs.shape)} of {inputs.dtype}" if images else f"the inputs {', '.join(inputs)}"
        # What torch says many frames further in is of use only where the reason is not known.
        raise ShapeMismatch(f"{type(net).__name__} does not take {given}: {first}") from (None if reason else error)


def _reason(net: nn.Module, images: Tensor) -> str:
    """What is wrong with the images for this network, as far as its types and its first layer tell; or ""."""
    weights = next((p.dtype for p in net.parameters() if p.is_floating_point()), images.dtype)
    if images.dtype != weights and not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in net.modules()):
        first = "" if images.is_floating_point() else " after scaling them as in its training"
        return f"its weights are {weights}. Convert the images by images.to({weights}){first}."
    name, layer = next(((n, m) for n, m in net.named_modules() if isinstance(m, _ConvNd)), ("", None))
    if layer is None or layer.in_channels == 0:  # none, or one that takes its channels from the first images
        return ""
    if images.ndim != layer.weight.ndim:
        return f"its first layer {name!r} takes {_FORMS.get(layer.weight.ndim)}."
    if (found := images.shape[1]) == layer.in_channels:
        return ""
    grey = ", or repeat grey images: images.expand(-1, 3, -1, -1)" if (found, layer.in_channels) == (1, 3) else ""
    return f"its first layer {name!r} takes {layer.in_channels} channels. Build it with in_channels={found}{grey}."


_FORMS = {3: "(n, c, length)", 4: "(n, c, h, w)", 5: "(n, c, depth, h, w)"}
_ADVICE = (
    "Give an iterable of batches (images, labels), such as dataset.loader('test') or a torch DataLoader; a batch may "
    f"also be a mapping with {IMAGES[0]!r} and {LABELS[0]!r}."
)


def _key(batch: Mapping, known: tuple[str, ...]) -> str:
    found = next((name for name in known if name in batch), None)
    if found is None:
        names = [str(name) for name in batch]
        raise BadValue(f"the loader's batches have no {known[0]!r}, only {', '.join(names)}. {suggest('', known)}")
    return found


def _moved(value: object, device: torch.device) -> object:
    return value.to(device) if isinstance(value, Tensor) else value


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
