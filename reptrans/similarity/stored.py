"""Activations in files: compared without a network, and only where their ids say that they are of the same examples."""

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reptrans.errors import BadData, BadValue, ShapeMismatch, choose
from reptrans.files import atomic, make_folder
from reptrans.layers import front
from reptrans.similarity.checks import numbers
from reptrans.similarity.inputs import batches, explained, moved
from reptrans.tensorfiles import existing, incomplete, load_tensors, save_tensors
from reptrans.training import evaluating

if TYPE_CHECKING:
    import pandas as pd

_IDS = ("ids", "id")


@dataclass(frozen=True)
class Features:
    """Activations of layers, each (n, …), and the `ids` of the n examples, numbers or strings: what `compare` takes in
    place of a network.

        compare(Features.load("a.npz"), Features.load("b.npz"), measure="rsa", null=200)

    Raises BadData for ids that repeat or are neither whole numbers nor strings, and without layers; ShapeMismatch for a
    layer that has not as many examples as there are ids.
    """

    layers: Mapping[str, Tensor]
    ids: Sequence

    def __post_init__(self):
        if not isinstance(self.layers, Mapping) or not isinstance(self.ids, (Iterable, Tensor)):
            raise BadData(
                f"features are {{'layer': activations (n, …)}} and the ids of the n examples; given a "
                f"{type(self.layers).__name__} and a {type(self.ids).__name__}."
            )
        layers = {str(name): numbers(v, f"layer {name!r}") for name, v in dict(self.layers).items()}
        ids = [v.item() if isinstance(v, (np.generic, Tensor)) else v for v in self.ids]
        if not layers:
            raise BadData("these features have no layer. Give {'name': activations (n, …)}.")
        for name, v in layers.items():
            if v.ndim < 2 or len(v) != len(ids):
                raise ShapeMismatch(f"layer {name!r} is {tuple(v.shape)}; {len(ids)} ids need ({len(ids)}, …).")
        if taken := {"ids", "id", "file"} & set(layers):
            raise BadData(f"no layer may be called {taken.pop()!r}: in files it means something else. Rename it.")
        kind = str if ids and isinstance(ids[0], str) else int
        if odd := [v for v in ids if not isinstance(v, kind)]:
            raise BadData(
                f"ids are whole numbers, or all of them strings; {odd[0]!r} is a {type(odd[0]).__name__}, and the "
                f"first of them is {ids[0]!r}."
            )
        if len(set(ids)) < len(ids):
            first = Counter(ids).most_common(1)[0][0]
            raise BadData(f"the id {first!r} is there more than once; an id belongs to one example.")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "ids", ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in self.layers.items())
        return f"Features({len(self.ids)} examples: {shapes})"

    @classmethod
    @torch.no_grad()
    def of(cls, net: nn.Module, loader: Iterable, layers: Sequence[str], ids: Sequence | None = None) -> "Features":
        """The activations of a network's `layers` for all batches of a loader, as `compare` takes them; without `ids`
        the examples are numbered from 0. Raises LayerNotFound, CannotCut, and what `compare` raises for a loader."""
        part, found = front(net, list(layers)), {name: [] for name in layers}
        with evaluating(net):
            for batch in batches(loader):
                inputs = moved(net, batch)
                with explained(net, inputs):
                    for name, v in part(inputs).items():
                        found[name].append(v.cpu().clone())
        whole = {name: torch.cat(parts) for name, parts in found.items()}
        return cls(whole, range(len(next(iter(whole.values())))) if ids is None else ids)

    @classmethod
    def load(cls, path: str | Path, ids: Sequence | None = None) -> "Features":
        """From .npz, .safetensors or .parquet.

        Arrays by the names of the layers, and `ids`; in a table a row for each example, a column `id`, and for each
        layer a column of lists, or columns `layer.0`, `layer.1`, … of numbers. `ids` for a file that has none.
        Raises BadCheckpoint for a file that is missing or broken; BadData without ids; UnknownName.
        """
        path = existing(path)
        read, _ = choose(path.suffix, _FORMATS, f"features are not read from {path.name}: its format is {{}}")
        layers, own = read(path)
        if ids is None and own is None:
            raise BadData(
                f"{path.name} has no ids, so that nothing says which example a row is of. Store them as 'ids', or give "
                "ids=range(n) where all files have the same examples in the same order."
            )
        return cls(layers, own if ids is None else ids)

    def save(self, path: str | Path) -> None:
        """To .npz, .safetensors or .parquet (there maps become lists of their numbers). Raises UnknownName."""
        path = Path(path)
        _, write = choose(path.suffix, _FORMATS, f"features are not written to {path.name}: its format is {{}}")
        make_folder(path.parent)
        write(self, path)

    def like(self, other: "Features") -> "Features":
        """These features with the examples of `other`, in its order. Raises BadData for an id that is missing here."""
        places = {v: i for i, v in enumerate(self.ids)}
        if missing := [v for v in other.ids if v not in places]:
            raise BadData(f"{len(missing)} of {len(other.ids)} ids are missing here, as {missing[0]!r}.")
        order = [places[v] for v in other.ids]
        return Features({name: v[order] for name, v in self.layers.items()}, list(other.ids))

    @classmethod
    def beside(cls, models: Mapping[str, "Features"], layer: str | Mapping[str, str]) -> "Features":
        """One layer of each of several models, each called by the model: compared with itself, a table of models.

        `layer`: its name in all models, or by model. Raises BadData for other examples or another order;
        BadValue without models; UnknownName.
        """
        if not models:
            raise BadValue("there are no models to set beside each other.")
        first, found = next(iter(models.values())), {}
        for name, features in models.items():
            refuse_other_examples(first, features)
            own = layer if isinstance(layer, str) else choose(name, layer, "no layer is named of {}")
            found[name] = choose(own, features.layers, f"{name} has no layer {{}}")
        return cls(found, first.ids)


def refuse_other_examples(a: Features, b: Features) -> None:
    """Raise BadData where two sides are not of the same examples, or not in the same order."""
    if a.ids == b.ids:
        return
    known = set(a.ids), set(b.ids)
    only = [v for v in a.ids if v not in known[1]], [v for v in b.ids if v not in known[0]]
    if any(only):
        side, names = next((side, names) for side, names in zip(("first", "second"), only, strict=True) if names)
        raise BadData(
            f"the two sides are of other examples: {len(only[0])} ids are in the first alone, {len(only[1])} in the "
            f"second, as {names[0]!r} in the {side}. Where one has all of the other's, first.like(second) picks them."
        )
    place = next(i for i, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)) if x != y)
    raise BadData(
        f"both sides are of the same examples, in other orders: at place {place} there is {a.ids[place]!r} in the "
        f"first, {b.ids[place]!r} in the second. second.like(first) puts them in order."
    )


def _read_npz(path: Path) -> tuple[dict, Sequence | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise incomplete(path) from error
    return _without_ids(found)


def _write_npz(features: Features, path: Path) -> None:
    arrays = {name: v.detach().cpu().numpy() for name, v in features.layers.items()}
    with atomic(path) as temporary:
        np.savez(temporary, ids=np.array(features.ids), **arrays)


def _read_tensors(path: Path) -> tuple[dict, Sequence | None]:
    found, _ = load_tensors(path)
    return _without_ids(found if isinstance(found, dict) else {})


def _write_tensors(features: Features, path: Path) -> None:
    save_tensors(path, {"ids": list(features.ids)} | dict(features.layers))


def _read_table(path: Path) -> tuple[dict, Sequence | None]:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise incomplete(path) from error
    columns: dict[str, list[str]] = {}
    for name in map(str, table.columns):
        layer, _, number = name.rpartition(".")
        # A column of lists is a whole layer, and layers themselves are called layer1.0.
        part = layer and number.isdigit() and table[name].dtype != object
        columns.setdefault(layer if part else name, []).append(name)
    ids = next((table[name].tolist() for name in _IDS if name in columns), None)
    return {k: _column(table, names) for k, names in columns.items() if k not in _IDS}, ids


def _column(table: "pd.DataFrame", names: list[str]) -> np.ndarray:
    if len(names) == 1 and table[names[0]].dtype == object:
        try:
            return np.stack(table[names[0]].to_list()).astype(float)
        except (TypeError, ValueError):
            raise BadData(f"column {names[0]!r} does not hold lists of numbers of one length.") from None
    numbered = sorted(names, key=lambda name: int(name.rpartition(".")[2])) if len(names) > 1 else names
    return table[numbered].to_numpy(dtype=float)


def _write_table(features: Features, path: Path) -> None:
    import pandas as pd

    columns = {name: v.flatten(1).double().cpu().numpy().tolist() for name, v in features.layers.items()}
    with atomic(path) as temporary:
        pd.DataFrame({"id": features.ids} | columns).to_parquet(temporary)


def _without_ids(found: dict) -> tuple[dict, Sequence | None]:
    name = next((name for name in _IDS if name in found), None)
    ids = None if name is None else found.pop(name)
    return found, ids if ids is None or isinstance(ids, list) else ids.tolist()


_FORMATS = {
    ".npz": (_read_npz, _write_npz),
    ".safetensors": (_read_tensors, _write_tensors),
    ".parquet": (_read_table, _write_table),
}
